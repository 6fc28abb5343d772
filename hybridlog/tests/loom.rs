//! The log's lock-free protocols under every interleaving and every value that a weak memory may
//! return, up to a bound on preemptions: in-place values, records on their way into a page,
//! tickets and reservations, and the two boundaries that are announced first and safe later.
//!
//! What runs is the production code: its files are compiled into this test once more, on loom's
//! atomics, since they are private to the crate; epochs come from `ferrite-index`, on loom too.
//! Bytes that nobody may change at the same time are loom cells, which report every race.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ferrite-hybridlog --release --test loom`
//!
//! `.ci/mutants hybridlog` runs these tests with one step of a protocol left out at a time: each
//! test names the steps it is there for.
#![cfg(loom)]
#![allow(dead_code, reason = "of the production files that are included, the models use a part")]

#[path = "../src/log/boundaries.rs"]
mod boundaries;
#[path = "../src/log/page_table.rs"]
mod page_table;
#[path = "../src/record.rs"]
mod record;
#[path = "../src/redo/ring.rs"]
mod ring;
#[path = "../src/seqlock.rs"]
mod seqlock;
#[path = "../src/sync.rs"]
#[allow(unused_imports, reason = "the models use a part of these, too")]
mod sync;
#[path = "../src/log/tail.rs"]
mod tail;

use boundaries::Boundaries;
use ferrite_index::{Address, Epoch};
use loom::cell::UnsafeCell;
use loom::thread;
use page_table::PageTable;
use record::{Draft, RecordRef, Step, write_record};
use ring::{Header, Ring};
use std::ptr::NonNull;
use std::sync::Arc;
use sync::{AtomicU64, Ordering::Relaxed};
use tail::Tail;

/// Explores with at most this many preemptions in one execution.
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 20_000;
    let runs = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        model();
    });
    println!("{} executions", runs.load(Relaxed));
}

/// Memory that a protocol keeps for one writer, or for readers.
struct Cell(UnsafeCell<u64>);

impl Cell {
    fn new(value: u64) -> Self {
        Self(UnsafeCell::new(value))
    }
    fn get(&self) -> u64 {
        // SAFETY: loom checks that no write is concurrent.
        self.0.with(|value| unsafe { *value })
    }
    fn set(&self, new: u64) {
        // SAFETY: loom checks that no other access is concurrent.
        self.0.with_mut(|value| unsafe { *value = new });
    }
}

/// A reader without a latch gets the words of one write, with that write's length.
/// Steps: seqlock_write_fence, seqlock_read_fence, seqlock_release, seqlock_acquire,
/// seqlock_without_recheck.
#[test]
fn an_in_place_value_is_never_torn() {
    check(3, || {
        let body = || [AtomicU64::new(1), AtomicU64::new(1)];
        let value = Arc::new((AtomicU64::new(seqlock::initial(1)), body()));
        let writer = thread::spawn({
            let value = Arc::clone(&value);
            move || {
                for n in 2..=3 {
                    seqlock::write(&value.0, n as usize, || {
                        value.1.iter().for_each(|word| word.store(n, Relaxed));
                    });
                }
            }
        });
        let seen = seqlock::read(&value.0, |length| {
            [length as u64, value.1[0].load(Relaxed), value.1[1].load(Relaxed)]
        });
        if let Some(seen) = seen {
            assert_eq!(seen, [seen[0]; 3], "a torn value");
        }
        writer.join().unwrap();
        assert_eq!(seqlock::read(&value.0, |length| length), Some(3));
    });
}

/// A scanner that meets a record on its way steps over it, and believes its body only when it is
/// there. Steps: record_release.
#[test]
fn a_scanner_believes_finished_records_only() {
    check(3, || {
        let page: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
        let draft = Draft {
            slot: 0,
            key: b"key",
            value: b"value...",
            expires_at_ms: Some(77),
            encoding: 0,
            tombstone: false,
            capacity: None,
        };
        let words = draft.words();
        let writer = thread::spawn({
            let page = Arc::clone(&page);
            move || {
                let start = NonNull::from(&page[0]);
                // SAFETY: five of eight words, which only this thread writes.
                unsafe { write_record(start, &draft, Address::INVALID) };
            }
        });
        // SAFETY: zeroed words, or those that are being published; they outlive the record.
        let record = unsafe { RecordRef::new(NonNull::from(&page[0])) };
        match record.step(8).expect("never anything else") {
            Step::End => {}
            Step::Pad(_) => panic!("there is none"),
            Step::Record(count) => {
                assert_eq!(count, words);
                if record.info().is_valid() {
                    assert_eq!(record.expires_at_ms(), Some(77), "an unfinished body");
                }
            }
        }
        writer.join().unwrap();
    });
}

/// Tickets never add up to more than the limit; records overlap nowhere, lie in one page each, and
/// what is granted is what is used once everybody has left.
/// Steps: grant_in_two_steps, reserve_in_two_steps, reserve_across_pages.
#[test]
fn reservations_are_disjoint_and_within_the_limit() {
    // Room for one ticket of six words at a time, and for two.
    check(3, || two_reservations(10));
    check(3, || two_reservations(12));
}

fn two_reservations(room: u64) {
    const PAGE: u64 = 4;
    let tail = Arc::new(Tail::new(PAGE, PAGE + room, PAGE));
    let append = |tail: &Tail| {
        let mut credit = 6;
        if !tail.grant(credit) {
            return None;
        }
        assert!(tail.granted() <= tail.limit(), "more was granted than there is");
        let reserved = tail.reserve(3, &mut credit).expect("twice the words suffice");
        tail.give_back(credit);
        Some(reserved.address)
    };
    let other = thread::spawn({
        let tail = Arc::clone(&tail);
        move || append(&tail)
    });
    let here = append(&tail);
    let there = other.join().unwrap();
    for address in [here, there].into_iter().flatten() {
        assert_eq!(address / PAGE, (address + 2) / PAGE, "a record crosses a page");
    }
    if let (Some(here), Some(there)) = (here, there) {
        assert!(here.abs_diff(there) >= 3, "records overlap");
    }
    assert!(here.is_some() || there.is_some());
    assert_eq!(tail.granted(), tail.load());
}

/// Whoever may still write in place is waited for before the flusher reads.
/// Steps: read_only_without_grace, boundary_release, boundary_acquire.
#[test]
fn what_is_flushed_does_not_change_any_more() {
    check(3, || {
        let epoch = Arc::new(Epoch::new(1));
        let boundaries = Arc::new(Boundaries::new(8, 8, 8));
        let value = Arc::new(Cell::new(1));
        let writer = epoch.register("writer").unwrap();
        let writing = thread::spawn({
            let (boundaries, value) = (Arc::clone(&boundaries), Arc::clone(&value));
            move || {
                let pin = writer.pin();
                if boundaries.read_only() <= 8 {
                    value.set(2);
                }
                drop(pin);
            }
        });
        let flushing = thread::spawn({
            let (boundaries, value) = (Arc::clone(&boundaries), Arc::clone(&value));
            move || {
                if boundaries.safe_read_only() > 8 {
                    value.get();
                }
            }
        });
        boundaries.announce_read_only(16);
        let announced = boundaries.begin_read_only(&epoch).expect("it is not safe yet");
        while !boundaries.settle_read_only(&epoch, &announced) {
            thread::yield_now();
        }
        value.get();
        writing.join().unwrap();
        flushing.join().unwrap();
    });
}

/// A page that the tail has left is flushed with every record that was reserved in it, though some
/// were still being written when the tail moved on. Steps: read_only_without_grace.
#[test]
fn a_page_is_flushed_with_all_its_records() {
    const PAGE: u64 = 4;
    check(2, || {
        let epoch = Arc::new(Epoch::new(2));
        let boundaries = Arc::new(Boundaries::new(PAGE, PAGE, PAGE));
        let tail = Arc::new(Tail::new(PAGE, 4 * PAGE, PAGE));
        let records = Arc::new([Cell::new(0), Cell::new(0)]);
        let writers: Vec<_> = (0..2)
            .map(|_| {
                let writer = epoch.register("writer").unwrap();
                let (tail, records) = (Arc::clone(&tail), Arc::clone(&records));
                thread::spawn(move || {
                    let pin = writer.pin();
                    let mut credit = 4;
                    assert!(tail.grant(credit));
                    let reserved = tail.reserve(2, &mut credit).expect("twice the words suffice");
                    records[(reserved.address - PAGE) as usize / 2].set(1);
                    tail.give_back(credit);
                    drop(pin);
                })
            })
            .collect();
        if tail.load() == 2 * PAGE {
            boundaries.announce_read_only(2 * PAGE);
            let announced = boundaries.begin_read_only(&epoch).expect("it is not safe yet");
            while !boundaries.settle_read_only(&epoch, &announced) {
                thread::yield_now();
            }
            assert_eq!(records.each_ref().map(Cell::get), [1, 1], "a record was left out");
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
}

/// A frame is used again only when its last reader has left, and written to only once it was
/// zeroed. Steps: head_without_grace, head_after_its_grace_began, limit_release, limit_acquire.
#[test]
fn a_frame_is_used_again_after_its_last_reader() {
    const PAGE: u64 = 4;
    check(3, || {
        // Two frames; both pages are full and the first one is flushed.
        let epoch = Arc::new(Epoch::new(1));
        let boundaries = Arc::new(Boundaries::new(PAGE, PAGE, PAGE));
        let tail = Arc::new(Tail::new(PAGE, 3 * PAGE, PAGE));
        let mut credit = 2 * PAGE;
        assert!(tail.grant(credit));
        tail.reserve(PAGE, &mut credit).expect("there is room");
        tail.reserve(PAGE, &mut credit).expect("there is room");
        boundaries.announce_read_only(2 * PAGE);
        let announced = boundaries.begin_read_only(&epoch).expect("it is not safe yet");
        while !boundaries.settle_read_only(&epoch, &announced) {
            thread::yield_now();
        }
        boundaries.flushed(2 * PAGE);
        let frame = Arc::new(Cell::new(1));

        let reader = epoch.register("reader").unwrap();
        let reading = thread::spawn({
            let (boundaries, frame) = (Arc::clone(&boundaries), Arc::clone(&frame));
            move || {
                let pin = reader.pin();
                if boundaries.head() <= PAGE {
                    assert_eq!(frame.get(), 1, "the frame holds another page");
                }
                drop(pin);
            }
        });
        let writing = thread::spawn({
            let (tail, frame) = (Arc::clone(&tail), Arc::clone(&frame));
            move || {
                let mut credit = PAGE;
                if tail.grant(credit) {
                    let reserved = tail.reserve(PAGE, &mut credit).expect("a whole page");
                    assert_eq!(reserved.address, 3 * PAGE);
                    assert_eq!(frame.get(), 0, "the frame was not zeroed");
                    frame.set(2);
                }
            }
        });
        let announced = boundaries.begin_head(&epoch, 2 * PAGE);
        while !boundaries.settle_head(&epoch, &announced) {
            thread::yield_now();
        }
        frame.set(0);
        tail.raise_limit(4 * PAGE);
        reading.join().unwrap();
        writing.join().unwrap();
    });
}

/// A flushed page moves from its frame to its mapped file while it is read: a reader finds its
/// bytes in one of the two, and the frame is given back only when its last reader has left. Steps:
/// page_moved_without_grace, page_table_release, page_table_acquire.
#[test]
fn a_page_that_moves_is_whole_in_both_places() {
    const FRAME: u64 = 1;
    const MAPPED: u64 = 2;
    check(3, || {
        let epoch = Arc::new(Epoch::new(1));
        let table = Arc::new(PageTable::new(1, 1, 1, |_| FRAME));
        let bytes = Arc::new([Cell::new(7), Cell::new(0)]);
        let reader = epoch.register("reader").unwrap();
        let reading = thread::spawn({
            let (table, bytes) = (Arc::clone(&table), Arc::clone(&bytes));
            move || {
                let pin = reader.pin();
                let place = table.place(1);
                assert_eq!(bytes[(place - FRAME) as usize].get(), 7, "another page's bytes");
                drop(pin);
            }
        });
        bytes[(MAPPED - FRAME) as usize].set(7);
        let moved = table.begin_move(&epoch, 1, MAPPED);
        while !table.is_settled(&epoch, moved) {
            thread::yield_now();
        }
        bytes[0].set(0);
        reading.join().unwrap();
    });
}

/// Each entry of the redo ring has words of its own, and is read only once it was filled, in the order
/// of the reservations. Steps: redo_reserve_in_two_steps, redo_header_release, redo_header_acquire.
#[test]
fn an_entry_of_the_redo_ring_is_read_whole() {
    check(3, || {
        let ring = Arc::new(Ring::new(4));
        let words = Arc::new([Cell::new(0), Cell::new(0)]);
        let writers: Vec<_> = (1..=2u32)
            .map(|writer| {
                let (ring, words) = (Arc::clone(&ring), Arc::clone(&words));
                thread::spawn(move || {
                    let entry = ring.reserve(2).expect("the ring holds both");
                    words[entry.position as usize / 2].set(u64::from(writer));
                    entry.finish(1, writer);
                })
            })
            .collect();
        let mut at = 0;
        let mut read = |at: &mut u64| {
            while *at < 4
                && let Some(header) = ring.header(*at)
            {
                let word = words[*at as usize / 2].get();
                assert_eq!(word, u64::from(header.tag()), "another entry's words");
                *at += header.words();
            }
        };
        read(&mut at);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        read(&mut at);
        assert_eq!(at, 4, "an entry is missing");
    });
}

/// Room in the redo ring is used again only after it was read and cleared. Steps: redo_limit_release,
/// redo_limit_acquire, redo_without_clear.
#[test]
fn room_in_the_redo_ring_is_cleared_before_it_is_used_again() {
    check(3, || {
        let ring = Arc::new(Ring::new(4));
        let words = Arc::new([Cell::new(1), Cell::new(1)]);
        for _ in 0..2 {
            ring.reserve(2).expect("it is empty").finish(1, 1);
        }
        let writer = thread::spawn({
            let (ring, words) = (Arc::clone(&ring), Arc::clone(&words));
            move || {
                let Some(entry) = ring.reserve(2) else { return false };
                assert_eq!(entry.position, 4);
                assert_eq!(words[0].get(), 0, "it was not read yet");
                words[0].set(2);
                assert!(ring.header(4).is_none(), "what was there before is still there");
                entry.finish(1, 2);
                true
            }
        });
        for at in [0, 2] {
            let header = ring.header(at).expect("it was filled before the threads began");
            assert_eq!(words[at as usize / 2].get(), 1);
            words[at as usize / 2].set(0);
            ring.clear(at, header.words());
        }
        ring.release(4);
        let wrote = writer.join().unwrap();
        assert_eq!(ring.header(4).map(Header::tag), wrote.then_some(2));
    });
}
