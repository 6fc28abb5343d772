//! The one place that decides whose atomics this crate runs on: std's, or loom's under
//! `--cfg loom`, so that the production code is what the models explore. Also here: the switch by
//! which `.ci/mutants` takes one step out of a protocol, to show that a test notices.

#[cfg(loom)]
pub(crate) use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence},
    sync::{Condvar, Mutex, MutexGuard},
};
#[cfg(not(loom))]
pub(crate) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence},
    sync::{Condvar, Mutex, MutexGuard},
};

pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use std::sync::PoisonError;

/// Locks, whatever happened to an earlier holder: what these mutexes guard is consistent between
/// any two statements, so a panic elsewhere is no reason for a second one here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits on `condvar`, whatever happened to an earlier holder.
pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// Whether this build leaves out the step called `$name`.
macro_rules! mutant {
    ($name:literal) => {
        cfg!(ferrite_mutant = $name)
    };
}
pub(crate) use mutant;

/// The ordering `$strong`, or Relaxed in the build that weakens the step called `$name`.
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
