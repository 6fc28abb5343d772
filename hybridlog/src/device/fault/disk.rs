//! What is on the simulated disk, what of it is durable, and what a crash leaves.
//!
//! ```text
//!   names  ──>  node: contents        what reads see
//!   durable names                      │ sectors   after the last sync, then after each write since
//!   changes since the last sync        └ lengths   likewise
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::super::FileId;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

type NodeNumber = u64;
/// The number of a write, in the order in which they were carried out.
type WriteNumber = u64;

/// The files and the directory.
#[derive(Clone)]
pub(super) struct Disk {
    nodes: BTreeMap<NodeNumber, Node>,
    names: BTreeMap<FileId, NodeNumber>,
    durable_names: BTreeMap<FileId, NodeNumber>,
    unsynced_changes: Vec<Change>,
    nodes_made: NodeNumber,
    writes: WriteNumber,
    free_space: u64,
    /// The first write that the log must never make; see [`Disk::rewritten`].
    rewritten: Option<String>,
}

/// One change of a name.
#[derive(Clone, Copy)]
enum Change {
    Create(FileId, NodeNumber),
    Remove(FileId, NodeNumber),
    Rename(FileId, FileId, NodeNumber),
    Link(FileId, NodeNumber),
}

/// A file without its name.
#[derive(Clone, Default)]
struct Node {
    contents: Vec<u8>,
    /// The sectors that a crash may find in more than one state.
    sectors: BTreeMap<u64, Sector>,
    /// The length after the last sync, and after each change of it since.
    durable_length: usize,
    lengths: Vec<(WriteNumber, usize)>,
    /// The sectors that were ever written, by an earlier run too.
    written: BTreeSet<u64>,
}

#[derive(Clone)]
struct Sector {
    durable: [u8; SECTOR],
    /// Its content after each write since, in order.
    later: Vec<(WriteNumber, [u8; SECTOR])>,
    /// A sync failed on it: no later sync covers it, until it is written again.
    forsaken: bool,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            nodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_changes: Vec::new(),
            nodes_made: 0,
            writes: 0,
            free_space: 1 << 36,
            rewritten: None,
        }
    }
}

impl Disk {
    pub(super) fn create(&mut self, file: FileId, size: u64) -> io::Result<()> {
        if self.names.contains_key(&file) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.take_space(size)?;
        self.nodes_made += 1;
        self.writes += 1;
        let size = usize::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let node =
            Node { contents: vec![0; size], lengths: vec![(self.writes, size)], ..Node::default() };
        self.nodes.insert(self.nodes_made, node);
        self.names.insert(file, self.nodes_made);
        self.unsynced_changes.push(Change::Create(file, self.nodes_made));
        Ok(())
    }

    pub(super) fn remove(&mut self, file: FileId) -> io::Result<()> {
        let number = self.names.remove(&file).ok_or(io::ErrorKind::NotFound)?;
        self.free_space += self.bytes_without_name(number);
        self.unsynced_changes.push(Change::Remove(file, number));
        Ok(())
    }

    pub(super) fn rename(&mut self, from: FileId, to: FileId) -> io::Result<()> {
        let number = self.names.remove(&from).ok_or(io::ErrorKind::NotFound)?;
        if let Some(replaced) = self.names.insert(to, number) {
            self.free_space += self.bytes_without_name(replaced);
        }
        self.unsynced_changes.push(Change::Rename(from, to, number));
        Ok(())
    }

    pub(super) fn link(&mut self, from: FileId, to: FileId) -> io::Result<()> {
        let number = *self.names.get(&from).ok_or(io::ErrorKind::NotFound)?;
        if let Some(replaced) = self.names.insert(to, number) {
            self.free_space += self.bytes_without_name(replaced);
        }
        self.unsynced_changes.push(Change::Link(to, number));
        Ok(())
    }

    /// The bytes of a file that has no name any more; 0 while it has one.
    fn bytes_without_name(&self, number: NodeNumber) -> u64 {
        let is_named = self.names.values().any(|named| *named == number);
        if is_named { 0 } else { self.nodes[&number].contents.len() as u64 }
    }

    pub(super) fn list(&self) -> Vec<FileId> {
        self.names.keys().copied().collect()
    }

    pub(super) fn sync_names(&mut self) {
        self.durable_names = self.names.clone();
        self.unsynced_changes.clear();
        self.nodes.retain(|number, _| self.names.values().any(|named| named == number));
    }

    pub(super) fn contents(&self, file: FileId) -> Option<&[u8]> {
        let number = self.names.get(&file)?;
        Some(&self.nodes[number].contents)
    }

    pub(super) fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let contents = self.contents(file).ok_or(io::ErrorKind::NotFound)?;
        let found = usize::try_from(offset)
            .ok()
            .and_then(|start| contents.get(start..start.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    pub(super) fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let number = *self.names.get(&file).ok_or(io::ErrorKind::NotFound)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = start.checked_add(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        if let FileId::Segment(segment) = file
            && let Some(sector) = self.nodes[&number].changes_sector(start, bytes)
        {
            let what = format!("sector {sector} of segment {segment} was written with other bytes");
            self.rewritten.get_or_insert_with(|| what.clone());
            return Err(io::Error::other(what));
        }
        let length = self.nodes[&number].contents.len();
        self.take_space(end.saturating_sub(length) as u64)?;
        self.writes += 1;
        let node = self.nodes.get_mut(&number).expect("a name has a node");
        node.write(self.writes, start, bytes);
        Ok(())
    }

    /// A second write of a segment's sector with other bytes than it had been given before, which
    /// was refused. What is flushed never changes, so the log makes no such write.
    pub(super) fn rewritten(&self) -> Option<String> {
        self.rewritten.clone()
    }

    /// Makes the writes up to `covered` durable.
    pub(super) fn sync(&mut self, file: FileId, covered: WriteNumber) -> io::Result<()> {
        self.node(file)?.sync(covered);
        Ok(())
    }

    /// A sync failed: what it should have covered is forsaken.
    pub(super) fn fail_sync(&mut self, file: FileId) {
        if let Ok(node) = self.node(file) {
            node.sectors.values_mut().for_each(|sector| sector.forsaken = true);
        }
    }

    /// The number of the last write that was carried out.
    pub(super) fn completed_writes(&self) -> WriteNumber {
        self.writes
    }

    pub(super) fn free_space(&self) -> u64 {
        self.free_space
    }

    pub(super) fn set_free_space(&mut self, bytes: u64) {
        self.free_space = bytes;
    }

    pub(super) fn flip(&mut self, file: FileId, offset: u64, bit: u8) {
        assert!(bit < 8, "a byte has no bit {bit}");
        let node = self.node(file).expect("the file exists");
        let offset = usize::try_from(offset).expect("the byte exists");
        node.contents[offset] ^= 1 << bit;
        if let Some(sector) = node.sectors.get_mut(&((offset / SECTOR) as u64)) {
            sector.durable[offset % SECTOR] ^= 1 << bit;
            for (_, version) in &mut sector.later {
                version[offset % SECTOR] ^= 1 << bit;
            }
        }
    }

    pub(super) fn truncate(&mut self, file: FileId, length: u64) {
        let node = self.node(file).expect("the file exists");
        let length = usize::try_from(length).expect("it shortens the file");
        assert!(length <= node.contents.len(), "it shortens the file");
        node.contents.truncate(length);
        node.sectors.clear();
        node.lengths.clear();
        node.durable_length = length;
    }

    /// The disk that is found when the power comes back: nothing in it is unsynced.
    pub(super) fn after_crash(&self, random: &mut Random) -> Self {
        let names = self.names_after_crash(random);
        let nodes = self
            .nodes
            .iter()
            .map(|(number, node)| (*number, node.after_crash(self.writes, random)))
            .collect();
        let mut disk = Self { durable_names: names.clone(), names, nodes, ..self.clone() };
        disk.sync_names();
        disk.free_space = (self.free_space + self.used_space()).saturating_sub(disk.used_space());
        disk
    }

    fn names_after_crash(&self, random: &mut Random) -> BTreeMap<FileId, NodeNumber> {
        let mut names = self.durable_names.clone();
        let count = self.unsynced_changes.len();
        // All lost, all kept, those up to some instant, or any of them.
        let style = random.below(4);
        let kept = match style {
            0 => 0,
            1 => count,
            _ => random.below(count + 1),
        };
        for (place, change) in self.unsynced_changes.iter().enumerate() {
            let happened = if style == 3 { random.below(2) == 1 } else { place < kept };
            if happened {
                change.apply(&mut names);
            }
        }
        names
    }

    fn node(&mut self, file: FileId) -> io::Result<&mut Node> {
        let number = self.names.get(&file).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.nodes.get_mut(number).expect("a name has a node"))
    }

    fn used_space(&self) -> u64 {
        let named: BTreeSet<_> = self.names.values().collect();
        named.into_iter().map(|number| self.nodes[number].contents.len() as u64).sum()
    }

    fn take_space(&mut self, bytes: u64) -> io::Result<()> {
        self.free_space = self.free_space.checked_sub(bytes).ok_or(io::ErrorKind::StorageFull)?;
        Ok(())
    }
}

impl Change {
    /// Makes the change, though an earlier one may have been lost.
    fn apply(self, names: &mut BTreeMap<FileId, NodeNumber>) {
        match self {
            Self::Create(file, number) | Self::Link(file, number) => {
                names.insert(file, number);
            }
            Self::Remove(file, number) => {
                if names.get(&file) == Some(&number) {
                    names.remove(&file);
                }
            }
            Self::Rename(from, to, number) => {
                if names.get(&from) == Some(&number) {
                    names.remove(&from);
                }
                names.insert(to, number);
            }
        }
    }
}

impl Node {
    /// A sector that was written before and would now get other bytes.
    fn changes_sector(&self, start: usize, bytes: &[u8]) -> Option<u64> {
        let end = start + bytes.len();
        let mut again = self.written.range((start / SECTOR) as u64..end.div_ceil(SECTOR) as u64);
        let differs = |sector: &&u64| {
            let sector = **sector as usize * SECTOR;
            let (from, to) = (sector.max(start), (sector + SECTOR).min(end));
            self.contents.get(from..to) != Some(&bytes[from - start..to - start])
        };
        again.find(differs).copied()
    }

    fn write(&mut self, number: WriteNumber, start: usize, bytes: &[u8]) {
        let end = start + bytes.len();
        let touched = start / SECTOR..end.div_ceil(SECTOR);
        for index in touched.clone() {
            if !self.sectors.contains_key(&(index as u64)) {
                let (durable, later, forsaken) = (self.sector(index), Vec::new(), false);
                self.sectors.insert(index as u64, Sector { durable, later, forsaken });
            }
        }
        if end > self.contents.len() {
            self.contents.resize(end, 0);
            self.lengths.push((number, end));
        }
        self.contents[start..end].copy_from_slice(bytes);
        for index in touched {
            let content = self.sector(index);
            let sector = self.sectors.get_mut(&(index as u64)).expect("inserted above");
            sector.later.push((number, content));
            sector.forsaken = false;
            self.written.insert(index as u64);
        }
    }

    /// A sector's content; zeros beyond the end of the file.
    fn sector(&self, index: usize) -> [u8; SECTOR] {
        let start = (index * SECTOR).min(self.contents.len());
        let end = (start + SECTOR).min(self.contents.len());
        let mut content = [0; SECTOR];
        content[..end - start].copy_from_slice(&self.contents[start..end]);
        content
    }

    fn sync(&mut self, covered: WriteNumber) {
        self.sectors.retain(|_, sector| {
            if !sector.forsaken {
                let synced = sector.later.partition_point(|(number, _)| *number <= covered);
                if let Some((_, content)) = sector.later.drain(..synced).next_back() {
                    sector.durable = content;
                }
            }
            !sector.later.is_empty()
        });
        let synced = self.lengths.partition_point(|(number, _)| *number <= covered);
        if let Some((_, length)) = self.lengths.drain(..synced).next_back() {
            self.durable_length = length;
        }
    }

    fn after_crash(&self, writes: WriteNumber, random: &mut Random) -> Self {
        // All lost, all kept, what was written up to some instant, or any sector in any state.
        let style = random.below(4);
        let instant = match style {
            0 => 0,
            1 => WriteNumber::MAX,
            _ => random.below(usize::try_from(writes).unwrap_or(usize::MAX - 1) + 1) as u64,
        };
        let mut choose = |numbers: &mut dyn Iterator<Item = WriteNumber>| {
            let all: Vec<_> = numbers.collect();
            match style {
                3 => random.below(all.len() + 1),
                _ => all.partition_point(|number| *number <= instant),
            }
        };
        let kept = choose(&mut self.lengths.iter().map(|(number, _)| *number));
        let length = kept.checked_sub(1).map_or(self.durable_length, |last| self.lengths[last].1);
        let mut contents = self.contents.clone();
        for (index, sector) in &self.sectors {
            let kept = choose(&mut sector.later.iter().map(|(number, _)| *number));
            let content = kept.checked_sub(1).map_or(&sector.durable, |last| &sector.later[last].1);
            let start = *index as usize * SECTOR;
            let end = (start + SECTOR).min(contents.len());
            contents[start..end].copy_from_slice(&content[..end - start]);
        }
        contents.truncate(length);
        let written = self.written.clone();
        Self { contents, durable_length: length, written, ..Self::default() }
    }
}

/// Numbers that look random and follow from a seed (xorshift64*).
#[derive(Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        // Seeds 1, 2, 3 must not start alike, and the state must not be 0.
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            random.next();
        }
        random
    }

    /// A number below `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}
