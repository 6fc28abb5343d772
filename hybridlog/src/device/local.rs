//! A store's files on a local file system: the directory and one way to do the I/O.
//!
//! [`open`] chooses the way. Both forms pass the same tests (`tests.rs`), keep their descriptors
//! in the same bounded cache, and write through the page cache, from which the mapped window
//! reads; only reads of segments go past it, where the file system allows.
//!
//! Dropping the device waits for everything submitted: each completion has been called when
//! `drop` returns, unless the last handle is dropped inside a completion.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::directory::Directory;
use super::posix::PosixEngine;
use super::{Device, FileId, Request};
use crate::{IoChoice, OpenError};

/// A device that was opened, and what there is to say about it.
pub struct Opened {
    /// The device.
    pub device: Arc<dyn Device>,
    /// Why it is not io_uring although [`IoChoice::Auto`] left the choice.
    pub fallback: Option<String>,
}

/// Opens the store's files in `directory`, creating the directory when it does not exist. The
/// names of the files start with `stem`.
///
/// Fails when the directory cannot be made, read or written, when a file stands where a link of
/// the store belongs, when `stem` cannot start a file name, and when the chosen I/O is refused.
pub fn open(directory: &Path, stem: &str, io: IoChoice) -> Result<Opened, OpenError> {
    let directory = Arc::new(Directory::open(directory, stem)?);
    if io == IoChoice::IoUring {
        return Err(OpenError::Config {
            setting: "io",
            value: "io_uring".to_owned(),
            why: "this version has only posix".to_owned(),
        });
    }
    let engine = Box::new(PosixEngine::new(Arc::clone(&directory)));
    Ok(Opened { device: Arc::new(LocalDevice { directory, engine }), fallback: None })
}

/// How requests are carried out.
pub(super) trait Engine: Send + Sync + 'static {
    /// See [`Device::submit`].
    fn submit(&self, request: Request);
    /// See [`Device::io_kind`].
    fn kind(&self) -> &'static str;
}

/// A [`Device`] on a local file system.
pub struct LocalDevice {
    directory: Arc<Directory>,
    engine: Box<dyn Engine>,
}

impl Device for LocalDevice {
    fn submit(&self, request: Request) {
        self.engine.submit(request);
    }

    fn create(&self, file: FileId, size: u64) -> io::Result<()> {
        self.directory.create(file, size)
    }

    fn size(&self, file: FileId) -> io::Result<u64> {
        self.directory.size(file)
    }

    fn remove(&self, file: FileId) -> io::Result<()> {
        self.directory.remove(file)
    }

    fn rename(&self, from: FileId, to: FileId) -> io::Result<()> {
        self.directory.rename(from, to)
    }

    fn list(&self) -> io::Result<Vec<FileId>> {
        self.directory.list()
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.directory.sync()
    }

    fn free_space(&self) -> io::Result<u64> {
        self.directory.free_space()
    }

    fn path(&self, file: FileId) -> PathBuf {
        self.directory.path(file)
    }

    fn io_kind(&self) -> &'static str {
        self.engine.kind()
    }

    fn direct_reads(&self) -> Result<(), String> {
        self.directory.direct_reads()
    }
}
