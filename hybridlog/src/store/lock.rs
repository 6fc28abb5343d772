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
    _file: File,
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
        Ok(Self { _file: file })
    }
}
