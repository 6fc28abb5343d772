//! I/O by threads that block in `pread`, `pwrite` and `fdatasync`.
//!
//! All of it goes through libc's functions (which is what `std` calls), so that tools which
//! interpose on them see every write and every sync.
//!
//! Reads have threads of their own: a flush or a sync that takes long never holds up a command
//! that waits for one block. Threads are started when a request finds none idle. The queues have
//! no bound of their own, since a completion may submit and must not wait for itself; whoever
//! submits owns a buffer for each request, which is the bound.

use crate::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError,
    thread::{self, JoinHandle},
};
use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;

use super::descriptors::Access;
use super::directory::{self, Directory};
use super::local::{Engine, fail, shielded};
use super::{Buffer, FileId, Request};

/// Reads that can block in the kernel at once. A drive that is asked 32 things at a time is near
/// its best (docs/benchmarks.md).
const READ_THREADS: usize = 32;
/// Writes and syncs that can block in the kernel at once.
const WRITE_THREADS: usize = 8;
/// A thread's stack: a request needs little, and completions belong to this crate.
const STACK_SIZE: usize = 512 << 10;

/// The posix form of the local device.
pub(super) struct PosixEngine {
    reads: Pool,
    writes: Pool,
}

impl PosixEngine {
    /// An engine without threads yet.
    pub(super) fn new(directory: Arc<Directory>) -> Self {
        Self {
            reads: Pool::new(Arc::clone(&directory), "ferrite-read", READ_THREADS),
            writes: Pool::new(directory, "ferrite-write", WRITE_THREADS),
        }
    }
}

impl Engine for PosixEngine {
    fn submit(&self, request: Request) {
        match &request {
            Request::Read { .. } => self.reads.submit(request),
            Request::Write { .. } | Request::Sync { .. } => self.writes.submit(request),
        }
    }

    fn kind(&self) -> &'static str {
        "posix"
    }
}

/// Threads that take requests from one queue.
struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    directory: Arc<Directory>,
    name: &'static str,
    threads_max: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Request>,
    threads: Vec<JoinHandle<()>>,
    /// Those of them that wait for a request.
    idle: usize,
    closing: bool,
}

impl Pool {
    fn new(directory: Arc<Directory>, name: &'static str, threads_max: usize) -> Self {
        let (state, wake) = (Mutex::default(), Condvar::new());
        Self { shared: Arc::new(Shared { directory, name, threads_max, state, wake }) }
    }

    fn submit(&self, request: Request) {
        let shared = &self.shared;
        let mut state = shared.lock();
        state.queue.push_back(request);
        if state.idle < state.queue.len() && state.threads.len() < shared.threads_max {
            let worker = Arc::clone(shared);
            let started = thread::Builder::new()
                .name(shared.name.to_owned())
                .stack_size(STACK_SIZE)
                .spawn(move || worker.run());
            match started {
                Ok(thread) => state.threads.push(thread),
                // The threads that there are will come to it.
                Err(_) if !state.threads.is_empty() => {}
                Err(error) => {
                    let request = state.queue.pop_back();
                    drop(state);
                    request.into_iter().for_each(|request| fail(request, error_again(&error)));
                    return;
                }
            }
        }
        drop(state);
        shared.wake.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let threads = {
            let mut state = self.shared.lock();
            state.closing = true;
            std::mem::take(&mut state.threads)
        };
        self.shared.wake.notify_all();
        let this = thread::current().id();
        // A completion that drops the last handle runs on one of them, which ends after it.
        for thread in threads.into_iter().filter(|thread| thread.thread().id() != this) {
            // A panic of the thread has been reported by the panic itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        while let Some(request) = self.next() {
            shielded(|| carry_out(&self.directory, request));
        }
    }

    /// The next request; `None` when the pool is closing and all is done.
    fn next(&self) -> Option<Request> {
        let mut state = self.lock();
        loop {
            if let Some(request) = state.queue.pop_front() {
                return Some(request);
            }
            if state.closing {
                return None;
            }
            state.idle += 1;
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No completion runs under the lock, so nothing that panics can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn carry_out(directory: &Directory, request: Request) {
    match request {
        Request::Read { file, offset, buffer, done } => done(read(directory, file, offset, buffer)),
        Request::Write { file, offset, bytes, done } => {
            let result = write(directory, file, offset, &bytes);
            // The page that was written is free before the completion says so.
            drop(bytes);
            done(result);
        }
        Request::Sync { file, done } => done(sync(directory, file)),
    }
}

fn error_again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// Fills a buffer. What a direct read refuses or leaves, a buffered one finishes: the end of a
/// file that is no multiple of the alignment cannot be read directly.
fn read(
    directory: &Directory,
    file: FileId,
    offset: u64,
    mut buffer: Buffer,
) -> io::Result<Buffer> {
    let (descriptor, access) = directory.for_read(file, offset)?;
    if access == Access::Direct {
        match retry(|| descriptor.file().read_at(&mut buffer, offset)) {
            Ok(count) if count == buffer.len() => return Ok(buffer),
            Ok(count) => {
                let rest = &mut buffer[count..];
                directory.buffered(file)?.file().read_exact_at(rest, offset + count as u64)?;
                return Ok(buffer);
            }
            Err(error) if directory::refuses_direct(&error) => {
                directory.refuse_direct(directory::refusal(&error));
            }
            Err(error) => return Err(error),
        }
    }
    directory.buffered(file)?.file().read_exact_at(&mut buffer, offset)?;
    Ok(buffer)
}

fn write(directory: &Directory, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let descriptor = directory.buffered(file)?;
    descriptor.begin_write();
    let result = descriptor.file().write_all_at(bytes, offset);
    descriptor.end_write();
    result
}

fn sync(directory: &Directory, file: FileId) -> io::Result<()> {
    let descriptor = directory.buffered(file)?;
    let mark = descriptor.begin_sync();
    descriptor.file().sync_data()?;
    descriptor.end_sync(mark);
    Ok(())
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
