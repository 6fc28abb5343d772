//! The tools of the real binary, as a shell calls them: exit status, standard output and error.

use ferrite_server::aof::{Effect, Entry, Header, LocalFiles, PartWriter, Start};
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn ferrite(directory: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferrite"))
        .current_dir(directory)
        .args(line.split(' '))
        .stdin(Stdio::null())
        .output()
        .expect("ferrite runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("it prints text")
}

/// `data/` with one part of `count` keys, one a second.
fn store(directory: &Path, count: u64) {
    let data = directory.join("data");
    fs::create_dir(&data).expect("made");
    let header = Header { number: 1, start: Start::Empty, before: None, time_ms: 1_000 };
    let mut writer =
        PartWriter::begin(LocalFiles, &data, "appendonly.aof", header, 0).expect("begun");
    for position in 1..=count {
        let effect = Effect::Put { key: b"key", value: b"value", expires_at_ms: None };
        let time_ms = position * 1_000;
        writer.push(&Entry { position, time_ms, database: 0, effect }).expect("taken");
    }
    writer.write().expect("written");
    writer.sync().expect("synced");
}

#[test]
fn the_exit_status_tells_what_was_found() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    store(directory, 9);
    let status = |line: &str| ferrite(directory, line).status.code();
    // Without a path it is the server's default directory.
    assert_eq!(status("aof check"), Some(0));
    assert_eq!(status("aof check data/appendonly.000001.aof"), Some(0));
    assert_eq!(status("aof check nowhere"), Some(1));
    assert_eq!(status("aof stat --aof-file other.aof data"), Some(1));
    for mistake in
        ["aof", "aof mend", "aof truncate", "aof cat --from yesterday", "--port 1 aof check"]
    {
        assert_eq!(status(mistake), Some(2), "{mistake}");
    }
    assert_eq!(status("aof truncate --to-offset 1 --to-time 1"), Some(2));
    let part = directory.join("data/appendonly.000001.aof");
    let whole = fs::read(&part).expect("read");
    fs::write(&part, &whole[..whole.len() - 1]).expect("written");
    let torn = ferrite(directory, "aof check data");
    assert_eq!(
        (torn.status.code(), text(&torn.stdout).ends_with("0 wrong, 1 torn\n")),
        (Some(3), true)
    );
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(&part, &damaged).expect("written");
    // All blocks were written at once, so the last sync that they know of was before them: this may
    // be a torn tail. The first line was on disk before.
    assert_eq!(status("aof check data"), Some(3));
    damaged[3] ^= 1;
    fs::write(&part, &damaged).expect("written");
    assert_eq!(status("aof check data"), Some(1));
}

#[test]
fn truncate_and_cat_work_on_what_a_server_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    store(directory, 9);
    let cut = ferrite(directory, "aof truncate --to-time 1970-01-01T00:00:04Z data");
    assert_eq!((cut.status.code(), text(&cut.stderr)), (Some(0), ""));
    assert!(
        text(&cut.stdout).contains("bytes are kept in data/quarantine/appendonly.000001.aof.cut-")
    );
    let cat = ferrite(directory, "aof cat --raw data");
    assert_eq!(text(&cat.stdout).matches("$3\r\nSET\r\n").count(), 4);
    let error = ferrite(directory, "aof truncate --to-time 0 data");
    assert_eq!(error.status.code(), Some(1));
    assert_eq!(
        text(&error.stderr),
        "ferrite: the append-only file begins at 1970-01-01T00:00:01.000Z, after \
         1970-01-01T00:00:00.000Z\n"
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    store(directory, 9_000);
    let head = Command::new("sh")
        .current_dir(directory)
        .env("FERRITE", env!("CARGO_BIN_EXE_ferrite"))
        .args(["-c", "{ \"$FERRITE\" aof cat; echo $? >&2; } | head -n 1"])
        .output()
        .expect("a shell");
    assert_eq!(text(&head.stdout).lines().count(), 1);
    assert_eq!(text(&head.stderr), "0\n");
}

#[test]
fn help_lists_the_tools() {
    let directory = tempfile::tempdir().expect("a directory");
    let help = ferrite(directory.path(), "--help");
    let text = text(&help.stdout);
    assert!(text.contains("Tools:") && text.contains("aof"), "{text}");
    let help = ferrite(directory.path(), "aof --help");
    let words = String::from_utf8(help.stdout).expect("text");
    assert!(
        ["check", "cat", "stat", "truncate"].iter().all(|tool| words.contains(tool)),
        "{words}"
    );
}
