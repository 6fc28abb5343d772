//! What all parts of one server share.

use crate::checkpoints::Checkpoints;
use crate::client::Clients;
use crate::config::{Config, Live, apply_limits};
use crate::counters::{Errors, WorkerCounters};
use crate::facts::Facts;
use crate::lifecycle::Lifecycle;
use crate::limits::Limits;
use crate::pause::Pause;
use crate::rates::Rates;
use crate::totals::Baseline;
use crate::worker::Mailbox;
use ferrite_hybridlog::Store;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
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
    /// The settings. What connections read often is copied into `limits`.
    pub config: Live,
    /// When checkpoints are taken, and how the last one went.
    pub checkpoints: Arc<Checkpoints>,
    /// What the start decided and found.
    pub facts: Facts,
    /// How fast things go.
    pub rates: Rates,
    /// The counters at the last CONFIG RESETSTAT.
    pub baseline: Baseline,
    /// The way to each worker. Set when the server starts.
    pub mailboxes: OnceLock<Vec<Arc<Mailbox>>>,
    /// CLIENT PAUSE.
    pub pause: Pause,
    /// Rung for the control plane, which looks at once instead of at its next second.
    pub bell: tokio::sync::Notify,
    /// How the server comes to its end.
    pub lifecycle: Lifecycle,
}

impl Context {
    /// A server of `workers` workers around `store`, with the settings' defaults.
    pub fn new(store: Store, databases: u16, workers: usize) -> Self {
        let recovery = store.recovery();
        Self {
            checkpoints: Arc::new(Checkpoints::new(&store, databases, &recovery)),
            store,
            databases,
            clients: Clients::default(),
            limits: Limits::default(),
            workers: (0..workers).map(|_| WorkerCounters::new()).collect(),
            errors: Errors::default(),
            started: Instant::now(),
            config: Live::default(),
            facts: Facts::new(PathBuf::new()),
            mailboxes: OnceLock::new(),
            pause: Pause::default(),
            bell: tokio::sync::Notify::new(),
            lifecycle: Lifecycle::default(),
            rates: Rates::default(),
            baseline: Baseline::default(),
        }
    }
    /// A server around `store` as `config` says; `store` was opened with it.
    pub fn with_config(store: Store, config: Live, data_dir: PathBuf) -> Self {
        let now: Arc<Config> = config.config();
        let (databases, workers) = (now.store.databases, now.server.workers);
        let context =
            Self { config, facts: Facts::new(data_dir), ..Self::new(store, databases, workers) };
        apply_limits(&now, &context.limits);
        context
    }
}

/// Unix time in milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
