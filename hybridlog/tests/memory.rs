//! A store whose log lies in memory: its one file, what a start makes of it, and its memory.

mod support;

use ferrite_hybridlog::device::fault::{Fault, FaultDevice, Operation};
use ferrite_hybridlog::device::{Device, FileId};
use ferrite_hybridlog::{Change, CheckpointError, Config, Database, OpenError, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{in_memory, layout};

const DB: Database = Database(0);

/// Four pages of 4 KiB that change in place, a window of sixteen, segments of four.
fn config(directory: &Path) -> Config {
    let mut config = in_memory(layout(directory, 4096, 8));
    config.readonly_size = 16 * 4096;
    config
}

fn value(i: u64, version: u64) -> Vec<u8> {
    let length = 20 + (i * 7 + version * 13) % 300;
    format!("{i}:{version}:").into_bytes().into_iter().cycle().take(length as usize).collect()
}

fn put(store: &Store, keys: std::ops::Range<u64>, version: u64) {
    let mut s = store.blocking_session();
    for i in keys {
        s.upsert(DB, &i.to_le_bytes(), &value(i, version)).expect("writes");
    }
}

fn check(store: &Store, model: &BTreeMap<u64, u64>) {
    let mut s = store.blocking_session();
    for (i, version) in model {
        let found = s.read(DB, &i.to_le_bytes()).expect("reads");
        assert_eq!(found, Some(value(*i, *version)), "key {i}");
    }
    assert_eq!(store.key_count(DB).0, model.len() as u64);
}

fn files(directory: &Path) -> BTreeSet<String> {
    let names = |path: &Path| -> Vec<String> {
        let found = fs::read_dir(path).into_iter().flatten();
        found.map(|f| f.expect("listed").file_name().into_string().expect("plain")).collect()
    };
    let inner =
        names(&directory.join("checkpoints")).into_iter().map(|n| format!("checkpoints/{n}"));
    names(directory).into_iter().chain(inner).filter(|name| name.contains(".ckpt")).collect()
}

#[test]
fn one_file_is_all_of_a_checkpoint_and_the_one_before_is_kept_beside_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut model = BTreeMap::new();
    let mut taken = Vec::new();
    for run in 0..3u64 {
        let store = Store::open(config(directory.path())).expect("opens");
        assert_eq!(store.recovery().checkpoint, taken.last().copied());
        check(&store, &model);
        for step in 0..2 {
            let version = run * 2 + step;
            let first = version * 150;
            put(&store, first..first + 300, version);
            model.extend((first..first + 300).map(|i| (i, version)));
            let report = store.checkpoint().expect("taken");
            let file = directory.path().join("ferrite.ckpt");
            assert_eq!(report.bytes_written, fs::metadata(&file).expect("linked").len());
            let oldest = taken.last().copied().unwrap_or(report.number);
            assert_eq!((report.oldest_kept, report.oldest_held), (oldest, oldest));
            assert_eq!(store.stats().checkpoint_bytes, report.bytes_written);
            taken.push(report.number);
            check(&store, &model);
        }
        let expected =
            ["checkpoints/ferrite.ckpt", "checkpoints/ferrite.ckpt.previous", "ferrite.ckpt"];
        assert_eq!(files(directory.path()), expected.map(String::from).into());
        let sizes = store.sizes();
        let bytes = |name: &str| fs::metadata(directory.path().join(name)).expect("there").len();
        assert_eq!(sizes.disk_bytes, bytes(expected[0]) + bytes(expected[1]));
        // What no checkpoint covers is lost.
        put(&store, 5000..5300, 9);
        store.close();
    }
    assert!(taken.windows(2).all(|pair| pair[0] < pair[1]), "{taken:?}");

    // A copy of what `*.ckpt` names is a store; so is the checkpoint before, under that name.
    let copy = tempfile::tempdir().expect("a directory");
    fs::copy(directory.path().join("ferrite.ckpt"), copy.path().join("ferrite.ckpt"))
        .expect("copied");
    let store = Store::open(config(copy.path())).expect("opens");
    check(&store, &model);
    store.close();
    let at = |name: &str| directory.path().join("checkpoints").join(name);
    fs::rename(at("ferrite.ckpt.previous"), at("ferrite.ckpt")).expect("renamed");
    let store = Store::open(config(directory.path())).expect("opens");
    assert_eq!(store.recovery().checkpoint, Some(taken[4]));
    let before = model.iter().filter(|(i, _)| **i < 900).map(|(i, v)| match *v {
        5 => (*i, 4),
        other => (*i, other),
    });
    check(&store, &before.collect());
}

#[test]
fn before_the_first_checkpoint_there_is_no_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(config(directory.path())).expect("opens");
    put(&store, 0..100, 0);
    store.close();
    assert!(files(directory.path()).is_empty(), "{:?}", files(directory.path()));
    let store = Store::open(config(directory.path())).expect("opens");
    assert_eq!((store.key_count(DB).0, store.recovery().checkpoint), (0, None));
}

/// A copy may have begun with a checkpoint that is not there any more: what goes on from it, which is
/// another's to keep, is still needed.
#[test]
fn a_checkpoint_that_was_replaced_of_late_is_held() {
    let mut config = config("simulated".as_ref());
    config.backup_hold = Duration::from_secs(3600);
    let store = Store::open_on(config, FaultDevice::new()).expect("opens");
    let reports = [(); 4].map(|()| store.checkpoint().expect("taken"));
    assert_eq!(reports[3].oldest_kept, reports[2].number);
    assert_eq!(reports[3].oldest_held, reports[0].number);
    assert!(store.release_held().is_none() && !store.hold_is_over());
    store.set_backup_hold(Duration::ZERO);
    assert!(store.hold_is_over());
    assert_eq!(store.release_held(), Some(reports[2].number));
}

/// Counters that only rise, in the order of their keys: a cut between two of them would show.
#[test]
fn a_checkpoint_under_load_is_one_instant() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(config(directory.path())).expect("opens");
    let stop = AtomicBool::new(false);
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    support::threads(|threads| {
        for thread in 0..2u64 {
            let (store, stop) = (&store, &stop);
            threads.spawn(move || {
                let mut s = store.blocking_session();
                let mut rounds = 0u64;
                while !stop.load(Ordering::Relaxed) || rounds < 20 {
                    rounds += 1;
                    for key in 0..40u64 {
                        let name = (thread * 1000 + key).to_le_bytes();
                        s.upsert(DB, &name, &rounds.to_le_bytes()).expect("writes");
                    }
                    // Copies, so that the log grows and is compacted meanwhile.
                    put(store, 10_000 + thread * 100..10_050 + thread * 100, rounds);
                }
            });
        }
        for _ in 0..8 {
            store.checkpoint().expect("taken");
            let copy = tempfile::tempdir().expect("a directory");
            let file = directory.path().join("checkpoints/ferrite.ckpt");
            fs::copy(file, copy.path().join("ferrite.ckpt")).expect("copied");
            let found = Store::open(config(copy.path())).expect("opens");
            let mut s = found.blocking_session();
            for thread in 0..2u64 {
                let mut seen = Vec::new();
                for key in 0..40u64 {
                    let name = (thread * 1000 + key).to_le_bytes();
                    seen.push(s.read(DB, &name).expect("reads").map_or(0, |v| number(&v)));
                }
                let falls = seen.windows(2).filter(|pair| pair[0] < pair[1]).count();
                assert!(falls == 0 && seen[0] - seen[39] <= 1, "a prefix of a round: {seen:?}");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn every_byte_of_the_file_counts() {
    let mut config = config("simulated".as_ref());
    for compress in [true, false] {
        config.compress_images = compress;
        let device = FaultDevice::new();
        let open = |device: &Arc<FaultDevice>| {
            Store::open_on(config.clone(), Arc::clone(device) as Arc<dyn Device>)
        };
        let store = open(&device).expect("opens");
        put(&store, 0..60, 1);
        store.checkpoint().expect("taken");
        put(&store, 30..90, 2);
        store.checkpoint().expect("taken");
        drop(store);
        let length = device.size(FileId::Manifest).expect("it is there");
        // Where something begins or ends, and some of what lies between.
        let ends = (0..48).chain(4092..4128).chain(length - 60..length);
        let places = ends.chain((4128..length - 60).step_by(211));
        for at in places {
            let broken = device.crash(0);
            broken.flip(FileId::Manifest, at, (at % 8) as u8);
            match open(&broken) {
                Err(OpenError::Damaged { path, advice, .. }) => {
                    assert!(path.ends_with("ferrite.ckpt"), "{at}: {}", path.display());
                    assert!(advice.contains("ferrite.ckpt.previous"), "{at}: {advice}");
                }
                Err(other) => panic!("byte {at}: {other}"),
                Ok(_) => panic!("byte {at} of {length} does not count"),
            }
        }
        for shorter in (1..length).step_by(2003).chain([1, 4095, 4096]) {
            let broken = device.crash(0);
            broken.truncate(FileId::Manifest, length - shorter);
            let refused = matches!(open(&broken), Err(OpenError::Damaged { .. }));
            assert!(refused, "{shorter} bytes are missing");
        }
        // Nothing was changed by refusing, and the other one is whole.
        let device = device.crash(0);
        device.rename(FileId::Previous, FileId::Manifest).expect("renamed");
        let store = open(&device).expect("opens");
        check(&store, &(0..60).map(|i| (i, 1)).collect());
    }
}

#[test]
fn a_part_of_another_file_is_not_taken_for_one_of_this() {
    let device = FaultDevice::new();
    let mut config = config("simulated".as_ref());
    config.compress_images = false;
    let store = Store::open_on(config.clone(), device.clone()).expect("opens");
    put(&store, 0..60, 1);
    store.checkpoint().expect("taken");
    let old = device.contents(FileId::Manifest).expect("it is there");
    // The same log but for the values' bytes: everything lies where it did.
    put(&store, 0..60, 1);
    store.checkpoint().expect("taken");
    let new = device.contents(FileId::Manifest).expect("it is there");
    drop(store);
    let mut mixed = 0;
    for (block, stale) in old.chunks(4096).enumerate() {
        let at = block * 4096;
        let Some(fresh) = new.get(at..at + 4096).filter(|fresh| *fresh != stale) else { continue };
        assert_eq!(fresh.len(), stale.len());
        let broken = FaultDevice::new();
        broken.create(FileId::Manifest, 0).expect("created");
        let mut bytes = new.clone();
        bytes[at..at + 4096].copy_from_slice(stale);
        let (tx, rx) = std::sync::mpsc::channel();
        broken.submit(ferrite_hybridlog::device::Request::Write {
            file: FileId::Manifest,
            offset: 0,
            bytes: ferrite_hybridlog::device::Bytes::new(bytes),
            done: Box::new(move |result| tx.send(result.is_ok()).expect("kept")),
        });
        assert!(rx.recv().expect("answered"));
        assert!(Store::open_on(config.clone(), broken).is_err(), "block {block} is an old one");
        mixed += 1;
    }
    assert!(mixed > 2, "{mixed} blocks differ");
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_last_one_and_no_remains() {
    let device = FaultDevice::new();
    let config = config("simulated".as_ref());
    let store = Store::open_on(config.clone(), device.clone()).expect("opens");
    put(&store, 0..200, 1);
    let first = store.checkpoint().expect("taken").number;
    let whole = device.contents(FileId::Manifest);
    put(&store, 100..300, 2);
    device.set_free_space(20_000);
    let failed = store.checkpoint().expect_err("the disk is full");
    assert!(matches!(&failed, CheckpointError::Device(_)), "{failed}");
    assert_eq!(device.list().expect("listed"), [FileId::Manifest], "its remains take no space");
    // Writes and reads go on: nothing of the log is on the disk.
    put(&store, 300..350, 3);
    let model: BTreeMap<u64, u64> =
        (0..350).map(|i| (i, 1 + u64::from(i >= 100) + u64::from(i >= 300))).collect();
    check(&store, &model);
    assert!(store.stats().not_writable.is_none());
    assert_eq!(device.contents(FileId::Manifest), whole, "the last one is as it was");

    // It heals as soon as there is space; and so it does after each other error.
    device.set_free_space(1 << 30);
    let second = store.checkpoint().expect("taken");
    assert!(second.number > first && second.oldest_kept == first);
    let mut last = second.number;
    for operation in [
        Operation::Create,
        Operation::Write,
        Operation::Sync,
        Operation::Rename,
        Operation::SyncDirectory,
    ] {
        for after in 0..3 {
            device.inject(Fault::new(operation, libc_eio()).after(after).times(1));
            let failed = store.checkpoint();
            device.heal();
            let taken = store.checkpoint().unwrap_or_else(|e| panic!("{operation:?}: {e}"));
            assert!(after > 0 || failed.is_err(), "{operation:?}");
            assert!(taken.number > last, "{operation:?}");
            last = taken.number;
        }
    }
    check(&store, &model);
    drop(store);
    let found = Store::open_on(config, device.crash(1)).expect("opens");
    assert_eq!(found.recovery().checkpoint, Some(last));
    check(&found, &model);
}

fn libc_eio() -> i32 {
    5
}

#[test]
fn files_of_the_other_backend_are_refused_and_stay() {
    let directory = tempfile::tempdir().expect("a directory");
    let memory = config(directory.path());
    let disk = layout(directory.path(), 4096, 8);
    let both = [(memory.clone(), disk.clone(), "memory"), (disk, memory, "hybridlog")];
    for (one, other, name) in both {
        drop(fs::remove_dir_all(directory.path().join("checkpoints")));
        let store = Store::open(one.clone()).expect("opens");
        put(&store, 0..200, 1);
        store.checkpoint().expect("taken");
        store.close();
        let before = files(directory.path());
        match Store::open(other) {
            Err(OpenError::OtherBackend { made_by, .. }) => assert_eq!(made_by, name),
            Err(e) => panic!("{e}"),
            Ok(_) => panic!("a store of {name} was opened"),
        }
        assert_eq!(files(directory.path()), before);
        check(&Store::open(one).expect("opens"), &(0..200).map(|i| (i, 1)).collect());
    }
}

#[test]
fn numbers_that_others_know_do_not_come_back() {
    let device = FaultDevice::new();
    let mut config = config("simulated".as_ref());
    let store = Store::open_on(config.clone(), device.clone()).expect("opens");
    let mut numbers = vec![store.checkpoint().expect("taken").number];
    device.inject(Fault::new(Operation::Sync, libc_eio()));
    for _ in 0..5 {
        store.checkpoint().expect_err("a sync fails");
    }
    drop(store);
    device.heal();
    config.numbers_used = 6;
    let store = Store::open_on(config, device).expect("opens");
    numbers.push(store.checkpoint().expect("taken").number);
    numbers.push(store.checkpoint().expect("taken").number);
    assert!(numbers[0] < 6 && numbers[1] > 6 && numbers[2] > numbers[1], "{numbers:?}");
}

/// Waits for what must come.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < Duration::from_secs(60), "it never came: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Neither a checkpoint nor a disk is needed for it.
#[test]
fn overwriting_few_keys_again_and_again_takes_little_memory() {
    let device = FaultDevice::new();
    let store = Store::open_on(config("simulated".as_ref()), device.clone()).expect("opens");
    store.set_space_amplification(Some(1.5));
    let mut most = 0;
    for version in 0..400 {
        put(&store, 0..50, version);
        // The work is given its time: how fast it is is not what this is about.
        until("compaction", || store.stats().log_bytes < 60 * 4096);
        most = most.max(store.stats().log_bytes);
    }
    check(&store, &(0..50).map(|i| (i, 399)).collect());
    let stats = store.stats();
    assert!(stats.log_tail > 10 * most, "{} bytes were written in all", stats.log_tail);
    assert_eq!(device.io_count(), 1, "the disk was looked at once, at the start");
    store.checkpoint().expect("taken");
    let bytes = device.size(FileId::Manifest).expect("it is there");
    assert!(bytes < 2 * most + 64 * 1024, "{bytes} bytes for a log of at most {most}");
    let found = Store::open_on(config("simulated".as_ref()), device.crash(0)).expect("opens");
    check(&found, &(0..50).map(|i| (i, 399)).collect());
}

#[test]
fn a_flush_gives_the_memory_back() {
    let store = Store::open_on(config("simulated".as_ref()), FaultDevice::new()).expect("opens");
    store.set_space_amplification(Some(1.5));
    put(&store, 0..3000, 1);
    let full = store.stats().log_bytes;
    assert!(full > 100 * 4096);
    store.flush_all().expect("flushed");
    // What is in pages that change in place stays until the tail moves on.
    until("the memory", || store.stats().log_bytes <= 8 * 4096);
    put(&store, 0..10, 2);
    check(&store, &(0..10).map(|i| (i, 2)).collect());
}

#[test]
fn what_is_deleted_makes_room_in_a_log_that_is_full() {
    let store = Store::open_on(config("simulated".as_ref()), FaultDevice::new()).expect("opens");
    store.set_space_amplification(Some(1.5));
    let limit = 100 * 4096;
    store.set_memory_limit(limit);
    let mut model = BTreeMap::new();
    for i in 0.. {
        if store.memory_is_full() {
            break;
        }
        put(&store, i..i + 1, 1);
        model.insert(i, 1);
        // The page thread sees each page's turn.
        if i % 16 == 0 {
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    assert!(model.len() > 500, "{} keys fit", model.len());
    check(&store, &model);
    let mut s = store.blocking_session();
    let gone: Vec<u64> = model.keys().copied().filter(|i| i % 5 == 0).collect();
    for i in gone {
        assert!(s.delete(DB, &i.to_le_bytes()).expect("a full log takes deletes"));
        model.remove(&i);
    }
    until("room", || !store.memory_is_full());
    check(&store, &model);
    store.set_memory_limit(0);
    assert!(!store.memory_is_full());
}

/// A checkpoint holds what it writes; what is compacted meanwhile goes when it has ended.
#[test]
fn compaction_and_checkpoints_do_not_disturb_each_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(config(directory.path())).expect("opens");
    store.set_space_amplification(Some(1.2));
    let stop = AtomicBool::new(false);
    support::threads(|threads| {
        let (store, stop) = (&store, &stop);
        threads.spawn(move || {
            for _ in 0..8 {
                store.checkpoint().expect("taken");
                std::thread::sleep(Duration::from_millis(20));
            }
            stop.store(true, Ordering::Relaxed);
        });
        threads.spawn(move || {
            let mut version = 0;
            while !stop.load(Ordering::Relaxed) {
                version += 1;
                put(store, 0..300, version);
                check(store, &(0..300).map(|i| (i, version)).collect());
            }
        });
    });
    put(&store, 0..300, 7);
    store.compact().expect("compacts");
    store.checkpoint().expect("taken");
    assert!(store.stats().compaction.read_bytes > 0);
    store.close();
    let store = Store::open(config(directory.path())).expect("opens");
    check(&store, &(0..300).map(|i| (i, 7)).collect());
    // What came from the file is compacted like all else.
    store.compact().expect("compacts");
    check(&store, &(0..300).map(|i| (i, 7)).collect());
}

/// A damaged file is told with the byte, and a start with the right one goes on.
#[test]
fn expiries_flags_and_databases_come_back() {
    let device = FaultDevice::new();
    let config = config("simulated".as_ref());
    let store = Store::open_on(config.clone(), device.clone()).expect("opens");
    store.pause_expiry_cycle(true);
    let mut s = store.blocking_session();
    for db in 0..3u8 {
        for i in 0..40u64 {
            let expires_at_ms = (i % 2 == 0).then_some(support::FUTURE + i);
            let change = Change::Put { value: &[db; 50], expires_at_ms, encoding: 1 };
            s.rmw(Database(db), &i.to_le_bytes(), |_, _| (change, ())).expect("writes");
        }
    }
    store.swap_databases(Database(0), Database(1)).expect("swapped");
    store.flush_database(Database(2)).expect("flushed");
    store.checkpoint().expect("taken");
    drop((s, store));
    let store = Store::open_on(config, device.crash(3)).expect("opens");
    let mut s = store.blocking_session();
    for (db, byte) in [(0u8, 1u8), (1, 0)] {
        assert_eq!(store.key_count(Database(db)), (40, 20));
        for i in 0..40u64 {
            let found = support::entry_of(&mut s, db, &i.to_le_bytes()).expect("it is there");
            let expiry = (i % 2 == 0).then_some(support::FUTURE + i);
            assert_eq!((found.value, found.encoding), (vec![byte; 50], 1));
            assert_eq!(found.expires_at_ms, expiry);
        }
    }
    assert_eq!(store.key_count(Database(2)), (0, 0));
}
