//! `ferrite restore`: what a server has written, had again as of an instant.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use support::{Server, Wire};

const SETTINGS: &[&str] = &[
    "persistence.aof_enabled=true",
    "persistence.aof_sync=always",
    "storage.hybridlog_page_size=4KiB",
    "storage.hybridlog_segment_size=16KiB",
];

fn data(server: &Server) -> PathBuf {
    server.directory.path().join("data")
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    now.as_millis().try_into().expect("it fits")
}

fn ferrite(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferrite"))
        .args(words)
        .stdin(Stdio::null())
        .output()
        .expect("ferrite runs")
}

/// Restores into a new directory: exit status, standard output and error.
fn restore(from: &Path, to: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let from_to = ["restore", "--from", text(from), "--to", text(to)];
    let output = ferrite(&[&from_to, more].concat());
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a name in Unicode")
}

/// A new folder for a data directory, and the data directory in it.
fn new() -> (Arc<tempfile::TempDir>, PathBuf) {
    let folder = Arc::new(tempfile::tempdir().expect("a directory"));
    let data = folder.path().join("data");
    (folder, data)
}

fn kill(server: &mut Server) {
    server.signal("KILL");
    assert_eq!(server.wait(), None, "a signal ends it");
}

/// Everything in a folder: names, contents, inodes and times.
fn everything(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u64, SystemTime)> {
    use std::os::unix::fs::MetadataExt as _;
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let found = path.symlink_metadata().expect("there");
        if found.is_dir() {
            all.extend(everything(&path));
        } else {
            let bytes = fs::read(&path).unwrap_or_default();
            all.insert(path, (bytes, found.ino(), found.modified().expect("a time")));
        }
    }
    all
}

/// Writes numbers to `seq` and a key each; when each was sent and when it was acknowledged.
struct Load {
    written: Vec<(u64, u64)>,
}

impl Load {
    fn write(&mut self, wire: &mut Wire, count: usize) {
        for _ in 0..count {
            let n = self.written.len();
            let sent = unix_ms();
            assert_eq!(wire.line(&format!("SET seq {n}")), "+OK");
            self.written.push((sent, unix_ms()));
            assert_eq!(wire.line(&format!("SET key:{n} {n}")), "+OK");
        }
    }
    /// The number that `seq` must at least have at an instant, and the one that it must not have.
    fn bounds(&self, time_ms: u64) -> (i64, i64) {
        let acknowledged = self.written.iter().take_while(|(_, acked)| acked + 1 < time_ms).count();
        let sent = self.written.iter().take_while(|(sent, _)| *sent <= time_ms + 1).count();
        (acknowledged as i64 - 1, sent as i64)
    }
}

/// What a start on `data` has: the last number, and all keys of a prefix.
fn check(folder: &Arc<tempfile::TempDir>, (least, beyond): (i64, i64), what: &str) {
    let mut server = Server::ferrite_in(Arc::clone(folder), SETTINGS);
    let mut wire = server.connect();
    let log = server.log();
    let seq: i64 = match wire.line("EXISTS seq").as_str() {
        ":0" => -1,
        _ => wire.bulk("GET seq").parse().expect("a number"),
    };
    assert!((least..beyond).contains(&seq), "{what}: {seq} is not in {least}..{beyond}\n{log}");
    // The key is written right after the number: the last one may be missing.
    for n in 0..seq {
        assert_eq!(wire.bulk(&format!("GET key:{n}")), n.to_string(), "{what}: {seq}");
    }
    let keys: i64 = wire.line("DBSIZE")[1..].parse().expect("a number");
    assert!((seq.max(0)..=seq + 2).contains(&keys), "{what}: {keys} keys, seq {seq}");
    assert!(!log.contains("AOF: cut") && !log.contains("WARN"), "{what}: {log}");
    // It is a store of its own that goes on.
    assert_eq!(wire.line("SET more 1"), "+OK");
    assert_eq!(wire.line("SAVE"), "+OK");
    kill(&mut server);
}

#[test]
fn the_state_of_any_kept_instant_comes_back_from_a_running_or_a_stopped_server() {
    let mut server = Server::ferrite(SETTINGS);
    let mut wire = server.connect();
    let mut load = Load { written: Vec::new() };
    for _ in 0..4 {
        load.write(&mut wire, 60);
        assert_eq!(wire.line("SAVE"), "+OK");
    }
    load.write(&mut wire, 60);
    // Two checkpoints are kept: the fourth and the third, after 180 writes.
    let first = load.written[180].0;
    let last = load.written.last().expect("written").1;
    let instants: Vec<u64> = (1..=4).map(|i| first + (last - first) * i / 5).collect();
    for (i, &time_ms) in instants.iter().enumerate() {
        let (folder, to) = new();
        let (status, out, errors) = restore(&data(&server), &to, &["--time", &time_ms.to_string()]);
        assert_eq!(status, Some(0), "{out}{errors}");
        assert!(errors.contains("a server (process"), "{errors}");
        assert!(out.contains("all of it matches its checksums"), "{out}");
        check(&folder, load.bounds(time_ms), &format!("live, instant {i}"));
    }
    // All there is, of a running server and of one that was killed.
    let all = (299, 300);
    let (folder, to) = new();
    assert_eq!(restore(&data(&server), &to, &[]).0, Some(0));
    check(&folder, all, "live, everything");
    kill(&mut server);
    let before = everything(&data(&server));
    for more in [&[][..], &["--copy"]] {
        let (folder, to) = new();
        let (status, out, errors) = restore(&data(&server), &to, more);
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{out}");
        assert_eq!(out.contains("second name"), more.is_empty(), "{out}");
        // A second name is as good as a copy: what goes on in the new store changes nothing here.
        check(&folder, all, "stopped, everything");
    }
    let (folder, to) = new();
    let time = instants[2].to_string();
    assert_eq!(restore(&data(&server), &to, &["--time", &time]).0, Some(0));
    check(&folder, load.bounds(instants[2]), "stopped");
    assert!(before == everything(&data(&server)), "the source was changed");
}

#[test]
fn a_flat_copy_is_restored_too_and_never_shares_its_files() {
    let mut server = Server::ferrite(SETTINGS);
    let mut wire = server.connect();
    let mut load = Load { written: Vec::new() };
    load.write(&mut wire, 100);
    assert_eq!(wire.line("SAVE"), "+OK");
    load.write(&mut wire, 50);
    kill(&mut server);
    let copy = tempfile::tempdir().expect("a directory");
    let script = "cp \"$1\"/*.ckpt \"$2\"/ && cp \"$1\"/*.aof \"$2\"/";
    let from = data(&server);
    let words = ["-c", script, "sh", text(&from), text(copy.path())];
    assert!(Command::new("sh").args(words).status().expect("sh runs").success());
    let before = everything(copy.path());
    let (folder, to) = new();
    let (status, out, errors) = restore(copy.path(), &to, &[]);
    assert_eq!((status, errors.as_str()), (Some(0), ""), "{out}");
    assert!(!out.contains("second name"), "whoever copies again writes into these files: {out}");
    check(&folder, (149, 150), "a copy");
    assert!(before == everything(copy.path()));
}

#[test]
fn an_instant_that_is_not_kept_is_refused_with_those_that_are() {
    let mut server = Server::ferrite(SETTINGS);
    let mut wire = server.connect();
    let mut load = Load { written: Vec::new() };
    for _ in 0..3 {
        load.write(&mut wire, 20);
        assert_eq!(wire.line("SAVE"), "+OK");
    }
    load.write(&mut wire, 20);
    kill(&mut server);
    let (folder, to) = new();
    let beyond = unix_ms() + 1000;
    let too_early = load.written[0].0 - 1;
    for time_ms in [too_early, beyond, 0] {
        let (status, out, errors) = restore(&data(&server), &to, &["--time", &time_ms.to_string()]);
        assert_eq!((status, out.as_str()), (Some(1), ""), "{errors}");
        assert!(errors.contains("is not among the times that"), "{errors}");
        // The range can be used as it is printed.
        let (from, until) = errors
            .split_once("keeps: ")
            .expect("the range")
            .1
            .split_once(" to ")
            .expect("two times");
        let until = until.split(';').next().expect("a time").trim();
        for time in [from, until] {
            let (folder, to) = new();
            let (status, _, errors) = restore(&data(&server), &to, &["--time", time]);
            assert_eq!(status, Some(0), "{errors}");
            assert!(folder.path().join("data").exists());
        }
        assert!(fs::read_dir(folder.path()).expect("a folder").next().is_none(), "nothing is left");
    }
    let mistake = restore(&data(&server), &to, &["--time", "yesterday"]);
    assert_eq!(mistake.0, Some(2));
    // Where something is already, and inside what is only read.
    fs::create_dir(&to).expect("made");
    fs::write(to.join("x"), "x").expect("written");
    let (status, _, errors) = restore(&data(&server), &to, &[]);
    assert!(status == Some(1) && errors.contains("is not empty"), "{errors}");
    let (status, _, errors) = restore(&data(&server), &data(&server).join("new"), &[]);
    assert!(status == Some(1) && errors.contains("only read"), "{errors}");
    let (status, _, errors) = restore(folder.path(), &folder.path().with_extension("new"), &[]);
    assert!(status == Some(1) && errors.contains("neither a checkpoint"), "{errors}");
}

/// The newest checkpoint is damaged: the one before and more of the append-only file give the same.
#[test]
fn a_damaged_checkpoint_is_left_for_the_one_before() {
    let mut server = Server::ferrite(SETTINGS);
    let mut wire = server.connect();
    let mut load = Load { written: Vec::new() };
    load.write(&mut wire, 50);
    assert_eq!(wire.line("SAVE"), "+OK");
    load.write(&mut wire, 2000);
    assert_eq!(wire.line("SAVE"), "+OK");
    load.write(&mut wire, 50);
    kill(&mut server);
    let checkpoints = data(&server).join("checkpoints");
    // The newest segment: only the newer of the two checkpoints needs it.
    let number = |path: &Path| -> Option<u64> {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix("ferrite.log-")?.strip_suffix(".ckpt")?.parse().ok()
    };
    let files = fs::read_dir(&checkpoints).expect("a folder");
    let newest = files
        .map(|e| e.expect("an entry").path())
        .filter(|p| number(p).is_some())
        .max_by_key(|p| number(p))
        .expect("there is one");
    let mut bytes = fs::read(&newest).expect("read");
    bytes[100] ^= 1;
    fs::write(&newest, &bytes).expect("written");
    let (folder, to) = new();
    let (status, out, errors) = restore(&data(&server), &to, &[]);
    assert_eq!(status, Some(0), "{out}{errors}");
    assert!(errors.contains("does not match its checksum") && errors.contains("an older one"));
    check(&folder, (2099, 2100), "the older checkpoint");
}

#[test]
fn damage_in_the_append_only_file_refuses_and_names_what_can_be_had() {
    let mut server = Server::ferrite(SETTINGS);
    let mut wire = server.connect();
    let mut load = Load { written: Vec::new() };
    load.write(&mut wire, 200);
    kill(&mut server);
    let part = data(&server).join("appendonly.aof");
    let mut bytes = fs::read(&part).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&part, &bytes).expect("written");
    let (folder, to) = new();
    let (status, _, errors) = restore(&data(&server), &to, &[]);
    assert_eq!(status, Some(1), "{errors}");
    assert!(errors.contains("damaged at offset"), "{errors}");
    let until = errors.rsplit_once(" to ").expect("a range").1.trim();
    assert!(fs::read_dir(folder.path()).expect("a folder").next().is_none(), "nothing is left");
    let (status, out, errors) = restore(&data(&server), &to, &["--time", until]);
    assert_eq!(status, Some(0), "{out}{errors}");
    check(&folder, (50, 150), "up to the damage");
}

const CHECKPOINTS_ALONE: &[&str] = &["persistence.aof_enabled=false"];

/// Links at the top of a data directory lead to `checkpoints/` alone: whatever was done with that, they
/// bring nothing back, and are right again after the next change.
#[test]
fn links_never_bring_back_what_was_moved_aside() {
    let outside = tempfile::tempdir().expect("a directory");
    for inside in [true, false] {
        let mut server = Server::ferrite(CHECKPOINTS_ALONE);
        assert_eq!(server.connect().line("SET a 1"), "+OK");
        assert_eq!(server.connect().line("SAVE"), "+OK");
        kill(&mut server);
        let there = data(&server).join("checkpoints");
        let away = if inside { data(&server) } else { outside.path().to_owned() };
        let away = away.join("checkpoints.bad");
        assert!(data(&server).join("ferrite.ckpt").is_symlink());
        fs::rename(&there, &away).expect("moved");
        let mut server = Server::ferrite_in(Arc::clone(&server.directory), CHECKPOINTS_ALONE);
        let mut wire = server.connect();
        assert_eq!(wire.line("DBSIZE"), ":0", "{}", server.log());
        assert_eq!(wire.line("SET b 2"), "+OK");
        assert_eq!(wire.line("SAVE"), "+OK");
        kill(&mut server);
        for entry in fs::read_dir(data(&server)).expect("a folder") {
            let path = entry.expect("an entry").path();
            assert!(!path.is_symlink() || path.exists(), "{} leads nowhere", path.display());
        }
        // What was moved away is as it was, and is the store again when it is put back.
        fs::remove_dir_all(&there).expect("removed");
        fs::rename(&away, &there).expect("moved back");
        let mut server = Server::ferrite_in(Arc::clone(&server.directory), CHECKPOINTS_ALONE);
        let mut wire = server.connect();
        assert_eq!((wire.line("DBSIZE"), wire.bulk("GET a")), (":1".into(), "1".into()));
        kill(&mut server);
    }
}

/// A copy that is put beside checkpoints that were moved aside is neither mixed with them nor left out.
#[test]
fn a_copy_beside_checkpoints_moved_aside_is_refused_with_what_to_do() {
    let mut server = Server::ferrite(CHECKPOINTS_ALONE);
    assert_eq!(server.connect().line("SET a 1"), "+OK");
    assert_eq!(server.connect().line("SAVE"), "+OK");
    kill(&mut server);
    let (data, there) = (data(&server), data(&server).join("checkpoints"));
    let away = data.join("checkpoints.bad");
    fs::rename(&there, &away).expect("moved");
    for entry in fs::read_dir(&away).expect("a folder") {
        let from = entry.expect("an entry").path();
        let to = data.join(from.file_name().expect("a name"));
        fs::remove_file(&to).unwrap_or_default();
        fs::copy(&from, &to).expect("copied");
    }
    let mut refused = Server::ferrite_in(Arc::clone(&server.directory), CHECKPOINTS_ALONE);
    assert_eq!(refused.wait(), Some(1), "{}", refused.log());
    refused.wait_for_log("put the copy into a directory without checkpoints");
    // Which is what the message says.
    let (folder, to) = new();
    let (status, out, errors) = restore(&data, &to, &[]);
    assert_eq!((status, out.as_str()), (Some(1), ""), "{errors}");
    fs::rename(&away, folder.path().join("aside")).expect("moved");
    let copied = Server::ferrite_in(Arc::clone(&server.directory), CHECKPOINTS_ALONE);
    assert_eq!(copied.connect().bulk("GET a"), "1");
}

/// The base of a rewrite is passed by who comes from a checkpoint, and is where who has none begins.
#[test]
fn a_rewrite_in_between_changes_nothing_that_can_be_had_from_checkpoints() {
    for with_checkpoints in [true, false] {
        let never = [SETTINGS, &["persistence.checkpoint_enabled=false"]].concat();
        let mut server = Server::ferrite(&never);
        let mut wire = server.connect();
        let mut load = Load { written: Vec::new() };
        load.write(&mut wire, 60);
        if with_checkpoints {
            assert_eq!(wire.line("SAVE"), "+OK");
        }
        load.write(&mut wire, 60);
        let info = "INFO persistence";
        assert!(wire.line("BGREWRITEAOF").starts_with("+Background append only"));
        let until = std::time::Instant::now() + support::PATIENCE;
        while !wire.bulk(info).contains("\naof_rewrites:1\r") {
            assert!(std::time::Instant::now() < until, "{}", server.log());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        load.write(&mut wire, 60);
        kill(&mut server);
        for (n, is_kept) in [(90, with_checkpoints), (150, true)] {
            let time_ms = load.written[n].0;
            let (folder, to) = new();
            let (status, out, errors) =
                restore(&data(&server), &to, &["--time", &time_ms.to_string()]);
            assert_eq!(status, Some(if is_kept { 0 } else { 1 }), "{n}: {out}{errors}");
            if is_kept {
                check(&folder, load.bounds(time_ms), &format!("write {n}"));
            } else {
                assert!(errors.contains("is not among the times"), "{errors}");
            }
        }
        let (all, to_all) = new();
        assert_eq!(restore(&data(&server), &to_all, &[]).0, Some(0));
        check(&all, (179, 180), "everything");
    }
}
