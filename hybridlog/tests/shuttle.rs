//! The whole store, its page thread, helpers, checkpoints and compaction included, on a simulated
//! disk, with every switch between threads chosen by chance from a seed: what shuttle calls an
//! execution. Atomics, locks, channels, waits and threads of production are shuttle's in this build
//! (`src/sync.rs`, and `scheduled.rs` of `ferrite-index`, which tell what that leaves out).
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test -p ferrite-hybridlog --release --test shuttle`
//!
//! The seeds are the same in every run, so a failure repeats itself; `SHUTTLE_RANDOM_SEED` chooses
//! another. A failure among the executions that are all chance prints the seed to begin with it.
//!
//! `.ci/mutants` runs these tests with one step of the store left out at a time.
#![cfg(shuttle)]

use ferrite_hybridlog::device::Device;
use ferrite_hybridlog::device::fault::FaultDevice;
use ferrite_hybridlog::{BlockingSession, Change, Config, Database, Store};
use shuttle::scheduler::{
    PctScheduler, RandomScheduler, Scheduler, UncontrolledNondeterminismCheckScheduler,
};
use shuttle::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const DB: Database = Database(0);
/// More than half of what a page holds.
const FILLER: [u8; 2200] = [7; 2200];

/// Runs so many executions, half of them with a thread chosen by chance at every step, and half
/// with priorities, which keep one thread waiting for long, that change at a hundred steps. A few
/// come twice, to show that they replay.
fn explore(executions: usize, story: fn()) {
    let few = RandomScheduler::new_from_seed(3, 5);
    run(UncontrolledNondeterminismCheckScheduler::new(few), story);
    run(RandomScheduler::new_from_seed(1, executions / 2), story);
    run(PctScheduler::new_from_seed(2, 100, executions / 2), story);
}

fn run(scheduler: impl Scheduler + 'static, story: fn()) {
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    config.failure_persistence = shuttle::FailurePersistence::None;
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    config.max_steps = shuttle::MaxSteps::FailAfter(3_000_000);
    shuttle::Runner::new(scheduler, config).run(story);
}

/// Two pages of memory, of 4 KiB each.
fn tiny() -> Config {
    let mut config = Config::new("simulated");
    (config.page_size, config.segment_size) = (4096, 8192);
    (config.mutable_size, config.readonly_size) = (4096, 4096);
    config.block_cache_size = 0;
    config.databases = 1;
    config
}

fn open(device: &Arc<FaultDevice>) -> Store {
    let store = Store::open_on(tiny(), device.clone() as Arc<dyn Device>).expect("opens");
    store.pause_expiry_cycle(true);
    store
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

fn get(s: &mut BlockingSession, key: &[u8]) -> u64 {
    s.read(DB, key).expect("reads").map_or(0, |bytes| number(&bytes))
}

fn increment(s: &mut BlockingSession, key: &[u8]) -> u64 {
    s.rmw(DB, key, |old, out| {
        let n = old.map_or(0, |v| number(v.bytes)) + 1;
        out.extend_from_slice(&n.to_le_bytes());
        (Change::PutScratch { expires_at_ms: None, encoding: 0 }, n)
    })
    .expect("writes")
}

/// Raises all the keys by one, in one command.
fn increment_all(s: &mut BlockingSession, keys: &[&[u8]]) {
    let places: Vec<_> = keys.iter().map(|key| (DB, *key)).collect();
    s.run(|inside, op| {
        inside.update_many(op, &places, |many| {
            for i in 0..places.len() {
                let n = many.get(i).map_or(0, |v| number(v.bytes)) + 1;
                many.put_owned(i, n.to_le_bytes().to_vec(), None, 0);
            }
        })
    })
    .expect("writes");
}

fn get_all(s: &mut BlockingSession, keys: &[&[u8]]) -> Vec<u64> {
    let mut values = vec![0; keys.len()];
    s.run(|inside, op| {
        inside.read_many(op, DB, keys, |i, v| values[i] = v.map_or(0, |v| number(v.bytes)))
    })
    .expect("reads");
    values
}

/// Sends what was written before on its way to the disk.
fn fill(s: &mut BlockingSession, writer: u64) {
    s.upsert(DB, format!("filler {writer}").as_bytes(), &FILLER).expect("writes");
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("its part of the test holds");
    }
}

#[test]
fn increments_are_all_there_and_never_go_back_while_pages_turn() {
    explore(300, || {
        const ROUNDS: u64 = 3;
        let keys: [&[u8]; 2] = [b"one", b"other"];
        let store = open(&FaultDevice::new());
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let store = store.clone();
                thread::spawn(move || {
                    let mut s = store.blocking_session();
                    for round in 0..ROUNDS {
                        for key in keys {
                            assert!(increment(&mut s, key) > round, "an increment was lost");
                        }
                        fill(&mut s, writer);
                    }
                })
            })
            .collect();
        let reader = {
            let store = store.clone();
            thread::spawn(move || {
                let mut s = store.blocking_session();
                let mut last = [0; 2];
                for _ in 0..5 {
                    for (key, last) in keys.iter().zip(&mut last) {
                        let now = get(&mut s, key);
                        assert!(now >= *last, "{now} after {last}");
                        *last = now;
                    }
                }
            })
        };
        join(writers.into_iter().chain([reader]));
        let mut s = store.blocking_session();
        assert_eq!(keys.map(|key| get(&mut s, key)), [2 * ROUNDS; 2]);
    });
}

/// Keys that every command raises together are equal to whoever reads them together, and in the cut;
/// who reads the first and then the last sees no less of the last.
#[test]
fn commands_of_several_keys_are_whole_while_a_checkpoint_is_taken_and_pages_turn() {
    explore(400, || {
        const ROUNDS: u64 = 3;
        let keys: [&[u8]; 5] = [b"first", b"one", b"another", b"one more", b"last"];
        let device = FaultDevice::new();
        let store = open(&device);
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let store = store.clone();
                thread::spawn(move || {
                    let mut s = store.blocking_session();
                    for _ in 0..ROUNDS {
                        increment_all(&mut s, &keys);
                        fill(&mut s, writer);
                    }
                })
            })
            .collect();
        let reader = {
            let store = store.clone();
            thread::spawn(move || {
                let mut s = store.blocking_session();
                for _ in 0..4 {
                    let all = get_all(&mut s, &keys);
                    assert_eq!(all, [all[0]; 5], "half of a command was seen");
                    let (first, last) = (get(&mut s, keys[0]), get(&mut s, keys[4]));
                    assert!(last >= first, "{last} after {first}: half of a command was seen");
                }
            })
        };
        let checkpoint = {
            let store = store.clone();
            thread::spawn(move || drop(store.checkpoint().expect("checkpoints")))
        };
        join(writers.into_iter().chain([reader, checkpoint]));
        let mut s = store.blocking_session();
        assert_eq!(get_all(&mut s, &keys), [2 * ROUNDS; 5]);
        drop(s);
        let crashed = device.crash(1);
        drop(store);
        let store = open(&crashed);
        let all = get_all(&mut store.blocking_session(), &keys);
        assert_eq!(all, [all[0]; 5], "half of a command is in the cut");
    });
}

/// One writer raises its first key, then its second, and another repeats what it has read of the second:
/// a cut that has an effect has all that came before it.
#[test]
fn a_checkpoint_is_a_cut_that_survives_a_crash() {
    explore(300, || {
        const ROUNDS: u64 = 4;
        let names: [&[u8]; 3] = [b"first", b"second", b"echo"];
        let device = FaultDevice::new();
        let store = open(&device);
        let begun = Arc::new(AtomicU64::new(0));
        let ended = Arc::new(AtomicU64::new(0));
        let writer = {
            let (store, begun, ended) = (store.clone(), Arc::clone(&begun), Arc::clone(&ended));
            thread::spawn(move || {
                let mut s = store.blocking_session();
                for round in 1..=ROUNDS {
                    begun.store(round, Ordering::SeqCst);
                    increment(&mut s, names[0]);
                    increment(&mut s, names[1]);
                    ended.store(round, Ordering::SeqCst);
                    if round % 2 == 0 {
                        fill(&mut s, 0);
                    }
                }
            })
        };
        let echo = {
            let store = store.clone();
            thread::spawn(move || {
                let mut s = store.blocking_session();
                for _ in 0..ROUNDS {
                    let seen = get(&mut s, names[1]);
                    s.upsert(DB, names[2], &seen.to_le_bytes()).expect("writes");
                }
                fill(&mut s, 1);
            })
        };
        let checkpoint = {
            let store = store.clone();
            thread::spawn(move || {
                let least = ended.load(Ordering::SeqCst);
                store.checkpoint().expect("checkpoints");
                (least, begun.load(Ordering::SeqCst))
            })
        };
        join([writer, echo]);
        let (least, most) = checkpoint.join().expect("its part of the test holds");
        let crashed = [1, 2].map(|seed| device.crash(seed));
        drop(store);
        let cuts = crashed.map(|device| {
            let store = open(&device);
            let mut s = store.blocking_session();
            names.map(|name| get(&mut s, name))
        });
        let [first, second, echo] = cuts[0];
        assert_eq!(cuts[0], cuts[1], "what was not synced is part of it");
        assert!((least..=most).contains(&first), "{first} of {least} to {most}");
        assert!(first == second || first == second + 1, "{first} and {second}");
        assert!(echo <= second, "{echo} was seen, and {second} is there");
    });
}

#[test]
fn a_compaction_loses_nothing_and_brings_nothing_back() {
    explore(300, || {
        const ROUNDS: u64 = 2;
        const KEYS: u64 = 6;
        let device = FaultDevice::new();
        let store = open(&device);
        let mut s = store.blocking_session();
        for round in 0..2 {
            for key in 0..KEYS {
                increment(&mut s, &key.to_le_bytes());
                if key % 2 == 0 {
                    fill(&mut s, round);
                }
            }
        }
        store.checkpoint().expect("checkpoints");
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let store = store.clone();
                thread::spawn(move || {
                    let mut s = store.blocking_session();
                    for round in 0..ROUNDS {
                        for key in 0..KEYS / 2 {
                            let n = increment(&mut s, &key.to_le_bytes());
                            assert!(n > 2 + round, "an increment was lost");
                        }
                    }
                    fill(&mut s, writer);
                })
            })
            .collect();
        let reader = {
            let store = store.clone();
            thread::spawn(move || {
                let mut s = store.blocking_session();
                let mut last = [2; KEYS as usize];
                for _ in 0..2 {
                    for (key, last) in (0..KEYS).zip(&mut last) {
                        let now = get(&mut s, &key.to_le_bytes());
                        assert!(now >= *last, "{now} after {last}");
                        *last = now;
                    }
                }
            })
        };
        let compaction = {
            let store = store.clone();
            thread::spawn(move || {
                let report = store.compact().expect("compacts");
                assert!(report.copied_bytes > 0, "{report:?}");
            })
        };
        join(writers.into_iter().chain([reader, compaction]));
        let expected = |key| if key < KEYS / 2 { 2 + 2 * ROUNDS } else { 2 };
        for key in 0..KEYS {
            assert_eq!(get(&mut s, &key.to_le_bytes()), expected(key), "key {key}");
        }
        // Twice, since the files of the last two are kept: then what was copied is gone.
        for _ in 0..2 {
            store.checkpoint().expect("checkpoints");
        }
        drop(s);
        drop(store);
        let store = open(&device);
        let mut s = store.blocking_session();
        for key in 0..KEYS {
            assert_eq!(get(&mut s, &key.to_le_bytes()), expected(key), "key {key} after a restart");
        }
    });
}
