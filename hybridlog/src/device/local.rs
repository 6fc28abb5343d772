//! A store's files on a local file system: the directory and one way to do the I/O.
//!
//! [`open`] chooses the way. Both forms pass the same tests (`tests.rs`), keep their descriptors
//! in the same bounded cache, and write through the page cache, from which the mapped window
//! reads; only reads of segments go past it, where the file system allows.
//!
//! Dropping the device waits for everything submitted: each completion has been called when
//! `drop` returns, unless the last handle is dropped inside a completion.

use crate::sync::Arc;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use super::directory::Directory;
use super::posix::PosixEngine;
use super::uring::UringEngine;
use super::{Device, FileId, Mapping, Request, mapping};
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
    let start = || UringEngine::start(Arc::clone(&directory));
    let (ring, fallback) = choose(io, start)?;
    let engine: Box<dyn Engine> = match ring {
        Some(ring) => Box::new(ring),
        None => Box::new(PosixEngine::new(Arc::clone(&directory))),
    };
    Ok(Opened { device: Arc::new(LocalDevice { directory, engine }), fallback })
}

/// What was chosen: a ring, or posix with the reason if there was a choice.
fn choose<R>(
    io: IoChoice,
    start: impl FnOnce() -> Result<R, String>,
) -> Result<(Option<R>, Option<String>), OpenError> {
    match io {
        IoChoice::Posix => Ok((None, None)),
        IoChoice::Auto => match start() {
            Ok(ring) => Ok((Some(ring), None)),
            Err(why) => Ok((None, Some(why))),
        },
        IoChoice::IoUring => match start() {
            Ok(ring) => Ok((Some(ring), None)),
            Err(why) => Err(OpenError::Config {
                setting: "io",
                value: "io_uring".to_owned(),
                why: format!("{why}; use auto or posix"),
            }),
        },
    }
}

/// How requests are carried out.
pub(super) trait Engine: Send + Sync + 'static {
    /// See [`Device::submit`].
    fn submit(&self, request: Request);
    /// See [`Device::io_kind`].
    fn kind(&self) -> &'static str;
}

/// Completes a request with an error.
pub(super) fn fail(request: Request, error: io::Error) {
    shielded(|| match request {
        Request::Read { done, .. } => done(Err(error)),
        Request::Write { done, .. } | Request::Sync { done, .. } => done(Err(error)),
    });
}

/// Calls a completion. One that panics is a bug of its owner, which the panic has reported; the
/// thread goes on, since the requests of others depend on it.
pub(super) fn shielded(completion: impl FnOnce()) {
    let _ = panic::catch_unwind(AssertUnwindSafe(completion));
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

    fn link(&self, from: FileId, to: FileId) -> io::Result<()> {
        self.directory.second_name(from, to)
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

    fn can_map(&self, bytes: u64) -> Result<(), String> {
        mapping::can_lock(bytes)
    }

    fn map(&self, file: FileId, offset: u64, length: usize) -> io::Result<Mapping> {
        mapping::map(self.directory.buffered(file)?.file(), offset, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_falls_back_and_says_why_but_a_forced_ring_does_not() {
        let refused = || Err::<(), _>("forbidden here".to_owned());
        let (ring, why) = choose(IoChoice::Auto, refused).unwrap();
        assert_eq!((ring, why.as_deref()), (None, Some("forbidden here")));
        let error = choose(IoChoice::IoUring, refused).unwrap_err().to_string();
        assert!(error.contains("io_uring") && error.contains("forbidden here; use"), "{error}");
        assert_eq!(
            choose(IoChoice::Posix, || -> Result<(), _> { unreachable!() }).unwrap(),
            (None, None)
        );
        assert_eq!(choose(IoChoice::Auto, || Ok(5)).unwrap(), (Some(5), None));
    }
}
