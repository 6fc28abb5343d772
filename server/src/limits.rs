//! Limits of connections. CONFIG SET may change them while the server runs; a change holds from
//! the next round of each connection on, so `Relaxed` is enough.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// One limit.
#[derive(Debug)]
pub struct Limit(AtomicU64);

impl Limit {
    /// A limit of `n`.
    pub const fn new(n: u64) -> Self {
        Self(AtomicU64::new(n))
    }
    /// Its value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
    /// Replaces it.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }
}

/// The limits of all connections.
#[derive(Debug)]
pub struct Limits {
    /// Clients at a time.
    pub max_connections: Limit,
    /// Seconds after which a client that sends nothing is closed; 0 is never.
    pub idle_timeout_s: Limit,
    /// Seconds of silence after which the kernel probes a peer; 0 is never.
    pub tcp_keepalive_s: Limit,
    /// Bytes of the longest bulk string that is taken for one (`proto-max-bulk-len`).
    pub bulk_max: Limit,
    /// Bytes of one client's commands that are not yet run (`client-query-buffer-limit`).
    pub query_buffer_max: Limit,
    /// Bytes of one client's unsent replies from which on no more of its commands are run.
    pub output_pause: Limit,
    /// Bytes of all clients' unsent replies from which on none may exceed what is sent at once; each
    /// worker has its share.
    pub output_all: Limit,
    /// Commands of all clients that wait for others and have been looked at, so that their reads
    /// are under way; each worker has its share.
    pub looked_ahead_all: Limit,
    /// Bytes of one client's unsent replies over which it is closed; 0 is none
    /// (`client-output-buffer-limit normal`).
    pub output_max: Limit,
    /// Seconds after which a client that takes no byte of its waiting replies is closed.
    pub output_stall_s: Limit,
}

impl Limits {
    /// [`Limits::output_stall_s`] as a duration.
    pub fn output_stall(&self) -> Duration {
        Duration::from_secs(self.output_stall_s.get())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: Limit::new(10_000),
            idle_timeout_s: Limit::new(0),
            tcp_keepalive_s: Limit::new(300),
            bulk_max: Limit::new(512 << 20),
            query_buffer_max: Limit::new(1 << 30),
            output_pause: Limit::new(64 << 20),
            output_all: Limit::new(256 << 20),
            looked_ahead_all: Limit::new(4096),
            output_max: Limit::new(0),
            output_stall_s: Limit::new(300),
        }
    }
}
