//! Commands through the real binary: what a unit test of the handlers cannot show, and the bugs that
//! were found by comparing with redis-server.

mod replies;
mod support;

use replies::{Replies, Tree};
use std::time::Duration;
use support::Server;

#[test]
fn lastsave_moves_when_the_checkpoint_is_durable_and_a_restart_finds_it() {
    let server = Server::ferrite(&[]);
    let mut wire = Replies::of(&server);
    wire.line("SET a before");
    wire.line("SET b 1 PXAT 4000000000000");
    wire.line("APPEND c 12");
    wire.line("APPEND c 3");
    let before = wire.integer("LASTSAVE");
    // LASTSAVE counts seconds: a checkpoint in the next one shows.
    while server_seconds(&mut wire) <= before {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(wire.text("BGSAVE"), "+Background saving started\r\n");
    while wire.integer("LASTSAVE") == before {
        std::thread::sleep(Duration::from_millis(5));
    }
    let directory = server.directory.clone();
    drop(server);
    let server = Server::ferrite_in(directory, &[]);
    let mut wire = Replies::of(&server);
    assert_eq!(wire.text("GET a"), "$6\r\nbefore\r\n");
    assert_eq!(wire.integer("PEXPIRETIME b"), 4_000_000_000_000);
    assert_eq!(wire.text("OBJECT ENCODING c"), "$3\r\nraw\r\n");
    assert_eq!(wire.integer("DBSIZE"), 3);
}

fn server_seconds(wire: &mut Replies) -> i64 {
    let time = Tree::of(&wire.line("TIME"));
    String::from_utf8_lossy(time.elements()[0].bytes()).parse().unwrap()
}

#[test]
fn a_save_that_fails_is_told_and_lastsave_stays() {
    let server = Server::ferrite(&[]);
    let mut wire = Replies::of(&server);
    wire.line("SET a 1");
    let before = wire.integer("LASTSAVE");
    // Whoever removes this directory under a running server: nothing can be saved any more.
    std::fs::remove_dir_all(server.directory.path().join("data/checkpoints")).unwrap();
    while server_seconds(&mut wire) <= before {
        std::thread::sleep(Duration::from_millis(20));
    }
    let reply = wire.text("SAVE");
    assert!(reply.starts_with("-ERR checkpoint failed: "), "{reply}");
    assert_eq!(wire.integer("LASTSAVE"), before);
    assert!(wire.text("INFO persistence").contains("rdb_last_bgsave_status:err"));
    assert_eq!(wire.text("GET a"), "$1\r\n1\r\n");
}

#[test]
fn shutdown_saves_unless_told_not_to() {
    let mut server = Server::ferrite(&[]);
    let mut wire = Replies::of(&server);
    wire.line("SET a 1");
    wire.send(&[b"SHUTDOWN"]);
    assert_eq!(server.wait(), Some(0));
    let directory = server.directory.clone();
    let mut server = Server::ferrite_in(directory, &[]);
    let mut wire = Replies::of(&server);
    assert_eq!(wire.text("GET a"), "$1\r\n1\r\n");
    wire.line("SET a 2");
    wire.send(&[b"SHUTDOWN", b"NOSAVE"]);
    assert_eq!(server.wait(), Some(0));
    let directory = server.directory.clone();
    let server = Server::ferrite_in(directory, &[]);
    assert_eq!(Replies::of(&server).text("GET a"), "$1\r\n1\r\n");
}

/// KEYS, and SCAN with a large COUNT, once stood to hold up every other client of their worker.
#[test]
fn other_clients_are_served_while_one_walks_over_all_keys() {
    let server = Server::ferrite(&["server.workers=1"]);
    let [mut walker, mut other] = [&server, &server].map(Replies::of);
    for i in 0..200 {
        let words: Vec<String> = (0..100).map(|j| format!("key:{i}:{j}")).collect();
        let mut command: Vec<&[u8]> = vec![b"MSET"];
        words.iter().for_each(|word| command.extend([word.as_bytes(), b"v"]));
        assert_eq!(walker.call(&command), b"+OK\r\n");
    }
    // In one piece this walk would answer before the server reads the GET at all.
    walker.send(&[b"KEYS", b"nothing*"]);
    walker.send(&[b"SCAN", b"0", b"COUNT", b"1000000", b"MATCH", b"nothing*"]);
    assert_eq!(other.line("GET key:0:0"), b"$1\r\nv\r\n");
    assert_eq!(walker.reply(), b"*0\r\n");
    assert_eq!(walker.reply(), b"*2\r\n$1\r\n0\r\n*0\r\n");
    assert!(walker.line("KEYS *").starts_with(b"*20000\r\n"));
}

/// A sparse index, whose smallest size follows from the memory, once took thousands of calls of SCAN.
#[test]
fn scan_over_few_keys_ends_after_few_calls() {
    let server = Server::ferrite(&[]);
    let mut wire = Replies::of(&server);
    wire.line("SET a 1");
    let mut cursor = "0".to_string();
    for call in 1.. {
        let reply = Tree::of(&wire.line(&format!("SCAN {cursor} COUNT 1")));
        cursor = String::from_utf8_lossy(reply.elements()[0].bytes()).into();
        if cursor == "0" {
            break;
        }
        assert!(call < 100, "SCAN does not end");
    }
}
