//! Damage to the real files of a small store: one bit at thousands of places, and every file cut
//! short at many lengths. Each start is refused, naming the file, the place and what to do, or
//! comes up with all of the data; where only an index image is damaged, a start that rebuilds the
//! index brings all of it back. Nothing wrong is ever served, and nothing panics.

mod support;

use ferrite_hybridlog::{Config, Database, IoChoice, OpenError, Store};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use support::{Entry, FUTURE, Model, layout};

/// A store of a few segments, closed after its second checkpoint, and what it holds.
struct Made {
    _directory: tempfile::TempDir,
    config: Config,
    keys: Vec<Vec<u8>>,
    model: Model,
}

impl Made {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut config = layout(directory.path(), 4096, 2);
        config.io = IoChoice::Posix;
        let keys: Vec<Vec<u8>> = (0..60u32).map(|i| format!("key:{i}").into_bytes()).collect();
        let mut model = Model::new(3);
        for round in 0..2u8 {
            let store = Store::open(config.clone()).expect("opens");
            store.pause_expiry_cycle(true);
            let mut s = store.blocking_session();
            for (i, key) in keys.iter().enumerate().filter(|(i, _)| i % 2 >= round.into()) {
                let value = vec![round * 100 + i as u8; i * 11 % 700];
                let expires_at_ms = (i % 7 == 3).then_some(FUTURE);
                let put =
                    ferrite_hybridlog::Change::Put { value: &value, expires_at_ms, encoding: 0 };
                s.rmw(Database(0), key, |_, _| (put, ())).expect("writes");
                model.put(0, key, Entry { value, expires_at_ms, encoding: 0 });
            }
            for key in keys.iter().step_by(9) {
                s.delete(Database(0), key).expect("deletes");
                model.remove(0, key);
            }
            store.checkpoint().expect("checkpoints");
        }
        Self { _directory: directory, config, keys, model }
    }

    /// The image of the newest checkpoint.
    fn image(&self) -> PathBuf {
        let images = self.files(".ckpt").into_iter().filter(|p| is(p, "index-"));
        images.max().expect("a checkpoint has an image")
    }

    /// The files whose names end so, sorted.
    fn files(&self, suffix: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.config.directory.join("checkpoints")).expect("lists");
        let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("lists").path()).collect();
        paths.retain(|p| p.to_str().expect("a text").ends_with(suffix));
        paths.sort();
        paths
    }

    /// Starts the store. It is refused by the name of `damaged` with an offset and advice, or all is
    /// there; says which, and whether the image is what is refused.
    fn start(&self, damaged: &Path, story: &str) -> Start {
        let (error, outcome) = match Store::open(self.config.clone()) {
            Ok(store) => {
                assert!(!store.recovery().index_rebuilt, "{story}: nobody asked for it");
                self.look(&store, story);
                return Start::Whole;
            }
            Err(e @ OpenError::Damaged { .. }) => (e, Start::Refused),
            Err(e @ OpenError::DamagedImage { .. }) => (e, Start::RefusedForImage),
            Err(e) => panic!("{story}: {e}"),
        };
        let text = error.to_string();
        let whole_name = damaged.to_str().expect("a text");
        assert_eq!(text.matches(whole_name).count(), 1, "{story}: {text}");
        assert!(text.contains("at offset") && text.contains("; "), "{story}: {text}");
        outcome
    }

    /// A copy of the store as it is starts with its index rebuilt, and then without that.
    fn mend_a_copy(&self, story: &str) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut config = self.config.clone();
        config.directory = directory.path().to_owned();
        fs::create_dir(directory.path().join("checkpoints")).expect("makes");
        for path in self.files(".ckpt") {
            let to = path.strip_prefix(&self.config.directory).expect("it is inside");
            fs::copy(&path, directory.path().join(to)).expect("copies");
        }
        config.rebuild_index = true;
        let store = Store::open(config.clone()).expect("opens");
        assert!(store.recovery().index_rebuilt, "{story}");
        self.look(&store, story);
        drop(store);
        config.rebuild_index = false;
        let store = Store::open(config).expect("the checkpoint has a new image");
        assert!(!store.recovery().index_rebuilt, "{story}");
        self.look(&store, story);
    }

    /// All of the data is there.
    fn look(&self, store: &Store, story: &str) {
        store.pause_expiry_cycle(true);
        let mut s = store.blocking_session();
        for (i, key) in self.keys.iter().enumerate() {
            let found = support::entry_of(&mut s, 0, key);
            assert_eq!(found.as_ref(), self.model.get(0, key), "{story}: key {i}");
        }
        assert_eq!(store.key_count(Database(0)), self.model.counts(0), "{story}");
        let recovery = store.recovery();
        assert_eq!(recovery.verified_bytes, recovery.log_bytes);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Start {
    Refused,
    RefusedForImage,
    Whole,
}

/// Flips a bit of the byte at `at` as long as `look` runs.
fn flipped<R>(path: &Path, at: u64, look: impl FnOnce() -> R) -> R {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("reads");
    file.write_all_at(&[byte[0] ^ 1 << (at % 8)], at).expect("writes");
    let r = look();
    file.write_all_at(&byte, at).expect("writes");
    r
}

/// Whether a file's name contains a part.
fn is(path: &Path, part: &str) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.contains(part))
}

/// The length of a file without the zeros at its end.
fn used(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("reads");
    bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last as u64 + 1)
}

/// Where to flip: every byte of the used part, and some of the rest. Between the two a checksum may end
/// in zeros.
fn places(path: &Path, step: usize) -> impl Iterator<Item = u64> {
    let (used, size) = (used(path), fs::metadata(path).expect("is there").len());
    (0..used).step_by(step).chain((used + 8..size).step_by(151))
}

#[test]
fn a_flipped_bit_in_the_manifest_refuses_the_start() {
    let made = Made::new();
    let path = &made.files("ferrite.ckpt")[0];
    let used = used(path);
    for at in places(path, 1) {
        let start = flipped(path, at, || made.start(path, &format!("byte {at}")));
        assert_eq!(start == Start::Refused, at < used, "byte {at}: {start:?}");
    }
    assert_eq!(made.start(path, "nothing"), Start::Whole);
}

#[test]
fn a_flipped_bit_in_the_image_refuses_the_start_until_the_index_is_rebuilt() {
    let made = Made::new();
    let path = &made.image();
    let used = used(path);
    for at in places(path, 1) {
        let story = format!("byte {at} of {used}");
        let start = flipped(path, at, || {
            let start = made.start(path, &story);
            if at % 29 == 0 {
                made.mend_a_copy(&story);
            }
            start
        });
        // The zeros behind its end are looked at, too.
        assert_eq!(start, Start::RefusedForImage, "{story}");
    }
    assert_eq!(made.start(path, "nothing"), Start::Whole);
}

#[test]
fn a_flipped_bit_in_the_log_or_its_checksums_refuses_the_start() {
    let made = Made::new();
    let mut outcomes = [0, 0];
    for path in made.files(".ckpt").iter().filter(|p| is(p, "log-")) {
        let step = if is(path, "side") { 1 } else { 37 };
        for at in places(path, step) {
            let start = flipped(path, at, || made.start(path, &format!("{path:?} byte {at}")));
            outcomes[usize::from(start == Start::Refused)] += 1;
            // Checksums of blocks that the log has; the entries behind them mean nothing.
            let needed = at < used(path) && step == 1;
            assert!(start == Start::Refused || !needed, "{path:?} byte {at}: {start:?}");
        }
    }
    assert!(outcomes[0] > 20 && outcomes[1] > 500, "whole, refused: {outcomes:?}");
}

#[test]
fn a_file_that_is_cut_short_refuses_the_start() {
    let made = Made::new();
    let image = made.image();
    for path in made.files(".ckpt") {
        let bytes = fs::read(&path).expect("reads");
        let (used, size) = (used(&path), bytes.len() as u64);
        let lengths = (0..size).step_by(509).chain([1, used - 1, used, size - 1]);
        let mut damage = vec![None];
        damage.extend(lengths.map(Some));
        for length in damage {
            match length {
                None => fs::remove_file(&path).expect("removes"),
                Some(length) => {
                    let file = OpenOptions::new().write(true).open(&path).expect("opens");
                    file.set_len(length).expect("cuts");
                }
            }
            let story = format!("{path:?} cut to {length:?} of {size}");
            let start = made.start(&path, &story);
            if start == Start::RefusedForImage {
                made.mend_a_copy(&story);
            }
            fs::write(&path, &bytes).expect("writes");
            // The log may end before its last segment does; all else is needed to its end.
            let bad = if path == image { Start::RefusedForImage } else { Start::Refused };
            let unused = length >= Some(used) || (is(&path, "index-") && path != image);
            let harmless = start == Start::Whole && unused;
            assert!(start == bad || harmless, "{story}: {start:?}");
        }
    }
    assert_eq!(made.start(&made.image(), "mended"), Start::Whole);
}

#[test]
fn a_file_whose_number_no_store_comes_to_refuses_the_start() {
    let made = Made::new();
    let path_of = |name| made.config.directory.join(format!("checkpoints/ferrite.{name}.ckpt"));
    for name in ["log-18446744073709551615", "log-137438953471.side", "index-18446744073709551615"]
    {
        let path = path_of(name);
        fs::write(&path, b"not ours").expect("writes");
        assert_eq!(made.start(&path, name), Start::Refused);
        fs::remove_file(&path).expect("removes");
    }
    assert_eq!(made.start(&made.image(), "without them"), Start::Whole);
    // Half of all numbers are left: it is what a crash could have left, and costs no memory.
    let path = path_of("log-68719476736");
    fs::write(&path, b"not ours").expect("writes");
    assert_eq!(made.start(&made.image(), "far away"), Start::Whole);
    assert!(!path.exists());
    assert_eq!(made.start(&made.image(), "after that"), Start::Whole);
}
