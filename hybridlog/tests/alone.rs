//! Transactions of many commands ([`Session::alone`](ferrite_hybridlog::Session::alone)): whole to
//! every reader and in every cut, on rings of two pages, beside checkpoints, the expiry cycle,
//! compaction and flushes of databases; and none of these keeps another waiting for ever.

mod support;

use ferrite_hybridlog::device::fault::FaultDevice;
use ferrite_hybridlog::{
    Change, Config, Database, Inside, Operation, OperationError, Session, Stop, Store,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{FUTURE, PAST, layout, tiny};

const DB: Database = Database(0);
/// What is flushed and swapped.
const OTHERS: [Database; 2] = [Database(1), Database(2)];
const TOTAL: u64 = 1000;

/// Calls one command of a transaction until it has its answer.
fn call<R>(
    inside: &mut Inside<'_>,
    op: &mut Operation,
    mut f: impl FnMut(&mut Inside<'_>, &mut Operation) -> Result<R, Stop>,
) -> Result<R, OperationError> {
    op.next_command();
    loop {
        match f(inside, op) {
            Ok(r) => return Ok(r),
            Err(Stop::Pending) => {}
            Err(Stop::Failed(e)) => return Err(e),
        }
    }
}

fn get(inside: &mut Inside<'_>, op: &mut Operation, key: &[u8]) -> Result<u64, OperationError> {
    let bytes = call(inside, op, |inside, op| {
        inside.read(op, DB, key, |v| v.map(|v| v.bytes[..8].to_vec()))
    })?;
    Ok(bytes.map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes"))))
}

fn put(
    inside: &mut Inside<'_>,
    op: &mut Operation,
    (db, key): (Database, &[u8]),
    value: &[u8],
    expires_at_ms: Option<u64>,
) -> Result<(), OperationError> {
    let change = Change::Put { value, expires_at_ms, encoding: 0 };
    call(inside, op, |inside, op| inside.update(op, db, key, |_, _| (change, ())))
}

/// Moves some of `a` to `b` in five commands and more, with fillers between them that push both out
/// of memory; now and then it empties and swaps databases as well.
fn transaction(session: &mut Session, t: u64, i: u64) -> Result<(), OperationError> {
    let mut alone = session.alone();
    let mut op = Operation::new(0);
    let mut inside = alone.enter();
    let a = get(&mut inside, &mut op, b"a")?;
    let b = get(&mut inside, &mut op, b"b")?;
    assert_eq!(a + b, TOTAL, "another transaction is half done");
    let amount = (i % 7).min(a);
    let length = 8 + (i % 40) as usize * 8;
    let value = |n: u64| n.to_le_bytes().repeat(length / 8);
    put(&mut inside, &mut op, (DB, b"a"), &value(a - amount), None)?;
    for filler in 0..i % 12 {
        let key = (t << 32 | filler).to_le_bytes();
        let expiry = [None, Some(PAST), Some(FUTURE)][(i % 3) as usize];
        put(&mut inside, &mut op, (OTHERS[(filler % 2) as usize], &key), &[1; 900], expiry)?;
    }
    if i % 10 == t {
        drop(inside);
        match i % 3 {
            0 => alone.flush_database(OTHERS[0])?,
            1 => alone.swap_databases(OTHERS[0], OTHERS[1])?,
            _ => alone.flush_database(OTHERS[1])?,
        }
        inside = alone.enter();
    }
    // Several keys at once, and more than a quarter of the ring.
    let keys: Vec<[u8; 2]> = (0..6u8).map(|n| [b'm', n]).collect();
    let places: Vec<(Database, &[u8])> = keys.iter().map(|key| (DB, &key[..])).collect();
    call(&mut inside, &mut op, |inside, op| {
        inside.update_many(op, &places, |many| {
            (0..places.len()).for_each(|n| many.put_owned(n, vec![2; 700], None, 0));
        })
    })?;
    put(&mut inside, &mut op, (DB, b"b"), &value(b + amount), None)
}

fn sum(s: &mut ferrite_hybridlog::BlockingSession) -> u64 {
    let mut values = [0; 2];
    s.run(|inside, op| {
        inside.read_many(op, DB, &[b"a", b"b"], |i, v| {
            let bytes = v.expect("it is never absent").bytes[..8].try_into().expect("eight bytes");
            values[i] = u64::from_le_bytes(bytes);
        })
    })
    .expect("reads");
    values.iter().sum()
}

/// Tells the others to end when a thread ends, by a panic too.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Two sessions of transactions, a reader, flushes, the expiry cycle, compaction and checkpoints, of
/// which the last one is from their midst; then the power goes. And again, on what it left.
fn transactions(config: &Config, rounds: u64) {
    let mut device = FaultDevice::new();
    {
        let store = support::open(config, &device);
        let mut s = store.blocking_session();
        s.upsert(DB, b"a", &TOTAL.to_le_bytes()).expect("writes");
        s.upsert(DB, b"b", &0u64.to_le_bytes()).expect("writes");
        store.checkpoint().expect("checkpoints");
    }
    for round in 0..rounds {
        let store = support::open(config, &device);
        store.pause_expiry_cycle(false);
        let found = sum(&mut store.blocking_session());
        assert_eq!(found, TOTAL, "half of a transaction in a cut");
        let stop = AtomicBool::new(false);
        support::threads(|scope| {
            for t in 0..2 {
                let (store, stop) = (&store, &stop);
                scope.spawn(move || {
                    let _stop = StopAtEnd(stop);
                    let mut session = store.session(|| {});
                    let mut i = 0;
                    while !stop.load(Ordering::Relaxed) {
                        transaction(&mut session, t, i).expect("a transaction");
                        i += 1;
                        // The log is to stay small: a start reads all of it.
                        std::thread::sleep(Duration::from_micros(300));
                    }
                });
            }
            scope.spawn(|| {
                let _stop = StopAtEnd(&stop);
                let mut s = store.blocking_session();
                let mut i = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(sum(&mut s), TOTAL, "half of a transaction was seen");
                    i += 1;
                    s.upsert(OTHERS[0], &(i % 20).to_le_bytes(), &[3; 500]).expect("writes");
                    if i.is_multiple_of(50) {
                        store.flush_database(OTHERS[1]).expect("flushes");
                    }
                }
            });
            scope.spawn(|| {
                let _stop = StopAtEnd(&stop);
                while !stop.load(Ordering::Relaxed) {
                    store.compact().expect("compacts");
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let _stop = StopAtEnd(&stop);
            for _ in 0..4 {
                store.checkpoint().expect("checkpoints");
            }
        });
        drop(store);
        device = device.crash(round);
    }
}

#[test]
fn transactions_are_whole_to_readers_and_in_every_cut_on_two_pages() {
    transactions(&tiny(), 8);
}

#[test]
fn transactions_are_whole_on_a_ring_of_eight_pages() {
    transactions(&layout("simulated".as_ref(), 8192, 8), 8);
}

/// A store whose keys 0..100 are on the device alone.
fn cold_store(device: &Arc<FaultDevice>) -> Store {
    let store = support::open(&tiny(), device);
    let mut s = store.blocking_session();
    for n in 0..100u64 {
        s.upsert(DB, &n.to_le_bytes(), &n.to_le_bytes().repeat(60)).expect("writes");
    }
    store
}

#[test]
fn cold_keys_are_read_before_the_gate_is_closed_or_behind_it() {
    let device = FaultDevice::new();
    let store = cold_store(&device);
    let mut session = store.session(|| {});
    let mut op = Operation::new(7);
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let mut inside = session.enter();
        let at_hand = (0..10u64).fold(true, |all, n| {
            let here = inside.fetch_ahead(&mut op, DB, &n.to_le_bytes());
            all && here
        });
        drop(inside);
        if at_hand {
            break;
        }
        assert!(Instant::now() < until, "the reads come to an end");
        session.ready(&mut Vec::new());
        std::thread::yield_now();
    }
    let before = store.stats().device_reads;
    assert!(before >= 10);
    let mut alone = session.alone();
    let mut inside = alone.enter();
    for n in 0..10u64 {
        assert_eq!(get(&mut inside, &mut op, &n.to_le_bytes()), Ok(n));
    }
    assert_eq!(store.stats().device_reads, before, "what was fetched is not read again");
    for n in 10..20u64 {
        assert_eq!(get(&mut inside, &mut op, &n.to_le_bytes()), Ok(n));
    }
    assert_eq!(store.stats().device_reads, before + 10);
}

/// All of a transaction sees one clock, however long it takes.
#[test]
fn the_clock_stands_still_in_a_transaction() {
    let device = FaultDevice::new();
    let store = cold_store(&device);
    let mut session = store.session(|| {});
    let mut alone = session.alone();
    let now = alone.now_ms();
    let mut op = Operation::new(0);
    let mut inside = alone.enter();
    put(&mut inside, &mut op, (DB, b"k"), &[0; 8], Some(now + 2)).expect("writes");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(inside.now_ms(), now);
    // It waits for the device meanwhile.
    assert_eq!(get(&mut inside, &mut op, &5u64.to_le_bytes()), Ok(5));
    let there = |inside: &mut Inside<'_>, op: &mut Operation| {
        call(inside, op, |inside, op| inside.read(op, DB, b"k", |v| v.is_some()))
    };
    assert_eq!(there(&mut inside, &mut op), Ok(true), "its time comes after the transaction");
    drop(inside);
    drop(alone);
    let mut inside = session.enter();
    assert_eq!(there(&mut inside, &mut op), Ok(false));
}

#[test]
fn a_log_that_takes_no_writes_refuses_a_transaction_before_its_first_effect() {
    let device = FaultDevice::new();
    let store = support::open(&tiny(), &device);
    let mut session = store.session(|| {});
    assert!(session.alone().refuse_unwritable(1 << 20).is_ok());
    device.set_free_space(64 << 10);
    let refused = session.alone().refuse_unwritable(1 << 20);
    assert!(matches!(refused, Err(OperationError::NotWritable(_))), "{refused:?}");
}

/// Nobody removes an expired key while expiry is held, and nobody sees it either.
#[test]
fn held_expiry_leaves_expired_keys_where_they_are() {
    let device = FaultDevice::new();
    let store = support::open(&tiny(), &device);
    store.pause_expiry_cycle(false);
    let mut s = store.blocking_session();
    store.at_safepoint(|| store.hold_expiry(u64::MAX));
    let put = Change::Put { value: b"v", expires_at_ms: Some(PAST), encoding: 0 };
    for n in 0..20u8 {
        s.rmw(DB, &[n], |_, _| (put, ())).expect("writes");
    }
    let stop = AtomicBool::new(false);
    support::threads(|scope| {
        scope.spawn(|| {
            // Longer than the cycle rests.
            std::thread::sleep(Duration::from_millis(400));
            stop.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) {
            assert_eq!(s.read(DB, &[3]).expect("reads"), None);
            assert_eq!(store.key_count(DB), (20, 20));
        }
    });
    store.hold_expiry(0);
    let until = Instant::now() + Duration::from_secs(60);
    while store.key_count(DB) != (0, 0) {
        assert!(Instant::now() < until, "the cycle goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}
