//! A part of the append-only file is one of Redis's too: redis-check-aof finds nothing wrong with
//! it, and redis-server 7.0 starts on it with the same data. Where there is no redis-server (or
//! another version), the tests say `skipped` and pass; with `CI=true` they fail.

mod replies;
mod support;

use ferrite_server::aof::{Blocks, Effect, Entry, Header, Start};
use replies::Replies;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::{PATIENCE, Server};

const DATABASES: usize = 16;

/// A value and its expiry.
type Held = (Vec<u8>, Option<u64>);

/// A part, and what its entries leave behind.
struct Script {
    blocks: Blocks,
    part: Vec<u8>,
    databases: [BTreeMap<Vec<u8>, Held>; DATABASES],
    time_ms: u64,
    position: u64,
}

impl Script {
    fn new(time_ms: u64) -> Self {
        let header = Header { number: 1, start: Start::Empty, before: None, time_ms };
        let part = header.render();
        Self {
            blocks: Blocks::new(1, part.len() as u64, time_ms, 0),
            part,
            databases: Default::default(),
            time_ms,
            position: 0,
        }
    }
    fn add(&mut self, database: u8, effect: Effect<'_>) {
        self.position += 1;
        self.blocks.push(&Entry {
            position: self.position,
            time_ms: self.time_ms,
            database,
            effect,
        });
        let all = &mut self.databases;
        let keys = &mut all[usize::from(database)];
        match effect {
            Effect::Put { key, value, expires_at_ms } => {
                keys.insert(key.into(), (value.into(), expires_at_ms));
            }
            Effect::Delete { key } => {
                keys.remove(key);
            }
            Effect::Expire { key, at_ms } => {
                keys.get_mut(key).into_iter().for_each(|held| held.1 = Some(at_ms));
            }
            Effect::Persist { key } => keys.get_mut(key).into_iter().for_each(|held| held.1 = None),
            Effect::Flush => keys.clear(),
            Effect::FlushAll => all.iter_mut().for_each(BTreeMap::clear),
            Effect::Swap { with } => all.swap(usize::from(database), usize::from(with)),
            Effect::Verbatim { .. } | Effect::Begin | Effect::End => {}
        }
    }
    fn put(&mut self, database: u8, key: &[u8], value: &[u8]) {
        self.add(database, Effect::Put { key, value, expires_at_ms: None });
    }
    /// Writes the part: block by block, the mark of an idle server at its end.
    fn write(mut self, path: &Path) -> [BTreeMap<Vec<u8>, Held>; DATABASES] {
        self.blocks.close();
        self.part.extend_from_slice(self.blocks.closed());
        self.blocks.written();
        self.blocks.synced(self.blocks.offset());
        self.blocks.mark(self.time_ms);
        self.part.extend_from_slice(self.blocks.closed());
        std::fs::write(path, &self.part).expect("written");
        self.databases
    }
}

/// Every kind of entry, over some seconds and databases.
fn script() -> Script {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    let mut script = Script::new(now - 10_000);
    let later = now + 3_600_000;
    script.put(9, b"gone", b"with FLUSHALL");
    script.add(0, Effect::FlushAll);
    for number in 0..2_000u64 {
        script.time_ms += number % 7;
        let key = format!("key:{}", number % 900).into_bytes();
        let database = (number % 5) as u8;
        match number % 11 {
            0..4 => script.put(database, &key, &vec![number as u8; (number % 300) as usize]),
            4 | 5 => script.add(
                database,
                Effect::Put { key: &key, value: b"for now", expires_at_ms: Some(later + number) },
            ),
            6 => script.add(database, Effect::Delete { key: &key }),
            7 => script.add(database, Effect::Expire { key: &key, at_ms: later - number }),
            8 => script.add(database, Effect::Persist { key: &key }),
            _ => {
                script.add(database, Effect::Begin);
                script.put(database, &key, b"one of two");
                script.put(4, b"the other\r\n\0#B part=", &key);
                script.add(4, Effect::End);
            }
        }
    }
    script.put(5, b"gone", b"with FLUSHDB");
    script.add(5, Effect::Flush);
    script.add(0, Effect::Swap { with: 7 });
    script.put(0, b"after", b"the swap");
    // Several times what a block holds, all or nothing.
    script.add(1, Effect::Begin);
    (0..40u8).for_each(|number| script.put(1, &[b'L', number], &vec![number; 10_000]));
    script.add(1, Effect::End);
    let append = b"*3\r\n$6\r\nAPPEND\r\n$5\r\nafter\r\n$1\r\n!\r\n";
    script.add(0, Effect::Verbatim { command: append });
    script.databases[0].get_mut(&b"after"[..]).expect("it is there").0.push(b'!');
    script
}

#[test]
fn redis_check_aof_finds_nothing_wrong_and_redis_server_has_the_same_data() {
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let path = directory.path().join("appendonly.aof");
    let expected = script().write(&path);
    assert!(expected.iter().flatten().count() > 300 && expected[7].len() > 10);

    let arguments = ["--appendonly", "yes", "--aof-load-truncated", "no"];
    let Some(redis) = Server::redis_in(directory.clone(), &arguments) else { return };
    let mut redis = Replies::of(&redis);
    let until = Instant::now() + PATIENCE;
    while redis.line("PING").starts_with(b"-LOADING") {
        assert!(Instant::now() < until, "redis-server loads no end");
        std::thread::sleep(Duration::from_millis(10));
    }
    same_data(&mut redis, &expected);
}

/// `redis-cli --pipe < PART`: our own server skips the annotations, too.
#[test]
fn a_part_that_is_piped_into_ferrite_gives_the_same_data() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("appendonly.000001.aof");
    let expected = script().write(&path);
    let ferrite = Server::ferrite(&[]);
    let mut wire = ferrite.connect();
    let part = std::fs::read(&path).expect("read");
    // The replies are taken while it is sent, or both sides would wait.
    let mut sending = wire.socket.try_clone().expect("a socket");
    let sender = std::thread::spawn(move || {
        sending.write_all(&part).and_then(|()| sending.write_all(b"ECHO at-the-end\r\n"))
    });
    let (replies, closed) = wire.receive_until(b"at-the-end\r\n");
    assert!(!closed && !replies.starts_with(b"-") && !replies.windows(2).any(|w| w == b"\n-"));
    sender.join().expect("no panic").expect("sent");
    same_data(&mut Replies::of(&ferrite), &expected);
}

/// Every key of every database is there, with its value and its expiry, and no other.
fn same_data(server: &mut Replies, expected: &[BTreeMap<Vec<u8>, Held>]) {
    for (database, keys) in expected.iter().enumerate() {
        assert_eq!(server.text(&format!("SELECT {database}")), "+OK\r\n");
        assert_eq!(server.integer("DBSIZE"), keys.len() as i64, "database {database}");
        for (key, (value, expires_at_ms)) in keys {
            let found = server.call(&[b"GET", key]);
            let wanted = [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat();
            assert!(found == wanted, "{} in {database}", key.escape_ascii());
            let at = expires_at_ms.map_or(-1, |at| at as i64);
            assert_eq!(server.call(&[b"PEXPIRETIME", key]), format!(":{at}\r\n").as_bytes());
        }
    }
}

#[test]
fn redis_check_aof_accepts_a_part_and_cuts_it_by_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("appendonly.000001.aof");
    script().write(&path);
    let check = |arguments: &[&str]| {
        Command::new("redis-check-aof")
            .args(arguments)
            .arg(&path)
            .stdin(Stdio::null())
            .output()
            .map(|output| {
                (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
            })
    };
    let Ok((valid, output)) = check(&[]) else {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "no redis-check-aof");
        eprintln!("skipped: there is no redis-check-aof");
        return;
    };
    assert!(valid && output.contains("is valid"), "{output}");
    // It knows the seconds: all but the last few of them stay.
    let length = || std::fs::metadata(&path).expect("it is there").len();
    let before = length();
    let text = std::fs::read(&path).expect("read");
    let seconds: Vec<u64> = text
        .split(|b| *b == b'\n')
        .filter_map(|line| {
            std::str::from_utf8(line.strip_prefix(b"#TS:")?).ok()?.trim().parse().ok()
        })
        .collect();
    assert!(seconds.len() > 3 && seconds.is_sorted(), "{seconds:?}");
    let by_time = ["--truncate-to-timestamp", &seconds[2].to_string()];
    let (cut, output) = check(&by_time).expect("it ran before");
    assert!(cut && output.contains("Successfully truncated"), "{output}");
    assert!(length() < before);
}
