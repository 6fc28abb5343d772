//! The append-only file of the real server: what is there after `kill -9`, after damage, and after what
//! people do to its files by hand.
//!
//! Where a test waits for time to pass, it asks until what it waits for has come; none measures.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::{PATIENCE, Server, Wire};

const ALWAYS: &[&str] = &["persistence.aof_enabled=true", "persistence.aof_sync=always"];

/// A server with an append-only file under `always`, in a directory of its own.
fn server() -> Server {
    Server::ferrite(ALWAYS)
}

/// The same, on the data of another that has ended.
fn again(server: &Server) -> Server {
    Server::ferrite_in(Arc::clone(&server.directory), ALWAYS)
}

/// Ends it as a power button ends a process.
fn kill(server: &mut Server) {
    server.signal("KILL");
    assert_eq!(server.wait(), None, "a signal ends it");
}

fn killed_and_again(server: &mut Server) {
    kill(server);
    *server = again(server);
}

/// A server that does not start: what it said.
fn refused(directory: &Arc<tempfile::TempDir>, settings: &[&str]) -> String {
    let mut server = Server::ferrite_in(Arc::clone(directory), settings);
    assert_eq!(server.wait(), Some(1), "{}", server.log());
    server.wait_for_log("AOF: refused");
    server.log()
}

fn data(server: &Server) -> PathBuf {
    server.directory.path().join("data")
}

/// The parts that are in a folder.
fn parts(folder: &Path) -> Vec<PathBuf> {
    let names =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut parts: Vec<_> = names
        .filter(|path| path.extension().is_some_and(|e| e == "aof"))
        .filter(|path| !path.ends_with("appendonly.aof"))
        .collect();
    parts.sort();
    parts
}

fn newest_part(server: &Server) -> PathBuf {
    parts(&data(server)).pop().expect("there is one")
}

fn quarantine(server: &Server) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(data(server).join("quarantine")) else { return Vec::new() };
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

/// Appends to a file.
fn append(path: &Path, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().append(true).open(path).expect("a file");
    file.write_all(bytes).expect("room");
}

/// Runs commands, each of which answers with a line that is no error.
fn run(wire: &mut Wire, commands: &str) {
    for command in commands.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let reply = wire.line(command);
        assert!(!reply.starts_with('-'), "{command}: {reply}");
        if let Some(n) = reply.strip_prefix('*') {
            let n: usize = n.parse().expect("a length");
            (0..n).for_each(|_| assert!(!next_line(wire).starts_with('-'), "{command}"));
        } else if let Some(n) = reply.strip_prefix('$').filter(|n| *n != "-1") {
            let n: usize = n.parse().expect("a length");
            wire.receive(n + 2);
        }
    }
}

fn next_line(wire: &mut Wire) -> String {
    let (line, ended) = wire.receive_until(b"\r\n");
    assert!(!ended, "a line");
    String::from_utf8(line).expect("text").trim_end().into()
}

/// What can be read of a server: database and key, value and expiry.
type Contents = BTreeMap<(u8, String), (String, String)>;

fn contents(wire: &mut Wire) -> Contents {
    let mut all = Contents::new();
    for database in 0..16 {
        assert_eq!(wire.line(&format!("SELECT {database}")), "+OK");
        let keys = wire.line("KEYS *");
        let n: usize = keys.strip_prefix('*').expect("an array").parse().expect("a length");
        let keys: Vec<String> = (0..n)
            .map(|_| {
                next_line(wire);
                next_line(wire)
            })
            .collect();
        assert_eq!(wire.line("DBSIZE"), format!(":{n}"), "database {database}");
        for key in keys {
            let value = wire.bulk(&format!("GET {key}"));
            let expires = wire.line(&format!("PEXPIRETIME {key}"));
            all.insert((database, key), (value, expires));
        }
    }
    assert_eq!(wire.line("SELECT 0"), "+OK");
    all
}

fn contents_of(server: &Server) -> Contents {
    contents(&mut server.connect())
}

fn persistence(wire: &mut Wire) -> BTreeMap<String, String> {
    let text = wire.bulk("INFO persistence");
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Asks until the answer is the wanted one.
fn ask_until(wire: &mut Wire, command: &str, wanted: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        let reply = wire.line(command);
        if reply == wanted {
            return;
        }
        assert!(Instant::now() < until, "{command} answers {reply}, and not {wanted}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is set");
    since.as_millis() as u64
}

/// Each step is followed by a kill and by a start that must find exactly what was there: without a
/// checkpoint, behind one, and behind several.
#[test]
fn a_kill_after_any_write_that_was_acknowledged_loses_nothing() {
    let steps = [
        "SET a 1\nSETRANGE text 3 xyz\nAPPEND text more\nINCR a\nINCRBYFLOAT f 10.25\nDECRBY a 7",
        "SELECT 3\nSET a three\nSET b two PXAT 33000000000000\nSELECT 15\nSETNX last 1",
        "SET e 1\nEXPIREAT e 33000000000\nSET p 1 EX 100000\nPERSIST p\nGETEX a EXAT 34000000000",
        "SAVE",
        "MULTI\nINCR a\nSET m 1\nDEL text\nSELECT 3\nAPPEND a :\nSELECT 0\nSET n 2\nEXEC",
        "MSET k1 1 k2 2 k3 3\nDEL k1 k2\nRENAME k3 k4\nCOPY k4 k5\nGETDEL k4\nMOVE k5 7",
        "SWAPDB 0 3",
        "SAVE\nSET behind 1",
        "MULTI\nSWAPDB 3 7\nSET s 1\nFLUSHDB\nSET t 1\nEXEC",
        "SELECT 15\nFLUSHDB\nSET x 1",
        "FLUSHALL",
        "SET first 1\nSAVE\nSET second 2\nSAVE\nFLUSHALL\nSET third 3",
    ];
    let mut server = server();
    for step in steps {
        let mut wire = server.connect();
        run(&mut wire, step);
        let before = contents(&mut wire);
        killed_and_again(&mut server);
        assert_eq!(contents_of(&server), before, "after {step:?}");
    }
    assert!(quarantine(&server).is_empty(), "nothing was torn");
}

/// Writers are under way when the kill comes: whatever they were told of is there.
#[test]
fn a_kill_under_load_keeps_what_was_acknowledged() {
    const WRITERS: usize = 3;
    let mut server = server();
    let (mut kept, mut ahead) = ([0; WRITERS], [0; WRITERS]);
    for round in 0..4 {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let mut wire = server.connect();
                let mut sender = Wire::new(wire.socket.try_clone().expect("a socket"));
                let batch = format!("INCR c{writer}\r\nAPPEND t{writer} x\r\n").repeat(50);
                let sending = thread::spawn(move || while sender.send(batch.as_bytes()) {});
                thread::spawn(move || {
                    let mut acknowledged = 0;
                    loop {
                        let (line, ended) = wire.receive_until(b"\r\n");
                        if ended {
                            break;
                        }
                        assert!(line.starts_with(b":"), "{line:?}");
                        acknowledged += 1;
                    }
                    sending.join().expect("it ends with its connection");
                    acknowledged
                })
            })
            .collect();
        let mut wire = server.connect();
        if round % 2 == 1 {
            // One that the file's growth asked for may be under way.
            let answer = wire.line("BGSAVE");
            assert!(answer.starts_with('+') || answer.contains("in progress"), "{answer}");
        }
        while persistence(&mut wire)["aof_syncs"].parse::<u64>().expect("a number") < 20 {
            thread::sleep(Duration::from_millis(5));
        }
        kill(&mut server);
        let told: Vec<u64> = writers.into_iter().map(|w| w.join().expect("it reads")).collect();
        server = again(&server);
        let mut wire = server.connect();
        for (writer, told) in told.into_iter().enumerate() {
            let length = wire.line(&format!("STRLEN t{writer}"));
            let length: u64 = length[1..].parse().expect("a length");
            // A slow machine may not have let it write yet.
            let count = match wire.line(&format!("STRLEN c{writer}")).as_str() {
                ":0" => 0,
                _ => wire.bulk(&format!("GET c{writer}")).parse().expect("a number"),
            };
            let more: u64 = count - length - ahead[writer];
            assert!(
                more <= 1,
                "round {round}: an APPEND without the INCR before it, or the reverse"
            );
            ahead[writer] += more;
            let new = count + length - kept[writer];
            assert!(new >= told, "round {round}: {new} kept of {told} acknowledged");
            kept[writer] = count + length;
        }
    }
}

#[test]
fn a_replay_that_is_repeated_gives_the_same() {
    let mut server = server();
    let mut wire = server.connect();
    run(&mut wire, "SET n 1\nAPPEND t x\nSAVE\nINCR n\nAPPEND t y\nSWAPDB 0 1\nINCR n\nAPPEND t z");
    let before = contents(&mut wire);
    for start in 0..4 {
        killed_and_again(&mut server);
        assert_eq!(contents_of(&server), before, "start {start}");
    }
    run(&mut server.connect(), "APPEND t end");
    let before = contents_of(&server);
    killed_and_again(&mut server);
    assert_eq!(contents_of(&server), before, "a chain of several parts");
}

#[test]
fn a_torn_tail_is_cut_and_its_bytes_are_kept() {
    let mut server = server();
    run(&mut server.connect(), "SET a 1\nSAVE\nSET b 2\nSET c 3");
    let before = contents_of(&server);
    kill(&mut server);
    let part = newest_part(&server);
    let whole = fs::read(&part).expect("it is there");
    append(&part, b"*3\r\n$3\r\nSET\r\n$1\r\nz");
    server = again(&server);
    assert!(server.log().contains("AOF: cut"), "{}", server.log());
    assert_eq!(contents_of(&server), before);
    assert_eq!(fs::read(&part).expect("it is there"), whole, "what was whole stays");
    let aside = quarantine(&server);
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(fs::read(&aside[0]).expect("it is there"), b"*3\r\n$3\r\nSET\r\n$1\r\nz");

    // The last block alone is not told of as synced by a later one.
    run(&mut server.connect(), "SET d 4");
    let before = contents_of(&server);
    run(&mut server.connect(), "SET e 5");
    kill(&mut server);
    let part = newest_part(&server);
    let bytes = fs::read(&part).expect("it is there");
    // On a machine that took its time a mark has come behind it.
    let end = bytes.windows(6).rposition(|window| window == b"e\r\n$1\r").expect("it is there") + 9;
    let bytes = &bytes[..end];
    fs::write(&part, &bytes[..bytes.len() - 3]).expect("room");
    server = again(&server);
    assert!(server.log().contains("AOF: cut"), "{}", server.log());
    assert_eq!(contents_of(&server), before, "up to the block before");
    let aside = quarantine(&server);
    assert_eq!(aside.len(), 2, "{aside:?}");
    let kept = fs::read(&part).expect("it is there");
    let name = part.file_name().expect("a name").to_string_lossy().into_owned();
    let lost = aside.iter().find(|p| p.to_string_lossy().contains(&name)).expect("its bytes");
    assert_eq!([kept, fs::read(lost).expect("there")].concat(), bytes[..bytes.len() - 3]);
    // The cut is the end of the matter: the next start finds nothing torn.
    killed_and_again(&mut server);
    assert!(!server.log().contains("AOF: cut"), "{}", server.log());
    assert_eq!(contents_of(&server), before);
}

#[test]
fn a_byte_changed_in_what_was_synced_refuses_the_start_and_the_printed_command_mends_it() {
    let mut server = server();
    let mut wire = server.connect();
    for n in 0..50 {
        run(&mut wire, &format!("SET key:{n} value:{n}"));
    }
    kill(&mut server);
    let part = newest_part(&server);
    let bytes = fs::read(&part).expect("it is there");
    let at = bytes.windows(8).position(|window| window == b"value:20").expect("it was written");
    let mut file = fs::OpenOptions::new().write(true).open(&part).expect("a file");
    file.seek(SeekFrom::Start(at as u64)).expect("a place");
    file.write_all(b"V").expect("room");
    drop(file);
    let log = refused(&server.directory, ALWAYS);
    let line = log.lines().find(|line| line.contains("AOF: refused")).expect("it is told");
    assert!(line.contains("damaged at offset "), "{line}");
    let command = line.split_once("ferrite aof truncate ").expect("how to go on").1;
    let words: Vec<&str> = command.split_whitespace().collect();
    assert!(words[2].ends_with(".aof") && words[0] == "--to-offset", "{words:?}");
    let offset: usize = words[1].parse().expect("a number");
    assert!(offset < at && offset > at - 300, "{offset} is where the block of {at} begins");
    // Again, since a refusal changes nothing.
    assert_eq!(refused(&server.directory, ALWAYS).matches("AOF: refused").count(), 1);

    let mut tool = Command::new(env!("CARGO_BIN_EXE_ferrite"));
    tool.current_dir(server.directory.path()).args(["aof", "truncate"]).args(&words[..3]);
    let done = tool.output().expect("it runs");
    assert!(done.status.success(), "{done:?}");
    let server = again(&server);
    let keys = contents_of(&server);
    assert_eq!(keys.len(), 20, "{keys:?}");
    let value = |n: i32| format!("value:{n}");
    assert!((0..20).all(|n| keys[&(0, format!("key:{n}"))].0 == value(n)), "{keys:?}");
}

/// Changes a byte of the last value that a part holds.
fn damage_the_end(part: &Path, value: &[u8]) {
    let mut bytes = fs::read(part).expect("it is there");
    let at = bytes.windows(value.len()).rposition(|window| window == value).expect("it is there");
    bytes[at] ^= 1;
    fs::write(part, bytes).expect("room");
}

/// Nothing is written behind the last block before a stop, and yet what it holds was synced: a mark
/// says so.
#[test]
fn damage_to_the_last_block_before_a_clean_stop_is_refused() {
    for policy in ["always", "everysec", "no"] {
        let sync = format!("persistence.aof_sync={policy}");
        let settings = ["persistence.aof_enabled=true", &sync];
        let mut server = Server::ferrite(&settings);
        run(&mut server.connect(), "SET a first\nSET b the_last_one");
        assert!(server.connect().send(b"SHUTDOWN NOSAVE\r\n"));
        assert_eq!(server.wait(), Some(0), "{}", server.log());
        damage_the_end(&newest_part(&server), b"the_last_one");
        let log = refused(&server.directory, &settings);
        assert!(log.contains("damaged at offset "), "{policy}: {log}");
    }
}

#[test]
fn damage_to_the_last_block_before_a_pause_is_refused() {
    let mut server = server();
    let mut wire = server.connect();
    run(&mut wire, "SET a first\nSET b the_last_one");
    // The mark is a block without anything in it.
    let part = newest_part(&server);
    let until = Instant::now() + PATIENCE;
    while !String::from_utf8_lossy(&fs::read(&part).expect("there")).contains("len=000000000000 ") {
        assert!(Instant::now() < until, "no mark comes");
        thread::sleep(Duration::from_millis(20));
    }
    kill(&mut server);
    damage_the_end(&part, b"the_last_one");
    assert!(refused(&server.directory, ALWAYS).contains("damaged at offset "));
}

#[test]
fn a_missing_part_before_others_refuses_the_start() {
    let mut server = server();
    run(&mut server.connect(), "SET a 1\nSAVE\nSET b 2");
    let missing = newest_part(&server);
    killed_and_again(&mut server);
    run(&mut server.connect(), "SET c 3");
    let before = contents_of(&server);
    kill(&mut server);
    let away = data(&server).join("away");
    fs::rename(&missing, &away).expect("it is there");
    let log = refused(&server.directory, ALWAYS);
    assert!(log.contains("goes on from checkpoint ") && log.contains("put back the one"), "{log}");
    fs::rename(&away, &missing).expect("it is there");
    server = again(&server);
    assert_eq!(contents_of(&server), before, "nothing was changed");
    // All of them moved away is what somebody means.
    kill(&mut server);
    for part in parts(&data(&server)).into_iter().chain([data(&server).join("appendonly.aof")]) {
        fs::remove_file(part).expect("it is there");
    }
    let server = again(&server);
    assert_eq!(contents_of(&server).len(), 1, "{}", server.log());
}

/// The same with a rewrite in between: the base is newer than the checkpoint, and nothing that is newer
/// is passed over for what is older.
#[test]
fn a_missing_part_before_a_rewrite_refuses_the_start() {
    let mut server = server();
    let mut wire = server.connect();
    run(&mut wire, "SET a 1\nSAVE\nSET b 2");
    let missing = newest_part(&server);
    assert!(wire.line("BGREWRITEAOF").starts_with('+'));
    let until = Instant::now() + PATIENCE;
    while !wire.bulk("INFO persistence").contains("aof_rewrites:1\r\n") {
        assert!(Instant::now() < until, "it rewrites for ever");
        thread::sleep(Duration::from_millis(10));
    }
    run(&mut wire, "SET c 3");
    let before = contents_of(&server);
    kill(&mut server);
    let away = data(&server).join("away");
    fs::rename(&missing, &away).expect("it is there");
    let log = refused(&server.directory, ALWAYS);
    assert!(log.contains("goes on from checkpoint "), "{log}");
    fs::rename(&away, &missing).expect("it is there");
    assert_eq!(contents_of(&again(&server)), before, "nothing was changed");
}

/// A while without the append-only file leaves older parts behind.
#[test]
fn parts_from_before_a_while_without_them_are_no_reason_to_refuse() {
    let mut server = server();
    run(&mut server.connect(), "SET a 1\nSAVE\nSET b 2\nSAVE");
    kill(&mut server);
    let mut without =
        Server::ferrite_in(Arc::clone(&server.directory), &["persistence.aof_enabled=false"]);
    run(&mut without.connect(), "SET c 3\nSAVE\nSET d 4\nSAVE");
    let before = contents_of(&without);
    kill(&mut without);
    server = again(&server);
    assert_eq!(contents_of(&server), before);
    run(&mut server.connect(), "SET e 5");
    let before = contents_of(&server);
    killed_and_again(&mut server);
    assert_eq!(contents_of(&server), before);
}

#[test]
fn appendonly_aof_moved_aside_starts_from_the_checkpoint_with_a_warning() {
    let mut server = server();
    run(&mut server.connect(), "SET a 1\nSAVE");
    let at_checkpoint = contents_of(&server);
    run(&mut server.connect(), "SET a 2\nSET b 2");
    kill(&mut server);
    let (aof, aside) =
        (data(&server).join("appendonly.aof"), data(&server).join("appendonly.aof.bad"));
    fs::rename(&aof, &aside).expect("it is there");
    let number = |path: &Path| path.file_name().expect("a name").to_owned();
    let old = number(&newest_part(&server));
    server = again(&server);
    assert_eq!(contents_of(&server), at_checkpoint);
    let log = server.log();
    assert!(log.contains("appendonly.aof was moved away"), "{log}");
    assert!(log.contains("the data is that of 20"), "{log}");
    assert!(number(&newest_part(&server)) > old, "a new part under a new number");
    run(&mut server.connect(), "SET c 3");
    let before = contents_of(&server);
    killed_and_again(&mut server);
    assert_eq!(contents_of(&server), before);
}

#[test]
fn everything_moved_aside_starts_empty() {
    for checkpoints in 0..3 {
        let mut server = server();
        let mut wire = server.connect();
        run(&mut wire, "SET a 1");
        (0..checkpoints).for_each(|n| run(&mut wire, &format!("SAVE\nSET b {n}")));
        kill(&mut server);
        // The two moves of a manual; parts under their numbers and links stay behind.
        let data = data(&server);
        fs::rename(data.join("appendonly.aof"), data.join("appendonly.aof.bad")).expect("there");
        fs::rename(data.join("checkpoints"), data.join("checkpoints.bad")).expect("there");
        server = again(&server);
        assert_eq!(contents_of(&server), Contents::new(), "{}", server.log());
        assert!(server.log().contains("was moved away"), "{}", server.log());
        run(&mut server.connect(), "SET new 1");
        let before = contents_of(&server);
        killed_and_again(&mut server);
        assert_eq!(contents_of(&server), before, "after {checkpoints} checkpoints");
    }
}

#[test]
fn every_file_moved_aside_starts_empty() {
    let mut server = server();
    run(&mut server.connect(), "SET a 1\nSAVE\nSET b 2");
    kill(&mut server);
    fs::rename(data(&server), server.directory.path().join("data.old")).expect("it is there");
    server = again(&server);
    assert_eq!(contents_of(&server), Contents::new());
}

#[test]
fn without_its_checkpoints_a_complete_append_only_file_is_replayed() {
    let never = [ALWAYS, &["persistence.checkpoint_enabled=false"]].concat();
    let mut server = Server::ferrite(&never);
    run(&mut server.connect(), "SET a 1\nSELECT 2\nSET b 2");
    let before = contents_of(&server);
    kill(&mut server);
    let away = data(&server).join("checkpoints.bad");
    fs::rename(data(&server).join("checkpoints"), &away).expect("it is there");
    server = Server::ferrite_in(Arc::clone(&server.directory), &never);
    assert_eq!(contents_of(&server), before, "{}", server.log());
    // One checkpoint leaves all parts there.
    run(&mut server.connect(), "SAVE\nSET c 3");
    let before = contents_of(&server);
    kill(&mut server);
    fs::rename(data(&server).join("checkpoints"), data(&server).join("checkpoints.worse"))
        .expect("it is there");
    let server = Server::ferrite_in(Arc::clone(&server.directory), &never);
    assert_eq!(contents_of(&server), before, "{}", server.log());
}

#[test]
fn without_its_checkpoints_a_later_append_only_file_refuses_and_names_what_is_missing() {
    let mut server = server();
    let mut wire = server.connect();
    run(&mut wire, "SET a 1\nSAVE\nSET b 2\nSAVE\nSET c 3\nSAVE\nSET d 4");
    let before = contents(&mut wire);
    kill(&mut server);
    let first = parts(&data(&server)).remove(0);
    let number: u64 =
        first.to_string_lossy().rsplit('.').nth(1).expect("a number").parse().expect("one");
    let (there, away) = (data(&server).join("checkpoints"), data(&server).join("checkpoints.bad"));
    fs::rename(&there, &away).expect("it is there");
    let log = refused(&server.directory, ALWAYS);
    assert!(log.contains(&format!("needs {:06}", number - 1)), "{log}");
    assert!(log.contains("the folder `checkpoints`"), "{log}");
    assert!(log.contains("ferrite restore --from"), "{log}");
    // Nothing was changed: what was moved back starts.
    fs::remove_dir_all(&there).unwrap_or_default();
    fs::rename(&away, &there).expect("it is there");
    let server = again(&server);
    assert_eq!(contents_of(&server), before);
}

#[test]
fn a_copy_of_ckpt_and_aof_files_starts_with_everything() {
    let mut server = server();
    run(&mut server.connect(), "SET a 1\nSAVE\nSET b 2\nMULTI\nSET c 3\nINCR a\nEXEC");
    let before = contents_of(&server);
    kill(&mut server);
    let copy = Arc::new(tempfile::tempdir().expect("a directory"));
    let to = copy.path().join("data");
    fs::create_dir(&to).expect("room");
    for entry in fs::read_dir(data(&server)).expect("a folder") {
        let from = entry.expect("an entry").path();
        if from.extension().is_some_and(|e| e == "ckpt" || e == "aof") {
            // As `cp` does: what a link leads to.
            fs::copy(&from, to.join(from.file_name().expect("a name"))).expect("room");
        }
    }
    let mut copied = Server::ferrite_in(copy, ALWAYS);
    assert_eq!(contents_of(&copied), before, "{}", copied.log());
    run(&mut copied.connect(), "SET d 4\nSAVE\nSET e 5");
    let before = contents_of(&copied);
    killed_and_again(&mut copied);
    assert_eq!(contents_of(&copied), before, "it is a store of its own");
}

#[test]
fn parts_go_when_the_second_checkpoint_behind_them_is_complete() {
    // Nobody makes a copy.
    let server = Server::ferrite(&[ALWAYS, &["persistence.backup_hold=0"]].concat());
    let mut wire = server.connect();
    let first = parts(&data(&server));
    assert_eq!(first.len(), 1);
    run(&mut wire, "SET a 1\nSAVE");
    assert!(parts(&data(&server)).contains(&first[0]), "until there is another checkpoint");
    run(&mut wire, "SET a 2\nSAVE");
    let second = parts(&data(&server));
    assert!(!second.contains(&first[0]) && second.len() == 2, "{second:?}");
    run(&mut wire, "SET a 3\nSAVE");
    let third = parts(&data(&server));
    assert_eq!((third.len(), &third[0]), (2, &second[1]), "two are kept, as their checkpoints are");
}

#[test]
fn appendfsync_changes_while_the_server_runs() {
    let mut server = Server::ferrite(&["persistence.aof_enabled=true"]);
    let mut wire = server.connect();
    for (n, policy) in ["always", "no", "everysec", "always", "everysec", "no"].iter().enumerate() {
        assert_eq!(wire.line(&format!("CONFIG SET appendfsync {policy}")), "+OK");
        assert_eq!(wire.line("CONFIG GET appendfsync"), "*2");
        let found: Vec<String> = (0..4).map(|_| next_line(&mut wire)).collect();
        assert_eq!(found[3], *policy);
        run(&mut wire, &format!("SET k{n} {policy}\nINCR n"));
    }
    assert_eq!(wire.line("CONFIG SET appendfsync sometimes").chars().next(), Some('-'));
    assert_eq!(wire.line("AOF SYNC"), "+OK");
    let before = contents(&mut wire);
    kill(&mut server);
    server = again(&server);
    assert_eq!(contents_of(&server), before);
}

/// What was written without a promise gets one.
#[test]
fn a_change_to_everysec_syncs_what_was_there() {
    let server = Server::ferrite(&["persistence.aof_enabled=true", "persistence.aof_sync=no"]);
    let mut wire = server.connect();
    run(&mut wire, "SET a 1");
    assert_ne!(persistence(&mut wire)["aof_unsynced_bytes"], "0");
    assert_eq!(wire.line("CONFIG SET appendfsync everysec"), "+OK");
    wait_until_synced(&mut wire);
}

fn wait_until_synced(wire: &mut Wire) {
    let until = Instant::now() + PATIENCE;
    while persistence(wire)["aof_unsynced_bytes"] != "0" {
        assert!(Instant::now() < until, "{:?}", persistence(wire));
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn everysec_syncs_without_being_asked() {
    let server = Server::ferrite(&["persistence.aof_enabled=true"]);
    let mut wire = server.connect();
    run(&mut wire, "SET a 1");
    wait_until_synced(&mut wire);
    assert!(persistence(&mut wire)["aof_syncs"].parse::<u64>().expect("a number") > 0);
}

#[test]
fn aof_sync_and_waitaof_tell_what_is_on_the_disk() {
    for policy in ["always", "everysec", "no"] {
        let sync = format!("persistence.aof_sync={policy}");
        let mut server = Server::ferrite(&["persistence.aof_enabled=true", &sync]);
        let mut wire = server.connect();
        run(&mut wire, "SET a 1");
        assert_eq!(wire.line("AOF SYNC"), "+OK", "{policy}");
        assert_eq!(persistence(&mut wire)["aof_unsynced_bytes"], "0", "{policy}");
        run(&mut wire, "SET b 2");
        assert_eq!(wire.line("WAITAOF 1 0 0"), "*2");
        assert_eq!((next_line(&mut wire), next_line(&mut wire)), (":1".into(), ":0".into()));
        assert_eq!(wire.line("WAITAOF 2 0 0").chars().next(), Some('-'));
        assert_eq!(wire.line("WAITAOF 1 1 0").chars().next(), Some('-'));
        assert_eq!(wire.line("WAITAOF 1 0 -1"), "-ERR timeout is negative");
        assert_eq!(wire.line("AOF NOTHING").chars().next(), Some('-'));
        kill(&mut server);
        server = again(&server);
        assert_eq!(server.connect().bulk("GET b"), "2", "{policy}");
    }
}

#[test]
fn without_an_append_only_file_its_commands_say_so() {
    let server = Server::ferrite(&["persistence.aof_enabled=false"]);
    let mut wire = server.connect();
    assert!(wire.line("AOF SYNC").starts_with("-ERR there is no append-only file"));
    let reply = "-ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.";
    assert_eq!(wire.line("WAITAOF 1 0 100"), reply);
    let info = persistence(&mut wire);
    assert_eq!((&*info["aof_enabled"], &*info["aof_current_size"]), ("0", "0"));
    assert!(parts(&data(&server)).is_empty());
}

#[test]
fn an_append_only_file_that_is_not_to_be_used_is_told_of() {
    let mut server = server();
    run(&mut server.connect(), "SET a 1");
    kill(&mut server);
    let without =
        Server::ferrite_in(Arc::clone(&server.directory), &["persistence.aof_enabled=false"]);
    assert!(without.log().contains("is not replayed, since persistence.aof_enabled is false"));
    assert_eq!(contents_of(&without), Contents::new());
}

#[test]
fn info_tells_what_the_files_are() {
    let server = server();
    let mut wire = server.connect();
    let field = |wire: &mut Wire, name: &str| persistence(wire)[name].parse::<u64>().expect(name);
    run(&mut wire, "SET a 1\nSET b 2\nDEL b");
    assert_eq!(field(&mut wire, "aof_enabled"), 1);
    assert_eq!(field(&mut wire, "aof_entries"), 3);
    assert_eq!(persistence(&mut wire)["aof_last_write_status"], "ok");
    let length = |path: &Path| fs::metadata(path).expect("it is there").len();
    assert_eq!(field(&mut wire, "aof_part_size"), length(&newest_part(&server)));
    let part = field(&mut wire, "aof_part");
    run(&mut wire, "SAVE\nSET c 3");
    assert_eq!(field(&mut wire, "aof_part"), part + 1);
    let all: u64 = parts(&data(&server)).iter().map(|path| length(path)).sum();
    assert_eq!(field(&mut wire, "aof_current_size"), all);
    assert!(field(&mut wire, "aof_syncs") >= 4);
}

#[test]
fn replies_that_wait_for_the_disk_come_in_order() {
    const COMMANDS: u64 = 3000;
    let server = server();
    let clients: Vec<_> = (0..3)
        .map(|client| {
            let mut wire = server.connect();
            let mut sender = Wire::new(wire.socket.try_clone().expect("a socket"));
            let sending = thread::spawn(move || {
                let all: String = (1..=COMMANDS)
                    .map(|n| match n % 10 {
                        0 => format!("ECHO {n}\r\nMULTI\r\nINCR c{client}\r\nEXEC\r\n"),
                        _ => format!("ECHO {n}\r\nINCR c{client}\r\n"),
                    })
                    .collect();
                assert!(sender.send(all.as_bytes()));
            });
            thread::spawn(move || {
                for n in 1..=COMMANDS {
                    let text = n.to_string();
                    let mut expected = format!("${}\r\n{n}\r\n", text.len());
                    expected += if n % 10 == 0 { "+OK\r\n+QUEUED\r\n*1\r\n" } else { "" };
                    expected += &format!(":{n}\r\n");
                    let found = wire.receive(expected.len());
                    assert_eq!(String::from_utf8_lossy(&found), expected);
                }
                sending.join().expect("it sent");
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().expect("all in order"));
}

#[test]
fn what_had_expired_before_the_crash_stays_absent() {
    let mut server = server();
    let mut wire = server.connect();
    run(&mut wire, "SET short v PX 30\nSET twice v PX 30\nSET stays v PX 100000000\nSAVE");
    run(&mut wire, "SET late v PX 30");
    for key in ["short", "twice", "late"] {
        ask_until(&mut wire, &format!("EXISTS {key}"), ":0");
    }
    // A write that finds the old value expired does not go on from it.
    run(&mut wire, "APPEND twice new");
    let before = contents(&mut wire);
    assert_eq!(before.len(), 2, "{before:?}");
    killed_and_again(&mut server);
    assert_eq!(contents_of(&server), before);
    run(&mut server.connect(), "SAVE");
    killed_and_again(&mut server);
    assert_eq!(contents_of(&server), before);
}

/// Had the clock moved during the replay, PERSIST would find nothing.
#[test]
fn a_key_that_a_later_command_kept_alive_is_there_though_its_first_expiry_has_passed() {
    let mut server = server();
    let mut wire = server.connect();
    for patience_ms in [200, 1000, 10_000] {
        run(
            &mut wire,
            &format!("SET k 5 PX {patience_ms}\nSET checkpointed v PX {patience_ms}\nSAVE"),
        );
        let kept = ["INCR k", "PERSIST k", "PERSIST checkpointed"].map(|c| wire.line(c));
        let passed_at = unix_ms() + patience_ms;
        if kept == [":6", ":1", ":1"] {
            kill(&mut server);
            while unix_ms() <= passed_at {
                thread::sleep(Duration::from_millis(20));
            }
            let server = again(&server);
            let mut wire = server.connect();
            assert_eq!((wire.bulk("GET k"), wire.line("PTTL k")), ("6".into(), ":-1".into()));
            assert_eq!(wire.bulk("GET checkpointed"), "v");
            return;
        }
        // It took too long to begin with.
    }
    panic!("ten seconds are not enough for three commands")
}

/// Limits the length of the server's files, beyond which writes fail as on a disk that is broken.
fn limit_files(server: &Server, to: &str) {
    let limit = format!("--fsize={to}:unlimited");
    let set = Command::new("prlimit").args(["--pid", &server.id().to_string(), &limit]).status();
    assert!(set.expect("prlimit runs").success());
}

#[test]
fn while_the_file_cannot_be_written_writes_are_refused_and_reads_served_and_it_heals() {
    let mut server = Server::ferrite_ignoring("XFSZ", ALWAYS);
    let mut wire = server.connect();
    run(&mut wire, "SET a 1\nINCR n");
    limit_files(&server, "0");
    // Replies are held back for the disk when it fails.
    assert!(wire.send(b"SET b 2\r\nINCR n\r\n"));
    for _ in 0..2 {
        let reply = next_line(&mut wire);
        assert!(reply.starts_with("-MISCONF "), "{reply}");
    }
    limit_files(&server, "unlimited");
    ask_until(&mut wire, "SET a 1", "+OK");
    limit_files(&server, "0");
    // Each has one in its place, those too that failed or were queued, so that the next reply is
    // the next command's.
    assert!(wire.send(b"SET b 2\r\nGET\r\nMULTI\r\nINCR n\r\nEXEC\r\n"));
    for _ in 0..5 {
        let reply = next_line(&mut wire);
        assert!(reply.starts_with('-') || reply.starts_with('+'), "{reply}");
    }
    assert_eq!(wire.bulk("ECHO mark"), "mark");
    for _ in 0..3 {
        let reply = wire.line("SET c 3");
        assert!(reply.starts_with("-MISCONF "), "{reply}");
        assert_eq!(wire.bulk("GET a"), "1", "reads go on");
    }
    assert!(wire.line("AOF SYNC").starts_with("-MISCONF "));
    let info = persistence(&mut wire);
    assert_eq!(info["aof_last_write_status"], "err");
    assert!(!info["aof_last_error"].is_empty());
    limit_files(&server, "unlimited");
    ask_until(&mut wire, "SET d 4", "+OK");
    assert_eq!(persistence(&mut wire)["aof_last_write_status"], "ok");
    run(&mut wire, "INCR n");
    let before = contents(&mut wire);
    assert_eq!(before[&(0, "a".into())].0, "1");
    for _ in 0..2 {
        killed_and_again(&mut server);
        assert_eq!(contents_of(&server), before);
    }
}

/// A start between the failure and its end finds what was acknowledged, and nothing that never was.
#[test]
fn a_kill_while_the_file_cannot_be_written_keeps_what_was_acknowledged() {
    let mut server = Server::ferrite_ignoring("XFSZ", ALWAYS);
    let mut wire = server.connect();
    run(&mut wire, "SET a 1\nSAVE\nSET b 2");
    let before = contents(&mut wire);
    limit_files(&server, "0");
    assert!(wire.line("SET c 3").starts_with("-MISCONF "));
    assert!(wire.line("SET d 4").starts_with("-MISCONF "));
    killed_and_again(&mut server);
    let mut after = contents_of(&server);
    // Whether the one that was being written is there is not known.
    after.remove(&(0, "c".into()));
    assert_eq!(after, before);
}

/// Whoever reads only the exit status learns that something is lost, unless a checkpoint has it.
#[test]
fn an_end_that_loses_what_was_acknowledged_is_no_success() {
    for fails in [true, false] {
        let mut server = loop {
            let server = Server::ferrite_ignoring(
                "XFSZ",
                &[
                    "persistence.aof_enabled=true",
                    "persistence.aof_sync=no",
                    "persistence.checkpoint_enabled=false",
                ],
            );
            let mut wire = server.connect();
            run(&mut wire, "SET a 1");
            if fails {
                limit_files(&server, "0");
            }
            // The file may have been written to before, and failed.
            if wire.line("SET b 2") == "+OK" {
                break server;
            }
        };
        server.signal("TERM");
        assert_eq!(server.wait(), Some(i32::from(fails)), "{}", server.log());
        assert_eq!(server.log().contains("is not on the disk"), fails, "{}", server.log());
    }
}

/// The policy changes beside everything else, and nobody waits for it: neither who is alone, nor who
/// runs inside, nor replies that waited under the old one.
#[test]
fn appendfsync_changes_in_a_transaction_and_between_replies_that_wait() {
    let server = server();
    let mut wire = server.connect();
    for policy in ["everysec", "always", "no", "always"] {
        assert_eq!(wire.line("MULTI"), "+OK");
        assert_eq!(wire.line("SET a 1"), "+QUEUED");
        assert_eq!(wire.line(&format!("CONFIG SET appendfsync {policy}")), "+QUEUED");
        assert!(wire.line("AOF SYNC").starts_with("-ERR "), "it would wait for EXEC's own end");
        assert_eq!(wire.line("DISCARD"), "+OK");
        assert!(wire.send(
            format!("MULTI\r\nSET a 1\r\nCONFIG SET appendfsync {policy}\r\nEXEC\r\n").as_bytes()
        ));
        for expected in ["+OK", "+QUEUED", "+QUEUED", "*2", "+OK", "+OK"] {
            assert_eq!(next_line(&mut wire), expected);
        }
        let change = format!("SET a 2\r\nCONFIG SET appendfsync {policy}\r\nGET a\r\n");
        assert!(wire.send(change.as_bytes()));
        for expected in ["+OK", "+OK", "$1", "2"] {
            assert_eq!(next_line(&mut wire), expected);
        }
    }
}

/// What `cp *.ckpt *.aof` makes under load: the newest part twice, and the copy that is called `appendonly.aof`
/// has more of it. Nor is one lost that is alone, as the last procedure of a backup leaves it.
#[test]
fn a_copy_whose_longest_part_has_the_short_name_keeps_it_at_every_start() {
    for alone in [false, true] {
        let mut server = server();
        run(&mut server.connect(), "SET a 1\nSAVE\nSET b 2");
        let numbered = newest_part(&server);
        let short = fs::read(&numbered).expect("read");
        run(&mut server.connect(), "SET c 3");
        let before = contents_of(&server);
        kill(&mut server);
        let newest = newest_part(&server);
        assert_eq!(newest, numbered);
        fs::copy(&newest, data(&server).join("copy")).expect("copied");
        fs::remove_file(&newest).expect("removed");
        fs::rename(data(&server).join("copy"), data(&server).join("appendonly.aof"))
            .expect("renamed");
        if !alone {
            fs::write(&newest, short).expect("written");
        }
        let mut server = again(&server);
        assert_eq!(contents_of(&server), before, "alone {alone}");
        run(&mut server.connect(), "SET d 4");
        killed_and_again(&mut server);
        assert_eq!(contents_of(&server).len(), 4, "alone {alone}: {}", server.log());
        // When parts go, the newest one keeps its short name.
        run(
            &mut server.connect(),
            "CONFIG SET persistence.backup_hold 0\nSAVE\nSAVE\nSAVE\nSET e 5",
        );
        assert!(data(&server).join("appendonly.aof").exists());
        killed_and_again(&mut server);
        assert_eq!(contents_of(&server).len(), 5, "alone {alone}: {}", server.log());
    }
}

/// A transaction, or a command of several keys, is written as a whole, however large it is: larger than what
/// is written at once, and than the ring.
#[test]
fn a_large_transaction_is_written() {
    for policy in ["always", "everysec", "no"] {
        let sync = format!("persistence.aof_sync={policy}");
        let mut server = Server::ferrite(&["persistence.aof_enabled=true", &sync]);
        let mut wire = server.connect();
        let large = 300 << 10;
        assert_eq!(wire.line(&format!("SETRANGE a {} x", large - 1)), format!(":{large}"));
        run(&mut wire, "RENAME a b\nMULTI");
        for n in 0..20 {
            assert_eq!(wire.line(&format!("SETRANGE key:{n} {} x", large - 1)), "+QUEUED");
        }
        assert_eq!(wire.line("EXEC"), "*20");
        (0..20).for_each(|_| assert_eq!(next_line(&mut wire), format!(":{large}")));
        run(&mut wire, "SET e 1\nAOF SYNC");
        kill(&mut server);
        let server = again(&server);
        let mut wire = server.connect();
        assert_eq!(wire.line("DBSIZE"), ":22", "{policy}");
        assert_eq!(wire.line("STRLEN key:19"), format!(":{large}"), "{policy}");
    }
}

/// Fewer databases than the file is for.
#[test]
fn a_file_for_more_databases_refuses_the_start() {
    let mut server = server();
    run(&mut server.connect(), "SELECT 15\nSET a 1");
    kill(&mut server);
    let log = refused(&server.directory, &[ALWAYS[0], ALWAYS[1], "storage.databases=8"]);
    assert!(log.contains("is for database 15") && log.contains("= 16 or more"), "{log}");
    assert_eq!(contents_of(&again(&server)).len(), 1);
}

/// From the reply on, writes wait for the disk.
#[test]
fn always_holds_from_its_reply_on() {
    let mut server = Server::ferrite(&["persistence.aof_enabled=true", "persistence.aof_sync=no"]);
    let mut wire = server.connect();
    for n in 0..20 {
        run(&mut wire, "CONFIG SET appendfsync no\nSET a 1\nCONFIG SET appendfsync always");
        run(&mut wire, &format!("SET b {n}"));
        let text = wire.bulk("INFO persistence");
        assert!(text.contains("aof_buffer_length:0\r\n"), "{text}");
    }
    kill(&mut server);
    assert_eq!(again(&server).connect().bulk("GET b"), "19");
}
