//! The checkpoint of a store in memory: one file, `ferrite.ckpt`, that holds all of it.
//!
//! ```text
//!   head       magic "FERRSNAP" | version u32 | 0 u32 | number u64 | store id 16 | zeros | CRC32C u32
//!   image      the index, as in an image file (`image`), whole blocks
//!   page*      kind u32 = 1 | raw bytes u32 | stored bytes u32 | CRC32C u32 | address u64 | index u64 | stored
//!   manifest   the same with kind 2: the checkpoint's words as in a manifest's file (`manifest`)
//!   zeros      up to a block
//!   foot       magic "FERRSEND" | version u32 | 0 u32 | number u64 | image bytes u64
//!              | manifest's offset u64 | CRC32C of the image u32 | zeros | CRC32C u32
//! ```
//!
//! Head and foot are a block each, the CRC32C in its last four bytes covers the others. Stored bytes
//! are zstd when fewer than the raw bytes, else raw; the manifest's are raw. A part's checksum is that of its fields in the
//! order kind, raw, stored, address, index, then the head's checksum, then that of the stored bytes:
//! so no part of another file and no part twice is taken for one of this. Pages come in log order,
//! each from its start to its end or the cut; which there are follows from the manifest. Little-endian.
//!
//! It is written as `ferrite.ckpt.new` while work goes on, synced, and renamed; what it replaces is kept
//! as `ferrite.ckpt.previous`. So at each instant `ferrite.ckpt` is one whole checkpoint. A start
//! reads all of it, compares every byte, and gives nothing out before.

use super::blocks::{pieces, read_verified};
use super::image;
use super::manifest::{Checkpoint, Manifest};
use crate::OpenError;
use crate::config::Geometry;
use crate::device::memory::MemoryDevice;
use crate::device::{ALIGNMENT, Device, FileId, blocking};
use crate::log::scan::records_of;
use crate::sync::{Arc, Locked, Mutex, mutant};
use crate::tier::raw::{block_crc, side_size};
use std::io;

const HEAD: &[u8; 8] = b"FERRSNAP";
const FOOT: &[u8; 8] = b"FERRSEND";
const VERSION: u32 = 1;
const PAGE: u32 = 1;
const MANIFEST: u32 = 2;
/// Bytes before the stored bytes of a part.
const PART_HEAD: usize = 32;
/// Bytes of one write, and of one read.
const STEP: usize = 1 << 20;
/// Where the image begins.
pub(crate) const IMAGE_AT: u64 = ALIGNMENT as u64;

/// Whether a file begins as one of these.
pub(crate) fn is_snapshot(bytes: &[u8]) -> bool {
    bytes.starts_with(HEAD)
}

/// The files of a store in memory.
pub(crate) struct Snapshots {
    pub home: Arc<dyn Device>,
    kept: Mutex<Kept>,
}

/// The numbers of the checkpoints that are there.
#[derive(Clone, Copy, Default)]
struct Kept {
    newest: Option<u64>,
    previous: Option<u64>,
    /// The file system gives no second names: there is never a previous one.
    alone: bool,
}

impl Snapshots {
    /// On a device, whose newest checkpoint, if there is one, is `newest`.
    pub fn new(home: Arc<dyn Device>, newest: Option<u64>) -> Self {
        Self { home, kept: Mutex::new(Kept { newest, ..Kept::default() }) }
    }

    /// The oldest checkpoint that is there.
    pub fn oldest(&self) -> Option<u64> {
        let kept = self.kept.locked();
        kept.previous.or(kept.newest)
    }

    /// Bytes of the checkpoints that are there.
    pub fn bytes(&self) -> u64 {
        let size = |file| self.home.size(file).unwrap_or(0);
        size(FileId::Manifest) + size(FileId::Previous)
    }

    /// Begins the file; what an earlier attempt has left goes.
    pub fn begin(&self) -> io::Result<()> {
        self.discard()?;
        self.home.create(FileId::ManifestNew, 0)
    }

    /// Removes what a failed attempt has left: it only takes space.
    pub fn discard(&self) -> io::Result<()> {
        match self.home.remove(FileId::ManifestNew) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Writes all but the image, which is there, and puts the file under its name. Returns its bytes.
    /// `log` holds the pages, `manifest` the one checkpoint.
    pub fn finish(
        &self,
        log: &dyn Device,
        geometry: &Geometry,
        manifest: &Manifest,
        image_crc: u32,
        compress: bool,
    ) -> io::Result<u64> {
        let checkpoint = manifest.newest().expect("the caller has put it there");
        let head = head_block(checkpoint.number, &manifest.store_id);
        let mut out = Parts {
            device: &*self.home,
            seal: block_crc(&head),
            written: IMAGE_AT + checkpoint.image.length,
            pending: Vec::new(),
            index: 0,
        };
        let mut failed = None;
        let ranges = pages(geometry, checkpoint);
        let read = read_verified(log, geometry, ranges, |(from, _), bytes| {
            out.part(PAGE, from, bytes, compress).map_err(|source| OpenError::Io {
                action: "write",
                path: self.home.path(FileId::ManifestNew),
                source,
            })
        });
        match read {
            Ok(()) => {}
            Err(OpenError::Io { source, .. }) => failed = Some(source),
            Err(other) => failed = Some(io::Error::other(other.to_string())),
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let manifest_at = out.end();
        out.part(MANIFEST, 0, &manifest.encode(), false)?;
        let length = out.finish(checkpoint, manifest_at, image_crc)?;
        blocking::write(&*self.home, FileId::ManifestNew, 0, head)?;
        if !mutant!("snapshot_without_sync") {
            blocking::sync(&*self.home, FileId::ManifestNew)?;
        }
        self.publish(checkpoint.number)?;
        Ok(length)
    }

    /// Gives the file its name; the one that had it is kept. When this returns it is the one that a start
    /// finds. After a failure that may be the old one or this one; both are whole.
    fn publish(&self, number: u64) -> io::Result<()> {
        let mut kept = self.kept.locked();
        if kept.newest.is_some() && !kept.alone {
            match self.home.link(FileId::Manifest, FileId::Previous) {
                Ok(()) => kept.previous = kept.newest,
                Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                    tracing::warn!("the checkpoint before the newest one is not kept: {e}");
                    (kept.previous, kept.alone) = (None, true);
                }
                Err(e) => return Err(e),
            }
        }
        self.home.rename(FileId::ManifestNew, FileId::Manifest)?;
        kept.newest = Some(number);
        if !mutant!("snapshot_without_directory_sync") {
            self.home.sync_directory()?;
        }
        Ok(())
    }
}

/// The pages of a checkpoint in log order, in words: from the start of the page of its begin.
fn pages<'a>(
    geometry: &'a Geometry,
    checkpoint: &'a Checkpoint,
) -> impl Iterator<Item = (u64, u64)> + 'a {
    checkpoint.extents.iter().filter(|(_, to)| *to > checkpoint.begin).flat_map(|(from, to)| {
        let from = geometry.page_start((*from).max(checkpoint.begin));
        pieces(from, *to, geometry.page_words)
    })
}

struct Parts<'a> {
    device: &'a dyn Device,
    seal: u32,
    written: u64,
    pending: Vec<u8>,
    index: u64,
}

impl Parts<'_> {
    /// Where the next part begins.
    fn end(&self) -> u64 {
        self.written + self.pending.len() as u64
    }

    fn part(&mut self, kind: u32, at: u64, raw: &[u8], compress: bool) -> io::Result<()> {
        let packed = if compress { zstd::bulk::compress(raw, 1)? } else { Vec::new() };
        let stored = if compress && packed.len() < raw.len() { &packed } else { raw };
        let part = PartHead {
            kind,
            raw: raw.len() as u32,
            stored: stored.len() as u32,
            at,
            index: self.index,
        };
        self.pending.extend_from_slice(&part.encode(part.crc(self.seal, stored)));
        self.pending.extend_from_slice(stored);
        self.index += 1;
        if self.pending.len() >= STEP { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.pending);
        let length = bytes.len() as u64;
        blocking::write(self.device, FileId::ManifestNew, self.written, bytes)?;
        self.written += length;
        Ok(())
    }

    fn finish(
        mut self,
        checkpoint: &Checkpoint,
        manifest_at: u64,
        image_crc: u32,
    ) -> io::Result<u64> {
        let padded = (self.end() as usize).next_multiple_of(ALIGNMENT);
        self.pending.resize(padded - self.written as usize, 0);
        let mut foot = FOOT.to_vec();
        foot.extend_from_slice(&VERSION.to_le_bytes());
        foot.extend_from_slice(&[0; 4]);
        for field in [checkpoint.number, checkpoint.image.length, manifest_at] {
            foot.extend_from_slice(&field.to_le_bytes());
        }
        foot.extend_from_slice(&image_crc.to_le_bytes());
        self.pending.extend_from_slice(&sealed_block(foot));
        self.flush()?;
        Ok(self.written)
    }
}

#[derive(Clone, Copy)]
struct PartHead {
    kind: u32,
    raw: u32,
    stored: u32,
    at: u64,
    index: u64,
}

impl PartHead {
    fn encode(&self, crc: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(PART_HEAD);
        for field in [self.kind, self.raw, self.stored, crc] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.at.to_le_bytes());
        out.extend_from_slice(&self.index.to_le_bytes());
        out
    }

    /// The part and its checksum.
    fn decode(bytes: &[u8]) -> (Self, u32) {
        let u32_at = |at| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let (kind, raw, stored) = (u32_at(0), u32_at(4), u32_at(8));
        (Self { kind, raw, stored, at: u64_at(16), index: u64_at(24) }, u32_at(12))
    }

    fn crc(&self, seal: u32, stored: &[u8]) -> u32 {
        let mut covered = self.encode(seal);
        covered.extend_from_slice(&block_crc(stored).to_le_bytes());
        block_crc(&covered)
    }
}

fn head_block(number: u64, store_id: &[u8; 16]) -> Vec<u8> {
    let mut head = HEAD.to_vec();
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&[0; 4]);
    head.extend_from_slice(&number.to_le_bytes());
    head.extend_from_slice(store_id);
    sealed_block(head)
}

/// A block with its checksum at the end.
fn sealed_block(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(ALIGNMENT - 4, 0);
    let crc = block_crc(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// One of the files, found whole at both ends; what lies between is compared as it is read.
pub(crate) struct Snapshot {
    pub file: FileId,
    pub manifest: Manifest,
    /// Its length in bytes.
    pub length: u64,
    manifest_at: u64,
    image_crc: u32,
    seal: u32,
}

type Fault = (u64, String);

impl Snapshot {
    /// Reads the ends and the manifest.
    ///
    /// # Errors
    /// [`OpenError::Damaged`] with the byte, and [`OpenError::OtherBackend`].
    pub fn open(device: &dyn Device, file: FileId) -> Result<Self, OpenError> {
        let read = |at, length| blocking::read_at(device, file, at, length);
        let failed = |source| OpenError::Io { action: "read", path: device.path(file), source };
        let length = device.size(file).map_err(failed)?;
        let block = ALIGNMENT as u64;
        let start = if length < block { Vec::new() } else { read(0, block).map_err(failed)? };
        if super::manifest::is_manifest(&start) {
            return Err(OpenError::OtherBackend { path: device.path(file), made_by: "hybridlog" });
        }
        let refused = |fault| damaged(device, file, fault);
        let ends_early = || refused((length, "it ends early".into()));
        if length < 3 * block || !length.is_multiple_of(block) {
            return Err(ends_early());
        }
        let number = |bytes: &[u8], at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
        };
        check_block(&start, HEAD, 0).map_err(refused)?;
        let foot_at = length - block;
        let foot = read(foot_at, block).map_err(failed)?;
        check_block(&foot, FOOT, foot_at).map_err(refused)?;
        if number(&start, 16) != number(&foot, 16) {
            return Err(refused((foot_at + 16, "it ends as another checkpoint's file".into())));
        }
        let (image_bytes, manifest_at) = (number(&foot, 24), number(&foot, 32));
        if manifest_at < IMAGE_AT || manifest_at > foot_at - PART_HEAD as u64 {
            return Err(refused((foot_at + 32, "its manifest lies nowhere in it".into())));
        }
        let seal = block_crc(&start);
        let mut stream = Stream::new(device, file, manifest_at, foot_at);
        let (part, raw) = stream.part(seal).map_err(refused)?;
        let at = |(offset, found): Fault| (manifest_at + PART_HEAD as u64 + offset, found);
        if part.kind != MANIFEST {
            return Err(refused((manifest_at, "no manifest stands there".into())));
        }
        let manifest = Manifest::decode(&raw).map_err(|fault| refused(at(fault)))?;
        let fits = manifest
            .newest()
            .is_some_and(|c| c.image.length == image_bytes && c.number == number(&start, 16));
        if !fits || manifest.store_id != start[24..40] {
            return Err(refused((manifest_at, "its manifest is that of another file".into())));
        }
        let image_crc = u32::from_le_bytes(foot[40..44].try_into().expect("four bytes"));
        Ok(Self { file, manifest, length, manifest_at, image_crc, seal })
    }

    /// The checkpoint in it.
    pub fn checkpoint(&self) -> &Checkpoint {
        self.manifest.newest().expect("`open` looked")
    }

    /// Reads all of it: the image's bytes, and each page, which must be those that the manifest says.
    /// Everything is compared with its checksum before it is handed out. `read` is told of bytes.
    pub fn read(
        &self,
        device: &dyn Device,
        geometry: &Geometry,
        mut page: impl FnMut(u64, &[u8]) -> Result<(), OpenError>,
        mut read: impl FnMut(u64),
    ) -> Result<Vec<u8>, OpenError> {
        let refused = |fault| damaged(device, self.file, fault);
        let checkpoint = self.checkpoint();
        let mut stream = Stream::new(device, self.file, IMAGE_AT, self.length - IMAGE_AT);
        let image = stream.take(checkpoint.image.length as usize).map_err(refused)?.to_vec();
        let entry = |_, _, _, _| {};
        image::parse(&image, u32::from(self.manifest.index_smallest_bits), entry)
            .map_err(|(offset, found)| refused((IMAGE_AT + offset, found)))?;
        let crc = block_crc(&image);
        if crc != self.image_crc {
            let found = format!("the index does not match its checksum ({crc:08x})");
            return Err(refused((IMAGE_AT, found)));
        }
        let mut told = 0;
        let mut index = 0;
        for (from, to) in pages(geometry, checkpoint) {
            let at = stream.at();
            let (part, raw) = stream.part(self.seal).map_err(refused)?;
            let is_expected = part.kind == PAGE && part.at == from && part.index == index;
            if !is_expected || raw.len() as u64 != (to - from) * 8 {
                return Err(refused((at, format!("the page of address {from} is missing"))));
            }
            page(from, &raw)?;
            index += 1;
            read(stream.at() - told);
            told = stream.at();
        }
        if stream.at() != self.manifest_at {
            return Err(refused((stream.at(), "there is more than the checkpoint has".into())));
        }
        let (part, _) = stream.part(self.seal).map_err(refused)?;
        if part.index != index {
            return Err(refused((self.manifest_at, "pages are missing before it".into())));
        }
        let (at, left) = (stream.at(), (self.length - IMAGE_AT - stream.at()) as usize);
        let rest = stream.take(left).map_err(refused)?;
        if let Some(not_zero) = rest.iter().position(|byte| *byte != 0) {
            return Err(refused((at + not_zero as u64, "nothing belongs there".into())));
        }
        read(self.length - told);
        Ok(image)
    }

    /// What is wrong with it, if something is: all of it is read, records decoded.
    pub fn fault(&self, device: &dyn Device, read: impl FnMut(u64)) -> Option<OpenError> {
        let (page_words, segment_words) = (self.manifest.page_words, self.manifest.segment_words);
        let geometry = Geometry { page_words, segment_words, frames: 2, mutable_pages: 1 };
        let begin = self.checkpoint().begin;
        let outcome = self.read(
            device,
            &geometry,
            |from, bytes| {
                // What lies before the begin is only there to fill its page.
                let start = begin.clamp(from, from + bytes.len() as u64 / 8);
                let mut aligned = crate::device::Buffer::zeroed(bytes.len());
                aligned[..bytes.len()].copy_from_slice(bytes);
                let records = &aligned[(start - from) as usize * 8..bytes.len()];
                let end = from + bytes.len() as u64 / 8;
                match records_of(records, start, |_, _| {}) {
                    Ok(at) if at == end => Ok(()),
                    Ok(at) | Err((at, _)) => {
                        let found = format!("no record lies at address {at}");
                        Err(damaged(device, self.file, (0, found)))
                    }
                }
            },
            read,
        );
        outcome.err()
    }
}

fn check_block(bytes: &[u8], magic: &[u8; 8], offset: u64) -> Result<(), Fault> {
    if !bytes.starts_with(magic) {
        let what = if magic == HEAD { "start" } else { "end" };
        return Err((offset, format!("it does not {what} as the checkpoint of a store in memory")));
    }
    let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let (expected, found) = (field(ALIGNMENT - 4), block_crc(&bytes[..ALIGNMENT - 4]));
    if expected != found {
        let text = format!("the block there does not match its checksum ({found:08x})");
        return Err((offset, text));
    }
    if field(8) != VERSION {
        let text = format!("its version is {}; this Ferrite reads {VERSION}", field(8));
        return Err((offset + 8, text));
    }
    Ok(())
}

pub(crate) fn damaged(device: &dyn Device, file: FileId, (offset, found): Fault) -> OpenError {
    let path = device.path(file);
    let previous = device.path(FileId::Previous);
    let mut advice = String::from("put a copy of the file back from a backup");
    if file == FileId::Manifest && device.size(FileId::Previous).is_ok() {
        let (from, to) = (previous.display(), path.display());
        advice = format!(
            "{advice}, or go back to the checkpoint before it with: mv {from} {to} (the \
             append-only file is replayed from there)"
        );
    }
    advice.push_str(", or move the folder aside to start without it");
    OpenError::Damaged { path, offset, found, advice }
}

/// A part of a file in the order of its bytes.
struct Stream<'a> {
    device: &'a dyn Device,
    file: FileId,
    /// Of the first byte in `bytes`.
    offset: u64,
    bytes: Vec<u8>,
    taken: usize,
    end: u64,
}

impl<'a> Stream<'a> {
    /// From `start` to `end`, which is a whole number of blocks.
    fn new(device: &'a dyn Device, file: FileId, start: u64, end: u64) -> Self {
        let offset = start / ALIGNMENT as u64 * ALIGNMENT as u64;
        let taken = (start - offset) as usize;
        Self { device, file, offset, bytes: Vec::new(), taken, end }
    }

    /// The offset of what comes next.
    fn at(&self) -> u64 {
        self.offset + self.taken as u64
    }

    fn take(&mut self, count: usize) -> Result<&[u8], Fault> {
        if count as u64 > self.end.saturating_sub(self.at()) {
            return Err((self.at(), "it ends early".into()));
        }
        if self.taken + count > self.bytes.len() {
            self.fill(count)?;
        }
        let from = self.taken;
        self.taken += count;
        Ok(&self.bytes[from..from + count])
    }

    /// Reads on until `count` bytes are there.
    fn fill(&mut self, count: usize) -> Result<(), Fault> {
        let whole = self.taken.min(self.bytes.len()) / ALIGNMENT * ALIGNMENT;
        self.bytes.drain(..whole);
        self.offset += whole as u64;
        self.taken -= whole;
        while self.bytes.len() < self.taken + count {
            let at = self.offset + self.bytes.len() as u64;
            let length = (STEP as u64).min(self.end - at);
            let read = blocking::read_at(self.device, self.file, at, length);
            let read = read.map_err(|e| (at, format!("it cannot be read: {e}")))?;
            self.bytes.extend_from_slice(&read);
        }
        Ok(())
    }

    /// The next part, compared with its checksum, and its raw bytes.
    fn part(&mut self, seal: u32) -> Result<(PartHead, Vec<u8>), Fault> {
        let at = self.at();
        let (part, expected) = PartHead::decode(self.take(PART_HEAD)?);
        let mismatch = || (at, "the part there does not match its checksum".to_owned());
        // A length that is damaged leads nowhere, or to other bytes.
        let stored = self.take(part.stored as usize).map_err(|_| mismatch())?;
        if part.crc(seal, stored) != expected {
            return Err(mismatch());
        }
        if part.stored == part.raw {
            return Ok((part, stored.to_vec()));
        }
        let raw = zstd::bulk::decompress(stored, part.raw as usize);
        match raw {
            Ok(raw) if raw.len() == part.raw as usize => Ok((part, raw)),
            Ok(_) => Err((at, "the part there is shorter than it says".into())),
            Err(e) => Err((at, format!("the part there cannot be decompressed: {e}"))),
        }
    }
}

/// Brings the newest checkpoint into memory: its pages, its image and its manifest as a recovery looks
/// for them. Returns its number; `None` when there is none.
pub(crate) fn load(
    home: &dyn Device,
    memory: &MemoryDevice,
    geometry: &Geometry,
    progress: &crate::Progress,
) -> Result<Option<u64>, OpenError> {
    let failed = |source| OpenError::Io {
        action: "list",
        path: home.path(FileId::Manifest).parent().map_or_else(Default::default, Into::into),
        source,
    };
    let files = home.list().map_err(failed)?;
    let of_a_log =
        |f: &&FileId| matches!(f, FileId::Index(_) | FileId::Segment(_) | FileId::Side(_));
    if !super::recover::manifest_is_there(home)? {
        return Ok(None);
    }
    let snapshot = Snapshot::open(home, FileId::Manifest)?;
    if let Some(file) = files.iter().find(of_a_log) {
        return Err(OpenError::OtherBackend { path: home.path(*file), made_by: "hybridlog" });
    }
    let manifest = &snapshot.manifest;
    super::recover::same_sizes(manifest, geometry)?;
    progress.expect(snapshot.length);
    let kept = |source| OpenError::Io {
        action: "keep in memory",
        path: home.path(FileId::Manifest),
        source,
    };
    let mut last = None;
    let image = snapshot.read(
        home,
        geometry,
        |from, bytes| {
            let segment = geometry.segment_of(from);
            if last.replace(segment) != Some(segment) {
                memory
                    .create(FileId::Segment(segment), geometry.segment_words * 8)
                    .map_err(kept)?;
                memory.create(FileId::Side(segment), side_size(geometry)).map_err(kept)?;
            }
            let offset = geometry.offset_in_segment(from);
            let crcs = bytes.chunks(ALIGNMENT).flat_map(|b| block_crc(b).to_le_bytes()).collect();
            let side_offset = offset / ALIGNMENT as u64 * 4;
            blocking::write(memory, FileId::Segment(segment), offset, bytes.to_vec())
                .and_then(|()| blocking::write(memory, FileId::Side(segment), side_offset, crcs))
                .map_err(kept)
        },
        |bytes| progress.advance(bytes),
    )?;
    let checkpoint = snapshot.checkpoint();
    let put = |file, bytes| {
        memory.create(file, 0).and_then(|()| blocking::write(memory, file, 0, bytes)).map_err(kept)
    };
    put(FileId::Index(checkpoint.image.number), image)?;
    put(FileId::Manifest, super::manifest_file(manifest))?;
    Ok(Some(checkpoint.number))
}
