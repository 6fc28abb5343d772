//! `ferrite restore --time` of a busy server, at random instants: many connections write in pipelines, while
//! checkpoints are taken, the append-only file is rewritten, and the wall clock is set back.
//!
//! Each connection's n-th command is known, so what a restored directory has of it says how many of its
//! commands there are, and must be the state after exactly those. Of time T that is every command that was
//! acknowledged before T - 1 ms, and none that was sent after T + 1 ms, on a clock that never goes back,
//! which is the server's: while the wall clock catches up, it stands.
//!
//! `POINT_IN_TIME` is how many instants are tried (4), `FERRITE_TEST_SEED` which ones.

#[path = "support/clock.rs"]
mod clock;
mod support;

use clock::Clock;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::{PATIENCE, Server, Wire, command};

const CONNECTIONS: usize = 50;
/// So many keys of a connection are set in turn.
const SLOTS: u64 = 5;
/// How far the clock is set back.
const BACK_MS: u64 = 1200;
const SETTINGS: &[&str] = &[
    "persistence.aof_sync=everysec",
    "persistence.aof_retention=3600",
    "persistence.checkpoint_interval=3600",
    "persistence.backup_hold=0",
    "storage.hybridlog_page_size=16KiB",
    "storage.hybridlog_segment_size=64KiB",
];

/// A clock that never goes back: the latest time that anybody has seen.
struct Latest<'a> {
    clock: &'a Clock,
    seen_ms: AtomicU64,
}

impl Latest<'_> {
    fn now_ms(&self) -> u64 {
        let now = self.clock.now_ms();
        self.seen_ms.fetch_max(now, Ordering::SeqCst).max(now)
    }
}

/// The n-th command of a connection, from 1 on.
fn nth(connection: usize, n: u64) -> Vec<u8> {
    let (counter, list) = (format!("c:{connection}"), format!("a:{connection}"));
    match n % 3 {
        0 => command(&[b"INCR", counter.as_bytes()]),
        1 => command(&[b"APPEND", list.as_bytes(), format!("{n},").as_bytes()]),
        _ => {
            let slot = format!("s:{connection}:{}", n % SLOTS);
            command(&[b"SET", slot.as_bytes(), n.to_string().as_bytes()])
        }
    }
}

/// What there is after its first `p` commands.
fn state_after(connection: usize, p: u64) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    if p >= 3 {
        state.insert(format!("c:{connection}"), (p / 3).to_string());
    }
    let appended: String = (1..=p).filter(|n| n % 3 == 1).map(|n| format!("{n},")).collect();
    if p >= 1 {
        state.insert(format!("a:{connection}"), appended);
    }
    for n in (1..=p).filter(|n| n % 3 == 2) {
        state.insert(format!("s:{connection}:{}", n % SLOTS), n.to_string());
    }
    state
}

/// When each command of a connection was sent, and when its reply had come.
type Times = Vec<(u64, u64)>;

/// Writes until it is told to stop.
fn write(
    mut wire: Wire,
    connection: usize,
    latest: &Latest<'_>,
    acknowledged: &AtomicU64,
    stop: &AtomicBool,
) -> Times {
    let mut times = Times::new();
    while !stop.load(Ordering::SeqCst) {
        let first = times.len() as u64 + 1;
        let batch = first..first + 1 + (first + connection as u64) % 7;
        let sent = latest.now_ms();
        assert!(wire.send(&batch.clone().flat_map(|n| nth(connection, n)).collect::<Vec<_>>()));
        for n in batch {
            let (reply, ended) = wire.receive_until(b"\r\n");
            assert!(!ended && !reply.starts_with(b"-"), "{connection}, {n}: {reply:?}");
            times.push((sent, latest.now_ms()));
            acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        thread::sleep(Duration::from_millis(8));
    }
    times
}

fn field(wire: &mut Wire, name: &str) -> String {
    let text = wire.bulk("INFO persistence");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
}

/// Waits for what a field is to be.
fn until(wire: &mut Wire, name: &str, is_right: impl Fn(&str) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_right(&field(wire, name)) {
        assert!(Instant::now() < end, "{name} stays {}", field(wire, name));
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until so many more commands were acknowledged.
fn grow(acknowledged: &AtomicU64, by: u64) {
    let (start, end) = (acknowledged.load(Ordering::SeqCst), Instant::now() + PATIENCE);
    while acknowledged.load(Ordering::SeqCst) < start + by {
        assert!(Instant::now() < end, "the writers come no further");
        thread::sleep(Duration::from_millis(5));
    }
}

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: a number, not {text}")),
        Err(_) => default,
    }
}

fn restore(from: &Path, to: &Path, time_ms: u64) -> (bool, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_ferrite"))
        .args(["restore", "--time", &time_ms.to_string(), "--from"])
        .arg(from)
        .arg("--to")
        .arg(to)
        .stdin(Stdio::null())
        .output()
        .expect("ferrite runs");
    let text = [run.stdout, run.stderr].concat();
    (run.status.success(), String::from_utf8(text).expect("text"))
}

/// Everything in database 0, in the order of the keys.
fn contents(wire: &mut Wire, keys: impl Iterator<Item = String>) -> BTreeMap<String, String> {
    let keys: Vec<String> = keys.collect();
    let asked: Vec<u8> = keys.iter().flat_map(|key| command(&[b"GET", key.as_bytes()])).collect();
    assert!(wire.send(&asked));
    let mut all = BTreeMap::new();
    for key in keys {
        let (header, _) = wire.receive_until(b"\r\n");
        let header = String::from_utf8(header).expect("text");
        let n: i64 = header.trim_end()[1..].parse().expect("a length");
        if let Ok(n) = usize::try_from(n) {
            let bytes = wire.receive(n + 2);
            all.insert(key, String::from_utf8(bytes[..n].to_vec()).expect("text"));
        }
    }
    all
}

/// What a restored directory has of each connection must be a prefix within bounds.
fn check(folder: &Arc<tempfile::TempDir>, written: &[Times], time_ms: u64, what: &str) {
    let server = Server::ferrite_in(Arc::clone(folder), SETTINGS);
    let mut wire = server.connect();
    let mut keys = 0;
    for (connection, times) in written.iter().enumerate() {
        let slots = (0..SLOTS).map(|slot| format!("s:{connection}:{slot}"));
        let names = slots.chain([format!("c:{connection}"), format!("a:{connection}")]);
        let found = contents(&mut wire, names);
        keys += found.len();
        let least = times.iter().take_while(|(_, acked)| acked + 1 < time_ms).count() as u64;
        let most = times.iter().take_while(|(sent, _)| *sent <= time_ms + 1).count() as u64;
        let is_there = (least..=most).any(|p| state_after(connection, p) == found);
        assert!(
            is_there,
            "{what}: connection {connection} has {found:?}, not after {least}..={most}"
        );
    }
    assert_eq!(wire.line("DBSIZE"), format!(":{keys}"), "{what}");
    let log = server.log();
    assert!(!log.contains("AOF: cut") && !log.contains("WARN"), "{what}: {log}");
}

#[test]
fn every_instant_within_the_retention_comes_back() {
    let clock = Clock::new();
    let latest = Latest { clock: &clock, seen_ms: AtomicU64::new(0) };
    let mut seed = setting("FERRITE_TEST_SEED", clock.now_ms()).max(1);
    let instants = setting("POINT_IN_TIME", 4);
    let share = if instants > 4 { 4 } else { 1 };
    let what = format!("FERRITE_TEST_SEED={seed}");
    let mut server = Server::ferrite_with(&clock.environment(), SETTINGS);
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (written, stands) = thread::scope(|scope| {
        let writers: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                let wire = server.connect();
                let (latest, acknowledged, stop) = (&latest, &acknowledged, &stop);
                scope.spawn(move || write(wire, connection, latest, acknowledged, stop))
            })
            .collect();
        let mut wire = server.connect();
        grow(&acknowledged, 1000 * share);
        assert_eq!(wire.line("SAVE"), "+OK");
        grow(&acknowledged, 500 * share);
        // The server has read the clock at `from` or later, and will stand where it was at most at `to`.
        let from = latest.now_ms();
        assert_eq!(wire.line("SET step 1"), "+OK");
        clock.step(-i64::try_from(BACK_MS).expect("it fits"));
        let to = latest.now_ms();
        grow(&acknowledged, 500 * share);
        assert_eq!(wire.line("SAVE"), "+OK");
        assert!(wire.line("BGREWRITEAOF").starts_with('+'));
        grow(&acknowledged, 500 * share);
        until(&mut wire, "aof_rewrites", |n| n == "1");
        while clock.now_ms() <= to {
            grow(&acknowledged, 50);
        }
        assert_eq!(wire.line("DEL step"), ":1");
        let stands = (from, latest.now_ms());
        grow(&acknowledged, 500 * share);
        assert_eq!(wire.line("SAVE"), "+OK");
        grow(&acknowledged, 1000 * share);
        stop.store(true, Ordering::SeqCst);
        let written: Vec<Times> =
            writers.into_iter().map(|writer| writer.join().expect("no panic")).collect();
        assert_eq!(wire.line("AOF SYNC"), "+OK");
        // Three checkpoints were taken, and history goes back before the first of them.
        until(&mut wire, "aof_history_since_ms", |ms| ms != "0");
        (written, stands)
    });
    server.signal("KILL");
    assert_eq!(server.wait(), None);
    let data = server.directory.path().join("data");
    let first = written.iter().map(|times| times[0].1).max().expect("connections") + 2;
    let last = written.iter().filter_map(|times| Some(times.last()?.0)).min().expect("connections");
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut tried = 0;
    while tried < instants {
        let time_ms = first + random() % (last - first);
        // The key of the step is neither here nor there, and the clocks may differ.
        if (stands.0 - 2..stands.1 + 2).contains(&time_ms) {
            continue;
        }
        tried += 1;
        let folder = Arc::new(tempfile::tempdir().expect("a directory"));
        let (is_done, text) = restore(&data, &folder.path().join("data"), time_ms);
        let what = format!("{what}, time {time_ms} of {first}..{last}, not in {stands:?}");
        assert!(is_done, "{what}: {text}");
        check(&folder, &written, time_ms, &what);
    }
    // What was before the server cannot be had, and the refusal says what can.
    let folder = tempfile::tempdir().expect("a directory");
    let (is_done, text) = restore(&data, &folder.path().join("data"), first - 3_600_000);
    assert!(!is_done && text.contains("is not among the times that"), "{text}");
}

#[test]
fn times_in_the_file_never_go_back() {
    let clock = Clock::new();
    let server = Server::ferrite_with(&clock.environment(), SETTINGS);
    let mut wire = server.connect();
    assert_eq!(wire.line("SET a 1"), "+OK");
    clock.step(-60_000);
    for n in 0..20 {
        assert_eq!(wire.line(&format!("SET a {n}")), "+OK");
        if n % 7 == 3 {
            // A part's first line and a checkpoint have times, too.
            assert_eq!(wire.line("SAVE"), "+OK");
        }
    }
    assert_eq!(wire.line("AOF SYNC"), "+OK");
    let run = Command::new(env!("CARGO_BIN_EXE_ferrite"))
        .args(["aof", "cat"])
        .arg(server.directory.path().join("data"))
        .output()
        .expect("ferrite runs");
    let text = String::from_utf8(run.stdout).expect("text");
    let times: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("SET"))
        .filter_map(|line| {
            line.split_whitespace().find(|word| word.contains('T') && word.ends_with('Z'))
        })
        .collect();
    assert_eq!(times.len(), 21, "{text}");
    assert!(times.is_sorted(), "{text}");
}
