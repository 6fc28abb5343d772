//! Commands through the real binary: what a unit test of the handlers cannot show, and the bugs that
//! were found by comparing with redis-server.

mod replies;
mod support;

use replies::{Replies, Tree};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use support::Server;

#[test]
fn lastsave_moves_when_the_checkpoint_is_durable_and_a_restart_finds_it() {
    let server = Server::ferrite(&[]);
    let mut wire = Replies::of(&server);
    wire.line("SET a before");
    wire.line("SET b 1 PXAT 4000000000000");
    wire.line("APPEND c 12");
    wire.line("APPEND c 3");
    let before = wire.integer("LASTSAVE");
    // LASTSAVE counts seconds: a checkpoint in the next one shows.
    while server_seconds(&mut wire) <= before {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(wire.text("BGSAVE"), "+Background saving started\r\n");
    while wire.integer("LASTSAVE") == before {
        std::thread::sleep(Duration::from_millis(5));
    }
    let directory = server.directory.clone();
    drop(server);
    let server = Server::ferrite_in(directory, &[]);
    let mut wire = Replies::of(&server);
    assert_eq!(wire.text("GET a"), "$6\r\nbefore\r\n");
    assert_eq!(wire.integer("PEXPIRETIME b"), 4_000_000_000_000);
    assert_eq!(wire.text("OBJECT ENCODING c"), "$3\r\nraw\r\n");
    assert_eq!(wire.integer("DBSIZE"), 3);
}

fn server_seconds(wire: &mut Replies) -> i64 {
    let time = Tree::of(&wire.line("TIME"));
    String::from_utf8_lossy(time.elements()[0].bytes()).parse().unwrap()
}

#[test]
fn a_save_that_fails_is_told_and_lastsave_stays() {
    let server = Server::ferrite(&[]);
    let mut wire = Replies::of(&server);
    wire.line("SET a 1");
    let before = wire.integer("LASTSAVE");
    // Whoever removes this directory under a running server: nothing can be saved any more.
    std::fs::remove_dir_all(server.directory.path().join("data/checkpoints")).unwrap();
    while server_seconds(&mut wire) <= before {
        std::thread::sleep(Duration::from_millis(20));
    }
    let reply = wire.text("SAVE");
    assert!(reply.starts_with("-ERR checkpoint failed: "), "{reply}");
    assert_eq!(wire.integer("LASTSAVE"), before);
    assert!(wire.text("INFO persistence").contains("rdb_last_bgsave_status:err"));
    assert_eq!(wire.text("GET a"), "$1\r\n1\r\n");
}

#[test]
fn shutdown_saves_unless_told_not_to() {
    // With the append-only file nothing is lost either way.
    const OFF: &str = "persistence.aof_enabled=false";
    let mut server = Server::ferrite(&[OFF]);
    let mut wire = Replies::of(&server);
    wire.line("SET a 1");
    wire.send(&[b"SHUTDOWN"]);
    assert_eq!(server.wait(), Some(0));
    let directory = server.directory.clone();
    let mut server = Server::ferrite_in(directory, &[OFF]);
    let mut wire = Replies::of(&server);
    assert_eq!(wire.text("GET a"), "$1\r\n1\r\n");
    wire.line("SET a 2");
    wire.send(&[b"SHUTDOWN", b"NOSAVE"]);
    assert_eq!(server.wait(), Some(0));
    let directory = server.directory.clone();
    let server = Server::ferrite_in(directory, &[OFF]);
    assert_eq!(Replies::of(&server).text("GET a"), "$1\r\n1\r\n");
}

/// KEYS, and SCAN with a large COUNT, once stood to hold up every other client of their worker. Keys
/// are made meanwhile, one after the other: a walk in one piece finds the first so many of them, and
/// one that lets the maker in between misses one whose place it had passed, yet finds a later one.
#[test]
fn other_clients_are_served_while_one_walks_over_all_keys() {
    let server = Server::ferrite(&["server.workers=1"]);
    let [mut walker, mut maker] = [&server, &server].map(Replies::of);
    for i in 0..600 {
        let words: Vec<String> = (0..100).map(|j| format!("key:{i}:{j}")).collect();
        let mut command: Vec<&[u8]> = vec![b"MSET"];
        words.iter().for_each(|word| command.extend([word.as_bytes(), b"v"]));
        assert_eq!(walker.call(&command), b"+OK\r\n");
    }
    let since = Instant::now();
    for walk in ["KEYS", "SCAN"] {
        let round = (0..).find(|round| {
            assert!(since.elapsed() < support::PATIENCE, "{walk} lets nobody in between");
            let pattern = format!("made:{walk}:{round}:*");
            let walked = AtomicBool::new(false);
            let (reply, made) = std::thread::scope(|scope| {
                let reply = scope.spawn(|| {
                    let reply = match walk {
                        "KEYS" => walker.line(&format!("KEYS {pattern}")),
                        _ => walker.line(&format!("SCAN 0 COUNT 1000000 MATCH {pattern}")),
                    };
                    walked.store(true, Relaxed);
                    Tree::of(&reply)
                });
                let mut made = 0;
                while !walked.load(Relaxed) {
                    for n in made..made + 50 {
                        let name = pattern.replace('*', &n.to_string());
                        maker.send(&[b"SET", name.as_bytes(), b"v"]);
                    }
                    (0..50).for_each(|_| assert_eq!(maker.reply(), b"+OK\r\n"));
                    made += 50;
                }
                (reply.join().expect("a reply"), made)
            });
            let names = if walk == "KEYS" { reply } else { reply.elements()[1].clone() };
            let found: BTreeSet<_> = names.elements().iter().map(|n| n.bytes().to_vec()).collect();
            let is_found =
                |n: usize| found.contains(pattern.replace('*', &n.to_string()).as_bytes());
            (0..made).skip_while(|n| is_found(*n)).any(is_found)
        });
        assert!(round.is_some());
    }
    assert_eq!(walker.line("KEYS key:*:*").iter().filter(|b| **b == b'$').count(), 60_000);
}

/// If SAVE held up its worker, the only one, nobody could ask while it runs.
#[test]
fn others_are_served_while_a_save_runs() {
    let server = Server::ferrite(&["server.workers=1"]);
    let [mut saver, mut other] = [&server, &server].map(Replies::of);
    let since = Instant::now();
    let mut seen = false;
    while !seen {
        assert!(since.elapsed() < support::PATIENCE, "nobody is served while SAVE runs");
        saver.line("INCR n");
        saver.send(&[b"SAVE"]);
        for _ in 0..20 {
            seen |= other.text("INFO persistence").contains("rdb_bgsave_in_progress:1");
        }
        assert_eq!(saver.reply(), b"+OK\r\n");
    }
}

/// A sparse index, whose smallest size follows from the memory, once took thousands of calls of SCAN.
#[test]
fn scan_over_few_keys_ends_after_few_calls() {
    let server = Server::ferrite(&[]);
    let mut wire = Replies::of(&server);
    wire.line("SET a 1");
    let mut cursor = "0".to_string();
    for call in 1.. {
        let reply = Tree::of(&wire.line(&format!("SCAN {cursor} COUNT 1")));
        cursor = String::from_utf8_lossy(reply.elements()[0].bytes()).into();
        if cursor == "0" {
            break;
        }
        assert!(call < 100, "SCAN does not end");
    }
}

/// What is overwritten gives its disk space back: by itself under a target, and at once by COMPACT.
#[test]
fn overwritten_values_do_not_keep_their_space() {
    let small = [
        "storage.hybridlog_page_size=16KiB",
        "storage.hybridlog_segment_size=64KiB",
        "storage.hybridlog_mutable_size=64KiB",
        "storage.hybridlog_readonly_size=64KiB",
        "persistence.checkpoint_interval=3600",
    ];
    let off = ["storage.hybridlog_max_space_amplification=0"];
    for by_itself in [true, false] {
        let settings = [&small[..], if by_itself { &[] } else { &off }].concat();
        let server = Server::ferrite(&settings);
        let mut wire = Replies::of(&server);
        let value = "x".repeat(1000);
        for round in 0..8 {
            for i in 0..400 {
                assert_eq!(wire.text(&format!("SET key:{i} {round}{value}")), "+OK\r\n");
            }
        }
        let before = storage(&mut wire, "log_bytes");
        assert!(by_itself || before > 4 * storage(&mut wire, "log_live_bytes"), "{before}");
        if !by_itself {
            assert_eq!(wire.text("COMPACT"), "+Background compaction started\r\n");
        }
        let until = Instant::now() + support::PATIENCE;
        let kept = (128 + 2 * 64 + 2 * 64) << 10;
        while storage(&mut wire, "log_bytes") > storage(&mut wire, "log_live_bytes") * 3 / 2 + kept
        {
            assert!(Instant::now() < until, "{}", wire.text("INFO storage"));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(storage(&mut wire, "compaction_read_bytes") > 0);
        for i in 0..400 {
            assert_eq!(wire.text(&format!("GET key:{i}")), format!("$1001\r\n7{value}\r\n"));
        }
        drop(wire);
        let directory = server.directory.clone();
        drop(server);
        let server = Server::ferrite_in(directory, &settings);
        let mut wire = Replies::of(&server);
        assert_eq!(wire.integer("DBSIZE"), 400, "by itself: {by_itself}");
    }
}

/// A field of INFO storage.
fn storage(wire: &mut Replies, field: &str) -> u64 {
    let text = wire.text("INFO storage");
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{field} in {text}"))
}
