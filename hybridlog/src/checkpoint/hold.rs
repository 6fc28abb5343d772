//! Files that stay for whoever copies them: those of every manifest that was the current one within
//! the last `backup_hold`.
//!
//! ```text
//!   cp reads the manifest      the next one replaces it        backup_hold later
//!   ────┼────────────────────────────┼───────────────────────────────┼──> its files may go
//!       └── cp copies the files that it names ──────────────────────>│
//! ```
//!
//! It is not written down: a start keeps what its manifest names and no more.

use super::manifest::Manifest;
use crate::config::Geometry;
use crate::sync::{
    Instant,
    atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
    thread,
};
use std::time::Duration;

/// A shell lists the names first and reads the manifest after that: it must not name a file then that
/// was not there before.
const LISTED_BEFORE: Duration = Duration::from_millis(100);

/// How long, and how much is held, neither of which orders anything; and whose turn it is to take a
/// checkpoint.
pub(crate) struct Hold {
    millis: AtomicU64,
    bytes: AtomicU64,
    kept_bytes: AtomicU64,
    is_taken: AtomicBool,
}

/// The right to take a checkpoint, until it is dropped.
pub(crate) struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

impl Hold {
    pub fn of(duration: Duration) -> Self {
        let is_taken = AtomicBool::new(false);
        let [millis, bytes, kept_bytes] = [(); 3].map(|()| AtomicU64::new(0));
        let hold = Self { millis, bytes, kept_bytes, is_taken };
        hold.set(duration);
        hold
    }
    /// `None` while a checkpoint is being taken.
    pub fn take_turn(&self) -> Option<Turn<'_>> {
        let is_free = self.is_taken.compare_exchange(false, true, SeqCst, SeqCst).is_ok();
        is_free.then(|| Turn(&self.is_taken))
    }
    pub fn set(&self, duration: Duration) {
        self.millis.store(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }
    pub fn duration(&self) -> Duration {
        Duration::from_millis(self.millis.load(Relaxed))
    }
    /// Bytes of files that stay for copies alone.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
    /// Bytes of the files that the manifest names or that hold what was written since.
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes.load(Relaxed)
    }
    pub fn note_bytes(&self, held: u64, kept: u64) {
        self.bytes.store(held, Relaxed);
        self.kept_bytes.store(kept, Relaxed);
    }
}

/// What an earlier manifest needs.
pub(crate) struct Earlier {
    replaced_at: Instant,
    /// The oldest of its checkpoints.
    oldest: u64,
    images: Vec<u64>,
    first_segment: u64,
}

/// The earlier manifests whose files stay.
#[derive(Default)]
pub(crate) struct Held(Vec<Earlier>);

impl Held {
    /// A manifest was replaced just now.
    pub fn note(&mut self, replaced: &Manifest, geometry: &Geometry) {
        let Some(oldest) = replaced.checkpoints.last() else { return };
        let begin = replaced.checkpoints.iter().map(|c| c.begin).min().unwrap_or(oldest.begin);
        self.0.push(Earlier {
            replaced_at: Instant::now(),
            oldest: oldest.number,
            images: replaced.checkpoints.iter().map(|c| c.image.number).collect(),
            first_segment: geometry.segment_of(begin),
        });
    }
    /// Lets go of those that were replaced at least `hold` ago; whether there were any.
    pub fn release(&mut self, hold: Duration) -> bool {
        let before = self.0.len();
        self.0.retain(|earlier| earlier.replaced_at.elapsed() < hold);
        self.0.len() < before
    }
    /// Lets go of the oldest, however young it is; whether there was one.
    pub fn release_oldest(&mut self) -> bool {
        (!self.0.is_empty()).then(|| self.0.remove(0)).is_some()
    }
    /// Whether [`Held::release`] would let go of something.
    pub fn is_over(&self, hold: Duration) -> bool {
        // The oldest comes first.
        self.0.first().is_some_and(|earlier| earlier.replaced_at.elapsed() >= hold)
    }
    pub fn needs_image(&self, number: u64) -> bool {
        self.0.iter().any(|earlier| earlier.images.contains(&number))
    }
    pub fn needs_segment(&self, number: u64) -> bool {
        self.0.iter().any(|earlier| earlier.first_segment <= number)
    }
    /// The oldest checkpoint of them all.
    pub fn oldest(&self) -> Option<u64> {
        self.0.iter().map(|earlier| earlier.oldest).min()
    }
}

/// Returns once every file that `next` names and `last` does not was there for long enough: all were
/// when the cut was made, at `since`.
pub(crate) fn wait_until_listed(hold: &Hold, last: &Manifest, next: &Manifest, since: Instant) {
    let names = |m: &Manifest| m.newest().map(|c| (c.image.number, c.extents.clone()));
    if hold.duration() > Duration::ZERO && names(last) != names(next) {
        thread::sleep(LISTED_BEFORE.saturating_sub(since.elapsed()));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::device::FileId;
    use crate::device::fault::FaultDevice;
    use crate::{Config, Database, Store};
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::Duration;

    /// Whatever manifest a copy begins with, its files are there until the hold is over; then they go
    /// without another checkpoint.
    #[test]
    fn files_of_earlier_manifests_stay_for_a_copy_and_go_when_the_hold_is_over() {
        let mut config = Config::new("simulated");
        (config.page_size, config.segment_size) = (4 << 10, 16 << 10);
        (config.mutable_size, config.readonly_size) = (16 << 10, 16 << 10);
        config.backup_hold = Duration::from_secs(3600);
        let device = FaultDevice::new();
        let store = Store::open_on(config, Arc::clone(&device) as _).expect("opens");
        let files = || -> BTreeSet<FileId> {
            let state = store.inner().checkpointer.lock().expect("no panic");
            let all = state.manifest.checkpoints.iter().flat_map(|c| {
                let geometry = &store.inner().log.geometry;
                let segments = super::super::recover::segments_of(geometry, c);
                let segments = segments.flat_map(|(n, _)| [FileId::Segment(n), FileId::Side(n)]);
                segments.chain([FileId::Index(c.image.number)]).collect::<Vec<_>>()
            });
            all.collect()
        };
        let there = || -> BTreeSet<FileId> {
            use crate::device::Device as _;
            device.list().expect("listed").into_iter().collect()
        };
        let mut named = BTreeSet::new();
        let mut first = 0;
        for step in 0..5u32 {
            let mut session = store.blocking_session();
            for key in 0..200u32 {
                let key = (step * 1000 + key).to_le_bytes();
                session.upsert(Database(0), &key, &[7; 200]).expect("written");
            }
            drop(session);
            let report = store.checkpoint().expect("taken");
            if step == 0 {
                first = report.number;
            }
            assert_eq!(report.oldest_held, first);
            named.extend(files());
            assert!(named.is_subset(&there()), "step {step}");
            // Nothing below is needed any more.
            store.flush_all().expect("emptied");
        }
        {
            // Who lets go of files has the lock for a while: a checkpoint waits for it.
            let state = store.inner().checkpointer.lock().expect("no panic");
            let other = store.clone();
            let taking = std::thread::spawn(move || other.checkpoint());
            let until = std::time::Instant::now() + Duration::from_secs(60);
            while !store.inner().hold.is_taken.load(super::SeqCst) {
                assert!(std::time::Instant::now() < until, "it does not begin");
                std::thread::yield_now();
            }
            assert!(matches!(store.checkpoint(), Err(crate::CheckpointError::InProgress)));
            drop(state);
            taking.join().expect("no panic").expect("taken");
            named.extend(files());
        }
        let held = store.stats().held_bytes;
        assert!(held > 0 && named.len() > files().len());
        assert_eq!(store.release_held(), None, "the hold is not over");
        assert!(store.stats().checkpoint_bytes > 0);
        // One by one, the oldest first, for whoever needs the space more.
        while store.release_oldest_held().expect("there are some") == first {}
        assert!(store.stats().held_bytes < held);
        store.set_backup_hold(Duration::ZERO);
        let released = store.release_held().expect("it is over");
        assert!(released > first);
        assert!(files().is_subset(&there()));
        let left = there();
        let gone: Vec<_> = named.difference(&left).collect();
        assert!(gone.len() >= 4, "{gone:?}");
        assert_eq!((store.stats().held_bytes, store.release_held()), (0, None));
        assert_eq!(store.release_oldest_held(), None);
    }
}
