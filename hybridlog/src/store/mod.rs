//! The store: an index, a log, an epoch and a gate; sessions start here.
//!
//! | file | what it holds |
//! |---|---|
//! | `session`, `operation` | one thread's handle, a stay inside; one command across its tries |
//! | `find`, `read`, `read_many`, `update`, `many`, `walk`, `write` | the operations and what they share |
//! | `foresee` | hints for the processor's cache |
//! | `blocking` | a session for threads that may wait |
//! | `alone` | a transaction, or a command too large for the ring or too unlucky, at a safepoint |
//! | `tables` | logical databases; FLUSHDB and SWAPDB replace them at a safepoint |
//! | `expire` | the active expiry cycle |
//! | `compact` | what is needed of the log's old end moves to its tail |
//! | `stop_sign` | how those two rest, and are told to end |
//! | `lock` | one process a data directory |

pub(crate) mod alone;
mod blocking;
pub(crate) mod compact;
mod expire;
mod find;
mod foresee;
mod lock;
mod many;
pub(crate) mod operation;
mod read;
mod read_many;
mod session;
mod stop_sign;
pub(crate) mod tables;
mod update;
mod value;
mod walk;
mod write;

pub use alone::Alone;
pub use blocking::BlockingSession;
pub use compact::{Compacted, CompactionReport};
pub use foresee::Foreseen;
pub use many::Many;
pub use operation::{Operation, Stop, Token};
pub use session::{Inside, Session};
pub use tables::Database;
pub use value::{Change, Value};

use crate::checkpoint::hold::Hold;
use crate::checkpoint::manifest::Manifest;
use crate::checkpoint::recover::{self, Recovered, Recovery};
use crate::checkpoint::snapshot::{self, Snapshots};
use crate::checkpoint::{self, CheckpointReport, Checkpointer};
use crate::config::{Backend, Config};
use crate::device::memory::MemoryDevice;
use crate::device::{self, Device, FileId};
use crate::log::page_thread::{PageThread, PageWork};
use crate::log::{Log, Origin};
use crate::redo::{self, Redo, RedoReader};
use crate::sync::{
    Arc, Instant, Locked, Mutex, Weak,
    atomic::{AtomicU64, Ordering},
    since_1970,
    thread::{self, JoinHandle},
};
use crate::{CheckpointError, OpenError, OperationError};
use compact::{Compaction, CompactionControl};
use expire::{ExpiryControl, ExpiryCycle};
use ferrite_index::{Epoch, Gate, HashSecret, IndexLimit};
use lock::DirectoryLock;
use operation::ReadyQueue;
use std::time::Duration;
use tables::{Counts, Slot, Tables};

/// Sessions and background threads that can be inside at once: the server's limit of workers, and
/// some. Few under shuttle, since each look at them all takes as many of its steps.
const PARTICIPANTS: usize = if cfg!(shuttle) { 16 } else { 256 + 16 };

/// What all handles of a store share.
pub(crate) struct Inner {
    pub config: Config,
    pub log: Arc<Log>,
    pub pages: Arc<PageWork>,
    pub gate: Gate,
    pub secret: HashSecret,
    pub checkpointer: Mutex<Checkpointer>,
    /// The checkpoints' files of a store in memory.
    pub snapshots: Option<Snapshots>,
    /// How long files stay for a copy.
    pub hold: Hold,
    pub expiry: Arc<ExpiryControl>,
    pub compaction: CompactionControl,
    pub redo: Option<Redo>,
    smallest_bits: u32,
    index_limit: Arc<IndexLimit>,
    tables: Mutex<Arc<Tables>>,
    generation: AtomicU64,
    /// To call each session when the tables change.
    sessions: Mutex<Vec<Weak<ReadyQueue>>>,
    clock_ms: AtomicU64,
    /// Where the clock stands still, while the redo log is replayed; 0 when it runs.
    stopped_at_ms: AtomicU64,
    recovery: Recovery,
    io_fallback: Option<String>,
}

/// A store: open one for a data directory. Clones share it; the last one to go stops its threads.
#[derive(Clone)]
pub struct Store(Arc<Running>);

struct Running {
    inner: Arc<Inner>,
    page_thread: Mutex<Option<JoinHandle<()>>>,
    expiry_thread: Mutex<Option<JoinHandle<()>>>,
    compaction_thread: Mutex<Option<JoinHandle<()>>>,
    _lock: Option<DirectoryLock>,
}

/// Counters and boundaries, for INFO and metrics. Addresses are in bytes.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// `io_uring`, `posix` or `simulated`.
    pub io_kind: &'static str,
    /// Why it is not io_uring although the choice was left open.
    pub io_fallback: Option<String>,
    /// Why reads go through the page cache, when they do.
    pub buffered_reads: Option<String>,
    /// The form of the read-only window: `mlock` (mapped segment files, locked in memory),
    /// `anonymous` (pages stay in their frames) or `memory` ([`crate::Backend::Memory`]).
    pub readonly_window: &'static str,
    /// Why it is `anonymous`.
    pub readonly_window_reason: Option<String>,
    /// Bytes of the window that are mapped files, or copies of pages of earlier runs.
    pub mapped_bytes: u64,
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
    /// Entries of all databases' indexes.
    pub index_entries: u64,
    /// Bytes of the log that keys' newest records take.
    pub log_live_bytes: u64,
    /// Bytes of the log from its begin on.
    pub log_bytes: u64,
    /// Whether all of the log lies in memory ([`crate::Backend::Memory`]).
    pub is_in_memory: bool,
    /// Whether it has reached its limit ([`Store::set_memory_limit`]).
    pub memory_is_full: bool,
    /// What compaction has done since the start.
    pub compaction: CompactionReport,
    /// Why the last compaction failed, if it did: it cannot pass what it cannot read.
    pub compaction_last_error: Option<String>,
    /// Bytes that are compacted and that the next checkpoints give back.
    pub reclaimable_bytes: u64,
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
    /// Operations parked for room in the redo log's ring.
    pub parked_for_redo: u64,
    /// The longest time the gate was closed, in microseconds, since the start or since
    /// [`Store::forget_longest_safepoint`].
    pub safepoint_us_max: u64,
    /// Bytes of files that stay only for a copy that somebody may be making.
    pub held_bytes: u64,
    /// Bytes of the files that the newest manifest names, and of those that were written since: the store's
    /// share of a backup. As of the last checkpoint or release of held files of this run.
    pub checkpoint_bytes: u64,
    /// Why the log takes no writes, when it does not.
    pub not_writable: Option<String>,
}

/// Sizes that only the kernel knows; see [`Store::sizes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of the index that are resident, over all databases.
    pub index_bytes: u64,
    /// Bytes of files in `checkpoints/`.
    pub disk_bytes: u64,
}

impl Store {
    /// Opens or creates the store in `config.directory` and recovers its last checkpoint.
    ///
    /// # Errors
    /// [`OpenError`], which says what may have changed on disk.
    pub fn open(config: Config) -> Result<Self, OpenError> {
        config.parse()?;
        let lock = DirectoryLock::take(&config.directory)?;
        let opened = device::open(&config.directory, &config.file_stem, config.io)?;
        Self::open_with(config, opened.device, Some(lock), opened.fallback)
    }

    /// The same on a device of the caller's: a simulated one.
    #[cfg(any(test, feature = "testing"))]
    pub fn open_on(config: Config, device: Arc<dyn Device>) -> Result<Self, OpenError> {
        Self::open_with(config, device, None, None)
    }

    /// On the device of the files: the log's, or those of the checkpoints of a log in memory.
    fn open_with(
        mut config: Config,
        device: Arc<dyn Device>,
        lock: Option<DirectoryLock>,
        io_fallback: Option<String>,
    ) -> Result<Self, OpenError> {
        let since = Instant::now();
        if config.backend == Backend::HybridLog {
            return Self::start(config, device, None, lock, io_fallback, since);
        }
        let geometry = config.parse()?;
        // What comes into memory is compared on its way.
        config.verify_at_start = 0;
        let memory = MemoryDevice::new(config.segment_size).map_err(|source| OpenError::Io {
            action: "map memory for",
            path: config.directory.clone(),
            source,
        })?;
        let newest = snapshot::load(&*device, &memory, &geometry, &config.progress)?;
        let snapshots = Snapshots::new(device, newest);
        if let Err(e) = snapshots.discard() {
            tracing::warn!("a checkpoint that was not completed stays until the next one: {e}");
        }
        Self::start(config, Arc::new(memory), Some(snapshots), lock, io_fallback, since)
    }

    fn start(
        config: Config,
        device: Arc<dyn Device>,
        snapshots: Option<Snapshots>,
        lock: Option<DirectoryLock>,
        io_fallback: Option<String>,
        since: Instant,
    ) -> Result<Self, OpenError> {
        let geometry = config.parse()?;
        let epoch = Arc::new(Epoch::new(PARTICIPANTS));
        let manifest = recover::load_manifest(&*device, &config, &geometry)?;
        let recovered = recover::recover(&device, &config, geometry, &epoch, manifest)?;
        let Recovered { manifest, secret, tables, limit, begin, start, mut report } = recovered;
        let cache = config.block_cache_size;
        let extents = manifest.newest().map_or_else(Vec::new, |c| c.extents.clone());
        if snapshots.is_some()
            && let Some(checkpoint) = manifest.newest()
        {
            report.verified_bytes = report.log_bytes;
            // It is in the index by now. A device of memory has it, or nobody needs it.
            drop(device.remove(FileId::Index(checkpoint.image.number)));
        }
        let origin = Origin { begin, start, extents };
        let log =
            Log::new(geometry, origin, Arc::clone(&device), epoch, cache).map_err(|source| {
                OpenError::Io { action: "map memory for", path: config.directory.clone(), source }
            })?;
        log.expect_expiries(&manifest);
        log.ages.note(start, report.taken_at_ms);
        report.duration = since.elapsed();
        let index_rebuilt = report.index_rebuilt;
        let inner = Arc::new(Inner {
            smallest_bits: u32::from(manifest.index_smallest_bits),
            index_limit: limit,
            clock_ms: AtomicU64::new(report.taken_at_ms),
            checkpointer: Mutex::new(Checkpointer::new(manifest, start)),
            hold: Hold::of(config.backup_hold),
            snapshots,
            log,
            pages: Arc::default(),
            gate: Gate::new(),
            secret,
            expiry: Arc::default(),
            compaction: CompactionControl::default(),
            redo: (config.redo_ring_size > 0).then(|| Redo::new(config.redo_ring_size)),
            stopped_at_ms: AtomicU64::new(if config.redo_ring_size > 0 {
                report.taken_at_ms.max(1)
            } else {
                0
            }),
            tables: Mutex::new(Arc::new(tables)),
            generation: AtomicU64::new(0),
            sessions: Mutex::default(),
            recovery: report,
            io_fallback,
            config,
        });
        inner.compaction.checkpointed(&inner.checkpointer.locked().manifest);
        let store = Self::run(inner, lock);
        // With a redo log it is saved once that has been replayed: what the log holds beyond the
        // last checkpoint goes on from that one.
        if index_rebuilt && store.inner().redo.is_none() {
            store.save_rebuilt_index();
        }
        Ok(store)
    }

    /// Takes the checkpoint after which a start finds a good image again. Where that fails the
    /// store goes on, as after any checkpoint that fails.
    pub fn save_rebuilt_index(&self) {
        match self.checkpoint() {
            Ok(report) => {
                tracing::info!("the index was rebuilt; checkpoint {} has its image", report.number);
            }
            Err(e) => tracing::error!(
                "the index was rebuilt and not saved: {e}; until a checkpoint succeeds, the next \
                 start must rebuild it as well"
            ),
        }
    }

    fn run(inner: Arc<Inner>, lock: Option<DirectoryLock>) -> Self {
        let pages = PageThread::new(Arc::clone(&inner.log), Arc::clone(&inner.pages));
        let page_thread = spawn("ferrite-pages", move || {
            // Without it nothing is ever flushed: better a restart than a store that hangs.
            let run = std::panic::AssertUnwindSafe(|| pages.run());
            if std::panic::catch_unwind(run).is_err() {
                tracing::error!("the page thread died; restart to recover");
                std::process::abort();
            }
        });
        let cycle_of = Arc::clone(&inner);
        let expiry_thread = spawn("ferrite-expiry", move || ExpiryCycle::new(cycle_of).run());
        let compaction_of = Arc::clone(&inner);
        let compaction_thread = spawn("ferrite-compact", move || Compaction::run(&compaction_of));
        Self(Arc::new(Running {
            inner,
            compaction_thread: Mutex::new(Some(compaction_thread)),
            page_thread: Mutex::new(Some(page_thread)),
            expiry_thread: Mutex::new(Some(expiry_thread)),
            _lock: lock,
        }))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0.inner
    }

    /// What the start found.
    pub fn recovery(&self) -> Recovery {
        self.inner().recovery.clone()
    }

    /// A handle for one thread. `notify` is called, from any thread, when [`Session::ready`] has
    /// something; it must be cheap and must not call back into the store.
    ///
    /// # Panics
    /// With more than 256 sessions at once.
    pub fn session(&self, notify: impl Fn() + Send + Sync + 'static) -> Session {
        Session::new(self.inner(), Some(self.clone()), Box::new(notify))
    }

    /// Takes a fold-over checkpoint and returns when it is durable. Blocks; call it on a thread
    /// that holds no [`Inside`]. One at a time.
    ///
    /// # Errors
    /// [`CheckpointError`]; the last complete checkpoint stays what a start finds.
    pub fn checkpoint(&self) -> Result<CheckpointReport, CheckpointError> {
        checkpoint::take(self.inner())
    }

    /// How long files stay from now on that a manifest named which another one has replaced, so that a copy
    /// that began with it is whole ([`Config::backup_hold`]).
    pub fn set_backup_hold(&self, hold: Duration) {
        self.inner().hold.set(hold);
    }

    /// Whether [`Store::release_held`] would remove something. Cheap.
    pub fn hold_is_over(&self) -> bool {
        checkpoint::hold_is_over(self.inner())
    }

    /// What a log in memory may take, in bytes; 0 is no limit. It is told, not enforced: see
    /// [`Store::memory_is_full`].
    pub fn set_memory_limit(&self, bytes: u64) {
        let log = &self.inner().log;
        log.memory.set(bytes, log.bytes());
    }

    /// Whether the log has reached what [`Store::set_memory_limit`] set, so that a command that
    /// takes more should be refused. One that deletes should not: compaction gives the room back.
    #[inline]
    pub fn memory_is_full(&self) -> bool {
        self.inner().log.memory.is_full()
    }

    /// Removes what was held for copies for long enough. Returns the number of the oldest checkpoint
    /// whose files are there then; `None` when there was nothing to let go of. A checkpoint does it
    /// too. It waits for the file system only.
    pub fn release_held(&self) -> Option<u64> {
        checkpoint::release_held(self.inner())
    }

    /// [`Stats::safepoint_us_max`] counts anew.
    pub fn forget_longest_safepoint(&self) {
        self.inner().gate.forget_longest();
    }

    /// Removes what was held for the longest-running copies, however short that is: for whoever needs the
    /// space more. Returns as [`Store::release_held`] does; `None` also while a checkpoint is being taken.
    pub fn release_oldest_held(&self) -> Option<u64> {
        checkpoint::release_oldest_held(self.inner())
    }

    /// Keys in a database (expired ones that were not yet removed included), and how many of them
    /// have an expiry.
    pub fn key_count(&self, db: Database) -> (u64, u64) {
        let counts = self.inner().tables().1.slot(db).counts();
        (counts.keys, counts.expiring)
    }

    /// Empties a database at a safepoint, in O(1). Blocks shortly; no [`Inside`] may be held.
    ///
    /// # Errors
    /// [`OperationError::NotWritable`] when the log takes no writes.
    pub fn flush_database(&self, db: Database) -> Result<(), OperationError> {
        let _closed = self.inner().gate.close(&self.inner().log.epoch);
        self.inner().flush_database(db, false)
    }

    /// Empties all databases at one safepoint.
    ///
    /// # Errors
    /// [`OperationError::NotWritable`] when the log takes no writes.
    pub fn flush_all(&self) -> Result<(), OperationError> {
        let _closed = self.inner().gate.close(&self.inner().log.epoch);
        self.inner().flush_all(false)
    }

    /// Swaps two databases at a safepoint.
    ///
    /// # Errors
    /// [`OperationError::NotWritable`] when the log takes no writes.
    pub fn swap_databases(&self, a: Database, b: Database) -> Result<(), OperationError> {
        let _closed = self.inner().gate.close(&self.inner().log.epoch);
        self.inner().swap_databases(a, b, false)
    }

    /// Begins the redo log and returns its one reader: from now on each write leaves an entry, and
    /// waits where the reader is slow. `None` when [`Config::redo_ring_size`] is 0 or there is a
    /// reader already. No [`Inside`] may be held.
    pub fn redo(&self) -> Option<RedoReader> {
        let inner = self.inner();
        let redo = inner.redo.as_ref()?;
        let closed = inner.gate.close(&inner.log.epoch);
        let reader = (!redo.is_active()).then(|| RedoReader::begin(Arc::clone(inner)));
        drop(closed);
        reader
    }

    /// Makes sessions tell what replies depend on ([`Inside::depends_on`]), or no more. Blocks
    /// shortly; no [`Inside`] may be held.
    pub fn track_readers(&self, tracked: bool) {
        if let Some(redo) = &self.inner().redo {
            redo::track_readers(self.inner(), redo, tracked);
        }
    }

    /// Makes writes wait, or lets them go on; reads never wait. For a reader of the redo log whose disk
    /// does not keep up with what was promised. Whoever runs alone already is not kept waiting.
    pub fn hold_redo(&self, held: bool) {
        if let Some(redo) = &self.inner().redo {
            redo.hold(held);
        }
    }

    /// Up to where the redo log is durable, as its reader has told.
    pub fn redo_durable(&self) -> u64 {
        self.inner().redo.as_ref().map_or(0, Redo::durable)
    }

    /// The position behind the last entry of the redo log.
    pub fn redo_tail(&self) -> u64 {
        self.inner().redo.as_ref().map_or(0, Redo::tail)
    }

    /// The caller has written all that it can for now: a reader of the redo log that lingers for more
    /// ([`RedoReader::linger`]) goes on.
    pub fn redo_has_written(&self) {
        if let Some(redo) = &self.inner().redo {
            redo.has_written();
        }
    }

    /// Wakes the reader of the redo log.
    pub fn wake_redo(&self) {
        if let Some(redo) = &self.inner().redo {
            redo.wake();
        }
    }

    /// The longest value that fits beside a key of `key_length` bytes.
    pub fn value_limit(&self, key_length: usize) -> usize {
        self.inner().value_limit(key_length)
    }

    /// Holds or resumes the active expiry cycle; lazy expiry goes on.
    pub fn pause_expiry_cycle(&self, paused: bool) {
        self.inner().expiry.pause(paused);
    }

    /// Lets no key be removed for having expired, actively or by who reads it, until `until_ms`
    /// (Unix milliseconds): it is absent all the same. Set at a safepoint it holds from then on.
    pub fn hold_expiry(&self, until_ms: u64) {
        self.inner().expiry.hold(until_ms);
    }

    /// Runs `f` at a safepoint: no command is half done, and what goes inside later sees what `f`
    /// did. Blocks shortly; no [`Inside`] may be held.
    pub fn at_safepoint<R>(&self, f: impl FnOnce() -> R) -> R {
        let _closed = self.inner().gate.close(&self.inner().log.epoch);
        f()
    }

    /// The places of the databases, by their numbers. What a database holds stays in its place when
    /// two of them are swapped: they exchange the places.
    pub fn places(&self) -> Vec<u8> {
        self.inner().tables().1.map.clone()
    }

    /// Counters and boundaries. Cheap: it reads what is kept anyway.
    pub fn stats(&self) -> Stats {
        let inner = self.inner();
        let log = &inner.log;
        let b = &log.boundaries;
        let (device_reads, device_read_bytes) = log.raw.counters();
        let files = inner.snapshots.as_ref().map_or(&log.device, |snapshots| &snapshots.home);
        let is_in_memory = inner.snapshots.is_some();
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            io_kind: files.io_kind(),
            io_fallback: inner.io_fallback.clone(),
            buffered_reads: log.device.direct_reads().err(),
            readonly_window: match (&inner.snapshots, &log.unmapped) {
                (Some(_), _) => "memory",
                (None, None) => "mlock",
                (None, Some(_)) => "anonymous",
            },
            readonly_window_reason: log.unmapped.clone(),
            mapped_bytes: log.mapped_bytes(),
            log_begin: b.begin() * 8,
            log_head: b.head() * 8,
            log_flushed_until: b.flushed_until() * 8,
            log_read_only: b.read_only() * 8,
            log_tail: log.tail.load() * 8,
            index_entries: inner.tables().1.slots.iter().map(|slot| slot.index.entries()).sum(),
            log_live_bytes: inner.live_words() * 8,
            log_bytes: log.bytes(),
            is_in_memory,
            memory_is_full: log.memory.is_full(),
            compaction: inner.compaction.done(),
            compaction_last_error: inner.compaction.last_error(),
            reclaimable_bytes: inner.compaction.reclaimable_bytes(),
            frame_bytes: log.frame_bytes(),
            block_cache_bytes: log.raw.cache_bytes(),
            configured_bytes: inner.config.mutable_size
                + inner.config.readonly_size
                + inner.config.block_cache_size,
            device_reads,
            device_read_bytes,
            device_write_bytes: if is_in_memory { 0 } else { of(&log.counters.write_bytes) },
            in_place_updates: of(&log.counters.in_place),
            appends: of(&log.counters.appends),
            expired_keys: of(&log.counters.expired),
            parked_for_room: log.room.parked(),
            parked_for_redo: inner.redo.as_ref().map_or(0, Redo::parked),
            safepoint_us_max: inner.gate.longest_us(),
            held_bytes: inner.hold.bytes(),
            checkpoint_bytes: inner.hold.kept_bytes(),
            not_writable: log.health.refusal(),
        }
    }

    /// How much memory the index and how much disk the files take. Asks the kernel about every
    /// page and every file: not for a thread that serves clients.
    pub fn sizes(&self) -> Sizes {
        let inner = self.inner();
        Sizes { index_bytes: inner.index_bytes(), disk_bytes: inner.disk_bytes() }
    }

    /// Stops the store's threads once no other handle is left. What no checkpoint covers is lost.
    pub fn close(self) {}
}

/// The system's clock.
pub(crate) fn unix_ms() -> u64 {
    since_1970().as_millis() as u64
}

impl Inner {
    /// The tables and the number of their generation.
    pub fn tables(&self) -> (u64, Arc<Tables>) {
        let tables = self.tables.locked();
        (self.generation(), Arc::clone(&tables))
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Empties a database. At a safepoint only, as the next two.
    fn flush_database(&self, db: Database, admitted: bool) -> Result<(), OperationError> {
        self.replace_slots(admitted, |tables, slot| slot == tables.map[usize::from(db.0)])
    }

    fn flush_all(&self, admitted: bool) -> Result<(), OperationError> {
        self.replace_slots(admitted, |_, _| true)
    }

    fn swap_databases(
        &self,
        a: Database,
        b: Database,
        admitted: bool,
    ) -> Result<(), OperationError> {
        self.refuse_unwritable(admitted)?;
        let (_, tables) = self.tables();
        let (slot, with) = (tables.slot(a).number, tables.slot(b).number);
        redo::append_waiting(self, redo::Effect::Swap { with }, slot);
        self.change_tables(|tables| tables.map.swap(usize::from(a.0), usize::from(b.0)));
        Ok(())
    }

    fn refuse_unwritable(&self, admitted: bool) -> Result<(), OperationError> {
        let refusal = self.log.health.refusal_of(admitted);
        refusal.map_or(Ok(()), |why| Err(OperationError::NotWritable(why)))
    }

    /// Puts new slots in the place of those that hold something. A new index is an address range
    /// without memory, so making it here costs a few system calls.
    fn replace_slots(
        &self,
        admitted: bool,
        flushed: impl Fn(&Tables, u8) -> bool,
    ) -> Result<(), OperationError> {
        self.refuse_unwritable(admitted)?;
        let (_, tables) = self.tables();
        let holds = |slot: &Slot| slot.counts().keys > 0 || slot.index.entries() > 0;
        let wanted = |slot: &Slot| holds(slot) && flushed(&tables, slot.number);
        let mut fresh = Vec::new();
        for (place, _) in tables.slots.iter().enumerate().filter(|(_, slot)| wanted(slot)) {
            let index = recover::new_index(self.smallest_bits, &self.log.epoch, &self.index_limit);
            let index = index.map_err(|e| OperationError::NotWritable(e.to_string()))?;
            fresh.push((place, index));
        }
        // What is empty already needs no entry.
        let slots: Vec<u8> = fresh.iter().map(|(place, _)| tables.slots[*place].number).collect();
        match slots[..] {
            [] => {}
            [slot] => drop(redo::append_waiting(self, redo::Effect::Flush, slot)),
            [slot, ..] => drop(redo::append_waiting(self, redo::Effect::FlushAll, slot)),
        }
        let floor = self.log.tail.load();
        self.change_tables(|tables| {
            for (place, index) in fresh {
                let number = tables.slots[place].number;
                tables.slots[place] = Arc::new(Slot::new(number, index, floor, Counts::default()));
            }
        });
        Ok(())
    }

    /// Replaces the tables. At a safepoint only.
    fn change_tables(&self, change: impl FnOnce(&mut Tables)) {
        let mut tables = self.tables.locked();
        let mut next = Tables::clone(&tables);
        change(&mut next);
        *tables = Arc::new(next);
        self.generation.fetch_add(1, Ordering::Release);
        // Each session holds the old ones until it looks.
        self.notify_sessions();
    }

    /// Calls all sessions, whose replies may wait for something.
    pub fn notify_sessions(&self) {
        self.sessions.locked().iter().filter_map(Weak::upgrade).for_each(|ready| ready.notify());
    }

    /// What a new session is called back through.
    fn ready_queue(&self, notify: Box<dyn Fn() + Send + Sync>) -> Arc<ReadyQueue> {
        let ready = Arc::new(ReadyQueue::new(notify));
        let mut sessions = self.sessions.locked();
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(&ready));
        ready
    }

    /// Lets the clock run, if it stands.
    pub fn run_clock(&self) {
        self.stopped_at_ms.store(0, Ordering::Relaxed);
    }

    /// Unix milliseconds; never goes back, over restarts neither.
    pub fn now_ms(&self) -> u64 {
        let stopped = self.stopped_at_ms.load(Ordering::Relaxed);
        if stopped != 0 {
            return stopped;
        }
        let now = unix_ms();
        let last = self.clock_ms.load(Ordering::Relaxed);
        if now > last {
            self.clock_ms.fetch_max(now, Ordering::Relaxed);
            return now;
        }
        last
    }

    /// Words of the log that keys' newest records take.
    pub fn live_words(&self) -> u64 {
        self.tables().1.slots.iter().map(|slot| slot.counts().live).sum()
    }

    pub fn index_bytes(&self) -> u64 {
        self.tables().1.slots.iter().map(|slot| slot.index.resident_bytes()).sum()
    }

    pub fn value_limit(&self, key_length: usize) -> usize {
        self.config.value_limit(key_length)
    }

    fn disk_bytes(&self) -> u64 {
        if let Some(snapshots) = &self.snapshots {
            return snapshots.bytes();
        }
        let device = &self.log.device;
        let files = device.list().unwrap_or_default();
        files.into_iter().filter_map(|file| device.size(file).ok()).sum()
    }
}

impl Log {
    /// After a restart nobody knows when the records on the device expire: look once.
    fn expect_expiries(&self, manifest: &Manifest) {
        let Some(checkpoint) = manifest.newest() else { return };
        if checkpoint.slots.iter().all(|slot| slot.expiring == 0) {
            return;
        }
        let mut cold = self.cold_expiry.locked();
        for &(from, to) in &checkpoint.extents {
            let first = self.geometry.page_start(from.max(checkpoint.begin));
            cold.extend((first..to).step_by(self.geometry.page_words as usize).map(|p| (p, 0)));
        }
    }
}

pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .expect("the system has room for the store's few threads")
}

impl Drop for Running {
    fn drop(&mut self) {
        self.inner.expiry.stop.raise();
        self.inner.compaction.stop.raise();
        for thread in [&mut self.expiry_thread, &mut self.compaction_thread] {
            let thread = thread.get_mut().expect("nothing panics under this lock").take();
            if let Some(thread) = thread.filter(|t| t.thread().id() != thread::current().id()) {
                drop(thread.join());
            }
        }
        self.inner.pages.stop();
        self.inner.log.wake();
        let pages = self.page_thread.get_mut().expect("nothing panics under this lock").take();
        if let Some(thread) = pages {
            drop(thread.join());
        }
    }
}
