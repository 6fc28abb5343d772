//! The lock-free protocols under every interleaving and every value that a weak memory may return,
//! up to a bound on preemptions. What runs is the production code; only its constants are smaller
//! (two entries a bucket, one doubling, a handful of overflow buckets).
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ferrite-index --release --test loom`
//!
//! `.ci/mutants` runs these tests with one step of a protocol left out at a time: each test names
//! the steps it is there for.
#![cfg(loom)]

use ferrite_index::{
    Address, Busy, Epoch, Gate, HashIndex, IndexConfig, KeyHash, Participant, Pin,
};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use loom::thread;
use std::sync::Arc;

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

/// The hash that leads to a bucket (of the smallest table, `2^bits` buckets) and a tag.
fn hash(bits: u32, bucket: u64, tag: u64) -> KeyHash {
    KeyHash::from_raw(tag << bits | bucket)
}

fn address(n: u64) -> Address {
    Address::new(n)
}

struct Setup {
    epoch: Arc<Epoch>,
    index: Arc<HashIndex>,
}

impl Setup {
    fn new(smallest_bits: u32) -> Self {
        let epoch = Arc::new(Epoch::new(3));
        let config = IndexConfig { smallest_bits, max_bytes: 0, huge_pages: false };
        let index = Arc::new(HashIndex::new(config, Arc::clone(&epoch)).unwrap());
        Self { epoch, index }
    }

    fn join(&self) -> (Arc<HashIndex>, Participant) {
        (Arc::clone(&self.index), self.epoch.register("thread").unwrap())
    }

    fn insert(&self, entries: &[(KeyHash, u64)]) {
        let (index, participant) = self.join();
        for (hash, n) in entries {
            upsert(&index, &participant.pin(), *hash, address(*n));
        }
    }

    fn look(&self, hash: KeyHash) -> Option<u64> {
        let (index, participant) = self.join();
        let pin = participant.pin();
        index.probe(&pin, hash, false).unwrap().address().map(Address::raw)
    }
}

/// Runs `step` until it is not busy, with other threads in between. Waits outside, as users must.
fn patiently<T>(participant: &Participant, step: impl Fn(&Pin<'_>) -> Result<T, Busy>) -> T {
    loop {
        let pin = participant.pin();
        if let Ok(done) = step(&pin) {
            return done;
        }
        drop(pin);
        thread::yield_now();
    }
}

fn upsert(index: &HashIndex, pin: &Pin<'_>, hash: KeyHash, address: Address) {
    let latch = index.latch(pin, hash).unwrap();
    latch.reserve(hash, false).unwrap();
    latch.set(hash, false, address);
}

/// A latched read-modify-write never loses the other one's, and never makes a second entry.
/// Steps: latch_acquire, control_release.
#[test]
fn updates_under_the_latch_are_not_lost() {
    check(3, || {
        let setup = Setup::new(0);
        let key = hash(0, 0, 5);
        let add = move |(index, participant): (Arc<HashIndex>, Participant)| {
            patiently(&participant, |pin| {
                let latch = index.latch(pin, key)?;
                let now = latch.address(key, false).map_or(0, Address::raw);
                latch.reserve(key, false).unwrap();
                latch.set(key, false, address(now + 1));
                Ok(())
            });
        };
        let (one, two) = (setup.join(), setup.join());
        let other = thread::spawn(move || add(one));
        add(two);
        other.join().unwrap();
        assert_eq!(setup.index.entries(), 1);
        assert_eq!(setup.look(key), Some(2));
    });
}

/// Two writers and a reader without a latch: the reader sees the count go up, one by one or at once,
/// and never back.
/// Steps: latch_acquire, entry_release.
#[test]
fn a_probe_beside_two_writers_never_sees_a_count_go_back() {
    check(2, || {
        let setup = Setup::new(0);
        let key = hash(0, 0, 5);
        setup.insert(&[(key, 1)]);
        let add = move |(index, participant): (Arc<HashIndex>, Participant)| {
            patiently(&participant, |pin| {
                let latch = index.latch(pin, key)?;
                let now = latch.address(key, false).unwrap().raw();
                latch.set(key, false, address(now + 1));
                Ok(())
            });
        };
        let (one, two, (index, reader)) = (setup.join(), setup.join(), setup.join());
        let threads = [thread::spawn(move || add(one)), thread::spawn(move || add(two))];
        let mut last = 1;
        for _ in 0..2 {
            let pin = reader.pin();
            let now = index.probe(&pin, key, false).unwrap().address().unwrap().raw();
            assert!((last..=3).contains(&now), "{last} then {now}");
            last = now;
        }
        threads.map(|thread| thread.join().unwrap());
        let pin = reader.pin();
        assert_eq!(index.probe(&pin, key, false).unwrap().address(), Some(address(3)));
    });
}

/// Two inserts that both find the bucket full: both entries are there, in one overflow bucket.
/// Steps: latch_acquire, control_release.
#[test]
fn two_inserts_into_a_full_bucket_are_both_found() {
    check(2, || {
        let setup = Setup::new(0);
        setup.insert(&[(hash(0, 0, 1), 1), (hash(0, 0, 2), 2)]);
        let before = setup.index.bytes();
        let insert = |(index, participant): (Arc<HashIndex>, Participant), tag: u64| {
            let key = hash(0, 0, tag);
            patiently(&participant, |pin| {
                let latch = index.latch(pin, key)?;
                latch.reserve(key, false).unwrap();
                latch.set(key, false, address(tag));
                Ok(())
            });
        };
        let (one, two) = (setup.join(), setup.join());
        let other = thread::spawn(move || insert(one, 3));
        insert(two, 4);
        other.join().unwrap();
        assert_eq!(setup.index.entries(), 4);
        assert!((1..=4).all(|tag| setup.look(hash(0, 0, tag)) == Some(tag)));
        assert_eq!(setup.index.bytes() - before, before, "one bucket more than the one there was");
    });
}

/// What the holder of a latch did to memory beside the index is seen by the next holder.
/// Steps: latch_acquire, control_release.
#[test]
fn the_exclusive_latch_orders_everything_under_it() {
    check(3, || {
        let setup = Setup::new(0);
        let key = hash(0, 0, 5);
        let cell = Arc::new(UnsafeCell::new(0u64));
        let write = move |(index, participant): (Arc<HashIndex>, Participant),
                          cell: &UnsafeCell<u64>| {
            patiently(&participant, |pin| {
                let _latch = index.latch(pin, key)?;
                cell.with_mut(|value| {
                    // SAFETY: the latch is exclusive; loom checks that it is.
                    unsafe { *value += 1 };
                });
                Ok(())
            });
        };
        let (one, two) = (setup.join(), setup.join());
        let other = thread::spawn({
            let cell = Arc::clone(&cell);
            move || write(one, &cell)
        });
        write(two, &cell);
        other.join().unwrap();
    });
}

/// Shares of a latch exclude the exclusive one and each other not; and they order memory both ways.
/// Steps: latch_acquire, unshare_release.
#[test]
fn shared_latches_exclude_the_exclusive_one() {
    check(3, || {
        let setup = Setup::new(0);
        let key = hash(0, 0, 5);
        let cell = Arc::new(UnsafeCell::new(0u64));
        let (reader, writer) = (setup.join(), setup.join());
        let other = thread::spawn({
            let cell = Arc::clone(&cell);
            move || {
                patiently(&reader.1, |pin| {
                    let _latch = reader.0.latch_shared(pin, key)?;
                    cell.with(|value| {
                        // SAFETY: nobody writes while a share is held; loom checks that.
                        unsafe { *value }
                    });
                    Ok(())
                });
            }
        });
        let (index, participant) = &writer;
        patiently(participant, |pin| {
            let _latch = index.latch(pin, key)?;
            cell.with_mut(|value| {
                // SAFETY: the latch is exclusive; loom checks that it is.
                unsafe { *value += 1 };
            });
            Ok(())
        });
        other.join().unwrap();
        let pin = participant.pin();
        let (one, two) = (index.latch_shared(&pin, key), index.latch_shared(&pin, key));
        assert!(one.is_ok() && two.is_ok() && index.latch(&pin, key).is_err());
    });
}

/// A probe that finds an address finds a complete record there, whether the entry is in the first
/// bucket (`others` is 0) or in a new overflow bucket.
/// Steps: entry_acquire, entry_release.
fn a_probe_finds_a_complete_record(others: u64) {
    check(3, move || {
        let setup = Setup::new(0);
        let others: Vec<_> = (0..others).map(|n| (hash(0, 0, n), n + 1)).collect();
        setup.insert(&others);
        let key = hash(0, 0, 3);
        let record = Arc::new(UnsafeCell::new(0u64));
        let (writer, reader) = (setup.join(), setup.join());
        let other = thread::spawn({
            let record = Arc::clone(&record);
            move || {
                let pin = writer.1.pin();
                record.with_mut(|value| {
                    // SAFETY: nobody has the address yet; loom checks that.
                    unsafe { *value = 7 };
                });
                upsert(&writer.0, &pin, key, address(9));
            }
        });
        let pin = reader.1.pin();
        if let Some(found) = reader.0.probe(&pin, key, false).unwrap().address() {
            assert_eq!(found, address(9));
            // SAFETY: a published record does not change; loom checks that.
            assert_eq!(record.with(|value| unsafe { *value }), 7);
        }
        drop(pin);
        other.join().unwrap();
    });
}

#[test]
fn a_probe_finds_a_complete_record_in_the_first_bucket() {
    a_probe_finds_a_complete_record(0);
}

#[test]
fn a_probe_finds_a_complete_record_in_a_new_overflow_bucket() {
    a_probe_finds_a_complete_record(2);
}

/// An overflow bucket that is linked anew shows nothing of its former life, and one that a reader
/// may still stand in is not used again.
/// Steps: overflow_without_grace.
#[test]
fn an_overflow_bucket_waits_out_its_readers() {
    check(2, || {
        let setup = Setup::new(1);
        let (full, other_bucket) = (0, 1);
        setup.insert(&[1, 2, 3].map(|tag| (hash(1, full, tag), tag)));
        setup.insert(&[1, 2].map(|tag| (hash(1, other_bucket, tag), tag)));
        // Absent in the first bucket all along; set in the other one.
        let absent = hash(1, full, 9);
        let (writer, reader) = (setup.join(), setup.join());
        let epoch = Arc::clone(&setup.epoch);
        let other = thread::spawn(move || {
            let (index, participant) = writer;
            {
                let pin = participant.pin();
                let third = hash(1, full, 3);
                index.latch(&pin, third).unwrap().remove(third, false);
            }
            epoch.bump();
            upsert(&index, &participant.pin(), hash(1, other_bucket, 9), address(99));
        });
        let pin = reader.1.pin();
        assert_eq!(reader.0.probe(&pin, absent, false).unwrap().address(), None);
        drop(pin);
        other.join().unwrap();
        assert_eq!(setup.look(hash(1, other_bucket, 9)), Some(99));
    });
}

/// The same while another thread begins the epoch that the bucket waits for: a reader that pins in
/// it may have come by the old link, so the bucket must wait for the next one.
/// Steps: overflow_unlink_fence.
#[test]
fn an_overflow_bucket_waits_for_an_epoch_begun_after_its_unlinking() {
    check(3, || {
        let setup = Setup::new(1);
        let (full, other_bucket) = (0, 1);
        setup.insert(&[1, 2, 3].map(|tag| (hash(1, full, tag), tag)));
        setup.insert(&[1, 2].map(|tag| (hash(1, other_bucket, tag), tag)));
        let absent = hash(1, full, 9);
        let ((index, participant), reader) = (setup.join(), setup.join());
        let epoch = Arc::clone(&setup.epoch);
        let pin = participant.pin();
        let reading = thread::spawn(move || {
            epoch.bump();
            let pin = reader.1.pin();
            assert_eq!(reader.0.probe(&pin, absent, false).unwrap().address(), None);
        });
        let third = hash(1, full, 3);
        index.latch(&pin, third).unwrap().remove(third, false);
        drop(pin);
        upsert(&index, &participant.pin(), hash(1, other_bucket, 9), address(99));
        reading.join().unwrap();
        assert_eq!(setup.look(hash(1, other_bucket, 9)), Some(99));
    });
}

/// A reader that comes to a reused overflow bucket finds nothing of its former life: its old link
/// led to an entry of another chain.
/// Steps: overflow_without_wiping, control_acquire, control_release.
#[test]
fn a_reused_overflow_bucket_is_wiped_before_it_is_linked() {
    check(2, || {
        let setup = Setup::new(1);
        let (old, new) = (0, 1);
        // First bucket, overflow bucket 1, overflow bucket 2.
        setup.insert(&[1, 2, 3, 4, 5].map(|tag| (hash(1, old, tag), tag)));
        setup.insert(&[1, 2].map(|tag| (hash(1, new, tag), tag)));
        let (index, participant) = setup.join();
        for tag in [3, 4] {
            let key = hash(1, old, tag);
            index.latch(&participant.pin(), key).unwrap().remove(key, false);
        }
        setup.epoch.bump();
        let (_, reader) = setup.join();
        let other = thread::spawn({
            let index = Arc::clone(&index);
            move || upsert(&index, &participant.pin(), hash(1, new, 6), address(6))
        });
        let pin = reader.pin();
        assert_eq!(index.probe(&pin, hash(1, new, 5), false).unwrap().address(), None);
        drop(pin);
        other.join().unwrap();
    });
}

/// One chain of three entries, of which the first moves to the new bucket and the last, from an
/// overflow bucket, to the front.
const MOVES: u64 = 1;
const STAYS: u64 = 2;
const FORWARD: u64 = 4;

fn before_a_split() -> Setup {
    let setup = Setup::new(0);
    setup.insert(&[MOVES, STAYS, FORWARD].map(|tag| (hash(0, 0, tag), tag)));
    setup
}

/// Whoever looks for an entry while its bucket is split finds it, wherever it goes.
/// Steps: probe_without_recheck, probe_believes_disturbed_miss, split_publishes_first,
/// split_clears_first, state_acquire, state_release, entry_acquire, entry_release.
fn a_probe_finds_its_entry_during_a_split(tag: u64) {
    check(2, move || {
        let setup = before_a_split();
        let (grower, reader) = (setup.join(), setup.join());
        let other = thread::spawn(move || assert!(grower.0.grow(&grower.1.pin())));
        let pin = reader.1.pin();
        if let Ok(probe) = reader.0.probe(&pin, hash(0, 0, tag), false) {
            assert_eq!(probe.address(), Some(address(tag)));
        }
        drop(pin);
        other.join().unwrap();
        assert_eq!(setup.index.bucket_count(), 2);
        for tag in [MOVES, STAYS, FORWARD] {
            assert_eq!(setup.look(hash(0, 0, tag)), Some(tag));
        }
    });
}

#[test]
fn a_probe_finds_an_entry_that_moves_to_the_new_bucket() {
    a_probe_finds_its_entry_during_a_split(MOVES);
}

#[test]
fn a_probe_finds_an_entry_that_moves_to_the_front() {
    a_probe_finds_its_entry_during_a_split(FORWARD);
}

/// An update during a split is not lost, whichever comes first.
/// Steps: latch_without_recheck, split_publishes_first.
#[test]
fn an_update_during_a_split_is_not_lost() {
    for tag in [MOVES, FORWARD] {
        check(2, move || {
            let setup = before_a_split();
            let (grower, writer) = (setup.join(), setup.join());
            let key = hash(0, 0, tag);
            let other = thread::spawn(move || {
                grower.0.grow(&grower.1.pin());
            });
            let (index, participant) = writer;
            patiently(&participant, |pin| {
                let latch = index.latch(pin, key)?;
                assert!(latch.covers(&index, key));
                assert_eq!(latch.address(key, false), Some(address(tag)));
                latch.set(key, false, address(50));
                Ok(())
            });
            other.join().unwrap();
            assert_eq!(setup.look(key), Some(50));
            assert_eq!(setup.index.entries(), 3);
        });
    }
}

/// An insert during a split is where the table then looks for it.
/// Steps: latch_without_recheck.
#[test]
fn an_insert_during_a_split_is_found_afterwards() {
    check(2, || {
        let setup = before_a_split();
        let (grower, writer) = (setup.join(), setup.join());
        let key = hash(0, 0, MOVES + 2);
        let other = thread::spawn(move || {
            grower.0.grow(&grower.1.pin());
        });
        let (index, participant) = writer;
        patiently(&participant, |pin| {
            let latch = index.latch(pin, key)?;
            latch.reserve(key, false).unwrap();
            latch.set(key, false, address(50));
            Ok(())
        });
        other.join().unwrap();
        assert_eq!(setup.look(key), Some(50));
        assert_eq!(setup.index.entries(), 4);
    });
}

/// A shared latch taken during a split covers its hash.
/// Steps: shared_latch_without_recheck.
#[test]
fn a_shared_latch_covers_its_hash_during_a_split() {
    check(2, || {
        let setup = before_a_split();
        let (grower, reader) = (setup.join(), setup.join());
        let key = hash(0, 0, MOVES);
        let other = thread::spawn(move || {
            grower.0.grow(&grower.1.pin());
        });
        let pin = reader.1.pin();
        if let Ok(latch) = reader.0.latch_shared(&pin, key) {
            assert!(latch.covers(&reader.0, key));
            assert_eq!(latch.address(key, false), Some(address(MOVES)));
        }
        drop(pin);
        other.join().unwrap();
    });
}

/// A walk hands out all that is there throughout, while the table grows.
/// Steps: walk_without_recheck, walk_reads_disturbed_once, tidy_clears_before_copy,
/// split_clears_first.
#[test]
fn a_walk_meets_every_entry_during_a_split() {
    check(2, || {
        let setup = before_a_split();
        let (grower, walker) = (setup.join(), setup.join());
        let other = thread::spawn(move || {
            grower.0.grow(&grower.1.pin());
        });
        let mut seen = Vec::new();
        let mut cursor = 0;
        loop {
            let pin = walker.1.pin();
            cursor = walker.0.walk(&pin, cursor, |address, _| seen.push(address.raw()));
            if cursor == 0 {
                break;
            }
        }
        other.join().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, [MOVES, STAYS, FORWARD]);
    });
}

/// Two threads that find the table too small split its bucket once.
/// Steps: grow_without_turn.
#[test]
fn two_growers_split_a_bucket_once() {
    check(2, || {
        let setup = before_a_split();
        let (one, two) = (setup.join(), setup.join());
        let other = thread::spawn(move || one.0.grow(&one.1.pin()));
        let mine = two.0.grow(&two.1.pin());
        let theirs = other.join().unwrap();
        assert!(mine != theirs);
        assert_eq!(setup.index.bucket_count(), 2);
        for tag in [MOVES, STAYS, FORWARD] {
            assert_eq!(setup.look(hash(0, 0, tag)), Some(tag));
        }
    });
}

/// While growth is held, the table keeps its size.
/// Steps: hold_without_turn.
#[test]
fn a_hold_keeps_the_table_as_it_is() {
    check(2, || {
        let setup = before_a_split();
        let (grower, writer) = (setup.join(), setup.join());
        let other = thread::spawn(move || {
            grower.0.grow(&grower.1.pin());
        });
        let (index, participant) = writer;
        let hold = index.hold_growth();
        let before = index.bucket_count();
        let mut image = Vec::new();
        index.image_chunk(&participant.pin(), &hold, 0, u64::MAX, &mut image);
        assert_eq!(index.bucket_count(), before);
        let mut tags = Vec::new();
        ferrite_index::read_image(&image, 0, |_, _, address| tags.push(address.raw())).unwrap();
        tags.sort_unstable();
        assert_eq!(tags, [MOVES, STAYS, FORWARD]);
        drop(hold);
        other.join().unwrap();
    });
}

/// A reader without a latch that was told its bucket stayed open has seen nothing half done: the
/// command below writes 1, then 2, and clears the bit before or after the reader looks.
/// Steps: mark_multi_fence, still_open_fence, still_open_without_sequence.
#[test]
fn a_multi_key_command_is_not_seen_half_done() {
    check(2, || {
        let setup = Setup::new(0);
        let key = hash(0, 0, 1);
        setup.insert(&[(key, 1)]);
        let value = Arc::new(AtomicU64::new(0));
        let (writer, reader) = (setup.join(), setup.join());
        let other = thread::spawn({
            let value = Arc::clone(&value);
            move || {
                let pin = writer.1.pin();
                let latch = writer.0.latch(&pin, key).unwrap();
                latch.mark_multi();
                value.store(1, Relaxed);
                value.store(2, Relaxed);
            }
        });
        let pin = reader.1.pin();
        if let Ok(probe) = reader.0.probe(&pin, key, false) {
            assert_eq!(probe.address(), Some(address(1)));
            let read = value.load(Relaxed);
            assert!(!probe.still_open() || read != 1, "the middle of a command");
        }
        drop(pin);
        other.join().unwrap();
    });
}

/// The same, when the key has moved to another bucket between the reader's look and the command.
/// Steps: still_open_without_state.
#[test]
fn a_multi_key_command_in_the_new_bucket_is_not_seen_half_done() {
    check(1, || {
        let setup = before_a_split();
        let key = hash(0, 0, MOVES);
        let value = Arc::new(AtomicU64::new(0));
        let (writer, reader) = (setup.join(), setup.join());
        let other = thread::spawn({
            let value = Arc::clone(&value);
            move || {
                let (index, participant) = writer;
                let pin = participant.pin();
                index.grow(&pin);
                let latch = index.latch(&pin, key).unwrap();
                latch.mark_multi();
                value.store(1, Relaxed);
                value.store(2, Relaxed);
            }
        });
        let pin = reader.1.pin();
        if let Ok(probe) = reader.0.probe(&pin, key, false) {
            let read = value.load(Relaxed);
            assert!(!probe.still_open() || read != 1, "the middle of a command");
        }
        drop(pin);
        other.join().unwrap();
    });
}

/// After a grace period nobody reads what was replaced before it, whichever way one learns that it
/// has passed; and a sleeper is woken.
/// Steps: epoch_pin_fence, epoch_check_fence, epoch_check_acquire, epoch_leave_release,
/// epoch_leave_fence, epoch_leaves_silently, epoch_bump_release.
fn a_grace_period_outlasts_all_readers(sleep: bool) {
    check(3, move || {
        let epoch = Arc::new(Epoch::new(1));
        let reader = epoch.register("reader").unwrap();
        let newest = Arc::new(AtomicU64::new(0));
        let records = Arc::new([UnsafeCell::new(1u64), UnsafeCell::new(2)]);
        let other = thread::spawn({
            let (newest, records) = (Arc::clone(&newest), Arc::clone(&records));
            move || {
                for _ in 0..2 {
                    let pin = reader.pin();
                    let record = &records[newest.load(Relaxed) as usize];
                    // SAFETY: the pin keeps it from being reused; loom checks that.
                    assert_ne!(record.with(|value| unsafe { *value }), 0);
                    drop(pin);
                }
            }
        });
        newest.store(1, Relaxed);
        let new = epoch.bump();
        if sleep {
            epoch.wait_until_safe(new);
        }
        if sleep || epoch.is_safe(new) {
            records[0].with_mut(|value| {
                // SAFETY: the grace period has passed, so nobody reads it; loom checks that.
                unsafe { *value = 0 };
            });
        }
        other.join().unwrap();
    });
}

#[test]
fn a_grace_period_that_is_asked_for_outlasts_all_readers() {
    a_grace_period_outlasts_all_readers(false);
}

#[test]
fn a_grace_period_that_is_slept_through_outlasts_all_readers() {
    a_grace_period_outlasts_all_readers(true);
}

/// Behind a closed gate nobody is inside who came through it; all who wait are woken.
/// Steps: epoch_pin_fence, epoch_check_fence, epoch_check_acquire, epoch_leave_release,
/// epoch_leave_fence, gate_enter_acquire, gate_open_release, gate_opens_silently.
#[test]
fn a_closed_gate_keeps_everyone_out() {
    check(3, || {
        let epoch = Arc::new(Epoch::new(2));
        let gate = Arc::new(Gate::new());
        let state = Arc::new(UnsafeCell::new(0u64));
        let commands = epoch.register("commands").unwrap();
        let server = epoch.register("server").unwrap();
        let other = thread::spawn({
            let (gate, state) = (Arc::clone(&gate), Arc::clone(&state));
            move || {
                for _ in 0..2 {
                    let pin = commands.enter(&gate);
                    // SAFETY: the closer waits until this pin ends; loom checks that.
                    state.with(|value| unsafe { *value });
                    drop(pin);
                }
            }
        });
        let closed = gate.close(&epoch);
        // One who does not come through the gate is not kept out.
        drop(server.pin());
        state.with_mut(|value| {
            // SAFETY: nobody is inside; loom checks that.
            unsafe { *value += 1 };
        });
        drop(closed);
        other.join().unwrap();
    });
}

/// One closer at a time, and each finds the place empty.
#[test]
fn two_closers_take_turns() {
    check(3, || {
        let epoch = Arc::new(Epoch::new(1));
        let gate = Arc::new(Gate::new());
        let state = Arc::new(UnsafeCell::new(0u64));
        let commands = epoch.register("commands").unwrap();
        let close = |gate: &Gate, epoch: &Epoch, state: &UnsafeCell<u64>| {
            let _closed = gate.close(epoch);
            state.with_mut(|value| {
                // SAFETY: the gate is closed by this thread alone; loom checks that.
                unsafe { *value += 1 };
            });
        };
        let other = thread::spawn({
            let (gate, epoch, state) = (Arc::clone(&gate), Arc::clone(&epoch), Arc::clone(&state));
            move || close(&gate, &epoch, &state)
        });
        drop(commands.enter(&gate));
        close(&gate, &epoch, &state);
        other.join().unwrap();
    });
}
