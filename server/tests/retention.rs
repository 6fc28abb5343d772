//! `persistence.aof_retention`: how far back `ferrite restore --time` can go, over checkpoints and restarts, and
//! what becomes of history that nobody wants any more.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::{PATIENCE, Server, Wire};

const SETTINGS: &[&str] = &[
    "persistence.aof_sync=always",
    "persistence.backup_hold=0",
    "persistence.checkpoint_interval=3600",
    "storage.hybridlog_page_size=4KiB",
    "storage.hybridlog_segment_size=16KiB",
];

fn settings(retention: &str) -> Vec<String> {
    let retention = format!("persistence.aof_retention={retention}");
    SETTINGS.iter().map(|s| (*s).to_owned()).chain([retention]).collect()
}

fn start(folder: &Arc<tempfile::TempDir>, retention: &str) -> Server {
    let settings = settings(retention);
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    Server::ferrite_in(Arc::clone(folder), &settings)
}

fn new() -> Arc<tempfile::TempDir> {
    Arc::new(tempfile::tempdir().expect("a directory"))
}

fn kill(mut server: Server) {
    server.signal("KILL");
    assert_eq!(server.wait(), None, "a signal ends it");
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    now.as_millis().try_into().expect("it fits")
}

/// Sets `seq` to the next number, and tells when that was.
fn write(wire: &mut Wire, written: &mut Vec<(u64, u64)>) {
    let sent = unix_ms();
    assert_eq!(wire.line(&format!("SET seq {}", written.len())), "+OK");
    written.push((sent, unix_ms()));
}

fn field(wire: &mut Wire, name: &str) -> u64 {
    let text = wire.bulk("INFO persistence");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

fn until(what: &str, mut is_right: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_right() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn restore(from: &Path, to: &Path, time: &str) -> (Option<i32>, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_ferrite"))
        .args(["restore", "--time", time, "--from"])
        .arg(from)
        .arg("--to")
        .arg(to)
        .output()
        .expect("ferrite runs");
    (run.status.code(), String::from_utf8([run.stdout, run.stderr].concat()).expect("text"))
}

/// What `seq` is in the state of an instant; `None` before its first number.
fn seq_at(data: &Path, time_ms: u64) -> Option<u64> {
    let folder = new();
    let (status, text) = restore(data, &folder.path().join("data"), &time_ms.to_string());
    assert_eq!(status, Some(0), "{time_ms}: {text}");
    let server = start(&folder, "0");
    let mut wire = server.connect();
    let log = server.log();
    assert!(!log.contains("WARN"), "{log}");
    match wire.line("EXISTS seq").as_str() {
        ":0" => None,
        _ => Some(wire.bulk("GET seq").parse().expect("a number")),
    }
}

/// The number must be the newest that was written by then.
fn check_at(data: &Path, written: &[(u64, u64)], time_ms: u64) {
    let seq = seq_at(data, time_ms).map_or(0, |seq| seq + 1);
    let least = written.iter().take_while(|(_, acked)| acked + 1 < time_ms).count() as u64;
    let most = written.iter().take_while(|(sent, _)| *sent <= time_ms + 1).count() as u64;
    assert!((least..=most).contains(&seq), "{seq} at {time_ms}, not {least}..={most}");
}

fn history(data: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(data.join("history")) else { return Vec::new() };
    let mut all: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    // One that is being made has another name.
    all.retain(|path| !path.file_name().expect("a name").to_string_lossy().starts_with('.'));
    all.sort();
    all
}

fn parts(data: &Path) -> usize {
    let names = fs::read_dir(data).expect("a folder").map(|e| e.expect("an entry").file_name());
    names.filter(|name| name.to_string_lossy().starts_with("appendonly.0")).count()
}

#[test]
fn history_goes_back_by_the_retention_over_checkpoints_and_a_restart() {
    const RETENTION_MS: u64 = 1500;
    let folder = new();
    let data = folder.path().join("data");
    let mut server = start(&folder, "1500ms");
    let mut wire = server.connect();
    let mut written = Vec::new();
    let mut saves = 0;
    // Longer than history goes back, with many checkpoints, the oldest of which are let go.
    until("history lets go of what is too old", || {
        for _ in 0..20 {
            write(&mut wire, &mut written);
        }
        assert_eq!(wire.line("SAVE"), "+OK");
        saves += 1;
        if saves == 5 {
            let before = std::mem::replace(&mut server, start(&new(), "0"));
            kill(before);
            server = start(&folder, "1500ms");
            wire = server.connect();
        }
        thread::sleep(Duration::from_millis(100));
        saves > 5 && field(&mut wire, "aof_history_since_ms") > written[0].1
    });
    assert!(field(&mut wire, "aof_history_bytes") > 0);
    assert!(history(&data).len() >= 2, "{:?}", history(&data));
    let now = unix_ms();
    kill(server);
    // The refusal tells how far back it goes.
    let (status, text) = restore(&data, &new().path().join("data"), &written[0].0.to_string());
    assert_eq!(status, Some(1), "{text}");
    let range = text.split_once("keeps: ").expect("the range").1;
    let (from, rest) = range.split_once(" to ").expect("two times");
    assert!(!rest.contains(" and "), "{text}");
    let (status, told) = restore(&data, &new().path().join("data"), from);
    assert_eq!(status, Some(0), "{told}");
    for time_ms in [now - RETENTION_MS, now - RETENTION_MS / 2] {
        check_at(&data, &written, time_ms);
    }
    let check = Command::new(env!("CARGO_BIN_EXE_ferrite")).arg("check").arg(&data).output();
    let check = check.expect("ferrite runs");
    assert!(check.status.success(), "{check:?}");
    // A file that history alone still has is checked like any other.
    let kept = history(&data).remove(0).join("checkpoints");
    let image = fs::read_dir(kept).expect("a folder").map(|e| e.expect("an entry").path());
    let image = image.into_iter().find(|p| p.to_string_lossy().contains("index-"));
    let image = image.expect("each has one");
    let mut bytes = fs::read(&image).expect("read");
    bytes[40] ^= 4;
    fs::write(&image, bytes).expect("written");
    let check = Command::new(env!("CARGO_BIN_EXE_ferrite")).arg("check").arg(&data).output();
    let check = check.expect("ferrite runs");
    let told = String::from_utf8_lossy(&check.stderr);
    assert!(check.status.code() == Some(1) && told.contains("history"), "{told}");
}

#[test]
fn history_that_is_not_wanted_any_more_goes() {
    let folder = new();
    let data = folder.path().join("data");
    let server = start(&folder, "1h");
    let mut wire = server.connect();
    let mut written = Vec::new();
    for _ in 0..6 {
        write(&mut wire, &mut written);
        assert_eq!(wire.line("SAVE"), "+OK");
    }
    until("the first checkpoint is kept", || !history(&data).is_empty());
    assert!(parts(&data) >= 6, "all parts stay");
    check_at(&data, &written, written[2].1 + 1);
    assert_eq!(wire.line("CONFIG SET persistence.aof_retention 0"), "+OK");
    until("it goes", || !data.join("history").exists() && parts(&data) <= 3);
    until("it is told", || field(&mut wire, "aof_history_since_ms") == 0);
    assert_eq!(field(&mut wire, "aof_history_bytes"), 0);
    let (status, text) =
        restore(&data, &new().path().join("data"), &(written[2].1 + 1).to_string());
    assert!(status == Some(1) && text.contains("is not among the times"), "{text}");
    check_at(&data, &written, written[5].0);
    // And it can be had again.
    assert_eq!(wire.line("CONFIG SET persistence.aof_retention 1h"), "+OK");
    until("it begins", || field(&mut wire, "aof_history_since_ms") > 0);
}

/// Whoever moves the checkpoints aside makes a new store, whose checkpoints get the same numbers again.
#[test]
fn history_of_another_store_is_set_aside() {
    let folder = new();
    let data = folder.path().join("data");
    let server = start(&folder, "1h");
    let mut wire = server.connect();
    let mut written = Vec::new();
    for _ in 0..3 {
        write(&mut wire, &mut written);
        assert_eq!(wire.line("SAVE"), "+OK");
    }
    until("the first checkpoint is kept", || !history(&data).is_empty());
    kill(server);
    fs::rename(data.join("checkpoints"), folder.path().join("aside")).expect("moved");
    // History has kept the append-only file from its beginning on.
    let server = start(&folder, "1h");
    let mut wire = server.connect();
    assert_eq!(wire.bulk("GET seq"), "2");
    server.wait_for_log("it is of another store; it is set aside as");
    assert!(history(&data).is_empty());
    for _ in 0..3 {
        write(&mut wire, &mut written);
        assert_eq!(wire.line("SAVE"), "+OK");
    }
    until("the new one's is kept", || !history(&data).is_empty());
    let moved = fs::read_dir(data.join("quarantine")).expect("a folder");
    let moved = moved.map(|e| e.expect("an entry").file_name());
    assert_eq!(moved.filter(|n| n.to_string_lossy().starts_with("history-")).count(), 1);
    for (n, (_, acked)) in written.iter().enumerate() {
        let next = written.get(n + 1).map_or(u64::MAX, |(sent, _)| *sent);
        if acked + 2 < next && n + 1 < written.len() {
            check_at(&data, &written, acked + 2);
        }
    }
}

#[test]
fn history_needs_the_append_only_file() {
    let folder = new();
    let run = Command::new(env!("CARGO_BIN_EXE_ferrite"))
        .current_dir(folder.path())
        .args(["--port", "0", "--set", "persistence.aof_enabled=false"])
        .args(["--set", "persistence.aof_retention=60"])
        .output()
        .expect("ferrite runs");
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.code() == Some(1), "{text}");
    assert!(text.contains("it needs persistence.aof_enabled = true"), "{text}");
}
