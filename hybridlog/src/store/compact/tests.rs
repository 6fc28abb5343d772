//! The rules of the schedule, and what a full disk and a missing file do to the work.

use super::*;
use crate::device::FileId;
use crate::device::fault::FaultDevice;
use crate::store::operation::ReadyQueue;
use crate::{Change, Config, Database, Operation, Stop};
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;

const PAGE: u64 = 4096;

/// Four pages of memory and segments of four.
fn config() -> Config {
    let mut config = Config::new("simulated");
    (config.page_size, config.segment_size) = (PAGE, 4 * PAGE);
    (config.mutable_size, config.readonly_size) = (2 * PAGE, 2 * PAGE);
    config.block_cache_size = 0;
    config
}

/// Each of them had a session while it waited, and there is room for 272.
#[test]
fn more_may_wait_for_their_turn_than_there_is_room_for_sessions() {
    const WAITING: u64 = 300;
    let store = Store::open_on(config(), FaultDevice::new()).expect("opens");
    let turn = store.inner().compaction.turn.locked();
    let compacts = |_| {
        let store = store.clone();
        std::thread::spawn(move || store.compact())
    };
    let waiting: Vec<_> = (0..WAITING).map(compacts).collect();
    while store.inner().compaction.asked.load(Ordering::Relaxed) < WAITING {
        assert!(!waiting.iter().any(std::thread::JoinHandle::is_finished), "one of them failed");
        std::thread::yield_now();
    }
    drop(turn);
    for thread in waiting {
        thread.join().expect("no panic").expect("there is nothing to do");
    }
    assert!(!store.inner().compaction.is_asked());
}

#[test]
fn it_rests_as_the_log_allows_and_never_longer_than_a_second() {
    let ms = Duration::from_millis;
    for (worked, excess, rest) in [
        (ms(10), 1.01, ms(30)),
        (ms(10), 1.19, ms(30)),
        (ms(10), 1.2, ms(10)),
        (ms(10), 1.49, ms(10)),
        (ms(10), 1.5, ms(0)),
        (ms(10), 9.0, ms(0)),
        // A disk that was full for an hour is no reason to rest for three.
        (Duration::from_secs(3600), 1.01, REST_MAX),
        (Duration::from_secs(3600), 1.3, REST_MAX),
    ] {
        assert_eq!(rest_after(worked, excess), rest, "{worked:?} {excess}");
    }
}

/// Twice as many pages as memory has, of twenty keys.
fn fill(store: &Store) {
    let mut session = store.blocking_session();
    for i in 0..64u64 {
        session.upsert(Database(0), &(i % 20).to_le_bytes(), &[1; 1000]).expect("writes");
    }
}

/// Its file was gone, and compaction told of damage.
#[test]
fn a_page_that_the_log_gives_back_while_compaction_rests_is_not_missed() {
    let store = Store::open_on(config(), FaultDevice::new()).expect("opens");
    fill(&store);
    let mut rests = 0;
    let done = Compaction::work(store.inner(), u64::MAX, &mut |_| {
        rests += 1;
        store.flush_all().expect("flushes");
        for _ in 0..2 {
            store.checkpoint().expect("taken");
        }
        true
    });
    let done = done.expect("nothing is missing");
    assert!(rests > 0 && done.copied_bytes == 0, "{rests} {done:?}");
}

/// It tried again once a minute, for ever, and nobody saw but who read the log.
#[test]
fn what_compaction_cannot_pass_is_told_until_it_can() {
    let device = FaultDevice::new();
    let store = Store::open_on(config(), device.clone()).expect("opens");
    fill(&store);
    store.compact().expect("compacts");
    assert_eq!(store.stats().compaction_last_error, None);
    fill(&store);
    let log = &store.inner().log;
    let next = FileId::Segment(log.geometry.segment_of(store.inner().compaction.compacted()));
    device.flip(next, 100, 3);
    let failed = store.compact().expect_err("it is damaged").to_string();
    assert!(failed.contains("fails its checksum"), "{failed}");
    assert_eq!(store.stats().compaction_last_error, Some(failed));
    device.flip(next, 100, 3);
    store.compact().expect("compacts");
    assert_eq!(store.stats().compaction_last_error, None);
}

/// It waited for room, a transaction closed the gate, the room was granted, and compaction took it along
/// to the gate: the transaction waited for room that it could never have, and everybody for the gate.
#[test]
fn compaction_takes_no_room_to_the_gate() {
    // On a thread of its own: what waits for ever fails the test instead of hanging it.
    let (running, end) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let _running = running;
        compact_beside_a_transaction();
    });
    let ended = end.recv_timeout(Duration::from_secs(60));
    assert_eq!(ended, Err(RecvTimeoutError::Disconnected), "each waits for the other");
    thread.join().expect("no panic");
}

fn compact_beside_a_transaction() {
    let mut config = config();
    (config.mutable_size, config.readonly_size) = (PAGE, PAGE);
    let store = Store::open_on(config, FaultDevice::new()).expect("opens");
    fill(&store);
    let log = &store.inner().log;
    let ready = std::sync::Arc::new(ReadyQueue::new(Box::new(|| {})));

    // All the room there can be, once every page but the tail's has left memory for one who waits.
    // With a ticket out it is not granted to that one.
    let mut held = 0;
    while held == 0 {
        held += u64::from(log.tail.grant(1));
        log.wake();
    }
    let everything = log.room.join(1 << 40, 0, &ready);
    let full = log.geometry.page_start(log.tail.load()) + log.geometry.ring_words();
    while log.tail.granted() < full {
        held += u64::from(log.tail.grant(1));
        log.wake();
    }
    assert_eq!(everything.take(), 0);
    while log.room.is_waiting() {
        log.wake();
        std::thread::yield_now();
    }
    let compacts = store.clone();
    let compaction = std::thread::spawn(move || compacts.compact());
    while !log.room.is_waiting() {
        assert!(!compaction.is_finished(), "it has records to copy");
        std::thread::yield_now();
    }

    // What is wanted next would not fit beside what compaction asked for.
    let mut session = store.session(|| {});
    let mut alone = session.alone();
    log.tail.give_back(held);
    log.wake();
    let mut op = Operation::new(0);
    let mut inside = alone.enter();
    for value in [[1; 3000], [2; 3000], [3; 3000]] {
        let put = Change::Put { value: &value, expires_at_ms: None, encoding: 0 };
        loop {
            match inside.update(&mut op, Database(0), b"large", |_, _| (put, ())) {
                Ok(()) => break,
                Err(Stop::Pending) => {}
                Err(Stop::Failed(e)) => panic!("{e}"),
            }
        }
    }
    drop(inside);
    drop(alone);
    let done = compaction.join().expect("no panic").expect("compacts");
    assert!(done.copied_bytes > 0, "{done:?}");
    let mut s = store.blocking_session();
    for i in 0..20u64 {
        assert_eq!(s.read(Database(0), &i.to_le_bytes()), Ok(Some(vec![1; 1000])), "{i}");
    }
    assert_eq!(s.read(Database(0), b"large"), Ok(Some(vec![3; 3000])));
}
