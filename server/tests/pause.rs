//! CLIENT PAUSE and UNPAUSE: who waits, until when, and that the data stands still, as in
//! redis-server 7.0.15.

mod replies;
mod support;

use replies::Replies;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use support::{PATIENCE, Server};

/// Longer than any test takes.
const LONG: &str = "CLIENT PAUSE 600000 WRITE";

/// Waits until so many clients wait for the end of the pause.
fn wait_for_blocked(client: &mut Replies, n: usize) {
    let until = Instant::now() + PATIENCE;
    let wanted = format!("blocked_clients:{n}\r\n");
    while !client.text("INFO clients").contains(&wanted) {
        assert!(Instant::now() < until, "no {wanted}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn writes_wait_for_the_end_and_nothing_else_does() {
    let servers = [Server::redis(), Some(Server::ferrite(&["server.workers=2"]))];
    for server in servers.iter().flatten() {
        let mut operator = Replies::of(server);
        operator.line("SET a 0");
        assert_eq!(operator.line(LONG), b"+OK\r\n");
        let writes: &[&[&str]] = &[
            &["SET a 1"],
            &["GET a", "DEL b"],
            &["FLUSHDB"],
            &["SWAPDB 3 4"],
            // A write waits before it is queued, too.
            &["MULTI", "SET c 1"],
            &["INCR d"],
        ];
        let mut waiting: Vec<Replies> = writes.iter().map(|_| Replies::of(server)).collect();
        for (client, lines) in waiting.iter_mut().zip(writes) {
            let (last, before) = lines.split_last().expect("a line");
            before.iter().for_each(|line| drop(client.line(line)));
            client.send(&last.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        }
        wait_for_blocked(&mut operator, writes.len());
        let list = operator.text("CLIENT LIST");
        assert_eq!(list.matches(" flags=b ").count(), writes.len() - 1, "{list}");
        assert_eq!(list.matches(" flags=xb ").count(), 1, "{list}");
        let mut reader = Replies::of(server);
        for (line, reply) in [
            ("GET a", "$1\r\n0\r\n"),
            ("PING", "+PONG\r\n"),
            ("MULTI", "+OK\r\n"),
            ("GET a", "+QUEUED\r\n"),
            ("EXEC", "*1\r\n$1\r\n0\r\n"),
            ("SAVE", "+OK\r\n"),
            ("BGSAVE", "+Background saving started\r\n"),
        ] {
            assert_eq!(reader.text(line), reply, "{line}");
        }
        assert_eq!(operator.line("CLIENT UNPAUSE"), b"+OK\r\n");
        let replies: Vec<_> = waiting.iter_mut().map(|client| client.reply()).collect();
        assert_eq!(replies[0], b"+OK\r\n");
        assert_eq!(replies[4], b"+QUEUED\r\n");
        wait_for_blocked(&mut operator, 0);
    }
}

/// EXEC of a transaction that was queued before the pause waits, if it writes.
#[test]
fn a_transaction_that_writes_waits() {
    let servers = [Server::redis(), Some(Server::ferrite(&["server.workers=2"]))];
    for server in servers.iter().flatten() {
        let [mut operator, mut client] = [(); 2].map(|()| Replies::of(server));
        for line in ["MULTI", "SET a 1", "GET a"] {
            client.line(line);
        }
        operator.line(LONG);
        client.send(&[b"EXEC"]);
        wait_for_blocked(&mut operator, 1);
        assert_eq!(operator.line("EXISTS a"), b":0\r\n");
        operator.line("CLIENT UNPAUSE");
        assert_eq!(client.reply(), b"*2\r\n+OK\r\n$1\r\n1\r\n");
        // A pause that a transaction begins does not stop the transaction.
        for line in ["MULTI", "SET b 1", LONG, "SET b 2", "GET b"] {
            client.line(line);
        }
        assert_eq!(client.line("EXEC"), b"*4\r\n+OK\r\n+OK\r\n+OK\r\n$1\r\n2\r\n");
        client.send(&[b"SET", b"b", b"3"]);
        wait_for_blocked(&mut operator, 1);
        operator.line("CLIENT UNPAUSE");
        assert_eq!(client.reply(), b"+OK\r\n");
    }
}

/// The longer time and the stronger kind hold, whichever came first.
#[test]
fn two_pauses_add_up() {
    let servers = [Server::redis(), Some(Server::ferrite(&["server.workers=2"]))];
    for server in servers.iter().flatten() {
        for (first, second, reads_wait) in [
            ("CLIENT PAUSE 300 WRITE", "CLIENT PAUSE 1 WRITE", false),
            ("CLIENT PAUSE 1 WRITE", "CLIENT PAUSE 300 WRITE", false),
            ("CLIENT PAUSE 300 WRITE", "CLIENT PAUSE 1 ALL", true),
            ("CLIENT PAUSE 300 ALL", "CLIENT PAUSE 1 WRITE", true),
        ] {
            let mut clients = [(); 3].map(|()| Replies::of(server));
            clients.iter_mut().for_each(|client| drop(client.line("PING")));
            let [operator, reader, writer] = &mut clients;
            let since = Instant::now();
            // Both at once: the first may stop the second one's connection.
            operator.line("MULTI");
            operator.line(first);
            operator.line(second);
            assert_eq!(operator.line("EXEC"), b"*2\r\n+OK\r\n+OK\r\n");
            writer.send(&[b"SET", b"a", b"1"]);
            reader.send(&[b"EXISTS", b"nothing"]);
            if reads_wait {
                assert_eq!(reader.reply(), b":0\r\n");
                assert!(since.elapsed() >= Duration::from_millis(290), "{first}, {second}");
            } else {
                assert_eq!(reader.reply(), b":0\r\n");
            }
            assert_eq!(writer.reply(), b"+OK\r\n");
            assert!(since.elapsed() >= Duration::from_millis(290), "{first}, {second}");
        }
    }
}

/// All of them wait, CLIENT UNPAUSE too; a time that is past stops nobody.
#[test]
fn a_pause_of_all_stops_every_command() {
    let servers = [Server::redis(), Some(Server::ferrite(&["server.workers=2"]))];
    for server in servers.iter().flatten() {
        let mut clients: Vec<Replies> = (0..4).map(|_| Replies::of(server)).collect();
        clients.iter_mut().for_each(|client| drop(client.line("PING")));
        let since = Instant::now();
        assert_eq!(clients[0].line("CLIENT PAUSE 250"), b"+OK\r\n");
        let lines: [&[&[u8]]; 4] =
            [&[b"CLIENT", b"UNPAUSE"], &[b"PING"], &[b"EXISTS", b"k"], &[b"MULTI"]];
        for (client, words) in clients.iter_mut().zip(lines) {
            client.send(words);
        }
        let replies: Vec<Vec<u8>> = clients.iter_mut().map(Replies::reply).collect();
        assert_eq!(replies, [&b"+OK\r\n"[..], b"+PONG\r\n", b":0\r\n", b"+OK\r\n"]);
        assert!(since.elapsed() >= Duration::from_millis(240));
        for time in ["0", "9223372036854775807"] {
            let client = &mut clients[1];
            assert_eq!(client.line(&format!("CLIENT PAUSE {time}")), b"+OK\r\n");
            assert_eq!(client.line("SET a 1"), b"+OK\r\n");
        }
    }
}

/// Expired keys are absent and stay where they are, whoever meets them.
#[test]
fn nothing_expires_for_good_during_a_pause() {
    let servers = [Server::redis(), Some(Server::ferrite(&["server.workers=2"]))];
    for server in servers.iter().flatten() {
        let mut client = Replies::of(server);
        client.line("SET other 1");
        // Queued together, so that the pause comes before the keys expire.
        client.line("MULTI");
        (0..20).for_each(|n| drop(client.line(&format!("SET k{n} v PX 30"))));
        client.line(LONG);
        client.line("EXEC");
        let until = Instant::now() + PATIENCE;
        while client.line("GET k0") != b"$-1\r\n" {
            assert!(Instant::now() < until, "it does not expire");
        }
        // Longer than either server's cycle rests.
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(client.line("EXISTS k1 k2"), b":0\r\n");
        assert_eq!(client.line("TTL k3"), b":-2\r\n");
        assert_eq!(client.line("KEYS k*"), b"*0\r\n");
        assert_eq!(client.line("RANDOMKEY"), b"$5\r\nother\r\n");
        assert_eq!(client.line("DBSIZE"), b":21\r\n");
        client.line("CLIENT UNPAUSE");
        while client.line("DBSIZE") != b":1\r\n" {
            assert!(Instant::now() < until, "nothing is removed after the pause");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// When CLIENT PAUSE answers, no write of any connection on any worker is still to come.
#[test]
fn no_write_is_on_its_way_when_the_pause_answers() {
    let server = Server::ferrite(&[
        "server.workers=2",
        "storage.hybridlog_page_size=4KiB",
        "storage.hybridlog_segment_size=64KiB",
        "storage.hybridlog_mutable_size=8KiB",
        "storage.hybridlog_readonly_size=8KiB",
    ]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for t in 0..3 {
            let (server, stop) = (&server, &stop);
            scope.spawn(move || {
                let mut client = Replies::of(server);
                for n in 0u32.. {
                    if stop.load(Relaxed) {
                        break;
                    }
                    match (t, n % 4) {
                        (0, 0) => drop(client.line("FLUSHDB")),
                        (1, _) => {
                            client.line("MULTI");
                            client.line("INCR n");
                            client.line(&format!("SET cold{} {}", n % 40, "x".repeat(700)));
                            client.line("EXEC");
                        }
                        _ => drop(client.line("INCR n")),
                    }
                }
            });
        }
        let mut operator = Replies::of(&server);
        for _ in 0..40 {
            assert_eq!(operator.line(LONG), b"+OK\r\n");
            let state = |operator: &mut Replies| {
                (operator.text("GET n"), operator.text("DBSIZE"), operator.text("EXISTS cold1"))
            };
            let before = state(&mut operator);
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(before, state(&mut operator), "a write came after the answer");
            operator.line("CLIENT UNPAUSE");
            std::thread::sleep(Duration::from_millis(3));
        }
        stop.store(true, Relaxed);
    });
}

/// An ending server does not wait for the end of a pause.
#[test]
fn a_pause_does_not_hold_up_the_end() {
    let mut server = Server::ferrite(&["server.workers=2"]);
    let [mut operator, mut client] = [(); 2].map(|()| Replies::of(&server));
    operator.line("SET a 1");
    operator.line(LONG);
    client.send(&[b"SET", b"a", b"2"]);
    wait_for_blocked(&mut operator, 1);
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    let server = Server::ferrite_in(server.directory.clone(), &[]);
    assert_eq!(Replies::of(&server).line("GET a"), b"$1\r\n1\r\n", "it had no reply");
}
