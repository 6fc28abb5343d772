//! The ring and what is with the kernel.
//!
//! Promises:
//! * The memory of a request stays where it is and alive from before its submission until its
//!   completion was taken from the ring: it lies in a [`Flight`], which leaves the table only then.
//!   Should the ring fail first, or its thread unwind with no way to wait, the memory is leaked.
//!   A [`Buffer`]'s bytes are on the heap and its own; those of [`Bytes`] belong to an owner that
//!   only its clones share, so nobody can have it mutably and move them.
//! * There is room in the submission queue for everything that can be in the table, so a push
//!   never fails.

use crate::sync::{Arc, thread};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

use super::super::descriptors::{Access, Descriptor, SyncMark};
use super::super::directory::{self, Directory};
use super::super::local::shielded;
use super::super::{Buffer, Bytes, Done, FileId, Request};
use super::Shared;

/// Entries of the submission queue; the completion queue has twice as many.
const ENTRIES: usize = 256;
/// Requests that can be with the kernel at once.
const FLIGHTS_MAX: usize = 192;
/// Writes and syncs among them.
const WRITES_MAX: usize = 64;
// Each flight and the wake-up have at most one entry queued.
const _: () = assert!(FLIGHTS_MAX < ENTRIES);

/// The completion of the poll on the eventfd; flights use their place in the table.
const WAKE: u64 = u64::MAX;
/// Bytes moved by one operation at most; the kernel takes 32 bits and stops short of 2 GiB.
const CHUNK_MAX: usize = 1 << 30;

/// How many more requests the kernel can be given.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub(super) all: usize,
    pub(super) writes: usize,
}

impl Room {
    /// Nothing is with the kernel.
    pub(super) fn is_whole(self) -> bool {
        self.all == FLIGHTS_MAX
    }
}

/// An io_uring with its requests.
pub(super) struct Ring {
    ring: IoUring,
    directory: Arc<Directory>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    writes: usize,
    wake_armed: bool,
    reaped: Vec<(u64, i32)>,
}

/// A request that is with the kernel.
struct Flight {
    file: FileId,
    offset: u64,
    descriptor: Arc<Descriptor>,
    access: Access,
    /// Bytes read or written so far.
    moved: usize,
    work: Work,
}

enum Work {
    Read { buffer: Buffer, done: Done<Buffer> },
    Write { bytes: Bytes, done: Done<()> },
    Sync { mark: SyncMark, done: Done<()> },
}

/// A completion that is due.
enum Finished {
    Read(Done<Buffer>, io::Result<Buffer>),
    Other(Done<()>, io::Result<()>),
}

impl Finished {
    fn call(self) {
        match self {
            Self::Read(done, result) => done(result),
            Self::Other(done, result) => done(result),
        }
    }
}

/// What a completion from the kernel leads to.
enum Outcome {
    /// The rest, or the same again.
    Again,
    Over(io::Result<()>),
}

impl Ring {
    /// A ring of this thread; the error says what the kernel refused.
    pub(super) fn new(directory: Arc<Directory>) -> Result<Self, String> {
        let ring = set_up().map_err(|error| refusal(&error))?;
        probe(&ring)?;
        Ok(Self {
            ring,
            directory,
            flights: (0..FLIGHTS_MAX).map(|_| None).collect(),
            free: (0..FLIGHTS_MAX).rev().collect(),
            writes: 0,
            wake_armed: false,
            reaped: Vec::with_capacity(ENTRIES),
        })
    }

    /// Serves until the device is closed and all is done, or the ring fails.
    pub(super) fn run(mut self, shared: &Shared) {
        let mut finished = Vec::new();
        while let Some(requests) = shared.take(self.room()) {
            for request in requests {
                finished.extend(self.start(request));
            }
            self.arm_wake(&shared.wake);
            if let Err(error) = self.enter(usize::from(finished.is_empty())) {
                let why = format!("io_uring failed and takes no more requests: {error}");
                tracing::error!("{why}");
                finished.extend(self.abandon(&why));
                finished.into_iter().for_each(|due| shielded(|| due.call()));
                return shared.fail_all(&why);
            }
            self.reap(shared, &mut finished);
            shared.awake();
            finished.drain(..).for_each(|due| shielded(|| due.call()));
        }
    }

    fn room(&self) -> Room {
        Room { all: self.free.len(), writes: WRITES_MAX - self.writes }
    }

    /// Puts a request into the table and queues it; what cannot even be opened is finished.
    fn start(&mut self, request: Request) -> Option<Finished> {
        let flight = match request {
            Request::Read { file, offset, buffer, done } => {
                match self.directory.for_read(file, offset) {
                    Ok((descriptor, access)) => {
                        let work = Work::Read { buffer, done };
                        Flight { file, offset, descriptor, access, moved: 0, work }
                    }
                    Err(error) => return Some(Finished::Read(done, Err(error))),
                }
            }
            Request::Write { file, offset, bytes, done } => match self.directory.buffered(file) {
                Ok(descriptor) => {
                    descriptor.begin_write();
                    let work = Work::Write { bytes, done };
                    Flight { file, offset, descriptor, access: Access::Buffered, moved: 0, work }
                }
                Err(error) => return Some(Finished::Other(done, Err(error))),
            },
            Request::Sync { file, done } => match self.directory.buffered(file) {
                Ok(descriptor) => {
                    let work = Work::Sync { mark: descriptor.begin_sync(), done };
                    Flight { file, offset: 0, descriptor, access: Access::Buffered, moved: 0, work }
                }
                Err(error) => return Some(Finished::Other(done, Err(error))),
            },
        };
        self.writes += usize::from(flight.is_write());
        let place = self.free.pop().expect("no more requests are taken than there is room for");
        self.flights[place] = Some(flight);
        self.queue(place);
        None
    }

    /// Queues the next operation of a flight.
    fn queue(&mut self, place: usize) {
        let flight = self.flights[place].as_mut().expect("a flight is queued while in the table");
        let entry = flight.entry().user_data(place as u64);
        self.push(&entry);
    }

    /// Queues the poll that ends the sleep, unless it is with the kernel.
    fn arm_wake(&mut self, wake: &File) {
        if !self.wake_armed {
            let descriptor = types::Fd(wake.as_raw_fd());
            let entry = opcode::PollAdd::new(descriptor, libc::POLLIN as u32).build();
            self.push(&entry.user_data(WAKE));
            self.wake_armed = true;
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        let mut queue = self.ring.submission();
        // SAFETY: the memory and the descriptor that the entry names belong to a flight in
        // `self.flights`, which stays there until the kernel has answered (see the module); the
        // poll names no memory, and its eventfd outlives the ring's thread.
        let pushed = unsafe { queue.push(entry) };
        pushed.expect("the queue has an entry for each flight and the wake-up");
    }

    /// Gives the kernel what is queued and waits for `want` completions.
    fn enter(&self, want: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(want) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Interrupted, or completions must be taken first.
                Some(libc::EINTR | libc::EBUSY) => Ok(()),
                // No memory for requests at this moment.
                Some(libc::EAGAIN) => {
                    thread::sleep(Duration::from_millis(1));
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// Takes what the kernel has completed.
    fn reap(&mut self, shared: &Shared, finished: &mut Vec<Finished>) {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (place, result) in reaped.drain(..) {
            if place == WAKE {
                self.wake_armed = false;
                shared.clear_wake();
                continue;
            }
            let place = place as usize;
            let flight = self.flights[place].as_mut().expect("the kernel answers each entry once");
            match flight.advance(result, &self.directory) {
                Outcome::Again => self.queue(place),
                Outcome::Over(result) => {
                    let flight = self.land(place);
                    finished.push(flight.finish(result));
                }
            }
        }
        self.reaped = reaped;
    }

    /// Takes a flight from the table, after the kernel's last answer to it.
    fn land(&mut self, place: usize) -> Flight {
        let flight = self.flights[place].take().expect("a flight lands once");
        self.writes -= usize::from(flight.is_write());
        self.free.push(place);
        flight
    }

    /// Gives up the ring: whoever waits is told, and what the kernel may still use is leaked.
    fn abandon(&mut self, why: &str) -> Vec<Finished> {
        let flights: Vec<_> = self.flights.iter_mut().filter_map(Option::take).collect();
        flights.into_iter().map(|flight| flight.leak(io::Error::other(why.to_owned()))).collect()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Only a panic of this file leaves anything here.
        while self.flights.iter().any(Option::is_some) {
            if self.enter(1).is_err() {
                std::mem::forget(std::mem::take(&mut self.flights));
                return;
            }
            let landed: Vec<_> = self.ring.completion().map(|entry| entry.user_data()).collect();
            for place in landed.into_iter().filter(|place| *place != WAKE) {
                self.flights[place as usize] = None;
            }
        }
    }
}

impl Flight {
    fn is_write(&self) -> bool {
        !matches!(self.work, Work::Read { .. })
    }

    /// The operation for what is still to be done.
    fn entry(&mut self) -> squeue::Entry {
        let descriptor = types::Fd(self.descriptor.file().as_raw_fd());
        let offset = self.offset + self.moved as u64;
        match &mut self.work {
            Work::Read { buffer, .. } => {
                let rest = &mut buffer[self.moved..];
                let length = rest.len().min(CHUNK_MAX) as u32;
                opcode::Read::new(descriptor, rest.as_mut_ptr(), length).offset(offset).build()
            }
            Work::Write { bytes, .. } => {
                let rest = &bytes[self.moved..];
                let length = rest.len().min(CHUNK_MAX) as u32;
                opcode::Write::new(descriptor, rest.as_ptr(), length).offset(offset).build()
            }
            Work::Sync { .. } => {
                opcode::Fsync::new(descriptor).flags(types::FsyncFlags::DATASYNC).build()
            }
        }
    }

    /// Takes the kernel's answer: a count of bytes, or an error number below 0.
    fn advance(&mut self, result: i32, directory: &Directory) -> Outcome {
        let Ok(count) = usize::try_from(result) else {
            return self.advance_after(io::Error::from_raw_os_error(-result), directory);
        };
        self.moved += count;
        let (left, stuck) = match &self.work {
            Work::Read { buffer, .. } => (buffer.len() - self.moved, io::ErrorKind::UnexpectedEof),
            Work::Write { bytes, .. } => (bytes.len() - self.moved, io::ErrorKind::WriteZero),
            Work::Sync { .. } => (0, io::ErrorKind::Other),
        };
        if left == 0 {
            Outcome::Over(Ok(()))
        } else if count == 0 {
            Outcome::Over(Err(stuck.into()))
        } else {
            // After a part the place may not be aligned, as at the end of a file.
            self.go_buffered(directory)
        }
    }

    fn advance_after(&mut self, error: io::Error, directory: &Directory) -> Outcome {
        if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return Outcome::Again;
        }
        if self.access == Access::Direct && directory::refuses_direct(&error) {
            directory.refuse_direct(directory::refusal(&error));
            return self.go_buffered(directory);
        }
        Outcome::Over(Err(error))
    }

    fn go_buffered(&mut self, directory: &Directory) -> Outcome {
        if self.access == Access::Direct {
            match directory.buffered(self.file) {
                Ok(descriptor) => self.descriptor = descriptor,
                Err(error) => return Outcome::Over(Err(error)),
            }
            self.access = Access::Buffered;
        }
        Outcome::Again
    }

    /// The completion, after the kernel's last answer.
    fn finish(self, result: io::Result<()>) -> Finished {
        match self.work {
            Work::Read { buffer, done } => Finished::Read(done, result.map(|()| buffer)),
            Work::Write { bytes, done } => {
                self.descriptor.end_write();
                // The page that was written is free before the completion says so.
                drop(bytes);
                Finished::Other(done, result)
            }
            Work::Sync { mark, done } => {
                if result.is_ok() {
                    self.descriptor.end_sync(mark);
                }
                Finished::Other(done, result)
            }
        }
    }

    /// The completion without the kernel's answer: what it may still use stays for good.
    fn leak(self, error: io::Error) -> Finished {
        std::mem::forget(self.descriptor);
        match self.work {
            Work::Read { buffer, done } => {
                std::mem::forget(buffer);
                Finished::Read(done, Err(error))
            }
            Work::Write { bytes, done } => {
                std::mem::forget(bytes);
                Finished::Other(done, Err(error))
            }
            Work::Sync { done, .. } => Finished::Other(done, Err(error)),
        }
    }
}

/// Sets up a ring with the best flags that the kernel knows; an unknown flag is EINVAL.
fn set_up() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    let mut made = builder.build(ENTRIES as u32);
    if is_invalid(&made) {
        made = IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(ENTRIES as u32);
    }
    if is_invalid(&made) {
        made = IoUring::new(ENTRIES as u32);
    }
    made
}

fn is_invalid(made: &io::Result<IoUring>) -> bool {
    matches!(made, Err(error) if error.raw_os_error() == Some(libc::EINVAL))
}

/// Why there is no ring, for the operator.
fn refusal(error: &io::Error) -> String {
    let why = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "forbidden here, by a container's seccomp profile or kernel.io_uring_disabled"
        }
        Some(libc::ENOSYS) => "the kernel has no io_uring",
        Some(libc::ENOMEM) => "no memory for the ring; the limit of locked memory may be too low",
        _ => return format!("io_uring_setup: {error}"),
    };
    format!("{why} ({error})")
}

/// Whether the kernel knows the operations that are needed.
fn probe(ring: &IoUring) -> Result<(), String> {
    let mut found = io_uring::Probe::new();
    ring.submitter()
        .register_probe(&mut found)
        .map_err(|error| format!("the kernel's io_uring is too old to be asked ({error})"))?;
    for (name, code) in [
        ("read", opcode::Read::CODE),
        ("write", opcode::Write::CODE),
        ("fsync", opcode::Fsync::CODE),
        ("poll", opcode::PollAdd::CODE),
    ] {
        if !found.is_supported(code) {
            return Err(format!("the kernel's io_uring has no {name}"));
        }
    }
    if !ring.params().is_feature_nodrop() {
        return Err("the kernel's io_uring may drop completions".to_owned());
    }
    Ok(())
}

/// A counter to wake the ring with, whose reads and writes do not block.
pub(super) fn eventfd() -> io::Result<File> {
    // SAFETY: no memory is passed.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above has just opened the descriptor, and nobody else knows it.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    Ok(File::from(owned))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A ring with a read, a write and a sync that the kernel has not seen yet, and who waits for
    /// them; `None` where io_uring is forbidden.
    fn loaded(data: &std::path::Path) -> Option<(Ring, mpsc::Receiver<io::Result<()>>)> {
        let directory = Arc::new(Directory::open(data, "ferrite").unwrap());
        let file = FileId::Segment(1);
        directory.create(file, 1 << 16).unwrap();
        let mut ring = Ring::new(directory).map_err(|why| eprintln!("skipped: {why}")).ok()?;
        let (sender, receiver) = mpsc::channel();
        let (first, second) = (sender.clone(), sender.clone());
        let requests = [
            Request::Read {
                file,
                offset: 0,
                buffer: Buffer::zeroed(4096),
                done: Box::new(move |result| first.send(result.map(drop)).unwrap()),
            },
            Request::Write {
                file,
                offset: 4096,
                bytes: Bytes::new(vec![1; 4096]),
                done: Box::new(move |result| second.send(result).unwrap()),
            },
            Request::Sync { file, done: Box::new(move |result| sender.send(result).unwrap()) },
        ];
        for request in requests {
            assert!(ring.start(request).is_none());
        }
        assert_eq!((ring.room().all, ring.room().writes), (FLIGHTS_MAX - 3, WRITES_MAX - 2));
        Some((ring, receiver))
    }

    #[test]
    fn a_ring_that_is_given_up_tells_everyone_who_waits() {
        let data = tempfile::tempdir().unwrap();
        let Some((mut ring, receiver)) = loaded(data.path()) else { return };
        ring.abandon("the ring is gone").into_iter().for_each(Finished::call);
        let told: Vec<_> = receiver.iter().map(|result| result.unwrap_err().to_string()).collect();
        assert_eq!(told, ["the ring is gone"; 3]);
    }

    #[test]
    fn a_ring_dropped_with_requests_in_flight_waits_for_the_kernel() {
        let data = tempfile::tempdir().unwrap();
        let Some((ring, receiver)) = loaded(data.path()) else { return };
        drop(ring);
        assert_eq!(receiver.iter().count(), 0, "nobody is told what nobody looked at");
        let written = std::fs::read(data.path().join("ferrite.log-1.ckpt")).unwrap();
        assert!(written[4096..8192].iter().all(|byte| *byte == 1), "the kernel was done");
    }

    #[test]
    fn a_refusal_says_what_an_operator_can_look_at() {
        for (errno, word) in
            [(libc::EPERM, "seccomp"), (libc::ENOSYS, "kernel"), (libc::ENOMEM, "locked memory")]
        {
            let why = refusal(&io::Error::from_raw_os_error(errno));
            assert!(why.contains(word) && why.contains("os error"), "{why}");
        }
    }
}
