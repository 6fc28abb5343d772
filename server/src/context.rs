//! What all parts of one server share.

use crate::client::Clients;
use crate::counters::{Errors, WorkerCounters};
use crate::limits::Limits;
use ferrite_hybridlog::Store;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// One server: its store, its clients, its counters. Shared by all of its threads.
pub struct Context {
    /// The data.
    pub store: Store,
    /// How many logical databases there are.
    pub databases: u16,
    /// Who is connected.
    pub clients: Clients,
    /// Limits that may change while the server runs.
    pub limits: Limits,
    /// One for each worker.
    pub workers: Box<[WorkerCounters]>,
    /// Error replies by code.
    pub errors: Errors,
    /// When the server started.
    pub started: Instant,
}

impl Context {
    /// A server of `workers` workers around `store`.
    pub fn new(store: Store, databases: u16, workers: usize) -> Self {
        Self {
            store,
            databases,
            clients: Clients::default(),
            limits: Limits::default(),
            workers: (0..workers).map(|_| WorkerCounters::new()).collect(),
            errors: Errors::default(),
            started: Instant::now(),
        }
    }
}

/// Unix time in milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
