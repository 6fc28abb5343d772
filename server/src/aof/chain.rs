//! Which parts are there, and which of them to replay, in which order and how far.
//!
//! ```text
//!   checkpoint 41 ──> 12 start=checkpoint:41  <── 13 before=12:5000  <── 14 before=13:700
//!                     up to 5000, all on disk     up to 700              to its end
//! ```
//!
//! A part with a base stands in both kinds of chain: one that comes from a checkpoint goes on behind the
//! base, one from an empty store begins with it.
//!
//! A part is taken once: of a part and a longer copy of it under `aof_file`, the copy. Where a part
//! is missing, or shorter than the next one says, what follows cannot be applied: a [`Gap`].

use super::part::{self, Header, Start};
use super::reader::{Known, PartReader, ReadError, Torn};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The parts of one append-only file in a directory.
#[derive(Debug)]
pub struct Parts {
    directory: PathBuf,
    aof_file: String,
    parts: BTreeMap<u64, Part>,
    /// Numbers whose files have no readable first line.
    broken: BTreeMap<u64, ReadError>,
    /// What is wrong with `aof_file`, which tells no number then.
    broken_alias: Option<ReadError>,
    /// Files in which not even the first line was completely written.
    unbegun: Vec<Torn>,
    has_alias: bool,
}

/// A part that was found.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its file: the longest copy.
    pub path: PathBuf,
    /// All files with this part, some of which may be names of one file.
    pub copies: Vec<PathBuf>,
    /// What it says of itself.
    pub header: Header,
    /// The file's length in bytes.
    pub length: u64,
}

/// Where a replay begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An empty store.
    Empty,
    /// The cut of this checkpoint.
    Checkpoint(u64),
}

/// What to replay.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The parts, in order.
    pub links: Vec<Link>,
    /// Why it ends before the newest part.
    pub gap: Option<Gap>,
}

/// One part of a chain.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its file.
    pub path: PathBuf,
    /// What it says of itself.
    pub header: Header,
    /// What the next part says of it.
    pub known: Known,
}

/// Why what follows cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gap {
    /// A part is missing.
    Missing {
        /// Its number.
        number: u64,
        /// Its name.
        name: String,
        /// The first part behind it.
        next: u64,
    },
    /// A part is shorter than it was when the next one began.
    Shorter {
        /// Its file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
        /// What it was.
        expected: u64,
    },
    /// A part goes on from a checkpoint only.
    Only {
        /// Its number.
        number: u64,
        /// The checkpoint.
        checkpoint: u64,
    },
}

impl Gap {
    /// The warning for the log of a start whose replay ends there.
    pub fn warning(&self) -> String {
        format!("AOF: cut at the end of what can be applied: {self}")
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, next, .. } => {
                let next = part::number_text(*next);
                write!(f, "{name} is missing, and part {next} goes on from its end")
            }
            Self::Shorter { path, length, expected } => {
                let path = path.display();
                write!(f, "{path} has {length} bytes, and the next part goes on from {expected}")
            }
            Self::Only { number, checkpoint } => {
                let number = part::number_text(*number);
                write!(f, "part {number} goes on from checkpoint {checkpoint} and nothing else")
            }
        }
    }
}

/// Why there is no chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The directory cannot be listed.
    #[error("cannot read {}: {source}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A part that may be needed cannot be read.
    #[error(transparent)]
    Part(#[from] ReadError),
    /// No part begins there.
    #[error("AOF: refused {}: {}", .directory.display(), no_start(.origin, .first, .missing))]
    NoStart {
        /// The directory.
        directory: PathBuf,
        /// Where the replay was to begin.
        origin: Origin,
        /// The oldest part that is there.
        first: u64,
        /// The part before it, which is missing.
        missing: Option<u64>,
    },
}

fn no_start(origin: &Origin, first: &u64, missing: &Option<u64>) -> String {
    let origin = match origin {
        Origin::Empty => "an empty store".to_owned(),
        Origin::Checkpoint(number) => format!("checkpoint {number}"),
    };
    let first = part::number_text(*first);
    let missing = match missing {
        Some(number) => {
            format!(" and needs {}: put that back", part::number_text(*number))
        }
        None => ": put back the one that is missing".to_owned(),
    };
    format!(
        "no part of the append-only file goes on from {origin}; the oldest is {first}{missing}, or \
         move all parts aside to go on without them"
    )
}

impl Parts {
    /// Looks for the parts of `aof_file` in `directory` and reads their first lines.
    pub fn find(directory: &Path, aof_file: &str) -> Result<Self, ChainError> {
        let mut found = Self {
            directory: directory.to_owned(),
            aof_file: aof_file.to_owned(),
            parts: BTreeMap::new(),
            broken: BTreeMap::new(),
            broken_alias: None,
            unbegun: Vec::new(),
            has_alias: false,
        };
        let failed = |source| ChainError::Directory { path: directory.to_owned(), source };
        let names = match fs::read_dir(directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
            names => names.map_err(failed)?,
        };
        let mut alias = None;
        for name in names {
            let name = name.map_err(failed)?.file_name();
            if name == *aof_file {
                alias = Some(directory.join(&name));
            } else if let Some(number) = part::number_of(aof_file, &name) {
                found.add(directory.join(name), Some(number));
            }
        }
        found.has_alias = alias.is_some();
        alias.into_iter().for_each(|path| found.add(path, None));
        Ok(found)
    }

    fn add(&mut self, path: PathBuf, number: Option<u64>) {
        match read_header(&path, number) {
            Ok((header, length, file)) => {
                let new = Part { path: path.clone(), copies: vec![path], header, length };
                match self.parts.get_mut(&header.number) {
                    Some(part) if part.length >= length => part.copies.extend(new.copies),
                    // It has grown since its own name was looked at, and that name stays its: `aof_file`
                    // becomes a name of the next part.
                    Some(part) if file == identity(fs::metadata(&part.path)) => {
                        part.length = length;
                        part.copies.extend(new.copies);
                    }
                    Some(part) => {
                        let copies = std::mem::take(&mut part.copies);
                        *part = Part { copies: [new.copies, copies].concat(), ..new };
                    }
                    None => {
                        self.parts.insert(header.number, new);
                    }
                }
            }
            Err(ReadError::Unbegun(torn)) => self.unbegun.push(*torn),
            Err(error) => match number {
                Some(number) => {
                    self.broken.insert(number, error);
                }
                None => self.broken_alias = Some(error),
            },
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
    /// The parts by their numbers.
    pub fn parts(&self) -> &BTreeMap<u64, Part> {
        &self.parts
    }
    /// Whether `aof_file` itself is there.
    pub fn has_alias(&self) -> bool {
        self.has_alias
    }
    /// Files in which not even the first line was completely written: a crash came in between. No
    /// block was ever known to be on disk behind it. To be set aside, with their texts as warnings.
    pub fn unbegun(&self) -> &[Torn] {
        &self.unbegun
    }
    /// What is wrong with files whose first lines cannot be read.
    pub fn broken(&self) -> impl Iterator<Item = &ReadError> {
        self.broken.values().chain(&self.broken_alias)
    }
    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
            && self.broken.is_empty()
            && self.broken_alias.is_none()
            && self.unbegun.is_empty()
    }
    /// A number above that of every file.
    pub fn next_number(&self) -> u64 {
        let unbegun = self.unbegun.iter().filter_map(|torn| self.number_of(&torn.path));
        let all = self.parts.keys().chain(self.broken.keys()).copied().chain(unbegun);
        all.max().unwrap_or(0) + 1
    }

    fn number_of(&self, path: &Path) -> Option<u64> {
        part::number_of(&self.aof_file, path.file_name()?)
    }

    /// Whether what comes right behind the newest part, or all there is, was not begun completely.
    fn next_is_unbegun(&self) -> bool {
        let newest = self.parts.last_key_value().map(|(number, _)| *number);
        self.unbegun.iter().any(|torn| match newest {
            Some(newest) => self.number_of(&torn.path) == Some(newest + 1),
            None => true,
        })
    }

    /// The part that goes on from the end of part `number`, and where that end is. Of several, the
    /// newest: one that could not be begun may have left a file.
    fn next(&self, number: u64) -> Option<(u64, u64)> {
        self.parts.iter().rev().find_map(|(next, part)| {
            let before = part.header.before.filter(|before| before.number == number)?;
            Some((*next, before.length))
        })
    }

    /// The part that a replay from `origin` begins with: it needs none below. Of the kept
    /// checkpoints the lowest of these tells which parts may go.
    pub fn first(&self, origin: Origin) -> Option<u64> {
        first_part(&self.parts, origin, None)
    }

    /// What the part behind part `number` says of it.
    pub fn known(&self, number: u64) -> Known {
        let length = self.parts.get(&number).map_or(0, |part| part.length);
        match self.next(number) {
            Some((_, until)) if until <= length => Known { synced: until, until: Some(until) },
            _ => Known::default(),
        }
    }

    /// Why part `number` cannot go on from the one before it; `None` if it can, or if nothing older
    /// is there at all.
    pub fn gap_before(&self, number: u64) -> Option<Gap> {
        let header = self.parts.get(&number)?.header;
        let before = header.before.filter(|_| header.base().is_none())?;
        let older = self.parts.range(..number).next().is_some();
        match self.parts.get(&before.number) {
            None => older.then(|| Gap::Missing {
                number: before.number,
                name: part::file_name(&self.aof_file, before.number),
                next: number,
            }),
            Some(Part { path, length, .. }) if *length < before.length => {
                Some(Gap::Shorter { path: path.clone(), length: *length, expected: before.length })
            }
            Some(_) => None,
        }
    }

    /// Whether some part holds what came after the cut of a checkpoint from which no part goes on: what is
    /// missing stood between the two, and a start refuses. Where there is none, the append-only file was off
    /// for a while, or was moved away, or could not be begun at that cut, and nothing was acknowledged since.
    pub fn is_later(&self, checkpoint: u64, taken_at_ms: u64) -> bool {
        self.parts.values().any(|part| match part.header.start {
            Start::Checkpoint(number) => number > checkpoint,
            // Without a block it was begun to heal a failure, and has not.
            Start::Only(number) => {
                number > checkpoint && part.length > part.header.render().len() as u64
            }
            Start::Part => {
                part.header.before.is_none_or(|before| !self.parts.contains_key(&before.number))
            }
            // A rewrite behind the cut wrote it: what follows is newer than the checkpoint.
            Start::Base(_) => part.header.time_ms > taken_at_ms,
            Start::Empty => false,
        })
    }

    /// What to replay from `origin` on: nothing, if there are no parts at all.
    pub fn chain(self, origin: Origin) -> Result<Chain, ChainError> {
        self.chain_until(origin, None)
    }

    /// The same, for a replay that ends at the time `until_ms`: a base that is younger does not serve.
    pub fn chain_until(
        mut self,
        origin: Origin,
        until_ms: Option<u64>,
    ) -> Result<Chain, ChainError> {
        if let Some(error) = self.broken_alias {
            // Its number is not known: it may be the longer copy of any part.
            return Err(error.into());
        }
        let Some(first) = first_part(&self.parts, origin, until_ms) else {
            if let Some((_, error)) = self.broken.pop_last() {
                return Err(error.into());
            }
            return match self.parts.first_key_value() {
                None => Ok(Chain { links: Vec::new(), gap: None }),
                // The part of that checkpoint is there and holds nothing.
                _ if self.next_is_unbegun() => Ok(Chain { links: Vec::new(), gap: None }),
                Some((number, part)) => Err(ChainError::NoStart {
                    directory: self.directory,
                    origin,
                    first: *number,
                    missing: part.header.before.map(|before| before.number),
                }),
            };
        };
        // A part that cannot be read may be the one that follows.
        if let Some((_, error)) = self.broken.split_off(&first).pop_first() {
            return Err(error.into());
        }
        let (mut links, mut number) = (Vec::new(), first);
        let gap = loop {
            let Part { path, header, length, .. } = &self.parts[&number];
            let known = self.known(number);
            links.push(Link { path: path.clone(), header: *header, known });
            let Some((next, expected)) = self.next(number) else {
                break self.parts.range(number + 1..).next().map(|(next, part)| {
                    let missing = part.header.before.map_or(next - 1, |before| before.number);
                    let name = part::file_name(&self.aof_file, missing);
                    Gap::Missing { number: missing, name, next: *next }
                });
            };
            if *length < expected {
                break Some(Gap::Shorter { path: path.clone(), length: *length, expected });
            }
            if let Start::Only(checkpoint) = self.parts[&next].header.start {
                break Some(Gap::Only { number: next, checkpoint });
            }
            assert!(next > number, "a part goes on from an older one");
            number = next;
        };
        Ok(Chain { links, gap })
    }
}

/// The newest part that begins at `origin`, for a replay until then. One with a base serves an empty store
/// better than the first part of all.
fn first_part(parts: &BTreeMap<u64, Part>, origin: Origin, until_ms: Option<u64>) -> Option<u64> {
    let based = || {
        let old_enough = |part: &Part| until_ms.is_none_or(|until| part.header.time_ms <= until);
        let mut based = parts.iter().rev().filter(|(_, part)| part.header.base().is_some());
        based.find(|(_, part)| old_enough(part)).map(|(number, _)| *number)
    };
    let newest = |wanted: &dyn Fn(Start) -> bool| {
        parts.iter().rev().find(|(_, part)| wanted(part.header.start)).map(|(number, _)| *number)
    };
    match origin {
        Origin::Empty => based().or_else(|| newest(&|start| start == Start::Empty)),
        Origin::Checkpoint(number) => {
            newest(&|start| start == Start::Checkpoint(number) || start == Start::Only(number))
        }
    }
}

/// A file, whatever its names are.
type Identity = Option<(u64, u64)>;

fn identity(found: io::Result<fs::Metadata>) -> Identity {
    found.ok().map(|found| (found.dev(), found.ino()))
}

/// The first line of a file, the file's length, and which file it is.
fn read_header(path: &Path, number: Option<u64>) -> Result<(Header, u64, Identity), ReadError> {
    let io = |source| ReadError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    let length = metadata.len();
    let reader = PartReader::open(file, path, Known::default())?;
    let header = *reader.header();
    match number {
        Some(number) if number != header.number => {
            Err(ReadError::Misnamed { path: path.to_owned(), found: header.number })
        }
        _ => Ok((header, length, identity(Ok(metadata)))),
    }
}

#[cfg(test)]
mod tests;
