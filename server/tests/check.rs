//! `ferrite check`, `init` and `doctor` on the real binary and what a real server left.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use support::Server;

const SETTINGS: &[&str] = &[
    "persistence.aof_enabled=true",
    "persistence.aof_sync=always",
    "persistence.backup_hold=0",
    "storage.hybridlog_page_size=4KiB",
    "storage.hybridlog_segment_size=16KiB",
];

/// Exit status, standard output and error.
fn ferrite(directory: &Path, words: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ferrite"))
        .current_dir(directory)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .expect("ferrite runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn data(server: &Server) -> PathBuf {
    server.directory.path().join("data")
}

/// Two checkpoints over several segments and what came after them.
fn left_by_a_server() -> Server {
    let mut server = Server::ferrite(SETTINGS);
    let mut wire = server.connect();
    for save in 0..2 {
        for n in 0..300 {
            assert_eq!(wire.line(&format!("SET key:{save}:{n} {:0300}", n)), "+OK");
        }
        assert_eq!(wire.line("SAVE"), "+OK");
    }
    assert_eq!(wire.line("SET last 1"), "+OK");
    // While it runs all is well, too.
    let (status, out, errors) = ferrite(server.directory.path(), &["check"]);
    assert!(status == Some(0) || status == Some(3), "{out}{errors}");
    assert!(errors.contains("a server (process "), "{errors}");
    server.signal("KILL");
    assert_eq!(server.wait(), None, "a signal ends it");
    server
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path());
    let mut files: Vec<_> =
        entries.filter(|p| p.symlink_metadata().is_ok_and(|m| m.is_file())).collect();
    files.sort();
    files
}

#[test]
fn whatever_byte_is_changed_or_file_taken_away_it_is_told_with_the_file() {
    let server = left_by_a_server();
    let at = server.directory.path();
    let check = || ferrite(at, &["check"]);
    let (status, out, errors) = check();
    assert_eq!((status, errors.as_str()), (Some(0), ""), "{out}");
    for text in ["2 checkpoints", "600 keys", "300 keys", "2 parts", "data: all of it matches"] {
        assert!(out.contains(text), "no {text} in {out}");
    }
    let checkpoints = files(&data(&server).join("checkpoints"));
    let parts =
        files(&data(&server)).into_iter().filter(|p| p.extension().is_some_and(|e| e == "aof"));
    let parts: Vec<_> = parts.filter(|p| !p.ends_with("appendonly.aof")).collect();
    assert!(checkpoints.len() > 8 && parts.len() == 2);
    for path in checkpoints.iter().chain(&parts) {
        let name = path.file_name().expect("a name").to_str().expect("Unicode");
        // What is not told of by a checksum of its own is told with the file that it belongs to.
        let family = name.replace(".side", "");
        let whole = fs::read(path).expect("read");
        for at in [0, 2, 40] {
            if name.contains("side") && at > 2 {
                continue;
            }
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(path, &bytes).expect("written");
            let (status, out, errors) = check();
            assert_eq!(status, Some(1), "{name} byte {at}: {out}{errors}");
            assert!(errors.contains(&family), "{name} byte {at}: {errors}");
        }
        // Of a part that is missing there may have been none: a start does without the older one.
        let aside = path.with_extension("aside");
        fs::rename(path, &aside).expect("moved");
        let (status, out, errors) = check();
        if checkpoints.contains(path) {
            assert_eq!(status, Some(1), "without {name}: {out}{errors}");
        }
        fs::rename(&aside, path).expect("moved back");
        fs::write(path, &whole).expect("written");
    }
    assert_eq!(check().0, Some(0), "all is as it was");
    // A torn tail is no fault: a start cuts it off.
    let newest = &parts[1];
    let whole = fs::read(newest).expect("read");
    fs::write(newest, &whole[..whole.len() - 3]).expect("written");
    let (status, out, _) = check();
    assert!(status == Some(3) && out.contains("torn tail"), "{out}");
    assert_eq!(ferrite(at, &["check", "--aof-file", "x"]).0, Some(2));
    let empty = tempfile::tempdir().expect("a directory");
    let (status, _, errors) = ferrite(at, &["check", empty.path().to_str().expect("Unicode")]);
    assert!(status == Some(1) && errors.contains("there is neither a checkpoint"), "{errors}");
}

/// What the refusal of a damaged image advises works, and so does what `init` wrote.
#[test]
fn a_server_starts_with_what_init_wrote_and_doctor_reads_it() {
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let at = directory.path();
    let (status, out, errors) = ferrite(at, &["init"]);
    assert_eq!((status, errors.as_str()), (Some(0), ""), "{out}");
    let (status, _, errors) = ferrite(at, &["init"]);
    assert!(status == Some(1) && errors.contains("is there already"), "{errors}");
    let (status, out, _) = ferrite(at, &["--test-config"]);
    assert_eq!(status, Some(0), "{out}");
    // Some machine may be too small for the defaults: then a line says so.
    let (status, out, errors) = ferrite(at, &["doctor"]);
    assert_eq!(errors, "");
    assert_eq!(status == Some(1), out.lines().any(|line| line.starts_with("bad ")), "{out}");
    assert!(out.contains("ferrite.toml"), "{out}");
    // The server of the tests finds the file in its working directory.
    let server = Server::ferrite_in(Arc::clone(&directory), &[]);
    assert_eq!(server.connect().line("SET a 1"), "+OK");
    assert!(
        server.log().contains("ferrite.toml, found in the working directory"),
        "{}",
        server.log()
    );
    assert!(data(&server).join("checkpoints").exists());
}
