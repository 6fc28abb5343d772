//! A simulated disk for tests: it loses, tears and reorders what was not synced, fails on
//! request, and has its power cut at any chosen step.
//!
//! Promises:
//! * [`FaultDevice::crash`] keeps all that the contract of [`super::Device`] says must survive. Of
//!   the rest it keeps what the seed says: every 512-byte sector has the content it had after the
//!   last sync or after any write since (also one still in flight), chosen for each sector alone;
//!   every unsynced creation, removal or rename has happened or not; a file's length is any it had
//!   since its last sync. Some seeds lose all, some keep all, some stop at one instant.
//! * A sync covers the writes whose completions ran before it was submitted, not those in flight.
//! * After a failed sync, what it should have covered is not made durable by a later sync unless
//!   it is written again, as on Linux. One that could not open the file has failed nothing.
//! * A write that gives a sector of a segment other bytes than a write before it, in this run or an
//!   earlier one, fails, and [`FaultDevice::crash`] and the end of the device panic: what the log
//!   has flushed never changes, and every test on this device proves it.
//! * The same calls in the same order and the same seed give the same outcome. With
//!   [`Completion::Stepped`] the test owns the order of everything.
//!
//! [`FaultDevice::io_count`] counts the steps that change something (writes, syncs, creations,
//! removals, renames, directory syncs), so that a test can run once to count, then once for each
//! step with [`FaultDevice::cut_at`]. Reads are not steps: a cut at a read leaves what a cut at
//! the next step leaves.

use crate::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError,
    thread::{self, JoinHandle},
};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::local::shielded;
use super::{Buffer, Device, FileId, Mapping, Request, could_not_open};

mod disk;
#[cfg(test)]
mod tests;

use disk::{Disk, Random};

/// What a fault strikes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// [`Request::Read`].
    Read,
    /// [`Request::Write`].
    Write,
    /// [`Request::Sync`].
    Sync,
    /// [`Device::create`].
    Create,
    /// [`Device::remove`].
    Remove,
    /// [`Device::rename`] and [`Device::link`], by either name.
    Rename,
    /// [`Device::sync_directory`], whatever file the fault names.
    SyncDirectory,
    /// [`Device::map`].
    Map,
}

/// An error to be given instead of carrying out an operation.
#[derive(Clone, Debug)]
pub struct Fault {
    operation: Operation,
    errno: i32,
    file: Option<FileId>,
    skip: u64,
    times: u64,
}

impl Fault {
    /// Fails every such operation on any file with an error number, such as `libc::EIO`.
    pub fn new(operation: Operation, errno: i32) -> Self {
        Self { operation, errno, file: None, skip: 0, times: u64::MAX }
    }

    /// Strikes this file only.
    pub fn file(self, file: FileId) -> Self {
        Self { file: Some(file), ..self }
    }

    /// Lets so many pass first.
    pub fn after(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    /// Strikes so many times, then no more.
    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    /// Whether it strikes now; counts down.
    fn strikes(&mut self, operation: Operation, files: &[FileId]) -> bool {
        let named = self.file.is_none_or(|file| files.is_empty() || files.contains(&file));
        if self.operation != operation || !named || self.times == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

/// When requests are carried out and completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Completion {
    /// By a thread of the device, in the order of submission.
    InOrder,
    /// By a thread of the device, in an order that the seed decides among those waiting.
    Shuffled(u64),
    /// By [`FaultDevice::step`], on the caller's thread.
    Stepped,
}

/// A simulated disk. See the module's promises.
pub struct FaultDevice {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    disk: Disk,
    queue: VecDeque<Queued>,
    completion: Completion,
    random: Random,
    delay: Duration,
    faults: Vec<Fault>,
    /// Steps so far; see the module.
    steps: u64,
    cut_at: Option<u64>,
    /// The power is off: nothing is carried out any more.
    dead: bool,
    closing: bool,
    corrupts_maps: bool,
    /// Its sync waits until it is released.
    held: Option<FileId>,
}

/// A request that waits, and for a sync the last write that had completed at its submission.
struct Queued {
    request: Request,
    completed_writes: u64,
}

impl FaultDevice {
    /// An empty disk without faults, whose completions come in order from a thread of its own.
    pub fn new() -> Arc<Self> {
        Self::with_disk(Disk::default())
    }

    fn with_disk(disk: Disk) -> Arc<Self> {
        let state = State {
            disk,
            queue: VecDeque::new(),
            completion: Completion::InOrder,
            random: Random::new(0),
            delay: Duration::ZERO,
            faults: Vec::new(),
            steps: 0,
            cut_at: None,
            dead: false,
            closing: false,
            corrupts_maps: false,
            held: None,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new() });
        Arc::new(Self { shared, thread: Mutex::new(None) })
    }

    /// Cuts the power of this device now and returns what the seed leaves of it, as a device of
    /// its own without faults or plans. Can be called again with another seed, from the same
    /// instant.
    pub fn crash(&self, seed: u64) -> Arc<Self> {
        let mut state = self.shared.lock();
        state.cut();
        if let Some(rewritten) = state.disk.rewritten() {
            drop(state);
            panic!("{rewritten}");
        }
        let disk = state.disk.after_crash(&mut Random::new(seed));
        drop(state);
        self.shared.wake.notify_all();
        Self::with_disk(disk)
    }

    /// Cuts the power at step `n`, counted from 1 since the device was made: that step and all
    /// after it fail and nothing more is applied, though the step itself may be found half done
    /// by [`FaultDevice::crash`].
    pub fn cut_at(&self, n: u64) {
        self.shared.lock().cut_at = Some(n);
    }

    /// Whether the power was cut.
    pub fn is_cut(&self) -> bool {
        self.shared.lock().dead
    }

    /// The steps so far; see the module for what counts.
    pub fn io_count(&self) -> u64 {
        self.shared.lock().steps
    }

    /// Adds a fault. The oldest that strikes decides the error.
    pub fn inject(&self, fault: Fault) {
        self.shared.lock().faults.push(fault);
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.shared.lock().faults.clear();
    }

    /// Lets files grow by so many bytes more, after which writes and creations fail with
    /// `StorageFull`. Removing a file gives its bytes back.
    pub fn set_free_space(&self, bytes: u64) {
        self.shared.lock().disk.set_free_space(bytes);
    }

    /// Chooses when requests are completed, those already waiting included.
    pub fn set_completion(&self, completion: Completion) {
        let mut state = self.shared.lock();
        state.completion = completion;
        if let Completion::Shuffled(seed) = completion {
            state.random = Random::new(seed);
        }
        drop(state);
        self.shared.wake.notify_all();
    }

    /// Makes the device's thread wait before it carries out each request.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// The requests that wait.
    pub fn pending(&self) -> usize {
        self.shared.lock().queue.len()
    }

    /// Carries out and completes the oldest request; false when none waits.
    pub fn step(&self) -> bool {
        self.step_nth(0)
    }

    /// Carries out and completes the request that `n` older ones precede; false when there are
    /// not so many.
    pub fn step_nth(&self, n: usize) -> bool {
        let mut state = self.shared.lock();
        match state.queue.remove(n) {
            Some(queued) => {
                drop(state);
                self.shared.carry_out(queued);
                true
            }
            None => false,
        }
    }

    /// Leaves the syncs of a file waiting, whatever is carried out meanwhile, until
    /// [`FaultDevice::release_syncs`] or the end of power or device. For the orders that the
    /// device's thread decides.
    pub fn hold_syncs(&self, file: FileId) {
        self.shared.lock().held = Some(file);
    }

    /// Ends [`FaultDevice::hold_syncs`].
    pub fn release_syncs(&self) {
        self.shared.lock().held = None;
        self.shared.wake.notify_all();
    }

    /// Whether a sync waits because it is held.
    pub fn is_holding(&self) -> bool {
        let state = self.shared.lock();
        state.queue.iter().any(|queued| state.holds(queued))
    }

    /// From now on what [`Device::map`] shows has one bit flipped, as if the disk had written it so.
    pub fn corrupt_maps(&self) {
        self.shared.lock().corrupts_maps = true;
    }

    /// Flips one bit (0 to 7) of the byte at `offset`, on the disk and in every cache, as a
    /// failing medium would. Panics when the file has no such byte.
    pub fn flip(&self, file: FileId, offset: u64, bit: u8) {
        self.shared.lock().disk.flip(file, offset, bit);
    }

    /// Shortens a file to `length` bytes for good, as a careless copy would. Panics when there
    /// is no such file.
    pub fn truncate(&self, file: FileId, length: u64) {
        self.shared.lock().disk.truncate(file, length);
    }

    /// What a read of the whole file would give now; `None` when it does not exist.
    pub fn contents(&self, file: FileId) -> Option<Vec<u8>> {
        self.shared.lock().disk.contents(file).map(<[u8]>::to_vec)
    }

    /// Runs a change of names, unless a fault or the power forbids.
    fn change<T>(
        &self,
        operation: Operation,
        files: &[FileId],
        change: impl Fn(&mut Disk) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.shared.lock();
        let admitted = state.admit(operation, files);
        if let Err(Refusal::PowerFails) = admitted
            && operation != Operation::SyncDirectory
        {
            // It may have reached the disk all the same, like anything unsynced.
            let _ = change(&mut state.disk);
        }
        admitted?;
        change(&mut state.disk)
    }

    fn start_thread(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let name = "ferrite-simulated".to_owned();
            let run = move || shared.run();
            *thread = Some(
                thread::Builder::new().name(name).spawn(run).expect("a test can start a thread"),
            );
        }
    }
}

impl Device for FaultDevice {
    fn submit(&self, request: Request) {
        let mut state = self.shared.lock();
        let completed_writes = state.disk.completed_writes();
        state.queue.push_back(Queued { request, completed_writes });
        drop(state);
        self.start_thread();
        self.shared.wake.notify_all();
    }

    fn create(&self, file: FileId, size: u64) -> io::Result<()> {
        self.change(Operation::Create, &[file], |disk| disk.create(file, size))
    }

    fn size(&self, file: FileId) -> io::Result<u64> {
        let state = self.shared.lock();
        state.check_power()?;
        let contents = state.disk.contents(file).ok_or(io::ErrorKind::NotFound)?;
        Ok(contents.len() as u64)
    }

    fn remove(&self, file: FileId) -> io::Result<()> {
        self.change(Operation::Remove, &[file], |disk| disk.remove(file))
    }

    fn rename(&self, from: FileId, to: FileId) -> io::Result<()> {
        self.change(Operation::Rename, &[from, to], |disk| disk.rename(from, to))
    }

    fn link(&self, from: FileId, to: FileId) -> io::Result<()> {
        self.change(Operation::Rename, &[from, to], |disk| disk.link(from, to))
    }

    fn list(&self) -> io::Result<Vec<FileId>> {
        let state = self.shared.lock();
        state.check_power()?;
        Ok(state.disk.list())
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.change(Operation::SyncDirectory, &[], |disk| {
            disk.sync_names();
            Ok(())
        })
    }

    fn free_space(&self) -> io::Result<u64> {
        let state = self.shared.lock();
        state.check_power()?;
        Ok(state.disk.free_space())
    }

    fn path(&self, file: FileId) -> PathBuf {
        Path::new("simulated").join(file.name("ferrite"))
    }

    fn io_kind(&self) -> &'static str {
        "simulated"
    }

    fn direct_reads(&self) -> Result<(), String> {
        Ok(())
    }

    fn can_map(&self, _bytes: u64) -> Result<(), String> {
        Ok(())
    }

    fn map(&self, file: FileId, offset: u64, length: usize) -> io::Result<Mapping> {
        let mut state = self.shared.lock();
        state.admit(Operation::Map, &[file])?;
        let contents = state.disk.contents(file).ok_or(io::ErrorKind::NotFound)?;
        let part = contents.get(offset as usize..offset as usize + length);
        let mut copy = Buffer::zeroed(length);
        copy.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        if state.corrupts_maps {
            copy[length / 2] ^= 1;
        }
        Ok(Mapping::copied(copy))
    }
}

impl Drop for FaultDevice {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_all();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
        {
            // A panic of the thread has been reported by the panic itself.
            let _ = thread.join();
        }
        // A panic on the thread that carries out the writes would fail no test.
        if let Some(rewritten) = self.shared.lock().disk.rewritten()
            && !thread::panicking()
        {
            panic!("{rewritten}");
        }
    }
}

impl Shared {
    fn run(&self) {
        while let Some(queued) = self.next() {
            shielded(|| self.carry_out(queued));
        }
    }

    /// Waits for a request that is the thread's to carry out; `None` at the end.
    fn next(&self) -> Option<Queued> {
        let mut state = self.lock();
        loop {
            let ours = state.completion != Completion::Stepped || state.dead || state.closing;
            if ours && state.queue.iter().any(|queued| !state.holds(queued)) {
                if !state.delay.is_zero() && !state.closing {
                    let delay = state.delay;
                    drop(state);
                    thread::sleep(delay);
                    state = self.lock();
                }
                let places = 0..state.queue.len();
                let free: Vec<usize> = places.filter(|i| !state.holds(&state.queue[*i])).collect();
                // A step may have emptied the queue during the delay.
                if !free.is_empty() {
                    let next = match state.completion {
                        Completion::Shuffled(_) => state.random.below(free.len()),
                        Completion::InOrder | Completion::Stepped => 0,
                    };
                    return state.queue.remove(free[next]);
                }
            } else if state.closing {
                return None;
            } else {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Carries out a request and completes it, without the lock.
    fn carry_out(&self, queued: Queued) {
        let complete = self.lock().apply(queued);
        // The power may have been cut: then what waits is the thread's to fail.
        self.wake.notify_all();
        complete();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Completions run without the lock, so no panic of theirs leaves it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an operation is not carried out.
enum Refusal {
    /// A fault struck.
    Fault(i32),
    /// The power fails in this very step.
    PowerFails,
    /// It failed before.
    PowerIsOff,
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Fault(errno) => Self::from_raw_os_error(errno),
            Refusal::PowerFails | Refusal::PowerIsOff => Self::other("the simulated power was cut"),
        }
    }
}

impl State {
    /// Applies a request to the disk; what is returned tells its submitter.
    fn apply(&mut self, queued: Queued) -> Box<dyn FnOnce()> {
        match queued.request {
            Request::Read { file, offset, mut buffer, done } => {
                let result = match self.admit(Operation::Read, &[file]) {
                    Ok(()) => self.disk.read(file, offset, &mut buffer),
                    Err(refusal) => Err(refusal.into()),
                };
                Box::new(move || done(result.map(|()| buffer)))
            }
            Request::Write { file, offset, bytes, done } => {
                let admitted = self.admit(Operation::Write, &[file]);
                if let Err(Refusal::PowerFails) = admitted {
                    let _ = self.disk.write(file, offset, &bytes);
                }
                let result = match admitted {
                    Ok(()) => self.disk.write(file, offset, &bytes),
                    Err(refusal) => Err(refusal.into()),
                };
                drop(bytes);
                Box::new(move || done(result))
            }
            Request::Sync { file, done } => {
                let result = match self.admit(Operation::Sync, &[file]) {
                    Ok(()) => self.disk.sync(file, queued.completed_writes),
                    Err(refusal) => {
                        let error = refusal.into();
                        if !could_not_open(&error) {
                            self.disk.fail_sync(file);
                        }
                        Err(error)
                    }
                };
                Box::new(move || done(result))
            }
        }
    }

    /// Whether a request waits for its release.
    fn holds(&self, queued: &Queued) -> bool {
        let held = matches!(queued.request, Request::Sync { file, .. } if Some(file) == self.held);
        held && !self.dead && !self.closing
    }

    /// Counts a step and decides whether it is carried out.
    fn admit(&mut self, operation: Operation, files: &[FileId]) -> Result<(), Refusal> {
        self.check_power()?;
        if !matches!(operation, Operation::Read | Operation::Map) {
            self.steps += 1;
            if self.cut_at.is_some_and(|step| self.steps >= step) {
                self.cut();
                return Err(Refusal::PowerFails);
            }
        }
        match self
            .faults
            .iter_mut()
            .find_map(|fault| fault.strikes(operation, files).then_some(fault.errno))
        {
            Some(errno) => Err(Refusal::Fault(errno)),
            None => Ok(()),
        }
    }

    fn check_power(&self) -> Result<(), Refusal> {
        if self.dead { Err(Refusal::PowerIsOff) } else { Ok(()) }
    }

    /// The power goes. Writes that wait were on their way, so they are among what a crash may
    /// leave; to those who submitted them they will have failed.
    fn cut(&mut self) {
        if std::mem::replace(&mut self.dead, true) {
            return;
        }
        for queued in &self.queue {
            if let Request::Write { file, offset, bytes, .. } = &queued.request {
                // A write to a file that does not exist leaves nothing.
                let _ = self.disk.write(*file, *offset, bytes);
            }
        }
    }
}
