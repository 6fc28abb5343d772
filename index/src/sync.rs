//! The one place that decides whose atomics this crate runs on: std's, or loom's under
//! `--cfg loom`, so that the production code is what the models explore, or those that shuttle
//! schedules under `--cfg shuttle`. Also here: the switch by which `.ci/mutants` takes one step out
//! of a protocol, to show that a test notices.

#[cfg(shuttle)]
pub(crate) use crate::scheduled::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, fence},
    thread::yield_now as spin_loop,
};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence},
    sync::{Condvar, Mutex, MutexGuard},
};
#[cfg(loom)]
pub(crate) use {
    loom::{
        hint::spin_loop,
        sync::{Condvar, Mutex, MutexGuard},
    },
    modelled::{AtomicBool, AtomicU32, AtomicU64, fence},
};

pub(crate) use std::sync::Arc;
#[cfg(loom)]
pub(crate) use std::sync::atomic::Ordering;
pub(crate) use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use std::sync::PoisonError;

/// Locks, whatever happened to an earlier holder: what these mutexes guard is consistent between
/// any two statements, so a panic elsewhere is no reason for a second one here.
#[cfg(any(loom, shuttle))]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(not(any(loom, shuttle)))]
pub(crate) use lock_std as lock;

/// The same, for a mutex that is std's even under loom and shuttle.
#[cfg(not(ferrite_tsan))]
pub(crate) fn lock_std<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// ThreadSanitizer does not see a lock that was taken after waiting, since that happens inside std,
/// which is not instrumented. So whoever had to wait lets go again, and takes it in sight.
#[cfg(ferrite_tsan)]
pub(crate) fn lock_std<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    loop {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => drop(mutex.lock()),
        }
    }
}

/// Waits on `condvar`, whatever happened to an earlier holder.
pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
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
        if $crate::sync::mutant!($name) { $crate::sync::Relaxed } else { $crate::sync::$strong }
    };
}
pub(crate) use ordering;

/// A value alone on its cache lines (two, since processors fetch lines in pairs).
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// loom's atomics, with a second one beside each that every access touches.
///
/// loom (0.7) finds the interleavings worth exploring from pairs of accesses that conflict, and
/// remembers one latest access for each atomic. A writer that loads a word and then stores to it is
/// thereby taken to conflict with its own load only, and what a reader did before is forgotten: the
/// executions in which the store falls between two loads of that reader are never run. The second
/// atomic is only ever stored to, relaxed: that conflicts with every other touch, and orders no
/// memory, since nobody loads it; so nothing is forgotten, and each load of the first atomic may
/// still return any value it could.
///
/// Nor does loom switch threads at a fence, so that a store and the fence after it, or a fence and
/// the load after it, would be one step to all others. Each fence touches one more atomic first.
#[cfg(loom)]
mod modelled {
    use super::{Ordering, Relaxed};
    use loom::sync::atomic;

    loom::lazy_static! {
        static ref FENCES: atomic::AtomicUsize = atomic::AtomicUsize::new(0);
    }

    pub(crate) fn fence(order: Ordering) {
        FENCES.store(0, Relaxed);
        atomic::fence(order);
    }

    macro_rules! atomic {
        ($name:ident, $value:ty) => {
            pub(crate) struct $name {
                atomic: atomic::$name,
                touched: atomic::AtomicUsize,
            }

            #[allow(dead_code, reason = "one set of methods for all three")]
            impl $name {
                pub(crate) fn new(value: $value) -> Self {
                    // Made here at the latest, before there are threads that its making could
                    // order.
                    let _ = &*FENCES;
                    let touched = atomic::AtomicUsize::new(0);
                    Self { atomic: atomic::$name::new(value), touched }
                }

                fn touch(&self) -> &atomic::$name {
                    self.touched.store(0, Relaxed);
                    &self.atomic
                }

                pub(crate) fn load(&self, order: Ordering) -> $value {
                    self.touch().load(order)
                }

                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    self.touch().store(value, order);
                }

                pub(crate) fn compare_exchange(
                    &self,
                    seen: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.touch().compare_exchange(seen, new, success, failure)
                }

                pub(crate) fn compare_exchange_weak(
                    &self,
                    seen: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.touch().compare_exchange(seen, new, success, failure)
                }
            }
        };
    }

    macro_rules! counter {
        ($name:ident, $value:ty) => {
            #[allow(dead_code, reason = "one set of methods for both")]
            impl $name {
                pub(crate) fn fetch_add(&self, by: $value, order: Ordering) -> $value {
                    self.touch().fetch_add(by, order)
                }

                pub(crate) fn fetch_sub(&self, by: $value, order: Ordering) -> $value {
                    self.touch().fetch_sub(by, order)
                }

                pub(crate) fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                    self.touch().fetch_max(value, order)
                }
            }
        };
    }

    atomic!(AtomicBool, bool);
    atomic!(AtomicU32, u32);
    atomic!(AtomicU64, u64);
    counter!(AtomicU32, u32);
    counter!(AtomicU64, u64);
}
