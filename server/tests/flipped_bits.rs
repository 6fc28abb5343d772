//! One bit flipped anywhere in any file of a data directory: a start refuses, or what it serves is
//! exactly what was written. Nothing wrong is served, nothing is lost in silence, and nothing panics.
//!
//! The directory is a real server's, which has ended well: two checkpoints, and an append-only file of several
//! parts, with a base in one. Each try starts on a copy of it as a server does (store, then append-only file),
//! and reads every key.
//!
//! `FLIPS` is how many places are tried (150), `FERRITE_TEST_SEED` which ones.

mod support;

use ferrite_hybridlog::{Config, Database, IoChoice, Store};
use ferrite_server::journal;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use support::{Server, Wire, command};

const SETTINGS: &[&str] = &[
    "persistence.aof_sync=always",
    "persistence.checkpoint_interval=3600",
    "storage.hybridlog_page_size=4KiB",
    "storage.hybridlog_segment_size=16KiB",
];
const DATABASES: u8 = 3;

/// What a directory holds.
type Contents = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

/// A file as it was: its path in the directory, and what it is.
enum Original {
    Folder,
    Link(PathBuf),
    /// Bytes, and the file of which this is a second name.
    File(Vec<u8>, Option<PathBuf>),
}

/// A directory in memory.
struct Made {
    files: BTreeMap<PathBuf, Original>,
    contents: Contents,
}

impl Made {
    fn new() -> Self {
        let mut server = Server::ferrite(SETTINGS);
        let mut wire = server.connect();
        let mut contents = Contents::new();
        for phase in 0..5u32 {
            for database in 0..DATABASES {
                assert_eq!(wire.line(&format!("SELECT {database}")), "+OK");
                for n in (0..30).filter(|n| n % 5 >= phase || n % 3 == 0) {
                    let key = format!("key:{n}").into_bytes();
                    let value = vec![b'a' + (n + phase) as u8 % 26; (n * 13 % 300) as usize];
                    set(&mut wire, &key, &value);
                    contents.insert((database, key), value);
                }
                let gone = format!("key:{phase}");
                assert_eq!(wire.line(&format!("DEL {gone}")), ":1");
                contents.remove(&(database, gone.into_bytes()));
            }
            match phase {
                0 | 3 => assert_eq!(wire.line("SAVE"), "+OK"),
                1 => rewrite(&mut wire),
                _ => {}
            }
        }
        assert!(wire.send(b"SHUTDOWN NOSAVE\r\n"));
        assert_eq!(server.wait(), Some(0));
        let mut files = BTreeMap::new();
        read(&server.directory.path().join("data"), Path::new(""), &mut files);
        Self { files, contents }
    }

    /// Makes the directory again.
    fn write_to(&self, to: &Path) {
        for (path, original) in &self.files {
            let path = to.join(path);
            let made = match original {
                Original::Folder => fs::create_dir(&path),
                Original::Link(target) => std::os::unix::fs::symlink(target, &path),
                Original::File(bytes, None) => fs::write(&path, bytes),
                Original::File(_, Some(other)) => fs::hard_link(to.join(other), &path),
            };
            made.expect("made");
        }
    }

    /// The files that have bytes of their own.
    fn paths(&self) -> Vec<(&Path, &[u8])> {
        let own = |(path, original)| match original {
            &Original::File(ref bytes, None) if !bytes.is_empty() => {
                Some((path as &PathBuf as &Path, bytes as &[u8]))
            }
            _ => None,
        };
        self.files.iter().filter_map(own).collect()
    }
}

fn set(wire: &mut Wire, key: &[u8], value: &[u8]) {
    assert!(wire.send(&command(&[b"SET", key, value])));
    assert_eq!(wire.receive_until(b"\r\n").0, b"+OK\r\n");
}

fn rewrite(wire: &mut Wire) {
    assert!(wire.line("BGREWRITEAOF").starts_with('+'));
    let until = std::time::Instant::now() + support::PATIENCE;
    while !wire.bulk("INFO persistence").contains("\naof_rewrites:1\r") {
        assert!(std::time::Instant::now() < until, "it is not rewritten");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Reads a directory; second names of a file come after it.
fn read(directory: &Path, below: &Path, files: &mut BTreeMap<PathBuf, Original>) {
    let mut inodes: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut names: Vec<PathBuf> = fs::read_dir(directory.join(below))
        .expect("a folder")
        .map(|entry| below.join(entry.expect("an entry").file_name()))
        .collect();
    // `appendonly.0...` before `appendonly.aof`.
    names.sort();
    for name in names {
        let path = directory.join(&name);
        let found = path.symlink_metadata().expect("there");
        if found.is_dir() {
            files.insert(name.clone(), Original::Folder);
            read(directory, &name, files);
        } else if found.is_symlink() {
            files.insert(name, Original::Link(fs::read_link(&path).expect("a link")));
        } else {
            let other = inodes.get(&found.ino()).cloned();
            inodes.entry(found.ino()).or_insert_with(|| name.clone());
            files.insert(name, Original::File(fs::read(&path).expect("read"), other));
        }
    }
}

/// What a start makes of a directory: why it refuses, or what it has.
fn start(directory: &Path) -> Result<Contents, String> {
    let config = Config {
        mutable_size: 64 << 10,
        readonly_size: 64 << 10,
        page_size: 4 << 10,
        segment_size: 16 << 10,
        io: IoChoice::Posix,
        redo_ring_size: 1 << 20,
        ..Config::new(directory)
    };
    let store = Store::open(config).map_err(|e| e.to_string())?;
    journal::replay(&store, directory, "appendonly.aof").map_err(|e| e.to_string())?;
    let mut contents = Contents::new();
    let mut session = store.blocking_session();
    for database in 0..DATABASES {
        for n in 0..30 {
            let key = format!("key:{n}").into_bytes();
            if let Some(value) =
                session.read(Database(database), &key).map_err(|e| e.to_string())?
            {
                contents.insert((database, key), value);
            }
        }
    }
    let keys: u64 = (0..16).map(|database| store.key_count(Database(database)).0).sum();
    assert_eq!(keys, contents.len() as u64, "keys that nobody has written");
    Ok(contents)
}

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: a number, not {text}")),
        Err(_) => default,
    }
}

/// A new folder, in memory where there is a place for that: what is tried needs no disk.
fn folder() -> io::Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()),
        false => tempfile::tempdir(),
    }
}

#[test]
fn a_flipped_bit_in_any_file_is_found_or_harmless() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let seed = setting("FERRITE_TEST_SEED", now.as_millis() as u64).max(1);
    let mut state = seed;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).expect("below a usize")
    };
    let made = Made::new();
    let paths = made.paths();
    let kinds = ["log-", ".side.", "index-", "ferrite.ckpt", "appendonly.0", "ferrite.lock"];
    for kind in kinds {
        let is_there = paths.iter().any(|(path, _)| path.to_string_lossy().contains(kind));
        assert!(is_there, "no {kind} among the files");
    }
    let try_one = |flip: Option<(&Path, usize, u8)>| {
        let folder = folder().expect("a directory");
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("made");
        made.write_to(&data);
        if let Some((path, at, bit)) = flip {
            let file = fs::File::options().read(true).write(true).open(data.join(path));
            let (file, mut byte) = (file.expect("there"), [0]);
            file.read_exact_at(&mut byte, at as u64).expect("read");
            file.write_all_at(&[byte[0] ^ 1 << bit], at as u64).expect("written");
        }
        start(&data)
    };
    assert_eq!(try_one(None).as_ref(), Ok(&made.contents), "as it is");
    let (mut refused, mut wrong) = (0, Vec::new());
    for _ in 0..setting("FLIPS", 150) {
        let (path, bytes) = paths[random(paths.len())];
        let used = bytes.iter().rposition(|b| *b != 0).map_or(1, |last| last + 1);
        // Zeros behind what was written mean nothing: not too many of those.
        let reach = if random(8) == 0 { bytes.len() } else { used };
        let at = random(reach);
        let bit = random(8) as u8;
        let story = format!("bit {bit} of byte {at} of {}", path.display());
        match try_one(Some((path, at, bit))) {
            Ok(contents) if contents == made.contents => {}
            Ok(contents) => {
                let differs = |(key, value)| made.contents.get(key) != Some(value);
                let different = contents.iter().filter(|entry| differs(*entry)).count();
                wrong.push(format!("{story}: {different} of {} differ", contents.len()));
            }
            Err(_) => refused += 1,
        }
    }
    assert!(wrong.is_empty(), "FERRITE_TEST_SEED={seed}: {} served: {wrong:#?}", wrong.len());
    assert!(refused > 0, "FERRITE_TEST_SEED={seed}: nothing was ever found");
}
