//! The tools on real directories: what they print, what they leave, how they end.

use super::*;
use crate::aof::{Effect, Entry, Header, LocalFiles, Origin, PartWriter, Start, part::file_name};
use std::fs;

const AOF: &str = "appendonly.aof";

/// Three parts: keys 1 to 30, one a second from 1970-01-01T00:00:01Z on, ten in each part.
struct Store {
    directory: tempfile::TempDir,
}

impl Store {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let header = Header { number: 1, start: Start::Empty, before: None, time_ms: 1_000 };
        let mut writer =
            PartWriter::begin(LocalFiles, directory.path(), AOF, header, 0).expect("begun");
        for position in 1..=30u64 {
            let key = position.to_string();
            let effect = Effect::Put { key: key.as_bytes(), value: b"v\n", expires_at_ms: None };
            let database = (position / 15) as u8;
            let entry = Entry { position, time_ms: position * 1_000, database, effect };
            writer.push(&entry).expect("taken");
            writer.write().expect("written");
            writer.sync().expect("synced");
            if position == 10 || position == 20 {
                writer.next_part(Start::Checkpoint(position), 0, 0).expect("turned");
            }
        }
        Self { directory }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
    fn part(&self, number: u64) -> PathBuf {
        self.path(&file_name(AOF, number))
    }
    /// Runs `ferrite aof ...` on the directory: how it ended, and what it printed.
    fn run(&self, words: &[&str]) -> (Result<Outcome, String>, String, String) {
        let path = self.directory.path().to_owned();
        self.run_on(&path, words)
    }
    fn run_on(&self, path: &Path, words: &[&str]) -> (Result<Outcome, String>, String, String) {
        let path = path.to_str().expect("text");
        let all = [&["aof"], words, &[path]].concat();
        let matches = command().try_get_matches_from(all).expect("a good command line");
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let result = Action::from_matches(&matches).run(&mut out, &mut errors);
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).expect("text");
            text.replace(self.directory.path().to_str().expect("text"), "DIR")
        };
        let told = |e: ToolError| text(e.to_string().into_bytes());
        (result.map_err(told), text(out), text(errors))
    }
    /// Whether `check` finds nothing wrong.
    fn is_whole(&self) -> bool {
        self.run(&["check"]).0 == Ok(Outcome::Good)
    }
    /// The keys of all commands that a start without a checkpoint replays.
    fn keys(&self) -> Vec<u64> {
        let chain = find(self.directory.path(), AOF).expect("found").chain(Origin::Empty);
        let mut keys = Vec::new();
        for link in chain.expect("a chain").links {
            let mut reader = open(&link.path, link.known).expect("sound");
            while let Some(command) = reader.next_command().expect("sound") {
                if let [b"SET", key, _] = command.words().collect::<Vec<_>>()[..] {
                    keys.push(std::str::from_utf8(key).expect("digits").parse().expect("digits"));
                }
            }
        }
        keys
    }
    /// Where a part's blocks begin.
    fn blocks(&self, number: u64) -> Vec<u64> {
        let mut reader = open(&self.part(number), Known::default()).expect("sound");
        std::iter::from_fn(|| reader.next_block().expect("sound").map(|block| block.at)).collect()
    }
    fn damage(&self, number: u64, at: u64) {
        let mut bytes = fs::read(self.part(number)).expect("read");
        bytes[at as usize] ^= 1;
        fs::write(self.part(number), bytes).expect("written");
    }
    fn names(&self) -> Vec<String> {
        names_in(self.directory.path())
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).expect("listed");
    let mut names: Vec<_> =
        names.map(|name| name.expect("a name").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

#[test]
fn check_tells_of_each_part_and_of_what_is_wrong() {
    let store = Store::new();
    let (outcome, out, errors) = store.run(&["check"]);
    assert_eq!((outcome, errors.as_str()), (Ok(Outcome::Good), ""));
    let lines: Vec<&str> = out.lines().collect();
    let length = fs::metadata(store.part(2)).expect("it is there").len();
    assert_eq!(
        lines[1],
        format!(
            "DIR/appendonly.000002.aof: goes on from checkpoint 10; 10 blocks with 12 commands of \
             1970-01-01T00:00:10.000Z to 1970-01-01T00:00:20.000Z in {length} of {length} bytes: \
             whole"
        )
    );
    assert_eq!((lines.len(), lines[3]), (4, "3 parts, 30 blocks, 0 wrong, 0 torn"));
    // A torn tail is told apart from damage.
    let whole = fs::read(store.part(3)).expect("read");
    fs::write(store.part(3), &whole[..whole.len() - 5]).expect("written");
    let (outcome, out, errors) = store.run(&["check"]);
    assert_eq!(outcome, Ok(Outcome::Torn));
    assert!(errors.starts_with("DIR/appendonly.000003.aof: ends at offset "), "{errors}");
    assert!(out.ends_with("29 blocks, 0 wrong, 1 torn\n"), "{out}");
    // The same cut in a part that another one follows is a gap: what it had is known.
    let whole = fs::read(store.part(1)).expect("read");
    fs::write(store.part(1), &whole[..whole.len() - 5]).expect("written");
    let (outcome, _, errors) = store.run(&["check"]);
    assert_eq!(outcome, Ok(Outcome::Bad));
    assert!(errors.contains("and the next part goes on from"), "{errors}");
    fs::write(store.part(1), whole).expect("written");
    let at = store.blocks(2)[4];
    store.damage(2, at + 150);
    let (outcome, out, errors) = store.run(&["check"]);
    assert_eq!(outcome, Ok(Outcome::Bad));
    assert!(errors.contains(&format!("000002.aof: damaged at offset {at}: ")), "{errors}");
    assert!(errors.contains("ferrite aof truncate --to-offset"), "{errors}");
    assert!(out.contains(&format!("in {at} of {length} bytes: damaged")), "{out}");
    fs::remove_file(store.part(2)).expect("removed");
    let (outcome, _, errors) = store.run(&["check"]);
    assert_eq!(outcome, Ok(Outcome::Bad));
    assert!(errors.starts_with("appendonly.000002.aof is missing, and part 000003"), "{errors}");
    assert!(!errors.contains("AOF: "), "{errors}");
}

#[test]
fn cat_prints_commands_of_a_range_of_times() {
    let store = Store::new();
    let (outcome, out, _) = store.run(&["cat", "--from", "14", "--until=1970-01-01T00:00:16Z"]);
    assert_eq!(outcome, Ok(Outcome::Good));
    let offset = out.split(' ').next().expect("an offset").parse::<u64>().expect("digits");
    assert!(store.blocks(2)[3] < offset && offset < store.blocks(2)[4]);
    let lines: Vec<&str> = out.lines().map(|line| line.split_once(' ').expect("two").1).collect();
    assert_eq!(
        lines,
        [
            r#"1970-01-01T00:00:14.000Z [0] SET "14" "v\n""#,
            r#"1970-01-01T00:00:15.000Z [1] SELECT "1""#,
            r#"1970-01-01T00:00:15.000Z [1] SET "15" "v\n""#,
            r#"1970-01-01T00:00:16.000Z [1] SET "16" "v\n""#,
        ]
    );
    let (_, out, _) = store.run(&["cat", "--raw", "--from=16", "--until=16"]);
    let select = "*2\r\n$6\r\nSELECT\r\n$1\r\n1\r\n";
    assert_eq!(out, format!("{select}*3\r\n$3\r\nSET\r\n$2\r\n16\r\n$2\r\nv\n\r\n"));
    let (_, out, _) = store.run_on(&store.part(1), &["cat", "--raw"]);
    assert_eq!(out.matches("SET\r\n").count(), 10);
    // What is whole is printed, and the damage told.
    store.damage(1, store.blocks(1)[2] + 150);
    let (outcome, out, errors) = store.run(&["cat"]);
    assert_eq!((outcome, out.lines().count()), (Ok(Outcome::Bad), 3));
    assert!(errors.contains("damaged at offset"), "{errors}");
}

#[test]
fn stat_counts() {
    let store = Store::new();
    let (outcome, out, errors) = store.run(&["stat"]);
    assert_eq!((outcome, errors.as_str()), (Ok(Outcome::Good), ""));
    for line in [
        "parts: 3",
        "blocks: 30",
        "marks: 0",
        "first: 1970-01-01T00:00:01.000Z",
        "last: 1970-01-01T00:00:30.000Z",
        "commands: 35",
        "command SELECT: 5, 115 bytes",
    ] {
        assert!(out.lines().any(|found| found == line), "{line} in {out}");
    }
}

#[test]
fn truncate_to_a_time_keeps_what_was_written_by_then_and_loses_nothing() {
    let store = Store::new();
    let before: Vec<u8> = fs::read(store.part(2)).expect("read");
    let (outcome, out, _) = store.run(&["truncate", "--to-time", "1970-01-01T00:00:14.999Z"]);
    assert_eq!(outcome, Ok(Outcome::Good), "{out}");
    assert_eq!(store.keys(), (1..=14).collect::<Vec<_>>());
    assert!(store.is_whole());
    let cut = store.blocks(2).len();
    let kept = fs::read(store.part(2)).expect("read");
    let aside = store.path(&format!("quarantine/appendonly.000002.aof.cut-{:015}", kept.len()));
    let rest = fs::read(aside).expect("it is there");
    assert!(cut == 4 && [kept.clone(), rest].concat() == before);
    assert_eq!(fs::read(store.path(AOF)).expect("read"), kept, "it leads to the newest part");
    assert!(store.path("quarantine/appendonly.000003.aof.cut-000000000000000").exists());
    assert!(out.contains("(1970-01-01T00:00:14.000Z) now; "), "{out}");
    // Again there is nothing to do.
    let names = store.names();
    let (outcome, out, _) = store.run(&["truncate", "--to-time", "15"]);
    assert_eq!(outcome, Ok(Outcome::Good));
    assert!(out.contains("nothing is cut off") && store.names() == names, "{out}");
    let (outcome, ..) = store.run(&["truncate", "--to-time", "0.5"]);
    assert_eq!(
        outcome.expect_err("before all"),
        "the append-only file begins at 1970-01-01T00:00:01.000Z, after 1970-01-01T00:00:00.500Z"
    );
}

#[test]
fn truncate_to_an_offset_keeps_whole_blocks_and_mends_damage() {
    let store = Store::new();
    let at = store.blocks(3)[6];
    store.damage(3, at + 150);
    let (outcome, _, errors) = store.run(&["check"]);
    assert_eq!(outcome, Ok(Outcome::Bad));
    assert!(errors.contains(&format!("--to-offset {at} DIR/appendonly.000003.aof")), "{errors}");
    let offset = at.to_string();
    let (outcome, ..) = store.run_on(&store.part(3), &["truncate", "--to-offset", &offset]);
    assert_eq!(outcome, Ok(Outcome::Good));
    assert!(store.is_whole());
    assert_eq!(store.keys(), (1..=26).collect::<Vec<_>>());
    // An offset inside a block keeps those before it; aof_file is a name of the same part.
    let offset = (store.blocks(3)[2] + 1).to_string();
    let (outcome, ..) = store.run_on(&store.path(AOF), &["truncate", "--to-offset", &offset]);
    assert_eq!(outcome, Ok(Outcome::Good));
    assert_eq!(store.keys(), (1..=22).collect::<Vec<_>>());
    // A part that others follow: they go aside.
    let offset = store.blocks(1)[1].to_string();
    let (outcome, out, _) = store.run_on(&store.part(1), &["truncate", "--to-offset", &offset]);
    assert_eq!(outcome, Ok(Outcome::Good), "{out}");
    assert_eq!(store.keys(), [1]);
    assert!(store.is_whole());
    assert_eq!(store.names().iter().filter(|name| name.ends_with(".aof")).count(), 2);
}

#[test]
fn truncate_cuts_every_copy_of_a_part() {
    let store = Store::new();
    let bytes = fs::read(store.path(AOF)).expect("read");
    fs::remove_file(store.path(AOF)).expect("removed");
    fs::write(store.path(AOF), &bytes).expect("written");
    let (outcome, out, _) = store.run(&["truncate", "--to-time", "25"]);
    assert_eq!(outcome, Ok(Outcome::Good));
    assert_eq!(out.lines().count(), 2, "{out}");
    assert_eq!(store.keys(), (1..=25).collect::<Vec<_>>());
    // And a copy of a part that goes aside does so, too.
    let (outcome, ..) = store.run(&["truncate", "--to-time", "5"]);
    assert_eq!((outcome, store.keys()), (Ok(Outcome::Good), (1..=5).collect::<Vec<_>>()));
    let aside = |name: &str| name.starts_with("appendonly.aof.cut-");
    let kept = names_in(&store.path("quarantine"));
    assert_eq!(kept.iter().filter(|name| aside(name)).count(), 2);
}

#[test]
fn truncate_refuses_what_would_cut_something_else() {
    let store = Store::new();
    let names = store.names();
    let refused = |path: &Path, words: &[&str]| {
        let outcome = store.run_on(path, words).0;
        assert_eq!(store.names(), names);
        outcome.expect_err("refused")
    };
    let directory = store.directory.path();
    assert!(refused(directory, &["truncate", "--to-offset", "9"]).contains("name its file"));
    assert!(refused(&store.part(1), &["truncate", "--to-offset", "9"]).contains("outside"));
    assert!(refused(&store.part(1), &["truncate", "--to-offset", "99999999"]).contains("outside"));
    assert!(refused(&store.part(3), &["truncate", "--to-time", "5"]).contains("the part before"));
    assert!(refused(&store.path("nothing"), &["check"]).contains("cannot read DIR/nothing"));
    // Damage before the place of the cut.
    store.damage(1, store.blocks(1)[2] + 150);
    assert!(refused(directory, &["truncate", "--to-time", "7"]).contains("damaged at offset"));
    // A server runs.
    let lock = File::create(store.path("ferrite.lock")).expect("made");
    lock.lock().expect("locked");
    let outcome = store.run(&["truncate", "--to-time", "25"]).0;
    assert_eq!(outcome.expect_err("it runs"), "a server runs on DIR; stop it first");
    drop(lock);
    assert_eq!(store.run(&["truncate", "--to-time", "25"]).0, Ok(Outcome::Good));
}

#[test]
fn other_files_are_told_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store { directory };
    let (outcome, ..) = store.run(&["check"]);
    assert!(outcome.expect_err("nothing").contains("there is no appendonly.aof and no part of it"));
    fs::write(store.path(AOF), "*1\r\n$4\r\nPING\r\n").expect("written");
    let (outcome, _, errors) = store.run(&["check"]);
    assert_eq!(outcome, Ok(Outcome::Bad));
    assert!(errors.starts_with("DIR/appendonly.aof: it does not begin as a part"), "{errors}");
    fs::write(store.path("x.txt"), "x").expect("written");
    let (outcome, ..) = store.run_on(&store.path("x.txt"), &["cat"]);
    assert!(outcome.expect_err("no name").contains("no part by its name"));
}

#[test]
fn a_name_tells_the_family() {
    for (name, expected) in [
        ("appendonly.aof", Some("appendonly.aof")),
        ("appendonly.000012.aof", Some("appendonly.aof")),
        ("a.b.000012.aof", Some("a.b.aof")),
        ("a.12.aof", Some("a.12.aof")),
        ("a.000012.aof.cut-000000000000000", None),
    ] {
        assert_eq!(family(name).as_deref(), expected, "{name}");
    }
}
