//! The tools judge a data directory as a start does: what that accepts they copy, with all of its data, and
//! what it refuses they refuse.

mod support;

use ferrite_server::aof::{Before, Header, Start};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use support::{PATIENCE, Server};

const ALWAYS: &[&str] = &["persistence.aof_enabled=true", "persistence.aof_sync=always"];

/// Exit status and all that it printed.
fn ferrite(words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ferrite"))
        .args(words)
        .stdin(Stdio::null())
        .output()
        .expect("ferrite runs");
    let bytes = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(bytes).expect("text"))
}

fn name(path: &Path) -> &str {
    path.to_str().expect("a name in Unicode")
}

fn data(server: &Server) -> PathBuf {
    server.directory.path().join("data")
}

fn newest_part(server: &Server) -> PathBuf {
    let names = fs::read_dir(data(server)).expect("a folder");
    let names = names.map(|entry| entry.expect("an entry").path());
    let is_part = |path: &PathBuf| {
        path.extension().is_some_and(|e| e == "aof") && !path.ends_with("appendonly.aof")
    };
    names.filter(is_part).max().expect("there is one")
}

fn run(server: &Server, commands: &[&str]) {
    let mut wire = server.connect();
    for command in commands {
        let answer = wire.line(command);
        assert!(answer.starts_with('+'), "{command}: {answer}");
    }
}

fn kill(server: &mut Server) {
    server.signal("KILL");
    assert_eq!(server.wait(), None, "a signal ends it");
}

/// What `ferrite backup` and `ferrite restore` make of the directory of a server that has ended: both the
/// same; a new server on each must have `keys`. `None` is that they refuse.
fn judge(server: &Server, keys: Option<&[&str]>) {
    let folder = tempfile::tempdir().expect("a directory");
    let from = data(server);
    for tool in ["backup", "restore"] {
        let new = Arc::new(tempfile::tempdir_in(&folder).expect("a directory"));
        let to = new.path().join("data");
        let (from, to) = (name(&from), name(&to));
        let words = match tool {
            "backup" => vec![tool, "--data-dir", from, to],
            _ => vec![tool, "--from", from, "--to", to],
        };
        let (status, text) = ferrite(&words);
        let Some(keys) = keys else {
            assert!(
                status == Some(1) && text.contains("goes on from checkpoint"),
                "{tool}: {text}"
            );
            continue;
        };
        assert_eq!(status, Some(0), "{tool}: {text}");
        holds(&Server::ferrite_in(new, ALWAYS), keys, tool);
    }
}

fn holds(server: &Server, keys: &[&str], what: &str) {
    let mut wire = server.connect();
    for key in keys {
        assert_eq!(wire.line(&format!("EXISTS {key}")), ":1", "{what}: {key}");
    }
    assert_eq!(wire.line("DBSIZE"), format!(":{}", keys.len()), "{what}");
}

/// A failure of the file was healed by a new part that goes on from a checkpoint only, and a crash came before
/// that was complete: nothing was acknowledged that needs it.
#[test]
fn a_part_for_a_checkpoint_that_never_came_is_left_out() {
    let mut server = Server::ferrite(ALWAYS);
    run(&server, &["SET a 1", "SAVE", "SET b 2"]);
    kill(&mut server);
    let newest = newest_part(&server);
    let text = name(newest.file_name().expect("a name").as_ref());
    let digits = text.trim_start_matches("appendonly.").trim_end_matches(".aof");
    let number: u64 = digits.parse().expect("a number");
    let length = fs::metadata(&newest).expect("there").len();
    let header = Header {
        number: number + 1,
        start: Start::Only(1_000),
        before: Some(Before { number, length }),
        time_ms: u64::from(u32::MAX) * 1000,
    };
    let next = data(&server).join(format!("appendonly.{:06}.aof", number + 1));
    fs::write(next, header.render()).expect("written");
    judge(&server, Some(&["a", "b"]));
    holds(&Server::ferrite_in(Arc::clone(&server.directory), ALWAYS), &["a", "b"], "the start");
}

/// A younger base does not hide that a part is missing behind the newest checkpoint.
#[test]
fn a_missing_part_before_a_rewrite_is_told() {
    let mut server = Server::ferrite(ALWAYS);
    run(&server, &["SET a 1", "SAVE", "SET b 2"]);
    let missing = newest_part(&server);
    let mut wire = server.connect();
    assert!(wire.line("BGREWRITEAOF").starts_with('+'));
    let until = Instant::now() + PATIENCE;
    while !wire.bulk("INFO persistence").contains("aof_rewrites:1\r\n") {
        assert!(Instant::now() < until, "it rewrites for ever");
        thread::sleep(Duration::from_millis(10));
    }
    run(&server, &["SET c 3"]);
    kill(&mut server);
    fs::remove_file(missing).expect("it is there");
    let (status, text) = ferrite(&["check", name(&data(&server))]);
    assert!(status == Some(1) && text.contains("put the part"), "{text}");
    let folder = tempfile::tempdir().expect("a directory");
    let (from, to) = (data(&server), folder.path().join("data"));
    let (status, text) = ferrite(&["backup", "--data-dir", name(&from), name(&to)]);
    assert!(status == Some(1) && text.contains("goes on from checkpoint"), "{text}");
    // What can be had is the base: asked for without a time, a restore gives all that is there.
    let mut again = Server::ferrite_in(Arc::clone(&server.directory), ALWAYS);
    assert_eq!(again.wait(), Some(1), "{}", again.log());
}

/// A while without the append-only file leaves older parts behind.
#[test]
fn older_parts_from_before_a_while_without_them_are_no_obstacle() {
    let mut server = Server::ferrite(ALWAYS);
    run(&server, &["SET a 1", "SAVE", "SET b 2", "SAVE"]);
    kill(&mut server);
    let settings = &["persistence.aof_enabled=false"];
    let mut server = Server::ferrite_in(Arc::clone(&server.directory), settings);
    run(&server, &["SET c 3", "SAVE", "SET d 4", "SAVE"]);
    let folder = Arc::new(tempfile::tempdir().expect("a directory"));
    let (port, to) = (server.address.port().to_string(), folder.path().join("data"));
    let (status, text) = ferrite(&["backup", "--port", &port, name(&to)]);
    assert_eq!(status, Some(0), "while it runs: {text}");
    holds(&Server::ferrite_in(folder, ALWAYS), &["a", "b", "c", "d"], "of a running server");
    kill(&mut server);
    judge(&server, Some(&["a", "b", "c", "d"]));
}

/// And where a part is missing between two, all refuse.
#[test]
fn a_missing_part_before_others_is_refused_by_all() {
    let mut server = Server::ferrite(ALWAYS);
    run(&server, &["SET a 1", "SAVE", "SET b 2"]);
    let missing = newest_part(&server);
    kill(&mut server);
    let mut server = Server::ferrite_in(Arc::clone(&server.directory), ALWAYS);
    run(&server, &["SET c 3"]);
    kill(&mut server);
    fs::remove_file(missing).expect("it is there");
    judge(&server, None);
}

/// Through a link, too, nothing is made in a directory that is only read.
#[test]
fn a_link_into_the_source_is_seen_through() {
    let mut server = Server::ferrite(ALWAYS);
    run(&server, &["SET a 1", "SAVE"]);
    kill(&mut server);
    let link = server.directory.path().join("link");
    std::os::unix::fs::symlink(data(&server), &link).expect("linked");
    let (from, to) = (data(&server), link.join("new/one"));
    for words in [
        ["restore", "--from", name(&from), "--to", name(&to)].as_slice(),
        &["backup", "--data-dir", name(&from), name(&to)],
    ] {
        let (status, text) = ferrite(words);
        assert!(status == Some(1) && text.contains("only read"), "{text}");
    }
    assert!(!data(&server).join("new").exists());
}
