//! A device without a disk: for a store whose log lies in memory alone.
//!
//! ```text
//!   one memory file (memfd), sparse:   | segment 0 | (given back) | segment 2 | segment 3 ...
//!   everything else (side files, the image and manifest of a start):        bytes on the heap
//! ```
//!
//! All segments are parts of one memory file, each at its number times the segments' size, so that
//! a store of any size needs one descriptor. Its pages come into being when they are written and go
//! back to the kernel when a segment is removed. The read-only window maps them: a page of the log
//! is in memory once.
//!
//! Promises: those of [`super::Device`], but that nothing survives the process: syncs do nothing.
//! Requests are carried out in their order by one thread of the device's. Dropping the device waits
//! for all of them.

use super::local::shielded;
use super::{ALIGNMENT, Device, FileId, Mapping, Request, mapping};
use crate::sync::{
    Arc, Locked, Mutex,
    mpsc::{Receiver, Sender, channel},
    thread::{self, JoinHandle},
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// See the module's promises.
pub(crate) struct MemoryDevice {
    files: Arc<Files>,
    requests: Mutex<Option<Sender<Request>>>,
    thread: Option<JoinHandle<()>>,
}

struct Files {
    log: File,
    segment_bytes: u64,
    contents: Mutex<BTreeMap<FileId, Content>>,
}

enum Content {
    /// In the memory file; so many bytes.
    Segment(u64),
    Bytes(Vec<u8>),
}

impl MemoryDevice {
    /// An empty one, for segments of so many bytes.
    pub fn new(segment_bytes: u64) -> io::Result<Self> {
        assert!(segment_bytes.is_multiple_of(ALIGNMENT as u64));
        let files =
            Arc::new(Files { log: memory_file()?, segment_bytes, contents: Mutex::default() });
        let (requests, queue) = channel();
        let worker = Arc::clone(&files);
        let thread = crate::store::spawn("ferrite-memory", move || worker.run(&queue));
        Ok(Self { files, requests: Mutex::new(Some(requests)), thread: Some(thread) })
    }
}

impl Drop for MemoryDevice {
    fn drop(&mut self) {
        drop(self.requests.locked().take());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic of the thread was reported when it happened.
            drop(thread.join());
        }
    }
}

impl Device for MemoryDevice {
    fn submit(&self, request: Request) {
        let requests = self.requests.locked();
        let queue = requests.as_ref().expect("it is taken at the drop only");
        queue.send(request).expect("the thread outlives its queue");
    }

    fn create(&self, file: FileId, size: u64) -> io::Result<()> {
        let mut contents = self.files.contents.locked();
        if contents.contains_key(&file) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let content = match file {
            FileId::Segment(number) => {
                let (start, end) = self.files.place(number, 0, size)?;
                let length = self.files.log.metadata()?.len();
                if end > length {
                    self.files.log.set_len(end)?;
                }
                debug_assert!(start <= end);
                Content::Segment(size)
            }
            _ => {
                let size = usize::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
                Content::Bytes(vec![0; size])
            }
        };
        contents.insert(file, content);
        Ok(())
    }

    fn size(&self, file: FileId) -> io::Result<u64> {
        match self.files.contents.locked().get(&file) {
            Some(Content::Segment(size)) => Ok(*size),
            Some(Content::Bytes(bytes)) => Ok(bytes.len() as u64),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn remove(&self, file: FileId) -> io::Result<()> {
        let mut contents = self.files.contents.locked();
        let removed = contents.remove(&file).ok_or(io::ErrorKind::NotFound)?;
        match (file, removed) {
            (FileId::Segment(number), Content::Segment(size)) => self.files.give_back(number, size),
            _ => Ok(()),
        }
    }

    fn rename(&self, from: FileId, to: FileId) -> io::Result<()> {
        debug_assert!(![from, to].iter().any(|f| matches!(f, FileId::Segment(_))));
        let mut contents = self.files.contents.locked();
        let content = contents.remove(&from).ok_or(io::ErrorKind::NotFound)?;
        contents.insert(to, content);
        Ok(())
    }

    fn link(&self, _: FileId, _: FileId) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "files in memory have one name"))
    }

    fn list(&self) -> io::Result<Vec<FileId>> {
        Ok(self.files.contents.locked().keys().copied().collect())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn free_space(&self) -> io::Result<u64> {
        // What may be used is the business of whoever takes writes: see `Store::set_memory_limit`.
        Ok(u64::MAX)
    }

    fn path(&self, file: FileId) -> PathBuf {
        PathBuf::from("(memory)").join(file.name("ferrite"))
    }

    fn io_kind(&self) -> &'static str {
        "memory"
    }

    fn direct_reads(&self) -> Result<(), String> {
        Ok(())
    }

    fn can_map(&self, _: u64) -> Result<(), String> {
        Ok(())
    }

    fn map(&self, file: FileId, offset: u64, length: usize) -> io::Result<Mapping> {
        let FileId::Segment(number) = file else { return Err(io::ErrorKind::Unsupported.into()) };
        let (start, _) = {
            let contents = self.files.contents.locked();
            let Some(Content::Segment(size)) = contents.get(&file) else {
                return Err(io::ErrorKind::NotFound.into());
            };
            if offset + length as u64 > *size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.files.place(number, offset, length as u64)?
        };
        mapping::map_memory(&self.files.log, start, length)
    }
}

impl Files {
    fn run(&self, queue: &Receiver<Request>) {
        while let Ok(request) = queue.recv() {
            shielded(|| self.carry_out(request));
        }
    }

    fn carry_out(&self, request: Request) {
        match request {
            Request::Read { file, offset, mut buffer, done } => {
                let read = self.read(file, offset, &mut buffer);
                done(read.map(|()| buffer));
            }
            Request::Write { file, offset, bytes, done } => {
                let written = self.write(file, offset, &bytes);
                drop(bytes);
                done(written);
            }
            Request::Sync { done, .. } => done(Ok(())),
        }
    }

    fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        // Held meanwhile, so that no segment is given back under the read.
        let contents = self.contents.locked();
        match contents.get(&file) {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(Content::Segment(size)) if end <= *size => {
                let FileId::Segment(number) = file else { unreachable!("its content says so") };
                let (start, _) = self.place(number, offset, buffer.len() as u64)?;
                self.log.read_exact_at(buffer, start)
            }
            Some(Content::Bytes(bytes)) if end <= bytes.len() as u64 => {
                buffer.copy_from_slice(&bytes[offset as usize..end as usize]);
                Ok(())
            }
            Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let mut contents = self.contents.locked();
        match contents.get_mut(&file) {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(Content::Segment(size)) => {
                let FileId::Segment(number) = file else { unreachable!("its content says so") };
                assert!(end <= *size, "a segment has its full size from its creation");
                let (start, _) = self.place(number, offset, bytes.len() as u64)?;
                // Nobody removes a segment that is being written.
                drop(contents);
                self.log.write_all_at(bytes, start)
            }
            Some(Content::Bytes(content)) => {
                let end = usize::try_from(end).map_err(|_| io::ErrorKind::FileTooLarge)?;
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[offset as usize..end].copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Where a part of a segment lies in the memory file.
    fn place(&self, number: u64, offset: u64, length: u64) -> io::Result<(u64, u64)> {
        let start = number.checked_mul(self.segment_bytes).and_then(|at| at.checked_add(offset));
        let end = start.and_then(|at| at.checked_add(length));
        let fits = offset + length <= self.segment_bytes;
        match (start, end) {
            (Some(start), Some(end)) if fits && i64::try_from(end).is_ok() => Ok((start, end)),
            _ => Err(io::ErrorKind::FileTooLarge.into()),
        }
    }

    /// Gives the memory of a segment back to the kernel.
    fn give_back(&self, number: u64, size: u64) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        let (start, end) = self.place(number, 0, size)?;
        let part = |n: u64| libc::off_t::try_from(n).expect("`place` looked");
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        loop {
            // SAFETY: an open descriptor for the length of the call; no memory is passed.
            let result = unsafe {
                libc::fallocate(self.log.as_raw_fd(), mode, part(start), part(end - start))
            };
            if result == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// A file that is memory and vanishes with its descriptor.
fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated string that lives as long as the program.
    let descriptor = unsafe { libc::memfd_create(c"ferrite-log".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{Buffer, blocking};
    use super::*;

    const SEGMENT: u64 = 4 * ALIGNMENT as u64;

    fn write(device: &MemoryDevice, file: FileId, offset: u64, byte: u8, length: usize) {
        blocking::write(device, file, offset, vec![byte; length]).expect("written");
    }

    fn resident(device: &MemoryDevice) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        device.files.log.metadata().expect("open").blocks() * 512
    }

    #[test]
    fn files_are_read_back_as_they_were_written() {
        let device = MemoryDevice::new(SEGMENT).expect("made");
        for file in [FileId::Segment(3), FileId::Segment(1 << 30), FileId::Side(3)] {
            device.create(file, SEGMENT).expect("created");
            let again = device.create(file, SEGMENT).map_err(|e| e.kind());
            assert_eq!(again, Err(io::ErrorKind::AlreadyExists));
            write(&device, file, ALIGNMENT as u64, 7, ALIGNMENT);
            let bytes = blocking::read(&device, file, SEGMENT).expect("read");
            let written: Vec<_> = bytes.chunks(ALIGNMENT).map(|block| block[5]).collect();
            assert_eq!(written, [0, 7, 0, 0]);
            let beyond = blocking::read(&device, file, SEGMENT + ALIGNMENT as u64);
            assert_eq!(beyond.map_err(|e| e.kind()), Err(io::ErrorKind::UnexpectedEof));
        }
        assert_eq!(device.list().expect("listed").len(), 3);
        device.remove(FileId::Side(3)).expect("removed");
        assert!(device.size(FileId::Side(3)).is_err() && device.remove(FileId::Side(3)).is_err());
        let gone = blocking::read(&device, FileId::Side(3), SEGMENT).map_err(|e| e.kind());
        assert_eq!(gone, Err(io::ErrorKind::NotFound));
    }

    #[test]
    fn a_removed_segment_gives_its_memory_back_and_no_other() {
        let device = MemoryDevice::new(SEGMENT).expect("made");
        for number in 0..4 {
            device.create(FileId::Segment(number), SEGMENT).expect("created");
            write(&device, FileId::Segment(number), 0, number as u8 + 1, SEGMENT as usize);
        }
        assert_eq!(resident(&device), 4 * SEGMENT);
        let mapped = device.map(FileId::Segment(2), 4096, 8192).expect("mapped");
        assert!(mapped.len() == 8192 && mapped.iter().all(|b| *b == 3));
        device.remove(FileId::Segment(0)).expect("removed");
        device.remove(FileId::Segment(3)).expect("removed");
        assert_eq!(resident(&device), 2 * SEGMENT);
        assert!(mapped.iter().all(|b| *b == 3));
        // A number that comes back begins with zeros, as a new file does.
        device.create(FileId::Segment(3), SEGMENT).expect("created");
        let bytes = blocking::read(&device, FileId::Segment(3), SEGMENT).expect("read");
        assert!(bytes.iter().all(|b| *b == 0));
        assert!(device.map(FileId::Segment(0), 0, 4096).is_err(), "it is gone");
        assert!(device.map(FileId::Segment(2), 4096, SEGMENT as usize).is_err(), "it ends there");
    }

    #[test]
    fn whoever_asked_is_answered_before_the_device_is_gone() {
        let device = MemoryDevice::new(SEGMENT).expect("made");
        device.create(FileId::Segment(0), SEGMENT).expect("created");
        let (tx, rx) = channel();
        for _ in 0..100 {
            let (tx, buffer) = (tx.clone(), Buffer::zeroed(ALIGNMENT));
            let done =
                Box::new(move |result: io::Result<_>| tx.send(result.is_ok()).expect("kept"));
            device.submit(Request::Read { file: FileId::Segment(0), offset: 0, buffer, done });
        }
        drop((device, tx));
        assert_eq!(rx.iter().filter(|read| *read).count(), 100);
    }
}
