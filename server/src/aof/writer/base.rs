//! A base: written in a file of its own while the live part goes on, which then goes on behind it.
//!
//! ```text
//!   appendonly.rewrite       | room for the first line | FLUSHALL, the keys, what was written meanwhile |
//!                                      │ written last
//!   appendonly.000013.aof    | first line, start=base  |           base             | live blocks ...
//! ```
//!
//! The order of [`PartWriter::switch_to`]: the live part ends, all of it on disk; then the base with its
//! first line; then it gets the part's name, and then the name `aof_file`. So a crash leaves the chain
//! without the base, or with all of it.

use super::{Blocks, Disk, PartWriter, WriteError, failure};
use crate::aof::effect::{Effect, Entry};
use crate::aof::files::{Files, PartFile};
use crate::aof::part::{self, Base, Before, Header, Start};
use crate::aof::writer::Failure;
use std::io;
use std::path::{Path, PathBuf};

/// A base that is being written.
#[derive(Debug)]
pub struct BaseWriter<F: Files> {
    files: F,
    path: PathBuf,
    /// Until it is a part's.
    file: Option<F::File>,
    number: u64,
    /// Bytes that are kept for the first line.
    line: usize,
    blocks: Blocks,
    position: u64,
    /// Whether the file is a part now.
    is_part: bool,
}

/// Why the live part does not go on behind a base.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// The live part has failed, now or before.
    #[error(transparent)]
    Part(#[from] WriteError),
    /// The base is given up; the live part goes on as it was.
    #[error("{0}")]
    Base(Failure),
}

impl<F: Files> BaseWriter<F> {
    /// Begins the base of a part of `aof_file`, with `FLUSHALL`. `number` was reserved for it, and
    /// everything in it counts as having happened at `time_ms`, or later.
    pub fn create(
        files: F,
        directory: &Path,
        aof_file: &str,
        number: u64,
        time_ms: u64,
        position: u64,
    ) -> Result<Self, Failure> {
        let path = directory.join(part::base_file_name(aof_file));
        // What a rewrite left that could not take it away.
        let _ = files.remove(&path);
        let file = Some(files.create(&path).map_err(|e| failure("create", &path, e))?);
        let place = Base { number, length: 0 };
        let before = Some(Before { number: number.saturating_sub(1), length: 0 });
        let line = Header { number, start: Start::Base(place), before, time_ms }.render().len();
        let blocks = Blocks::new(number, line as u64, time_ms, position);
        let mut new = Self { files, path, file, number, line, blocks, position, is_part: false };
        new.put(time_ms, 0, Effect::FlushAll);
        // The room for the first line; dropped, `new` takes the file away.
        let room = new.file().write_at(&vec![0; line], 0);
        room.map_err(|e| failure("write", &new.path, e))?;
        Ok(new)
    }

    /// Takes an effect into memory.
    pub fn put(&mut self, time_ms: u64, database: u8, effect: Effect<'_>) {
        self.blocks.push(&Entry { position: self.position, time_ms, database, effect });
    }

    /// Writes all so far to the file (not a group that has not ended).
    pub fn write(&mut self) -> Result<(), Failure> {
        self.blocks.close();
        if !self.blocks.closed().is_empty() {
            let written = self.file().write_at(self.blocks.closed(), self.blocks.offset());
            written.map_err(|e| failure("write", &self.path, e))?;
            self.blocks.written();
        }
        Ok(())
    }

    /// Waits until all that is in the file is on disk.
    pub fn sync(&mut self) -> Result<(), Failure> {
        self.file().sync().map_err(|e| failure("sync", &self.path, e))?;
        self.blocks.synced(self.blocks.offset());
        Ok(())
    }

    fn file(&self) -> &F::File {
        self.file.as_ref().expect("it leaves with the whole base")
    }
    /// Bytes that are still in memory.
    pub fn buffered(&self) -> usize {
        self.blocks.buffered()
    }
    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.blocks.end()
    }
    /// What to say when it cannot be completed, for a reason from elsewhere.
    pub fn give_up(&self, why: String) -> SwitchError {
        SwitchError::Base(failure("complete", &self.path, io::Error::other(why)))
    }

    /// Writes the first line, with which it is complete, all of it on disk.
    fn complete(&mut self, header: &Header) -> Result<(), Failure> {
        self.write()?;
        let line = header.render();
        if line.len() != self.line {
            let other = io::Error::other("the part's number has become longer");
            return Err(failure("complete", &self.path, other));
        }
        self.file().write_at(&line, 0).map_err(|e| failure("write", &self.path, e))?;
        self.sync()
    }
}

impl<F: Files> Drop for BaseWriter<F> {
    /// What is no part only takes room.
    fn drop(&mut self) {
        if !self.is_part {
            // The next start takes it away at the latest.
            let _ = self.files.remove(&self.path);
        }
    }
}

impl<F: Files> PartWriter<F> {
    /// A number for a base: no part that is begun in another way gets it.
    pub fn reserve_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// Makes what comes next readable by itself, as behind a base. The part where it will lie, which may
    /// have to begin yet, and the place there; no group may be open.
    pub fn begin_section(&mut self) -> (u64, u64) {
        (self.turning.unwrap_or(self.header.number), self.blocks.begin_section())
    }

    /// Ends this part, all of it on disk, and goes on behind `base`, which makes the state at the end of
    /// all entries so far: those in the part. No group may be open. The next entry comes behind
    /// `position`.
    ///
    /// Until the base has a part's name, this part goes on when something fails with the base.
    pub fn switch_to<G: Files>(
        &mut self,
        mut base: BaseWriter<G>,
        position: u64,
    ) -> Result<(), SwitchError>
    where
        F::File: From<G::File>,
    {
        assert!(!self.in_group() && self.turning.is_none(), "a switch lies between transactions");
        self.write()?;
        self.sync()?;
        let before = Before { number: self.header.number, length: self.synced_offset };
        // A base that was begun and completed between two parts has its number for the part, too.
        let number = match self.next_number == base.number + 1 {
            true => base.number,
            false => self.reserve_number(),
        };
        base.write().map_err(SwitchError::Base)?;
        let place = Base { number: base.number, length: base.blocks.offset() };
        let time_ms = self.blocks.time_ms().max(base.blocks.time_ms());
        let header = Header { number, start: Start::Base(place), before: Some(before), time_ms };
        base.complete(&header).map_err(SwitchError::Base)?;
        let path = self.directory.join(part::file_name(&self.aof_file, number));
        self.rename(&base.path, &path).map_err(|failed| {
            // What cannot be removed is not found from a checkpoint, and its number is not used again.
            let _ = self.files.remove(&path);
            self.fail_with(failed)
        })?;
        base.is_part = true;
        let position = position.max(self.synced_position);
        self.blocks = Blocks::new(number, place.length, time_ms, position);
        (self.header, self.path) = (header, path);
        self.file = Disk::new(base.file.take().expect("it was there a moment ago").into());
        self.written_offset = place.length;
        self.written_position = position;
        self.synced_offset = place.length;
        self.synced_position = position;
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Failure> {
        let sync = || {
            let synced = self.files.sync_directory(&self.directory);
            synced.map_err(|e| failure("sync", &self.directory, e))
        };
        self.files.rename(from, to).map_err(|e| failure("rename to", to, e))?;
        sync()?;
        let link = self.directory.join(&self.aof_file);
        self.files.replace_link(to, &link).map_err(|e| failure("link", &link, e))?;
        sync()
    }
}
