//! Writes parts: entries in, blocks to the file, and on to the next part at a cut.
//!
//! ```text
//!   push ──> open block ──> closed ── write ──> in the file ── sync ──> on disk
//!                                     `written_position`       `synced_position`
//! ```
//!
//! It belongs to one thread at a time. A sync, and the turn to the next part, may run on another
//! thread meanwhile: [`PartWriter::begin_sync`], [`PartWriter::begin_turn`]. Entries are taken all the
//! time; those for a part that is being begun stay in memory until it has.
//!
//! After a failed sync nobody knows what the file holds beyond what was synced before; it is never
//! synced again. After a failed write what was written before is sound, and counts if one more sync
//! succeeds ([`PartWriter::salvage`]). In both cases nothing more goes into that part, and everything
//! is refused until [`PartWriter::begin_anew`] has begun another one at the cut of a checkpoint.

mod base;

pub use base::{BaseWriter, SwitchError};

use super::block::Blocks;
use super::effect::Entry;
use super::files::{Files, PartFile};
use super::part::{self, Before, Header, Start};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Why a writer did not do what it was asked for: something has failed, now or before, and nothing more
/// goes into this part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; nothing is appended until a checkpoint is complete")]
pub struct WriteError(pub Failure);

/// The file of a part. After a failed sync the system may call the next one a success, though what the
/// first one lost is lost: there is no next one.
#[derive(Debug)]
struct Disk<F> {
    file: F,
    lost: AtomicBool,
}

impl<F: PartFile> Disk<F> {
    fn new(file: F) -> Arc<Self> {
        Arc::new(Self { file, lost: AtomicBool::new(false) })
    }
    fn sync(&self) -> io::Result<()> {
        // Relaxed: whoever syncs comes to know of it through a channel, or is the same thread.
        if self.lost.load(Ordering::Relaxed) {
            return Err(io::Error::other("an earlier sync has failed"));
        }
        self.file.sync().inspect_err(|_| self.lost.store(true, Ordering::Relaxed))
    }
}

/// A sync that is under way.
#[derive(Debug)]
#[must_use = "what is synced counts once `finish_sync` knows of it"]
pub struct Sync<F> {
    file: Arc<Disk<F>>,
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

/// The turn to a next part, under way.
#[derive(Debug)]
#[must_use = "the next part has begun once `finish_turn` knows of it"]
pub struct Turn<F: Files> {
    files: F,
    directory: PathBuf,
    aof_file: String,
    header: Header,
    /// The part before, which is to be on disk first, unless it has failed.
    old: Option<Sync<F::File>>,
    old_path: PathBuf,
    /// Entries up to here belong to parts before.
    position: u64,
}

/// How a turn ended.
#[derive(Debug)]
pub struct Turned<F> {
    /// Whether all of the part before is on disk.
    synced: bool,
    begun: Result<(PathBuf, F), Failure>,
}

impl<F: Files> Turn<F> {
    /// Waits for the disk, and begins the part. Its answer belongs to [`PartWriter::finish_turn`].
    pub fn wait(&self) -> Turned<F::File> {
        if let Some(Err(e)) = self.old.as_ref().map(Sync::wait) {
            return Turned { synced: false, begun: Err(failure("sync", &self.old_path, e)) };
        }
        let begun = (|| {
            let header = &self.header;
            let (path, file) = create(&self.files, &self.directory, &self.aof_file, header)?;
            begin_part(&self.files, &self.directory, &self.aof_file, header, (&path, &file))?;
            Ok((path, file))
        })();
        Turned { synced: true, begun }
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
    file: Arc<Disk<F::File>>,
    /// Those of the part that is being begun, if one is.
    blocks: Blocks,
    written_offset: u64,
    written_position: u64,
    synced_offset: u64,
    synced_position: u64,
    /// No part that was ever tried has it or a higher one.
    next_number: u64,
    /// The number of the part that is being begun.
    turning: Option<u64>,
    failed: Option<Failure>,
    /// What failed was a write: what was written before may be sound.
    salvageable: bool,
    /// The part that has failed, and how much of it counts, until [`PartWriter::stands`].
    given_up: Option<Before>,
    /// The part that was begun since at the cut of a checkpoint of which nobody knows yet.
    on_trial: Option<PathBuf>,
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
            file: Disk::new(file),
            blocks: Blocks::new(header.number, offset, header.time_ms, position),
            written_offset: offset,
            written_position: position,
            synced_offset: offset,
            synced_position: position,
            next_number: header.number + 1,
            turning: None,
            failed: None,
            salvageable: false,
            given_up: None,
            on_trial: None,
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
            written_offset: self.written_offset,
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

    /// Writes all entries so far to the file (not those of a group that has not ended, nor those for a
    /// part that is being begun).
    pub fn write(&mut self) -> Result<(), WriteError> {
        self.check()?;
        if self.turning.is_some() {
            return Ok(());
        }
        self.blocks.close();
        if !self.blocks.closed().is_empty() {
            let written = self.file.file.write_at(self.blocks.closed(), self.written_offset);
            written.map_err(|e| {
                self.salvageable = true;
                self.fail("write", e)
            })?;
            self.blocks.written();
            self.written_offset = self.blocks.offset();
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
    /// on disk, or will be by the turn that is under way.
    pub fn begin_sync(&mut self) -> Result<Option<Sync<F::File>>, WriteError> {
        self.check()?;
        if self.turning.is_some() {
            return Ok(None);
        }
        if self.synced_offset == self.written_offset {
            self.synced_position = self.written_position;
            return Ok(None);
        }
        Ok(Some(self.sync_of_all()))
    }

    fn sync_of_all(&self) -> Sync<F::File> {
        let (offset, position) = (self.written_offset, self.written_position);
        Sync { file: Arc::clone(&self.file), part: self.header.number, offset, position }
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
            self.synced(&sync);
            if self.turning.is_none() {
                self.blocks.synced(self.synced_offset);
            }
        }
        Ok(())
    }

    fn synced(&mut self, sync: &Sync<F::File>) {
        self.synced_offset = self.synced_offset.max(sync.offset);
        self.synced_position = self.synced_position.max(sync.position);
    }

    /// After a failed write: a sync of what was written before, which was not touched since. It is sound
    /// if that sync succeeds, and then a start uses it. Once.
    pub fn salvage(&mut self) -> Option<Sync<F::File>> {
        std::mem::take(&mut self.salvageable).then(|| self.sync_of_all())
    }

    /// Takes note of how that sync ended.
    pub fn finish_salvage(&mut self, sync: &Sync<F::File>, result: io::Result<()>) {
        if result.is_ok() && sync.part == self.header.number {
            self.synced(sync);
        }
    }

    /// Writes a mark when everything is on disk and no mark says so yet, for a time at which
    /// nothing else is to be written.
    pub fn mark(&mut self, time_ms: u64) -> Result<(), WriteError> {
        self.check()?;
        if self.turning.is_none() {
            self.blocks.mark(time_ms);
        }
        self.write()
    }

    /// Ends this part, all of it on disk, and begins the next one: [`PartWriter::begin_turn`], waited
    /// for.
    pub fn next_part(
        &mut self,
        start: Start,
        time_ms: u64,
        position: u64,
    ) -> Result<(), WriteError> {
        let turn = self.begin_turn(start, time_ms, position)?;
        let turned = turn.wait();
        self.finish_turn(turn, turned)
    }

    /// Ends this part, and gives what begins the next one once all of this one is on disk, for another
    /// thread to wait for. All entries so far belong to this part; no group may be open. The next entry
    /// comes behind `position`: what lies between it and the last entry, as the mark of the cut, is not
    /// for the file, and counts as being on disk with the rest.
    ///
    /// Once the next part has a file, its first line may be what a start finds, and that says that
    /// this part ends here. So when anything fails, this part does not go on either.
    pub fn begin_turn(
        &mut self,
        start: Start,
        time_ms: u64,
        position: u64,
    ) -> Result<Turn<F>, WriteError> {
        assert!(
            !self.in_group() && self.turning.is_none(),
            "a cut lies between transactions, and parts"
        );
        self.write()?;
        let before = Before { number: self.header.number, length: self.written_offset };
        let old = (self.synced_offset < self.written_offset).then(|| self.sync_of_all());
        let position = position.max(self.written_position);
        let turn = self.turn(start, before, time_ms, old, position);
        self.turning = Some(turn.header.number);
        Ok(turn)
    }

    /// Takes note of how a turn ended.
    pub fn finish_turn(
        &mut self,
        turn: Turn<F>,
        turned: Turned<F::File>,
    ) -> Result<(), WriteError> {
        self.check()?;
        if let (true, Some(old)) = (turned.synced, &turn.old) {
            self.synced(old);
        }
        self.turn_to(turn, turned).map_err(|failure| self.fail_with(failure))
    }

    /// After a failure: begins a part at the cut of checkpoint `checkpoint`, which has all entries up
    /// to `position`. The part is of no use until that checkpoint is complete, so nothing may be
    /// acknowledged before [`PartWriter::stands`]; until then it may be begun anew again, and takes the
    /// place of the one before. When it fails, it can be called again.
    pub fn begin_anew(
        &mut self,
        checkpoint: u64,
        time_ms: u64,
        position: u64,
    ) -> Result<(), Failure> {
        let failed = Before { number: self.header.number, length: self.synced_offset };
        let before = *self.given_up.get_or_insert(failed);
        let turn = self.turn(Start::Only(checkpoint), before, time_ms, None, position);
        let turned = turn.wait();
        self.turn_to(turn, turned)?;
        if let Some(path) = self.on_trial.replace(self.path.clone()) {
            // What stays is of no use to a start, and tells it so.
            let _ = self.files.remove(&path);
        }
        self.failed = None;
        Ok(())
    }

    /// The checkpoint is complete at whose cut this part was begun anew.
    pub fn stands(&mut self) {
        (self.given_up, self.on_trial) = (None, None);
    }

    /// What begins the next part. Entries go to its blocks from now on.
    fn turn(
        &mut self,
        start: Start,
        before: Before,
        time_ms: u64,
        old: Option<Sync<F::File>>,
        position: u64,
    ) -> Turn<F> {
        let number = self.next_number;
        self.next_number += 1;
        let time_ms = time_ms.max(self.blocks.time_ms()).min(part::TIME_MAX_MS);
        let header = Header { number, start, before: Some(before), time_ms };
        let offset = header.render().len() as u64;
        self.blocks = Blocks::new(number, offset, time_ms, position);
        Turn {
            files: self.files.clone(),
            directory: self.directory.clone(),
            aof_file: self.aof_file.clone(),
            header,
            old,
            old_path: self.path.clone(),
            position,
        }
    }

    fn turn_to(&mut self, turn: Turn<F>, turned: Turned<F::File>) -> Result<(), Failure> {
        self.turning = None;
        let (path, file) = turned.begun?;
        let offset = turn.header.render().len() as u64;
        self.header = turn.header;
        self.path = path;
        self.file = Disk::new(file);
        self.written_offset = offset;
        self.written_position = turn.position;
        self.synced_offset = offset;
        self.synced_position = turn.position;
        self.salvageable = false;
        Ok(())
    }

    fn check(&self) -> Result<(), WriteError> {
        self.failed.clone().map_or(Ok(()), |failure| Err(WriteError(failure)))
    }

    fn fail(&mut self, action: &'static str, error: io::Error) -> WriteError {
        self.fail_with(failure(action, &self.path, error))
    }

    fn fail_with(&mut self, failure: Failure) -> WriteError {
        self.turning = None;
        self.failed = Some(failure.clone());
        WriteError(failure)
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
