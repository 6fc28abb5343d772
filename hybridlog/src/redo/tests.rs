//! The redo log of a store: what its reader gets is what was written, in an order that gives the same
//! data again.

use super::*;
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
    let reader = store.redo().expect("the store has a ring");
    let mut session = store.session(|| {});
    reader.hold(true);
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
    reader.hold(false);
    session.ready(&mut ready);
    assert_eq!(ready, [7]);
    let (outcome, end) = put(&mut session, &mut op);
    assert!(outcome.is_ok() && end > 0);
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
