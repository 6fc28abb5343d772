//! The server's counters added up over its workers, since the start or since CONFIG RESETSTAT.
//!
//! Workers own their counters and nobody else may write them, so a reset remembers what they were
//! and later totals subtract it.

use crate::commands::table;
use crate::context::Context;
use crate::counters::Counter;
use ferrite_hybridlog::Stats;
use std::sync::{Mutex, PoisonError};

/// Sums of counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Commands run.
    pub commands: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections refused because there were too many.
    pub refused_connections: u64,
    /// Bytes received.
    pub input_bytes: u64,
    /// Bytes sent.
    pub output_bytes: u64,
    /// Error replies.
    pub errors: u64,
    /// Operations that waited for the device or for room, once a try.
    pub pending: u64,
    /// Keys that reading commands found.
    pub keyspace_hits: u64,
    /// Keys that reading commands did not find.
    pub keyspace_misses: u64,
    /// Clients closed for their query buffer.
    pub query_limit_closed: u64,
    /// Clients closed for their output buffer.
    pub output_limit_closed: u64,
    /// Clients closed for their silence.
    pub idle_closed: u64,
    /// Clients closed for taking none of their replies.
    pub stall_closed: u64,
    /// Keys removed because they had expired.
    pub expired_keys: u64,
    /// Records read from the device.
    pub device_reads: u64,
    /// Bytes read from the device.
    pub device_read_bytes: u64,
    /// Bytes written to the device.
    pub device_write_bytes: u64,
    /// By the number of a command's entry.
    pub by_command: Vec<CommandTotals>,
}

/// One command's sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandTotals {
    /// Runs that ended.
    pub calls: u64,
    /// Nanoseconds that they took.
    pub nanoseconds: u64,
    /// Refused before they ran.
    pub rejected: u64,
    /// Ended with an error.
    pub failed: u64,
}

/// What the counters were at the last CONFIG RESETSTAT.
#[derive(Debug, Default)]
pub struct Baseline(Mutex<Totals>);

impl Totals {
    /// Since the last reset.
    pub fn since_reset(context: &Context, stats: &Stats) -> Self {
        let now = Self::since_start(context, stats);
        now.minus(&context.baseline.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Since the start.
    pub fn since_start(context: &Context, stats: &Stats) -> Self {
        let mut sums = Self {
            expired_keys: stats.expired_keys,
            device_reads: stats.device_reads,
            device_read_bytes: stats.device_read_bytes,
            device_write_bytes: stats.device_write_bytes,
            by_command: vec![CommandTotals::default(); table().entries().len()],
            ..Self::default()
        };
        for worker in &context.workers {
            let add = |sum: &mut u64, counter: &Counter| *sum += counter.get();
            add(&mut sums.commands, &worker.commands);
            add(&mut sums.connections, &worker.connections);
            add(&mut sums.refused_connections, &worker.refused_connections);
            add(&mut sums.input_bytes, &worker.input_bytes);
            add(&mut sums.output_bytes, &worker.output_bytes);
            add(&mut sums.errors, &worker.errors);
            add(&mut sums.pending, &worker.pending);
            add(&mut sums.keyspace_hits, &worker.keyspace_hits);
            add(&mut sums.keyspace_misses, &worker.keyspace_misses);
            add(&mut sums.query_limit_closed, &worker.query_limit_closed);
            add(&mut sums.output_limit_closed, &worker.output_limit_closed);
            add(&mut sums.idle_closed, &worker.idle_closed);
            add(&mut sums.stall_closed, &worker.stall_closed);
            for (sum, one) in sums.by_command.iter_mut().zip(&worker.by_command) {
                add(&mut sum.calls, &one.calls);
                add(&mut sum.nanoseconds, &one.nanoseconds);
                add(&mut sum.rejected, &one.rejected);
                add(&mut sum.failed, &one.failed);
            }
        }
        sums
    }

    /// CONFIG RESETSTAT: later totals count from here.
    pub fn reset(context: &Context) {
        let now = Self::since_start(context, &context.stats());
        *context.baseline.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
        context.errors.reset();
        if let Some(store) = context.store.get() {
            store.forget_longest_safepoint();
        }
        let commands = context.workers.iter().flat_map(|worker| &worker.by_command);
        commands.for_each(|command| command.latency.reset());
    }

    fn minus(mut self, base: &Self) -> Self {
        // A counter read after the one it was compared with may lag: saturating, not wrapping.
        let sub = |a: &mut u64, b: u64| *a = a.saturating_sub(b);
        sub(&mut self.commands, base.commands);
        sub(&mut self.connections, base.connections);
        sub(&mut self.refused_connections, base.refused_connections);
        sub(&mut self.input_bytes, base.input_bytes);
        sub(&mut self.output_bytes, base.output_bytes);
        sub(&mut self.errors, base.errors);
        sub(&mut self.pending, base.pending);
        sub(&mut self.keyspace_hits, base.keyspace_hits);
        sub(&mut self.keyspace_misses, base.keyspace_misses);
        sub(&mut self.query_limit_closed, base.query_limit_closed);
        sub(&mut self.output_limit_closed, base.output_limit_closed);
        sub(&mut self.idle_closed, base.idle_closed);
        sub(&mut self.stall_closed, base.stall_closed);
        sub(&mut self.expired_keys, base.expired_keys);
        sub(&mut self.device_reads, base.device_reads);
        sub(&mut self.device_read_bytes, base.device_read_bytes);
        sub(&mut self.device_write_bytes, base.device_write_bytes);
        for (a, b) in self.by_command.iter_mut().zip(&base.by_command) {
            sub(&mut a.calls, b.calls);
            sub(&mut a.nanoseconds, b.nanoseconds);
            sub(&mut a.rejected, b.rejected);
            sub(&mut a.failed, b.failed);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::testing::Bench;

    #[test]
    fn a_reset_counts_from_zero_and_loses_nothing() {
        let bench = Bench::new();
        let stats = bench.context.store.stats();
        let worker = &bench.context.workers[0];
        worker.commands.add(3);
        worker.by_command[0].calls.add(2);
        assert_eq!(Totals::since_reset(&bench.context, &stats).commands, 3);
        bench.context.store.checkpoint().expect("taken");
        assert!(bench.context.store.stats().safepoint_us_max > 0);
        Totals::reset(&bench.context);
        assert_eq!(bench.context.store.stats().safepoint_us_max, 0);
        assert_eq!(Totals::since_reset(&bench.context, &stats).commands, 0);
        worker.commands.add(1);
        worker.by_command[0].calls.add(5);
        let now = Totals::since_reset(&bench.context, &stats);
        assert_eq!((now.commands, now.by_command[0].calls), (1, 5));
        assert_eq!(Totals::since_start(&bench.context, &stats).commands, 4);
    }
}
