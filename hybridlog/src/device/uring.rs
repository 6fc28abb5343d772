//! I/O through io_uring: one ring, owned by one thread.
//!
//! ```text
//!   submit ──> queue ──(eventfd, when the thread sleeps)──> ring thread ──> kernel
//!                                                             └──< completions run here
//! ```
//!
//! Requests that arrive while the thread works are submitted together in its next round. At most
//! a fixed number is with the kernel, and writes and syncs leave room for reads. The ring is
//! made on its own thread, which `SINGLE_ISSUER` asks for, and completions are taken only when that
//! thread asks (`DEFER_TASKRUN`), where the kernel can. The unsafe part is `ring.rs`.
//!
//! Containers often forbid io_uring. [`UringEngine::start`] tries the real ring with the
//! operations it needs, and says what is missing.

use crate::sync::{
    Arc, Mutex, MutexGuard, PoisonError, mpsc,
    thread::{self, JoinHandle},
};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};

use super::Request;
use super::directory::Directory;
use super::local::{Engine, fail};

mod ring;

use ring::Ring;

/// The io_uring form of the local device.
pub(super) struct UringEngine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What submitters and the ring's thread share.
struct Shared {
    state: Mutex<State>,
    /// An eventfd that wakes the ring's thread.
    wake: File,
}

#[derive(Default)]
struct State {
    reads: VecDeque<Request>,
    /// Writes and syncs.
    writes: VecDeque<Request>,
    /// The thread waits in the kernel, or is about to.
    sleeping: bool,
    closing: bool,
    /// Why the ring is gone, after an error that leaves it unusable.
    broken: Option<String>,
}

impl UringEngine {
    /// Starts the ring and its thread; the error says why io_uring cannot be used here.
    pub(super) fn start(directory: Arc<Directory>) -> Result<Self, String> {
        let wake = ring::eventfd().map_err(|error| format!("eventfd: {error}"))?;
        let shared = Arc::new(Shared { state: Mutex::default(), wake });
        let (sender, receiver) = mpsc::channel();
        let run = {
            let shared = Arc::clone(&shared);
            move || match Ring::new(directory) {
                Ok(ring) => {
                    if sender.send(Ok(())).is_ok() {
                        ring.run(&shared);
                    }
                }
                Err(why) => {
                    // `start` waits for exactly this.
                    let _ = sender.send(Err(why));
                }
            }
        };
        let thread = thread::Builder::new()
            .name("ferrite-ring".to_owned())
            .spawn(run)
            .map_err(|error| format!("its thread does not start: {error}"))?;
        match receiver.recv() {
            Ok(Ok(())) => Ok(Self { shared, thread: Some(thread) }),
            Ok(Err(why)) => Err(why),
            Err(_) => Err("its thread ended at once".to_owned()),
        }
    }
}

impl Engine for UringEngine {
    fn submit(&self, request: Request) {
        let mut state = self.shared.lock();
        if let Some(why) = state.broken.clone() {
            drop(state);
            return fail(request, io::Error::other(why));
        }
        match request {
            Request::Read { .. } => state.reads.push_back(request),
            Request::Write { .. } | Request::Sync { .. } => state.writes.push_back(request),
        }
        let asleep = std::mem::take(&mut state.sleeping);
        drop(state);
        if asleep {
            self.shared.wake();
        }
    }

    fn kind(&self) -> &'static str {
        "io_uring"
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake();
        // A completion that drops the last handle runs on the thread, which ends after it.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic of the thread has been reported by the panic itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Requests for the kernel, as many as there is room for, before the thread goes to sleep;
    /// `None` when the device is closed and everything is done.
    fn take(&self, room: ring::Room) -> Option<Vec<Request>> {
        let mut state = self.lock();
        if state.closing && room.is_whole() && state.reads.is_empty() && state.writes.is_empty() {
            return None;
        }
        // Writes first: they have a share of their own, so neither can shut out the other.
        let writes = state.writes.len().min(room.writes).min(room.all);
        let reads = state.reads.len().min(room.all - writes);
        let mut requests: Vec<_> = state.writes.drain(..writes).collect();
        requests.extend(state.reads.drain(..reads));
        state.sleeping = true;
        Some(requests)
    }

    /// The thread is up and will look at the queue: no wake is needed.
    fn awake(&self) {
        self.lock().sleeping = false;
    }

    fn wake(&self) {
        // Only a counter at its limit refuses, and that wakes as well.
        let _ = (&self.wake).write(&1_u64.to_ne_bytes());
    }

    fn clear_wake(&self) {
        // Nothing to read means nothing to clear.
        let _ = (&self.wake).read(&mut [0; 8]);
    }

    /// The ring failed for good: so does everything that waits, and everything to come.
    fn fail_all(&self, why: &str) {
        let requests = {
            let mut state = self.lock();
            state.broken = Some(why.to_owned());
            let mut requests = std::mem::take(&mut state.reads);
            requests.append(&mut state.writes);
            requests
        };
        for request in requests {
            fail(request, io::Error::other(why.to_owned()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No completion runs under the lock, so nothing that panics can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Buffer, FileId};
    use super::*;

    #[test]
    fn after_the_ring_failed_every_request_is_told_why() {
        let data = tempfile::tempdir().unwrap();
        let directory = Arc::new(Directory::open(data.path(), "ferrite").unwrap());
        let Ok(engine) = UringEngine::start(directory).map_err(|why| eprintln!("skipped: {why}"))
        else {
            return;
        };
        engine.shared.fail_all("the ring is gone");
        let (sender, receiver) = mpsc::channel();
        engine.submit(Request::Read {
            file: FileId::Segment(1),
            offset: 0,
            buffer: Buffer::zeroed(4096),
            done: Box::new(move |result| sender.send(result.unwrap_err().to_string()).unwrap()),
        });
        assert_eq!(receiver.recv().unwrap(), "the ring is gone");
    }
}
