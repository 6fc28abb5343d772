//! The rewrite: the whole state as a base, behind which the append-only file goes on.
//!
//! ```text
//!   rewrite's thread                          journal's thread
//!   safepoint: A ───────────────────────────> begins a section of the live part at A
//!   walks the store, writes every key
//!   copies what was written behind A  <────── goes on as ever
//!   nearly there ───────────────────────────> copies the rest, switches to the new part
//!   drops the parts that nobody needs <──────
//! ```
//!
//! The walk is no snapshot: it finds each key as it was at some instant behind A. But the effects in the
//! append-only file are absolute, so the base and all effects from A to E, an instant behind the walk's
//! end, make exactly the state at E. Two things need care:
//!
//! * Databases change places (SWAPDB). A base has each one's keys under the number that it had at A: the
//!   walk goes by places, which the keys do not leave.
//! * A key that has expired for the walk may be there for a writer whose clock is behind, and PERSIST
//!   finds it. So the walk leaves out only what had expired before A, for everybody.
//!
//! Nobody waits for the walk. It rests as long as it works, and syncs as it goes. When anything fails,
//! the file is taken away and the live part goes on; INFO, the log and the metrics tell.

use super::{Journal, Part, Shared, lock};
use crate::aof::{
    BaseWriter, Effect, End, Files, Known, LocalFiles, PartReader, PartWriter, Start, SwitchError,
    effect::Step, part,
};
use ferrite_hybridlog::{BlockingSession, Database, Store};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes that are written at once, and that the journal's thread may have to copy.
const CHUNK: usize = 1 << 20;
/// Bytes after which the base is synced, so that the last sync is short.
const SYNC_AFTER: u64 = 8 << 20;
/// Passes over what was written meanwhile, each shorter than the one before if the disk keeps up.
const PASSES: u32 = 20;
/// How often the thread looks whether it is to end while it waits.
const LOOK: Duration = Duration::from_millis(20);
/// Nothing is to be begun, or kept.
const NONE: u64 = u64::MAX;

/// How the rewrites went so far.
#[derive(Clone, Debug, Default)]
pub struct Rewrites {
    /// When the running one began; `None` while none runs.
    pub began: Option<Instant>,
    /// Whether one is to be begun as soon as no checkpoint is being taken.
    pub scheduled: bool,
    /// How long the last one took, complete or failed.
    pub last_duration: Option<Duration>,
    /// Why the last one failed; `None` when it did not.
    pub last_error: Option<String>,
    /// When the last one ended.
    pub ended: Option<Instant>,
    /// Complete ones since the start.
    pub completed: u64,
    /// Failed ones since the start.
    pub failed: u64,
    /// Bytes of all parts when the last rewrite or checkpoint was complete, or at the start.
    pub size_then: u64,
    /// Checkpoints that were complete then.
    checkpoints_then: u64,
}

/// What the two threads share.
pub(super) struct Exchange {
    /// The position behind which entries are to be copied, until the journal's thread comes there.
    from: AtomicU64,
    /// Whether a base waits for the switch.
    is_ready: AtomicBool,
    /// Parts from this one on are being read.
    kept_from: AtomicU64,
    stage: Mutex<Stage>,
    changed: Condvar,
    rewrites: Mutex<Rewrites>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Where the two are in one rewrite.
enum Stage {
    Idle,
    /// The journal's thread has come to A.
    Begun(Begun),
    /// The base lacks little.
    Ready(Box<Draft>),
    /// The journal's thread has taken it.
    Taken,
    /// It is a part; its number.
    Switched(u64),
    Failed(String),
}

/// Where the copy begins.
#[derive(Clone, Copy)]
struct Begun {
    part: u64,
    offset: u64,
    /// The base's number.
    number: u64,
}

/// A base with all keys.
pub(super) struct Draft {
    base: BaseWriter<LocalFiles>,
    copier: Copier,
    /// What it holds was written up to this position.
    until: u64,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            from: AtomicU64::new(NONE),
            is_ready: AtomicBool::new(false),
            kept_from: AtomicU64::new(NONE),
            stage: Mutex::new(Stage::Idle),
            changed: Condvar::new(),
            rewrites: Mutex::default(),
            thread: Mutex::default(),
        }
    }
}

/// The journal's thread's side.
impl Exchange {
    /// All entries up to `position` have been taken, and none behind it: if a rewrite has asked for what comes from here on, it is told where that will be.
    #[inline]
    pub fn at<F: Files>(&self, position: u64, writer: &mut PartWriter<F>) {
        // The question was asked at a safepoint: who wrote what comes behind it has seen it, and so has
        // whoever reads that.
        if position >= self.from.load(Ordering::Relaxed) {
            self.begin(writer);
        }
    }

    #[cold]
    fn begin<F: Files>(&self, writer: &mut PartWriter<F>) {
        let mut stage = lock(&self.stage);
        if self.from.swap(NONE, Ordering::Relaxed) == NONE {
            // It was given up in this moment.
            return;
        }
        *stage = match writer.failure() {
            Some(failure) => Stage::Failed(failure.to_string()),
            None => {
                let (part, offset) = writer.begin_section();
                self.kept_from.store(part, Ordering::SeqCst);
                Stage::Begun(Begun { part, offset, number: writer.reserve_number() })
            }
        };
        drop(stage);
        self.changed.notify_all();
    }

    /// Whether a base waits for the switch. No group may be open then.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    /// The base that waits for the switch, if all that it holds was taken up to `position`.
    pub fn take(&self, position: u64) -> Option<Box<Draft>> {
        let mut stage = lock(&self.stage);
        match std::mem::replace(&mut *stage, Stage::Taken) {
            Stage::Ready(draft) if draft.until <= position => {
                self.is_ready.store(false, Ordering::Release);
                Some(draft)
            }
            other => {
                *stage = other;
                None
            }
        }
    }

    /// Tells the rewrite's thread how the switch went: the new part's number, or what went wrong. When it has
    /// given up meanwhile, nobody is told: the next rewrite is another one.
    pub fn tell(&self, switched: Result<u64, SwitchError>) {
        let mut stage = lock(&self.stage);
        if matches!(*stage, Stage::Taken) {
            *stage = switched.map_or_else(|e| Stage::Failed(e.to_string()), Stage::Switched);
        }
        drop(stage);
        self.changed.notify_all();
    }

    fn set(&self, stage: Stage) {
        *lock(&self.stage) = stage;
        self.changed.notify_all();
    }
}

impl Draft {
    /// Copies what is left, and has the live part go on behind the base. All entries up to `position`
    /// were taken.
    pub fn switch<F: Files>(
        self,
        writer: &mut PartWriter<F>,
        shared: &Shared,
        position: u64,
    ) -> Result<(), SwitchError>
    where
        F::File: From<File>,
    {
        let Self { mut base, mut copier, .. } = self;
        writer.write()?;
        let live = (writer.header().number, writer.progress().written_offset);
        copier.copy(&mut base, shared, live).map_err(|why| base.give_up(why))?;
        writer.switch_to(base, position)
    }
}

/// The rewrite's thread's side.
impl Exchange {
    /// Takes what `wanted` picks of the stage, once it is there.
    fn wait<R>(
        &self,
        shared: &Shared,
        mut wanted: impl FnMut(&Stage) -> Option<R>,
    ) -> Result<R, String> {
        let mut stage = lock(&self.stage);
        loop {
            if let Some(found) = wanted(&stage) {
                *stage = Stage::Idle;
                return Ok(found);
            }
            if let Stage::Failed(why) = &*stage {
                return Err(why.clone());
            }
            shared.may_go_on()?;
            let waited = self.changed.wait_timeout(stage, LOOK);
            stage = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whatever became of it, nothing is asked for any more.
    fn reset(&self) {
        let mut stage = lock(&self.stage);
        self.from.store(NONE, Ordering::SeqCst);
        self.is_ready.store(false, Ordering::SeqCst);
        self.kept_from.store(NONE, Ordering::SeqCst);
        *stage = Stage::Idle;
    }

    fn rewrites(&self) -> MutexGuard<'_, Rewrites> {
        lock(&self.rewrites)
    }
}

impl Shared {
    /// Whether a rewrite still makes sense.
    fn may_go_on(&self) -> Result<(), String> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err("the server is shutting down".into());
        }
        if self.failing.load(Ordering::SeqCst) {
            let failure = lock(&self.state).failure.clone();
            return Err(failure.unwrap_or_else(|| "the append-only file has failed".into()));
        }
        Ok(())
    }

    /// The first of the parts that may not be removed now, of those from `first` on.
    pub(super) fn kept_from(&self, first: u64) -> u64 {
        let rewrite = self.rewrite.kept_from.load(Ordering::SeqCst);
        first.min(rewrite).min(self.history_from.load(Ordering::SeqCst))
    }
}

impl Journal {
    /// How the rewrites went.
    pub fn rewrites(&self) -> Rewrites {
        self.shared.rewrite.rewrites().clone()
    }

    /// Has a rewrite begun as soon as no checkpoint is being taken. The control plane does it; ring its
    /// bell. False when one runs.
    pub fn schedule_rewrite(&self) -> bool {
        let mut rewrites = self.shared.rewrite.rewrites();
        let free = rewrites.began.is_none();
        rewrites.scheduled |= free;
        free
    }

    /// Begins a rewrite on a thread of its own. False when one runs already.
    pub fn begin_rewrite(&self) -> bool {
        let exchange = &self.shared.rewrite;
        let mut rewrites = exchange.rewrites();
        if rewrites.began.is_some() {
            return false;
        }
        rewrites.began = Some(Instant::now());
        rewrites.scheduled = false;
        drop(rewrites);
        let (shared, store) = (Arc::clone(&self.shared), self.store.clone());
        let run = move || {
            let done = rewrite(&shared, &store);
            shared.rewrite.reset();
            shared.note_rewrite(done);
        };
        let mut thread = lock(&exchange.thread);
        // The one before has ended.
        drop(thread.take());
        match std::thread::Builder::new().name("aof-rewrite".into()).spawn(run) {
            Ok(started) => *thread = Some(started),
            Err(e) => self.shared.note_rewrite(Err(format!("no thread: {e}"))),
        }
        true
    }

    /// Whether the append-only file has grown by so many percent, and has `min_size` bytes: then it is to
    /// be rewritten, or a checkpoint to be taken. `checkpoints` are complete since the start.
    pub fn is_rewrite_due(&self, percentage: u64, min_size: u64, checkpoints: u64) -> bool {
        let bytes = self.shared.needed_bytes();
        let mut rewrites = self.shared.rewrite.rewrites();
        if std::mem::replace(&mut rewrites.checkpoints_then, checkpoints) != checkpoints {
            rewrites.size_then = bytes;
        }
        let then = u128::from(rewrites.size_then.max(1));
        percentage > 0
            && bytes >= min_size.max(1)
            && u128::from(bytes) * 100 >= then * (100 + u128::from(percentage))
    }

    /// Whether parts stay behind a rewrite, since a checkpoint is kept that they go on from.
    pub fn is_needed_by_a_checkpoint(&self) -> bool {
        self.shared.first_named().is_some()
    }

    /// Ends the rewrite that runs, without a part.
    pub(super) fn stop_rewrite(&self) {
        let thread = lock(&self.shared.rewrite.thread).take();
        if let Some(thread) = thread {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Exchange {
    /// What the file grows from.
    pub(super) fn grows_from(&self, bytes: u64) {
        self.rewrites().size_then = bytes;
    }
}

impl Shared {
    fn note_rewrite(&self, done: Result<u64, String>) {
        let bytes = self.needed_bytes();
        let mut rewrites = self.rewrite.rewrites();
        let duration = rewrites.began.take().map(|began| began.elapsed()).unwrap_or_default();
        rewrites.last_duration = Some(duration);
        rewrites.ended = Some(Instant::now());
        let ms = duration.as_millis() as u64;
        match &done {
            Ok(length) => {
                rewrites.completed += 1;
                rewrites.size_then = bytes;
                tracing::info!(bytes = *length, ms, "the append-only file is rewritten");
            }
            Err(why) if self.stopping.load(Ordering::SeqCst) => {
                tracing::info!("the rewrite of the append-only file is given up: {why}");
            }
            Err(why) => {
                rewrites.failed += 1;
                tracing::error!(ms, "the append-only file is not rewritten, and goes on: {why}");
            }
        }
        rewrites.last_error = done.err();
    }

    /// Removes the parts before `base` that no checkpoint needs.
    fn drop_parts_before(&self, base: u64) {
        let first = self.first_named().unwrap_or(base).min(base);
        self.drop_unneeded(first);
    }

    /// The first part that a checkpoint needs.
    fn first_named(&self) -> Option<u64> {
        // Older ones may name checkpoints that were moved away before the start.
        let named = |(number, part): &(&u64, &Part)| {
            **number >= self.needed_from
                && matches!(part.start, Start::Checkpoint(_) | Start::Only(_))
        };
        lock(&self.parts).iter().find(named).map(|(number, _)| *number)
    }
}

/// Removes what a rewrite has left that a crash has ended.
pub(super) fn clear(directory: &Path, aof_file: &str) {
    let path = directory.join(part::base_file_name(aof_file));
    if fs::remove_file(&path).is_ok() {
        tracing::info!("{} is removed: a rewrite was not complete", path.display());
    }
}

/// Rewrites. The bytes of the base.
fn rewrite(shared: &Shared, store: &Store) -> Result<u64, String> {
    shared.may_go_on()?;
    let exchange = &shared.rewrite;
    let mut session = store.blocking_session();
    // Who goes inside later has this clock or a later one.
    let clock_ms = session.run(|inside, _| Ok(inside.now_ms())).map_err(|e| e.to_string())?;
    let (position, places) = store.at_safepoint(|| {
        let position = store.redo_tail();
        exchange.from.store(position, Ordering::Relaxed);
        (position, store.places())
    });
    store.wake_redo();
    let begun = exchange.wait(shared, |stage| match stage {
        Stage::Begun(begun) => Some(*begun),
        _ => None,
    })?;
    let base = BaseWriter::create(
        LocalFiles,
        &shared.directory,
        &shared.aof_file,
        begun.number,
        clock_ms,
        position,
    );
    let base = base.map_err(|e| e.to_string())?;
    let mut walk = Walk { shared, base, clock_ms, synced: 0, since: Instant::now() };
    walk.all(&mut session, &places)?;
    drop(session);
    let until = store.redo_tail();
    let Walk { mut base, .. } = walk;
    let mut copier = Copier { part: begun.part, offset: begun.offset, database: 0, unsynced: 0 };
    catch_up(shared, &mut base, &mut copier)?;
    let draft = Box::new(Draft { base, copier, until });
    exchange.set(Stage::Ready(draft));
    exchange.is_ready.store(true, Ordering::Release);
    store.wake_redo();
    let number = exchange.wait(shared, |stage| match stage {
        Stage::Switched(number) => Some(*number),
        _ => None,
    })?;
    exchange.kept_from.store(NONE, Ordering::SeqCst);
    shared.drop_parts_before(number);
    Ok(shared.base_length(number))
}

/// Copies what was written meanwhile, until what is left is little.
fn catch_up(
    shared: &Shared,
    base: &mut BaseWriter<LocalFiles>,
    copier: &mut Copier,
) -> Result<(), String> {
    for _ in 0..PASSES {
        shared.may_go_on()?;
        let live = {
            let state = lock(&shared.state);
            (state.part, state.part_bytes)
        };
        let copied = copier.copy(base, shared, live)?;
        base.sync().map_err(|e| e.to_string())?;
        if copied < CHUNK as u64 {
            break;
        }
    }
    Ok(())
}

/// The walk over all keys.
struct Walk<'a> {
    shared: &'a Shared,
    base: BaseWriter<LocalFiles>,
    /// What expired before is not there for anybody.
    clock_ms: u64,
    synced: u64,
    since: Instant,
}

impl Walk<'_> {
    /// Writes every key, place by place; `places` are those of the databases at A.
    fn all(&mut self, session: &mut BlockingSession, places: &[u8]) -> Result<(), String> {
        for (database, place) in (0u8..=u8::MAX).zip(places) {
            let mut cursor = 0;
            loop {
                cursor = self.step(session, (database, *place), places.len(), cursor)?;
                if self.base.buffered() >= CHUNK {
                    self.rest()?;
                }
                self.shared.may_go_on()?;
                if cursor == 0 {
                    break;
                }
            }
        }
        self.base.write().map_err(|e| e.to_string())
    }

    /// Writes the keys of some buckets of a place under the number that it had at A.
    fn step(
        &mut self,
        session: &mut BlockingSession,
        (database, place): (u8, u8),
        databases: usize,
        cursor: u64,
    ) -> Result<u64, String> {
        let Self { base, clock_ms, .. } = self;
        let next = session.run(|inside, op| {
            // Another database may be there by now; inside, none moves.
            let mut all = (0..databases).map(|n| Database(n as u8));
            let now = all.find(|db| inside.place(*db) == place).expect("each place has a database");
            inside.walk_with_expired(op, now, cursor, |found| {
                let expires_at_ms = found.expires_at_ms;
                if expires_at_ms.is_none_or(|at| at >= *clock_ms) {
                    let effect = Effect::Put { key: found.key, value: found.bytes, expires_at_ms };
                    base.put(*clock_ms, database, effect);
                }
            })
        });
        next.map_err(|e| e.to_string())
    }

    /// Writes what there is, and rests as long as that and the walk took: others have work, too.
    fn rest(&mut self) -> Result<(), String> {
        self.base.write().map_err(|e| e.to_string())?;
        let worked = self.since.elapsed();
        if self.base.length() - self.synced >= SYNC_AFTER {
            self.base.sync().map_err(|e| e.to_string())?;
            self.synced = self.base.length();
        }
        self.shared.has_room()?;
        let until = Instant::now() + worked;
        while Instant::now() < until {
            self.shared.may_go_on()?;
            std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
        self.since = Instant::now();
        Ok(())
    }
}

impl Shared {
    /// Whether a rewrite may take more room: what writes need is kept, and more.
    fn has_room(&self) -> Result<(), String> {
        // Without an answer the write itself tells.
        let Ok(disk) = rustix::fs::statvfs(&self.directory) else { return Ok(()) };
        let (free, reserve) = super::thread::room(&disk);
        if free >= reserve * 2 {
            return Ok(());
        }
        Err(format!("the disk has {free} bytes left, and {} are kept: free some", reserve * 2))
    }

    /// Bytes of all parts.
    pub(super) fn bytes(&self) -> u64 {
        let newest = lock(&self.state).part_bytes;
        let earlier: u64 = lock(&self.parts).values().rev().skip(1).map(|p| p.length).sum();
        earlier + newest
    }

    /// Bytes of the parts that do not stay for history alone: what a rewrite would make smaller.
    pub(super) fn needed_bytes(&self) -> u64 {
        self.bytes().saturating_sub(self.history_bytes())
    }

    fn base_length(&self, number: u64) -> u64 {
        match lock(&self.parts).get(&number).map(|part| part.start) {
            Some(Start::Base(base)) => base.length,
            _ => 0,
        }
    }
}

/// Copies what the journal's thread has written, part after part.
#[derive(Debug)]
struct Copier {
    part: u64,
    /// Where it goes on; 0 before the first block.
    offset: u64,
    /// The database that the commands so far have selected.
    database: u8,
    /// About how many bytes it has written since a sync.
    unsynced: u64,
}

impl Copier {
    /// Copies up to the end of what is written: `live` is the newest part and how much of it. The bytes
    /// that were read.
    fn copy(
        &mut self,
        base: &mut BaseWriter<LocalFiles>,
        shared: &Shared,
        live: (u64, u64),
    ) -> Result<u64, String> {
        if self.part > live.0 {
            // It is being begun yet.
            return Ok(0);
        }
        let mut bytes = 0;
        loop {
            let (path, length, next) = {
                let parts = lock(&shared.parts);
                let part = parts.get(&self.part).ok_or("a part is missing")?;
                let next = parts.range(self.part + 1..).next();
                let next = next.map(|(number, part)| (*number, part.start));
                (part.path.clone(), part.length, next)
            };
            let until = if self.part == live.0 { live.1 } else { length };
            bytes += until.saturating_sub(self.offset);
            self.copy_part(base, shared, &path, until)?;
            if self.part >= live.0 {
                base.write().map_err(|e| e.to_string())?;
                return Ok(bytes);
            }
            match next {
                Some((number, Start::Checkpoint(_) | Start::Part)) => self.part = number,
                _ => return Err("the live part was given up".into()),
            }
            (self.offset, self.database) = (0, 0);
        }
    }

    fn copy_part(
        &mut self,
        base: &mut BaseWriter<LocalFiles>,
        shared: &Shared,
        path: &PathBuf,
        until: u64,
    ) -> Result<(), String> {
        let said = |e: &dyn std::fmt::Display| e.to_string();
        let file = File::open(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let known = Known { synced: 0, until: Some(until) };
        let mut reader = PartReader::open(file, path, known).map_err(|e| said(&e))?;
        if self.offset > 0 {
            reader.seek(self.offset);
        }
        while reader.advance().map_err(|e| said(&e))? {
            let (command, time_ms) = (reader.command(), reader.time_ms());
            match command.step() {
                Step::Select(database) => self.database = database,
                Step::Swap(database, with) => base.put(time_ms, database, Effect::Swap { with }),
                Step::Effect(effect) => base.put(time_ms, self.database, effect),
            }
            if base.buffered() >= CHUNK {
                base.write().map_err(|e| said(&e))?;
                shared.has_room()?;
                self.unsynced += CHUNK as u64;
            }
            if self.unsynced >= SYNC_AFTER {
                base.sync().map_err(|e| said(&e))?;
                self.unsynced = 0;
            }
        }
        match reader.end() {
            Some(End::Whole(_)) => {
                self.offset = reader.offset();
                Ok(())
            }
            Some(End::Torn(torn)) => Err(format!("{} {}", path.display(), torn.details())),
            None => Err("a part did not come to its end".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rewrite that has given up is not told how its switch went: the next one would hear it.
    #[test]
    fn the_end_of_a_switch_is_told_to_its_own_rewrite_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let draft = || {
            let base = BaseWriter::create(LocalFiles, directory.path(), "a.aof", 2, 1, 0);
            let copier = Copier { part: 1, offset: 0, database: 0, unsynced: 0 };
            Box::new(Draft { base: base.expect("created"), copier, until: 0 })
        };
        let told = |gives_up: bool| {
            let exchange = Exchange::default();
            exchange.set(Stage::Ready(draft()));
            assert!(exchange.take(0).is_some() && exchange.take(0).is_none());
            if gives_up {
                exchange.reset();
            }
            exchange.tell(Ok(3));
            matches!(*lock(&exchange.stage), Stage::Switched(3))
        };
        assert!(told(false));
        assert!(!told(true));
    }
}
