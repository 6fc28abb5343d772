//! The real server with `storage.backend = memory`: what is there after a stop, a `kill -9` or damage, what
//! its one file is good for, and what it does when memory is used up.
//!
//! Where a test waits for something, it asks until that has come; none measures.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::{PATIENCE, Server, Wire};

const SMALL: &[&str] = &[
    "storage.backend=memory",
    "storage.hybridlog_page_size=4KiB",
    "storage.hybridlog_mutable_size=64KiB",
    "persistence.aof_sync=always",
];

fn settings(more: &[&'static str]) -> Vec<&'static str> {
    SMALL.iter().chain(more).copied().collect()
}

fn server(more: &[&'static str]) -> Server {
    Server::ferrite(&settings(more))
}

fn again(server: &Server, more: &[&'static str]) -> Server {
    Server::ferrite_in(Arc::clone(&server.directory), &settings(more))
}

/// Ends it as a power button ends a process.
fn kill(server: &mut Server) {
    server.signal("KILL");
    assert_eq!(server.wait(), None, "a signal ends it");
}

fn stop(server: &mut Server) {
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0), "{}", server.log());
}

fn data(server: &Server) -> PathBuf {
    server.directory.path().join("data")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a name in Unicode")
}

/// A tool of the binary: its exit status and all that it said.
fn ferrite(words: &[&str]) -> (Option<i32>, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_ferrite")).args(words).stdin(Stdio::null()).output();
    let run = run.expect("ferrite runs");
    let said = [run.stdout, run.stderr].concat();
    (run.status.code(), String::from_utf8(said).expect("text"))
}

fn set(wire: &mut Wire, keys: std::ops::Range<u32>, version: u32) {
    for key in keys {
        let value = format!("{version}-{}", "v".repeat((key % 300) as usize));
        assert_eq!(wire.line(&format!("SET key:{key} {value}")), "+OK");
    }
}

/// Every key of `keys` has the value of its version, and there is no other key.
fn check(server: &Server, keys: &BTreeMap<u32, u32>) {
    let mut wire = server.connect();
    for (key, version) in keys {
        let value = format!("{version}-{}", "v".repeat((key % 300) as usize));
        assert_eq!(wire.bulk(&format!("GET key:{key}")), value, "{}", server.log());
    }
    assert_eq!(wire.line("DBSIZE"), format!(":{}", keys.len()), "{}", server.log());
}

fn model(parts: &[(std::ops::Range<u32>, u32)]) -> BTreeMap<u32, u32> {
    parts.iter().flat_map(|(keys, version)| keys.clone().map(|key| (key, *version))).collect()
}

fn fields(wire: &mut Wire, section: &str) -> BTreeMap<String, String> {
    let lines = wire.bulk(&format!("INFO {section}"));
    let pairs = lines.lines().filter_map(|line| line.trim().split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    now.as_millis().try_into().expect("it fits")
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill_with_and_without_a_checkpoint() {
    let mut server = server(&[]);
    assert!(server.log().contains("backend memory, file I/O "), "{}", server.log());
    set(&mut server.connect(), 0..200, 1);
    kill(&mut server);
    // From the append-only file alone.
    let mut server = again(&server, &[]);
    check(&server, &model(&[(0..200, 1)]));
    for round in 2..5u32 {
        let mut wire = server.connect();
        set(&mut wire, 50..250, round);
        assert_eq!(wire.line("SAVE"), "+OK");
        set(&mut wire, 100..300, round + 10);
        // One that fails on its way leaves no number that could come back.
        assert_eq!(wire.line("BGSAVE"), "+Background saving started");
        kill(&mut server);
        server = again(&server, &[]);
        check(&server, &model(&[(0..50, 1), (50..100, round), (100..300, round + 10)]));
    }
    let mut wire = server.connect();
    let storage = fields(&mut wire, "storage");
    assert_eq!(
        (&*storage["storage_backend"], &*storage["storage_readonly_window"]),
        ("memory", "memory")
    );
    assert_eq!(storage["storage_memory_full"], "0");
    stop(&mut server);
    let names: Vec<_> = fs::read_dir(data(&server).join("checkpoints"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    let expected = ["ferrite.ckpt", "ferrite.ckpt.previous"];
    assert!(names.len() == 2 && expected.iter().all(|n| names.iter().any(|m| m == n)), "{names:?}");
}

#[test]
fn each_way_of_persistence_keeps_what_it_promises() {
    // Checkpoints alone: the last one.
    let mut one = server(&["persistence.aof_enabled=false"]);
    let mut wire = one.connect();
    set(&mut wire, 0..200, 1);
    let before = wire.line("LASTSAVE");
    assert_eq!(wire.line("SAVE"), "+OK");
    let saved = fields(&mut wire, "persistence");
    let file = data(&one).join("ferrite.ckpt");
    let bytes = fs::metadata(&file).expect("linked").len();
    assert_eq!(saved["checkpoint_last_size_bytes"], bytes.to_string());
    assert!(wire.line("LASTSAVE") >= before);
    set(&mut wire, 100..300, 2);
    kill(&mut one);
    let mut one = again(&one, &["persistence.aof_enabled=false"]);
    check(&one, &model(&[(0..200, 1)]));
    set(&mut one.connect(), 100..300, 3);
    stop(&mut one);
    let one = again(&one, &["persistence.aof_enabled=false"]);
    check(&one, &model(&[(0..100, 1), (100..300, 3)]));

    // The append-only file alone, rewritten.
    let off = ["persistence.checkpoint_enabled=false"];
    let mut two = server(&off);
    let mut wire = two.connect();
    set(&mut wire, 0..200, 1);
    let begun = "+Background append only file rewriting started";
    assert_eq!(wire.line("BGREWRITEAOF"), begun);
    set(&mut wire, 100..300, 2);
    until("the rewrite", || fields(&mut wire, "persistence")["aof_rewrites"] == "1");
    set(&mut wire, 200..400, 3);
    kill(&mut two);
    assert!(!data(&two).join("ferrite.ckpt").exists());
    let two = again(&two, &off);
    check(&two, &model(&[(0..100, 1), (100..200, 2), (200..400, 3)]));
}

#[test]
fn a_damaged_checkpoint_is_refused_and_the_one_before_goes_on_with_the_append_only_file() {
    let mut server = server(&[]);
    let mut wire = server.connect();
    for (version, keys) in [(1, 0..150), (2, 100..250)] {
        set(&mut wire, keys, version);
        assert_eq!(wire.line("SAVE"), "+OK");
    }
    set(&mut wire, 200..350, 3);
    let keys = model(&[(0..100, 1), (100..200, 2), (200..350, 3)]);
    kill(&mut server);
    let file = data(&server).join("checkpoints/ferrite.ckpt");
    let whole = fs::read(&file).expect("read");
    for at in [0, 17, 4100, whole.len() / 3, whole.len() / 2, whole.len() - 4090, whole.len() - 2] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&file, bytes).expect("written");
        let mut refused = again(&server, &[]);
        assert_eq!(refused.wait(), Some(1), "byte {at}: {}", refused.log());
        refused.wait_for_log("ferrite.ckpt.previous");
        let log = refused.log();
        assert!(log.contains("ferrite.ckpt at offset ") && log.contains("mv "), "{log}");
        let (status, said) = ferrite(&["check", text(&data(&server))]);
        assert!(status == Some(1) && said.contains("ferrite.ckpt at offset "), "{said}");
    }
    // What the line says to do.
    fs::rename(data(&server).join("checkpoints/ferrite.ckpt.previous"), &file).expect("renamed");
    let server = again(&server, &[]);
    check(&server, &keys);
}

#[test]
fn a_save_that_finds_the_folder_gone_is_told_and_heals() {
    let mut server = server(&[]);
    let mut wire = server.connect();
    set(&mut wire, 0..100, 1);
    assert_eq!(wire.line("SAVE"), "+OK");
    let saved = wire.line("LASTSAVE");
    let (folder, aside) = (data(&server).join("checkpoints"), data(&server).join("elsewhere"));
    fs::rename(&folder, &aside).expect("moved");
    assert!(wire.line("SAVE").starts_with("-ERR"), "there is no folder");
    let told = fields(&mut wire, "persistence");
    assert_eq!(told["checkpoint_last_status"], "err");
    assert!(told["checkpoint_last_error"].contains("No such file"), "{told:?}");
    assert_eq!(wire.line("LASTSAVE"), saved);
    assert!(wire.line("SET key:0 x").starts_with("-MISCONF"));
    assert!(wire.bulk("GET key:1").starts_with("1-"), "reads go on");
    fs::rename(&aside, &folder).expect("moved");
    assert_eq!(wire.line("SAVE"), "+OK");
    assert_eq!(fields(&mut wire, "persistence")["checkpoint_last_status"], "ok");
    set(&mut wire, 50..150, 2);
    kill(&mut server);
    check(&again(&server, &[]), &model(&[(0..50, 1), (50..150, 2)]));
}

#[test]
fn a_limit_of_memory_answers_oom_until_something_is_deleted() {
    let server = server(&["storage.memory_max=4MiB", "persistence.checkpoint_enabled=false"]);
    let mut wire = server.connect();
    assert_eq!(wire.line("CONFIG GET maxmemory"), "*2");
    wire.receive_until(b"4194304\r\n");
    let oom = "-OOM command not allowed when used memory > 'maxmemory'.";
    let value = "v".repeat(1000);
    let mut keys = 0;
    loop {
        match wire.line(&format!("SET key:{keys} {value}")).as_str() {
            "+OK" => keys += 1,
            told => {
                assert_eq!(told, oom);
                break;
            }
        }
        assert!(keys < 20_000, "it is never full");
    }
    assert!(keys > 1000, "{keys} keys fit");
    assert_eq!(fields(&mut wire, "storage")["storage_memory_full"], "1");
    assert_eq!(fields(&mut wire, "memory")["maxmemory"], "4194304");
    // What takes no more goes on, and nothing is lost.
    assert_eq!(wire.bulk("GET key:0"), value);
    assert_eq!(wire.line("EXPIRE key:0 1000"), ":1");
    assert_eq!(wire.line("MULTI"), "+OK");
    assert_eq!(wire.line("SET key:0 x"), oom);
    assert!(wire.line("EXEC").starts_with("-EXECABORT"), "as in Redis");
    assert_eq!(wire.line("DBSIZE"), format!(":{keys}"));
    for key in 0..keys / 4 {
        assert_eq!(wire.line(&format!("DEL key:{key}")), ":1");
    }
    until("room", || wire.line("SET another x") == "+OK");
    for key in keys / 4..keys {
        assert_eq!(wire.bulk(&format!("GET key:{key}")), value);
    }
    assert_eq!(wire.line("CONFIG SET maxmemory 0"), "+OK");
    until("no limit", || fields(&mut wire, "storage")["storage_memory_full"] == "0");
    for key in 0..200 {
        assert_eq!(wire.line(&format!("SET more:{key} {value}")), "+OK");
    }
    assert_eq!(wire.line("CONFIG SET maxmemory 1048576"), "+OK");
    until("a lower limit", || wire.line("SET another x") == oom);
    assert_eq!(wire.line("FLUSHALL"), "+OK");
    until("all of it", || wire.line("SET another x") == "+OK");
}

#[test]
fn files_of_the_other_backend_are_refused_and_the_way_over_keeps_all() {
    let hybridlog = ["persistence.aof_sync=always", "storage.hybridlog_page_size=4KiB"];
    let mut one = Server::ferrite(&hybridlog);
    let mut wire = one.connect();
    set(&mut wire, 0..200, 1);
    assert_eq!(wire.line("SAVE"), "+OK");
    set(&mut wire, 100..300, 2);
    assert!(wire.line("BGREWRITEAOF").starts_with("+Background"));
    until("the rewrite", || fields(&mut wire, "persistence")["aof_rewrites"] == "1");
    set(&mut wire, 200..400, 3);
    let keys = model(&[(0..100, 1), (100..200, 2), (200..400, 3)]);
    stop(&mut one);
    let before = fs::read(data(&one).join("checkpoints/ferrite.ckpt")).expect("read");
    let mut refused = again(&one, &[]);
    assert_eq!(refused.wait(), Some(1), "{}", refused.log());
    refused.wait_for_log("storage.backend = hybridlog: set it so");
    assert_eq!(fs::read(data(&one).join("checkpoints/ferrite.ckpt")).expect("read"), before);

    let aside = |server: &Server| {
        let folder = data(server).join("checkpoints");
        fs::rename(&folder, folder.with_extension("before")).expect("moved");
    };
    aside(&one);
    let mut two = again(&one, &[]);
    check(&two, &keys);
    // And back.
    assert!(two.connect().line("BGREWRITEAOF").starts_with("+Background"));
    until("the rewrite", || fields(&mut two.connect(), "persistence")["aof_rewrites"] == "1");
    stop(&mut two);
    let mut refused = Server::ferrite_in(Arc::clone(&two.directory), &hybridlog);
    assert_eq!(refused.wait(), Some(1), "{}", refused.log());
    refused.wait_for_log("storage.backend = memory: set it so");
    fs::remove_dir_all(data(&two).join("checkpoints.before")).expect("removed");
    aside(&two);
    check(&Server::ferrite_in(Arc::clone(&two.directory), &hybridlog), &keys);
}

#[test]
fn check_backup_and_restore_know_its_file() {
    let mut server = server(&[]);
    let mut wire = server.connect();
    set(&mut wire, 0..150, 1);
    assert_eq!(wire.line("SAVE"), "+OK");
    set(&mut wire, 100..250, 2);
    std::thread::sleep(Duration::from_millis(5));
    let instant = unix_ms();
    std::thread::sleep(Duration::from_millis(5));
    set(&mut wire, 200..350, 3);
    assert_eq!(wire.line("SAVE"), "+OK");
    set(&mut wire, 300..400, 4);
    let now = model(&[(0..100, 1), (100..200, 2), (200..300, 3), (300..400, 4)]);
    let (status, said) = ferrite(&["check", text(&data(&server))]);
    assert_eq!(status, Some(0), "{said}");

    let folders: Vec<_> =
        (0..4).map(|_| Arc::new(tempfile::tempdir().expect("a directory"))).collect();
    let place = |n: usize| folders[n].path().join("data");
    // The instant between the two checkpoints, from the one before the newest.
    let (time, past, from) = (instant.to_string(), place(3), data(&server));
    let words = ["restore", "--from", text(&from), "--to", text(&past), "--time", &time];
    let (status, said) = ferrite(&words);
    assert_eq!(status, Some(0), "{said}");
    let then = model(&[(0..100, 1), (100..250, 2)]);
    check(&Server::ferrite_in(Arc::clone(&folders[3]), &settings(&[])), &then);

    // Of the running server, then of what is left of it.
    let port = server.address.port().to_string();
    let (status, said) = ferrite(&["backup", text(&place(0)), "--port", &port, "--verify"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("storage.backend=memory"), "{said}");
    kill(&mut server);
    let (status, said) = ferrite(&["backup", text(&place(1)), "--data-dir", text(&data(&server))]);
    assert_eq!(status, Some(0), "{said}");
    for copy in [0, 1] {
        let (status, said) = ferrite(&["check", text(&place(copy))]);
        assert_eq!(status, Some(0), "{said}");
        check(&Server::ferrite_in(Arc::clone(&folders[copy]), &settings(&[])), &now);
    }

    let (status, said) = ferrite(&["restore", "--from", text(&from), "--to", text(&place(2))]);
    assert_eq!(status, Some(0), "{said}");
    check(&Server::ferrite_in(Arc::clone(&folders[2]), &settings(&[])), &now);

    // What cp makes of it starts where it is copied.
    let flat = Arc::new(tempfile::tempdir().expect("a directory"));
    fs::create_dir(flat.path().join("data")).expect("made");
    for entry in fs::read_dir(&from).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "ckpt" || e == "aof") {
            let name = path.file_name().expect("a name");
            fs::copy(&path, flat.path().join("data").join(name)).expect("copied");
        }
    }
    check(&Server::ferrite_in(flat, &settings(&[])), &now);
}

/// Replies of one connection in order, a checkpoint each few milliseconds: each start has all.
#[test]
fn a_kill_among_checkpoints_under_load_loses_nothing() {
    let mut server = server(&["persistence.checkpoint_interval=1"]);
    let mut acknowledged = 0u32;
    for _ in 0..4 {
        let mut wire = server.connect();
        let mut saver = server.connect();
        for n in 0..300u32 {
            assert_eq!(wire.line("INCR counter"), format!(":{}", acknowledged + 1));
            acknowledged += 1;
            assert_eq!(wire.line(&format!("SET key:{} {acknowledged}", n % 40)), "+OK");
            if n % 50 == 0 {
                // One may be running already.
                saver.line("BGSAVE");
            }
        }
        kill(&mut server);
        server = again(&server, &["persistence.checkpoint_interval=1"]);
        let mut wire = server.connect();
        assert_eq!(wire.bulk("GET counter"), acknowledged.to_string(), "{}", server.log());
        assert_eq!(wire.line("DBSIZE"), ":41");
    }
}
