//! When checkpoints are taken and how the last one went: what SAVE, BGSAVE, LASTSAVE, the interval,
//! SHUTDOWN, INFO and the metrics share.
//!
//! One checkpoint at a time: whoever holds the [`Claim`] takes it. A failed one leaves the last
//! complete one valid and is told in INFO, in the metrics and in the log; while checkpoints are on,
//! no command writes until one succeeds ([`admit`](crate::commands::admit)).

use crate::context::unix_ms;
use crate::journal::Journal;
use ferrite_hybridlog::{CheckpointError, CheckpointReport, Database, Stats, Store};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Whether less than a twentieth of the file system is free, and less than 1 GiB.
fn is_nearly_full(directory: &Path) -> bool {
    rustix::fs::statvfs(directory).is_ok_and(|disk| {
        let few = disk.f_bavail < disk.f_blocks / 20;
        few && disk.f_bavail.saturating_mul(disk.f_frsize) < 1 << 30
    })
}

/// The checkpoints of one server.
pub struct Checkpoints {
    /// Changes that the store's counters do not show (FLUSHDB, SWAPDB).
    unseen_changes: AtomicU64,
    /// Whether the last one failed: `last_error` of the state, for who asks at every command.
    failing: AtomicBool,
    /// Whether one is to be taken as soon as none is.
    scheduled: AtomicBool,
    /// The number of the oldest kept checkpoint; 0 before the first of this run.
    oldest_kept: AtomicU64,
    state: Mutex<State>,
    /// Whose oldest parts a checkpoint makes needless.
    journal: OnceLock<Arc<Journal>>,
}

/// How the checkpoints went so far.
#[derive(Clone, Debug)]
pub struct State {
    /// Unix time of the newest complete checkpoint in milliseconds; when there is none, of the
    /// start, as LASTSAVE has it.
    pub last_save_ms: u64,
    /// How long the last complete one took; `None` before the first of this run.
    pub last_duration: Option<Duration>,
    /// Bytes written for the last complete one.
    pub last_bytes: u64,
    /// Why the last one failed; `None` when it did not.
    pub last_error: Option<String>,
    /// Complete ones since the start.
    pub completed: u64,
    /// Failed ones since the start.
    pub failed: u64,
    /// When the running one began; `None` while none runs.
    pub began: Option<Instant>,
    /// When the last one ended, complete or failed.
    pub ended: Option<Instant>,
    written_at_last: Written,
}

/// How much was written, as far as the store counts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Written {
    changes: u64,
    keys: u64,
}

impl Default for Checkpoints {
    /// For a store that is not yet open.
    fn default() -> Self {
        let state = State {
            last_save_ms: unix_ms(),
            last_duration: None,
            last_bytes: 0,
            last_error: None,
            completed: 0,
            failed: 0,
            began: None,
            ended: None,
            written_at_last: Written::default(),
        };
        Self {
            unseen_changes: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            scheduled: AtomicBool::new(false),
            oldest_kept: AtomicU64::new(0),
            state: Mutex::new(state),
            journal: OnceLock::new(),
        }
    }
}

impl Checkpoints {
    /// For `store`, which has just been opened.
    #[cfg(test)]
    fn of(store: &Store, databases: u16) -> Self {
        let all = Self::default();
        all.open(store, databases);
        all
    }
    /// The store is open: `store` with what it recovered.
    pub fn open(&self, store: &Store, databases: u16) {
        let (recovery, written) =
            (store.recovery(), self.written(store, &store.stats(), databases));
        let mut state = self.lock();
        if recovery.checkpoint.is_some() {
            state.last_save_ms = recovery.taken_at_ms;
        }
        state.written_at_last = written;
    }
    /// From now on each checkpoint tells the journal which parts it may drop.
    pub fn follow(&self, journal: Arc<Journal>) {
        // A second one would be a mistake of ours; the first stays.
        let _ = self.journal.set(journal);
    }
    /// Removes what was kept for copies in progress for long enough, and what must give way to space. Waits
    /// for the file system.
    pub fn release_held(&self, store: &Store, directory: &Path, most: u64) {
        self.forget_before(store.release_held());
        while self.must_let_go(store, directory, most) {
            let released = store.release_oldest_held();
            if released.is_none() {
                return;
            }
            tracing::info!(
                "files that were kept for a copy in progress are let go of before backup_hold is over: \
                 they take more space than there is for them"
            );
            self.forget_before(released);
        }
    }
    fn forget_before(&self, oldest: Option<u64>) {
        if let (Some(oldest), Some(journal)) = (oldest, self.journal.get()) {
            journal.forget_before(oldest);
        }
    }
    /// Whether what is held for copies takes more than a backup does, and than `most`, or more than
    /// the disk has left.
    pub fn must_let_go(&self, store: &Store, directory: &Path, most: u64) -> bool {
        let stats = store.stats();
        let held = stats.held_bytes + self.held_part_bytes();
        held > most.max(self.backup_bytes(store))
            || held > 0 && (stats.not_writable.is_some() || is_nearly_full(directory))
    }
    /// Bytes of the append-only file that no kept checkpoint needs.
    pub fn held_part_bytes(&self) -> u64 {
        let kept = self.oldest_kept.load(Relaxed);
        self.journal.get().map_or(0, |journal| journal.bytes_before(kept))
    }
    /// What a backup takes: the files of the kept checkpoints and the parts of the append-only file that go on
    /// from them. As of the last checkpoint.
    pub fn backup_bytes(&self, store: &Store) -> u64 {
        let parts = self.journal.get().map_or(0, |journal| journal.state().bytes);
        store.stats().checkpoint_bytes + parts.saturating_sub(self.held_part_bytes())
    }
    /// The right to take the next checkpoint; `None` while one is being taken.
    pub fn claim(self: &Arc<Self>) -> Option<Claim> {
        let mut state = self.lock();
        if state.began.is_some() {
            return None;
        }
        state.began = Some(Instant::now());
        self.scheduled.store(false, Relaxed);
        Some(Claim { checkpoints: Arc::clone(self) })
    }
    /// Has one taken as soon as none is. The control plane does it; ring its bell.
    pub fn schedule(&self) {
        self.scheduled.store(true, Relaxed);
    }
    /// Whether one is to be taken.
    pub fn is_scheduled(&self) -> bool {
        // Orders nothing: who claims one takes it all the same.
        self.scheduled.load(Relaxed)
    }
    /// Whether one is being taken.
    pub fn in_progress(&self) -> bool {
        self.lock().began.is_some()
    }
    /// Whether the last one failed.
    #[inline]
    pub fn is_failing(&self) -> bool {
        // Orders nothing: a write that runs just before the failure shows is as good as one that
        // ran before the failure.
        self.failing.load(Relaxed)
    }
    /// How they went so far.
    pub fn state(&self) -> State {
        self.lock().clone()
    }
    /// A change happened that writes no record: FLUSHDB, FLUSHALL, SWAPDB.
    pub fn note_change(&self) {
        self.unseen_changes.fetch_add(1, Relaxed);
    }
    /// Writes since the last checkpoint (or the start). A write counts once for each record that
    /// it wrote, so the number can exceed Redis's.
    pub fn changes_since_last(&self, store: &Store, stats: &Stats, databases: u16) -> u64 {
        let now = self.written(store, stats, databases);
        let last = self.lock().written_at_last;
        // A key that expired writes nothing but is gone: it counts as one change.
        let changes = now.changes.saturating_sub(last.changes);
        if changes == 0 { u64::from(now != last) } else { changes }
    }

    fn written(&self, store: &Store, stats: &Stats, databases: u16) -> Written {
        written(store, stats, databases, self.unseen_changes.load(Relaxed))
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn written(store: &Store, stats: &Stats, databases: u16, unseen: u64) -> Written {
    let number = |db: u16| Database(u8::try_from(db).expect("at most 256 databases"));
    let keys = (0..databases).map(|db| store.key_count(number(db)).0).sum();
    let changes = stats.appends.wrapping_add(stats.in_place_updates).wrapping_add(unseen);
    Written { changes, keys }
}

/// The right to take a checkpoint. Dropped unused, it leaves no trace.
pub struct Claim {
    checkpoints: Arc<Checkpoints>,
}

impl Claim {
    /// Takes it. Blocks until it is durable; no batch may be held.
    pub fn take(self, store: &Store, databases: u16) -> Result<CheckpointReport, CheckpointError> {
        let written = self.checkpoints.written(store, &store.stats(), databases);
        let result = store.checkpoint();
        let mut forgettable = None;
        let mut state = self.checkpoints.lock();
        state.ended = Some(Instant::now());
        match &result {
            Ok(report) => {
                state.last_save_ms = report.taken_at_ms;
                state.last_duration = Some(report.duration);
                state.last_bytes = report.bytes_written;
                state.last_error = None;
                state.completed += 1;
                state.written_at_last = written;
                self.checkpoints.oldest_kept.store(report.oldest_kept, Relaxed);
                // Until there is a second one, the parts before the first are what stands behind it.
                if report.oldest_kept < report.number {
                    forgettable = Some(report.oldest_held);
                }
                tracing::info!(
                    number = report.number,
                    bytes = report.bytes_written,
                    ms = report.duration.as_millis() as u64,
                    "checkpoint taken"
                );
            }
            Err(e) => {
                state.last_error = Some(e.to_string());
                state.failed += 1;
                tracing::error!("checkpoint failed, the last complete one stays valid: {e}");
            }
        }
        self.checkpoints.failing.store(state.last_error.is_some(), Relaxed);
        drop(state);
        self.checkpoints.forget_before(forgettable);
        result
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.checkpoints.lock().began = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_hybridlog::Config;

    #[test]
    fn one_at_a_time_and_an_unused_claim_leaves_no_trace() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(Config::new(directory.path())).expect("opened");
        let all = Arc::new(Checkpoints::of(&store, 16));
        let claim = all.claim().expect("free");
        assert!(all.in_progress() && all.claim().is_none());
        drop(claim);
        assert!(!all.in_progress());
        assert_eq!(all.state().completed, 0);
        all.claim().expect("free again").take(&store, 16).expect("taken");
        assert_eq!((all.state().completed, all.state().failed), (1, 0));
        assert!(!all.in_progress());
    }

    #[test]
    fn a_flush_counts_as_a_change() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(Config::new(directory.path())).expect("opened");
        let all = Arc::new(Checkpoints::of(&store, 16));
        assert_eq!(all.changes_since_last(&store, &store.stats(), 16), 0);
        all.note_change();
        assert_eq!(all.changes_since_last(&store, &store.stats(), 16), 1);
        all.claim().expect("free").take(&store, 16).expect("taken");
        assert_eq!(all.changes_since_last(&store, &store.stats(), 16), 0);
    }
}
