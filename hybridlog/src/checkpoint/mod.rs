//! Fold-over checkpoints, without fork.
//!
//! 1. An image of the index, while work goes on: `fuzzy_start` is the tail before it began, and
//!    one grace period after. Skipped while the log has grown little since the last one.
//!    Then, outside any safepoint, the log becomes read-only and is flushed step by step, up to the
//!    tail's page.
//! 2. The cut, at a safepoint: the tail is padded to a block and everything below becomes
//!    read-only; the redo log gets its mark; begin, map, floors, counts and clock are copied.
//! 3. The log is flushed to the cut; files and directories are synced.
//! 4. The manifest is written from that copy alone, synced, renamed. It *is* the checkpoint.
//! 5. What no kept checkpoint needs is dropped.
//!
//! A store in memory does the same, but that its log is flushed to memory and that step 4 is one file
//! with all of it ([`snapshot`]); what steps 1 and 5 write and drop is in memory too.
//!
//! The image is complete before the cut, so every address in it is below `cut`. The cost is what
//! changed, never the size of the data set.

mod blocks;
pub(crate) mod hold;
pub(crate) mod image;
pub(crate) mod manifest;
pub(crate) mod recover;
pub(crate) mod snapshot;
pub(crate) mod stored;

use crate::CheckpointError;
use crate::config::BLOCK_WORDS;
use crate::device::{ALIGNMENT, Device, FileId, blocking};
use crate::log::health::Shortage;
use crate::redo;
use crate::store::Inner;
use crate::store::alone::wait_for_room;
use crate::store::tables::Counts;
use crate::sync::{Arc, Instant, Locked, atomic::Ordering, mutant, thread};
use ferrite_index::assert_unpinned;
use hold::Held;
use manifest::{Checkpoint, ImageRef, Manifest, SlotState};
use std::collections::BTreeSet;
use std::time::Duration;

/// Checkpoints that are kept.
const KEPT: usize = 2;
/// Steps in which the mutable region becomes read-only before a cut.
const CUT_STEPS: u64 = 16;
/// A new image is written once the log has grown by this share of the index's bytes.
const IMAGE_SHARE: u64 = 4;

/// What a checkpoint did.
#[derive(Clone, Debug, Default)]
pub struct CheckpointReport {
    /// Its number.
    pub number: u64,
    /// Unix time of the cut, in milliseconds.
    pub taken_at_ms: u64,
    /// The number of the oldest checkpoint that is kept.
    pub oldest_kept: u64,
    /// The number of the oldest checkpoint whose files are there, for a copy that may have begun with
    /// it ([`crate::Config::backup_hold`]); at most `oldest_kept`.
    pub oldest_held: u64,
    /// Bytes written for it: image, flushed log, side files and manifest.
    pub bytes_written: u64,
    /// How long it took.
    pub duration: Duration,
}

/// What the next checkpoint builds on; one checkpoint at a time holds it.
pub(crate) struct Checkpointer {
    pub manifest: Manifest,
    /// Where the log of this process starts.
    pub start: u64,
    /// Whether the manifest on the disk keeps a number for the next attempt: the one below its
    /// `next_number`.
    pub reserved: bool,
    /// What earlier manifests need.
    pub held: Held,
}

impl Checkpointer {
    pub fn new(manifest: Manifest, start: u64) -> Self {
        Self { manifest, start, reserved: false, held: Held::default() }
    }

    /// The oldest checkpoint that is kept, and the oldest whose files are or that a copy may have begun
    /// with.
    fn oldest(&self, inner: &Inner) -> Option<(u64, u64)> {
        let kept = match &inner.snapshots {
            Some(snapshots) => snapshots.oldest()?,
            None => self.manifest.checkpoints.last()?.number,
        };
        Some((kept, self.held.oldest().map_or(kept, |held| held.min(kept))))
    }
}

/// Copied at the safepoint; the manifest is written from it alone.
struct Cut {
    address: u64,
    /// What lies below holds no key any more: see [`crate::store::compact`].
    compacted: u64,
    taken_at_ms: u64,
    map: Vec<u8>,
    slots: Vec<SlotState>,
    made_at: Instant,
}

/// Takes a checkpoint and returns when it is durable.
pub(crate) fn take(inner: &Arc<Inner>) -> Result<CheckpointReport, CheckpointError> {
    // It waits for grace periods, the gate, flushes and syncs.
    assert_unpinned();
    // Whoever only lets go of held files has the lock shortly, which is no checkpoint.
    let _turn = inner.hold.take_turn().ok_or(CheckpointError::InProgress)?;
    let mut state = inner.checkpointer.locked();
    let since = Instant::now();
    let written_before = inner.log.counters.write_bytes.load(Ordering::Relaxed);
    refuse_when_broken(inner)?;
    let number = reserve_number(inner, &mut state)?;
    let taken = steps(inner, &mut state, number);
    if taken.is_err()
        && let Some(snapshots) = &inner.snapshots
        && let Err(e) = snapshots.discard()
    {
        tracing::warn!("what the failed checkpoint has left stays until the next one: {e}");
    }
    let Taken { taken_at_ms, written_bytes } = taken?;
    let (oldest_kept, oldest_held) = state.oldest(inner).unwrap_or((number, number));
    let flushed = match &inner.snapshots {
        Some(_) => 0,
        None => inner.log.counters.write_bytes.load(Ordering::Relaxed) - written_before,
    };
    Ok(CheckpointReport {
        number,
        taken_at_ms,
        oldest_kept,
        oldest_held,
        bytes_written: flushed + written_bytes,
        duration: since.elapsed(),
    })
}

/// A checkpoint that is durable.
struct Taken {
    taken_at_ms: u64,
    /// Bytes written for it, but those of the log's files.
    written_bytes: u64,
}

fn steps(
    inner: &Arc<Inner>,
    state: &mut Checkpointer,
    number: u64,
) -> Result<Taken, CheckpointError> {
    let (image, image_bytes, image_crc) = image_for(inner, state, number)?;
    flush_ahead(inner)?;
    let mut cut = cut(inner, number)?;
    if !mutant!("cut_without_flush") {
        flush_to(inner, cut.address)?;
    }
    sync_log(inner, cut.address)?;
    redo::wait_until_cut(inner, number);
    if mutant!("begin_read_after_the_cut") {
        cut.compacted = inner.compaction.compacted();
    }
    let (taken_at_ms, made_at) = (cut.taken_at_ms, cut.made_at);
    let geometry = &inner.log.geometry;
    let mut manifest = next_manifest(state, number, image, cut, geometry.segment_words);
    let written_bytes = if let Some(snapshots) = &inner.snapshots {
        // What an earlier one needs is in its file.
        manifest.checkpoints.truncate(1);
        let (log, compress) = (&*inner.log.device, inner.config.compress_images);
        snapshots.finish(log, geometry, &manifest, image_crc, compress).map_err(|e| {
            let path = snapshots.home.path(FileId::Manifest);
            failed(&format!("writing {}", path.display()), e)
        })?
    } else {
        hold::wait_until_listed(&inner.hold, &state.manifest, &manifest, made_at);
        image_bytes + persist(inner, &manifest)?
    };
    let replaced = std::mem::replace(&mut state.manifest, manifest);
    state.held.note(&replaced, geometry);
    state.reserved = true;
    state.held.release(inner.hold.duration());
    if inner.snapshots.is_some() {
        inner.hold.note_bytes(0, written_bytes);
    } else {
        inner.compaction.checkpointed(&state.manifest);
        forget(inner, state);
    }
    Ok(Taken { taken_at_ms, written_bytes })
}

/// Gives the memory back of what a store in memory has compacted. Nothing on a disk needs it: each
/// checkpoint is whole. Waits for one that is being taken.
pub(crate) fn give_back(inner: &Inner) {
    assert_unpinned();
    let _state = inner.checkpointer.locked();
    let log = &inner.log;
    log.truncate(inner.compaction.compacted());
    let begin = log.boundaries.begin();
    inner.compaction.gave_back(begin);
    let first = log.geometry.segment_of(begin);
    // A memory device lists without an error.
    for file in log.device.list().unwrap_or_default() {
        if let FileId::Segment(n) | FileId::Side(n) = file
            && n < first
            && let Err(e) = log.device.remove(file)
        {
            tracing::warn!("giving memory of the log back failed: {e}");
        }
    }
}

fn failed(what: &str, error: impl std::fmt::Display) -> CheckpointError {
    CheckpointError::Device(format!("{what}: {error}"))
}

fn refuse_when_broken(inner: &Inner) -> Result<(), CheckpointError> {
    match inner.log.health.breakage() {
        Some(reason) => Err(CheckpointError::Device(reason)),
        None => Ok(()),
    }
}

/// A number that no attempt has had, whatever became of it: it is in a durable manifest before
/// anything has its name. Each checkpoint's manifest keeps the next one's; after a failed attempt,
/// or a start, one is written for that alone. (A store in memory has [`crate::Config::numbers_used`]
/// for what was begun before its start.)
fn reserve_number(inner: &Inner, state: &mut Checkpointer) -> Result<u64, CheckpointError> {
    if !state.reserved {
        let mut manifest = state.manifest.clone();
        manifest.next_number += 1;
        if inner.snapshots.is_none() {
            persist(inner, &manifest)?;
        }
        state.manifest = manifest;
    }
    state.reserved = false;
    Ok(state.manifest.next_number - 1)
}

/// A new image, or the last one when little of the log is new or space is short; the bytes that were
/// written for it, and their checksum.
fn image_for(
    inner: &Arc<Inner>,
    state: &Checkpointer,
    number: u64,
) -> Result<(ImageRef, u64, u32), CheckpointError> {
    let tail = inner.log.tail.load();
    let (device, file, offset): (&dyn Device, _, _) = match &inner.snapshots {
        Some(snapshots) => (&*snapshots.home, FileId::ManifestNew, snapshot::IMAGE_AT),
        None => (&*inner.log.device, FileId::Index(number), 0),
    };
    if inner.snapshots.is_none()
        && let Some(last) = state.manifest.newest().map(|c| c.image).filter(|i| i.number > 0)
    {
        let grown = (tail - last.fuzzy_start) * 8;
        // On a full disk what a checkpoint gives back matters more than how long a start takes.
        let little = grown < inner.index_bytes() / IMAGE_SHARE || inner.log.health.is_short();
        if little && last.fuzzy_start >= state.start {
            return Ok((last, 0, 0));
        }
    }
    let fuzzy_start = tail;
    // Whoever reserved a place below `fuzzy_start` publishes it before the image begins.
    if !mutant!("image_without_grace") {
        inner.log.epoch.wait_until_safe(inner.log.epoch.bump());
    }
    let created = match &inner.snapshots {
        Some(snapshots) => snapshots.begin(),
        None => device.create(file, 0),
    };
    let written = created.and_then(|()| image::write(inner, device, file, offset));
    let written = written.map_err(|e| {
        // What is there of it only takes space; the next start removes it at the latest.
        drop(device.remove(file));
        failed("writing the index image", e)
    })?;
    let length = written.bytes;
    Ok((ImageRef { number, fuzzy_start, length }, length, written.crc))
}

/// Makes most of the log read-only before the cut does it with all of it, in steps that the disk
/// keeps up with: else every key that is written in place would be copied to the tail at once, while
/// all of the mutable region waits to be flushed.
fn flush_ahead(inner: &Inner) -> Result<(), CheckpointError> {
    let log = &inner.log;
    let geometry = &log.geometry;
    let step = (geometry.mutable_pages / CUT_STEPS).max(1) * geometry.page_words;
    // What is written meanwhile is the cut's.
    let end = geometry.page_start(log.tail.load());
    let mut to = geometry.page_start(log.boundaries.read_only());
    while to < end {
        to = (to + step).min(end);
        log.boundaries.announce_read_only(to);
        flush_to(inner, to)?;
    }
    Ok(())
}

/// The safepoint. What the redo log holds before the mark of this checkpoint's number is in the
/// checkpoint, what it holds after it is not.
fn cut(inner: &Arc<Inner>, number: u64) -> Result<Cut, CheckpointError> {
    let log = &inner.log;
    // Nothing is held while the gate is waited for: a command that runs alone may need all the
    // room there is before it opens the gate.
    let mut credit = BLOCK_WORDS;
    let mut shortage = Shortage::new(&inner.log);
    let closed = loop {
        refuse_when_broken(inner)?;
        let closed = (!mutant!("cut_without_gate")).then(|| inner.gate.close(&log.epoch));
        // Room that was granted to those who wait at the gate is of no use to them now.
        log.room.revoke(&log.tail);
        if log.tail.grant(BLOCK_WORDS) {
            let marked = redo::append_at_safepoint(inner, redo::Effect::Mark(number), 0);
            let Err(words) = marked else { break closed };
            log.tail.give_back(BLOCK_WORDS);
            drop(closed);
            redo::wait_while_full(inner, words);
            continue;
        }
        drop(closed);
        log.tail.give_back(wait_for_room(log, BLOCK_WORDS, || shortage.verdict().is_err()));
        shortage.verdict().map_err(CheckpointError::Device)?;
    };
    let address = log.fold_over(BLOCK_WORDS, &mut credit);
    let (_, tables) = inner.tables();
    let slots = tables
        .slots
        .iter()
        .map(|slot| {
            let Counts { keys, expiring, live } = slot.counts();
            // An empty slot needs nothing of the log.
            let floor = if keys == 0 && slot.index.entries() == 0 { address } else { slot.floor };
            SlotState { floor, keys, expiring, live }
        })
        .collect();
    let taken_at_ms = inner.now_ms();
    let map = tables.map.clone();
    let compacted = inner.compaction.compacted();
    drop(closed);
    log.tail.give_back(credit);
    Ok(Cut { address, compacted, taken_at_ms, map, slots, made_at: Instant::now() })
}

fn flush_to(inner: &Inner, address: u64) -> Result<(), CheckpointError> {
    let log = &inner.log;
    let mut shortage = Shortage::new(&inner.log);
    while log.boundaries.flushed_until() < address {
        refuse_when_broken(inner)?;
        shortage.verdict().map_err(CheckpointError::Device)?;
        log.wake();
        thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

fn sync_failed(inner: &Inner, what: impl std::fmt::Display, e: &std::io::Error) -> CheckpointError {
    CheckpointError::Device(inner.log.health.sync_failed(what, e))
}

fn sync_directory(inner: &Inner) -> Result<(), CheckpointError> {
    let device = &inner.log.device;
    device.sync_directory().map_err(|e| {
        let path = device.path(FileId::Manifest);
        sync_failed(inner, path.parent().unwrap_or(&path).display(), &e)
    })
}

/// Makes the log below `cut`, which is flushed, durable.
fn sync_log(inner: &Inner, cut: u64) -> Result<(), CheckpointError> {
    let syncs = &inner.pages.syncs;
    let last = inner.log.geometry.segment_of(cut);
    let mut left = loop {
        if let Some(left) = syncs.take(last) {
            break left;
        }
        thread::sleep(Duration::from_micros(200));
    };
    let synced = sync_segments(inner, &mut left);
    if !mutant!("cut_forgets_unsynced") {
        syncs.give_back(left);
    }
    synced?;
    // A sync of the page thread's may have failed before this took the rest.
    refuse_when_broken(inner)?;
    sync_directory(inner)
}

/// Syncs the segments one by one; those that it has not synced stay in `left`.
fn sync_segments(inner: &Inner, left: &mut BTreeSet<u64>) -> Result<(), CheckpointError> {
    let device = &*inner.log.device;
    let sync = |file| {
        blocking::sync(device, file)
            .map_err(|e| sync_failed(inner, device.path(file).display(), &e))
    };
    while let Some(&segment) = left.first() {
        if !mutant!("cut_without_segment_sync") {
            sync(FileId::Segment(segment))?;
        }
        if !mutant!("cut_without_side_sync") {
            sync(FileId::Side(segment))?;
        }
        left.pop_first();
    }
    Ok(())
}

fn next_manifest(
    state: &Checkpointer,
    number: u64,
    image: ImageRef,
    cut: Cut,
    segment_words: u64,
) -> Manifest {
    let mut manifest = state.manifest.clone();
    manifest.next_number = number + 2;
    manifest.next_segment = manifest.next_segment.max(cut.address / segment_words + 1);
    let mut extents = manifest.newest().map_or_else(Vec::new, |c| c.extents.clone());
    extents.retain(|(from, _)| *from != state.start);
    extents.push((state.start, cut.address));
    // What lies below every floor, or was compacted, serves nobody.
    let floor = cut.slots.iter().map(|s| s.floor).min().unwrap_or(cut.address);
    let begin = floor.max(cut.compacted);
    // It never moves down: an empty database needed nothing of the log then, and what was written
    // into it since lies above.
    let begin = begin.max(manifest.newest().map_or(0, |c| c.begin));
    // An extent without a record has no segment either: a start would miss its file.
    extents.retain(|(from, to)| *to > begin && from < to);
    let taken_at_ms = cut.taken_at_ms;
    let (map, slots) = (cut.map, cut.slots);
    let cut = cut.address;
    manifest.checkpoints.insert(
        0,
        Checkpoint { number, taken_at_ms, begin: begin.min(cut), cut, extents, image, map, slots },
    );
    manifest.checkpoints.truncate(if mutant!("keeps_one_checkpoint") { 1 } else { KEPT });
    manifest
}

/// Writes the manifest anew; when this returns, it is the one that a start finds. After a failure
/// a start may find the old one or this one; both are whole.
fn persist(inner: &Inner, manifest: &Manifest) -> Result<u64, CheckpointError> {
    let length = write_manifest(&*inner.log.device, manifest)
        .map_err(|e| failed("writing the manifest", e))?;
    if !mutant!("manifest_without_directory_sync") {
        sync_directory(inner)?;
    }
    Ok(length)
}

/// The bytes of the manifest's file.
fn manifest_file(manifest: &Manifest) -> Vec<u8> {
    let mut bytes = manifest.encode();
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

/// Writes the manifest under its name, which is durable once the directory is synced.
fn write_manifest(device: &dyn Device, manifest: &Manifest) -> std::io::Result<u64> {
    let bytes = manifest_file(manifest);
    let length = bytes.len() as u64;
    match device.remove(FileId::ManifestNew) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    device.create(FileId::ManifestNew, 0)?;
    blocking::write(device, FileId::ManifestNew, 0, bytes)?;
    if !mutant!("manifest_without_sync") {
        blocking::sync(device, FileId::ManifestNew)?;
    }
    device.rename(FileId::ManifestNew, FileId::Manifest)?;
    Ok(length)
}

/// Whether something was held for copies for long enough.
pub(crate) fn hold_is_over(inner: &Inner) -> bool {
    let state = inner.checkpointer.try_lock();
    state.is_ok_and(|state| state.held.is_over(inner.hold.duration()))
}

/// Lets go of what was held for copies and need not be any more. The oldest checkpoint whose files are
/// there then, if there was anything.
pub(crate) fn release_held(inner: &Inner) -> Option<u64> {
    release(inner, |held| held.release(inner.hold.duration()))
}

/// The same of what was held the longest, however short that is.
pub(crate) fn release_oldest_held(inner: &Inner) -> Option<u64> {
    release(inner, Held::release_oldest)
}

fn release(inner: &Inner, release: impl FnOnce(&mut Held) -> bool) -> Option<u64> {
    // While one is taken it does so itself.
    let mut state = inner.checkpointer.try_lock().ok()?;
    if !release(&mut state.held) {
        return None;
    }
    if inner.snapshots.is_none() {
        forget(inner, &state);
    }
    state.oldest(inner).map(|(_, held)| held)
}

/// Drops images and whole segments that no kept checkpoint names, and no manifest of late.
fn forget(inner: &Inner, state: &Checkpointer) {
    let (log, manifest, held) = (&inner.log, &state.manifest, &state.held);
    let begin = manifest.checkpoints.iter().map(|c| c.begin).min().unwrap_or(0);
    log.truncate(begin);
    let first = log.geometry.segment_of(log.boundaries.begin());
    let files = match log.device.list() {
        Ok(files) => files,
        Err(e) => return tracing::warn!("listing the data directory failed: {e}"),
    };
    let (mut held_bytes, mut kept_bytes) = (0, 0);
    for file in files {
        let (unneeded, is_held) = match file {
            FileId::Index(n) => {
                (manifest.checkpoints.iter().all(|c| c.image.number != n), held.needs_image(n))
            }
            FileId::Segment(n) | FileId::Side(n) => (n < first, held.needs_segment(n)),
            FileId::Manifest | FileId::ManifestNew | FileId::Previous => (false, false),
        };
        let size = || log.device.size(file).unwrap_or(0);
        if !unneeded {
            kept_bytes += size();
        } else if is_held {
            held_bytes += size();
        } else if let Err(e) = log.device.remove(file) {
            tracing::warn!("removing {} failed: {e}", log.device.path(file).display());
        }
    }
    inner.hold.note_bytes(held_bytes, kept_bytes);
}
