//! Expected replies are those of redis-server 7.0.15, except for what Ferrite has of its own.

use crate::commands::testing::Bench;
use crate::compaction::Compacting;
use ferrite_hybridlog::Database;

/// Runs each line in its database and compares its reply.
fn check(script: &[(u8, &str, &str)]) {
    let mut bench = Bench::new();
    for (db, line, expected) in script {
        bench.client.db = Database(*db);
        assert_eq!(bench.text(line), expected.to_string() + "\r\n", "{line}");
    }
}

#[test]
fn flushing_empties_one_database_or_all() {
    check(&[
        (0, "SET a 1", "+OK"),
        (1, "SET b 1", "+OK"),
        (2, "SET c 1", "+OK"),
        (0, "FLUSHDB x", "-ERR syntax error"),
        (0, "FLUSHDB ASYNC SYNC", "-ERR syntax error"),
        (0, "FLUSHDB async", "+OK"),
        (0, "DBSIZE", ":0"),
        (1, "DBSIZE", ":1"),
        (1, "FLUSHALL SYNC", "+OK"),
        (2, "DBSIZE", ":0"),
    ]);
}

#[test]
fn swapping_exchanges_two_databases() {
    check(&[
        (0, "SET a 1", "+OK"),
        (0, "SWAPDB 0 1", "+OK"),
        (0, "EXISTS a", ":0"),
        (1, "EXISTS a", ":1"),
        (0, "SWAPDB 1 1", "+OK"),
        (0, "SWAPDB x 1", "-ERR invalid first DB index"),
        (0, "SWAPDB 0 99999999999", "-ERR invalid second DB index"),
        (0, "SWAPDB 0 16", "-ERR DB index is out of range"),
        (0, "SWAPDB -1 0", "-ERR DB index is out of range"),
    ]);
}

#[test]
fn a_second_save_is_refused_while_one_runs() {
    let mut bench = Bench::new();
    let refused = "-ERR Background save already in progress\r\n";
    let claim = bench.context.checkpoints.claim().unwrap();
    assert_eq!(bench.text("SAVE"), refused);
    assert_eq!(bench.text("BGSAVE"), refused);
    assert_eq!(bench.text("BGSAVE SCHEDULE"), refused);
    assert_eq!(bench.text("BGSAVE now"), "-ERR syntax error\r\n");
    drop(claim);
    let before = bench.context.checkpoints.state().completed;
    assert_eq!(bench.text("SAVE"), "+OK\r\n");
    assert_eq!(bench.context.checkpoints.state().completed, before + 1);
    assert_eq!(bench.text("BGSAVE"), "+Background saving started\r\n");
    while bench.context.checkpoints.in_progress() {
        std::thread::yield_now();
    }
    assert_eq!(bench.context.checkpoints.state().completed, before + 2);
    let last = bench.context.checkpoints.state().last_save_ms / 1000;
    assert_eq!(bench.text("LASTSAVE"), format!(":{last}\r\n"));
}

#[test]
fn writes_are_refused_while_checkpoints_are_on_and_fail() {
    let mut bench = Bench::new();
    assert_eq!(bench.text("SET a 1"), "+OK\r\n");
    let directory = bench.directory().to_owned();
    let away = directory.with_extension("away");
    std::fs::rename(&directory, &away).unwrap();
    assert!(bench.text("SAVE").starts_with("-ERR checkpoint failed: "));
    let why = bench.context.checkpoints.state().last_error.unwrap();
    for line in ["SET a 2", "DEL a", "INCR n", "FLUSHALL", "SWAPDB 0 1", "PING", "GETEX a PERSIST"]
    {
        let reply = bench.text(line);
        assert!(reply.starts_with("-MISCONF "), "{line}: {reply}");
        assert!(reply.contains(&why), "{line}: {reply}");
    }
    assert_eq!(bench.text("SET a"), "-ERR wrong number of arguments for 'set' command\r\n");
    for (line, expected) in [("GET a", "$1\r\n1"), ("DBSIZE", ":1"), ("ECHO x", "$1\r\nx")] {
        assert_eq!(bench.text(line), expected.to_string() + "\r\n", "{line}");
    }
    assert_eq!(bench.text("CONFIG SET save "), "+OK\r\n");
    assert_eq!(bench.text("SET a 2"), "+OK\r\n", "nobody wants checkpoints");
    assert_eq!(bench.text("PING"), "+PONG\r\n");
    bench.run(&[b"CONFIG", b"SET", b"save", b"300 1"]);
    assert!(bench.text("SET a 3").starts_with("-MISCONF "));
    std::fs::rename(&away, &directory).unwrap();
    assert_eq!(bench.text("SAVE"), "+OK\r\n");
    assert_eq!(bench.text("SET a 3"), "+OK\r\n");
    assert_eq!(bench.text("PING"), "+PONG\r\n");
}

#[test]
fn what_an_operator_may_ask() {
    check(&[
        (0, "ROLE", "*3\r\n$6\r\nmaster\r\n:0\r\n*0"),
        (0, "DEBUG SLEEP 0", "+OK"),
        (
            0,
            "DEBUG OBJECT a",
            "-ERR unknown subcommand or wrong number of arguments for 'OBJECT'. Try DEBUG HELP.",
        ),
        (0, "SHUTDOWN now later", "-ERR syntax error"),
        (0, "SHUTDOWN save nosave", "-ERR syntax error"),
        (0, "SHUTDOWN abort now", "-ERR syntax error"),
        (0, "SHUTDOWN abort", "-ERR No shutdown in progress."),
        (0, "MEMORY USAGE a", "$-1"),
        (0, "MEMORY USAGE a SAMPLES", "-ERR syntax error"),
        (0, "MEMORY USAGE a SAMPLES -1", "-ERR syntax error"),
        (0, "MEMORY USAGE a SAMPLES x", "-ERR value is not an integer or out of range"),
        (0, "MEMORY USAGE a FOO 1", "-ERR syntax error"),
        (0, "MEMORY USAGE", "-ERR wrong number of arguments for 'memory|usage' command"),
        (0, "MEMORY FOO", "-ERR unknown subcommand 'FOO'. Try MEMORY HELP."),
    ]);
    let mut bench = Bench::new();
    bench.text("SET a 1");
    let usage = bench.text("MEMORY USAGE a SAMPLES 0");
    let bytes: u64 = usage.trim_start_matches(':').trim_end().parse().unwrap();
    assert!((16..200).contains(&bytes), "{bytes}");
    let time = bench.text("TIME");
    let seconds: u64 = time.lines().nth(2).unwrap().parse().unwrap();
    assert!(seconds.abs_diff(crate::context::unix_ms() / 1000) <= 60);
}

/// Each began a thread and a session of its own, of which the store has 272: so many of them in one
/// pipeline ended the server.
#[test]
fn a_second_compaction_by_hand_is_refused_while_the_first_goes_on() {
    let mut bench = Bench::new();
    let first = Compacting::begin(&bench.context).expect("none goes on");
    for _ in 0..300 {
        let answer = bench.text("COMPACT");
        assert_eq!(answer, "-ERR Background compaction already in progress\r\n");
    }
    first.run();
    assert_eq!(bench.text("COMPACT"), "+Background compaction started\r\n");
}
