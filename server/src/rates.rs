//! How fast things go, how high they went and how large they are: sampled once a second by the
//! control thread, so that INFO asks the kernel about no file and no page of the index.

use crate::context::Context;
use crate::memory::Usage;
use crate::totals::Totals;
use ferrite_hybridlog::Sizes;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What was sampled.
#[derive(Debug, Default)]
pub struct Rates {
    memory_peak: AtomicU64,
    sizes: Mutex<Option<Sizes>>,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    at: Option<Instant>,
    commands: u64,
    input_bytes: u64,
    output_bytes: u64,
    rate: Rate,
}

/// Between the last two samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Commands a second.
    pub commands_per_second: u64,
    /// KiB received a second.
    pub input_kib_per_second: f64,
    /// KiB sent a second.
    pub output_kib_per_second: f64,
}

impl Rates {
    /// Takes a sample.
    pub fn sample(&self, context: &Context) {
        *self.lock_sizes() = Some(context.store.sizes());
        let stats = context.store.stats();
        let totals = Totals::since_start(context, &stats);
        self.memory_peak(Usage::of(context, &stats).used());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(seconds) = last.at.map(|at| (now - at).as_secs_f64()).filter(|s| *s > 0.0) {
            let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
            last.rate = Rate {
                commands_per_second: rate(totals.commands, last.commands) as u64,
                input_kib_per_second: rate(totals.input_bytes, last.input_bytes) / 1024.0,
                output_kib_per_second: rate(totals.output_bytes, last.output_bytes) / 1024.0,
            };
        }
        last.at = Some(now);
        last.commands = totals.commands;
        last.input_bytes = totals.input_bytes;
        last.output_bytes = totals.output_bytes;
    }
    /// Between the last two samples.
    pub fn now(&self) -> Rate {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).rate
    }
    /// The store's sizes at the last sample, or now if there is none yet.
    pub fn sizes(&self, context: &Context) -> Sizes {
        let Some(store) = context.store.get() else { return Sizes::default() };
        *self.lock_sizes().get_or_insert_with(|| store.sizes())
    }
    fn lock_sizes(&self) -> MutexGuard<'_, Option<Sizes>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// The most memory that was seen in use, `now` included.
    pub fn memory_peak(&self, now: u64) -> u64 {
        // Relaxed: a maximum of its own, nothing is read through it.
        self.memory_peak.fetch_max(now, Relaxed).max(now)
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::testing::Bench;

    /// INFO once listed the data directory and walked the index at each call, on a thread that
    /// serves clients.
    #[test]
    fn sizes_are_those_of_the_last_sample() {
        let mut bench = Bench::new();
        let info = |bench: &mut Bench| bench.text("info storage");
        let before = info(&mut bench);
        assert_eq!(bench.text("set a 1"), "+OK\r\n");
        bench.context.store.checkpoint().expect("taken");
        let disk = |info: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix("disk_bytes:"));
            line.expect("a field").parse::<u64>().expect("a number")
        };
        assert_eq!(disk(&info(&mut bench)), disk(&before), "nobody has taken a sample");
        bench.context.rates.sample(&bench.context);
        assert!(disk(&info(&mut bench)) > disk(&before));
    }
}
