//! [unsafe room] Files as memory: mapped, populated and locked, so that reading never faults.
//!
//! A page fault on a file blocks its thread for the length of a disk read, and a fault that cannot
//! be served kills the process (SIGBUS). So a mapping is handed out only when all of it is present
//! (`MADV_POPULATE_READ`) and locked (`mlock`). Whoever may not lock as much as is asked for
//! (`RLIMIT_MEMLOCK`, without `CAP_IPC_LOCK`) gets an error that says so. To truncate a file that
//! is mapped kills the process all the same; nobody but the server may touch its files.

use super::Buffer;
use memmap2::{Advice, MmapOptions};
use std::fs::File;
use std::io;

/// Bytes that stay where they are, readable without any wait, until the value is dropped.
pub struct Mapping(Box<dyn AsRef<[u8]> + Send + Sync>);

impl Mapping {
    /// Memory of the process in place of a file's: a copy.
    pub fn copied(buffer: Buffer) -> Self {
        Self(Box::new(buffer))
    }
}

impl std::ops::Deref for Mapping {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapping({} bytes)", self.len())
    }
}

/// Maps part of a file; see [`super::Device::map`].
pub(super) fn map(file: &File, offset: u64, length: usize) -> io::Result<Mapping> {
    if file.metadata()?.len() < offset + length as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut options = MmapOptions::new();
    options.offset(offset).len(length);
    // SAFETY: the directory's lock keeps other servers from the file, and the caller says that
    // nobody writes to this part of it any more; that nothing else truncates it is the condition
    // in this file's head.
    let mapped = unsafe { options.map(file) }?;
    match mapped.advise(Advice::PopulateRead) {
        // Kernels before 5.14 do not know it; the lock reads what is missing.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
        other => other?,
    }
    mapped.lock()?;
    Ok(Mapping(Box::new(mapped)))
}

/// Maps part of a memory file, which has no disk to wait for and needs no lock.
pub(super) fn map_memory(file: &File, offset: u64, length: usize) -> io::Result<Mapping> {
    let mut options = MmapOptions::new();
    options.offset(offset).len(length);
    // SAFETY: the file is one that this process alone has; it never shrinks, and the caller says
    // that nobody writes to this part of it any more.
    let mapped = unsafe { options.map(file) }?;
    match mapped.advise(Advice::PopulateRead) {
        // Kernels before 5.14 do not know it: the first look at each block takes a fault then.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
        other => other?,
    }
    Ok(Mapping(Box::new(mapped)))
}

/// Whether the process may lock `bytes` more, and if not, what to do.
pub(super) fn can_lock(bytes: u64) -> Result<(), String> {
    if bytes == 0 {
        return Ok(());
    }
    let length = usize::try_from(bytes).map_err(|_| "more than the address space".to_owned())?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh anonymous mapping; nothing is replaced.
    let probe = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, flags, -1, 0) };
    if probe == libc::MAP_FAILED {
        return Err(format!("mmap: {}", io::Error::last_os_error()));
    }
    // Locked when touched, and it is never touched: this asks for the permission alone.
    // SAFETY: the range was just mapped.
    let refused = unsafe { libc::mlock2(probe, length, libc::MLOCK_ONFAULT as libc::c_uint) } != 0;
    let error = io::Error::last_os_error();
    // SAFETY: mapped above with this length, and nothing points into it.
    unsafe { libc::munmap(probe, length) };
    if refused {
        return Err(format!(
            "locking {bytes} bytes is refused ({error}); raise RLIMIT_MEMLOCK (ulimit -l, \
             LimitMEMLOCK=) or grant CAP_IPC_LOCK"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_mapping_shows_the_part_of_the_file_that_was_asked_for() {
        let mut file = tempfile::tempfile().unwrap();
        for byte in 1..=4u8 {
            file.write_all(&[byte; 4096]).unwrap();
        }
        let mapped = map(&file, 4096, 8192).unwrap();
        assert_eq!(mapped.len(), 8192);
        assert!(mapped[..4096].iter().all(|b| *b == 2) && mapped[4096..].iter().all(|b| *b == 3));
        let beyond = map(&file, 12288, 8192).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof, "no mapping may end in SIGBUS");
    }
}
