//! The journal's thread: entries from the ring to the file, in groups, and syncs by policy.
//!
//! One round: take what is there, write it, sync if the policy wants it, rest. Under `always` the sync
//! is part of the round, so everything that came during one is the next group. Otherwise a thread of
//! its own waits for the disk, and entries go on being taken meanwhile.

use super::{Heal, Part, Shared, lock};
use crate::aof::{Effect, Entry, LocalFiles, PartWriter, Start, SwitchError, WriteError};
use crate::config::AofSync;
use ferrite_hybridlog::{RedoEffect, RedoEntry, RedoReader, Store};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes that are written at once.
const WRITE_AT: usize = 1 << 20;
/// Between two rounds, unless replies wait: entries come in groups then.
const PAUSE: Duration = Duration::from_millis(5);
/// The age of the oldest entry at which a sync begins under `everysec`, so that it is complete in time.
const SYNC_AT: Duration = Duration::from_millis(500);
/// The age at which writes wait for it.
const HOLD_AT: Duration = Duration::from_secs(1);
/// How often a thread without work looks around.
const IDLE: Duration = Duration::from_secs(10);
/// The disk's room is looked at this often, and after so many bytes.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOK_AFTER: u64 = 256 << 10;
/// What is kept free, if the disk has eight times as much: the ring twice.
const RESERVE: u64 = 8 << 20;
/// Between two checkpoints that are to heal a failure.
const HEAL_PAUSE: Duration = Duration::from_secs(1);

type Sync = crate::aof::writer::Sync<File>;
/// A sync, how it ended, and how long it took.
type Synced = (Sync, io::Result<()>, Duration);

struct Writing {
    reader: RedoReader,
    writer: PartWriter<LocalFiles>,
    shared: Arc<Shared>,
    store: Store,
    /// To the thread that waits for the disk, and back.
    to_sync: Sender<Sync>,
    synced: Receiver<Synced>,
    /// A sync is under way.
    syncing: bool,
    /// When the oldest entry was taken that is not on the disk, and the oldest that the sync under way
    /// does not cover.
    oldest: Option<Instant>,
    oldest_after: Option<Instant>,
    /// Since when writes wait.
    held: Option<Instant>,
    /// The end of the last entry that was taken.
    taken: u64,
    /// Entries that were taken in this round.
    entries: u64,
    failed: bool,
    /// The disk is nearly full: writes are refused.
    short: bool,
    /// When and at which length of the part the disk was looked at.
    looked: (Instant, u64),
    /// The checkpoint at whose cut a new part began after a failure; it is not complete yet.
    reborn: Option<u64>,
}

pub(super) fn start(
    reader: RedoReader,
    writer: PartWriter<LocalFiles>,
    shared: Arc<Shared>,
    store: Store,
) -> JoinHandle<()> {
    let (to_sync, to_be_synced) = mpsc::channel::<Sync>();
    let (done, synced) = mpsc::channel();
    let waker = store.clone();
    spawn("aof-sync", move || {
        for sync in to_be_synced {
            let since = Instant::now();
            let result = sync.wait();
            if done.send((sync, result, since.elapsed())).is_err() {
                return;
            }
            waker.wake_redo();
        }
    });
    let mut writing = Writing::new(reader, writer, shared, store, (to_sync, synced));
    spawn("aof", move || {
        writing.reader.move_here();
        while writing.round() {}
    })
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(run);
    thread.expect("the system has room for the server's few threads")
}

impl Writing {
    fn new(
        reader: RedoReader,
        writer: PartWriter<LocalFiles>,
        shared: Arc<Shared>,
        store: Store,
        (to_sync, synced): (Sender<Sync>, Receiver<Synced>),
    ) -> Self {
        Self {
            reader,
            writer,
            shared,
            taken: store.redo_tail(),
            store,
            to_sync,
            synced,
            syncing: false,
            oldest: None,
            oldest_after: None,
            held: None,
            entries: 0,
            failed: false,
            short: false,
            looked: (Instant::now(), 0),
            reborn: None,
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
        self.hold();
        self.tell();
        let done = stopping && self.reader.backlog().0 == 0 && !self.syncing;
        if !more && !done {
            self.rest();
        }
        !done
    }

    /// Takes entries, up to a write's worth. Whether there are more.
    fn take(&mut self) -> bool {
        let now = Instant::now();
        loop {
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
            if self.failed && self.reborn.is_none() {
                // The checkpoint that heals the failure has it.
                continue;
            }
            self.entries += 1;
            let pushed = self.writer.push(&entry_of(&entry));
            match self.syncing {
                true => drop(self.oldest_after.get_or_insert(now)),
                false => drop(self.oldest.get_or_insert(now)),
            }
            if let Err(e) = pushed {
                self.fail(&e);
            } else if self.writer.progress().buffered >= WRITE_AT {
                return true;
            }
        }
    }

    /// What follows belongs to this checkpoint.
    fn cut(&mut self, checkpoint: u64, time_ms: u64) {
        let began = if self.failed {
            match self.writer.begin_anew(checkpoint, time_ms, self.taken) {
                Ok(()) => {
                    self.reborn = Some(checkpoint);
                    Ok(())
                }
                Err(failure) => Err(failure.to_string()),
            }
        } else {
            let finished = self.finish_sync();
            let start = Start::Checkpoint(checkpoint);
            let begun = finished.and_then(|()| self.writer.next_part(start, time_ms, self.taken));
            begun.map_err(|e| e.to_string())
        };
        self.reader.cut_done(checkpoint);
        match began {
            Ok(()) => self.note_part(),
            Err(why) => {
                self.reborn = None;
                self.fail(&why);
            }
        }
    }

    /// Goes on behind the base that a rewrite has made, if one is ready.
    fn switch(&mut self) {
        if !self.shared.rewrite.is_ready() || self.failed || self.writer.in_group() {
            return;
        }
        let Some(draft) = self.shared.rewrite.take(self.reader.position()) else { return };
        let (shared, position) = (Arc::clone(&self.shared), self.reader.position());
        let finished = self.finish_sync().map_err(SwitchError::Part);
        let switched =
            finished.and_then(|()| draft.switch(&mut self.writer, &shared.parts, position));
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
        if let Some(before) = header.before
            && let Some(part) = parts.get_mut(&before.number)
        {
            part.length = before.length;
        }
        let part = Part { start: header.start, path, length: 0 };
        parts.insert(header.number, part);
        drop(parts);
        self.oldest = None;
        self.oldest_after = None;
    }

    fn write_and_sync(&mut self, stopping: bool) -> Result<(), WriteError> {
        if self.failed && self.reborn.is_none() {
            return Ok(());
        }
        while let Ok(done) = self.synced.try_recv() {
            self.end_sync(done)?;
        }
        self.writer.write()?;
        let wanted = self.shared.sync_wanted.swap(false, Ordering::SeqCst);
        let policy = self.shared.policy();
        if policy == AofSync::Always || wanted || stopping {
            self.finish_sync()?;
            let since = Instant::now();
            if let Some(sync) = self.writer.begin_sync()? {
                let result = sync.wait();
                self.syncing = true;
                self.end_sync((sync, result, since.elapsed()))?;
            }
        } else if policy == AofSync::Everysec
            && !self.syncing
            && self.oldest.is_some_and(|oldest| oldest.elapsed() >= SYNC_AT)
        {
            match self.writer.begin_sync()? {
                Some(sync) => {
                    self.syncing = true;
                    // The receiver lives as long as this does.
                    let _ = self.to_sync.send(sync);
                }
                None if self.writer.in_group() => {}
                None => self.oldest = None,
            }
        }
        if policy == AofSync::No {
            self.oldest = None;
        }
        Ok(())
    }

    /// Waits for the sync that is under way.
    fn finish_sync(&mut self) -> Result<(), WriteError> {
        if self.syncing
            && let Ok(done) = self.synced.recv()
        {
            self.end_sync(done)?;
        }
        Ok(())
    }

    fn end_sync(&mut self, (sync, result, time): Synced) -> Result<(), WriteError> {
        self.syncing = false;
        self.oldest = self.oldest_after.take();
        self.writer.finish_sync(sync, result)?;
        self.shared.syncs.record(time.as_nanos() as u64, 1);
        let mut state = lock(&self.shared.state);
        state.syncs += 1;
        state.synced_at = Some(Instant::now());
        Ok(())
    }

    /// Under `everysec` writes wait while the oldest entry has not come to the disk in time.
    fn hold(&mut self) {
        let late = self.shared.policy() == AofSync::Everysec
            && !self.failed
            // A transaction is written when it has ended, and its end must not wait for that.
            && !self.writer.in_group()
            && self.oldest.is_some_and(|oldest| oldest.elapsed() >= HOLD_AT);
        match (late, self.held) {
            (true, None) => {
                self.held = Some(Instant::now());
                self.store.hold_redo(true);
                tracing::warn!(
                    "the disk takes more than a second to sync the append-only file: writes wait for it"
                );
            }
            (false, Some(since)) => {
                self.held = None;
                self.store.hold_redo(false);
                let mut state = lock(&self.shared.state);
                state.delayed += 1;
                state.delayed_time += since.elapsed();
                drop(state);
                tracing::info!(
                    ms = since.elapsed().as_millis() as u64,
                    "the append-only file is synced: writes go on"
                );
            }
            _ => {}
        }
    }

    /// Refuses writes while less is free than the ring and the buffers can hold: what is acknowledged
    /// must find room.
    fn look_at_disk(&mut self) {
        let offset = self.writer.progress().written_offset;
        let (at, then) = self.looked;
        if self.failed || (at.elapsed() < LOOK_EVERY && offset.wrapping_sub(then) < LOOK_AFTER) {
            return;
        }
        self.looked = (Instant::now(), offset);
        let Some(folder) = self.writer.path().parent() else { return };
        // Without an answer the write itself tells.
        let Ok(disk) = rustix::fs::statvfs(folder) else { return };
        let (free, reserve) = room(&disk);
        let short = free < reserve;
        if short == self.short {
            return;
        }
        self.short = short;
        let why = short.then(|| {
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
        if !self.failed && durable > state.durable {
            state.durable = durable;
            self.reader.durable(durable);
            if self.shared.waiting.load(Ordering::SeqCst) > 0 {
                self.shared.advanced.notify_all();
            }
        }
    }

    /// Sleeps until there is something to do.
    fn rest(&mut self) {
        if self.short {
            return std::thread::park_timeout(LOOK_EVERY);
        }
        if self.shared.policy() == AofSync::Always && !self.failed {
            return self.reader.sleep(IDLE);
        }
        if self.syncing || self.oldest.is_some() || self.failed {
            // It is looked at soon in any case.
            std::thread::park_timeout(PAUSE);
        } else {
            self.reader.sleep(IDLE);
            // The first of a group: the others come.
            std::thread::park_timeout(PAUSE);
        }
    }

    /// Refuses writes and has a checkpoint taken whose cut begins a new part.
    fn fail(&mut self, why: &impl std::fmt::Display) {
        let why = format!("the append-only file cannot be written: {why}");
        self.reborn = None;
        if std::mem::replace(&mut self.failed, true) {
            return tracing::debug!("{why}");
        }
        tracing::error!("{why}; writes are refused until a checkpoint begins a new part");
        lock(&self.shared.state).failure = Some(why.clone());
        self.shared.failing.store(true, Ordering::SeqCst);
        self.reader.refuse(Some(why));
        self.shared.advanced.notify_all();
        // What is under way belongs to the part that is given up.
        if self.syncing && self.synced.recv().is_ok() {
            self.syncing = false;
        }
        (self.oldest, self.oldest_after) = (None, None);
        *lock(&self.shared.heal) = Heal::Trying;
        let (shared, store) = (Arc::clone(&self.shared), self.store.clone());
        spawn("aof-heal", move || heal(&shared, &store));
    }

    /// Takes note of how the checkpoint went that is to heal a failure.
    fn heal(&mut self) {
        if !self.failed {
            return;
        }
        let mut heal = lock(&self.shared.heal);
        match *heal {
            Heal::Complete(number) if self.reborn == Some(number) => {
                *heal = Heal::No;
                drop(heal);
                self.failed = false;
                // It is looked at again.
                self.short = false;
                self.reborn = None;
                lock(&self.shared.state).failure = None;
                self.shared.failing.store(false, Ordering::SeqCst);
                self.reader.refuse(None);
                tracing::info!(
                    "the append-only file is written again, from checkpoint {number} on"
                );
            }
            Heal::Complete(_) | Heal::Incomplete => {
                *heal = Heal::Trying;
                self.reborn = None;
            }
            Heal::No | Heal::Trying => {}
        }
    }
}

/// Bytes that are free, and how many of them are kept.
pub(super) fn room(disk: &rustix::fs::StatVfs) -> (u64, u64) {
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    (bytes(disk.f_bavail), RESERVE.min(bytes(disk.f_blocks) / 8))
}

/// Takes checkpoints until one has healed the failure.
fn heal(shared: &Shared, store: &Store) {
    loop {
        std::thread::sleep(HEAL_PAUSE);
        if shared.stopping.load(Ordering::SeqCst) || *lock(&shared.heal) == Heal::No {
            return;
        }
        let Some(context) = shared.context.upgrade() else { return };
        let Some(claim) = context.checkpoints.claim() else { continue };
        let outcome = match claim.take(store, context.databases) {
            Ok(report) => Heal::Complete(report.number),
            Err(_) => Heal::Incomplete,
        };
        *lock(&shared.heal) = outcome;
        store.wake_redo();
        // The journal's thread looks at it in its next round.
        while !matches!(*lock(&shared.heal), Heal::No | Heal::Trying) {
            if shared.stopping.load(Ordering::SeqCst) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
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
mod tests {
    use super::*;
    use crate::aof::Header;
    use ferrite_hybridlog::{Change, Config, Database, Operation};
    use std::collections::BTreeMap;
    use std::sync::Weak;

    /// The end of a transaction waits for room like any entry: held back because the transaction is
    /// not on the disk, which it is not before its end, both would wait for ever.
    #[test]
    fn writes_are_not_held_for_a_transaction_that_has_not_ended() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = Config::new(directory.path());
        config.redo_ring_size = 1 << 20;
        let store = Store::open(config).expect("opened");
        let reader = store.redo().expect("it has a redo log");
        let header = Header { number: 1, start: Start::Empty, before: None, time_ms: 1 };
        let writer = PartWriter::begin(LocalFiles, directory.path(), "a.aof", header, 0);
        let shared = Arc::new(Shared::new(AofSync::Everysec, BTreeMap::new(), Weak::new()));
        let (to_sync, _kept) = mpsc::channel();
        let (_sender, synced) = mpsc::channel();
        let writer = writer.expect("begun");
        let mut writing = Writing::new(reader, writer, shared, store.clone(), (to_sync, synced));
        let mut session = store.session(|| {});
        let mut alone = session.alone();
        let put = Change::Put { value: b"v", expires_at_ms: None, encoding: 0 };
        let written =
            alone.enter().update(&mut Operation::new(0), Database(0), b"k", |_, _| (put, ()));
        assert_eq!(written, Ok(()));
        writing.take();
        assert!(writing.writer.in_group());
        writing.oldest = Instant::now().checked_sub(HOLD_AT);
        writing.write_and_sync(false).expect("there is room");
        writing.hold();
        assert!(writing.held.is_none());
        drop(alone);
        writing.take();
        writing.hold();
        assert!(writing.held.is_some(), "what has ended is late");
    }
}
