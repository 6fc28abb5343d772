//! A server that is killed under load, and killed again while it recovers: at any moment of the time that its
//! recovery takes, which is measured on a copy. Then it starts, and has all that was ever acknowledged.
//!
//! Each writer's n-th transaction counts to n and puts n into one of a few keys, so what is found must be the
//! state after its first p transactions, for one p from those that were acknowledged to those that were sent.
//! The directory goes from round to round, so later recoveries meet what earlier ones have left.
//!
//! `SECOND_KILLS` is how many rounds there are (2), `FERRITE_TEST_SEED` when the kills come.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::{PATIENCE, Server, Wire, command};

const WRITERS: usize = 4;
const SLOTS: u64 = 7;
const SETTINGS: &[&str] = &[
    "persistence.aof_sync=always",
    "persistence.checkpoint_interval=3600",
    "persistence.backup_hold=0",
    "storage.hybridlog_page_size=16KiB",
    "storage.hybridlog_segment_size=64KiB",
];

/// How far a writer is.
#[derive(Clone, Copy, Default)]
struct Writer {
    sent: u64,
    acknowledged: u64,
}

impl Writer {
    /// Writes until the server is gone, which it is soon.
    fn write(&mut self, number: usize, mut wire: Wire) {
        let counter = format!("c:{number}");
        loop {
            let mut batch = Vec::new();
            for n in self.sent + 1..=self.sent + 20 {
                let slot = format!("s:{number}:{}", n % SLOTS);
                batch.extend(command(&[b"MULTI"]));
                batch.extend(command(&[b"INCR", counter.as_bytes()]));
                batch.extend(command(&[b"SET", slot.as_bytes(), n.to_string().as_bytes()]));
                batch.extend(command(&[b"EXEC"]));
            }
            self.sent += 20;
            if !wire.send(&batch) {
                return;
            }
            for _ in 0..20 {
                let wanted = format!(
                    "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:{}\r\n+OK\r\n",
                    self.acknowledged + 1
                );
                let mut reply = Vec::new();
                while reply.len() < wanted.len() {
                    let (line, ended) = wire.receive_until(b"\r\n");
                    reply.extend(line);
                    if ended {
                        return;
                    }
                }
                assert_eq!(String::from_utf8_lossy(&reply), wanted, "writer {number}");
                self.acknowledged += 1;
            }
        }
    }

    /// Looks at what there is of it, and goes on from there.
    fn check(&mut self, number: usize, wire: &mut Wire, what: &str) {
        let p: u64 = match wire.line(&format!("EXISTS c:{number}")).as_str() {
            ":0" => 0,
            _ => wire.bulk(&format!("GET c:{number}")).parse().expect("a number"),
        };
        let Self { sent, acknowledged } = *self;
        assert!(
            (acknowledged..=sent).contains(&p),
            "{what}: writer {number} is at {p}, not in {acknowledged}..={sent}"
        );
        for slot in 0..SLOTS {
            let last = (1..=p).rev().take(SLOTS as usize).find(|n| n % SLOTS == slot);
            let name = format!("s:{number}:{slot}");
            match last {
                Some(n) => assert_eq!(wire.bulk(&format!("GET {name}")), n.to_string(), "{what}"),
                None => assert_eq!(wire.line(&format!("EXISTS {name}")), ":0", "{what}"),
            }
        }
        (self.sent, self.acknowledged) = (p, p);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&path).expect("a link"), to).expect("linked");
        } else if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, to).expect("copied");
        }
    }
}

/// Starts a server and kills it after a time, wherever it is then.
fn start_and_kill(folder: &Path, after: Duration) {
    let mut starting = Command::new(env!("CARGO_BIN_EXE_ferrite"));
    starting.current_dir(folder).args(["--port", "0"]);
    for setting in SETTINGS {
        starting.args(["--set", setting]);
    }
    starting.args(["--set", "storage.hybridlog_mutable_size=16MiB"]);
    starting.args(["--set", "storage.hybridlog_readonly_size=16MiB"]);
    let mut starting = starting.stderr(Stdio::null()).spawn().expect("ferrite runs");
    thread::sleep(after);
    assert!(starting.try_wait().expect("a child").is_none(), "it has ended by itself");
    starting.kill().expect("killed");
    starting.wait().expect("a child");
}

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: a number, not {text}")),
        Err(_) => default,
    }
}

#[test]
fn nothing_is_lost_to_kills_during_recovery() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let seed = setting("FERRITE_TEST_SEED", now.as_millis() as u64).max(1);
    let mut state = seed;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let folder = Arc::new(tempfile::tempdir().expect("a directory"));
    let mut server = Server::ferrite_in(Arc::clone(&folder), SETTINGS);
    let mut writers = [Writer::default(); WRITERS];
    for round in 1..=setting("SECOND_KILLS", 2) {
        let what = format!("FERRITE_TEST_SEED={seed}, round {round}");
        let before: u64 = writers.iter().map(|writer| writer.acknowledged).sum();
        thread::scope(|scope| {
            for (number, writer) in writers.iter_mut().enumerate() {
                let wire = server.connect();
                scope.spawn(move || writer.write(number, wire));
            }
            let mut wire = server.connect();
            let counted = |wire: &mut Wire| -> u64 {
                let all = (0..WRITERS).map(|number| format!("c:{number}"));
                all.map(|name| match wire.line(&format!("EXISTS {name}")).as_str() {
                    ":0" => 0,
                    _ => wire.bulk(&format!("GET {name}")).parse().expect("a number"),
                })
                .sum()
            };
            let (first, then) = (before + 300 + random(500), 300 + random(1500));
            let end = Instant::now() + PATIENCE;
            while counted(&mut wire) < first {
                assert!(Instant::now() < end, "{what}: the writers come no further");
                thread::sleep(Duration::from_millis(2));
            }
            match random(3) {
                0 => {}
                1 => assert_eq!(wire.line("SAVE"), "+OK"),
                _ => assert!(wire.line("BGREWRITEAOF").starts_with('+')),
            }
            while counted(&mut wire) < first + then {
                assert!(Instant::now() < end, "{what}: the writers come no further");
                thread::sleep(Duration::from_millis(2));
            }
            server.signal("KILL");
        });
        assert_eq!(server.wait(), None, "a signal ends it");
        // How long it takes, on a copy.
        let tried = Arc::new(tempfile::tempdir().expect("a directory"));
        copy(&folder.path().join("data"), &tried.path().join("data"));
        let since = Instant::now();
        drop(Server::ferrite_in(tried, SETTINGS));
        let takes = since.elapsed().as_micros() as u64;
        for _ in 0..1 + random(2) {
            start_and_kill(folder.path(), Duration::from_micros(random(takes + 1)));
        }
        server = Server::ferrite_in(Arc::clone(&folder), SETTINGS);
        let log = server.log();
        assert!(log.contains("ready"), "{what}: {log}");
        let mut wire = server.connect();
        for (number, writer) in writers.iter_mut().enumerate() {
            writer.check(number, &mut wire, &what);
        }
    }
}
