//! docs/persistence.md, done as it is written: each configuration block is taken by a server, each session with
//! redis-cli answers what it says, and each block of commands runs, on other folders, at other times and on another
//! port; every backup and every restored directory that comes of it is started, and has what it should.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::{PATIENCE, Server, Wire};

/// Segments have their full size from the beginning: small ones are copied quickly.
const SETTINGS: &[&str] = &[
    "persistence.checkpoint_interval=3600",
    "storage.hybridlog_page_size=16KiB",
    "storage.hybridlog_segment_size=64KiB",
];

fn guide() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/persistence.md");
    fs::read_to_string(path).expect("the guide")
}

/// The blocks of a language, in order.
fn blocks(guide: &str, language: &str) -> Vec<String> {
    let begin = format!("```{language}\n");
    let blocks = guide.split(&begin).skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    now.as_millis().try_into().expect("it fits")
}

fn wait_for_checkpoint(wire: &mut Wire) {
    let until = Instant::now() + PATIENCE;
    loop {
        let info = wire.bulk("INFO persistence");
        let is_busy = ["checkpoint_in_progress:1", "aof_rewrite_in_progress:1"];
        if is_busy.iter().all(|field| !info.contains(field)) {
            return;
        }
        assert!(Instant::now() < until, "{info}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_guide_has_its_outline() {
    let guide = guide();
    let outline =
        ["Modes", "Configuration", "Operations", "Recovery", "Backup", "Monitoring", "Practices"];
    let places = outline.map(|name| guide.find(&format!("\n## {name}\n")).expect(name));
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn every_configuration_block_is_taken() {
    let guide = guide();
    let blocks = blocks(&guide, "toml");
    assert!(!blocks.is_empty());
    for block in blocks {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("ferrite.toml");
        fs::write(&file, &block).expect("written");
        let run = Command::new(env!("CARGO_BIN_EXE_ferrite"))
            .current_dir(folder.path())
            .arg("--config")
            .arg(&file)
            .arg("--test-config")
            .output()
            .expect("ferrite runs");
        assert!(run.status.success(), "{block}\n{}", String::from_utf8_lossy(&run.stderr));
    }
}

/// A reply as redis-cli shows it.
fn shown(wire: &mut Wire, line: &str) -> Vec<String> {
    let (kind, rest) = line.split_at(1);
    match kind {
        "+" => vec![rest.to_owned()],
        ":" => vec![format!("(integer) {rest}")],
        "-" => vec![format!("(error) {rest}")],
        "*" => {
            let n: usize = rest.parse().expect("a length");
            let element = |i| {
                let (line, _) = wire.receive_until(b"\r\n");
                let line = String::from_utf8(line).expect("text");
                let number = line.trim_end().strip_prefix(':').expect("a number").to_owned();
                format!("{}) (integer) {number}", i + 1)
            };
            (0..n).map(element).collect()
        }
        _ => panic!("{line}: a reply that the guide does not show"),
    }
}

#[test]
fn every_session_answers_what_the_guide_says() {
    const PROMPT: &str = "127.0.0.1:6379> ";
    let guide = guide();
    let sessions = blocks(&guide, "text").into_iter().filter(|block| block.starts_with(PROMPT));
    let server = Server::ferrite(SETTINGS);
    let mut wire = server.connect();
    assert_eq!(wire.line("SET a 1"), "+OK");
    let mut commands = 0;
    for session in sessions {
        for exchange in session.split(PROMPT).skip(1) {
            let mut lines = exchange.lines();
            let command = lines.next().expect("a command");
            // A person takes a moment.
            wait_for_checkpoint(&mut wire);
            let reply = wire.line(command);
            let reply = shown(&mut wire, &reply);
            assert_eq!(reply, lines.collect::<Vec<_>>(), "{command}");
            commands += 1;
        }
    }
    assert!(commands >= 4, "{commands}");
}

/// A folder with what the guide's commands need: `ferrite`, and a `redis-cli` for replies of one line.
fn programs(folder: &Path) {
    fs::create_dir(folder).expect("made");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ferrite"), folder.join("ferrite"))
        .expect("linked");
    let client = folder.join("redis-cli");
    let script = "#!/bin/bash\nexec 3<>/dev/tcp/127.0.0.1/$PORT\nprintf '%s\\r\\n' \"$*\" >&3\n\
                  IFS= read -r reply <&3\necho \"$reply\"\n[[ $reply != -* ]]\n";
    fs::write(&client, script).expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&client, mode).expect("it is ours");
}

/// What a start on a directory has.
fn check(data: &Path, key: &str, wanted: &str) {
    // `Server` starts on `data` in a folder of its own.
    let folder = Arc::new(tempfile::tempdir().expect("a directory"));
    fs::rename(data, folder.path().join("data")).expect("moved");
    let server = Server::ferrite_in(folder, SETTINGS);
    assert_eq!(server.connect().bulk(&format!("GET {key}")), wanted, "{}", data.display());
    assert!(!server.log().contains("AOF: "), "{}", server.log());
}

fn newest_part(data: &Path) -> PathBuf {
    let names = fs::read_dir(data).expect("a folder").map(|entry| entry.expect("an entry").path());
    let parts = names.filter(|path| path.to_string_lossy().contains("appendonly.0"));
    parts.max().expect("there is one")
}

#[test]
fn every_block_of_commands_runs() {
    // The folders get other names by `rename`, so all are on one file system.
    let root = tempfile::tempdir().expect("a directory");
    let at = |name: &str| root.path().join(name).display().to_string();
    programs(&root.path().join("bin"));
    let folder = Arc::new(tempfile::tempdir().expect("a directory"));
    let mut server = Server::ferrite_in(Arc::clone(&folder), SETTINGS);
    let data = folder.path().join("data");
    let mut wire = server.connect();
    assert_eq!(wire.line("SET first 1"), "+OK");
    assert_eq!(wire.line("SAVE"), "+OK");
    assert_eq!(wire.line("SET then 2"), "+OK");
    thread::sleep(Duration::from_millis(5));
    let time = unix_ms();
    thread::sleep(Duration::from_millis(5));
    assert_eq!(wire.line("SET then 3"), "+OK");
    assert_eq!(wire.line("AOF SYNC"), "+OK");
    let mut done = Vec::new();
    for (n, block) in blocks(&guide(), "bash").into_iter().enumerate() {
        let is_offline = block.contains("truncate");
        if is_offline {
            server.signal("TERM");
            assert_eq!(server.wait(), Some(0));
        } else {
            wait_for_checkpoint(&mut wire);
        }
        let backup = at(&format!("backup-{n}"));
        fs::create_dir(&backup).expect("made");
        let part = newest_part(&data);
        let length = fs::metadata(&part).expect("there").len();
        let time = if is_offline { unix_ms() } else { time };
        let script = block
            .replace("/var/lib/ferrite-new", &at("restored"))
            .replace("/var/lib/ferrite/appendonly.000012.aof", &part.display().to_string())
            .replace("/var/lib/ferrite", &data.display().to_string())
            .replace("/backup", &backup)
            .replace("2026-11-22T17:05:25.123Z", &time.to_string())
            .replace("123456", &length.to_string())
            .replace("6379", &server.address.port().to_string())
            .replace("sleep 5", "sleep 0.3");
        let run = Command::new("bash")
            .args(["-euc", &script])
            .env("PATH", format!("{}:{}", at("bin"), std::env::var("PATH").expect("a path")))
            .env("PORT", server.address.port().to_string())
            .output()
            .expect("bash runs");
        let told = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{script}\n{}{told}", String::from_utf8_lossy(&run.stdout));
        let backup = PathBuf::from(backup);
        if block.contains("ferrite restore") {
            check(&root.path().join("restored"), "then", "2");
            done.push("restore");
        } else if block.contains("ferrite backup") {
            check(&backup.join("ferrite/2026-11-22"), "then", "3");
            done.push("backup");
        } else if block.contains("tar ") {
            let folder = fs::read_dir(backup.join("ferrite")).expect("a folder");
            let archive = folder.map(|e| e.expect("an entry").path()).next().expect("an archive");
            let unpacked = backup.join("unpacked");
            fs::create_dir(&unpacked).expect("made");
            // It has the names from the root on.
            let deep = backup.strip_prefix("/").expect("absolute").components().count() + 2;
            let mut tar = Command::new("tar");
            tar.arg("-xzf").arg(&archive).arg("-C").arg(&unpacked);
            let tar = tar.arg(format!("--strip-components={deep}")).status();
            assert!(tar.expect("tar runs").success(), "{}", archive.display());
            check(&unpacked, "then", "3");
            done.push("script");
        } else if block.contains("PAUSE") {
            assert_eq!(wire.line("CLIENT UNPAUSE"), "+OK");
            check(&backup, "then", "3");
            done.push("cold");
        } else if block.contains("LASTSAVE") {
            check(&backup, "first", "1");
            done.push("hot");
        } else if is_offline {
            done.push("aof");
        }
    }
    assert_eq!(done, ["restore", "backup", "hot", "cold", "script", "aof"]);
    check(&data, "then", "3");
}
