//! Many threads on rings of a few tiny pages: nothing is lost, torn, seen half done or out of
//! order, while pages turn, checkpoints are taken, the index grows and databases are flushed.
//!
//! The tests run on the simulated device, so that the disk's speed plays no part, and under
//! ThreadSanitizer and AddressSanitizer too (`.ci/sanitize`).

mod support;

use ferrite_hybridlog::device::Device;
use ferrite_hybridlog::device::fault::{Completion, FaultDevice};
use ferrite_hybridlog::{
    BlockingSession, Change, Config, Database, Inside, Operation, OperationError, Stop, Store,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{keys_on, layout, tiny};

const DB: Database = Database(0);
const THREADS: u64 = 3;

/// Sets `stop` when a thread ends, by a panic too, so that the others do not wait for ever.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A number in so many bytes, of which every word tells it.
fn padded(n: u64, length: usize) -> Vec<u8> {
    n.to_le_bytes().into_iter().cycle().take(length.max(8)).collect()
}

/// The number in such bytes; panics when it is two at once.
fn number(bytes: &[u8]) -> u64 {
    let n = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    assert_eq!(bytes, padded(n, bytes.len()), "a torn value");
    n
}

fn put(s: &mut BlockingSession, key: &[u8], value: &[u8]) -> Result<(), OperationError> {
    s.upsert(DB, key, value)
}

fn sum(s: &mut BlockingSession, accounts: &[Vec<u8>]) -> Result<u64, OperationError> {
    let names: Vec<&[u8]> = accounts.iter().map(Vec::as_slice).collect();
    let mut values = vec![None; names.len()];
    s.run(|inside, op| {
        inside.read_many(op, DB, &names, |i, v| values[i] = v.map(|v| number(v.bytes)))
    })?;
    Ok(values.into_iter().map(|v| v.expect("an account is never absent")).sum())
}

/// Moves an amount between two accounts and changes the lengths of both values.
fn transfer(
    s: &mut BlockingSession,
    accounts: &[Vec<u8>],
    random: &mut Random,
) -> Result<(), OperationError> {
    let from = random.below(accounts.len() as u64) as usize;
    let to = random.below(accounts.len() as u64) as usize;
    if from == to {
        return Ok(());
    }
    let (amount, length) = (random.below(10), 8 + random.below(200) as usize);
    let places = [(DB, &accounts[from][..]), (DB, &accounts[to][..])];
    s.run(|inside, op| {
        inside.update_many(op, &places, |many| {
            let held = |i| many.get(i).map(|v| number(v.bytes)).expect("it is never absent");
            let (there, here) = (held(0), held(1));
            let amount = amount.min(there);
            many.put_owned(0, padded(there - amount, length), None, 0);
            many.put_owned(1, padded(here + amount, length / 2), None, 0);
        })
    })
}

const EACH: u64 = 1000;

/// Transfers, sums, single increments, cold fillers and checkpoints; then the power goes.
fn transfers(config: Config, completion: Completion, rounds: u64, seed: u64) {
    let device = FaultDevice::new();
    device.set_completion(completion);
    let store = support::open(&config, &device);
    let accounts = keys_on(&device, 5, 3);
    let total = accounts.len() as u64 * EACH;
    let mut s = store.blocking_session();
    for account in &accounts {
        put(&mut s, account, &padded(EACH, 8)).expect("writes");
    }
    store.checkpoint().expect("checkpoints");
    let stop = AtomicBool::new(false);
    let ended = AtomicU64::new(0);
    support::threads(|scope| {
        for t in 0..THREADS {
            let (store, accounts, stop, ended) = (&store, &accounts, &stop, &ended);
            scope.spawn(move || {
                let _stop = StopAtEnd(stop);
                let mut s = store.blocking_session();
                let mut random = Random(seed * 100 + t);
                for i in 0.. {
                    let done = transfer(&mut s, accounts, &mut random).and_then(|()| {
                        let filler = ((t << 32) + i % 50).to_le_bytes();
                        put(&mut s, &filler, &padded(i, 300))
                    });
                    match done {
                        Ok(()) if i == rounds => drop(ended.fetch_add(1, Ordering::Relaxed)),
                        Ok(()) => {}
                        // The power was cut.
                        Err(OperationError::NotWritable(_) | OperationError::Unreadable(_)) => {
                            assert!(
                                ended.load(Ordering::Relaxed) == THREADS,
                                "it failed too early"
                            );
                            return;
                        }
                        Err(e) => panic!("{e}"),
                    }
                }
            });
        }
        {
            let (store, accounts, stop) = (&store, &accounts, &stop);
            scope.spawn(move || {
                let mut s = store.blocking_session();
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(found) = sum(&mut s, accounts) {
                        assert_eq!(found, total, "half of a transfer was seen");
                    }
                }
            });
        }
        while ended.load(Ordering::Relaxed) < THREADS && !stop.load(Ordering::Relaxed) {
            store.checkpoint().expect("checkpoints");
        }
        drop(device.crash(seed));
    });
    drop(store);
    for crash in 0..4 {
        let after = device.crash(seed + crash);
        let store = support::open(&config, &after);
        let mut s = store.blocking_session();
        assert_eq!(sum(&mut s, &accounts).expect("reads"), total, "half of a transfer in a cut");
    }
}

#[test]
fn transfers_are_whole_to_readers_and_in_every_cut_on_two_pages() {
    transfers(tiny(), Completion::InOrder, 400, 1);
}

#[test]
fn transfers_are_whole_to_readers_and_in_every_cut_on_a_disk_that_reorders() {
    transfers(layout("simulated".as_ref(), 8192, 6), Completion::Shuffled(7), 1500, 2);
}

/// Reads of one key each take no latch: whoever has seen a command's first effect must see its
/// last one, too.
#[test]
fn a_command_of_several_keys_is_whole_to_those_who_read_one_at_a_time() {
    let device = FaultDevice::new();
    let store = support::open(&layout("simulated".as_ref(), 16 << 10, 8), &device);
    // Many effects between the first and the last one, so that a reader often comes between them.
    let keys: Vec<[u8; 4]> = (0..100u32).map(u32::to_le_bytes).collect();
    let places: Vec<(Database, &[u8])> = keys.iter().map(|key| (DB, &key[..])).collect();
    let (first, last) = (keys[0], keys[keys.len() - 1]);
    let write = |s: &mut BlockingSession, version: u64| {
        s.run(|inside, op| {
            inside.update_many(op, &places, |many| {
                (0..places.len()).for_each(|i| many.put_owned(i, padded(version, 8), None, 0));
            })
        })
        .expect("writes");
    };
    write(&mut store.blocking_session(), 0);
    let stop = AtomicBool::new(false);
    support::threads(|scope| {
        scope.spawn(|| {
            let _stop = StopAtEnd(&stop);
            let mut s = store.blocking_session();
            (1..=4000).for_each(|version| write(&mut s, version));
        });
        scope.spawn(|| {
            let mut s = store.blocking_session();
            let mut read = |key| number(&s.read(DB, key).expect("reads").expect("it is there"));
            while !stop.load(Ordering::Relaxed) {
                let (before, after) = (read(&first), read(&last));
                assert!(after >= before, "{after} after {before}: half of a command was seen");
            }
        });
    });
}

#[test]
fn a_key_never_goes_back_and_is_never_torn() {
    let device = FaultDevice::new();
    let store = support::open(&tiny(), &device);
    let keys = keys_on(&device, 4, 3);
    let stop = AtomicBool::new(false);
    let running = AtomicU64::new(THREADS);
    support::threads(|scope| {
        for t in 0..THREADS as usize {
            let (store, keys, stop, running) = (&store, &keys, &stop, &running);
            scope.spawn(move || {
                let at_end = StopAtEnd(stop);
                let mut s = store.blocking_session();
                let mut random = Random(t as u64);
                for version in 1..=1500u64 {
                    // This thread's keys only, so that versions grow.
                    let own = keys.len() / THREADS as usize;
                    let key = &keys[t + THREADS as usize * random.below(own as u64) as usize];
                    let length = [8, 40, 120, 500][random.below(4) as usize];
                    if random.below(12) == 0 {
                        s.delete(DB, key).expect("deletes");
                    }
                    put(&mut s, key, &padded(version, length)).expect("writes");
                    let found = s.read(DB, key).expect("reads").expect("just written");
                    assert_eq!(number(&found), version, "a write was lost");
                }
                // The last one ends it for the readers.
                if running.fetch_sub(1, Ordering::Relaxed) > 1 {
                    std::mem::forget(at_end);
                }
            });
        }
        for _ in 0..2 {
            let (store, keys, stop) = (&store, &keys, &stop);
            scope.spawn(move || {
                let mut s = store.blocking_session();
                let mut latest = vec![0; keys.len()];
                while !stop.load(Ordering::Relaxed) {
                    for (key, latest) in keys.iter().zip(&mut latest) {
                        if let Some(bytes) = s.read(DB, key).expect("reads") {
                            let version = number(&bytes);
                            assert!(version >= *latest, "{version} after {latest}");
                            *latest = version;
                        }
                    }
                }
            });
        }
        while !stop.load(Ordering::Relaxed) {
            store.checkpoint().expect("checkpoints");
        }
    });
}

#[test]
fn every_walk_meets_what_is_there_all_along_while_the_index_grows() {
    let device = FaultDevice::new();
    let store = support::open(&layout("simulated".as_ref(), 4096, 8), &device);
    let stable: Vec<Vec<u8>> = (0..150u32).map(|i| format!("stable {i}").into_bytes()).collect();
    let mut s = store.blocking_session();
    stable.iter().for_each(|key| put(&mut s, key, b"12345678").expect("writes"));
    let stop = AtomicBool::new(false);
    support::threads(|scope| {
        for t in 0..2u64 {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || {
                let _stop = StopAtEnd(stop);
                let mut s = store.blocking_session();
                for i in 0..2500u64 {
                    let key = |i: u64| ((t << 32) + i).to_be_bytes();
                    put(&mut s, &key(i), &padded(i, 24)).expect("writes");
                    if i % 3 == 2 {
                        assert!(s.delete(DB, &key(i - 1)).expect("deletes"));
                    }
                }
            });
        }
        {
            let (store, stable, stop) = (&store, &stable, &stop);
            scope.spawn(move || {
                let mut s = store.blocking_session();
                let mut random = Random(3);
                // Overwrites move the stable keys through the log, in place and to the tail.
                while !stop.load(Ordering::Relaxed) {
                    let key = &stable[random.below(stable.len() as u64) as usize];
                    put(&mut s, key, &padded(random.below(9), 8 + random.below(40) as usize))
                        .expect("writes");
                }
            });
        }
        loop {
            let met = support::walk(&mut s, 0);
            let missed = stable.iter().find(|key| !met.contains(*key));
            assert!(missed.is_none(), "{missed:?} was missed");
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
    });
    let met = support::walk(&mut s, 0);
    assert_eq!(met.len() as u64, store.key_count(DB).0);
}

#[test]
fn a_pair_of_keys_is_flushed_and_swapped_together() {
    let device = FaultDevice::new();
    let store = support::open(&tiny(), &device);
    let stop = AtomicBool::new(false);
    let twins: [&[u8]; 2] = [b"one", b"other"];
    support::threads(|scope| {
        for t in 0..2u64 {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || {
                let _stop = StopAtEnd(stop);
                let mut s = store.blocking_session();
                for i in 0..600u64 {
                    let db = Database((i % 2) as u8);
                    let places = [(db, twins[0]), (db, twins[1])];
                    // Every fourth one is too large for a ticket, and runs alone.
                    let length = if i % 4 == 0 { 900 } else { 30 };
                    let value = padded((t << 32) + i, length);
                    s.run(|inside, op| {
                        inside.update_many(op, &places, |many| {
                            many.put_owned(0, value.clone(), None, 0);
                            many.put_owned(1, value.clone(), None, 0);
                        })
                    })
                    .expect("writes");
                }
            });
        }
        {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || {
                let mut random = Random(5);
                while !stop.load(Ordering::Relaxed) {
                    match random.below(4) {
                        0 => store.flush_database(Database(0)).expect("flushes"),
                        1 => store.swap_databases(Database(0), Database(1)).expect("swaps"),
                        2 => store.flush_all().expect("flushes"),
                        _ => drop(store.checkpoint().expect("checkpoints")),
                    }
                }
            });
        }
        let mut s = store.blocking_session();
        while !stop.load(Ordering::Relaxed) {
            for db in 0..2 {
                let mut seen = [None, None];
                s.run(|inside, op| {
                    inside.read_many(op, Database(db), &twins, |i, v| {
                        seen[i] = v.map(|v| number(v.bytes));
                    })
                })
                .expect("reads");
                assert_eq!(seen[0], seen[1], "half of a flush or a command was seen");
            }
        }
    });
    store.checkpoint().expect("checkpoints");
    let counts = [0, 1].map(|db| store.key_count(Database(db)));
    drop(store);
    let store = Store::open_on(tiny(), device.clone() as Arc<dyn Device>).expect("opens");
    let mut s = store.blocking_session();
    for (db, count) in counts.into_iter().enumerate() {
        assert_eq!(store.key_count(Database(db as u8)), count);
        assert_eq!(support::walk(&mut s, db as u8).len() as u64, count.0, "after a restart");
    }
}

/// Expiring keys are removed by the cycle, by readers and by writers at once, and counted once.
#[test]
fn expiring_keys_are_counted_exactly_whoever_removes_them() {
    let device = FaultDevice::new();
    let store = support::open(&tiny(), &device);
    store.pause_expiry_cycle(false);
    support::threads(|scope| {
        for t in 0..THREADS {
            let store = &store;
            scope.spawn(move || {
                let mut s = store.blocking_session();
                let mut random = Random(t);
                for i in 0..1500u64 {
                    let key = random.below(60).to_le_bytes();
                    let expires_at_ms = match i % 3 {
                        0 => Some(support::PAST),
                        1 => Some(support::FUTURE),
                        _ => None,
                    };
                    let change = match random.below(4) {
                        0 => Change::Delete,
                        1 => Change::Expire(expires_at_ms),
                        _ => Change::Put { value: b"a value", expires_at_ms, encoding: 0 },
                    };
                    s.rmw(DB, &key, |_, _| (change, ())).expect("changes");
                    s.read(DB, &random.below(60).to_le_bytes()).expect("reads");
                }
            });
        }
        for _ in 0..5 {
            store.checkpoint().expect("checkpoints");
        }
    });
    let mut s = store.blocking_session();
    let mut counts = (0, 0);
    for key in 0..60u64 {
        s.rmw(DB, &key.to_le_bytes(), |_, _| (Change::Keep, ())).expect("touches");
        if let Some(entry) = support::entry_of(&mut s, 0, &key.to_le_bytes()) {
            counts = (counts.0 + 1, counts.1 + u64::from(entry.expires_at_ms.is_some()));
        }
    }
    assert_eq!(store.key_count(DB), counts);
}

/// A command of several keys meets a writer that holds one of their latches whenever it looks, and
/// runs alone at its ninth try at the latest.
fn gets_its_turn(mut command: impl FnMut(&mut Inside<'_>, &mut Operation) -> Result<(), Stop>) {
    let device = FaultDevice::new();
    let store = support::open(&tiny(), &device);
    let (holds, over) = (AtomicBool::new(false), AtomicBool::new(false));
    support::threads(|scope| {
        let (store, holds, over) = (&store, &holds, &over);
        scope.spawn(move || {
            let mut s = store.blocking_session();
            while !over.load(Ordering::SeqCst) {
                let held = s.run(|inside, op| {
                    inside.update_many(op, &[(DB, b"one"), (DB, b"two")], |many| {
                        many.put_owned(1, b"held".to_vec(), None, 0);
                        holds.store(true, Ordering::SeqCst);
                        // Until the command has looked. One that closes the gate waits for us.
                        let since = Instant::now();
                        while holds.load(Ordering::SeqCst)
                            && !over.load(Ordering::SeqCst)
                            && since.elapsed() < Duration::from_secs(1)
                        {
                            std::thread::yield_now();
                        }
                    })
                });
                held.expect("writes");
            }
        });
        let _over = StopAtEnd(over);
        let mut session = store.session(|| {});
        let mut op = Operation::new(1);
        for tries in 1.. {
            while !holds.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let outcome = command(&mut session.enter(), &mut op);
            holds.store(false, Ordering::SeqCst);
            match outcome {
                Ok(()) => break,
                Err(Stop::Pending) => assert!(tries <= 8, "it was sent away {tries} times"),
                Err(Stop::Failed(e)) => panic!("{e}"),
            }
        }
    });
}

#[test]
fn a_reader_of_several_keys_gets_its_turn() {
    gets_its_turn(|inside, op| inside.read_many(op, DB, &[b"two", b"three"], |_, _| {}));
}

#[test]
fn a_writer_of_several_keys_gets_its_turn() {
    gets_its_turn(|inside, op| {
        inside.update_many(op, &[(DB, b"two"), (DB, b"three")], |many| {
            many.put_owned(0, b"mine".to_vec(), None, 0);
        })
    });
}
