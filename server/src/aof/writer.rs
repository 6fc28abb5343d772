//! Writes parts: entries in, blocks to the file, and on to the next part at a cut.
//!
//! ```text
//!   push ──> open block ──> closed ── write ──> in the file ── sync ──> on disk
//!                                     `written_position`       `synced_position`
//! ```
//!
//! It belongs to one thread at a time and waits only in [`PartWriter::write`], [`PartWriter::sync`]
//! and what begins a part. A sync may run on another thread: [`PartWriter::begin_sync`].
//!
//! After a failed write or sync nobody knows what the file holds beyond what was synced before:
//! that part is never touched again, and everything is refused until [`PartWriter::begin_anew`] has
//! begun another one at the cut of a checkpoint.

mod base;

pub use base::{BaseWriter, SwitchError};

use super::block::Blocks;
use super::effect::Entry;
use super::files::{Files, PartFile};
use super::part::{self, Before, Header, Start};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How far a writer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The part.
    pub part: u64,
    /// Bytes of the part that are in the file.
    pub written_offset: u64,
    /// Entries up to this position are in the file.
    pub written_position: u64,
    /// Bytes of the part that are on disk.
    pub synced_offset: u64,
    /// Entries up to this position are on disk.
    pub synced_position: u64,
    /// Bytes that are still in memory.
    pub buffered: usize,
}

/// What a writer could not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {action} {}: {reason}", .path.display())]
pub struct Failure {
    /// What was tried, as a verb.
    pub action: &'static str,
    /// The part, or its directory.
    pub path: PathBuf,
    /// The kind of the system's answer.
    pub kind: io::ErrorKind,
    /// The system's answer.
    pub reason: String,
}

/// Why a writer did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// A write or a sync has failed, now or before: nothing more goes into this part.
    #[error("{0}; nothing is appended until a checkpoint is complete")]
    Failed(Failure),
    /// The file of the next part could not be made; this one goes on.
    #[error("{0}; the part before goes on")]
    NotBegun(Failure),
}

/// A sync that is under way.
#[derive(Debug)]
#[must_use = "what is synced counts once `finish_sync` knows of it"]
pub struct Sync<F> {
    file: Arc<F>,
    part: u64,
    offset: u64,
    position: u64,
}

impl<F: PartFile> Sync<F> {
    /// Waits for the disk. Its answer belongs to [`PartWriter::finish_sync`].
    pub fn wait(&self) -> io::Result<()> {
        self.file.sync()
    }
}

/// Writes one part after the other.
#[derive(Debug)]
pub struct PartWriter<F: Files> {
    files: F,
    directory: PathBuf,
    /// The name that always leads to the newest part.
    aof_file: String,
    header: Header,
    path: PathBuf,
    file: Arc<F::File>,
    blocks: Blocks,
    written_position: u64,
    synced_offset: u64,
    synced_position: u64,
    /// No part that was ever tried has it or a higher one.
    next_number: u64,
    failed: Option<Failure>,
}

impl<F: Files> PartWriter<F> {
    /// Begins the part that `header` tells of, in `directory`, and makes `aof_file` its second name.
    /// Entries come with positions above `position`.
    pub fn begin(
        files: F,
        directory: &Path,
        aof_file: &str,
        header: Header,
        position: u64,
    ) -> Result<Self, Failure> {
        let (path, file) = create(&files, directory, aof_file, &header)?;
        let offset = begin_part(&files, directory, aof_file, &header, (&path, &file))?;
        Ok(Self {
            files,
            directory: directory.to_owned(),
            aof_file: aof_file.to_owned(),
            header,
            path,
            file: Arc::new(file),
            blocks: Blocks::new(header.number, offset, header.time_ms, position),
            written_position: position,
            synced_offset: offset,
            synced_position: position,
            next_number: header.number + 1,
            failed: None,
        })
    }

    /// What the part says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }
    /// The part's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// How far it has come.
    pub fn progress(&self) -> Progress {
        Progress {
            part: self.header.number,
            written_offset: self.blocks.offset(),
            written_position: self.written_position,
            synced_offset: self.synced_offset,
            synced_position: self.synced_position,
            buffered: self.blocks.buffered(),
        }
    }
    /// What has failed, if anything has.
    pub fn failure(&self) -> Option<&Failure> {
        self.failed.as_ref()
    }
    /// Whether a group has begun and not ended: its entries cannot be written yet.
    pub fn in_group(&self) -> bool {
        self.blocks.in_group()
    }

    /// Takes an entry into memory.
    #[inline]
    pub fn push(&mut self, entry: &Entry<'_>) -> Result<(), WriteError> {
        self.check()?;
        self.blocks.push(entry);
        Ok(())
    }

    /// Writes all entries so far to the file (not those of a group that has not ended).
    pub fn write(&mut self) -> Result<(), WriteError> {
        self.check()?;
        self.blocks.close();
        if !self.blocks.closed().is_empty() {
            let written = self.file.write_at(self.blocks.closed(), self.blocks.offset());
            written.map_err(|e| self.fail("write", e))?;
            self.blocks.written();
        }
        self.written_position = self.blocks.position();
        Ok(())
    }

    /// Waits until all that is in the file is on disk.
    pub fn sync(&mut self) -> Result<(), WriteError> {
        match self.begin_sync()? {
            Some(sync) => {
                let result = sync.wait();
                self.finish_sync(sync, result)
            }
            None => Ok(()),
        }
    }

    /// A sync of all that is in the file, for another thread to wait for; `None` when all of it is
    /// on disk. One at a time, since the next part waits for the end of all.
    pub fn begin_sync(&mut self) -> Result<Option<Sync<F::File>>, WriteError> {
        self.check()?;
        let (offset, position) = (self.blocks.offset(), self.written_position);
        if self.synced_offset == offset {
            self.synced_position = position;
            return Ok(None);
        }
        let (file, part) = (Arc::clone(&self.file), self.header.number);
        Ok(Some(Sync { file, part, offset, position }))
    }

    /// Takes note of how a sync ended.
    pub fn finish_sync(
        &mut self,
        sync: Sync<F::File>,
        result: io::Result<()>,
    ) -> Result<(), WriteError> {
        self.check()?;
        // A part is left only when all of it is on disk, or for good.
        if sync.part == self.header.number {
            result.map_err(|e| self.fail("sync", e))?;
            self.synced_offset = self.synced_offset.max(sync.offset);
            self.synced_position = self.synced_position.max(sync.position);
            self.blocks.synced(self.synced_offset);
        }
        Ok(())
    }

    /// Writes a mark when everything is on disk and no mark says so yet, for a time at which
    /// nothing else is to be written.
    pub fn mark(&mut self, time_ms: u64) -> Result<(), WriteError> {
        self.check()?;
        self.blocks.mark(time_ms);
        self.write()
    }

    /// Ends this part, all of it on disk, and begins the next one, which goes on from here. All
    /// entries so far belong to this part; no group may be open. The next entry comes behind `position`:
    /// what lies between it and the last entry, as the mark of the cut, is not for the file, and counts
    /// as being on disk.
    ///
    /// Once the next part has a file, its first line may be what a start finds, and that says that
    /// this part ends here. So when anything fails after that, this part does not go on either.
    pub fn next_part(
        &mut self,
        start: Start,
        time_ms: u64,
        position: u64,
    ) -> Result<(), WriteError> {
        assert!(!self.in_group(), "a cut lies between transactions");
        self.write()?;
        self.sync()?;
        let before = Before { number: self.header.number, length: self.synced_offset };
        let position = position.max(self.synced_position);
        let header = self.next_header(start, before, time_ms);
        let (path, file) = create(&self.files, &self.directory, &self.aof_file, &header)
            .map_err(WriteError::NotBegun)?;
        self.turn(header, path, file, position).map_err(|failure| {
            self.failed = Some(failure.clone());
            WriteError::Failed(failure)
        })
    }

    /// After a failure: begins a part at the cut of checkpoint `checkpoint`, which has all entries up
    /// to `position`. The part is of no use until that checkpoint is complete, so nothing may be
    /// acknowledged before. When it fails, it can be called again.
    pub fn begin_anew(
        &mut self,
        checkpoint: u64,
        time_ms: u64,
        position: u64,
    ) -> Result<(), Failure> {
        let before = Before { number: self.header.number, length: self.synced_offset };
        let header = self.next_header(Start::Only(checkpoint), before, time_ms);
        let (path, file) = create(&self.files, &self.directory, &self.aof_file, &header)?;
        self.turn(header, path, file, position)?;
        self.failed = None;
        Ok(())
    }

    fn next_header(&mut self, start: Start, before: Before, time_ms: u64) -> Header {
        let number = self.next_number;
        self.next_number += 1;
        let time_ms = time_ms.max(self.blocks.time_ms()).min(part::TIME_MAX_MS);
        Header { number, start, before: Some(before), time_ms }
    }

    fn turn(
        &mut self,
        header: Header,
        path: PathBuf,
        file: F::File,
        position: u64,
    ) -> Result<(), Failure> {
        let new = (path.as_path(), &file);
        let offset = begin_part(&self.files, &self.directory, &self.aof_file, &header, new)?;
        self.header = header;
        self.path = path;
        self.file = Arc::new(file);
        self.blocks = Blocks::new(header.number, offset, header.time_ms, position);
        self.written_position = position;
        self.synced_offset = offset;
        self.synced_position = position;
        Ok(())
    }

    fn check(&self) -> Result<(), WriteError> {
        self.failed.clone().map_or(Ok(()), |failure| Err(WriteError::Failed(failure)))
    }

    fn fail(&mut self, action: &'static str, error: io::Error) -> WriteError {
        let failure = failure(action, &self.path, error);
        self.failed = Some(failure.clone());
        WriteError::Failed(failure)
    }
}

/// Makes the file of a part.
fn create<F: Files>(
    files: &F,
    directory: &Path,
    aof_file: &str,
    header: &Header,
) -> Result<(PathBuf, F::File), Failure> {
    let path = directory.join(part::file_name(aof_file, header.number));
    let file = files.create(&path).map_err(|e| failure("create", &path, e))?;
    Ok((path, file))
}

/// Writes the first line of a part, all of it on disk, and gives the file its second name; answers
/// where the first block goes.
fn begin_part<F: Files>(
    files: &F,
    directory: &Path,
    aof_file: &str,
    header: &Header,
    (path, file): (&Path, &F::File),
) -> Result<u64, Failure> {
    let line = header.render();
    let begun = (|| {
        file.write_at(&line, 0).map_err(|e| failure("write", path, e))?;
        file.sync().map_err(|e| failure("sync", path, e))?;
        let sync = || files.sync_directory(directory).map_err(|e| failure("sync", directory, e));
        // The file's own name first: the second one never leads to what may vanish.
        sync()?;
        let link = directory.join(aof_file);
        files.replace_link(path, &link).map_err(|e| failure("link", &link, e))?;
        sync()
    })();
    if begun.is_err() {
        // What cannot be removed has no block in it, and its number is not used again.
        let _ = files.remove(path);
    }
    begun.map(|()| line.len() as u64)
}

fn failure(action: &'static str, path: &Path, error: io::Error) -> Failure {
    let (kind, reason) = (error.kind(), error.to_string());
    Failure { action, path: path.to_owned(), kind, reason }
}

#[cfg(test)]
mod tests;
