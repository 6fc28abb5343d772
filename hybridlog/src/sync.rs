//! Whose atomics, locks and threads this crate runs on: the standard library's, or those that
//! shuttle schedules under `--cfg shuttle`; the atomics of the models (`AtomicU64` and `fence` here,
//! not those of `atomic`) are loom's under `--cfg loom`. So the production code is what the models
//! explore and shuttle runs. Also here: the switch by which `.ci/mutants` takes one step out of a
//! protocol, to show that a test notices.

#[cfg(not(loom))]
pub(crate) use atomic::{AtomicU64, fence};
#[cfg(shuttle)]
pub(crate) use ferrite_index::scheduled::{
    Condvar, HashState, Instant, Mutex, MutexGuard, atomic, mpsc, since_1970, thread,
};
#[cfg(loom)]
pub(crate) use modelled::{AtomicU64, fence};
pub(crate) use std::sync::{Arc, OnceLock, PoisonError, Weak, atomic::Ordering};
#[cfg(not(shuttle))]
pub(crate) use std::{
    hash::RandomState as HashState,
    sync::{Condvar, Mutex, MutexGuard, atomic, mpsc},
    thread,
    time::Instant,
};

/// One turn of a short spin.
#[inline]
pub(crate) fn spin() {
    #[cfg(not(any(loom, shuttle)))]
    std::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(shuttle)]
    thread::yield_now();
}

/// The system's clock.
#[cfg(not(shuttle))]
pub(crate) fn since_1970() -> std::time::Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// Waits while the condition holds, `at_most` so long, and returns the lock.
pub(crate) fn wait_timeout_while<'a, T>(
    condvar: &Condvar,
    mutex: &'a Mutex<T>,
    at_most: std::time::Duration,
    condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    #[cfg(shuttle)]
    let waited = ferrite_index::scheduled::wait_timeout_while(condvar, mutex, at_most, condition);
    #[cfg(not(shuttle))]
    let waited =
        condvar.wait_timeout_while(mutex.locked(), at_most, condition).map(|(guard, _)| guard);
    waited.expect("nothing panics under this lock")
}

/// Locks a mutex that nobody panics under.
pub(crate) trait Locked<T> {
    fn locked(&self) -> MutexGuard<'_, T>;
}

impl<T> Locked<T> for Mutex<T> {
    #[cfg(not(ferrite_tsan))]
    fn locked(&self) -> MutexGuard<'_, T> {
        self.lock().expect("nothing panics under this lock")
    }

    /// ThreadSanitizer does not see a lock that was taken after waiting, since that happens inside
    /// std, which is not instrumented. So whoever had to wait lets go again, and takes it in sight.
    #[cfg(ferrite_tsan)]
    fn locked(&self) -> MutexGuard<'_, T> {
        loop {
            match self.try_lock() {
                Ok(guard) => return guard,
                Err(std::sync::TryLockError::WouldBlock) => drop(self.lock()),
                Err(std::sync::TryLockError::Poisoned(_)) => {
                    panic!("nothing panics under this lock")
                }
            }
        }
    }
}

/// Whether this run leaves out the step called `$name`: never, except in the one build that
/// `.ci/mutants` makes, where the environment says which.
macro_rules! mutant {
    ($name:literal) => {
        cfg!(ferrite_mutant = "chosen") && $crate::sync::is_chosen_mutant($name)
    };
}
pub(crate) use mutant;

pub(crate) fn is_chosen_mutant(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("FERRITE_MUTANT").ok()).as_deref() == Some(name)
}

/// The ordering `$strong`, or Relaxed in the run that weakens the step called `$name`.
macro_rules! ordering {
    ($strong:ident, $name:literal) => {
        if $crate::sync::mutant!($name) {
            $crate::sync::Ordering::Relaxed
        } else {
            $crate::sync::Ordering::$strong
        }
    };
}
pub(crate) use ordering;

/// loom's atomics, each access of which first touches a second one that conflicts with every other
/// access: loom remembers only the latest access of a word, and would not try the executions in
/// which another thread comes between two loads of one reader. The second is stored to, relaxed,
/// and never loaded, so it orders nothing. A fence is made a point of switching in the same way.
/// (The index's `sync.rs` tells more.)
#[cfg(loom)]
#[allow(dead_code, reason = "each user of this file takes some of the methods")]
mod modelled {
    use super::Ordering;
    use loom::sync::atomic;

    loom::lazy_static! {
        static ref FENCES: atomic::AtomicUsize = atomic::AtomicUsize::new(0);
    }

    pub(crate) fn fence(order: Ordering) {
        FENCES.store(0, Ordering::Relaxed);
        atomic::fence(order);
    }

    #[derive(Debug)]
    pub(crate) struct AtomicU64 {
        word: atomic::AtomicU64,
        touched: atomic::AtomicUsize,
    }

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            // Made before there are threads that its making could order.
            let _ = &*FENCES;
            Self { word: atomic::AtomicU64::new(value), touched: atomic::AtomicUsize::new(0) }
        }

        fn touch(&self) -> &atomic::AtomicU64 {
            self.touched.store(0, Ordering::Relaxed);
            &self.word
        }

        pub(crate) fn load(&self, order: Ordering) -> u64 {
            self.touch().load(order)
        }
        pub(crate) fn store(&self, value: u64, order: Ordering) {
            self.touch().store(value, order);
        }
        pub(crate) fn fetch_add(&self, by: u64, order: Ordering) -> u64 {
            self.touch().fetch_add(by, order)
        }
        pub(crate) fn fetch_sub(&self, by: u64, order: Ordering) -> u64 {
            self.touch().fetch_sub(by, order)
        }
        pub(crate) fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
            self.touch().fetch_or(bits, order)
        }
        pub(crate) fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
            self.touch().fetch_max(value, order)
        }
        pub(crate) fn compare_exchange_weak(
            &self,
            seen: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.touch().compare_exchange(seen, new, success, failure)
        }
        pub(crate) fn fetch_update(
            &self,
            success: Ordering,
            failure: Ordering,
            mut next: impl FnMut(u64) -> Option<u64>,
        ) -> Result<u64, u64> {
            let mut seen = self.load(failure);
            while let Some(new) = next(seen) {
                match self.compare_exchange_weak(seen, new, success, failure) {
                    Ok(seen) => return Ok(seen),
                    Err(now) => seen = now,
                }
            }
            Err(seen)
        }
    }
}
