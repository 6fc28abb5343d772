//! What the server counts: numbers that INFO and the metrics read.
//!
//! A worker writes its own counters alone, so that counting costs a plain store; readers add the
//! workers up. No counter orders anything: all accesses are `Relaxed`.

use crate::commands::table;
use crate::error::ErrorReply;
use crate::latency::Latency;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

/// A number that one thread writes and all may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owner may call it.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }
    /// Replaces the number.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }
    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What one worker counts. On its own cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Commands run.
    pub commands: Counter,
    /// Connections accepted.
    pub connections: Counter,
    /// Connections refused for `max_connections`.
    pub refused_connections: Counter,
    /// Bytes received.
    pub input_bytes: Counter,
    /// Bytes sent.
    pub output_bytes: Counter,
    /// Error replies.
    pub errors: Counter,
    /// Reads and writes that had to wait for the device or for room, counted once a try.
    pub pending: Counter,
    /// Keys looked up by reading commands and found; the handlers count.
    pub keyspace_hits: Counter,
    /// Keys looked up by reading commands and not found.
    pub keyspace_misses: Counter,
    /// Clients closed over a limit of the query buffer.
    pub query_limit_closed: Counter,
    /// Clients closed over a limit of the output buffer.
    pub output_limit_closed: Counter,
    /// Clients closed since they were silent for too long.
    pub idle_closed: Counter,
    /// Clients closed since they took none of their replies for too long.
    pub stall_closed: Counter,
    /// Bytes now held by query buffers.
    pub query_buffer_bytes: Counter,
    /// Bytes now held by output buffers.
    pub output_buffer_bytes: Counter,
    /// Commands that wait for others and have been looked at, as of each connection's last turn.
    pub looked_ahead: Counter,
    /// The last [`Message::Report`](crate::worker::Message::Report).
    pub heard: Counter,
    /// The last one at which all that this worker had read was answered.
    pub quiet: Counter,
    /// By the number of a command's entry.
    pub by_command: Box<[CommandCounters]>,
}

/// What is counted for each command.
#[derive(Debug, Default)]
pub struct CommandCounters {
    /// Runs that ended.
    pub calls: Counter,
    /// Nanoseconds that they took. The clock is read once for a run of equal commands.
    pub nanoseconds: Counter,
    /// The same, as a histogram.
    pub latency: Latency,
    /// Refused before they ran (arity, memory).
    pub rejected: Counter,
    /// Ended with an error.
    pub failed: Counter,
}

impl WorkerCounters {
    /// All zero.
    pub fn new() -> Self {
        Self {
            commands: Counter::default(),
            connections: Counter::default(),
            refused_connections: Counter::default(),
            input_bytes: Counter::default(),
            output_bytes: Counter::default(),
            errors: Counter::default(),
            pending: Counter::default(),
            keyspace_hits: Counter::default(),
            keyspace_misses: Counter::default(),
            query_limit_closed: Counter::default(),
            output_limit_closed: Counter::default(),
            idle_closed: Counter::default(),
            stall_closed: Counter::default(),
            query_buffer_bytes: Counter::default(),
            output_buffer_bytes: Counter::default(),
            looked_ahead: Counter::default(),
            heard: Counter::default(),
            quiet: Counter::default(),
            by_command: table().entries().iter().map(|_| CommandCounters::default()).collect(),
        }
    }
}

impl Default for WorkerCounters {
    fn default() -> Self {
        Self::new()
    }
}

/// Error replies by their code, for INFO errorstats.
#[derive(Debug, Default)]
pub struct Errors(Mutex<BTreeMap<Vec<u8>, u64>>);

/// Error replies that one worker has not yet added to [`Errors`].
#[derive(Debug, Default)]
pub struct ErrorTally(BTreeMap<Vec<u8>, u64>);

impl ErrorTally {
    /// Counts one. Takes no lock, so it may be called inside.
    pub fn count(&mut self, error: &ErrorReply) {
        match self.0.get_mut(error.code()) {
            Some(n) => *n += 1,
            None => drop(self.0.insert(error.code().to_vec(), 1)),
        }
    }
}

impl Errors {
    /// Redis keeps at most so many codes.
    const CODES_MAX: usize = 128;

    /// Adds what a worker has counted.
    pub fn add(&self, tally: &mut ErrorTally) {
        if tally.0.is_empty() {
            return;
        }
        let mut counts = self.lock();
        for (code, n) in std::mem::take(&mut tally.0) {
            let room = counts.len() < Self::CODES_MAX;
            match counts.get_mut(&code) {
                Some(sum) => *sum += n,
                None if room => drop(counts.insert(code, n)),
                None => {}
            }
        }
    }
    /// Codes and how often each was sent.
    pub fn list(&self) -> Vec<(Vec<u8>, u64)> {
        self.lock().iter().map(|(code, n)| (code.clone(), *n)).collect()
    }
    /// CONFIG RESETSTAT.
    pub fn reset(&self) {
        self.lock().clear();
    }
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, u64>> {
        self.0.lock().expect("nothing panics while it counts")
    }
}
