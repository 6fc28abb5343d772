//! The store on real files: every region, restarts, and rings so small that rare paths are common.

mod support;

use ferrite_hybridlog::{Change, Config, Database, OpenError, Store};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const DB: Database = Database(0);

/// Two pages of memory, segments of four pages.
fn tiny(directory: &std::path::Path) -> Config {
    let mut config = Config::new(directory);
    config.page_size = 4096;
    config.segment_size = 4 * 4096;
    config.mutable_size = 4096;
    config.readonly_size = 4096;
    config.block_cache_size = 0;
    config
}

fn value(i: u64, version: u64) -> Vec<u8> {
    let length = (i * 7 + version * 13) % 300;
    format!("{i}:{version}:").into_bytes().into_iter().cycle().take(length as usize).collect()
}

fn increment(
    old: Option<ferrite_hybridlog::Value<'_>>,
    out: &mut Vec<u8>,
) -> (Change<'static>, u64) {
    let n = old.map_or(0, |v| {
        std::str::from_utf8(v.bytes).expect("digits").parse::<u64>().expect("a number")
    }) + 1;
    out.extend_from_slice(n.to_string().as_bytes());
    (Change::PutScratch { expires_at_ms: None, encoding: 0 }, n)
}

#[test]
fn a_data_set_many_times_memory_reads_back_and_survives_a_checkpoint() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut model: HashMap<u64, Vec<u8>> = HashMap::new();
    {
        let store = Store::open(tiny(dir.path())).expect("opens");
        let mut s = store.blocking_session();
        for version in 0..3u64 {
            for i in (0..2000u64).filter(|i| version == 0 || i % 3 == version) {
                s.upsert(DB, &i.to_le_bytes(), &value(i, version)).expect("writes");
                model.insert(i, value(i, version));
            }
        }
        for i in (0..2000u64).step_by(10) {
            assert!(s.delete(DB, &i.to_le_bytes()).expect("deletes"));
            model.remove(&i);
        }
        for i in 0..2000u64 {
            assert_eq!(s.read(DB, &i.to_le_bytes()).expect("reads"), model.get(&i).cloned(), "{i}");
        }
        assert!(store.stats().device_reads > 1000, "{:?}", store.stats());
        assert_eq!(store.key_count(DB).0, model.len() as u64);
        store.checkpoint().expect("checkpoints");
        s.upsert(DB, b"after", b"the cut").expect("writes");
    }
    for round in 0..3u64 {
        let store = Store::open(tiny(dir.path())).expect("opens again");
        let mut s = store.blocking_session();
        assert_eq!(store.recovery().keys, model.len() as u64);
        assert_eq!(s.read(DB, b"after").expect("reads"), None, "nothing beyond the cut comes back");
        for i in 0..2000u64 {
            assert_eq!(s.read(DB, &i.to_le_bytes()).expect("reads"), model.get(&i).cloned(), "{i}");
        }
        for i in (round..2000).step_by(7) {
            s.upsert(DB, &i.to_le_bytes(), &value(i, 9 + round)).expect("writes");
            model.insert(i, value(i, 9 + round));
        }
        store.checkpoint().expect("checkpoints");
    }
}

#[test]
fn no_increment_is_lost_on_a_ring_of_two_pages_across_checkpoints() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(tiny(dir.path())).expect("opens");
    let (threads, each, keys) = (4, 5000u64, 50u64);
    support::threads(|scope| {
        for t in 0..threads {
            let store = &store;
            scope.spawn(move || {
                let mut s = store.blocking_session();
                for i in 0..each {
                    let key = ((i * 31 + t) % keys).to_le_bytes();
                    s.rmw(DB, &key, increment).expect("increments");
                }
            });
        }
        for _ in 0..10 {
            store.checkpoint().expect("checkpoints");
        }
    });
    let total = |store: &Store| {
        let mut s = store.blocking_session();
        (0..keys)
            .filter_map(|k| s.read(DB, &k.to_le_bytes()).expect("reads"))
            .map(|v| String::from_utf8(v).expect("digits").parse::<u64>().expect("a number"))
            .sum::<u64>()
    };
    assert_eq!(total(&store), threads * each);
    store.checkpoint().expect("checkpoints");
    drop(store);
    let store = Store::open(tiny(dir.path())).expect("opens again");
    assert_eq!(total(&store), threads * each);
}

#[test]
fn a_command_larger_than_the_ring_is_whole_or_not_at_all() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(tiny(dir.path())).expect("opens");
    let keys: Vec<Vec<u8>> = (0..40u64).map(|i| i.to_le_bytes().to_vec()).collect();
    let places: Vec<(Database, &[u8])> = keys.iter().map(|k| (DB, k.as_slice())).collect();
    support::threads(|scope| {
        for t in 0..3u8 {
            let (store, places) = (&store, &places);
            scope.spawn(move || {
                let mut s = store.blocking_session();
                for round in 0..30u8 {
                    let value = vec![t * 30 + round; 700];
                    s.run(|inside, op| {
                        inside.update_many(op, places, |many| {
                            for i in 0..places.len() {
                                let value = value.clone();
                                many.put_owned(i, value, None, 0);
                            }
                        })
                    })
                    .expect("writes");
                }
            });
        }
        let mut s = store.blocking_session();
        for _ in 0..200 {
            let mut seen: Vec<Option<Vec<u8>>> = vec![None; 40];
            let names: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            s.run(|inside, op| {
                inside.read_many(op, DB, &names, |i, v| seen[i] = v.map(|v| v.bytes.to_vec()))
            })
            .expect("reads");
            assert!(seen.windows(2).all(|w| w[0] == w[1]), "half of a command was seen");
        }
    });
}

#[test]
fn a_value_of_a_whole_page_goes_through_a_ring_of_two() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(tiny(dir.path())).expect("opens");
    let limit = store.value_limit(8);
    support::threads(|scope| {
        for t in 0..4u64 {
            let store = &store;
            scope.spawn(move || {
                let mut s = store.blocking_session();
                for i in 0..100u64 {
                    let value = vec![t as u8; limit - (i as usize % 5) * 512];
                    s.upsert(DB, &t.to_le_bytes(), &value).expect("writes");
                    assert_eq!(s.read(DB, &t.to_le_bytes()).expect("reads"), Some(value));
                }
            });
        }
    });
    let mut s = store.blocking_session();
    assert!(s.upsert(DB, &[0; 8], &vec![0; limit + 1]).is_err());
}

#[test]
fn expired_keys_are_absent_and_leave_without_being_asked_for() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(tiny(dir.path())).expect("opens");
    let mut s = store.blocking_session();
    let past = Some(1000);
    for i in 0..500u64 {
        let expires_at_ms = if i % 2 == 0 { past } else { None };
        let put = Change::Put { value: b"soon gone, or not", expires_at_ms, encoding: 0 };
        s.rmw(DB, &i.to_le_bytes(), |_, _| (put, ())).expect("writes");
    }
    for i in 0..500u64 {
        let found = s.read(DB, &i.to_le_bytes()).expect("reads").is_some();
        assert_eq!(found, i % 2 == 1, "{i}");
    }
    for _ in 0..2000 {
        if store.key_count(DB) == (250, 0) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{:?} are left", store.key_count(DB));
}

#[test]
fn flushed_and_swapped_databases_stay_so_after_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    {
        let store = Store::open(tiny(dir.path())).expect("opens");
        let mut s = store.blocking_session();
        for db in 0..3u8 {
            for i in 0..100u64 {
                s.upsert(Database(db), &i.to_le_bytes(), &[db; 50]).expect("writes");
            }
        }
        store.checkpoint().expect("checkpoints");
        store.flush_database(Database(1)).expect("flushes");
        store.swap_databases(Database(0), Database(2)).expect("swaps");
        s.upsert(Database(1), b"new", b"1").expect("writes");
        store.checkpoint().expect("checkpoints");
    }
    let store = Store::open(tiny(dir.path())).expect("opens again");
    let mut s = store.blocking_session();
    let key = 5u64.to_le_bytes();
    assert_eq!(s.read(Database(0), &key).expect("reads"), Some(vec![2; 50]));
    assert_eq!(s.read(Database(2), &key).expect("reads"), Some(vec![0; 50]));
    assert_eq!(s.read(Database(1), &key).expect("reads"), None);
    assert_eq!(s.read(Database(1), b"new").expect("reads"), Some(b"1".to_vec()));
    assert_eq!(store.key_count(Database(1)).0, 1);
}

#[test]
fn a_second_store_on_one_directory_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let _store = Store::open(tiny(dir.path())).expect("opens");
    let Err(second) = Store::open(tiny(dir.path())) else { panic!("it opened") };
    assert!(matches!(second, OpenError::Locked { .. }), "{second}");
    assert!(second.to_string().contains(&std::process::id().to_string()), "{second}");
}

#[test]
fn a_walk_meets_every_key_once_the_store_is_cold() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(tiny(dir.path())).expect("opens");
    let mut s = store.blocking_session();
    for i in 0..3000u64 {
        s.upsert(DB, &i.to_le_bytes(), b"x").expect("writes");
    }
    let mut seen = std::collections::HashSet::new();
    let mut cursor = 0;
    loop {
        let mut found = Vec::new();
        cursor = s
            .run(|inside, op| {
                found.clear();
                inside.walk(op, DB, cursor, |v| found.push(v.key.to_vec()))
            })
            .expect("walks");
        seen.extend(found);
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(seen.len(), 3000);
}

/// The last block of an earlier run ends at the cut: the block behind it was never written, and a
/// record that starts late in the last one must be readable without it.
#[test]
fn records_just_before_a_cut_are_read_back_whatever_the_offset() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = tiny(dir.path());
    config.page_size = 16 * 4096;
    config.segment_size = 32 * 4096;
    config.mutable_size = 16 * 4096;
    config.readonly_size = 16 * 4096;
    let mut keys = 0u64;
    for round in 0..20u64 {
        let store = Store::open(config.clone()).expect("opens");
        let mut s = store.blocking_session();
        for i in 0..keys {
            let found = s.read(DB, &i.to_le_bytes()).expect("reads");
            assert_eq!(found.map(|v| v.len()), Some((i * 37 % 200) as usize), "{i} in {round}");
        }
        for _ in 0..(100 + round * 3) {
            let value = vec![b'v'; (keys * 37 % 200) as usize];
            s.upsert(DB, &keys.to_le_bytes(), &value).expect("writes");
            keys += 1;
        }
        store.checkpoint().expect("checkpoints");
    }
}

/// An empty database needs nothing of the log, and what is written later must not bring back the
/// claim on segments that went meanwhile.
#[test]
fn a_store_that_was_empty_for_two_checkpoints_starts_again() {
    // Two keys of one tag (about one pair in 300 such sets) leave an entry behind, and the log with
    // it; five sets do not.
    let came_back = (0..5).filter(|_| empty_twice_then_start_again()).count();
    assert!(came_back > 0, "the space of deleted keys never came back");
}

/// Whether the deleted keys' segments were given up.
fn empty_twice_then_start_again() -> bool {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let came_back;
    {
        let store = Store::open(tiny(dir.path())).expect("opens");
        let mut s = store.blocking_session();
        for i in 0..60u64 {
            s.upsert(DB, &i.to_le_bytes(), &[7; 2000]).expect("writes");
        }
        store.checkpoint().expect("checkpoints");
        for i in 0..60u64 {
            assert!(s.delete(DB, &i.to_le_bytes()).expect("deletes"));
        }
        let full = store.sizes().disk_bytes;
        store.checkpoint().expect("checkpoints");
        store.checkpoint().expect("checkpoints");
        came_back = store.sizes().disk_bytes < full / 2;
        s.upsert(DB, b"later", b"x").expect("writes");
        store.checkpoint().expect("checkpoints");
    }
    let store = Store::open(tiny(dir.path())).expect("opens again");
    let mut s = store.blocking_session();
    assert_eq!(s.read(DB, b"later").expect("reads"), Some(b"x".to_vec()));
    assert_eq!(store.key_count(DB).0, 1);
    came_back
}

#[test]
fn two_hundred_and_fifty_six_databases_are_flushed_like_one() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = tiny(dir.path());
    config.databases = 256;
    let store = Store::open(config).expect("opens");
    let mut s = store.blocking_session();
    for db in [0, 1, 255] {
        s.upsert(Database(db), b"k", b"v").expect("writes");
    }
    store.flush_database(Database(255)).expect("flushes");
    assert_eq!(s.read(Database(255), b"k").expect("reads"), None);
    assert_eq!(s.read(Database(1), b"k").expect("reads"), Some(b"v".to_vec()));
    store.flush_all().expect("flushes");
    assert_eq!(s.read(Database(0), b"k").expect("reads"), None);
}

#[test]
fn overwriting_a_small_value_beside_a_key_that_fills_the_page_has_no_slack_to_take() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(tiny(dir.path())).expect("opens");
    let mut s = store.blocking_session();
    let key = vec![b'k'; 3864];
    for round in 0..5u8 {
        let value = vec![round; store.value_limit(key.len())];
        s.upsert(DB, &key, &value).expect("writes");
        let expire = |_: Option<ferrite_hybridlog::Value<'_>>, _: &mut Vec<u8>| {
            (Change::Expire(Some(u64::MAX)), ())
        };
        s.rmw(DB, &key, expire).expect("expires");
        assert_eq!(s.read(DB, &key).expect("reads"), Some(value));
    }
}

#[test]
fn the_limit_of_the_index_refuses_new_keys_and_loses_none() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = tiny(dir.path());
    config.index_max_size = 4096;
    let mut kept = Vec::new();
    {
        let store = Store::open(config.clone()).expect("opens");
        let mut s = store.blocking_session();
        for i in 0..4000u64 {
            if s.upsert(DB, &i.to_le_bytes(), b"x").is_ok() {
                kept.push(i);
            }
        }
        assert!((100..4000).contains(&kept.len()), "{}", kept.len());
        let many: Vec<Vec<u8>> = (9000..9040u64).map(|i| i.to_le_bytes().to_vec()).collect();
        let places: Vec<(Database, &[u8])> = many.iter().map(|k| (DB, k.as_slice())).collect();
        let refused = s.run(|inside, op| {
            inside.update_many(op, &places, |m| {
                (0..places.len()).for_each(|i| m.put_owned(i, vec![1; 600], None, 0));
            })
        });
        assert!(refused.is_err(), "a large command found room where small ones did not");
        store.checkpoint().expect("checkpoints");
    }
    config.index_max_size = 1;
    let store = Store::open(config).expect("a lower limit loses nothing");
    let mut s = store.blocking_session();
    for i in &kept {
        assert!(s.read(DB, &i.to_le_bytes()).expect("reads").is_some(), "{i}");
    }
}

/// Each database once had the whole limit for itself.
#[test]
fn the_limit_of_the_index_is_for_all_databases_together() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = tiny(dir.path());
    config.index_max_size = 256 * 64;
    let fill = |store: &Store, db: u8| {
        let mut s = store.blocking_session();
        let keys = 0..20_000u64;
        keys.take_while(|i| s.upsert(Database(db), &i.to_le_bytes(), b"x").is_ok()).count()
    };
    // The smallest table has 16 buckets here, and chains of four buckets of seven are taken
    // whatever the limit is.
    let without_growth = 16 * 4 * 7;
    let store = Store::open(config.clone()).expect("opens");
    let first = fill(&store, 0);
    assert!((2 * without_growth..20_000).contains(&first), "{first}");
    let second = fill(&store, 1);
    assert!(second <= without_growth, "{second} after {first}");
    store.checkpoint().expect("checkpoints");
    drop(store);
    let store = Store::open(config).expect("opens again");
    let third = fill(&store, 2);
    assert!(third <= without_growth, "{third} after a restart");
    // What a flushed database took is free again, once every session has seen that it is gone; one
    // that rests is called.
    let rests = Arc::new(AtomicBool::new(true));
    let rest = Arc::clone(&rests);
    let mut resting = store.session(move || rest.store(false, Ordering::Release));
    store.flush_database(Database(0)).expect("flushes");
    store.flush_database(Database(1)).expect("flushes");
    assert!(!rests.load(Ordering::Acquire), "nobody called it");
    resting.ready(&mut Vec::new());
    for _ in 0..2000 {
        if fill(&store, 3) > 2 * without_growth {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the flushed databases keep their room");
}

#[test]
fn foreseeing_keys_reads_nothing_from_the_device_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(tiny(dir.path())).expect("opens");
    let mut s = store.blocking_session();
    for i in 0..500u64 {
        s.upsert(DB, &i.to_le_bytes(), &value(i, 0)).expect("writes");
    }
    let reads = store.stats().device_reads;
    let keys: Vec<_> = (0..600u64).map(u64::to_le_bytes).collect();
    s.run(|inside, _| {
        let foreseen: Vec<_> = keys.iter().map(|key| inside.foresee(DB, key)).collect();
        foreseen.into_iter().for_each(|foreseen| inside.bring_in(foreseen));
        inside.bring_in(inside.foresee(Database(1), b"absent"));
        Ok(())
    })
    .expect("nothing can fail");
    assert_eq!(store.stats().device_reads, reads);
    for i in 0..600u64 {
        let expected = (i < 500).then(|| value(i, 0));
        assert_eq!(s.read(DB, &i.to_le_bytes()).expect("reads"), expected, "{i}");
    }
}

/// A session once outlived the threads that flush for it, and the lock of its directory.
#[test]
fn a_session_keeps_the_store_running() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(tiny(dir.path())).expect("opens");
    let mut s = store.blocking_session();
    drop(store);
    for i in 0..2000u64 {
        s.upsert(DB, &i.to_le_bytes(), &value(i, 0)).expect("writes");
    }
    assert_eq!(s.read(DB, &0u64.to_le_bytes()).expect("reads"), Some(value(0, 0)));
    assert!(Store::open(tiny(dir.path())).is_err(), "the directory is in use");
    drop(s);
    Store::open(tiny(dir.path())).expect("the last session has let go");
}

/// In a table that was large once a random key may be far: whoever looks for it must not keep all
/// others from their safepoints and pages meanwhile.
#[test]
fn a_search_for_a_random_key_leaves_now_and_then() {
    const KEYS: u64 = 100_000;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = Config::new(dir.path());
    (config.page_size, config.segment_size) = (64 << 10, 1 << 20);
    (config.mutable_size, config.readonly_size) = (16 << 20, 1 << 20);
    let store = Store::open(config).expect("opens");
    let mut s = store.blocking_session();
    for i in 0..KEYS {
        s.upsert(DB, &i.to_le_bytes(), b"x").expect("writes");
    }
    for i in 1..KEYS {
        s.rmw(DB, &i.to_le_bytes(), |_, _| (Change::Delete, ())).expect("deletes");
    }
    let mut stays = 0;
    for _ in 0..20 {
        let key = s.run(|inside, op| {
            stays += 1;
            inside.random_key(op, DB, |v| v.map(|v| v.key.to_vec()))
        });
        assert_eq!(key.expect("looks"), Some(0u64.to_le_bytes().to_vec()));
    }
    assert!(stays > 20, "each search was one stay");
    s.rmw(DB, &0u64.to_le_bytes(), |_, _| (Change::Delete, ())).expect("deletes");
    let none = s.run(|inside, op| inside.random_key(op, DB, |v| v.is_none()));
    assert!(none.expect("looks"), "nothing is left");
}

/// RANDOMKEY and SCAN promise in DBSIZE that what they found expired is gone. They once left it
/// there whenever other writers held all the room.
#[test]
fn a_search_and_a_walk_remove_what_expired_though_the_ring_is_full() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(tiny(dir.path())).expect("opens");
    store.pause_expiry_cycle(true);
    let other = Database(1);
    let stop = AtomicBool::new(false);
    support::threads(|scope| {
        for t in 0..2u64 {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || {
                let mut s = store.blocking_session();
                for i in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    s.upsert(other, &(i % 64 + t * 64).to_le_bytes(), &[7; 1500]).expect("writes");
                }
            });
        }
        let mut s = store.blocking_session();
        let mut left = 0;
        for round in 0..150u64 {
            s.rmw(DB, b"expired", |_, _| {
                let put = Change::Put { value: b"x", expires_at_ms: Some(1000), encoding: 0 };
                (put, ())
            })
            .expect("writes");
            let written = store.stats().appends;
            while store.stats().appends < written + 8 {
                std::thread::yield_now();
            }
            if round % 2 == 0 {
                let none = s.run(|inside, op| inside.random_key(op, DB, |v| v.is_none()));
                left += u64::from(none != Ok(true));
            } else {
                let mut cursor = 0;
                loop {
                    cursor = s
                        .run(|inside, op| {
                            inside.walk_removing_expired(op, DB, cursor, |_| true, |_| {})
                        })
                        .expect("walks");
                    if cursor == 0 {
                        break;
                    }
                }
            }
            left += store.key_count(DB).0;
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(left, 0, "expired keys stayed");
    });
}
