//! MULTI, EXEC and DISCARD: the replies are those of redis-server 7.0.15, and a transaction is one
//! step to every other connection, on every worker, and in every checkpoint.

mod replies;
mod support;

use replies::Replies;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use support::{PATIENCE, Server};

/// The smallest ring, so that nearly all is cold, and two workers.
const TINY: &[&str] = &[
    "server.workers=2",
    "storage.hybridlog_page_size=4KiB",
    "storage.hybridlog_segment_size=64KiB",
    "storage.hybridlog_mutable_size=8KiB",
    "storage.hybridlog_readonly_size=8KiB",
    "storage.block_cache_size=0",
    "persistence.checkpoint_interval=3600",
];

/// What both servers are sent, each on a connection of its own; the end of the connection tells
/// that no more replies come, so that what CLIENT REPLY leaves out is compared, too.
const SCRIPTS: &[&str] = &[
    "exec; exec foo; discard; discard x; multi x; multi; multi; exec; exec; multi; discard; exec",
    "multi; set a; get a; exec; multi; foo; exec; get a",
    "multi; exec foo; exec; multi; discard foo; exec; multi; multi foo; exec",
    "multi; save; exec; multi; shutdown; exec",
    "multi; set a 1; incr a; get a; getset a; exec; multi; set a x; incr a; get a; append a y; exec",
    "multi; select 3; set b 1; exec; get b; select 0; get b; multi; select 99; get b; exec; get b",
    "multi; mset a 1 b 2 c 3; mget a b c d; rename a z; exists a z; move z 4; copy b q; dbsize; exec",
    "multi; client reply off; get nothing; exec; client reply on; ping",
    "multi; client reply skip; ping; exec; ping; ping",
    "client reply off; multi; client reply on; ping; exec; ping; client reply on; ping",
    "client reply skip; multi; ping; exec",
    "multi; client reply off; ping; client reply on; ping; exec; ping",
    "multi; ping; client reply skip; exec; ping; ping",
    "multi; ping; client reply off; client reply skip; exec; ping; client reply on",
    "multi; reset; exec; hello 3; multi; get nothing; reset; get nothing",
    "multi; quit; ping",
    "hello 3; multi; get nothing; hello 2; get nothing; exec; get nothing",
    "multi; auth a b; auth default x; exec; multi; client foo; exec; multi; client; exec",
    "set a 1; multi; flushall; get a; set b 1; flushdb; get b; set c 1; swapdb 0 1; get c; select 1; get c; exec",
    "multi; flushall foo; swapdb 0 x; swapdb 0 0; exec; flushall",
    "multi; bgsave foo; client pause x; client unpause; client kill id 999999; exec",
    "multi; set a 1 ex 100; ttl a; persist a; ttl a; getdel a; exists a; exec",
    "multi; scan 0 match nothing; keys nothing; randomkey; object encoding a; exec",
    "multi; config get databases; config set nosuch 1; time x; exec; flushall",
    "multi; client setname me; client getname; exec; client getname",
];

/// All replies to a script until the connection ends.
fn answers(server: &Server, script: &str, greeting: &str) -> String {
    let mut wire = server.connect();
    let lines = [greeting].into_iter().chain(script.split("; ")).chain(["quit"]);
    assert!(wire.send(lines.map(|line| format!("{line}\r\n")).collect::<String>().as_bytes()));
    let (bytes, ended) = wire.receive_until(b"no reply holds this");
    assert!(ended);
    // The numbers of the clients differ.
    bytes.escape_ascii().to_string()
}

#[test]
fn transactions_answer_as_redis_does() {
    let Some(redis) = Server::redis() else { return };
    for settings in [&["server.workers=2"][..], TINY] {
        let ferrite = Server::ferrite(settings);
        for greeting in ["ping", "client setname x"] {
            for script in SCRIPTS {
                let (expected, found) =
                    (answers(&redis, script, greeting), answers(&ferrite, script, greeting));
                if script.contains("hello") {
                    // They differ in the number of the client alone.
                    let parts = |text: &str| text.matches("proto").count();
                    assert_eq!(parts(&expected), parts(&found), "{script}");
                    let end = |text: &str| text.rsplit("modules").next().map(str::to_owned);
                    assert_eq!(end(&expected), end(&found), "{script}");
                } else {
                    assert_eq!(expected, found, "{script}");
                }
            }
        }
    }
}

#[test]
fn a_background_save_in_a_transaction_is_taken_afterwards() {
    let server = Server::ferrite(&[]);
    let mut client = Replies::of(&server);
    assert_eq!(client.line("MULTI"), b"+OK\r\n");
    for line in ["SET a 1", "BGSAVE", "BGSAVE SCHEDULE", "DEBUG SLEEP 0"] {
        assert_eq!(client.line(line), b"+QUEUED\r\n");
    }
    let scheduled = "+Background saving scheduled\r\n";
    assert_eq!(client.text("EXEC"), format!("*4\r\n+OK\r\n{scheduled}{scheduled}+OK\r\n"));
    let until = Instant::now() + PATIENCE;
    while !client.text("INFO persistence").contains("checkpoint_completed:1\r\n") {
        assert!(Instant::now() < until, "no checkpoint is taken");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn queued_commands_are_shown_and_counted() {
    let server = Server::ferrite(&[]);
    let mut client = Replies::of(&server);
    for line in ["CONFIG RESETSTAT", "MULTI", "SET a x", "INCR a", "CLIENT LIST"] {
        client.line(line);
    }
    let mut other = Replies::of(&server);
    let list = other.text("CLIENT LIST");
    assert!(list.contains(" flags=x ") && list.contains(" multi=3 "), "{list}");
    let list = client.text("EXEC");
    assert!(list.contains(" flags=x ") && list.contains(" multi=3 "), "{list}");
    assert!(list.contains(" cmd=exec "), "{list}");
    let list = client.text("CLIENT INFO");
    assert!(list.contains(" flags=N ") && list.contains(" multi=-1 "), "{list}");
    let stats = client.text("INFO commandstats");
    for line in [
        "cmdstat_exec:calls=1,",
        "cmdstat_multi:calls=1,",
        "cmdstat_set:calls=1,",
        "cmdstat_incr:calls=1,",
        "cmdstat_client|list:calls=2,",
    ] {
        assert!(stats.contains(line), "{line} in {stats}");
    }
    let incr = stats.lines().find(|line| line.starts_with("cmdstat_incr:")).expect("a line");
    assert!(incr.ends_with("rejected_calls=0,failed_calls=1"), "{incr}");
    // MULTI, EXEC, its three, CLIENT LIST and CLIENT INFO, and INFO before this one.
    let stats = client.text("INFO stats");
    assert!(stats.contains("total_commands_processed:9\r\n"), "{stats}");
}

/// The queue counts for the query buffer: its limit, and what INFO says of memory.
#[test]
fn a_queue_is_bounded_by_the_query_buffer() {
    let server = Server::ferrite(&["server.max_query_buffer=1MiB"]);
    let mut client = server.connect();
    assert_eq!(client.line("MULTI"), "+OK");
    let mut other = Replies::of(&server);
    let held = |other: &mut Replies| -> u64 {
        let text = other.text("INFO memory");
        let line = text.lines().find_map(|l| l.strip_prefix("memory_budget_query_buffers:"));
        line.expect("a field").parse().expect("a number")
    };
    let word = "x".repeat(10_000);
    for n in 0..50 {
        assert_eq!(client.line(&format!("SET k{n} {word}")), "+QUEUED");
    }
    // Counted when a turn ends, which is after its replies are sent.
    let until = Instant::now() + PATIENCE;
    while held(&mut other) < 500_000 {
        assert!(Instant::now() < until, "its memory is not counted");
    }
    let mut closed = false;
    for _ in 0..60 {
        client.send(format!("SET k {word}\r\n").as_bytes());
        let (_, ended) = client.receive_until(b"\r\n");
        closed |= ended;
        if closed {
            break;
        }
    }
    assert!(closed, "it queues more than its limit");
    while held(&mut other) >= 500_000 {
        assert!(Instant::now() < until, "its memory is counted for ever");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(other.text("INFO stats").contains("query_buffer_limit_disconnections:1\r\n"));
}

/// Transactions on both workers, with keys on the device, keys that expire, databases that are
/// flushed and swapped inside and outside of them, single commands, and one checkpoint after the
/// other: everything goes on, and nobody ever sees half of a transaction.
#[test]
fn transactions_checkpoints_and_flushes_do_not_wait_for_each_other() {
    const ROUNDS: u64 = 150;
    const TRANSACTORS: u64 = 3;
    let server = Server::ferrite(TINY);
    let mut client = Replies::of(&server);
    client.line("MSET {a} 1000 {b} 0");
    let (working, stop) = (AtomicU64::new(TRANSACTORS), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for t in 0..TRANSACTORS {
            let (server, working) = (&server, &working);
            scope.spawn(move || {
                let mut client = Replies::of(server);
                for i in 0..ROUNDS {
                    let filler = "f".repeat(900);
                    let mut lines = vec![format!("DECRBY {{a}} {}", i % 5)];
                    for n in 0..i % 8 {
                        lines.push(format!(
                            "SET cold{t}:{} {filler} PX {}",
                            n * i % 60,
                            1 + n * 40
                        ));
                        lines.push(format!("GET cold{}:{}", (t + 1) % TRANSACTORS, n * 7 % 60));
                    }
                    match i % 10 {
                        3 => lines.push("SELECT 3".into()),
                        5 => lines.push("SWAPDB 4 5".into()),
                        7 => lines.extend(["SELECT 5", "SET x y", "FLUSHDB"].map(Into::into)),
                        _ => {}
                    }
                    lines.push("SELECT 0".into());
                    lines.push(format!("INCRBY {{b}} {}", i % 5));
                    lines.push("MGET {a} {b}".into());
                    assert_eq!(client.line("MULTI"), b"+OK\r\n");
                    for line in &lines {
                        assert_eq!(client.line(line), b"+QUEUED\r\n");
                    }
                    let answer = client.text("EXEC");
                    assert!(!answer.contains("\r\n-"), "{answer}");
                    assert_eq!(total(&answer), 1000, "{answer}");
                }
                working.fetch_sub(1, Relaxed);
            });
        }
        scope.spawn(|| {
            let mut client = Replies::of(&server);
            while !stop.load(Relaxed) {
                let answer = client.text("MGET {a} {b}");
                assert_eq!(total(&answer), 1000, "half of a transaction was seen");
                client.line("SELECT 4");
                client.line("SET other 1 PX 5");
                client.line("FLUSHDB");
                client.line("SELECT 0");
            }
        });
        scope.spawn(|| {
            let mut client = Replies::of(&server);
            while !stop.load(Relaxed) {
                client.line("BGSAVE");
                client.line("SWAPDB 4 6");
            }
        });
        let until = Instant::now() + 4 * PATIENCE;
        while working.load(Relaxed) > 0 {
            // Its end is the end of the test: the others wait for replies.
            if Instant::now() > until {
                eprintln!("they wait for each other\n{}", server.log());
                std::process::abort();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Relaxed);
    });
    client.line("SAVE");
    // What a checkpoint has is whole, too; the newest one that was taken under way is lost, but
    // each of those was as good as this one.
    assert_eq!(total(&client.text("MGET {a} {b}")), 1000);
}

/// The sum of the two bulk strings that a reply ends with.
fn total(reply: &str) -> i64 {
    let words: Vec<&str> = reply.trim_end().rsplit("\r\n").collect();
    let number = |n: usize| words[n].parse::<i64>().unwrap_or_else(|_| panic!("{reply}"));
    number(0) + number(2)
}

/// The server is killed while transactions and checkpoints run: whichever checkpoint the next start
/// finds has all or nothing of each.
#[test]
fn a_checkpoint_has_all_of_a_transaction_or_nothing() {
    let settings = [TINY, &["persistence.aof_enabled=false"]].concat();
    let mut directory = Arc::new(tempfile::tempdir().expect("a directory"));
    for round in 0..3 {
        let server = Server::ferrite_in(directory.clone(), &settings);
        let mut client = Replies::of(&server);
        if round == 0 {
            client.line("MSET {a} 1000 {b} 0");
            client.line("SAVE");
        }
        assert_eq!(total(&client.text("MGET {a} {b}")), 1000, "half of one in a checkpoint");
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut client = Replies::of(&server);
                let filler = "f".repeat(1500);
                while !end.load(Relaxed) {
                    client.line("MULTI");
                    client.line("DECRBY {a} 3");
                    (0..6).for_each(|n| drop(client.line(&format!("SET filler{n} {filler}"))));
                    client.line("INCRBY {b} 3");
                    assert!(!client.text("EXEC").contains("\r\n-"));
                }
            });
            for _ in 0..5 {
                assert_eq!(client.line("SAVE"), b"+OK\r\n");
            }
            end.store(true, Relaxed);
        });
        directory = server.directory.clone();
        // Killed, without a last checkpoint.
        drop(server);
    }
}
