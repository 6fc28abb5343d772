//! One process a data directory.

use crate::OpenError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

/// The lock file's name in the data directory.
const NAME: &str = "ferrite.lock";

/// Holds the lock until it is dropped; the kernel lets go of it when the process dies.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    file: File,
}

impl DirectoryLock {
    pub fn take(directory: &Path) -> Result<Self, OpenError> {
        let path = directory.join(NAME);
        let io = |action: &'static str| {
            let path = path.clone();
            move |source| OpenError::Io { action, path, source }
        };
        crate::device::create_durably(directory).map_err(io("create the directory of"))?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
                let holder = if known { holder.trim().to_owned() } else { "unknown".to_owned() };
                return Err(OpenError::Locked { path: directory.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(io("write"))?;
        Ok(Self { file })
    }
}

impl Drop for DirectoryLock {
    /// Lets go of it in so many words: a process that was forked and has not yet begun its program
    /// holds the same open file, so that closing this one would not do.
    fn drop(&mut self) {
        if let Err(e) = self.file.unlock() {
            tracing::warn!("unlocking {NAME} failed, it is free once the process has ended: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_free_although_a_fork_has_the_file_open() {
        let directory = tempfile::tempdir().expect("a directory");
        let lock = DirectoryLock::take(directory.path()).expect("free");
        assert!(matches!(DirectoryLock::take(directory.path()), Err(OpenError::Locked { .. })));
        // What a fork inherits: another descriptor of the same open file.
        let _inherited = lock.file.try_clone().expect("another descriptor");
        drop(lock);
        DirectoryLock::take(directory.path()).expect("free again");
    }
}
