//! The journal: takes what the store's writes leave in the redo log to the append-only file, and tells
//! how far it is safe.
//!
//! ```text
//!   store ── redo ring ── thread.rs ── aof::PartWriter ── appendonly.000012.aof
//!     ^                      │  group commit, policy, cuts, failures
//!     │                      └── durable position ── replies that wait (`always`), AOF SYNC
//!     └─ holds writes ── watch.rs: how old is what is not durable (`everysec`)
//! ```
//!
//! Promises, by policy:
//!
//! * `always`: no reply tells of a write, own or other, that is not on the disk.
//! * `everysec`: what was acknowledged a second ago is on the disk. While the disk is slower than that,
//!   wherever it keeps whom waiting, writes wait ([`State::delayed`] counts it).
//! * `no`: the system writes when it likes.
//!
//! After a write or a sync has failed, nothing is known of the end of that part: writes are refused,
//! until a checkpoint holds everything and a new part has begun at its cut. That is tried again and
//! again, so it heals when the disk does. A disk that is nearly full refuses writes before one fails.

mod replay;
mod rewrite;
mod thread;
mod watch;

pub use replay::{Recovered, ReplayError, replay};
pub use rewrite::Rewrites;

use crate::aof::{Failure, Files, Header, LocalFiles, PartWriter, Start};
use crate::config::AofSync;
use crate::context::{Context, unix_ms};
use crate::latency::Latency;
use ferrite_hybridlog::{RedoReader, Store};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// The journal of one server.
pub struct Journal {
    shared: Arc<Shared>,
    store: Store,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// One change of the policy at a time.
    policy_turn: Mutex<()>,
}

/// What the journal's threads and its users share.
struct Shared {
    policy: AtomicU8,
    /// Somebody waits for more than the policy gives.
    sync_wanted: AtomicBool,
    /// The oldest of what is not on the disk is so old that a sync must begin.
    sync_due: AtomicBool,
    /// Writes wait for the disk.
    held: AtomicBool,
    /// Who sets these two.
    watch: OnceLock<Thread>,
    stopping: AtomicBool,
    failing: AtomicBool,
    state: Mutex<State>,
    advanced: Condvar,
    /// Who waits on `advanced`.
    waiting: AtomicU64,
    /// Parts that are there, by number.
    parts: Mutex<BTreeMap<u64, Part>>,
    syncs: Latency,
    /// For the checkpoint that heals a failure.
    context: Weak<Context>,
    healing: Mutex<Healing>,
    healed: Condvar,
    /// The rewrite that runs, if one does.
    rewrite: rewrite::Exchange,
    /// Where the parts are, and the name of the newest one.
    directory: PathBuf,
    aof_file: String,
    /// Of the parts before this one none is needed for a checkpoint that this start did not find.
    needed_from: u64,
    /// Of the parts before this one no start has any need.
    unneeded_before: AtomicU64,
    /// Parts from this one on stay for history; [`u64::MAX`] when there is none.
    history_from: AtomicU64,
}

/// A part that is there.
#[derive(Clone, Debug)]
struct Part {
    start: Start,
    path: PathBuf,
    /// Its bytes; the newest part's grow.
    length: u64,
}

/// How a failure is being healed, and whether somebody does.
#[derive(Debug, Default)]
struct Healing {
    heal: Heal,
    runs: bool,
}

/// How a failure is being healed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Heal {
    /// There is nothing to heal.
    #[default]
    No,
    /// Checkpoints are tried until one is complete whose cut began a new part.
    Trying,
    /// This checkpoint is complete.
    Complete(u64),
    /// This one was not completed.
    Incomplete,
}

/// How the journal does.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Bytes of the newest part.
    pub part_bytes: u64,
    /// Bytes of all parts that are there.
    pub bytes: u64,
    /// The number of the newest part.
    pub part: u64,
    /// Bytes that are in memory only.
    pub buffered: u64,
    /// Up to where everything is on the disk.
    pub durable: u64,
    /// Why nothing can be written, if so.
    pub failure: Option<String>,
    /// How often writes had to wait for the disk under `everysec`.
    pub delayed: u64,
    /// How long they waited, in all.
    pub delayed_time: Duration,
    /// Syncs so far.
    pub syncs: u64,
    /// Entries so far.
    pub entries: u64,
    /// When the last sync was complete.
    pub synced_at: Option<Instant>,
}

impl Journal {
    /// Begins a new part after what `recovered` tells, and takes the store's redo log from now on.
    /// A failure is healed by checkpoints of `context`.
    pub fn start(
        store: &Store,
        context: &Arc<Context>,
        recovered: Recovered,
        policy: AofSync,
    ) -> Result<Arc<Self>, Failure> {
        let reader =
            store.redo().expect("the store was opened with a redo log, and nobody reads it");
        let position = store.redo_tail();
        let Recovered { directory, aof_file, next, mut parts, .. } = recovered;
        let header = Header { time_ms: unix_ms().max(next.time_ms), ..next };
        let writer = PartWriter::begin(LocalFiles, &directory, &aof_file, header, position)?;
        let part = Part { start: header.start, path: writer.path().to_owned(), length: 0 };
        parts.insert(header.number, part);
        rewrite::clear(&directory, &aof_file);
        let mut shared = Shared::new(policy, parts, Arc::downgrade(context));
        if store.recovery().checkpoint.is_none() {
            shared.needed_from = header.number;
        }
        (shared.directory, shared.aof_file) = (directory, aof_file);
        lock(&shared.state).durable = position;
        let shared = Arc::new(shared);
        store.track_readers(policy == AofSync::Always);
        shared.rewrite.grows_from(shared.needed_bytes());
        let threads = shared.start(store, reader, writer);
        Ok(Arc::new(Self {
            shared,
            store: store.clone(),
            threads: Mutex::new(threads),
            policy_turn: Mutex::default(),
        }))
    }

    /// The policy in force.
    pub fn policy(&self) -> AofSync {
        self.shared.policy()
    }

    /// Changes the policy: replies to writes keep to it from now on. [`Journal::settle_policy`] does the rest.
    pub fn set_policy(&self, policy: AofSync) {
        if policy != AofSync::Always {
            // What was written without a promise gets one.
            self.shared.sync_wanted.store(true, Ordering::SeqCst);
        }
        self.shared.policy.store(policy as u8, Ordering::SeqCst);
        self.store.wake_redo();
        self.shared.wake_watch();
    }

    /// Has readers keep to the policy. Blocks for a safepoint, and for a sync: not for a thread that is
    /// inside, or that others wait for.
    pub fn settle_policy(&self) {
        let _turn = lock(&self.policy_turn);
        if self.policy() != AofSync::Always {
            // Replies that wait go. A failure is told by who meets it.
            drop(self.sync(None));
        }
        self.store.track_readers(self.policy() == AofSync::Always);
    }

    /// Waits until everything that was written before is on the disk, at most for so long. An error
    /// says why it is not.
    pub fn sync(&self, at_most: Option<Duration>) -> Result<(), String> {
        self.wait_for(self.store.redo_tail(), at_most)
    }

    /// The same for what was written up to `position`.
    pub fn wait_for(&self, position: u64, at_most: Option<Duration>) -> Result<(), String> {
        let until = at_most.and_then(|time| Instant::now().checked_add(time));
        self.shared.waiting.fetch_add(1, Ordering::SeqCst);
        let mut state = lock(&self.shared.state);
        let result = loop {
            if state.durable >= position {
                break Ok(());
            }
            if let Some(failure) = &state.failure {
                break Err(failure.clone());
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                break Err("it took too long".into());
            }
            self.shared.sync_wanted.store(true, Ordering::SeqCst);
            self.store.wake_redo();
            let wait = self.shared.advanced.wait_timeout(state, Duration::from_millis(50));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(state);
        self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Whether nothing can be written, and what was not durable then may be lost.
    #[inline]
    pub fn is_failing(&self) -> bool {
        self.shared.failing.load(Ordering::SeqCst)
    }

    /// How it does.
    pub fn state(&self) -> State {
        let mut state = lock(&self.shared.state).clone();
        state.bytes = self.shared.bytes();
        state
    }

    /// How long syncs took.
    pub fn sync_latency(&self) -> &Latency {
        &self.shared.syncs
    }

    /// Removes the parts that no kept checkpoint needs, the oldest of which is `checkpoint`, nor history.
    pub fn forget_before(&self, checkpoint: u64) {
        let first = first_from(&lock(&self.shared.parts), checkpoint);
        if let Some(first) = first {
            self.shared.drop_unneeded(first);
        }
    }

    /// Bytes of the parts that [`Journal::forget_before`] would remove.
    pub fn bytes_before(&self, checkpoint: u64) -> u64 {
        let parts = lock(&self.shared.parts);
        let Some(first) = first_from(&parts, checkpoint) else { return 0 };
        parts.range(..self.shared.kept_from(first)).map(|(_, part)| part.length).sum()
    }

    /// From now on parts from this number on stay for history, whatever checkpoints need; `None`: there is
    /// no history. Removes what goes with that.
    pub fn keep_history_from(&self, first: Option<u64>) {
        self.shared.history_from.store(first.unwrap_or(u64::MAX), Ordering::SeqCst);
        self.shared.drop_unneeded(0);
    }

    /// Bytes of the parts that stay for history alone.
    pub fn history_bytes(&self) -> u64 {
        self.shared.history_bytes()
    }

    /// Writes and syncs what is there and ends. No command runs any more. An error says why not all that was
    /// acknowledged is in the file.
    pub fn stop(&self) -> Result<(), String> {
        self.shared.stop(&self.store);
        self.stop_rewrite();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            // A panic of a thread has ended the process.
            let _ = thread.join();
        }
        let state = lock(&self.shared.state);
        match state.durable >= self.store.redo_tail() {
            true => Ok(()),
            false => Err(state.failure.clone().unwrap_or_else(|| "its end was not synced".into())),
        }
    }
}

/// The part that goes on from a checkpoint.
fn first_from(parts: &BTreeMap<u64, Part>, checkpoint: u64) -> Option<u64> {
    let goes_on = |part: &Part| matches!(part.start, Start::Checkpoint(n) | Start::Only(n) if n == checkpoint);
    parts.iter().rev().find(|(_, part)| goes_on(part)).map(|(&number, _)| number)
}

impl Shared {
    fn new(policy: AofSync, parts: BTreeMap<u64, Part>, context: Weak<Context>) -> Self {
        Self {
            policy: AtomicU8::new(policy as u8),
            sync_wanted: AtomicBool::new(false),
            sync_due: AtomicBool::new(false),
            held: AtomicBool::new(false),
            watch: OnceLock::new(),
            stopping: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            state: Mutex::default(),
            advanced: Condvar::new(),
            waiting: AtomicU64::new(0),
            parts: Mutex::new(parts),
            syncs: Latency::default(),
            context,
            healing: Mutex::default(),
            healed: Condvar::new(),
            rewrite: rewrite::Exchange::default(),
            directory: PathBuf::new(),
            aof_file: String::new(),
            needed_from: 0,
            unneeded_before: AtomicU64::new(0),
            history_from: AtomicU64::new(u64::MAX),
        }
    }

    /// Starts the threads.
    fn start<F>(
        self: &Arc<Self>,
        store: &Store,
        reader: RedoReader,
        writer: PartWriter<F>,
    ) -> Vec<JoinHandle<()>>
    where
        F: Files + Send + 'static,
        F::File: From<File> + Send + Sync + 'static,
    {
        let thread = thread::start(reader, writer, Arc::clone(self), store.clone());
        let (shared, watched) = (Arc::clone(self), store.clone());
        let watch = thread::spawn("aof-watch", move || watch::watch(&shared, &watched));
        self.watch.get_or_init(|| watch.thread().clone());
        vec![watch, thread]
    }

    /// No start has any need of the parts before `first`: they go, as far as neither a rewrite nor history
    /// needs them.
    fn drop_unneeded(&self, first: u64) {
        let first = self.unneeded_before.fetch_max(first, Ordering::SeqCst).max(first);
        let mut parts = lock(&self.parts);
        let kept = parts.split_off(&self.kept_from(first));
        // Removing gigabytes takes a while, and workers ask for the lengths.
        let dropped = std::mem::replace(&mut *parts, kept);
        drop(parts);
        remove(dropped.into_values());
    }

    fn history_bytes(&self) -> u64 {
        let first = self.unneeded_before.load(Ordering::SeqCst);
        lock(&self.parts).range(..first).map(|(_, part)| part.length).sum()
    }

    /// Tells the threads that it is time to end.
    fn stop(&self, store: &Store) {
        self.stopping.store(true, Ordering::SeqCst);
        self.healed.notify_all();
        self.wake_watch();
        store.wake_redo();
    }

    fn wake_watch(&self) {
        if let Some(watch) = self.watch.get() {
            watch.unpark();
        }
    }

    fn policy(&self) -> AofSync {
        AofSync::ALL[usize::from(self.policy.load(Ordering::SeqCst))]
    }
}

/// Removes parts that nobody needs.
fn remove(parts: impl Iterator<Item = Part>) {
    for part in parts {
        match fs::remove_file(&part.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("removing {} failed: {e}", part.path.display());
            }
            _ => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
