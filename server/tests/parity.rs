//! The same words to redis-server 7.0.15 and to Ferrite, the same bytes back. Where there is no
//! redis-server (or another version), each test says `skipped` and passes; with `CI=true` it fails.

mod replies;
mod support;

use ferrite_server::commands::{CommandSpec, table};
use replies::{Replies, Tree};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};
use support::Server;

/// Redis and Ferrite, empty, with a connection to each.
struct Pair {
    redis: Replies,
    ferrite: Replies,
    _servers: [Server; 2],
}

impl Pair {
    fn start() -> Option<Self> {
        let servers = [Server::redis()?, Server::ferrite(&[])];
        let [redis, ferrite] = servers.each_ref().map(Replies::of);
        Some(Self { redis, ferrite, _servers: servers })
    }
    /// Sends the same words to both and compares the replies.
    fn same(&mut self, words: &[&[u8]]) {
        let (expected, found) = (self.redis.call(words), self.ferrite.call(words));
        let shown = || words.join(&b' ').escape_ascii().to_string();
        assert_eq!(
            expected.escape_ascii().to_string(),
            found.escape_ascii().to_string(),
            "{}",
            shown()
        );
    }
    fn same_lines(&mut self, script: &str) {
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            self.same(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        }
    }
}

const SCRIPT: &str = "
    SET a ohmytext
    SET b mynewtext
    GET a
    GET nothing
    MGET a nothing b
    SET a x NX GET
    SET a x XX
    SET nothing x XX
    SET nothing x XX GET
    GETEX nothing
    GETDEL nothing
    GETSET fresh 1
    SET a ohmytext
    LCS a b IDX
    LCS a b IDX WITHMATCHLEN MINMATCHLEN 4
    LCS a b LEN
    LCS a b
    INCRBYFLOAT float 3.1
    INCRBYFLOAT float 1e17
    OBJECT ENCODING a
    OBJECT ENCODING nothing
    OBJECT FREQ a
    OBJECT HELP
    OBJECT NOSUCH a
    EXPIRE a 100 NX XX
    EXPIRE a 100 foo
    EXPIREAT a 4000000000
    EXPIRETIME a
    PEXPIRETIME a
    PERSIST a
    COPY a c DB 99
    COPY a c REPLACE
    MOVE a 99
    MOVE c 1
    RENAME nothing x
    TYPE a
    TYPE nothing
    SCAN 0 COUNT 1000 MATCH nothing
    SCAN 0 COUNT
    KEYS nothing
    RANDOMKEY x
    ROLE
    MEMORY USAGE nothing
    MEMORY USAGE a SAMPLES -1
    BGSAVE now
    SWAPDB 0 99
    FLUSHALL now
    FLUSHALL
    RANDOMKEY
    DBSIZE
    NOSUCH a b c
";

#[test]
fn replies_have_the_same_bytes_in_both_protocols() {
    let Some(mut pair) = Pair::start() else { return };
    pair.same_lines(SCRIPT);
    pair.redis.line("HELLO 3");
    pair.ferrite.line("HELLO 3");
    pair.same_lines(SCRIPT);
}

/// With no argument at all, with one too many, and in odd cases.
#[test]
fn every_command_counts_its_words_as_redis_does() {
    let Some(mut pair) = Pair::start() else { return };
    for entry in table().commands() {
        let name = entry.spec.name.as_bytes();
        let subcommands = entry.subcommands.iter().map(|sub| vec![name, sub.spec.name.as_bytes()]);
        for (mut words, spec) in std::iter::once((vec![name], entry.spec))
            .chain(subcommands.zip(entry.subcommands.iter().map(|sub| sub.spec)))
        {
            if is_later(spec) || is_own(entry.spec) {
                continue;
            }
            if !spec.arity_fits(words.len()) {
                pair.same(&words);
            }
            let most = usize::from(spec.arity.unsigned_abs()).max(words.len());
            words.resize(most + 1, b"x");
            if !spec.arity_fits(words.len()) {
                pair.same(&words);
            }
        }
    }
}

/// What redis-server 7.0.15 does not have and later versions do.
fn is_later(spec: &CommandSpec) -> bool {
    spec.since > "7.0.15"
}

/// What only Ferrite has.
fn is_own(spec: &CommandSpec) -> bool {
    ["AOF", "COMPACT"].contains(&spec.name)
}

/// Compares one command of COMMAND INFO: name, arity, flags, first key, last key, step, categories,
/// tips, key specifications, subcommands. Sets have no order.
fn same_information(name: &str, redis: &Tree, ferrite: &Tree) {
    let (redis, ferrite) = (redis.elements(), ferrite.elements());
    assert_eq!(redis.len(), ferrite.len(), "{name}");
    for i in [0, 1, 3, 4, 5, 8] {
        assert_eq!(redis[i], ferrite[i], "{name}: element {i}");
    }
    for i in [2, 6, 7] {
        assert_eq!(redis[i].sorted(), ferrite[i].sorted(), "{name}: element {i}");
    }
    let theirs: BTreeMap<_, _> =
        redis[9].elements().iter().map(|sub| (sub.elements()[0].clone(), sub)).collect();
    for ours in ferrite[9].elements() {
        let name = &ours.elements()[0];
        let text = String::from_utf8_lossy(name.bytes());
        match theirs.get(name) {
            Some(theirs) => same_information(&text, theirs, ours),
            None => assert!(is_later(table().find_full(text.as_bytes()).unwrap().spec), "{text}"),
        }
    }
}

#[test]
fn command_info_is_that_of_redis() {
    let Some(mut pair) = Pair::start() else { return };
    for entry in table().commands().filter(|e| !is_later(e.spec) && !is_own(e.spec)) {
        let words = [b"COMMAND", &b"INFO"[..], entry.name.as_bytes()];
        let of = |wire: &mut Replies| Tree::of(&wire.call(&words)).elements()[0].clone();
        same_information(&entry.name, &of(&mut pair.redis), &of(&mut pair.ferrite));
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Whatever the machine does meanwhile: a reply that came before the end of the millisecond has the
/// value, one that was asked for after it has none.
#[test]
fn a_key_is_there_through_the_millisecond_at_which_it_expires() {
    let Some(mut pair) = Pair::start() else { return };
    for (name, wire) in [("redis", &mut pair.redis), ("ferrite", &mut pair.ferrite)] {
        for (set, get, present, absent) in [
            ("SET k v PX 30", "GET k", "$1\r\nv\r\n", "$-1\r\n"),
            ("SET k v PX 30", "EXISTS k", ":1\r\n", ":0\r\n"),
            ("SET k v PX 30", "TYPE k", "+string\r\n", "+none\r\n"),
            ("SET k v PX 30", "GETRANGE k 0 -1", "$1\r\nv\r\n", "$0\r\n\r\n"),
            ("SET k v PX 30", "MGET k", "*1\r\n$1\r\nv\r\n", "*1\r\n$-1\r\n"),
            ("SET k v PX 30", "KEYS k", "*1\r\n$1\r\nk\r\n", "*0\r\n"),
            ("PSETEX k 30 v", "RANDOMKEY", "$1\r\nk\r\n", "$-1\r\n"),
            ("PSETEX k 30 v", "SETNX k v", ":0\r\n", ":1\r\n"),
        ] {
            wire.line("FLUSHALL");
            assert_eq!(wire.line(set), b"+OK\r\n");
            let at = wire.line("PEXPIRETIME k");
            let at: i64 = std::str::from_utf8(&at[1..at.len() - 2]).unwrap().parse().unwrap();
            // A machine that stood still for 30 ms: nothing to see.
            let Ok(at) = u64::try_from(at) else { continue };
            loop {
                let before = unix_ms();
                let reply = String::from_utf8(wire.line(get)).unwrap();
                let after = unix_ms();
                assert!(reply == present || reply == absent, "{name}: {get}: {reply:?}");
                if after <= at {
                    assert_eq!(reply, present, "{name}: {get} {} ms before", at - after);
                }
                if before > at {
                    assert_eq!(reply, absent, "{name}: {get} {} ms after", before - at);
                    break;
                }
                if reply == absent {
                    break;
                }
            }
        }
    }
}

/// CLIENT LIST's and INFO's lines, and what stays the same in them.
#[test]
fn client_list_has_the_fields_of_redis_and_the_library_behind_them() {
    let Some(mut pair) = Pair::start() else { return };
    for line in ["HELLO 2", "CLIENT SETNAME me", "CLIENT NO-EVICT ON", "SELECT 3", "HELLO 3"] {
        pair.redis.line(line);
        pair.ferrite.line(line);
        for question in ["CLIENT LIST", "CLIENT INFO"] {
            let fields = |wire: &mut Replies| -> Vec<(String, String)> {
                let text = Tree::of(&wire.line(question)).bytes().to_vec();
                let text = String::from_utf8(text).expect("text");
                let fields = text.trim_end().trim_start_matches("txt:").split(' ');
                let fields = fields.map(|field| field.split_once('=').expect("a field"));
                fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
            };
            let (expected, mut found) = (fields(&mut pair.redis), fields(&mut pair.ferrite));
            let library: Vec<_> = found.drain(expected.len()..).map(|(name, _)| name).collect();
            assert_eq!(library, ["lib-name", "lib-ver"]);
            for ((name, redis), (ours, ferrite)) in expected.into_iter().zip(found) {
                assert_eq!(name, ours);
                let same = "name flags db sub psub ssub multi multi-mem obl oll omem events cmd user \
                            redir resp";
                if same.split_whitespace().any(|same| same == name) {
                    assert_eq!(redis, ferrite, "{question} {name}");
                }
            }
        }
    }
}

/// SplitMix64: small, and the same numbers from the same seed everywhere.
struct Random(u64);

impl Random {
    fn from_environment() -> Self {
        let seed = match std::env::var("FERRITE_TEST_SEED") {
            Ok(text) => text.parse().unwrap(),
            Err(_) => u64::from(std::process::id()) << 32 ^ unix_ms(),
        };
        println!("FERRITE_TEST_SEED={seed}");
        Self(seed)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }
    /// Up to `longest` bytes out of `alphabet`.
    fn word(&mut self, alphabet: &[u8], longest: u64) -> Vec<u8> {
        (0..self.below(longest + 1))
            .map(|_| alphabet[self.below(alphabet.len() as u64) as usize])
            .collect()
    }
}

#[test]
fn patterns_find_the_keys_that_redis_finds() {
    let Some(mut pair) = Pair::start() else { return };
    let mut random = Random::from_environment();
    for _ in 0..30 {
        let keys: BTreeSet<_> =
            (0..60).map(|_| random.word(b"abc*?[]^-\\\x7f\x80\xff\0", 5)).collect();
        for wire in [&mut pair.redis, &mut pair.ferrite] {
            wire.line("FLUSHALL");
            for key in &keys {
                wire.call(&[b"SET", key, b"v"]);
            }
        }
        for _ in 0..100 {
            let pattern = random.word(b"abc**??[[]]^^--\\\\\x7f\x80\xff\0", 9);
            let found = |wire: &mut Replies| names(&wire.call(&[b"KEYS", &pattern]));
            let (expected, found) = (found(&mut pair.redis), found(&mut pair.ferrite));
            assert_eq!(expected, found, "KEYS {}", pattern.escape_ascii());
        }
    }
}

/// The names in a reply of KEYS, none of them twice.
fn names(reply: &[u8]) -> BTreeSet<Vec<u8>> {
    let tree = Tree::of(reply);
    let names: BTreeSet<_> = tree.elements().iter().map(|name| name.bytes().to_vec()).collect();
    assert_eq!(names.len(), tree.elements().len(), "{}", reply.escape_ascii());
    names
}
