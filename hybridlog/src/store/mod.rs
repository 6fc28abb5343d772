//! The store: STAND-IN. The types and signatures below are the final ones; the bodies are a plain
//! map behind a mutex until the log takes their place.

use crate::{CheckpointError, OpenError, OperationError};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A logical database's number, as SELECT names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Database(pub u8);

/// The caller's name for one command in flight; comes back from [`Session::ready`].
pub type Token = u64;

/// How a store is laid out. Sizes are in bytes.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory. `checkpoints/` is made inside it.
    pub directory: PathBuf,
    /// Memory of the mutable region.
    pub mutable_size: u64,
    /// Memory of the read-only region.
    pub readonly_size: u64,
    /// A page: the unit held in memory. A power of two from 4 KiB to 64 MiB.
    pub page_size: u64,
    /// A segment: one file. A power of two, at least a page.
    pub segment_size: u64,
    /// Memory for the checksums and other blocks read back from the device.
    pub block_cache_size: u64,
    /// The limit of the index in bytes; 0 is none.
    pub index_max_size: u64,
    /// How many logical databases there are (1 to 256).
    pub databases: u16,
    /// `auto`, `io_uring` or `posix`.
    pub io: IoChoice,
    /// Whether index images are compressed with zstd.
    pub compress_images: bool,
    /// The stem of the files' names (`ferrite`).
    pub file_stem: String,
    /// Whether the log spills to the device (`backend = "hybridlog"`); a store that does not
    /// spill answers `NotWritable` when its memory is full.
    pub spill: bool,
}

/// How the device does its I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoChoice {
    /// io_uring where the kernel grants it, else posix.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// pread and pwrite on a few threads.
    Posix,
}

impl Config {
    /// The defaults, in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            mutable_size: 256 << 20,
            readonly_size: 256 << 20,
            page_size: 4 << 20,
            segment_size: 256 << 20,
            block_cache_size: 16 << 20,
            index_max_size: 0,
            databases: 16,
            io: IoChoice::Auto,
            compress_images: true,
            file_stem: "ferrite".into(),
            spill: true,
        }
    }
}

/// What a start found.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// The number of the checkpoint that was recovered; `None` for an empty store.
    pub checkpoint: Option<u64>,
    /// Unix time of that checkpoint, in milliseconds.
    pub taken_at_ms: u64,
    /// Keys recovered, over all databases.
    pub keys: u64,
    /// How long it took.
    pub duration: Duration,
}

/// What a checkpoint did.
#[derive(Clone, Debug, Default)]
pub struct CheckpointReport {
    /// Its number.
    pub number: u64,
    /// Unix time of the cut, in milliseconds.
    pub taken_at_ms: u64,
    /// Bytes written for it: image, flushed log, side files and manifest.
    pub bytes_written: u64,
    /// How long it took.
    pub duration: Duration,
}

/// Counters and boundaries, for INFO and metrics. Addresses are in bytes.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// `io_uring`, `posix` or `simulated`.
    pub io_kind: &'static str,
    /// `mlock`, `anonymous` or `none`: the form of the read-only window.
    pub readonly_window: &'static str,
    /// The log's lowest address.
    pub log_begin: u64,
    /// Below it, records are read from the device.
    pub log_head: u64,
    /// Below it, the log is written and checksummed.
    pub log_flushed_until: u64,
    /// Below it, records never change.
    pub log_read_only: u64,
    /// Where the next record goes.
    pub log_tail: u64,
    /// Bytes of the index that are resident, over all databases.
    pub index_bytes: u64,
    /// Bytes held by frames.
    pub frame_bytes: u64,
    /// Bytes held by the block cache.
    pub block_cache_bytes: u64,
    /// The configured memory: mutable, read-only and block cache.
    pub configured_bytes: u64,
    /// Records read from the device.
    pub device_reads: u64,
    /// Bytes read from the device.
    pub device_read_bytes: u64,
    /// Bytes written to the device.
    pub device_write_bytes: u64,
    /// In-place updates.
    pub in_place_updates: u64,
    /// Copies to the tail and inserts.
    pub appends: u64,
    /// Keys removed because they had expired.
    pub expired_keys: u64,
    /// Operations parked for room in the log.
    pub parked_for_room: u64,
    /// The longest time the gate was closed, in microseconds.
    pub safepoint_us_max: u64,
    /// Why the log takes no writes, when it does not.
    pub not_writable: Option<String>,
    /// Bytes of files in `checkpoints/`.
    pub disk_bytes: u64,
}

/// A stored value as an operation sees it.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value's bytes.
    pub bytes: &'a [u8],
    /// Absolute expiry in Unix milliseconds.
    pub expires_at_ms: Option<u64>,
    /// The caller's 4 bits kept with the value (the server's string encoding hint).
    pub encoding: u8,
    /// Bytes that the record takes in the log.
    pub stored_bytes: usize,
    /// Milliseconds since the value was last written or, while in memory, read; resolution 1 s.
    pub idle_ms: u64,
}

/// What a write makes of a key. `'v` outlives the operation (it borrows the caller's arguments).
#[derive(Clone, Copy, Debug)]
pub enum Change<'v> {
    /// Leave it as it is.
    Keep,
    /// Remove it.
    Delete,
    /// Store `value`.
    Put {
        /// The new bytes.
        value: &'v [u8],
        /// Absolute expiry in Unix milliseconds.
        expires_at_ms: Option<u64>,
        /// The caller's 4 bits.
        encoding: u8,
    },
    /// Store what the closure left in the scratch buffer.
    PutScratch {
        /// Absolute expiry in Unix milliseconds.
        expires_at_ms: Option<u64>,
        /// The caller's 4 bits.
        encoding: u8,
    },
    /// Keep the bytes, replace the expiry.
    Expire(Option<u64>),
}

/// Why a call on [`Inside`] did not finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// Call again with the same arguments and the same [`Operation`] once its token is ready.
    /// Nothing was changed.
    Pending,
    /// It failed; nothing was changed.
    Failed(OperationError),
}

impl From<OperationError> for Stop {
    fn from(e: OperationError) -> Self {
        Stop::Failed(e)
    }
}

/// The state of one command across its tries: what it has fetched, what it waits for. Empty ones
/// cost nothing; one is used for one command and then [`Operation::clear`]ed or dropped.
#[derive(Debug)]
pub struct Operation {
    token: Token,
    retried: bool,
}

impl Operation {
    /// For the command that the caller calls `token`.
    pub fn new(token: Token) -> Self {
        Self { token, retried: false }
    }
    /// Forgets what was fetched, for the next command under the same token.
    pub fn clear(&mut self) {
        self.retried = false;
    }
}

#[derive(Clone)]
struct Stored {
    bytes: Vec<u8>,
    expires_at_ms: Option<u64>,
    encoding: u8,
}
type Map = BTreeMap<Vec<u8>, Stored>;

struct Shared {
    config: Config,
    maps: Mutex<Vec<Map>>,
}

/// A store: open one for a data directory. Clones share it.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

impl Store {
    /// Opens or creates the store in `config.directory` and recovers its last checkpoint.
    pub fn open(config: Config) -> Result<Self, OpenError> {
        let maps = (0..config.databases).map(|_| Map::new()).collect();
        Ok(Self(Arc::new(Shared { config, maps: Mutex::new(maps) })))
    }
    /// What the start found.
    pub fn recovery(&self) -> Recovery {
        Recovery::default()
    }
    /// A handle for one thread. `notify` is called, from any thread, when [`Session::ready`] has
    /// something; it must be cheap and must not call back into the store.
    pub fn session(&self, notify: impl Fn() + Send + Sync + 'static) -> Session {
        Session { store: self.clone(), ready: Vec::new(), notify: Box::new(notify), calls: 0 }
    }
    /// Takes a fold-over checkpoint and returns when it is durable. Blocks; call it on a thread
    /// that holds no [`Inside`]. One at a time.
    pub fn checkpoint(&self) -> Result<CheckpointReport, CheckpointError> {
        Ok(CheckpointReport::default())
    }
    /// Keys in a database (expired ones that were not yet removed included), and how many of them
    /// have an expiry.
    pub fn key_count(&self, db: Database) -> (u64, u64) {
        let m = self.maps();
        let m = &m[db.0 as usize];
        (m.len() as u64, m.values().filter(|v| v.expires_at_ms.is_some()).count() as u64)
    }
    /// Empties a database at a safepoint, in O(1). Blocks shortly; no [`Inside`] may be held.
    pub fn flush_database(&self, db: Database) -> Result<(), OperationError> {
        self.maps()[db.0 as usize].clear();
        Ok(())
    }
    /// Empties all databases at one safepoint.
    pub fn flush_all(&self) -> Result<(), OperationError> {
        self.maps().iter_mut().for_each(Map::clear);
        Ok(())
    }
    /// Swaps two databases at a safepoint.
    pub fn swap_databases(&self, a: Database, b: Database) -> Result<(), OperationError> {
        self.maps().swap(a.0 as usize, b.0 as usize);
        Ok(())
    }
    /// Counters and boundaries.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
    /// The longest value that fits beside a key of `key_length` bytes.
    pub fn value_limit(&self, key_length: usize) -> usize {
        self.0.config.page_size as usize - 32 - key_length.next_multiple_of(8)
    }
    /// Waits for background work and stops the store's threads. Sessions must be gone.
    pub fn close(self) {}
    fn maps(&self) -> MutexGuard<'_, Vec<Map>> {
        self.0.maps.lock().expect("no panic under the lock")
    }
}

/// One thread's handle on a store.
pub struct Session {
    store: Store,
    ready: Vec<Token>,
    notify: Box<dyn Fn() + Send + Sync>,
    calls: u64,
}

impl Session {
    /// Goes inside for a batch of operations: at most some 64 commands or 20 µs. Waits while a
    /// safepoint is taken. Never hold it across a wait.
    pub fn enter(&mut self) -> Inside<'_> {
        let now_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        Inside { session: self, now_ms, scratch: Vec::new() }
    }
    /// Moves the tokens of operations that can go on to the end of `into`.
    pub fn ready(&mut self, into: &mut Vec<Token>) {
        into.append(&mut self.ready);
    }
}

/// A session inside: pinned, so that addresses stay valid. Leaves on drop.
pub struct Inside<'s> {
    session: &'s mut Session,
    now_ms: u64,
    scratch: Vec<u8>,
}

fn hash(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
        >> 7
}

impl Inside<'_> {
    /// The batch's clock, in Unix milliseconds: one reading for all of its operations.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }
    fn pend(&mut self, op: &mut Operation) -> Result<(), Stop> {
        self.session.calls += 1;
        if self.session.calls.is_multiple_of(7) && !op.retried {
            op.retried = true;
            self.session.ready.push(op.token);
            (self.session.notify)();
            return Err(Stop::Pending);
        }
        Ok(())
    }
    /// Starts the device read that `read` of this key would need, and returns at once.
    pub fn prefetch(&mut self, op: &mut Operation, db: Database, key: &[u8]) {
        let _ = (op, db, key);
    }
    /// Reads one key. An expired one is absent (and is removed in passing).
    pub fn read<R>(
        &mut self,
        op: &mut Operation,
        db: Database,
        key: &[u8],
        f: impl FnOnce(Option<Value<'_>>) -> R,
    ) -> Result<R, Stop> {
        self.pend(op)?;
        let now = self.now_ms;
        let mut maps = self.session.store.maps();
        let map = &mut maps[db.0 as usize];
        expire(map, key, now);
        Ok(f(map.get(key).map(|v| view(key, v))))
    }
    /// Reads several keys of one database at one instant; `f` gets each key's position.
    pub fn read_many(
        &mut self,
        op: &mut Operation,
        db: Database,
        keys: &[&[u8]],
        mut f: impl FnMut(usize, Option<Value<'_>>),
    ) -> Result<(), Stop> {
        self.pend(op)?;
        let now = self.now_ms;
        let mut maps = self.session.store.maps();
        let map = &mut maps[db.0 as usize];
        for (i, key) in keys.iter().enumerate() {
            expire(map, key, now);
            f(i, map.get(*key).map(|v| view(key, v)));
        }
        Ok(())
    }
    /// Reads one key and writes what `f` makes of it, as one step. `f` may be called more than
    /// once and must not have effects of its own; only its last answer counts. The scratch buffer
    /// is empty at each call.
    pub fn update<'v, R>(
        &mut self,
        op: &mut Operation,
        db: Database,
        key: &[u8],
        mut f: impl FnMut(Option<Value<'_>>, &mut Vec<u8>) -> (Change<'v>, R),
    ) -> Result<R, Stop> {
        self.pend(op)?;
        let now = self.now_ms;
        let limit = self.session.store.value_limit(key.len());
        let mut maps = self.session.store.maps();
        let map = &mut maps[db.0 as usize];
        expire(map, key, now);
        self.scratch.clear();
        let (change, r) = f(map.get(key).map(|v| view(key, v)), &mut self.scratch);
        apply(map, key, change, &self.scratch, limit)?;
        Ok(r)
    }
    /// Reads and writes several keys, of any databases, as one step that nobody sees half of.
    /// `f` may be called more than once. A key may stand more than once: all places name the same
    /// value.
    pub fn update_many<'v, R>(
        &mut self,
        op: &mut Operation,
        keys: &[(Database, &[u8])],
        mut f: impl FnMut(&mut Many<'_, 'v>) -> R,
    ) -> Result<R, Stop> {
        self.pend(op)?;
        let now = self.now_ms;
        let mut maps = self.session.store.maps();
        for (db, key) in keys {
            expire(&mut maps[db.0 as usize], key, now);
        }
        let current: Vec<_> =
            keys.iter().map(|(db, key)| maps[db.0 as usize].get(*key).cloned()).collect();
        let mut many = Many {
            keys,
            values: current.iter().map(Option::as_ref).collect(),
            changes: Vec::new(),
        };
        let r = f(&mut many);
        let changes = many.changes;
        for (i, change, copy) in &changes {
            let _ = i;
            let (db, key) = keys[*i];
            let limit = self.session.store.value_limit(key.len());
            match copy {
                Some(bytes) if bytes.len() > limit => {
                    return Err(OperationError::TooLarge { needed: bytes.len(), limit }.into());
                }
                _ => apply(
                    &mut maps[db.0 as usize],
                    key,
                    *change,
                    copy.as_deref().unwrap_or_default(),
                    limit,
                )?,
            }
        }
        Ok(r)
    }
    /// Visits the keys of one step of a walk and returns the next cursor, 0 at the end. Each key
    /// that is there from the first call to the last is visited at least once, whatever is
    /// written and however the index grows meanwhile (SCAN's guarantee).
    pub fn walk(
        &mut self,
        op: &mut Operation,
        db: Database,
        cursor: u64,
        mut f: impl FnMut(Value<'_>),
    ) -> Result<u64, Stop> {
        self.pend(op)?;
        let now = self.now_ms;
        let maps = self.session.store.maps();
        let map = &maps[db.0 as usize];
        let buckets = 64u64;
        for (key, v) in map.iter().filter(|(k, _)| hash(k) % buckets == cursor % buckets) {
            if v.expires_at_ms.is_none_or(|at| at > now) {
                f(view(key, v));
            }
        }
        Ok((cursor + 1) % buckets)
    }
    /// A random key of the database, or `None` when it has none.
    pub fn random_key<R>(
        &mut self,
        op: &mut Operation,
        db: Database,
        f: impl FnOnce(Option<Value<'_>>) -> R,
    ) -> Result<R, Stop> {
        self.pend(op)?;
        let now = self.now_ms;
        let maps = self.session.store.maps();
        let map = &maps[db.0 as usize];
        let n = map.len().max(1);
        let live = map.iter().skip(now as usize % n).chain(map.iter());
        let found = live.into_iter().find(|(_, v)| v.expires_at_ms.is_none_or(|at| at > now));
        Ok(f(found.map(|(k, v)| view(k, v))))
    }
}

/// The keys of [`Inside::update_many`]: what they hold, and what becomes of them.
pub struct Many<'a, 'v> {
    keys: &'a [(Database, &'a [u8])],
    values: Vec<Option<&'a Stored>>,
    changes: Vec<(usize, Change<'v>, Option<Vec<u8>>)>,
}

impl<'v> Many<'_, 'v> {
    /// What key `i` held before the operation.
    pub fn get(&self, i: usize) -> Option<Value<'_>> {
        self.values[i].map(|v| view(self.keys[i].1, v))
    }
    /// Sets what becomes of key `i`. A later change of the same key replaces an earlier one.
    /// `Change::PutScratch` is not for here: use [`Many::put_owned`].
    pub fn set(&mut self, i: usize, change: Change<'v>) {
        self.changes.push((i, change, None));
    }
    /// Stores bytes that the closure made.
    pub fn put_owned(
        &mut self,
        i: usize,
        value: Vec<u8>,
        expires_at_ms: Option<u64>,
        encoding: u8,
    ) {
        self.changes.push((i, Change::PutScratch { expires_at_ms, encoding }, Some(value)));
    }
    /// Stores under key `to` what key `from` held, expiry and encoding included.
    pub fn copy(&mut self, from: usize, to: usize) {
        if let Some(v) = self.values[from] {
            self.put_owned(to, v.bytes.clone(), v.expires_at_ms, v.encoding);
        }
    }
}

fn view<'a>(key: &'a [u8], v: &'a Stored) -> Value<'a> {
    Value {
        key,
        bytes: &v.bytes,
        expires_at_ms: v.expires_at_ms,
        encoding: v.encoding,
        stored_bytes: 16 + key.len().next_multiple_of(8) + v.bytes.len().next_multiple_of(8),
        idle_ms: 0,
    }
}

fn expire(map: &mut Map, key: &[u8], now: u64) {
    if map.get(key).is_some_and(|v| v.expires_at_ms.is_some_and(|at| at <= now)) {
        map.remove(key);
    }
}

fn apply(
    map: &mut Map,
    key: &[u8],
    change: Change<'_>,
    scratch: &[u8],
    limit: usize,
) -> Result<(), OperationError> {
    let (bytes, expires_at_ms, encoding) = match change {
        Change::Keep => return Ok(()),
        Change::Delete => {
            map.remove(key);
            return Ok(());
        }
        Change::Expire(at) => {
            if let Some(v) = map.get_mut(key) {
                v.expires_at_ms = at;
            }
            return Ok(());
        }
        Change::Put { value, expires_at_ms, encoding } => (value, expires_at_ms, encoding),
        Change::PutScratch { expires_at_ms, encoding } => (scratch, expires_at_ms, encoding),
    };
    if bytes.len() > limit {
        return Err(OperationError::TooLarge { needed: bytes.len(), limit });
    }
    map.insert(key.to_vec(), Stored { bytes: bytes.to_vec(), expires_at_ms, encoding });
    Ok(())
}
