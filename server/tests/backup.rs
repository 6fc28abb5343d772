//! `ferrite backup` and the hold on files for whoever copies them.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use support::Server;

const SETTINGS: &[&str] = &[
    "persistence.aof_enabled=true",
    "storage.hybridlog_page_size=4KiB",
    "storage.hybridlog_segment_size=16KiB",
];

fn data(server: &Server) -> PathBuf {
    server.directory.path().join("data")
}

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

fn backup(server: &Server, to: &Path) -> String {
    let port = server.address.port().to_string();
    let (status, text) = ferrite(&["backup", "--port", &port, name(to)]);
    assert_eq!(status, Some(0), "{text}");
    text
}

fn name(path: &Path) -> &str {
    path.to_str().expect("a name in Unicode")
}

fn new() -> (Arc<tempfile::TempDir>, PathBuf) {
    let folder = Arc::new(tempfile::tempdir().expect("a directory"));
    let data = folder.path().join("data");
    (folder, data)
}

fn kill(server: &mut Server) {
    server.signal("KILL");
    assert_eq!(server.wait(), None, "a signal ends it");
}

/// The files of a folder that have more than one name.
fn shared(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.filter(|e| e.as_ref().expect("an entry").metadata().expect("there").nlink() > 1).count()
}

#[test]
fn a_backup_under_load_holds_all_that_was_acknowledged_before_and_outlives_its_source() {
    let mut server = Server::ferrite(SETTINGS);
    let (acked, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let backups: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut wire = server.connect();
            for n in 1.. {
                assert_eq!(wire.line(&format!("SET key:{} {n}:{:0200}", n % 499, 0)), "+OK");
                acked.store(n, Ordering::SeqCst);
                if stop.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
        let backups = (0..3).map(|n| {
            while acked.load(Ordering::SeqCst) < 1000 * (n + 1) {
                std::thread::yield_now();
            }
            let (folder, to) = new();
            let least = acked.load(Ordering::SeqCst);
            let text = backup(&server, &to);
            assert!(text.contains("second name"), "{text}");
            assert!(shared(&to.join("checkpoints")) > 0, "what nobody writes is not copied");
            (folder, to, least)
        });
        let backups = backups.collect();
        stop.store(true, Ordering::SeqCst);
        backups
    });
    let most = acked.load(Ordering::SeqCst) + 1;
    // The source goes on, empties itself, lets go of everything, and is gone.
    let mut wire = server.connect();
    for command in ["CONFIG SET persistence.backup_hold 0", "FLUSHALL", "SAVE", "SET x 1", "SAVE"] {
        assert_eq!(wire.line(command), "+OK", "{command}");
    }
    kill(&mut server);
    fs::remove_dir_all(data(&server)).expect("removed");
    for (folder, to, least) in backups {
        let (status, text) = ferrite(&["aof", "check", name(&to)]);
        assert_eq!(status, Some(0), "{text}");
        let mut copy = Server::ferrite_in(folder, SETTINGS);
        let mut wire = copy.connect();
        let found: Vec<u64> = (0..499)
            .map(|slot| {
                let value = wire.bulk(&format!("GET key:{slot}"));
                value.split_once(':').expect("a number").0.parse().expect("a number")
            })
            .collect();
        let last = *found.iter().max().expect("there are some");
        assert!((least..=most).contains(&last), "{last} is not in {least}..={most}");
        for (slot, n) in found.iter().enumerate() {
            assert_eq!(*n, last - (last - slot as u64) % 499, "slot {slot} at {last}");
        }
        assert!(!copy.log().contains("WARN"), "{}", copy.log());
        kill(&mut copy);
    }
}

/// Its two checkpoints and what lies between them are in a backup: it can go back in time, too.
#[test]
fn a_backup_can_be_restored_to_an_instant() {
    let server = Server::ferrite(SETTINGS);
    let mut wire = server.connect();
    for command in ["SET a 1", "SAVE", "SET a 2"] {
        assert_eq!(wire.line(command), "+OK");
    }
    let (_kept, to) = new();
    // A millisecond that is over.
    let at = wire.line("PING").len() as u64 + unix_ms();
    while unix_ms() <= at {
        std::thread::yield_now();
    }
    assert_eq!(wire.line("SET a 3"), "+OK");
    backup(&server, &to);
    let (folder, restored) = new();
    let time = at.to_string();
    let words = ["restore", "--from", name(&to), "--to", name(&restored), "--time", &time];
    let (status, text) = ferrite(&words);
    assert_eq!(status, Some(0), "{text}");
    let copy = Server::ferrite_in(folder, SETTINGS);
    assert_eq!(copy.connect().bulk("GET a"), "2");
}

fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_millis().try_into().expect("it fits")
}

#[test]
fn a_stopped_server_is_backed_up_too_and_what_does_not_fit_is_told() {
    let mut server = Server::ferrite(SETTINGS);
    assert_eq!(server.connect().line("SET a 1"), "+OK");
    let (folder, to) = new();
    let from = data(&server);
    let (status, text) = ferrite(&["backup", "--data-dir", name(&from), name(&to)]);
    assert!(status == Some(1) && text.contains("give its --port"), "{text}");
    let port = server.address.port().to_string();
    let (status, text) = ferrite(&["backup", "--port", &port, name(&from.join("in"))]);
    assert!(status == Some(1) && text.contains("only read"), "{text}");
    kill(&mut server);
    let (status, text) = ferrite(&["backup", "--port", &port, name(&to)]);
    assert!(status == Some(1) && text.contains("no server answers at 127.0.0.1:"), "{text}");
    let (status, text) = ferrite(&["backup", "--data-dir", name(&from), name(&to)]);
    assert_eq!(status, Some(0), "{text}");
    let (status, text) = ferrite(&["backup", "--data-dir", name(&from), name(&to)]);
    assert!(status == Some(1) && text.contains("is not empty"), "{text}");
    let copy = Server::ferrite_in(folder, SETTINGS);
    assert_eq!(copy.connect().bulk("GET a"), "1");
}

/// Whatever was named when a copy began stays, with its parts of the append-only file, until the hold ends.
#[test]
fn files_of_replaced_checkpoints_stay_while_they_are_held() {
    let server = Server::ferrite(SETTINGS);
    let mut wire = server.connect();
    let files = || -> Vec<String> {
        let folders = [data(&server), data(&server).join("checkpoints")];
        let entries = folders.iter().flat_map(|f| fs::read_dir(f).expect("a folder"));
        let names = entries.map(|e| e.expect("an entry").file_name());
        let names = names.map(|name| name.into_string().expect("Unicode"));
        names.filter(|name| name.contains("index-") || name.ends_with(".aof")).collect()
    };
    let mut step = |first: u32| {
        for n in first..first + 200 {
            assert_eq!(wire.line(&format!("SET key:{n} {:0500}", 0)), "+OK");
        }
        assert_eq!(wire.line("SAVE"), "+OK");
    };
    step(0);
    let then = files();
    (1..5).for_each(|n| step(n * 1000));
    let now = files();
    assert!(then.iter().filter(|f| f.contains("index-")).count() > 0, "{then:?}");
    // The part before the first checkpoint served a start from nothing.
    let missing: Vec<_> = then.iter().filter(|name| !now.contains(name)).collect();
    assert!(missing.iter().all(|name| *name == "appendonly.000001.aof"), "{missing:?} are gone");
    let info = wire.bulk("INFO persistence");
    let held = info.lines().find_map(|line| line.strip_prefix("backup_held_bytes:"));
    assert!(held.expect("a field").trim().parse::<u64>().expect("a number") > 0, "{info}");
    assert_eq!(wire.line("CONFIG SET persistence.backup_hold 0"), "+OK");
    // The control plane lets go of them, without another checkpoint.
    let until = std::time::Instant::now() + support::PATIENCE;
    while files().len() >= now.len() {
        assert!(std::time::Instant::now() < until, "{:?}", files());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Under overwriting the files that are kept for copies would fill the disk: beyond their limit the oldest
/// go, and what is left is a whole backup.
#[test]
fn the_hold_gives_way_when_it_takes_more_than_a_backup() {
    let settings = [
        SETTINGS,
        &["persistence.checkpoint_interval=1", "persistence.backup_hold_size=100kb"],
        &["storage.hybridlog_mutable_size=64KiB", "storage.hybridlog_readonly_size=64KiB"],
    ];
    let mut server = Server::ferrite(&settings.concat());
    let mut wire = server.connect();
    let value = "v".repeat(4000);
    let field = |info: &str, name: &str| -> u64 {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.expect("a field").trim().parse().expect("a number")
    };
    let (mut most, until) = (0, std::time::Instant::now() + support::PATIENCE);
    let mut round = 0;
    while !server.log().contains("are let go of before backup_hold is over") {
        assert!(std::time::Instant::now() < until, "the hold does not give way: {most} bytes");
        for key in 0..100 {
            assert_eq!(wire.line(&format!("SET key{key} {value}{round}")), "+OK");
        }
        round += 1;
        most = most.max(field(&wire.bulk("INFO persistence"), "backup_held_bytes"));
    }
    assert!(most > 100_000, "only {most} bytes were held");
    // One is taken and what is too much let go of, again and again.
    loop {
        let info = wire.bulk("INFO persistence");
        let (held, whole) = (field(&info, "backup_held_bytes"), field(&info, "backup_bytes"));
        if held <= whole.max(100_000) {
            break;
        }
        assert!(std::time::Instant::now() < until, "{held} bytes are held beside {whole}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    kill(&mut server);
    let server = Server::ferrite_in(server.directory.clone(), SETTINGS);
    let mut wire = server.connect();
    for key in 0..100 {
        assert_eq!(
            wire.line(&format!("STRLEN key{key}")).trim_start_matches(':').parse(),
            Ok(4000 + (round - 1).to_string().len())
        );
    }
}
