//! Expected replies are those of redis-server 7.0.15.

use crate::commands::testing::Bench;

/// Runs each line and compares its reply.
fn check(script: &[(&str, &str)]) {
    let mut bench = Bench::new();
    for (line, expected) in script {
        assert_eq!(bench.text(line), expected.to_string() + "\r\n", "{line}");
    }
}

const SYNTAX: &str = "-ERR syntax error";
const NO_INTEGER: &str = "-ERR value is not an integer or out of range";

#[test]
fn set_takes_its_options_in_any_order_and_refuses_contradictions() {
    check(&[
        ("SET a 1 XX", "$-1"),
        ("SET a 1 nx", "+OK"),
        ("SET a 2 NX", "$-1"),
        ("SET a 2 NX GET", "$1\r\n1"),
        ("SET a 2 GET XX", "$1\r\n1"),
        ("GET a", "$1\r\n2"),
        ("SET b 1 GET", "$-1"),
        ("SET b 1 NX XX", SYNTAX),
        ("SET b 1 EX 10 PX 10", SYNTAX),
        ("SET b 1 EX 10 KEEPTTL", SYNTAX),
        ("SET b 1 KEEPTTL EX 10", SYNTAX),
        ("SET b 1 PERSIST", SYNTAX),
        ("SET b 1 EX", SYNTAX),
        ("SET b 1 EX 10 EX 20 NX NX GET GET", "$1\r\n1"),
        ("SET b 1 EX x", NO_INTEGER),
        ("SET b 1 EX 0", "-ERR invalid expire time in 'set' command"),
        ("SET b 1 PXAT -1", "-ERR invalid expire time in 'set' command"),
        ("SETEX b 0 1", "-ERR invalid expire time in 'setex' command"),
        ("PSETEX b 9223372036854775807 1", "-ERR invalid expire time in 'psetex' command"),
    ]);
}

#[test]
fn set_clears_an_expiry_unless_told_to_keep_it_and_parts_keep_it() {
    check(&[
        ("SET a 1 PXAT 4000000000000", "+OK"),
        ("SET a 2 KEEPTTL", "+OK"),
        ("PEXPIRETIME a", ":4000000000000"),
        ("INCR a", ":3"),
        ("APPEND a 4", ":2"),
        ("SETRANGE a 0 5", ":2"),
        ("INCRBYFLOAT a 0.5", "$4\r\n54.5"),
        ("PEXPIRETIME a", ":4000000000000"),
        ("GETSET a 9", "$4\r\n54.5"),
        ("PEXPIRETIME a", ":-1"),
        ("SET a 1 EXAT 4000000000", "+OK"),
        ("SET a 1", "+OK"),
        ("TTL a", ":-1"),
        ("MSET a 1", "+OK"),
        ("SET a 1 EXAT 1", "+OK"),
        ("GET a", "$-1"),
    ]);
}

#[test]
fn getex_judges_a_time_only_when_there_is_a_key() {
    check(&[
        ("GETEX a EX 0", "$-1"),
        ("GETEX a EX x", "$-1"),
        ("GETEX a KEEPTTL", SYNTAX),
        ("SET a 1", "+OK"),
        ("GETEX a EX 0", "-ERR invalid expire time in 'getex' command"),
        ("GETEX a EX x", NO_INTEGER),
        ("GETEX a PXAT 4000000000000", "$1\r\n1"),
        ("PEXPIRETIME a", ":4000000000000"),
        ("GETEX a", "$1\r\n1"),
        ("PEXPIRETIME a", ":4000000000000"),
        ("GETEX a PERSIST", "$1\r\n1"),
        ("PEXPIRETIME a", ":-1"),
        ("GETEX a PERSIST EX 10", SYNTAX),
        ("GETEX a EXAT 1", "$1\r\n1"),
        ("EXISTS a", ":0"),
        ("DBSIZE", ":0"),
        ("SET a 1", "+OK"),
        ("GETDEL a", "$1\r\n1"),
        ("GETDEL a", "$-1"),
    ]);
}

#[test]
fn counters_stay_within_64_bits() {
    check(&[
        ("SET a 9223372036854775806", "+OK"),
        ("INCR a", ":9223372036854775807"),
        ("INCR a", "-ERR increment or decrement would overflow"),
        ("DECRBY a -9223372036854775808", "-ERR decrement would overflow"),
        ("DECRBY a 9223372036854775807", ":0"),
        ("DECR a", ":-1"),
        ("INCRBY a -9223372036854775807", ":-9223372036854775808"),
        ("DECR a", "-ERR increment or decrement would overflow"),
        ("INCRBY a 1.0", NO_INTEGER),
        ("SET a 01", "+OK"),
        ("INCR a", NO_INTEGER),
        ("GET a", "$2\r\n01"),
        ("INCRBYFLOAT a 1", "$1\r\n2"),
        ("INCR a", ":3"),
        ("INCRBYFLOAT a x", "-ERR value is not a valid float"),
        ("INCRBYFLOAT a inf", "-ERR increment would produce NaN or Infinity"),
        ("INCRBYFLOAT b 1e17", "$18\r\n100000000000000000"),
        ("INCRBYFLOAT b 0.1", "$26\r\n100000000000000000.1015625"),
    ]);
}

#[test]
fn encodings_follow_how_a_value_came_about() {
    let long = "1".repeat(44);
    check(&[
        ("SET a 12", "+OK"),
        ("OBJECT ENCODING a", "$3\r\nint"),
        ("OBJECT REFCOUNT a", ":2147483647"),
        ("APPEND a 3", ":3"),
        ("OBJECT ENCODING a", "$3\r\nraw"),
        ("COPY a b", ":1"),
        ("OBJECT ENCODING b", "$3\r\nraw"),
        ("OBJECT REFCOUNT b", ":1"),
        ("INCR a", ":124"),
        ("OBJECT ENCODING a", "$3\r\nint"),
        ("INCRBYFLOAT a 1", "$3\r\n125"),
        ("OBJECT ENCODING a", "$6\r\nembstr"),
        ("RENAME a c", "+OK"),
        ("OBJECT ENCODING c", "$6\r\nembstr"),
        ("SETRANGE d 0 1", ":1"),
        ("OBJECT ENCODING d", "$3\r\nraw"),
        ("APPEND e 1", ":1"),
        ("OBJECT ENCODING e", "$3\r\nint"),
        ("MSET f 1 g x", "+OK"),
        ("OBJECT ENCODING f", "$3\r\nint"),
        ("OBJECT ENCODING g", "$6\r\nembstr"),
        (&format!("SET h {long}"), "+OK"),
        ("OBJECT ENCODING h", "$6\r\nembstr"),
        (&format!("SET h {long}1"), "+OK"),
        ("OBJECT ENCODING h", "$3\r\nraw"),
        ("OBJECT ENCODING nothing", "$-1"),
    ]);
}

#[test]
fn ranges_count_from_both_ends() {
    check(&[
        ("SET a hello", "+OK"),
        ("GETRANGE a 1 3", "$3\r\nell"),
        ("SUBSTR a -3 -2", "$2\r\nll"),
        ("GETRANGE a 0 -100", "$1\r\nh"),
        ("GETRANGE a -2 -3", "$0\r\n"),
        ("GETRANGE a 3 1", "$0\r\n"),
        ("GETRANGE a -9223372036854775808 9223372036854775807", "$5\r\nhello"),
        ("GETRANGE a 0 x", NO_INTEGER),
        ("GETRANGE b 0 -1", "$0\r\n"),
        ("SETRANGE a 6 you", ":9"),
        ("GET a", "$9\r\nhello\0you"),
        ("SETRANGE a 1 u", ":9"),
        ("SETRANGE b 0 ", ":0"),
        ("EXISTS b", ":0"),
        ("SETRANGE a 100 ", ":9"),
        ("SETRANGE a -1 x", "-ERR offset is out of range"),
        (
            "SETRANGE a 9223372036854775807 x",
            "-ERR string exceeds maximum allowed size (proto-max-bulk-len)",
        ),
        ("STRLEN a", ":9"),
        ("STRLEN b", ":0"),
    ]);
}

#[test]
fn many_keys_at_once() {
    check(&[
        ("MSET a 1 b 2 a 3", "+OK"),
        ("MGET a nothing b a", "*4\r\n$1\r\n3\r\n$-1\r\n$1\r\n2\r\n$1\r\n3"),
        ("MSET a", "-ERR wrong number of arguments for 'mset' command"),
        ("MSET a 1 b", "-ERR wrong number of arguments for 'mset' command"),
        ("MSETNX c 1 a 2", ":0"),
        ("EXISTS c", ":0"),
        ("MSETNX c 1 d 2 c 3", ":1"),
        ("GET c", "$1\r\n3"),
        ("MSETNX c 1 d", "-ERR wrong number of arguments for 'msetnx' command"),
    ]);
}

/// The second place of the key once removed it as expired, after the first had written it.
#[test]
fn an_expired_key_that_stands_twice_is_written_once() {
    check(&[
        ("SET a 1 EXAT 1", "+OK"),
        ("MSET a 2 a 3", "+OK"),
        ("GET a", "$1\r\n3"),
        ("DBSIZE", ":1"),
        ("SET a 1 EXAT 1", "+OK"),
        ("MSETNX a 2 b 2 a 3", ":1"),
        ("MGET a b", "*2\r\n$1\r\n3\r\n$1\r\n2"),
        ("DBSIZE", ":2"),
        ("SET a 1 EXAT 1", "+OK"),
        ("DEL a a b b", ":1"),
        ("DBSIZE", ":0"),
    ]);
}

/// As in Redis, where DBSIZE shows to which keys a command has come.
#[test]
fn an_expired_key_stays_until_a_command_comes_to_it() {
    check(&[
        ("SET here 1", "+OK"),
        ("SET gone 1 EXAT 1", "+OK"),
        ("MSETNX here 2 gone 2", ":0"),
        ("RENAME nothing gone", "-ERR no such key"),
        ("RENAMENX nothing gone", "-ERR no such key"),
        ("COPY nothing gone", ":0"),
        ("DBSIZE", ":2"),
        ("MSETNX gone 2 here 2", ":0"),
        ("DBSIZE", ":1"),
    ]);
}

#[test]
fn lcs_in_all_its_forms() {
    check(&[
        ("MSET a ohmytext b mynewtext", "+OK"),
        ("LCS a b", "$6\r\nmytext"),
        ("LCS a b LEN", ":6"),
        ("LCS a nothing", "$0\r\n"),
        ("LCS a b LEN IDX", "-ERR If you want both the length and indexes, please just use IDX."),
        ("LCS a b MINMATCHLEN", SYNTAX),
        ("LCS a b MINMATCHLEN x", NO_INTEGER),
        (
            "LCS a b IDX MINMATCHLEN 4 WITHMATCHLEN",
            "*4\r\n$7\r\nmatches\r\n*1\r\n*3\r\n*2\r\n:4\r\n:7\r\n*2\r\n:5\r\n:8\r\n:4\r\n\
             $3\r\nlen\r\n:6",
        ),
        (
            "LCS a b IDX MINMATCHLEN -1",
            "*4\r\n$7\r\nmatches\r\n*2\r\n*2\r\n*2\r\n:4\r\n:7\r\n*2\r\n:5\r\n:8\r\n\
             *2\r\n*2\r\n:2\r\n:3\r\n*2\r\n:0\r\n:1\r\n$3\r\nlen\r\n:6",
        ),
    ]);
}

#[test]
fn lcs_refuses_a_table_over_the_limit_of_a_bulk_string() {
    let mut bench = Bench::new();
    bench.context.limits.bulk_max.set(4 * 9 * 10 - 1);
    bench.text("MSET a ohmytext b mynewtext");
    let refused =
        "-ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len\r\n";
    assert_eq!(bench.text("LCS a b LEN"), refused);
    bench.context.limits.bulk_max.set(4 * 9 * 10);
    assert_eq!(bench.text("LCS a b LEN"), ":6\r\n");
}

#[test]
fn a_value_over_the_limit_is_refused_before_it_is_made() {
    let mut bench = Bench::new();
    let refused = "-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n";
    bench.context.limits.bulk_max.set(10);
    assert_eq!(bench.text("SETRANGE a 9 x"), ":10\r\n");
    assert_eq!(bench.text("APPEND a x"), refused);
    assert_eq!(bench.text("SETRANGE a 10 x"), refused);
    bench.context.limits.bulk_max.set(512 << 20);
    assert_eq!(bench.text("SETRANGE a 500000000 x"), refused, "over a page");
}

#[test]
fn reads_count_hits_and_misses() {
    let mut bench = Bench::new();
    bench.text("MSET a 1 b 2");
    for (line, hits, misses) in [
        ("GET a", 1, 0),
        ("GET x", 0, 1),
        ("MGET a x b", 2, 1),
        ("EXISTS a x", 1, 1),
        ("LCS a x", 1, 1),
        ("SET a 1 GET", 1, 0),
        ("SET a 1", 0, 0),
        ("GETEX a EX 100", 1, 0),
        ("STRLEN x", 0, 1),
        ("TTL a", 1, 0),
        ("OBJECT ENCODING a", 1, 0),
        ("INCR a", 0, 0),
        ("COPY x y", 0, 1),
        ("GETDEL a", 1, 0),
    ] {
        let counted = |bench: &Bench| {
            let counters = &bench.context.workers[0];
            (counters.keyspace_hits.get(), counters.keyspace_misses.get())
        };
        let before = counted(&bench);
        bench.text(line);
        assert_eq!(counted(&bench), (before.0 + hits, before.1 + misses), "{line}");
    }
}
