//! What the server counts: numbers that INFO and the metrics read.
//!
//! A worker writes its own counters alone, so that counting costs a plain store; readers add the
//! workers up. No counter orders anything: all accesses are `Relaxed`.

use crate::commands::table;
use crate::error::ErrorReply;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
    /// Bytes now held by query buffers.
    pub query_buffer_bytes: Counter,
    /// Bytes now held by output buffers.
    pub output_buffer_bytes: Counter,
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
            query_buffer_bytes: Counter::default(),
            output_buffer_bytes: Counter::default(),
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

impl Errors {
    /// Redis keeps at most so many codes.
    const CODES_MAX: usize = 128;

    /// Counts one.
    pub fn count(&self, error: &ErrorReply) {
        let mut counts = self.0.lock().expect("nothing panics while it counts");
        if let Some(n) = counts.get_mut(error.code()) {
            *n += 1;
        } else if counts.len() < Self::CODES_MAX {
            counts.insert(error.code().to_vec(), 1);
        }
    }
    /// Codes and how often each was sent.
    pub fn list(&self) -> Vec<(Vec<u8>, u64)> {
        let counts = self.0.lock().expect("nothing panics while it counts");
        counts.iter().map(|(code, n)| (code.clone(), *n)).collect()
    }
    /// CONFIG RESETSTAT.
    pub fn reset(&self) {
        self.0.lock().expect("nothing panics while it counts").clear();
    }
}
