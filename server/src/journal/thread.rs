//! The journal's thread: entries from the ring to the file, in groups, and syncs by policy.
//!
//! One round: take what is there, write it, sync if the policy wants it, rest. Under `always` the sync
//! is part of the round, and everything that came during one is the next group; before it is taken, the
//! workers have a moment to send what waited and to run what comes then. Otherwise a thread of
//! its own, the *disk thread*, waits for the disk: for syncs, and at a cut for the end of one part and
//! the beginning of the next. Entries go on being taken meanwhile.

use super::{Heal, Healing, Part, Shared, lock};
use crate::aof::writer::{Sync, Turn, Turned};
use crate::aof::{Effect, Entry, Files, PartWriter, Start, SwitchError, WriteError};
use crate::config::AofSync;
use crate::context::unix_ms;
use ferrite_hybridlog::{RedoEffect, RedoEntry, RedoReader, Store};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes that are written at once, at least if there are as many: under `always`, where a sync follows
/// each write, and otherwise, where they are still in the cache then.
const WRITE_AT: usize = 1 << 20;
const WRITE_SOON_AT: usize = 128 << 10;
/// Bytes that are taken for a part that has not begun; what more there is waits in the ring.
const AHEAD: usize = 4 << 20;
/// Between two rounds, unless replies wait: entries come in groups then.
const PAUSE: Duration = Duration::from_millis(2);
/// While replies wait, this long at most for those who have just got theirs, or are at it, to write what
/// they have next: it ends when a worker has nothing more to do. One sync is for all of them.
const GATHER: Duration = Duration::from_millis(1);
/// How often a thread without work looks around, and after how long without any a mark says that all
/// of the part is on disk.
const IDLE: Duration = Duration::from_secs(2);
/// The disk's room is looked at this often, and after so many bytes.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOK_AFTER: u64 = 256 << 10;
/// What is kept free, if the disk has eight times as much: the ring twice.
const RESERVE: u64 = 8 << 20;
/// Before the first checkpoint that is to heal a failure; twice as long before each next one, up to
/// [`HEAL_PAUSE_MAX`].
const HEAL_PAUSE: Duration = Duration::from_secs(1);
const HEAL_PAUSE_MAX: Duration = Duration::from_secs(30);

/// What the disk thread waits for.
enum Job<F: Files> {
    Sync(Sync<F::File>),
    Turn(Turn<F>),
}

/// How it ended, and how long it took.
enum Done<F: Files> {
    Sync(Sync<F::File>, io::Result<()>, Duration),
    Turn(Turn<F>, Turned<F::File>),
}

/// To the disk thread, and back. Jobs are done in their order.
type Disk<F> = (Sender<Job<F>>, Receiver<Done<F>>);

/// How writing goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Condition {
    Well,
    /// The disk is nearly full: writes are refused, and what was taken before is written.
    Short,
    /// A write or a sync has failed: what comes is the checkpoint's that is to heal it.
    Failed,
    /// A new part has begun at the cut of this checkpoint, which is not complete yet.
    Reborn(u64),
}

impl Condition {
    /// Whether a failure has not been healed.
    fn is_failing(self) -> bool {
        matches!(self, Self::Failed | Self::Reborn(_))
    }
}

struct Writing<F: Files> {
    reader: RedoReader,
    writer: PartWriter<F>,
    shared: Arc<Shared>,
    store: Store,
    disk: Disk<F>,
    /// The disk thread has a sync, or a turn to the next part, to do.
    syncing: bool,
    turning: bool,
    /// The checkpoint that waits for that turn.
    cutting: Option<u64>,
    condition: Condition,
    /// The end of the last entry that was taken, and when that was.
    taken: u64,
    taken_at: Instant,
    /// Entries that were taken in this round.
    entries: u64,
    /// Whether this round has told of more that is on the disk.
    told: bool,
    /// When and at which length of the part the disk was looked at.
    looked: (Instant, u64),
}

pub(super) fn start<F>(
    reader: RedoReader,
    writer: PartWriter<F>,
    shared: Arc<Shared>,
    store: Store,
) -> JoinHandle<()>
where
    F: Files + Send + 'static,
    F::File: From<File> + Send + std::marker::Sync + 'static,
{
    let (to_do, jobs) = mpsc::channel();
    let (done, results) = mpsc::channel();
    let waker = store.clone();
    spawn("aof-disk", move || {
        for job in jobs {
            if done.send(wait_for(job)).is_err() {
                return;
            }
            waker.wake_redo();
        }
    });
    let mut writing = Writing::new(reader, writer, shared, store, (to_do, results));
    spawn("aof", move || {
        writing.reader.move_here();
        while writing.round() {}
    })
}

pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(run);
    thread.expect("the system has room for the server's few threads")
}

fn wait_for<F: Files>(job: Job<F>) -> Done<F> {
    let since = Instant::now();
    match job {
        Job::Sync(sync) => {
            let result = sync.wait();
            Done::Sync(sync, result, since.elapsed())
        }
        Job::Turn(turn) => {
            let turned = turn.wait();
            Done::Turn(turn, turned)
        }
    }
}

impl<F: Files> Writing<F>
where
    F::File: From<File>,
{
    fn new(
        reader: RedoReader,
        writer: PartWriter<F>,
        shared: Arc<Shared>,
        store: Store,
        disk: Disk<F>,
    ) -> Self {
        Self {
            reader,
            writer,
            shared,
            taken: store.redo_tail(),
            taken_at: Instant::now(),
            store,
            disk,
            syncing: false,
            turning: false,
            cutting: None,
            condition: Condition::Well,
            entries: 0,
            told: false,
            looked: (Instant::now(), 0),
        }
    }

    /// False when it is to end.
    fn round(&mut self) -> bool {
        let stopping = self.shared.stopping.load(Ordering::SeqCst);
        let more = self.take();
        self.reader.release();
        self.heal();
        if let Err(e) = self.write_and_sync(stopping) {
            self.fail(&e);
        }
        self.switch();
        self.look_at_disk();
        self.tell();
        let done = stopping && self.reader.backlog().0 == 0 && !self.waits_for_disk();
        if !more && !done {
            self.rest();
        }
        !done
    }

    /// Whether the disk thread has something to do.
    fn waits_for_disk(&self) -> bool {
        self.syncing || self.turning
    }

    /// Takes entries, up to a write's worth. Whether there are more. A group is taken whole, however large it
    /// is: nothing of it can be written before its end is there.
    fn take(&mut self) -> bool {
        let at_once = self.shared.policy() == AofSync::Always;
        let enough = if at_once { WRITE_AT } else { WRITE_SOON_AT };
        loop {
            let buffered = self.writer.progress().buffered;
            if !self.writer.in_group() {
                match self.turning {
                    true if buffered >= AHEAD => return false,
                    false if buffered >= enough => return true,
                    _ => {}
                }
            }
            let Some(entry) = self.reader.next() else {
                self.shared.rewrite.at(self.reader.position(), &mut self.writer);
                return false;
            };
            self.shared.rewrite.at(entry.position - 1, &mut self.writer);
            self.taken = entry.position;
            if let RedoEffect::Mark(checkpoint) = entry.effect {
                let time_ms = entry.time_ms;
                self.cut(checkpoint, time_ms);
                continue;
            }
            if self.condition == Condition::Failed {
                // The checkpoint that heals the failure has it.
                continue;
            }
            self.entries += 1;
            if let Err(e) = self.writer.push(&entry_of(&entry)) {
                self.fail(&e);
            }
        }
    }

    /// What follows belongs to this checkpoint, which waits until a part for it has begun.
    fn cut(&mut self, checkpoint: u64, time_ms: u64) {
        if self.condition.is_failing() {
            self.condition = match self.writer.begin_anew(checkpoint, time_ms, self.taken) {
                Ok(()) => {
                    self.note_part();
                    Condition::Reborn(checkpoint)
                }
                Err(e) => {
                    tracing::warn!("no new part of the append-only file can be begun: {e}");
                    Condition::Failed
                }
            };
            return self.reader.cut_done(checkpoint);
        }
        // One at a time: a checkpoint ends before the next one begins.
        self.cutting = Some(checkpoint);
        match self.writer.begin_turn(Start::Checkpoint(checkpoint), time_ms, self.taken) {
            Ok(turn) => {
                self.turning = true;
                self.hand_over(Job::Turn(turn));
            }
            Err(e) => self.fail(&e),
        }
    }

    /// Goes on behind the base that a rewrite has made, if one is ready.
    fn switch(&mut self) {
        if !self.shared.rewrite.is_ready()
            || self.condition.is_failing()
            || self.turning
            || self.writer.in_group()
        {
            return;
        }
        let Some(draft) = self.shared.rewrite.take(self.reader.position()) else { return };
        let (shared, position) = (Arc::clone(&self.shared), self.reader.position());
        let finished = self.wait_for_disk(false).map_err(SwitchError::Part);
        let switched = finished.and_then(|()| draft.switch(&mut self.writer, &shared, position));
        match &switched {
            Ok(()) => self.note_part(),
            Err(SwitchError::Part(failed)) => self.fail(failed),
            Err(_) => {}
        }
        shared.rewrite.tell(switched.map(|()| self.writer.header().number));
    }

    /// Takes note of the part that the writer has begun.
    fn note_part(&mut self) {
        let (header, path) = (self.writer.header(), self.writer.path().to_owned());
        let mut parts = lock(&self.shared.parts);
        if let Some(before) = header.before {
            // What was begun in between was given up.
            parts.retain(|number, _| *number <= before.number);
            if let Some(part) = parts.get_mut(&before.number) {
                part.length = before.length;
            }
        }
        parts.insert(header.number, Part { start: header.start, path, length: 0 });
    }

    fn hand_over(&mut self, job: Job<F>) {
        // The receiver lives as long as this does.
        let _ = self.disk.0.send(job);
    }

    fn write_and_sync(&mut self, stopping: bool) -> Result<(), WriteError> {
        while let Ok(done) = self.disk.1.try_recv() {
            self.finish(done)?;
        }
        if self.condition == Condition::Failed {
            return Ok(());
        }
        let policy = self.shared.policy();
        let at_once = policy == AofSync::Always || stopping;
        if at_once {
            self.wait_for_disk(stopping)?;
        }
        if self.waits_for_disk() {
            return self.writer.write();
        }
        let due = self.shared.sync_due.swap(false, Ordering::SeqCst);
        let wanted = self.shared.sync_wanted.swap(false, Ordering::SeqCst);
        self.writer.write()?;
        if at_once {
            self.sync()?;
        } else if (due || wanted)
            && let Some(sync) = self.writer.begin_sync()?
        {
            self.syncing = true;
            self.hand_over(Job::Sync(sync));
        }
        // What a mark says to be on disk is never taken for the end of what a crash left.
        if stopping && self.reader.backlog().0 == 0 {
            self.writer.mark(unix_ms())?;
            self.sync()
        } else if self.taken_at.elapsed() >= IDLE && !self.condition.is_failing() {
            // A part that heals a failure holds nothing until its checkpoint is complete: else the
            // start after a crash takes it for one that something went before.
            self.writer.mark(unix_ms())
        } else {
            Ok(())
        }
    }

    /// Waits for what the disk thread does: for a sync, so that the next one is this thread's own, and,
    /// at the end, for a part that is being begun.
    fn wait_for_disk(&mut self, at_the_end: bool) -> Result<(), WriteError> {
        while self.syncing || at_the_end && self.turning {
            match self.disk.1.recv() {
                Ok(done) => self.finish(done)?,
                Err(_) => unreachable!("the disk thread ends after this one"),
            }
        }
        Ok(())
    }

    /// Syncs on this thread.
    fn sync(&mut self) -> Result<(), WriteError> {
        match self.writer.begin_sync()? {
            Some(sync) => {
                let done = wait_for::<F>(Job::Sync(sync));
                self.finish(done)
            }
            None => Ok(()),
        }
    }

    fn finish(&mut self, done: Done<F>) -> Result<(), WriteError> {
        match done {
            Done::Sync(sync, result, time) => {
                self.syncing = false;
                self.writer.finish_sync(sync, result)?;
                // The watch looks again.
                self.shared.sync_due.store(false, Ordering::SeqCst);
                self.shared.syncs.record(time.as_nanos() as u64, 1);
                let mut state = lock(&self.shared.state);
                state.syncs += 1;
                state.synced_at = Some(Instant::now());
            }
            Done::Turn(turn, turned) => {
                self.turning = false;
                self.writer.finish_turn(turn, turned)?;
                self.note_part();
                self.cut_done();
            }
        }
        Ok(())
    }

    /// Lets the checkpoint go on that waits for its part.
    fn cut_done(&mut self) {
        if let Some(checkpoint) = self.cutting.take() {
            self.reader.cut_done(checkpoint);
        }
    }

    /// Refuses writes while less is free than the ring and the buffers can hold: what is acknowledged
    /// must find room.
    fn look_at_disk(&mut self) {
        let offset = self.writer.progress().written_offset;
        let (at, then) = self.looked;
        if self.condition.is_failing()
            || (at.elapsed() < LOOK_EVERY && offset.wrapping_sub(then) < LOOK_AFTER)
        {
            return;
        }
        self.looked = (Instant::now(), offset);
        let Some(folder) = self.writer.path().parent() else { return };
        // Without an answer the write itself tells.
        let Ok(disk) = rustix::fs::statvfs(folder) else { return };
        let (free, reserve) = room(&disk);
        let now = if free < reserve { Condition::Short } else { Condition::Well };
        if now == std::mem::replace(&mut self.condition, now) {
            return;
        }
        let why = (now == Condition::Short).then(|| {
            format!(
                "the disk of the append-only file has {free} bytes left, and {reserve} are kept: free some"
            )
        });
        match &why {
            Some(why) => tracing::warn!("writes are refused for now: {why}"),
            None => tracing::info!("the disk has room again: writes are taken"),
        }
        self.reader.refuse(why);
    }

    /// Tells how far it has come.
    fn tell(&mut self) {
        if self.entries > 0 {
            self.taken_at = Instant::now();
        }
        let progress = self.writer.progress();
        let mut state = lock(&self.shared.state);
        state.entries += std::mem::take(&mut self.entries);
        state.part = progress.part;
        state.part_bytes = progress.written_offset;
        state.buffered = progress.buffered as u64;
        // Behind the last entry there may be places that were not used, which nobody shall wait for.
        let durable = match progress.synced_position >= self.taken {
            true => self.reader.position(),
            false => progress.synced_position,
        };
        // Until its checkpoint is complete, a new part after a failure holds nothing.
        self.told = !self.condition.is_failing() && durable > state.durable;
        if self.told {
            state.durable = durable;
            self.reader.durable(durable);
            if self.shared.waiting.load(Ordering::SeqCst) > 0 {
                self.shared.advanced.notify_all();
            }
            drop(state);
            if self.shared.held.load(Ordering::SeqCst) {
                self.shared.wake_watch();
            }
        }
    }

    /// Sleeps until there is something to do.
    fn rest(&mut self) {
        if self.condition.is_failing() || self.waits_for_disk() {
            return std::thread::park_timeout(PAUSE);
        }
        if self.condition == Condition::Short {
            return std::thread::park_timeout(LOOK_EVERY);
        }
        let replies_wait = self.shared.policy() == AofSync::Always;
        if replies_wait && self.told {
            // What wakes it may be something else, which the next round looks at before it sleeps.
            return self.reader.linger(GATHER);
        }
        self.reader.sleep(IDLE);
        // The first of a group: the others come.
        match replies_wait {
            true if self.reader.backlog().0 > 0 => self.reader.linger(GATHER),
            true => {}
            false => std::thread::park_timeout(PAUSE),
        }
    }

    /// Refuses writes and has a checkpoint taken whose cut begins a new part.
    fn fail(&mut self, error: &WriteError) {
        let why = format!("the append-only file cannot be written: {error}");
        let before = std::mem::replace(&mut self.condition, Condition::Failed);
        if !before.is_failing() {
            tracing::error!("{why}; writes are refused until a checkpoint begins a new part");
            lock(&self.shared.state).failure = Some(why.clone());
            self.shared.failing.store(true, Ordering::SeqCst);
            self.reader.refuse(Some(why));
            self.shared.advanced.notify_all();
        }
        // What is under way belongs to the part that is given up.
        while self.waits_for_disk() {
            match self.disk.1.recv() {
                Ok(Done::Sync(..)) => self.syncing = false,
                Ok(Done::Turn(..)) => self.turning = false,
                Err(_) => unreachable!("the disk thread ends after this one"),
            }
        }
        // Writes are refused by now.
        self.cut_done();
        if let Some(sync) = self.writer.salvage() {
            let result = sync.wait();
            self.writer.finish_salvage(&sync, result);
        }
        if !before.is_failing() {
            let mut healing = lock(&self.shared.healing);
            healing.heal = Heal::Trying;
            if !std::mem::replace(&mut healing.runs, true) {
                let (shared, store) = (Arc::clone(&self.shared), self.store.clone());
                spawn("aof-heal", move || heal(&shared, &store));
            }
        }
    }

    /// Takes note of how the checkpoint went that is to heal a failure.
    fn heal(&mut self) {
        if !self.condition.is_failing() {
            return;
        }
        let mut healing = lock(&self.shared.healing);
        match healing.heal {
            Heal::Complete(number) if self.condition == Condition::Reborn(number) => {
                healing.heal = Heal::No;
                drop(healing);
                self.writer.stands();
                // Whether the disk has room is looked at again.
                self.condition = Condition::Well;
                lock(&self.shared.state).failure = None;
                self.shared.failing.store(false, Ordering::SeqCst);
                self.reader.refuse(None);
                tracing::info!(
                    "the append-only file is written again, from checkpoint {number} on"
                );
            }
            Heal::Complete(_) | Heal::Incomplete => {
                healing.heal = Heal::Trying;
                self.condition = Condition::Failed;
            }
            Heal::No | Heal::Trying => {}
        }
        self.shared.healed.notify_all();
    }
}

/// Bytes that are free, and how many of them are kept.
pub(super) fn room(disk: &rustix::fs::StatVfs) -> (u64, u64) {
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    (bytes(disk.f_bavail), RESERVE.min(bytes(disk.f_blocks) / 8))
}

/// Takes checkpoints, ever more rarely, until one has healed the failure. There is one such thread.
fn heal(shared: &Shared, store: &Store) {
    let mut pause = HEAL_PAUSE;
    let mut healing = lock(&shared.healing);
    loop {
        let goes_on = |healing: &mut Healing| {
            healing.heal != Heal::No && !shared.stopping.load(Ordering::SeqCst)
        };
        healing = match shared.healed.wait_timeout_while(healing, pause, goes_on) {
            Ok((healing, _)) => healing,
            Err(e) => e.into_inner().0,
        };
        if !goes_on(&mut healing) {
            // Whoever fails next finds that nobody heals.
            healing.runs = false;
            return;
        }
        drop(healing);
        pause = (pause * 2).min(HEAL_PAUSE_MAX);
        let claim = shared.context.upgrade().and_then(|context| {
            let claim = context.checkpoints.claim()?;
            Some(match claim.take(store, context.databases) {
                Ok(report) => Heal::Complete(report.number),
                Err(_) => Heal::Incomplete,
            })
        });
        healing = lock(&shared.healing);
        let Some(outcome) = claim else { continue };
        healing.heal = outcome;
        store.wake_redo();
        // The journal's thread looks at it in its next round.
        while matches!(healing.heal, Heal::Complete(_) | Heal::Incomplete)
            && !shared.stopping.load(Ordering::SeqCst)
        {
            healing = match shared.healed.wait_timeout(healing, PAUSE) {
                Ok((healing, _)) => healing,
                Err(e) => e.into_inner().0,
            };
        }
    }
}

/// An entry as the file has it.
fn entry_of<'a>(entry: &RedoEntry<'a>) -> Entry<'a> {
    let effect = match entry.effect {
        RedoEffect::Put { key, value, expires_at_ms } => Effect::Put { key, value, expires_at_ms },
        RedoEffect::Delete { key } => Effect::Delete { key },
        RedoEffect::Expire { key, at_ms: Some(at_ms) } => Effect::Expire { key, at_ms },
        RedoEffect::Expire { key, at_ms: None } => Effect::Persist { key },
        RedoEffect::Flush => Effect::Flush,
        RedoEffect::FlushAll => Effect::FlushAll,
        RedoEffect::Swap { with } => Effect::Swap { with },
        RedoEffect::Begin => Effect::Begin,
        RedoEffect::End => Effect::End,
        RedoEffect::Mark(_) => unreachable!("a mark is taken before"),
    };
    let RedoEntry { position, time_ms, database, .. } = *entry;
    Entry { position, time_ms, database, effect }
}

#[cfg(test)]
mod tests;
