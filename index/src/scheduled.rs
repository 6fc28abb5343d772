//! What the crates run on under `--cfg shuttle`: every access of an atomic, every lock and every
//! wait is a point at which shuttle may go on with another thread, as its seed decides. One
//! system thread runs them all, so whatever happened is sequentially consistent: orderings weaker
//! than that are the business of the models (`tests/loom.rs`) and of ThreadSanitizer.
//!
//! The atomics are std's with such a point before each access, not shuttle's own: they have the size
//! of their value, which buckets and log pages rely on.
//!
//! There is no time. A wait with a limit is a turn given to others, after which the limit may have
//! been reached; [`Instant`] tells a time that its readers and sleepers move on, so that a schedule
//! replays whatever the machine's speed.

pub use shuttle::sync::{Condvar, Mutex, MutexGuard, mpsc};
pub use shuttle::thread_local;
use std::cell::Cell;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::LockResult;
use std::time::Duration;

/// [`Condvar::wait_timeout_while`], which shuttle would let wait without a limit.
pub fn wait_timeout_while<'a, T>(
    _condvar: &Condvar,
    mutex: &'a Mutex<T>,
    _at_most: Duration,
    mut condition: impl FnMut(&mut T) -> bool,
) -> LockResult<MutexGuard<'a, T>> {
    let mut guard = mutex.lock()?;
    if condition(&mut guard) {
        drop(guard);
        thread::yield_now();
        guard = mutex.lock()?;
    }
    Ok(guard)
}

/// shuttle's threads, with limits to their waits.
pub mod thread {
    pub use shuttle::thread::{
        Builder, JoinHandle, Thread, current, panicking, scope, spawn, yield_now,
    };
    use std::time::Duration;

    /// Gives others a turn, and moves the time on.
    pub fn sleep(time: Duration) {
        super::move_on(time);
        yield_now();
    }

    /// Gives others a turn. A token that waits is left for later: one more stray wake-up.
    pub fn park_timeout(_at_most: Duration) {
        yield_now();
    }
}

/// An instant of a time that passes by being looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Instant(Duration);

std::thread_local! {
    /// One for each system thread, so for all threads of an execution.
    static TIME: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

fn move_on(by: Duration) -> Duration {
    TIME.set(TIME.get() + by);
    TIME.get()
}

impl Instant {
    /// A little after the last one.
    pub fn now() -> Self {
        Self(move_on(Duration::from_micros(1)))
    }

    /// The time since then.
    pub fn elapsed(&self) -> Duration {
        Self::now().0 - self.0
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Self;
    fn add(self, time: Duration) -> Self {
        Self(self.0 + time)
    }
}

/// The system's clock, which stands.
pub fn since_1970() -> Duration {
    Duration::from_secs(1 << 30)
}

/// Gives all hash maps the same order in every run.
pub type HashState = BuildHasherDefault<DefaultHasher>;

/// As in `std::sync::atomic`.
pub mod atomic {
    use std::fmt;
    pub use std::sync::atomic::Ordering;

    /// A point at which another thread may go on.
    fn switch() {
        shuttle::thread::sleep(std::time::Duration::ZERO);
    }

    /// Orders nothing that is not in order, and no thread goes on at one: the accesses around it
    /// are such points.
    pub fn fence(_: Ordering) {}

    macro_rules! atomic {
        ($name:ident, $value:ty) => {
            /// std's, with a switch of threads before each access.
            #[repr(transparent)]
            #[derive(Default)]
            pub struct $name(std::sync::atomic::$name);

            #[allow(missing_docs, reason = "as in std")]
            impl $name {
                pub const fn new(value: $value) -> Self {
                    Self(std::sync::atomic::$name::new(value))
                }

                pub fn get_mut(&mut self) -> &mut $value {
                    self.0.get_mut()
                }

                pub fn into_inner(self) -> $value {
                    self.0.into_inner()
                }

                pub const fn as_ptr(&self) -> *mut $value {
                    self.0.as_ptr()
                }

                pub fn load(&self, order: Ordering) -> $value {
                    switch();
                    self.0.load(order)
                }

                pub fn store(&self, value: $value, order: Ordering) {
                    switch();
                    self.0.store(value, order);
                }

                pub fn swap(&self, value: $value, order: Ordering) -> $value {
                    switch();
                    self.0.swap(value, order)
                }

                pub fn compare_exchange(
                    &self,
                    seen: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    switch();
                    self.0.compare_exchange(seen, new, success, failure)
                }

                /// Never fails where it could succeed, so that a schedule replays.
                pub fn compare_exchange_weak(
                    &self,
                    seen: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.compare_exchange(seen, new, success, failure)
                }
            }

            impl fmt::Debug for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.0.fmt(f)
                }
            }
        };
    }

    macro_rules! number {
        ($name:ident, $value:ty) => {
            atomic!($name, $value);

            #[allow(missing_docs, reason = "as in std")]
            impl $name {
                pub fn fetch_add(&self, by: $value, order: Ordering) -> $value {
                    switch();
                    self.0.fetch_add(by, order)
                }

                pub fn fetch_sub(&self, by: $value, order: Ordering) -> $value {
                    switch();
                    self.0.fetch_sub(by, order)
                }

                pub fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                    switch();
                    self.0.fetch_max(value, order)
                }

                pub fn fetch_min(&self, value: $value, order: Ordering) -> $value {
                    switch();
                    self.0.fetch_min(value, order)
                }

                pub fn fetch_update(
                    &self,
                    success: Ordering,
                    failure: Ordering,
                    mut next: impl FnMut($value) -> Option<$value>,
                ) -> Result<$value, $value> {
                    let mut seen = self.load(failure);
                    while let Some(new) = next(seen) {
                        match self.compare_exchange(seen, new, success, failure) {
                            Ok(old) => return Ok(old),
                            Err(other) => seen = other,
                        }
                    }
                    Err(seen)
                }

                pub fn fetch_or(&self, bits: $value, order: Ordering) -> $value {
                    switch();
                    self.0.fetch_or(bits, order)
                }
            }
        };
    }

    atomic!(AtomicBool, bool);
    number!(AtomicU8, u8);
    number!(AtomicU32, u32);
    number!(AtomicU64, u64);
    number!(AtomicI64, i64);
}
