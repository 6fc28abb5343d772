//! BGREWRITEAOF on the real server: nothing is lost to it, whatever is written meanwhile and whenever
//! it is killed, and what it leaves is complete by itself.
//!
//! Where a test waits for something, it asks until that has come; none measures.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use support::{PATIENCE, Server, Wire};

const ALWAYS: &[&str] = &["persistence.aof_enabled=true", "persistence.aof_sync=always"];
const WITHOUT_CHECKPOINTS: &[&str] = &[
    "persistence.aof_enabled=true",
    "persistence.aof_sync=everysec",
    "persistence.checkpoint_enabled=false",
];

fn kill(server: &mut Server) {
    server.signal("KILL");
    assert_eq!(server.wait(), None, "a signal ends it");
}

fn again(server: &Server, settings: &[&str]) -> Server {
    Server::ferrite_in(Arc::clone(&server.directory), settings)
}

fn data(server: &Server) -> PathBuf {
    server.directory.path().join("data")
}

fn parts(server: &Server) -> Vec<PathBuf> {
    let names = fs::read_dir(data(server)).expect("a folder");
    let names = names.map(|entry| entry.expect("an entry").path());
    let mut parts: Vec<_> = names
        .filter(|path| path.extension().is_some_and(|e| e == "aof"))
        .filter(|path| !path.ends_with("appendonly.aof"))
        .collect();
    parts.sort();
    parts
}

/// The first line of a part.
fn first_line(path: &Path) -> String {
    let bytes = fs::read(path).expect("a part");
    let end = bytes.iter().position(|b| *b == b'\n').expect("a line");
    String::from_utf8(bytes[..end].to_vec()).expect("text")
}

fn next_line(wire: &mut Wire) -> String {
    let (line, ended) = wire.receive_until(b"\r\n");
    assert!(!ended, "a line");
    String::from_utf8(line).expect("text").trim_end().into()
}

/// Runs commands, each of which answers with lines that are no errors.
fn run(wire: &mut Wire, commands: &str) {
    for command in commands.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let reply = wire.line(command);
        assert!(!reply.starts_with('-'), "{command}: {reply}");
        if let Some(n) = reply.strip_prefix('*') {
            let n: usize = n.parse().expect("a length");
            (0..n).for_each(|_| assert!(!next_line(wire).starts_with('-'), "{command}"));
        }
    }
}

/// Sends many commands at once and takes their replies, of one line each.
fn pipeline(wire: &mut Wire, commands: impl Iterator<Item = String>) {
    let commands: Vec<_> = commands.collect();
    for some in commands.chunks(500) {
        assert!(wire.send(some.concat().as_bytes()), "the server is there");
        for command in some {
            let reply = next_line(wire);
            assert!(!reply.starts_with('-'), "{command}: {reply}");
        }
    }
}

/// Keys of a hundred bytes in database 0.
fn fill(wire: &mut Wire, keys: u32) {
    let value = "v".repeat(100);
    pipeline(wire, (0..keys).map(|n| format!("SET key:{n} {value}:{n}\r\n")));
}

/// What can be read of a server: database and key, value and expiry.
type Contents = BTreeMap<(u8, String), (String, String)>;

fn contents_of(server: &Server) -> Contents {
    let mut wire = server.connect();
    let mut all = Contents::new();
    for database in 0..16 {
        assert_eq!(wire.line(&format!("SELECT {database}")), "+OK");
        let keys = wire.line("KEYS *");
        let n: usize = keys.strip_prefix('*').expect("an array").parse().expect("a length");
        let keys: Vec<String> = (0..n)
            .map(|_| {
                next_line(&mut wire);
                next_line(&mut wire)
            })
            .collect();
        for some in keys.chunks(500) {
            let asked: String =
                some.iter().map(|key| format!("GET {key}\r\nPEXPIRETIME {key}\r\n")).collect();
            assert!(wire.send(asked.as_bytes()), "the server is there");
            for key in some {
                if next_line(&mut wire) == "$-1" {
                    // It has expired meanwhile.
                    next_line(&mut wire);
                    continue;
                }
                let value = next_line(&mut wire);
                all.insert((database, key.clone()), (value, next_line(&mut wire)));
            }
        }
    }
    all
}

/// Without what has expired since, which the later look cannot find.
fn lasting(contents: Contents) -> Contents {
    contents
        .into_iter()
        .filter(|(_, (_, expires))| expires.len() > 14 || expires == ":-1")
        .collect()
}

fn field(wire: &mut Wire, name: &str) -> String {
    let text = wire.bulk("INFO persistence");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} in {text}")).to_owned()
}

fn number(wire: &mut Wire, name: &str) -> i64 {
    field(wire, name).parse().expect("a number")
}

/// Asks until `is_there`.
fn until(wire: &mut Wire, what: &str, mut is_there: impl FnMut(&mut Wire) -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_there(wire) {
        assert!(Instant::now() < until, "{what}: {}", wire.bulk("INFO persistence"));
        thread::sleep(Duration::from_millis(5));
    }
}

/// Rewrites, and waits until that is complete.
fn rewrite(wire: &mut Wire) {
    let before = number(wire, "aof_rewrites");
    let answer = wire.line("BGREWRITEAOF");
    assert_eq!(answer, "+Background append only file rewriting started");
    until(wire, "rewritten", |wire| number(wire, "aof_rewrites") > before);
    assert_eq!(field(wire, "aof_last_bgrewrite_status"), "ok");
    assert_eq!(field(wire, "aof_rewrite_in_progress"), "0");
}

/// What Redis has when it starts on `appendonly.aof` alone; `None` without a redis-server 7.0.
fn in_redis(server: &Server) -> Option<Contents> {
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let alone = directory.path().join("appendonly.aof");
    fs::copy(data(server).join("appendonly.aof"), alone).expect("copied");
    let arguments = ["--appendonly", "yes", "--aof-load-truncated", "no"];
    let redis = Server::redis_in(directory, &arguments)?;
    let mut wire = redis.connect();
    until(&mut wire, "loaded", |wire| {
        let answer = wire.line("PING");
        assert!(answer == "+PONG" || answer.starts_with("-LOADING"), "{answer}");
        answer == "+PONG"
    });
    Some(contents_of(&redis))
}

/// Moves the checkpoints away, as one does who does not trust them.
fn move_checkpoints_away(server: &Server) {
    let data = data(server);
    fs::rename(data.join("checkpoints"), data.join("checkpoints.bad")).expect("moved");
}

const MIXED: &str = "SET a 1\nSET for-ever x\nSET later y PXAT 33000000000000\nSELECT 3\nSET a three\n\
    SET gone z\nDEL gone\nSELECT 15\nSET e 1\nEXPIREAT e 33000000000\nSET p 1 EX 100000\nPERSIST p\nSELECT 0";

#[test]
fn the_file_is_complete_by_itself_and_redis_server_loads_it() {
    for settings in [ALWAYS, WITHOUT_CHECKPOINTS] {
        let mut server = Server::ferrite(settings);
        let mut wire = server.connect();
        fill(&mut wire, 1_000);
        run(&mut wire, MIXED);
        if settings == ALWAYS {
            run(&mut wire, "SAVE\nSET behind 1");
        }
        rewrite(&mut wire);
        run(
            &mut wire,
            "APPEND a more\nSELECT 3\nSET new 1\nMULTI\nSET m 1\nSET n 2\nEXEC\nSWAPDB 3 4",
        );
        run(&mut wire, "AOF SYNC");
        let before = contents_of(&server);
        let newest = parts(&server).pop().expect("a part");
        assert!(first_line(&newest).contains(" start=base:"), "{}", first_line(&newest));
        if settings == WITHOUT_CHECKPOINTS {
            assert_eq!(parts(&server).len(), 1, "nobody needs the ones before");
        }
        kill(&mut server);
        if let Some(loaded) = in_redis(&server) {
            assert_eq!(loaded, before);
        }
        server = again(&server, settings);
        assert_eq!(contents_of(&server), before);
        assert!(!server.log().contains("AOF: "), "{}", server.log());
        // Twice: the part with the base is followed by others now.
        run(&mut server.connect(), "APPEND a again\nAOF SYNC");
        let before = contents_of(&server);
        kill(&mut server);
        if settings == ALWAYS {
            move_checkpoints_away(&server);
        }
        server = again(&server, settings);
        assert_eq!(contents_of(&server), before);
    }
}

/// Clients that change keys in every way, until they are told to stop.
fn writers(server: &Server, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let scripts: [&[&str]; 4] = [
        &["INCR n:{}", "APPEND t:{} x", "SET key:{} new", "DEL key:{}", "SET key:{} again"],
        &[
            "SET e:{} 1 PX 30",
            "PERSIST e:{}",
            "PEXPIRE key:{} 100000000",
            "PERSIST key:{}",
            "INCR e:{}",
        ],
        &["MSET a:{} 1 b:{} 1", "MULTI", "INCR a:{}", "INCR b:{}", "EXEC", "DEL a:{} c:{}"],
        &["SELECT 5", "SET five:{} 1", "SWAPDB 0 5", "INCR five:{}", "SWAPDB 5 6", "FLUSHDB"],
    ];
    let spawn = |(number, script): (usize, &'static [&'static str])| {
        let (mut wire, stop) = (server.connect(), Arc::clone(stop));
        thread::spawn(move || {
            let mut n = number as u64;
            while !stop.load(Ordering::SeqCst) {
                // The databases move seldom, or nothing else would.
                let rounds = if number == 3 { 1 } else { 20 };
                for _ in 0..rounds {
                    n = n
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let key = (n >> 40) % 3_000;
                    let commands = script.join("\n").replace("{}", &key.to_string());
                    run(&mut wire, &commands);
                }
                if number == 3 {
                    thread::sleep(Duration::from_millis(3));
                }
            }
        })
    };
    scripts.into_iter().enumerate().map(spawn).collect()
}

/// The walk is no snapshot, and all of this happens while it runs.
#[test]
fn what_is_written_during_a_rewrite_is_neither_lost_nor_done_twice() {
    for (settings, save) in [(WITHOUT_CHECKPOINTS, false), (ALWAYS, true)] {
        let mut server = Server::ferrite(settings);
        let mut wire = server.connect();
        fill(&mut wire, 20_000);
        for round in 0..3 {
            let stop = Arc::new(AtomicBool::new(false));
            let writers = writers(&server, &stop);
            rewrite(&mut wire);
            if save && round == 1 {
                // Its cut may come while the rewrite copies.
                assert!(wire.line("BGREWRITEAOF").starts_with('+'));
                run(&mut wire, "SAVE");
                until(&mut wire, "rewritten", |wire| number(wire, "aof_rewrites") == 2);
            }
            stop.store(true, Ordering::SeqCst);
            writers.into_iter().for_each(|writer| writer.join().expect("no error"));
            run(&mut wire, "AOF SYNC");
            let before = lasting(contents_of(&server));
            kill(&mut server);
            if save && round == 2 {
                move_checkpoints_away(&server);
            }
            if !save && let Some(loaded) = in_redis(&server) {
                assert_eq!(lasting(loaded), before, "round {round}");
            }
            server = again(&server, settings);
            assert_eq!(lasting(contents_of(&server)), before, "round {round}, save {save}");
            wire = server.connect();
            fill(&mut wire, 20_000);
        }
    }
}

/// Killed at many moments of rewrites: whatever a client was told of is there.
#[test]
fn a_kill_during_a_rewrite_keeps_what_was_acknowledged() {
    const WRITERS: usize = 2;
    let settings: &[&str] = &[ALWAYS, &["persistence.checkpoint_enabled=false"]].concat();
    let mut server = Server::ferrite(settings);
    fill(&mut server.connect(), 10_000);
    let mut kept = [0; WRITERS];
    for round in 0..8u64 {
        let counters: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let mut wire = server.connect();
                thread::spawn(move || {
                    let mut told = 0;
                    let command = format!("INCR c{writer}\r\n");
                    while wire.send(command.as_bytes()) {
                        let (line, ended) = wire.receive_until(b"\r\n");
                        if ended {
                            break;
                        }
                        let text = std::str::from_utf8(&line[1..]).expect("digits");
                        told = text.trim().parse::<u64>().expect("a number");
                    }
                    told
                })
            })
            .collect();
        let mut wire = server.connect();
        if round % 2 == 0 {
            rewrite(&mut wire);
        }
        assert!(wire.line("BGREWRITEAOF").starts_with('+'));
        // Somewhere in it, or a little behind its end.
        thread::sleep(Duration::from_millis(1 + round * 13 % 60));
        kill(&mut server);
        let told: Vec<u64> = counters.into_iter().map(|c| c.join().expect("it reads")).collect();
        server = again(&server, settings);
        let mut wire = server.connect();
        for (writer, told) in told.into_iter().enumerate() {
            let now: u64 = wire.bulk(&format!("GET c{writer}")).parse().expect("a number");
            assert!(
                now >= told.max(kept[writer]) && now <= told.max(kept[writer]) + 1,
                "{now} {told}"
            );
            kept[writer] = now;
        }
        assert_eq!(wire.line("DBSIZE"), format!(":{}", 10_000 + WRITERS));
        assert!(!data(&server).join("appendonly.rewrite").exists(), "round {round}");
    }
}

#[test]
fn data_larger_than_memory_is_rewritten() {
    let settings: &[&str] = &[
        WITHOUT_CHECKPOINTS,
        &[
            "storage.hybridlog_page_size=64KiB",
            "storage.hybridlog_segment_size=1MiB",
            "storage.hybridlog_mutable_size=1MiB",
            "storage.hybridlog_readonly_size=1MiB",
            "storage.block_cache_size=1MiB",
        ],
    ]
    .concat();
    let mut server = Server::ferrite(settings);
    let mut wire = server.connect();
    let value = |n: u32| format!("{n:08}").repeat(100);
    pipeline(&mut wire, (0..20_000).map(|n| format!("SET key:{n} {}\r\n", value(n))));
    rewrite(&mut wire);
    run(&mut wire, "SET behind 1\nAOF SYNC");
    assert_eq!(parts(&server).len(), 1);
    kill(&mut server);
    server = again(&server, settings);
    let mut wire = server.connect();
    assert_eq!(wire.line("DBSIZE"), ":20001");
    for n in (0..20_000).step_by(97) {
        assert_eq!(wire.bulk(&format!("GET key:{n}")), value(n));
    }
}

#[test]
fn a_checkpoint_behind_a_rewrite_goes_on_from_it() {
    let mut server = Server::ferrite(ALWAYS);
    let mut wire = server.connect();
    run(&mut wire, "SET a 1\nSAVE\nSET b 2");
    rewrite(&mut wire);
    run(&mut wire, "SET c 3\nSAVE\nSET d 4");
    let before = contents_of(&server);
    kill(&mut server);
    server = again(&server, ALWAYS);
    assert_eq!(contents_of(&server), before);
    kill(&mut server);
    // The base and all behind it are still there, since the first checkpoint is.
    move_checkpoints_away(&server);
    server = again(&server, ALWAYS);
    assert_eq!(contents_of(&server), before);
    // The parts that the checkpoints name which are no longer there go with the next rewrite.
    rewrite(&mut server.connect());
    assert_eq!(parts(&server).len(), 1);
    kill(&mut server);
    server = again(&server, ALWAYS);
    assert_eq!(contents_of(&server), before);
}

#[test]
fn a_rewrite_that_fails_is_told_and_harms_nothing() {
    let mut server = Server::ferrite(WITHOUT_CHECKPOINTS);
    let mut wire = server.connect();
    run(&mut wire, "SET a 1");
    assert_eq!(field(&mut wire, "aof_last_rewrite_time_sec"), "-1");
    let in_the_way = data(&server).join("appendonly.rewrite");
    fs::create_dir(&in_the_way).expect("made");
    assert!(wire.line("BGREWRITEAOF").starts_with('+'));
    until(&mut wire, "failed", |wire| field(wire, "aof_last_bgrewrite_status") == "err");
    assert_eq!(field(&mut wire, "aof_rewrite_in_progress"), "0");
    assert!(field(&mut wire, "aof_last_rewrite_error").contains("appendonly.rewrite"));
    server.wait_for_log("is not rewritten");
    run(&mut wire, "SET b 2");
    fs::remove_dir(&in_the_way).expect("empty");
    rewrite(&mut wire);
    assert_eq!(number(&mut wire, "aof_rewrites_failed"), 1);
    assert_ne!(field(&mut wire, "aof_last_rewrite_time_sec"), "-1");
    assert!(number(&mut wire, "aof_base_size") > 0);
    run(&mut wire, "SET c 3\nAOF SYNC");
    let before = contents_of(&server);
    kill(&mut server);
    // What a crash leaves of a rewrite is no part, whatever it holds.
    fs::copy(data(&server).join("appendonly.aof"), &in_the_way).expect("copied");
    server = again(&server, WITHOUT_CHECKPOINTS);
    assert_eq!(contents_of(&server), before);
    assert!(!in_the_way.exists());
}

#[test]
fn one_at_a_time_and_none_without_an_append_only_file() {
    let server = Server::ferrite(&["persistence.aof_enabled=false"]);
    let answer = server.connect().line("BGREWRITEAOF");
    assert!(answer.starts_with("-ERR there is no append-only file"), "{answer}");

    let mut server = Server::ferrite(WITHOUT_CHECKPOINTS);
    let mut wire = server.connect();
    fill(&mut wire, 50_000);
    assert!(wire.send(b"BGREWRITEAOF\r\nBGREWRITEAOF\r\n"));
    assert_eq!(next_line(&mut wire), "+Background append only file rewriting started");
    let second = next_line(&mut wire);
    assert_eq!(second, "-ERR Background append only file rewriting already in progress");
    // The end does not wait for it, and loses nothing.
    assert!(wire.send(b"SHUTDOWN\r\n"));
    assert_eq!(server.wait(), Some(0), "{}", server.log());
    assert!(!data(&server).join("appendonly.rewrite").exists());
    let server = again(&server, WITHOUT_CHECKPOINTS);
    assert_eq!(server.connect().line("DBSIZE"), ":50000");
    // In a transaction it is put off to the end.
    let mut wire = server.connect();
    run(&mut wire, "MULTI\nSET a 1\nBGREWRITEAOF\nSET b 2\nEXEC");
    until(&mut wire, "rewritten", |wire| number(wire, "aof_rewrites") == 1);
}

#[test]
fn growth_has_it_rewritten_or_a_checkpoint_taken() {
    for checkpoints in [false, true] {
        let enabled = format!("persistence.checkpoint_enabled={checkpoints}");
        let server = Server::ferrite(&["persistence.aof_enabled=true", &enabled]);
        let mut wire = server.connect();
        run(&mut wire, "CONFIG SET auto-aof-rewrite-min-size 1mb auto-aof-rewrite-percentage 0");
        for _ in 0..20 {
            fill(&mut wire, 1_000);
        }
        run(&mut wire, "AOF SYNC");
        assert!(number(&mut wire, "aof_current_size") > 1 << 20);
        run(&mut wire, "CONFIG SET auto-aof-rewrite-percentage 100");
        let (done, other) = match checkpoints {
            false => ("aof_rewrites", "rdb_saves"),
            true => ("rdb_saves", "aof_rewrites"),
        };
        until(&mut wire, "made smaller", |wire| number(wire, done) >= 1);
        assert_eq!(number(&mut wire, other), 0);
        if !checkpoints {
            until(&mut wire, "dropped", |wire| number(wire, "aof_current_size") < 1 << 20);
        }
    }
}

/// What the file grows from is known at a start, too, and a checkpoint that somebody has had taken does not
/// keep the file growing.
#[test]
fn a_start_is_no_growth_and_a_checkpoint_by_hand_lets_the_file_be_made_smaller() {
    let settings = &[
        "persistence.aof_enabled=true",
        "persistence.checkpoint_enabled=false",
        "persistence.aof_rewrite_min_size=1MiB",
    ];
    let mut server = Server::ferrite(settings);
    let mut wire = server.connect();
    run(&mut wire, "CONFIG SET auto-aof-rewrite-percentage 0");
    for _ in 0..20 {
        fill(&mut wire, 1_000);
    }
    run(&mut wire, "AOF SYNC");
    kill(&mut server);
    let server = again(&server, settings);
    let mut wire = server.connect();
    assert!(number(&mut wire, "aof_base_size") > 1 << 20, "what is there at the start");
    assert_eq!((number(&mut wire, "aof_rewrites"), number(&mut wire, "rdb_saves")), (0, 0));
    run(&mut wire, "SAVE");
    until(&mut wire, "a checkpoint is taken", |wire| {
        fill(wire, 1_000);
        number(wire, "rdb_saves") >= 2
    });
    assert_eq!(number(&mut wire, "aof_rewrites"), 0);
}
