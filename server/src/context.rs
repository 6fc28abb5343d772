//! What all parts of one server share.

use crate::checkpoints::Checkpoints;
use crate::client::Clients;
use crate::compaction::ByHand;
use crate::config::{AofSync, Config, Live, apply_limits};
use crate::counters::{Errors, WorkerCounters};
use crate::facts::Facts;
use crate::history;
use crate::journal::Journal;
use crate::lifecycle::Lifecycle;
use crate::limits::Limits;
use crate::pause::Pause;
use crate::rates::Rates;
use crate::totals::Baseline;
use crate::worker::Mailbox;
use ferrite_hybridlog::{Progress, Stats, Store};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// One server: its store, its clients, its counters. Shared by all of its threads.
pub struct Context {
    /// The data, once it is recovered.
    pub store: LateStore,
    /// How far its recovery has come.
    pub progress: Arc<Progress>,
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
    /// Whether COMPACT is at work.
    pub compaction: ByHand,
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
    /// How far back history goes, and what it takes.
    pub history: history::Told,
}

impl Context {
    /// A server of `workers` workers around `store`, with the settings' defaults.
    pub fn new(store: Store, databases: u16, workers: usize) -> Self {
        let context = Self::empty(databases, workers);
        context.open(store, None);
        context
    }
    fn empty(databases: u16, workers: usize) -> Self {
        Self {
            checkpoints: Arc::default(),
            store: LateStore::default(),
            progress: Arc::default(),
            databases,
            clients: Clients::default(),
            limits: Limits::default(),
            workers: (0..workers).map(|_| WorkerCounters::new()).collect(),
            errors: Errors::default(),
            started: Instant::now(),
            config: Live::default(),
            compaction: ByHand::default(),
            facts: Facts::new(PathBuf::new()),
            mailboxes: OnceLock::new(),
            pause: Pause::default(),
            bell: tokio::sync::Notify::new(),
            lifecycle: Lifecycle::default(),
            history: history::Told::default(),
            rates: Rates::default(),
            baseline: Baseline::default(),
        }
    }
    /// A server as `config` says, whose store is not yet open: until [`Context::open`] its clients
    /// are answered `LOADING`.
    pub fn with_config(config: Live, data_dir: PathBuf) -> Self {
        let now: Arc<Config> = config.config();
        let (databases, workers) = (now.store.databases, now.server.workers);
        let progress = Arc::clone(&now.store.progress);
        let facts = Facts::new(data_dir);
        let context = Self { config, facts, progress, ..Self::empty(databases, workers) };
        apply_limits(&now, &context.limits);
        context
    }
    /// The store is open and recovered, and `journal` follows it: from now on all commands run.
    pub fn open(&self, store: Store, journal: Option<Arc<Journal>>) {
        if let Some(journal) = &journal {
            self.checkpoints.follow(Arc::clone(journal));
        }
        self.checkpoints.open(&store, self.databases);
        // A pause that begins now finds the store open, or is found here.
        let _turn = self.pause.turn();
        if let Some(until_ms) = self.pause.until_ms() {
            store.hold_expiry(until_ms);
        }
        self.store.0.set(Opened { store, journal }).ok().expect("a server opens one store");
    }
    /// Takes writes to the append-only file, when there is one and the store is open.
    #[inline]
    pub fn journal(&self) -> Option<&Arc<Journal>> {
        self.store.0.get()?.journal.as_ref()
    }
    /// Whether the store is not yet open.
    #[inline]
    pub fn is_loading(&self) -> bool {
        self.store.get().is_none()
    }
    /// The store's numbers, all zero while it is not open.
    pub fn stats(&self) -> Stats {
        self.store.get().map(Store::stats).unwrap_or_default()
    }
    /// The longest value that fits beside a key of no bytes.
    pub fn value_limit(&self) -> usize {
        match self.store.get() {
            Some(store) => store.value_limit(0),
            None => self.config.config().store.value_limit(0),
        }
    }
}

/// A store that is opened while the server runs. What runs only when it is open (every command
/// without the flag LOADING, checkpoints, the end) takes it for granted; the others ask
/// [`LateStore::get`].
#[derive(Default)]
pub struct LateStore(OnceLock<Opened>);

/// The two come in one step: whoever finds the journal finds the store, and no write goes by the
/// journal.
struct Opened {
    store: Store,
    journal: Option<Arc<Journal>>,
}

impl LateStore {
    /// The store, if it is open.
    #[inline]
    pub fn get(&self) -> Option<&Store> {
        self.0.get().map(|opened| &opened.store)
    }
}

impl Deref for LateStore {
    type Target = Store;
    fn deref(&self) -> &Store {
        self.get().expect("commands that need the store are refused until it is open")
    }
}

impl Context {
    /// Whether replies wait until what they tell of is on the disk.
    #[inline]
    pub fn replies_wait(&self) -> bool {
        self.journal().is_some_and(|journal| journal.policy() == AofSync::Always)
    }
}

/// Unix time in milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
