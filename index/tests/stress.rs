//! Many threads on one small index, for real: with the machine's own memory model, and under the
//! sanitizers. Each test runs a fixed number of steps from a seed it prints; set FERRITE_SEED to
//! repeat one, FERRITE_STRESS to run that many times as many steps.
#![cfg(not(loom))]

use ferrite_index::{
    Address, Busy, Epoch, Gate, HashIndex, HashSecret, IndexConfig, KeyHash, Participant, Pin,
    read_image,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

const THREADS: u64 = 4;

fn steps(usual: u64) -> u64 {
    let times = std::env::var("FERRITE_STRESS").ok().and_then(|times| times.parse().ok());
    usual * times.unwrap_or(1)
}

/// A small generator of our own, so that a seed means the same for ever.
struct Random(u64);

/// The seed of a test, printed so that a failure can be repeated.
fn seed() -> u64 {
    let seed = std::env::var("FERRITE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let bytes = *HashSecret::random().unwrap().bytes();
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    });
    println!("FERRITE_SEED={seed}");
    seed
}

impl Random {
    fn of(seed: u64, thread: u64) -> Self {
        Self(seed.wrapping_add(thread.wrapping_mul(0xd6e8_feb8_6659_fd93)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Joins each thread: a scope waits for them too, but inside std, out of ThreadSanitizer's sight.
fn join(threads: Vec<thread::ScopedJoinHandle<'_, ()>>) {
    for thread in threads {
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}

/// A hash that no other number below 2^17 shares bucket and tag with in an index of 4 buckets.
fn hash(key: u64) -> KeyHash {
    assert!(key < 1 << 17);
    KeyHash::from_raw((key.wrapping_mul(0x1_2345) & 0x1_ffff) | key << 20)
}

fn small_index(epoch: &Arc<Epoch>) -> Arc<HashIndex> {
    let config = IndexConfig { smallest_bits: 2, max_bytes: 0, huge_pages: false };
    Arc::new(HashIndex::new(config, Arc::clone(epoch)).unwrap())
}

/// Runs `step` until it is not busy, waiting outside.
fn patiently<T>(participant: &Participant, mut step: impl FnMut(&Pin<'_>) -> Result<T, Busy>) -> T {
    loop {
        let pin = participant.pin();
        match step(&pin) {
            Ok(done) => return done,
            Err(Busy) => drop(pin),
        }
        thread::yield_now();
    }
}

fn set(index: &HashIndex, participant: &Participant, key: u64, address: Address) {
    patiently(participant, |pin| {
        let latch = index.latch(pin, hash(key))?;
        latch.reserve(hash(key), false).unwrap();
        latch.set(hash(key), false, address);
        drop(latch);
        index.grow(pin);
        Ok(())
    });
}

fn remove(index: &HashIndex, participant: &Participant, key: u64) {
    patiently(participant, |pin| {
        index.latch(pin, hash(key))?.remove(hash(key), false);
        Ok(())
    });
}

fn probe(index: &HashIndex, participant: &Participant, key: u64) -> Option<u64> {
    patiently(participant, |pin| {
        Ok(index.probe(pin, hash(key), false)?.address().map(Address::raw))
    })
}

/// Each thread owns its keys and knows exactly what the index must say of them, while the others
/// change theirs in the same buckets and the table grows from 4 buckets to 1,024.
#[test]
fn each_thread_finds_exactly_what_it_set_while_all_of_them_write() {
    let seed = seed();
    let epoch = Arc::new(Epoch::new(THREADS as usize));
    let index = small_index(&epoch);
    let total = AtomicU64::new(0);
    let mine = 1 << 12;
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for thread in 0..THREADS {
            let (index, epoch, total) = (&index, &epoch, &total);
            threads.push(scope.spawn(move || {
                let participant = epoch.register("owner").unwrap();
                let mut random = Random::of(seed, thread);
                let mut model = BTreeMap::new();
                let mut newest = 0;
                for step in 0..steps(30_000) {
                    // More and more keys, so that the table has to grow all the way.
                    let key = random.below(mine.min(16 + step / 4)) * THREADS + thread;
                    match random.below(8) {
                        0..4 => {
                            newest += 1;
                            set(index, &participant, key, Address::new(newest * THREADS + thread));
                            model.insert(key, newest * THREADS + thread);
                        }
                        4 => {
                            remove(index, &participant, key);
                            model.remove(&key);
                        }
                        _ => {
                            let found = probe(index, &participant, key);
                            assert_eq!(found, model.get(&key).copied(), "key {key}");
                        }
                    }
                }
                for (key, address) in &model {
                    assert_eq!(probe(index, &participant, *key), Some(*address), "key {key}");
                }
                total.fetch_add(model.len() as u64, Ordering::Relaxed);
            }));
        }
        join(threads);
    });
    assert_eq!(index.entries(), total.into_inner());
    assert!(index.bucket_count() > 512, "{index:?}");
}

/// Everything is read, and added to, under the latch: the sum is exact.
#[test]
fn additions_under_the_latch_are_exact() {
    let seed = seed();
    let epoch = Arc::new(Epoch::new(THREADS as usize));
    let index = small_index(&epoch);
    let each = steps(20_000);
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for thread in 0..THREADS {
            let (index, epoch) = (&index, &epoch);
            threads.push(scope.spawn(move || {
                let participant = epoch.register("adder").unwrap();
                let mut random = Random::of(seed, thread);
                for n in 0..each {
                    let key = random.below(100);
                    patiently(&participant, |pin| {
                        let latch = index.latch(pin, hash(key))?;
                        let now = latch.address(hash(key), false).map_or(0, Address::raw);
                        latch.reserve(hash(key), false).unwrap();
                        latch.set(hash(key), false, Address::new(now + 1));
                        Ok(())
                    });
                    // Other keys, so that there are splits among the additions.
                    set(
                        index,
                        &participant,
                        1000 + thread * each.min(2000) + n % 2000,
                        Address::MAX,
                    );
                }
            }));
        }
        join(threads);
    });
    let participant = epoch.register("reader").unwrap();
    let sum: u64 = (0..100).map(|key| probe(&index, &participant, key).unwrap_or(0)).sum();
    assert_eq!(sum, THREADS * each);
}

/// SCAN's guarantee: what is there from the first call to the last is handed out, whatever comes,
/// goes and grows; the same of images, where growth waits.
#[test]
fn a_walk_and_an_image_hold_all_that_stays() {
    let seed = seed();
    const STAYS: u64 = 2_000;
    let epoch = Arc::new(Epoch::new(THREADS as usize + 1));
    let index = small_index(&epoch);
    let participant = epoch.register("walker").unwrap();
    (0..STAYS / 2).for_each(|key| set(&index, &participant, key, Address::new(key + 1)));
    let done = AtomicBool::new(false);
    let writers = THREADS - 1;
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for thread in 0..writers {
            let (index, epoch, done) = (&index, &epoch, &done);
            threads.push(scope.spawn(move || {
                let participant = epoch.register("writer").unwrap();
                let mut random = Random::of(seed, thread);
                let mut limit = 100;
                while !done.load(Ordering::Relaxed) {
                    limit = (limit + 1).min(20_000);
                    let key = STAYS + random.below(limit) * writers + thread;
                    if random.below(3) == 0 {
                        remove(index, &participant, key);
                    } else {
                        set(index, &participant, key, Address::new(key + 1));
                    }
                }
            }));
        }
        let check = |seen: Vec<u64>| {
            let mut stays: Vec<u64> = seen.into_iter().filter(|raw| *raw <= STAYS / 2).collect();
            stays.sort_unstable();
            stays.dedup();
            assert_eq!(stays.len() as u64, STAYS / 2);
        };
        // Catch the failure, so that the writers end before it is reported.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..steps(30) {
                let (mut cursor, mut seen) = (0, Vec::new());
                loop {
                    let pin = participant.pin();
                    cursor = index.walk(&pin, cursor, |address, _| seen.push(address.raw()));
                    drop(pin);
                    if cursor == 0 {
                        break;
                    }
                }
                check(seen);
                let hold = index.hold_growth();
                let (count, mut next, mut image) = (index.bucket_count(), 0, Vec::new());
                while next < count {
                    next = index.image_chunk(&participant.pin(), &hold, next, 16, &mut image);
                }
                assert_eq!(index.bucket_count(), count);
                drop(hold);
                let mut seen = Vec::new();
                read_image(&image, 2, |_, _, address| seen.push(address.raw())).unwrap();
                check(seen);
            }
        }));
        done.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        join(threads);
    });
    assert!(index.bucket_count() > 64, "{index:?}");
}

/// Two keys that are only ever changed together, in whatever buckets they are, are never seen
/// apart by readers of both, and no reader of one sees the step in between.
#[test]
fn commands_of_two_keys_are_seen_whole() {
    let epoch = Arc::new(Epoch::new(THREADS as usize + 1));
    let index = small_index(&epoch);
    let participant = epoch.register("setup").unwrap();
    let keys = [3, 1_000];
    keys.iter().for_each(|key| set(&index, &participant, *key, Address::new(2)));
    let writers = AtomicUsize::new(2);
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for thread in 0..2 {
            let (index, epoch, writers) = (&index, &epoch, &writers);
            threads.push(scope.spawn(move || {
                let participant = epoch.register("writer").unwrap();
                for n in 0..steps(5_000) {
                    patiently(&participant, |pin| {
                        let first = index.latch(pin, hash(keys[0]))?;
                        let same = first.covers(index, hash(keys[1]));
                        let second =
                            if same { None } else { Some(index.latch(pin, hash(keys[1]))?) };
                        let second = second.as_ref().unwrap_or(&first);
                        first.mark_multi();
                        second.mark_multi();
                        let now = first.address(hash(keys[0]), false).unwrap().raw();
                        assert_eq!(second.address(hash(keys[1]), false).unwrap().raw(), now);
                        for step in [now + 1, now + 2] {
                            first.set(hash(keys[0]), false, Address::new(step));
                            second.set(hash(keys[1]), false, Address::new(step));
                        }
                        Ok(())
                    });
                    set(index, &participant, 2_000 + n % 4_000 * 2 + thread, Address::MAX);
                }
                writers.fetch_sub(1, Ordering::Relaxed);
            }));
        }
        for thread in 0..2 {
            let (index, epoch, writers) = (&index, &epoch, &writers);
            threads.push(scope.spawn(move || {
                let participant = epoch.register("reader").unwrap();
                while writers.load(Ordering::Relaxed) != 0 {
                    if thread == 0 {
                        let key = keys[0];
                        let seen = patiently(&participant, |pin| {
                            let probe = index.probe(pin, hash(key), false)?;
                            probe.still_open().then_some(probe.address()).ok_or(Busy)
                        });
                        assert_eq!(seen.unwrap().raw() % 2, 0, "the middle of a command");
                    } else {
                        let [one, two] = patiently(&participant, |pin| {
                            let first = index.latch_shared(pin, hash(keys[0]))?;
                            let second = index.latch_shared(pin, hash(keys[1]))?;
                            Ok([
                                first.address(hash(keys[0]), false),
                                second.address(hash(keys[1]), false),
                            ])
                        });
                        assert_eq!(one, two, "half a command");
                    }
                }
            }));
        }
        join(threads);
    });
}

/// What is retired is dropped, once, and not before the pins that might see it have ended.
#[test]
fn retired_things_outlive_the_pins_that_could_see_them() {
    struct Alive(Arc<AtomicU64>, Arc<AtomicU64>);
    impl Drop for Alive {
        fn drop(&mut self) {
            assert_eq!(self.0.swap(0, Ordering::SeqCst), 7, "dropped once");
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }
    let epoch = Arc::new(Epoch::new(THREADS as usize));
    let dropped = Arc::new(AtomicU64::new(0));
    let shared = std::sync::Mutex::new(Arc::new(AtomicU64::new(7)));
    let done = AtomicUsize::new(THREADS as usize - 1);
    let rounds = steps(2_000);
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 1..THREADS {
            threads.push(scope.spawn(|| {
                let participant = epoch.register("reader").unwrap();
                for _ in 0..rounds * 5 {
                    let pin = participant.pin();
                    let seen = Arc::clone(&shared.lock().unwrap());
                    assert_eq!(seen.load(Ordering::SeqCst), 7, "still there when found");
                    thread::yield_now();
                    assert_eq!(seen.load(Ordering::SeqCst), 7, "still there under the pin");
                    drop(pin);
                }
                done.fetch_sub(1, Ordering::SeqCst);
            }));
        }
        for _ in 0..rounds {
            let new = Arc::new(AtomicU64::new(7));
            let old = std::mem::replace(&mut *shared.lock().unwrap(), new);
            epoch.retire(Box::new(Alive(old, Arc::clone(&dropped))));
            epoch.reclaim();
        }
        while done.load(Ordering::SeqCst) != 0 {
            thread::yield_now();
        }
        join(threads);
    });
    (0..4).for_each(|_| epoch.reclaim());
    assert_eq!(epoch.retired(), 0);
    assert_eq!(dropped.load(Ordering::SeqCst), rounds);
}

#[test]
fn a_pinned_participant_holds_reclaiming_up_and_is_named() {
    struct Bell(Arc<AtomicBool>);
    impl Drop for Bell {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let epoch = Arc::new(Epoch::new(2));
    let (slow, quick) = (epoch.register("slow").unwrap(), epoch.register("quick").unwrap());
    assert!(epoch.register("one too many").is_none());
    let rung = Arc::new(AtomicBool::new(false));
    assert_eq!(epoch.laggard(), None);
    let pin = slow.pin();
    epoch.retire(Box::new(Bell(Arc::clone(&rung))));
    let new = epoch.bump();
    let later = quick.pin();
    assert!(!epoch.is_safe(new));
    assert_eq!(epoch.laggard().as_deref(), Some("slow"));
    (0..100).for_each(|_| epoch.reclaim());
    assert!(!rung.load(Ordering::SeqCst) && epoch.retired() == 1);
    drop(later);
    drop(pin);
    assert!(epoch.is_safe(new));
    assert_eq!(epoch.laggard(), None);
    epoch.wait_until_safe(new);
    epoch.reclaim();
    assert!(rung.load(Ordering::SeqCst) && epoch.retired() == 0);
    drop(slow);
    assert!(epoch.register("in its seat").is_some());
}

#[test]
fn an_epoch_that_ends_drops_what_is_retired() {
    let thing = Arc::new(());
    let epoch = Epoch::new(1);
    epoch.retire(Box::new(Arc::clone(&thing)));
    assert_eq!(Arc::strong_count(&thing), 2);
    drop(epoch);
    assert_eq!(Arc::strong_count(&thing), 1);
}

/// Commands are never half done behind a closed gate, nobody stays asleep, and those who serve the
/// closer get through.
#[test]
fn nothing_is_half_done_behind_a_closed_gate() {
    let epoch = Arc::new(Epoch::new(THREADS as usize + 1));
    let gate = Gate::new();
    let halves = [AtomicU64::new(0), AtomicU64::new(0)];
    let running = AtomicUsize::new(THREADS as usize);
    let start = Barrier::new(THREADS as usize + 1);
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..THREADS {
            threads.push(scope.spawn(|| {
                let participant = epoch.register("command").unwrap();
                start.wait();
                for _ in 0..steps(20_000) {
                    let _pin = participant.enter(&gate);
                    halves[0].fetch_add(1, Ordering::Relaxed);
                    halves[1].fetch_add(1, Ordering::Relaxed);
                }
                running.fetch_sub(1, Ordering::Relaxed);
            }));
        }
        start.wait();
        let server = epoch.register("server").unwrap();
        while running.load(Ordering::Relaxed) != 0 {
            let closed = gate.close(&epoch);
            let cut = halves[0].load(Ordering::Relaxed);
            assert_eq!(halves[1].load(Ordering::Relaxed), cut);
            drop(server.pin());
            thread::yield_now();
            assert_eq!(halves[1].load(Ordering::Relaxed), cut);
            drop(closed);
            thread::yield_now();
        }
        join(threads);
    });
    assert_eq!(halves[0].load(Ordering::Relaxed), THREADS * steps(20_000));
    // Where the threads had ended before the first closing, none before this one took a microsecond.
    let closed = gate.close(&epoch);
    thread::sleep(std::time::Duration::from_millis(1));
    drop(closed);
    assert!(gate.longest_us() >= 1000);
}
