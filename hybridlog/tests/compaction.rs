//! Compaction: the log's old end goes, and no key with it.

mod support;

use ferrite_hybridlog::device::fault::FaultDevice;
use ferrite_hybridlog::device::{Device, FileId};
use ferrite_hybridlog::{Change, Config, Database, Store};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use support::{PAST, layout};

const DB: Database = Database(0);
/// Until something that must come has come.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Four pages of 4 KiB of memory, segments of four.
fn tiny(directory: &Path) -> Config {
    layout(directory, 4096, 4)
}

fn value(i: u64, version: u64) -> Vec<u8> {
    let length = 20 + (i * 7 + version * 13) % 300;
    format!("{i}:{version}:").into_bytes().into_iter().cycle().take(length as usize).collect()
}

/// Bytes of the segments' files.
fn segment_bytes(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory.join("checkpoints")).expect("it is there");
    let files = files.map(|file| file.expect("readable"));
    let logs = files.filter(|file| {
        let name = file.file_name().into_string().expect("a plain name");
        name.contains(".log-") && !name.contains("side")
    });
    logs.map(|file| file.metadata().expect("it is there").len()).sum()
}

/// Takes as many checkpoints as are kept.
fn checkpoints(store: &Store) {
    for _ in 0..2 {
        store.checkpoint().expect("checkpoints");
    }
}

/// Keys, their values' bytes, and that the store counts the records' bytes right.
fn check(store: &Store, model: &BTreeMap<u64, Vec<u8>>, story: &str) {
    let mut s = store.blocking_session();
    let mut live = 0;
    let mut cursor = 0;
    loop {
        let step = s.run(|inside, op| {
            let mut found = Vec::new();
            let next =
                inside.walk(op, DB, cursor, |v| found.push((v.key.to_vec(), v.stored_bytes)));
            next.map(|next| (next, found))
        });
        let (next, found) = step.expect("walks");
        live += found.iter().map(|(_, bytes)| *bytes as u64).sum::<u64>();
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(store.stats().log_live_bytes, live, "{story}: bytes of the newest records");
    assert_eq!(store.key_count(DB).0, model.len() as u64, "{story}");
    for (i, value) in model {
        let found = s.read(DB, &i.to_le_bytes()).expect("reads");
        assert_eq!(found.as_ref(), Some(value), "{story}: {i}");
    }
}

#[test]
fn what_is_overwritten_gives_its_space_back_and_every_key_stays() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut model = BTreeMap::new();
    for run in 0..3u64 {
        let store = Store::open(tiny(directory.path())).expect("opens");
        check(&store, &model, "after a start");
        let mut s = store.blocking_session();
        for version in 0..6 {
            for i in (0..800).filter(|i| (i + version + run) % 3 != 0) {
                s.upsert(DB, &i.to_le_bytes(), &value(i, version + 10 * run)).expect("writes");
                model.insert(i, value(i, version + 10 * run));
            }
            for i in (version..800).step_by(17) {
                assert_eq!(s.delete(DB, &i.to_le_bytes()), Ok(model.remove(&i).is_some()));
            }
        }
        store.checkpoint().expect("checkpoints");
        let written = store.stats().appends;
        let before = (segment_bytes(directory.path()), store.stats());
        let report = store.compact().expect("compacts");
        assert!(report.copied_bytes > 0 && report.copied_bytes < report.read_bytes, "{report:?}");
        assert_eq!(store.stats().appends, written, "a copy is no write");
        check(&store, &model, "after the compaction");
        assert_eq!(store.stats().log_begin, before.1.log_begin, "the checkpoint needs it still");
        assert!(store.reclaimable_bytes() > 0);
        checkpoints(&store);
        let after = (segment_bytes(directory.path()), store.stats());
        assert_eq!(store.reclaimable_bytes(), 0);
        assert!(after.0 * 3 < before.0 * 2, "{before:?} {after:?}");
        check(&store, &model, "after the checkpoints");
    }
}

#[test]
fn a_compaction_that_no_checkpoint_covers_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut model = BTreeMap::new();
    {
        let store = Store::open(tiny(directory.path())).expect("opens");
        let mut s = store.blocking_session();
        for i in 0..800u64 {
            s.upsert(DB, &i.to_le_bytes(), &value(i, 1)).expect("writes");
            model.insert(i, value(i, 1));
        }
        store.checkpoint().expect("checkpoints");
        assert!(store.compact().expect("compacts").copied_bytes > 0);
    }
    let store = Store::open(tiny(directory.path())).expect("opens");
    assert_eq!(store.recovery().keys, 800);
    check(&store, &model, "after a start");
}

#[test]
fn a_log_without_dead_records_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(tiny(directory.path())).expect("opens");
    let mut s = store.blocking_session();
    for i in 0..2000u64 {
        s.upsert(DB, &i.to_le_bytes(), &value(i, 1)).expect("writes");
    }
    checkpoints(&store);
    // Dead space there is only at the pages' ends.
    store.set_space_amplification(Some(1.3));
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(store.stats().compaction.read_bytes, 0, "{:?}", store.stats());
}

/// Two records do not fit in a page, so a third of the log is unused whatever is done.
#[test]
fn a_log_of_large_records_is_not_copied_over_and_over() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(tiny(directory.path())).expect("opens");
    let mut s = store.blocking_session();
    for i in 0..100u64 {
        s.upsert(DB, &i.to_le_bytes(), &[7; 2300]).expect("writes");
    }
    checkpoints(&store);
    let log = store.stats().log_bytes;
    assert!(log > store.stats().log_live_bytes * 3 / 2);
    store.set_space_amplification(Some(1.5));
    std::thread::sleep(std::time::Duration::from_secs(6));
    let read = store.stats().compaction.read_bytes;
    assert!(read > 0 && read < 3 * log, "{read} bytes of {log}");
}

#[test]
fn the_background_keeps_the_log_near_its_target_under_churn() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(tiny(directory.path())).expect("opens");
    store.set_space_amplification(Some(1.5));
    let mut s = store.blocking_session();
    let mut model = BTreeMap::new();
    for version in 0..8 {
        for i in 0..1000u64 {
            s.upsert(DB, &i.to_le_bytes(), &value(i, version)).expect("writes");
            model.insert(i, value(i, version));
        }
    }
    let since = std::time::Instant::now();
    loop {
        while store.wants_checkpoint() {
            store.checkpoint().expect("checkpoints");
        }
        let stats = store.stats();
        // What is in memory, and the segment that is being written, stay.
        let kept = (4 + 4 + 2 * 4) * 4096;
        if stats.log_bytes < stats.log_live_bytes * 3 / 2 + kept {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "{stats:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    check(&store, &model, "in the end");
}

#[test]
fn deleted_and_expired_keys_leave_nothing_in_log_and_index() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(tiny(directory.path())).expect("opens");
    store.pause_expiry_cycle(true);
    let mut s = store.blocking_session();
    for i in 0..1000u64 {
        let (value, expires_at_ms) = (value(i, 0), (i % 2 == 0).then_some(PAST));
        let put = Change::Put { value: &value, expires_at_ms, encoding: 0 };
        s.rmw(DB, &i.to_le_bytes(), |_, _| (put, ())).expect("writes");
    }
    for i in (1..1000u64).step_by(2) {
        assert_eq!(s.delete(DB, &i.to_le_bytes()), Ok(true));
    }
    // The first round leaves tombstones of what had expired, the second takes them.
    for _ in 0..2 {
        for i in 0..100u64 {
            s.upsert(Database(1), &i.to_le_bytes(), &[1; 300]).expect("writes");
        }
        store.checkpoint().expect("checkpoints");
        store.compact().expect("compacts");
    }
    assert_eq!(store.key_count(DB), (0, 0));
    s.upsert(DB, b"one", b"key").expect("writes");
    let live: u64 = store.stats().log_live_bytes;
    let (keys, bytes) = (store.key_count(Database(1)).0, store.stats().log_live_bytes);
    assert_eq!((keys, bytes), (100, live));
    // By chance two of them may share one.
    assert!(store.stats().index_entries <= 101, "an entry of a key that is gone");
}

/// Whose tombstones head chains of several keys, so that nobody takes the entry before.
#[test]
fn tombstones_of_keys_that_collide_leave_with_their_entry() {
    let config = tiny(Path::new("simulated"));
    let device = FaultDevice::new();
    drop(support::open(&config, &device));
    let keys = support::keys_on(&device, 8, 3);
    let store = support::open(&config, &device);
    let mut s = store.blocking_session();
    let evict = |s: &mut ferrite_hybridlog::BlockingSession| {
        for i in 0..200u64 {
            s.upsert(Database(1), &i.to_le_bytes(), &[1; 300]).expect("writes");
        }
    };
    for key in &keys {
        s.upsert(DB, key, b"value").expect("writes");
    }
    evict(&mut s);
    for key in &keys {
        assert_eq!(s.delete(DB, key), Ok(true));
    }
    evict(&mut s);
    assert!(store.stats().index_entries > 200, "tombstones keep entries: {:?}", store.stats());
    store.compact().expect("compacts");
    // By chance two of the other keys may share an entry.
    assert!(store.stats().index_entries <= 200, "{:?}", store.stats());
    for key in &keys {
        assert_eq!(s.read(DB, key), Ok(None));
    }
}

#[test]
fn databases_that_are_flushed_or_swapped_meanwhile_stay_apart() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(tiny(directory.path())).expect("opens");
    let mut s = store.blocking_session();
    for i in 0..600u64 {
        s.upsert(DB, &i.to_le_bytes(), &value(i, 0)).expect("writes");
        s.upsert(Database(1), &i.to_le_bytes(), &value(i, 1)).expect("writes");
    }
    store.checkpoint().expect("checkpoints");
    store.swap_databases(DB, Database(1)).expect("swaps");
    store.flush_database(Database(1)).expect("flushes");
    store.compact().expect("compacts");
    checkpoints(&store);
    assert_eq!((store.key_count(DB).0, store.key_count(Database(1)).0), (600, 0));
    for i in 0..600u64 {
        assert_eq!(s.read(DB, &i.to_le_bytes()).expect("reads"), Some(value(i, 1)), "{i}");
        assert_eq!(s.read(Database(1), &i.to_le_bytes()).expect("reads"), None);
    }
}

/// Counters that several threads raise, keys that come and go, readers, checkpoints, and a compaction
/// that never rests: a copy that brings an old value back, or loses one, shows in the sums.
#[test]
fn counters_are_exact_while_everything_is_compacted_over_and_over() {
    const KEYS: u64 = 300;
    const ROUNDS: u64 = 12;
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(tiny(directory.path())).expect("opens");
    let (done, copied) = (AtomicBool::new(false), AtomicU64::new(0));
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    std::thread::scope(|threads| {
        let workers: Vec<_> = (0..2u64)
            .map(|worker| {
                let store = store.clone();
                threads.spawn(move || {
                    let mut s = store.blocking_session();
                    for round in 0..ROUNDS {
                        for i in 0..KEYS {
                            let add = |old: Option<ferrite_hybridlog::Value<'_>>,
                                       out: &mut Vec<u8>| {
                                let n = old.map_or(0, |v| number(v.bytes)) + 1;
                                out.extend_from_slice(&n.to_le_bytes());
                                out.resize(8 + ((i + n) % 300) as usize, 7);
                                (Change::PutScratch { expires_at_ms: None, encoding: 0 }, n)
                            };
                            let n = s.rmw(DB, &i.to_le_bytes(), add).expect("writes");
                            assert!(n > round, "it never goes back");
                        }
                        let own = (worker << 32 | round).to_le_bytes();
                        s.upsert(Database(1), &own, &own).expect("writes");
                        assert_eq!(s.read(Database(1), &own), Ok(Some(own.to_vec())));
                        assert_eq!(s.delete(Database(1), &own), Ok(true));
                        assert_eq!(s.read(Database(1), &own), Ok(None));
                    }
                })
            })
            .collect();
        let reader = threads.spawn(|| {
            let mut s = store.blocking_session();
            let mut last = vec![0; KEYS as usize];
            while !done.load(Ordering::Relaxed) {
                for i in 0..KEYS {
                    let now = s.read(DB, &i.to_le_bytes()).expect("reads");
                    let now = now.map_or(0, |bytes| number(&bytes));
                    assert!(
                        now >= last[i as usize],
                        "{i} went back from {} to {now}",
                        last[i as usize]
                    );
                    last[i as usize] = now;
                }
            }
        });
        let compacts = threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let report = store.compact().expect("compacts");
                copied.fetch_add(report.copied_bytes, Ordering::Relaxed);
            }
        });
        let saves = threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.checkpoint().expect("checkpoints");
            }
        });
        let mut ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed);
        ended.extend([reader, compacts, saves].map(|other| other.join()));
        ended.into_iter().for_each(|ended| ended.expect("the thread found nothing wrong"));
    });
    assert!(copied.load(Ordering::Relaxed) > 0, "something was compacted");
    let mut s = store.blocking_session();
    for i in 0..KEYS {
        let bytes = s.read(DB, &i.to_le_bytes()).expect("reads").expect("it is there");
        assert_eq!(number(&bytes), 2 * ROUNDS, "{i}");
    }
    assert_eq!(store.key_count(Database(1)).0, 0);
}

const SEGMENT: u64 = 16 * 4096;
/// What clients' writes leave of a disk.
const RESERVE: u64 = 2 * SEGMENT;

/// On a simulated disk of so many segments, which hold so many keys that a checkpoint has.
fn on_a_disk_of(
    segments: u64,
    keys: u64,
) -> (Store, std::sync::Arc<FaultDevice>, BTreeMap<u64, Vec<u8>>) {
    let device = FaultDevice::new();
    device.set_free_space(segments * SEGMENT);
    let mut config = tiny(Path::new("simulated"));
    config.segment_size = SEGMENT;
    let store = support::open(&config, &device);
    let mut s = store.blocking_session();
    for i in 0..keys {
        s.upsert(DB, &i.to_le_bytes(), &value(i, 0)).expect("writes");
    }
    checkpoints(&store);
    (store, device, (0..keys).map(|i| (i, value(i, 0))).collect())
}

/// Compaction's copies took the reserve too, and the checkpoint that would have given all of it back
/// failed: the disk stayed full for ever.
#[test]
fn a_disk_that_is_full_of_dead_records_takes_writes_again() {
    // Most of them never change, and lie at the log's old end.
    let (store, _device, mut model) = on_a_disk_of(24, 2000);
    let mut s = store.blocking_session();
    let churn = |s: &mut ferrite_hybridlog::BlockingSession, model: &mut BTreeMap<u64, Vec<u8>>| {
        let mut version = 1;
        loop {
            for i in 0..100u64 {
                if s.upsert(DB, &i.to_le_bytes(), &value(i, version)).is_err() {
                    return;
                }
                model.insert(i, value(i, version));
            }
            version += 1;
        }
    };
    for round in 0..2 {
        churn(&mut s, &mut model);
        store.set_space_amplification(Some(1.5));
        let since = std::time::Instant::now();
        while store.stats().not_writable.is_some() {
            if store.wants_checkpoint() {
                store.checkpoint().expect("there is room for it");
            }
            assert!(since.elapsed() < PATIENCE, "round {round}: {:?}", store.stats());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        check(&store, &model, "when it takes writes again");
        store.set_space_amplification(None);
    }
}

#[test]
fn a_log_that_lives_is_compacted_on_a_disk_that_cannot_hold_it_twice() {
    let (store, device, model) = on_a_disk_of(40, 3500);
    let log = store.stats().log_bytes;
    device.set_free_space(RESERVE + 4 * SEGMENT);
    assert!(log > 10 * SEGMENT, "{log}");
    let below = store.stats().log_head;
    let mut steps = 0;
    loop {
        let done = store.compact_below(below).expect("compacts");
        let free = device.free_space().expect("it says");
        assert!(free >= RESERVE, "{free} bytes are left of {RESERVE}");
        assert!(done.read_bytes > 0, "{done:?}");
        checkpoints(&store);
        assert!(store.stats().log_begin >= done.until);
        if !done.short_of_space {
            break;
        }
        steps += 1;
    }
    assert!(steps > 0, "there was room for all of it at once");
    assert_eq!(store.stats().not_writable, None);
    check(&store, &model, "in the end");
}

/// What is compacted between a checkpoint's cut and its manifest has its copies above the cut, which
/// a start does not read: that checkpoint must not begin above.
#[test]
fn a_checkpoint_begins_where_the_compaction_was_at_its_cut() {
    let device = FaultDevice::new();
    let config = tiny(Path::new("simulated"));
    let store = support::open(&config, &device);
    let mut s = store.blocking_session();
    let mut model = BTreeMap::new();
    for i in 0..800u64 {
        s.upsert(DB, &i.to_le_bytes(), &value(i, 0)).expect("writes");
        model.insert(i, value(i, 0));
    }
    // It waits behind its cut.
    let last = FileId::Segment(store.stats().log_tail / config.segment_size);
    device.hold_syncs(last);
    let taking = std::thread::spawn({
        let store = store.clone();
        move || store.checkpoint()
    });
    let since = std::time::Instant::now();
    while !device.is_holding() {
        assert!(since.elapsed() < PATIENCE, "the checkpoint does not come to its sync");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let done = store.compact().expect("compacts");
    assert!(done.copied_bytes > 0 && !taking.is_finished(), "{done:?}");
    device.release_syncs();
    taking.join().expect("no panic").expect("checkpoints");
    drop((s, store));
    let store = support::open(&config, &device.crash(1));
    check(&store, &model, "after a crash");
}

/// Keys that have expired and that nobody may remove yet are copied like any others.
#[test]
fn what_has_expired_is_copied_while_nothing_may_be_removed() {
    for refused in [false, true] {
        let device = FaultDevice::new();
        let store = support::open(&tiny(Path::new("simulated")), &device);
        store.hold_expiry(u64::MAX);
        let mut s = store.blocking_session();
        for i in 0..400u64 {
            let (value, expires_at_ms) = (value(i, 0), (i < 200).then_some(PAST));
            let put = Change::Put { value: &value, expires_at_ms, encoding: 0 };
            s.rmw(DB, &i.to_le_bytes(), |_, _| (put, ())).expect("writes");
        }
        let since = std::time::Instant::now();
        if refused {
            store.checkpoint().expect("checkpoints");
            // Less than the reserve of two segments, and enough to copy into.
            device.set_free_space(28 << 10);
            while store.stats().not_writable.is_none() {
                assert!(since.elapsed() < PATIENCE, "writes are taken");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            store.hold_expiry(0);
        }
        let compacts = std::thread::spawn({
            let store = store.clone();
            move || store.compact()
        });
        while !compacts.is_finished() && since.elapsed() < PATIENCE {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // One that wants to remove a key waits for this.
        let done_in_time = compacts.is_finished();
        let keys = store.key_count(DB).0;
        store.hold_expiry(0);
        let done = compacts.join().expect("no panic").expect("compacts");
        assert!(done_in_time && done.copied_bytes > 0, "refused: {refused}: {done:?}");
        assert_eq!(keys, 400, "refused: {refused}");
    }
}
