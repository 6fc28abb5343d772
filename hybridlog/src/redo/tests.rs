//! The redo log of a store: what its reader gets is what was written, in an order that gives the same
//! data again.

use super::*;
use crate::device::fault::{Completion, FaultDevice};
use crate::log::health::Shortage;
use crate::{Change, Config, Database, Operation, Stop, Store};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

const DB: Database = Database(0);

fn small(directory: &std::path::Path, ring: u64) -> Config {
    let mut config = Config::new(directory);
    (config.page_size, config.segment_size) = (16 << 10, 64 << 10);
    (config.mutable_size, config.readonly_size) = (64 << 10, 64 << 10);
    config.redo_ring_size = ring;
    config.databases = 3;
    config
}

/// A database: values and expiries by key.
type Contents = BTreeMap<Vec<u8>, (Vec<u8>, Option<u64>)>;

/// What a reader makes of the entries: data by database, and what stood between `Begin` and `End`.
#[derive(Default)]
struct Replayed {
    data: [Contents; 3],
    marks: Vec<u64>,
    groups: Vec<usize>,
    open: Option<usize>,
    last: u64,
}

impl Replayed {
    fn take(&mut self, entry: RedoEntry<'_>) {
        assert!(entry.position > self.last && entry.time_ms > 0);
        self.last = entry.position;
        let db = usize::from(entry.database);
        if let Some(open) = &mut self.open {
            *open += 1;
        }
        match entry.effect {
            RedoEffect::Put { key, value, expires_at_ms } => {
                self.data[db].insert(key.to_vec(), (value.to_vec(), expires_at_ms));
            }
            RedoEffect::Delete { key } => {
                self.data[db].remove(key).expect("only what is there is deleted");
            }
            RedoEffect::Expire { key, at_ms } => {
                self.data[db].get_mut(key).expect("only what is there expires").1 = at_ms;
            }
            RedoEffect::Flush => self.data[db].clear(),
            RedoEffect::FlushAll => self.data.iter_mut().for_each(BTreeMap::clear),
            RedoEffect::Swap { with } => self.data.swap(db, usize::from(with)),
            RedoEffect::Begin => assert!(self.open.replace(0).is_none()),
            RedoEffect::End => {
                self.groups.push(self.open.take().expect("it was begun") - 1);
            }
            RedoEffect::Mark(mark) => self.marks.push(mark),
        }
    }
    fn drain(&mut self, reader: &mut RedoReader) {
        while let Some(entry) = reader.next() {
            self.take(entry);
        }
        self.marks.iter().for_each(|mark| reader.cut_done(*mark));
        reader.release();
    }
}

fn contents(store: &Store, db: u8) -> Contents {
    let mut s = store.blocking_session();
    let (mut all, mut cursor) = (BTreeMap::new(), 0);
    loop {
        let mut found = Vec::new();
        cursor = s
            .run(|inside, op| {
                found.clear();
                inside.walk(op, Database(db), cursor, |v| found.push(v.key.to_vec()))
            })
            .expect("walks");
        for key in found {
            let value = s.run(|inside, op| {
                inside.read(op, Database(db), &key, |v| {
                    v.map(|v| (v.bytes.to_vec(), v.expires_at_ms))
                })
            });
            if let Some(value) = value.expect("reads") {
                all.insert(key, value);
            }
        }
        if cursor == 0 {
            return all;
        }
    }
}

#[test]
fn every_kind_of_effect_comes_out_as_it_happened() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(dir.path(), 4096)).expect("opens");
    let mut s = store.blocking_session();
    s.upsert(DB, b"before", b"nobody reads yet").expect("writes");
    let mut reader = store.redo().expect("the store has a ring");
    assert!(store.redo().is_none(), "there is one reader");
    let mut seen = Replayed::default();
    seen.data[0].insert(b"before".to_vec(), (b"nobody reads yet".to_vec(), None));
    let far = 1 << 43;
    s.upsert(DB, b"a", b"1").expect("writes");
    s.upsert(DB, b"a", &[7; 3000]).expect("writes"); // larger than the ring takes
    s.rmw(DB, b"a", |_, _| (Change::Expire(Some(far)), ())).expect("writes");
    s.upsert(Database(1), b"b", b"2").expect("writes");
    store.swap_databases(DB, Database(1)).expect("swaps");
    seen.drain(&mut reader);
    s.upsert(DB, b"c", b"after the swap").expect("writes");
    s.rmw(Database(1), b"a", |_, _| (Change::Expire(None), ())).expect("writes");
    let keys: [(Database, &[u8]); 3] = [(DB, b"x"), (DB, b"y"), (DB, b"c")];
    let change = |inside: &mut crate::Inside<'_>, op: &mut Operation| {
        inside.update_many(op, &keys, |many| {
            many.set(0, Change::Put { value: b"1", expires_at_ms: Some(far), encoding: 0 });
            many.copy(2, 1);
            many.set(2, Change::Delete);
        })
    };
    s.run(change).expect("writes");
    let cut = std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| store.checkpoint().expect("checkpoints").number);
        while seen.marks.is_empty() {
            seen.drain(&mut reader);
        }
        checkpoint.join().expect("it is taken once its mark was")
    });
    assert_eq!((seen.marks.as_slice(), seen.groups.as_slice()), ([cut].as_slice(), [3].as_slice()));
    for db in 0..3u8 {
        assert_eq!(contents(&store, db), seen.data[usize::from(db)], "database {db}");
    }
    store.flush_database(DB).expect("flushes");
    s.upsert(DB, b"new", b"1").expect("writes");
    seen.drain(&mut reader);
    assert_eq!(contents(&store, 0), seen.data[0]);
    store.flush_all().expect("flushes");
    seen.drain(&mut reader);
    assert!(seen.data.iter().all(BTreeMap::is_empty));
}

#[test]
fn a_key_that_expired_is_deleted_in_the_redo_log_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(dir.path(), 4096)).expect("opens");
    store.pause_expiry_cycle(true);
    let mut reader = store.redo().expect("the store has a ring");
    let mut s = store.blocking_session();
    let put = Change::Put { value: b"x", expires_at_ms: Some(1000), encoding: 0 };
    s.rmw(DB, b"k", |_, _| (put, ())).expect("writes");
    assert_eq!(s.read(DB, b"k").expect("reads"), None);
    let mut effects = Vec::new();
    while let Some(entry) = reader.next() {
        effects.push(matches!(entry.effect, RedoEffect::Delete { key: b"k" }));
    }
    assert_eq!(effects, [false, true]);
}

/// Many writers, a ring of 4 KiB, checkpoints and commands of several keys that fit it or do not: what
/// the reader has at the end is what the store holds, and no group was mixed with anything.
#[test]
fn the_order_of_entries_is_the_order_of_changes() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(dir.path(), 4096)).expect("opens");
    let mut reader = store.redo().expect("the store has a ring");
    let done = AtomicBool::new(false);
    let mut seen = Replayed::default();
    std::thread::scope(|scope| {
        let taker = scope.spawn(|| {
            reader.move_here();
            let mut seen = Replayed::default();
            while !done.load(Ordering::Acquire) || reader.backlog().0 > 0 {
                seen.drain(&mut reader);
                reader.sleep(Duration::from_millis(5));
            }
            (seen, reader)
        });
        let writers: Vec<_> = (0..3u64)
            .map(|t| {
                let store = &store;
                scope.spawn(move || {
                    let mut s = store.blocking_session();
                    for i in 0..3000u64 {
                        let key = ((i * 7 + t) % 40).to_le_bytes();
                        match i % 11 {
                            0 => drop(s.delete(DB, &key).expect("deletes")),
                            1 => {
                                let keys: Vec<_> = (0..1 + i % 60).map(u64::to_le_bytes).collect();
                                let places: Vec<(Database, &[u8])> =
                                    keys.iter().map(|k| (DB, k.as_slice())).collect();
                                let run = |inside: &mut crate::Inside<'_>, op: &mut Operation| {
                                    inside.update_many(op, &places, |many| {
                                        for at in 0..places.len() {
                                            many.put_owned(at, i.to_le_bytes().to_vec(), None, 0);
                                        }
                                    })
                                };
                                s.run(run).expect("writes");
                            }
                            _ => s
                                .upsert(DB, &key, &vec![t as u8; (i % 300) as usize])
                                .expect("writes"),
                        }
                    }
                })
            })
            .collect();
        for _ in 0..5 {
            store.checkpoint().expect("checkpoints");
        }
        writers.into_iter().for_each(|w| w.join().expect("a writer's checks hold"));
        done.store(true, Ordering::Release);
        store.wake_redo();
        seen = taker.join().expect("the reader's checks hold").0;
    });
    assert_eq!(seen.marks.len(), 5);
    assert!(seen.groups.len() > 100 && store.stats().parked_for_redo > 0);
    assert_eq!(contents(&store, 0), seen.data[0]);
}

#[test]
fn a_reader_that_holds_keeps_writers_waiting_and_readers_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(dir.path(), 4096)).expect("opens");
    let _reader = store.redo().expect("the store has a ring");
    let mut session = store.session(|| {});
    store.hold_redo(true);
    let mut op = Operation::new(7);
    let put = |session: &mut crate::Session, op: &mut Operation| {
        let mut inside = session.enter();
        let put = |_: Option<crate::Value<'_>>, _: &mut Vec<u8>| {
            (Change::Put { value: b"v", expires_at_ms: None, encoding: 0 }, ())
        };
        let outcome = inside.update(op, DB, b"k", put);
        (outcome, inside.depends_on())
    };
    assert_eq!(put(&mut session, &mut op), (Err(Stop::Pending), 0));
    let mut ready = Vec::new();
    session.ready(&mut ready);
    assert_eq!(ready, [] as [u64; 0]);
    let read = session.enter().read(&mut Operation::new(8), DB, b"k", |v| v.is_some());
    assert_eq!(read, Ok(false));
    store.hold_redo(false);
    session.ready(&mut ready);
    assert_eq!(ready, [7]);
    let (outcome, end) = put(&mut session, &mut op);
    assert!(outcome.is_ok() && end > 0);
}

/// Of what is told of all keys together the newest may be the cause, also one that came while it was read.
#[test]
fn who_reads_all_keys_learns_what_must_be_durable_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(dir.path(), 4096)).expect("opens");
    let _reader = store.redo().expect("the store has a ring");
    store.track_readers(true);
    let mut s = store.blocking_session();
    let mut session = store.session(|| {});
    let mut op = Operation::new(0);
    let mut tell = |f: &mut dyn FnMut(&mut crate::Inside<'_>, &mut Operation)| {
        let mut inside = session.enter();
        f(&mut inside, &mut op);
        inside.depends_on()
    };
    for keys in 0..2 {
        if keys > 0 {
            s.upsert(DB, b"one", b"1").expect("writes");
        } else {
            s.upsert(DB, b"gone", b"1").expect("writes");
            s.delete(DB, b"gone").expect("deletes");
        }
        let count = tell(&mut |inside, op| assert_eq!(inside.key_count(op, DB), Ok(keys)));
        let random = tell(&mut |inside, op| {
            assert_eq!(inside.random_key(op, DB, |v| u64::from(v.is_some())), Ok(keys));
        });
        let walk = tell(&mut |inside, op| drop(inside.walk(op, DB, 0, |_| ())));
        assert_eq!([count, random, walk], [store.redo_tail(); 3], "{keys} keys");
    }
    let walk = tell(&mut |inside, op| {
        let meanwhile = |_: crate::Value<'_>| s.upsert(DB, b"two", b"1").expect("writes");
        inside.walk(op, DB, 0, meanwhile).map(drop).expect("nothing waits");
    });
    assert_eq!(walk, store.redo_tail(), "what is written during the walk may have been read");
}

#[test]
fn who_reads_learns_what_must_be_durable_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(dir.path(), 4096)).expect("opens");
    let mut reader = store.redo().expect("the store has a ring");
    let mut s = store.blocking_session();
    s.upsert(DB, b"early", b"1").expect("writes");
    let mut session = store.session(|| {});
    let mut depends = |keys: &[&[u8]], store: &Store| {
        let mut inside = session.enter();
        let mut op = Operation::new(0);
        if let [key] = keys {
            drop(inside.read(&mut op, DB, key, |_| ()));
        } else {
            drop(inside.read_many(&mut op, DB, keys, |_, _| ()));
        }
        let depends = inside.depends_on();
        assert!(depends <= store.redo_tail());
        depends
    };
    assert_eq!(depends(&[b"early"], &store), 0, "nobody asked for it");
    store.track_readers(true);
    let early = store.redo_tail();
    assert_eq!(depends(&[b"early"], &store), early, "what came before counts");
    s.upsert(DB, b"late", b"1").expect("writes");
    let late = store.redo_tail();
    assert_eq!(depends(&[b"late"], &store), late);
    assert_eq!(depends(&[b"early"], &store), early);
    assert_eq!(depends(&[b"early", b"late"], &store), late);
    s.delete(DB, b"late").expect("deletes");
    assert_eq!(depends(&[b"late"], &store), store.redo_tail(), "that it is gone could be lost");
    let both: [(Database, &[u8]); 2] = [(DB, b"one"), (DB, b"other")];
    let put = |inside: &mut crate::Inside<'_>, op: &mut Operation| {
        inside.update_many(op, &both, |many| {
            (0..2).for_each(|at| many.put_owned(at, vec![1], None, 0));
        })
    };
    s.run(put).expect("writes");
    for key in [b"one".as_slice(), b"other"] {
        assert_eq!(depends(&[key], &store), store.redo_tail(), "both are of one command");
    }
    store.flush_database(Database(2)).expect("nothing is there");
    s.upsert(Database(2), b"x", b"1").expect("writes");
    store.flush_all().expect("flushes");
    assert_eq!(depends(&[b"never written"], &store), store.redo_tail(), "it may come back");
    while reader.next().is_some() {}
    reader.durable(late);
    assert_eq!(store.redo_durable(), late);
}

/// What a session writes alone stands between one `Begin` and one `End`, whatever it consists of; what
/// wrote nothing leaves nothing.
#[test]
fn a_transaction_is_one_group_even_when_the_ring_is_smaller() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(dir.path(), 4096)).expect("opens");
    let mut reader = store.redo().expect("the store has a ring");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let taker = scope.spawn(|| {
            reader.move_here();
            let mut seen = Replayed::default();
            while !done.load(Ordering::Acquire) || reader.backlog().0 > 0 {
                seen.drain(&mut reader);
                reader.sleep(Duration::from_millis(5));
            }
            seen
        });
        let mut session = store.session(|| {});
        drop(session.alone());
        {
            let mut alone = session.alone();
            alone.flush_all().expect("nothing is there: no entry");
            let mut op = Operation::new(0);
            let mut put = |db: u8, keys: std::ops::Range<u64>, alone: &mut crate::Alone<'_>| {
                let keys: Vec<_> = keys.map(u64::to_le_bytes).collect();
                let places: Vec<(Database, &[u8])> =
                    keys.iter().map(|k| (Database(db), k.as_slice())).collect();
                loop {
                    let mut inside = alone.enter();
                    let outcome = inside.update_many(&mut op, &places, |many| {
                        for at in 0..places.len() {
                            many.put_owned(at, vec![1; 100], None, 0);
                        }
                    });
                    match outcome {
                        Ok(()) => break,
                        Err(Stop::Pending) => {}
                        Err(Stop::Failed(e)) => panic!("{e}"),
                    }
                }
            };
            put(0, 0..3, &mut alone);
            put(0, 0..100, &mut alone);
            alone.swap_databases(Database(0), Database(2)).expect("swaps");
            put(1, 0..1, &mut alone);
        }
        done.store(true, Ordering::Release);
        store.wake_redo();
        let seen = taker.join().expect("the reader's checks hold");
        assert_eq!(seen.groups, [3 + 100 + 1 + 1]);
        for db in 0..3u8 {
            assert_eq!(contents(&store, db), seen.data[usize::from(db)], "database {db}");
        }
    });
}

/// A write that found its place in the redo log and then no page left a position that no entry ever
/// had: whoever waited for it waited for the next write.
#[test]
fn the_reader_passes_places_that_were_not_used() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(directory.path(), 4096)).expect("opens");
    let mut reader = store.redo().expect("it has one");
    let redo = reader.redo();
    let effect = Effect::Delete { key: b"k" };
    let words = redo.words([effect]);
    drop(redo.reserve(words, 1).expect("there is room"));
    assert!(reader.position() < store.redo_tail());
    assert!(reader.next().is_none());
    assert_eq!(reader.position(), store.redo_tail());
}

fn put_alone(alone: &mut crate::Alone<'_>, key: &[u8], value: &[u8]) {
    let mut op = Operation::new(0);
    let put = Change::Put { value, expires_at_ms: None, encoding: 0 };
    loop {
        match alone.enter().update(&mut op, DB, key, |_, _| (put, ())) {
            Ok(()) => return,
            Err(Stop::Pending) => {}
            Err(Stop::Failed(e)) => panic!("{e}"),
        }
    }
}

/// Runs it on a thread of its own: what waits for ever fails the test instead of hanging it.
fn comes_to_an_end<R: Send + 'static>(run: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, end) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || drop(done.send(run())));
    let result = end.recv_timeout(Duration::from_secs(60)).expect("it comes to an end");
    thread.join().expect("no panic");
    result
}

/// The end of a transaction waits for room like any entry: held back because the transaction is not
/// on the disk, which it is not before its end, both would wait for ever.
#[test]
fn who_runs_alone_is_not_held() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(dir.path(), 4096)).expect("opens");
    let mut reader = store.redo().expect("the store has a ring");
    let held = store.clone();
    comes_to_an_end(move || {
        let mut session = held.session(|| {});
        let mut alone = session.alone();
        put_alone(&mut alone, b"a", b"1");
        held.hold_redo(true);
        put_alone(&mut alone, b"b", b"2");
        alone.flush_all().expect("flushes");
    });
    let mut seen = Replayed::default();
    seen.drain(&mut reader);
    assert_eq!(seen.groups, [3]);
    store.hold_redo(false);
}

/// A reader does not wait to remove what has expired; whoever tells how many keys there are does.
#[test]
fn what_a_reader_found_expired_does_not_count() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(dir.path(), 4096)).expect("opens");
    let _reader = store.redo().expect("the store has a ring");
    let mut session = store.session(|| {});
    let put = Change::Put { value: b"v", expires_at_ms: Some(1), encoding: 0 };
    let written = session.enter().update(&mut Operation::new(1), DB, b"k", |_, _| (put, ()));
    assert_eq!(written, Ok::<(), Stop>(()));
    let count =
        |session: &mut crate::Session| session.enter().key_count(&mut Operation::new(2), DB);
    assert_eq!(count(&mut session), Ok(1), "nobody knows yet");
    store.hold_redo(true);
    let read = session.enter().read(&mut Operation::new(3), DB, b"k", |value| value.is_some());
    assert_eq!(read, Ok(false));
    assert_eq!(count(&mut session), Err(Stop::Pending));
    assert_eq!(store.key_count(DB).0, 1);
    store.hold_redo(false);
    assert_eq!((count(&mut session), store.key_count(DB).0), (Ok(0), 0));
    // A key that lives again counts.
    let put = Change::Put { value: b"v", expires_at_ms: None, encoding: 0 };
    let written = session.enter().update(&mut Operation::new(4), DB, b"k", |_, _| (put, ()));
    assert_eq!((written, count(&mut session)), (Ok::<(), Stop>(()), Ok(1)));
}

/// Whoever would run alone waits before the gate is closed: readers go on.
#[test]
fn what_is_held_does_not_close_the_gate() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(dir.path(), 4096)).expect("opens");
    let mut reader = store.redo().expect("the store has a ring");
    let mut session = store.session(|| {});
    assert!(session.enter().may_write(&mut Operation::new(1)));
    store.hold_redo(true);
    assert!(!session.enter().may_write(&mut Operation::new(1)));
    let keys: Vec<_> = (0..100u64).map(u64::to_le_bytes).collect();
    let many = move |session: &mut crate::Session| {
        let places: Vec<(Database, &[u8])> = keys.iter().map(|k| (DB, k.as_slice())).collect();
        let mut inside = session.enter();
        inside.update_many(&mut Operation::new(2), &places, |many| {
            (0..places.len()).for_each(|at| many.put_owned(at, vec![1; 100], None, 0));
        })
    };
    let (outcome, mut session, many) = comes_to_an_end(move || {
        let outcome = many(&mut session);
        (outcome, session, many)
    });
    assert_eq!(outcome, Err(Stop::Pending));
    store.hold_redo(false);
    let mut ready = Vec::new();
    session.ready(&mut ready);
    ready.sort_unstable();
    assert_eq!(ready, [1, 2]);
    // Its ring is smaller than the command: somebody must read.
    let writer = std::thread::spawn(move || many(&mut session));
    let mut seen = Replayed::default();
    while seen.groups.is_empty() {
        seen.drain(&mut reader);
    }
    assert_eq!((writer.join().expect("it writes"), seen.groups), (Ok(()), vec![100]));
}

/// A refusal that comes when a transaction has begun may pass: it is whole all the same. One that is
/// there before is told of first.
#[test]
fn what_passes_does_not_tear_a_transaction() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(dir.path(), 4096)).expect("opens");
    let mut reader = store.redo().expect("the store has a ring");
    let mut session = store.session(|| {});
    let mut alone = session.alone();
    assert_eq!(alone.refuse_unwritable(10), Ok(()));
    put_alone(&mut alone, b"a", b"1");
    reader.refuse(Some("the disk is full".into()));
    put_alone(&mut alone, b"b", b"2");
    let keys: [(Database, &[u8]); 2] = [(DB, b"b"), (DB, b"c")];
    let both = alone.enter().update_many(&mut Operation::new(0), &keys, |many| many.copy(0, 1));
    assert_eq!(both, Ok(()));
    alone.swap_databases(DB, Database(1)).expect("swaps");
    assert!(alone.refuse_unwritable(10).is_err(), "the next one is refused");
    drop(alone);
    let mut seen = Replayed::default();
    seen.drain(&mut reader);
    assert_eq!(seen.groups, [4]);
    assert_eq!(contents(&store, 1), seen.data[1]);
    let write = store.blocking_session().upsert(DB, b"k", b"v");
    assert!(matches!(write, Err(crate::OperationError::NotWritable(_))), "{write:?}");
    assert!(store.flush_all().is_err());
}

/// Half a transaction stood in the log, its reader was slow, and writes were refused meanwhile: after
/// two seconds the process ended itself.
#[test]
fn half_a_transaction_waits_for_room_however_long() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(dir.path(), 4096)).expect("opens");
    let mut reader = store.redo().expect("the store has a ring");
    let other = store.clone();
    let transaction = std::thread::spawn(move || {
        let mut session = other.session(|| {});
        let mut alone = session.alone();
        (0..20u64).for_each(|n| put_alone(&mut alone, &n.to_le_bytes(), &[1; 400]));
    });
    while store.stats().parked_for_redo == 0 {
        std::thread::yield_now();
    }
    reader.refuse(Some("the disk is full".into()));
    std::thread::sleep(Shortage::PATIENCE + Duration::from_millis(300));
    let mut seen = Replayed::default();
    while seen.groups.is_empty() {
        seen.drain(&mut reader);
    }
    transaction.join().expect("it ends");
    assert_eq!(seen.groups, [20]);
}

/// The same for room in the log: the append-only file could not be written, the disk took its time for a
/// page, and the transaction's next command failed.
#[test]
fn half_a_transaction_waits_for_a_slow_disk_while_others_are_refused() {
    let device = FaultDevice::new();
    let store = Store::open_on(small("simulated".as_ref(), 1 << 20), device.clone());
    let store = store.expect("opens");
    let mut reader = store.redo().expect("the store has a ring");
    device.set_completion(Completion::Stepped);
    let other = store.clone();
    let transaction = std::thread::spawn(move || {
        let mut session = other.session(|| {});
        let mut alone = session.alone();
        (0..40u64).for_each(|n| put_alone(&mut alone, &n.to_le_bytes(), &[1; 8000]));
    });
    while store.stats().parked_for_room == 0 && !transaction.is_finished() {
        std::thread::yield_now();
    }
    reader.refuse(Some("the disk is full".into()));
    std::thread::sleep(Shortage::PATIENCE + Duration::from_millis(300));
    device.set_completion(Completion::InOrder);
    transaction.join().expect("it ends");
    let mut seen = Replayed::default();
    seen.drain(&mut reader);
    assert_eq!(seen.groups, [40]);
}

/// What follows a checkpoint would be nowhere, were it complete before its part has begun.
#[test]
fn a_checkpoint_waits_until_the_reader_has_begun_its_part() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(dir.path(), 4096)).expect("opens");
    let mut reader = store.redo().expect("the store has a ring");
    let other = store.clone();
    let checkpoint = std::thread::spawn(move || other.checkpoint().expect("complete").number);
    let mark = loop {
        if let Some(RedoEffect::Mark(mark)) = reader.next().map(|entry| entry.effect) {
            break mark;
        }
    };
    // However long: it needs some milliseconds otherwise.
    std::thread::sleep(Duration::from_secs(1));
    assert!(!checkpoint.is_finished());
    reader.cut_done(mark);
    assert_eq!(checkpoint.join().expect("it goes on"), mark);
}

#[test]
fn lingering_ends_with_who_has_written_all_that_it_can() {
    const LONG: Duration = Duration::from_secs(3600);
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(small(directory.path(), 4096)).expect("opened");
    let reader = store.redo().expect("it has a redo log");
    store.track_readers(true);
    let waker = store.clone();
    let reader = comes_to_an_end(move || {
        reader.move_here();
        reader.durable(1);
        // Who is called back may be through before the lingering begins.
        waker.redo_has_written();
        reader.linger(LONG);
        reader
    });
    let waker = store.clone();
    comes_to_an_end(move || {
        reader.move_here();
        reader.durable(2);
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            waker.redo_has_written();
        });
        reader.linger(LONG);
        writer.join().expect("it ends");
        // Nothing is to come, and nobody waits for it.
        reader.linger(LONG);
    });
}
