//! How the real server ends: what was acknowledged is there after the next start, and a server
//! that cannot save stays until it is told twice.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use support::{Server, Wire};

/// Commands that one connection sends before it looks for replies.
const DEPTH: u64 = 200;

/// What a connection was told: how many of its replies came.
struct Told {
    writer: usize,
    replies: u64,
}

/// Writer `writer` sends numbered SETs and INCRs until the connection ends; `slow` reads nothing
/// before `go` says so.
fn write(mut wire: Wire, writer: usize, slow: Option<mpsc::Receiver<()>>) -> Told {
    let mut sender = Wire::new(wire.socket.try_clone().expect("a socket"));
    let sending = thread::spawn(move || {
        for batch in 0.. {
            let lines: String = (batch * DEPTH..(batch + 1) * DEPTH)
                .map(|n| format!("SET w{writer}:{n} {n}\r\nINCR count:{writer}\r\n"))
                .collect();
            if !sender.send(lines.as_bytes()) {
                return;
            }
        }
    });
    if let Some(go) = slow {
        // An error means that the other end is gone: read then, too.
        let _ = go.recv();
    }
    let mut replies = 0;
    while !wire.receive_until(b"\r\n").1 {
        replies += 1;
    }
    sending.join().expect("it ends with its connection");
    Told { writer, replies }
}

/// Pipelines are under way when SIGTERM comes, one of them of a client that reads nothing until
/// then: whatever replies arrive, their writes are there after a restart, and an INCR counts no
/// more than was sent.
#[test]
fn every_write_that_was_acknowledged_before_a_sigterm_is_there_after_a_restart() {
    const WRITERS: usize = 4;
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let settings = ["server.workers=2", "storage.hybridlog_page_size=64KiB"];
    let mut server = Server::ferrite_in(directory.clone(), &settings);
    for round in 0..20u64 {
        server.connect().line("FLUSHALL");
        let mut go = None;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let wire = server.connect();
                let slow = (writer == 0).then(|| {
                    let (start, wait) = mpsc::channel();
                    go = Some(start);
                    wait
                });
                thread::spawn(move || write(wire, writer, slow))
            })
            .collect();
        thread::sleep(Duration::from_millis(20 + 7 * round));
        server.signal("TERM");
        thread::sleep(Duration::from_millis(3 * round));
        drop(go.take());
        assert_eq!(server.wait(), Some(0), "round {round}");
        let told: Vec<Told> = writers.into_iter().map(|w| w.join().expect("it reads")).collect();
        server = Server::ferrite_in(directory.clone(), &settings);
        let mut wire = server.connect();
        for Told { writer, replies } in told {
            let (sets, increments) = (replies.div_ceil(2), replies / 2);
            let count = wire.line(&format!("INCR count:{writer}"));
            let count: u64 = count.trim_start_matches(':').parse().expect("a number");
            assert!(
                count > increments,
                "round {round}: {increments} acknowledged, {count} - 1 kept"
            );
            for first in (0..sets).step_by(1000) {
                let keys = first..sets.min(first + 1000);
                let gets: String = keys.clone().map(|n| format!("GET w{writer}:{n}\r\n")).collect();
                assert!(wire.send(gets.as_bytes()));
                let bulk = |n: u64| format!("${}\r\n{n}\r\n", n.to_string().len());
                let expected: String = keys.clone().map(bulk).collect();
                // What is missing would be `$-1`.
                let found = wire.receive(expected.len());
                assert!(found == expected.as_bytes(), "round {round} writer {writer}: {keys:?}");
            }
        }
    }
}

/// INFO persistence as a map.
fn persistence(wire: &mut Wire) -> BTreeMap<String, String> {
    let text = wire.bulk("INFO persistence");
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Waits until so many checkpoints have failed.
fn wait_for_failures(wire: &mut Wire, failures: u64) {
    let failed = |wire: &mut Wire| persistence(wire)["checkpoint_failed"].parse::<u64>();
    while failed(wire).expect("a number") < failures {
        thread::sleep(Duration::from_millis(5));
    }
}

/// A server without its data directory could not be ended by any number of signals: each one's
/// checkpoint failed before the next came, so none was a second one.
#[test]
fn a_server_that_cannot_save_goes_on_and_a_second_signal_ends_it() {
    let mut server = Server::ferrite(&["persistence.aof_enabled=false"]);
    let mut wire = server.connect();
    assert_eq!(wire.line("SET a 1"), "+OK");
    std::fs::remove_dir_all(server.directory.path().join("data")).expect("it is there");
    assert_eq!(wire.line("SHUTDOWN"), "-ERR Errors trying to SHUTDOWN. Check logs.");
    assert_eq!(wire.bulk("GET a"), "1");
    server.signal("TERM");
    wait_for_failures(&mut wire, 2);
    assert!(wire.line("SET a 2").starts_with("-MISCONF "), "what is written would not be kept");
    assert_eq!(wire.bulk("GET a"), "1", "it goes on");
    // It listens again, too, as soon as it has said that it failed.
    while std::net::TcpStream::connect(server.address).is_err() {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(server.connect().bulk("GET a"), "1");
    assert_eq!(persistence(&mut wire)["checkpoint_last_status"], "err");
    server.signal("INT");
    assert_eq!(server.wait(), Some(1));
}

#[test]
fn once_a_checkpoint_has_succeeded_a_signal_is_a_first_one_again() {
    let mut server = Server::ferrite(&["persistence.aof_enabled=false"]);
    let mut wire = server.connect();
    assert_eq!(wire.line("SET a 1"), "+OK");
    // With its image there, what cannot be done next is to sync the folder: it cannot be opened.
    assert_eq!(wire.line("SAVE"), "+OK");
    assert_eq!(wire.line("SET a 2"), "+OK");
    let (data, away) = (server.directory.path().join("data"), server.directory.path().join("away"));
    std::fs::rename(&data, &away).expect("it is there");
    server.signal("TERM");
    wait_for_failures(&mut wire, 1);
    assert!(wire.line("SET a 3").starts_with("-MISCONF "));
    std::fs::rename(&away, &data).expect("it is there");
    assert_eq!(wire.line("SAVE"), "+OK");
    assert_eq!(wire.line("SET a 4"), "+OK");
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    let again = Server::ferrite_in(server.directory.clone(), &["persistence.aof_enabled=false"]);
    assert_eq!(again.connect().bulk("GET a"), "4");
}

#[test]
fn nosave_ends_a_server_that_cannot_save() {
    let mut server = Server::ferrite(&["persistence.aof_enabled=false"]);
    let mut wire = server.connect();
    assert_eq!(wire.line("SET a 1"), "+OK");
    std::fs::remove_dir_all(server.directory.path().join("data")).expect("it is there");
    assert!(wire.send(b"SHUTDOWN NOSAVE\r\n"));
    assert!(wire.receive_until(b"never").1);
    assert_eq!(server.wait(), Some(0));
}

/// A terminal that is closed sends SIGHUP: an end without a checkpoint before.
#[test]
fn a_hang_up_does_nothing() {
    let mut server = Server::ferrite(&[]);
    let mut wire = server.connect();
    assert_eq!(wire.line("SET a 1"), "+OK");
    server.signal("HUP");
    server.signal("PIPE");
    assert_eq!(wire.line("SET a 2"), "+OK");
    server.signal("HUP");
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    let again = Server::ferrite_in(server.directory.clone(), &[]);
    assert_eq!(again.connect().bulk("GET a"), "2");
}

/// A pool that finds the server closing goes elsewhere at once, and needs not wait for the end of
/// a checkpoint to learn that it is not served.
#[test]
fn an_ending_server_refuses_new_clients_before_it_waits_for_the_others() {
    let mut server = Server::ferrite(&["server.workers=1"]);
    let mut wire = server.connect();
    assert_eq!(wire.line("SETRANGE a 1048575 x"), ":1048576");
    // Replies that nobody takes: the server waits for this client until its patience ends.
    assert!(wire.send(&b"GET a\r\n".repeat(50)));
    assert_eq!(wire.receive(4), b"$104");
    server.signal("TERM");
    while std::net::TcpStream::connect(server.address).is_ok() {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(!server.has_ended(), "it waits for its client");
    let (_, ended) = wire.receive_until(b"never");
    assert!(ended);
    assert_eq!(server.wait(), Some(0));
}
