//! The store beside a plain map: any sequence of operations, checkpoints, restarts, power cuts and
//! damaged index images leaves both with the same keys, values, expiries and counts. After a
//! restart or a power cut the map is that of the last checkpoint that was reported, or of the one
//! that the cut fell into, and the sequence goes on from there.
//!
//! The keys collide in bucket and tag, the rings are tiny and the segments short, so that chains,
//! cold records, commands larger than the ring and rebuilt indexes are the common case. Time is
//! forced: expiries are either long past or never come. `PROPTEST_CASES` sets how many sequences
//! are tried; a failure prints the shortest one and keeps its seed.

mod support;

use ferrite_hybridlog::device::fault::{Completion, FaultDevice};
use ferrite_hybridlog::device::{Device, FileId};
use ferrite_hybridlog::{Backend, BlockingSession, Change, Config, Database, Store, Value};
use proptest::prelude::*;
use std::sync::Arc;
use support::{
    Entry, FUTURE, Model, PAST, check, colliding_keys, entry_of, in_memory, layout, walk,
};

/// Groups of colliding keys, and keys in each.
const GROUPS: usize = 4;
const EACH: usize = 3;
/// Two keys so long that little fits beside them in a page of 4 KiB.
const LONG: [usize; 2] = [2000, 3850];
const KEYS: usize = GROUPS * EACH + LONG.len();
/// Keys that make the index grow: it starts with 16 buckets and takes nine a bucket.
const MORE: usize = 160;
/// I/Os of a checkpoint that a power cut may choose among; later ones let it end first.
const CHECKPOINT_STEPS: u64 = 24;

#[derive(Clone, Copy, Debug)]
struct Place {
    db: u8,
    key: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Put {
        at: Place,
        length: usize,
        expiry: Option<u64>,
        encoding: u8,
    },
    /// Makes the value longer or shorter and keeps the rest, as APPEND and SETRANGE do.
    Resize {
        at: Place,
        by: i32,
    },
    Increment(Place),
    Expire {
        at: Place,
        expiry: Option<u64>,
    },
    Delete(Place),
    Keep(Place),
    Many(Vec<(Place, Planned)>),
    Rename {
        from: Place,
        to: Place,
    },
    ReadMany {
        db: u8,
        keys: Vec<usize>,
    },
    Walk(u8),
    RandomKey(u8),
    FlushDatabase(u8),
    FlushAll,
    Swap(u8, u8),
    /// Writes so many keys that the index grows.
    Grow(u8),
    /// Writes until all that was in memory is flushed and has left it.
    Evict(u8),
    Checkpoint,
    Compact,
    /// Cuts the power: of what was not synced, the seed says what stays.
    Crash {
        seed: u64,
    },
    /// Cuts the power at an I/O of a checkpoint.
    CrashInCheckpoint {
        step: u64,
        seed: u64,
    },
    /// Closes the store without a checkpoint and opens it again.
    Reopen,
    /// The same, with damaged index images, and the index rebuilt before.
    ReopenDamaged {
        at: u64,
        bit: u8,
    },
    Check,
}

#[derive(Clone, Debug)]
enum Planned {
    Put { length: usize, expiry: Option<u64> },
    Delete,
    Expire(Option<u64>),
    Keep,
}

fn place() -> impl Strategy<Value = Place> {
    (0..3u8, 0..KEYS).prop_map(|(db, key)| Place { db: db / 2, key })
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..40usize, 2 => 0..300usize, 1 => 300..1500usize]
}

fn expiry() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![3 => Just(None), 1 => Just(Some(PAST)), 2 => (0..3u64).prop_map(|n| Some(FUTURE + n))]
}

fn planned() -> impl Strategy<Value = Planned> {
    prop_oneof![
        4 => (length(), expiry()).prop_map(|(length, expiry)| Planned::Put { length, expiry }),
        2 => Just(Planned::Delete),
        2 => expiry().prop_map(Planned::Expire),
        1 => Just(Planned::Keep),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (place(), length(), expiry(), 0..2u8)
            .prop_map(|(at, length, expiry, encoding)| Step::Put { at, length, expiry, encoding }),
        8 => (place(), -60..60i32).prop_map(|(at, by)| Step::Resize { at, by }),
        6 => place().prop_map(Step::Increment),
        6 => (place(), expiry()).prop_map(|(at, expiry)| Step::Expire { at, expiry }),
        10 => place().prop_map(Step::Delete),
        2 => place().prop_map(Step::Keep),
        6 => prop::collection::vec((place(), planned()), 1..8).prop_map(Step::Many),
        3 => (place(), place()).prop_map(|(from, to)| Step::Rename { from, to }),
        2 => (0..2u8, prop::collection::vec(0..KEYS, 0..6))
            .prop_map(|(db, keys)| Step::ReadMany { db, keys }),
        1 => (0..2u8).prop_map(Step::Walk),
        1 => (0..2u8).prop_map(Step::RandomKey),
        1 => (0..2u8).prop_map(Step::FlushDatabase),
        1 => Just(Step::FlushAll),
        1 => (0..2u8, 0..2u8).prop_map(|(a, b)| Step::Swap(a, b)),
        1 => (0..2u8).prop_map(Step::Grow),
        1 => (0..2u8).prop_map(Step::Evict),
        4 => Just(Step::Checkpoint),
        3 => Just(Step::Compact),
        3 => any::<u64>().prop_map(|seed| Step::Crash { seed }),
        3 => (1..=CHECKPOINT_STEPS, any::<u64>())
            .prop_map(|(step, seed)| Step::CrashInCheckpoint { step, seed }),
        3 => Just(Step::Reopen),
        2 => (any::<u64>(), 0..8u8).prop_map(|(at, bit)| Step::ReopenDamaged { at, bit }),
        2 => Just(Step::Check),
    ]
}

/// Where the store lies.
enum Disk {
    Simulated(Arc<FaultDevice>),
    Real(tempfile::TempDir),
}

impl Disk {
    fn open(&self, config: &Config) -> Store {
        match self {
            Self::Simulated(device) => support::open(config, device),
            Self::Real(directory) => {
                let mut config = config.clone();
                config.directory = directory.path().to_owned();
                let store = Store::open(config).expect("opens");
                store.pause_expiry_cycle(true);
                store
            }
        }
    }

    /// Cuts the power. Real files keep everything.
    fn crash(&mut self, seed: u64) {
        if let Self::Simulated(device) = self {
            *device = device.crash(seed);
            if seed.is_multiple_of(2) {
                device.set_completion(Completion::Shuffled(seed));
            }
        }
    }

    fn manifest(&self) -> Vec<u8> {
        match self {
            Self::Simulated(device) => device.contents(FileId::Manifest).expect("it is there"),
            Self::Real(directory) => {
                std::fs::read(directory.path().join("checkpoints/ferrite.ckpt")).expect("reads")
            }
        }
    }

    /// Flips one bit of each index image.
    fn damage_images(&self, at: u64, bit: u8) {
        match self {
            Self::Simulated(device) => {
                for file in device.list().expect("lists") {
                    if matches!(file, FileId::Index(_)) {
                        let size = device.size(file).expect("it is there");
                        device.flip(file, at % size.max(1), bit);
                    }
                }
            }
            Self::Real(directory) => {
                let folder = std::fs::read_dir(directory.path().join("checkpoints"));
                for file in folder.expect("lists") {
                    let path = file.expect("lists").path();
                    if path.to_string_lossy().contains("ferrite.index-") {
                        let mut bytes = std::fs::read(&path).expect("reads");
                        let place = (at % bytes.len() as u64) as usize;
                        bytes[place] ^= 1 << bit;
                        std::fs::write(&path, bytes).expect("writes");
                    }
                }
            }
        }
    }
}

/// A store and the map that it must equal.
struct Pair {
    config: Config,
    disk: Disk,
    /// `None` only while it is being opened again.
    open: Option<(Store, BlockingSession)>,
    model: Model,
    /// The model as of the last checkpoint.
    saved: Model,
    keys: Vec<Vec<u8>>,
    written: u64,
}

impl Pair {
    fn new(config: Config, disk: Disk) -> Self {
        let store = disk.open(&config);
        if config.backend == Backend::Memory {
            // Before the first one it has no file.
            store.checkpoint().expect("checkpoints");
        }
        let mut keys = colliding_keys(&disk.manifest(), GROUPS, EACH);
        keys.extend(LONG.map(|length| vec![b'k'; length]));
        keys.extend((0..MORE).map(|i| format!("more {i}").into_bytes()));
        let session = store.blocking_session();
        let model = Model::new(3);
        let saved = model.clone();
        Self { config, disk, open: Some((store, session)), model, saved, keys, written: 0 }
    }

    fn store(&self) -> &Store {
        &self.open.as_ref().expect("it is open").0
    }
    fn session(&mut self) -> &mut BlockingSession {
        &mut self.open.as_mut().expect("it is open").1
    }

    /// Bytes that differ from those of any other write, as many as fit beside the key.
    fn value(&mut self, key: usize, length: usize) -> Vec<u8> {
        self.written += 1;
        let length = length.min(self.store().value_limit(self.keys[key].len()));
        format!("{}.", self.written).into_bytes().into_iter().cycle().take(length).collect()
    }

    fn run(&mut self, step: &Step) {
        match step.clone() {
            Step::Put { at, length, expiry, encoding } => self.put(at, length, expiry, encoding),
            Step::Resize { at, by } => self.resize(at, by),
            Step::Increment(at) => self.increment(at),
            Step::Expire { at, expiry } => {
                let key = self.keys[at.key].clone();
                let change = Change::Expire(expiry);
                self.session().rmw(Database(at.db), &key, |_, _| (change, ())).expect("expires");
                self.model.expire(at.db, &key, expiry);
            }
            Step::Delete(at) => {
                let key = self.keys[at.key].clone();
                let was_there = self.session().delete(Database(at.db), &key).expect("deletes");
                assert_eq!(was_there, self.model.get(at.db, &key).is_some());
                self.model.remove(at.db, &key);
            }
            Step::Keep(at) => {
                let key = self.keys[at.key].clone();
                let found = self
                    .session()
                    .rmw(Database(at.db), &key, |v, _| (Change::Keep, v.map(entry)))
                    .expect("keeps");
                assert_eq!(found.as_ref(), self.model.get(at.db, &key));
            }
            Step::Many(plan) => self.many(&plan),
            Step::Rename { from, to } => self.rename(from, to),
            Step::ReadMany { db, keys } => self.read_many(db, &keys),
            Step::Walk(db) => {
                let met = walk(self.session(), db);
                let expected = self.model.0[usize::from(db)].keys().cloned().collect();
                assert_eq!(met, expected);
            }
            Step::RandomKey(db) => {
                let found = self.session().run(|inside, op| {
                    inside.random_key(op, Database(db), |v| v.map(|v| v.key.to_vec()))
                });
                match found.expect("reads") {
                    Some(key) => assert!(self.model.get(db, &key).is_some(), "{key:?}"),
                    None => assert_eq!(self.model.counts(db).0, 0),
                }
            }
            Step::FlushDatabase(db) => {
                self.store().flush_database(Database(db)).expect("flushes");
                self.model.0[usize::from(db)].clear();
            }
            Step::FlushAll => {
                self.store().flush_all().expect("flushes");
                self.model = Model::new(3);
            }
            Step::Swap(a, b) => {
                self.store().swap_databases(Database(a), Database(b)).expect("swaps");
                self.model.0.swap(usize::from(a), usize::from(b));
            }
            Step::Grow(db) => {
                for key in KEYS..KEYS + MORE {
                    self.put(Place { db, key }, 20, None, 0);
                }
            }
            Step::Evict(db) => self.evict(db),
            Step::Crash { seed } => self.crash(seed),
            Step::CrashInCheckpoint { step, seed } => {
                self.crash_in_checkpoint(step, seed);
            }
            Step::Compact => {
                self.store().compact().expect("compacts");
            }
            Step::Checkpoint => {
                self.store().checkpoint().expect("checkpoints");
                self.saved = self.model.clone();
            }
            Step::Reopen => self.reopen(|_| {}),
            Step::ReopenDamaged { at, bit } => {
                let config = Config { rebuild_index: true, ..self.config.clone() };
                self.reopen(|disk| {
                    disk.damage_images(at, bit);
                    drop(disk.open(&config));
                });
            }
            Step::Check => self.check(),
        }
    }

    fn put(&mut self, at: Place, length: usize, expires_at_ms: Option<u64>, encoding: u8) {
        let value = self.value(at.key, length);
        let key = self.keys[at.key].clone();
        let put = Change::Put { value: &value, expires_at_ms, encoding };
        self.session().rmw(Database(at.db), &key, |_, _| (put, ())).expect("writes");
        self.model.put(at.db, &key, Entry { value, expires_at_ms, encoding });
    }

    fn resize(&mut self, at: Place, by: i32) {
        let key = self.keys[at.key].clone();
        let limit = self.store().value_limit(key.len());
        let resized = |old: &[u8]| {
            let mut new = old.to_vec();
            let length = old.len().saturating_add_signed(by as isize).min(limit);
            new.resize(length, b'+');
            new
        };
        let after = self
            .session()
            .rmw(Database(at.db), &key, |old, out| {
                let old = old.map_or_else(
                    || Entry { value: Vec::new(), expires_at_ms: None, encoding: 0 },
                    entry,
                );
                out.extend_from_slice(&resized(&old.value));
                let Entry { expires_at_ms, encoding, .. } = old;
                let change = Change::PutScratch { expires_at_ms, encoding };
                (change, Entry { value: out.clone(), expires_at_ms, encoding })
            })
            .expect("resizes");
        let before = self.model.get(at.db, &key);
        assert_eq!(after.value, resized(before.map_or(&[], |e| &e.value)));
        assert_eq!(after.expires_at_ms, before.and_then(|e| e.expires_at_ms));
        self.model.put(at.db, &key, after);
    }

    fn increment(&mut self, at: Place) {
        let key = self.keys[at.key].clone();
        let number = |bytes: &[u8]| {
            std::str::from_utf8(bytes).ok().and_then(|s| s.parse::<u64>().ok()).unwrap_or(0)
        };
        let n = self
            .session()
            .rmw(Database(at.db), &key, |old, out| {
                let n = old.as_ref().map_or(0, |v| number(v.bytes)) % 1_000_000 + 1;
                let expires_at_ms = old.and_then(|v| v.expires_at_ms);
                out.extend_from_slice(n.to_string().as_bytes());
                (Change::PutScratch { expires_at_ms, encoding: 1 }, n)
            })
            .expect("increments");
        let before = self.model.get(at.db, &key);
        let expires_at_ms = before.and_then(|e| e.expires_at_ms);
        assert_eq!(n, before.map_or(0, |e| number(&e.value)) % 1_000_000 + 1);
        let value = n.to_string().into_bytes();
        self.model.put(at.db, &key, Entry { value, expires_at_ms, encoding: 1 });
    }

    fn many(&mut self, plan: &[(Place, Planned)]) {
        let keys: Vec<Vec<u8>> = plan.iter().map(|(at, _)| self.keys[at.key].clone()).collect();
        let values: Vec<Vec<u8>> = plan
            .iter()
            .map(|(at, planned)| match planned {
                Planned::Put { length, .. } => self.value(at.key, *length),
                _ => Vec::new(),
            })
            .collect();
        let places: Vec<(Database, &[u8])> =
            plan.iter().zip(&keys).map(|((at, _), key)| (Database(at.db), &key[..])).collect();
        let before: Vec<Option<Entry>> =
            plan.iter().zip(&keys).map(|((at, _), k)| self.model.get(at.db, k).cloned()).collect();
        let seen = self
            .session()
            .run(|inside, op| {
                inside.update_many(op, &places, |many| {
                    for (i, (_, planned)) in plan.iter().enumerate() {
                        match planned {
                            Planned::Put { expiry, .. } if i % 2 == 0 => {
                                let (value, expires_at_ms) = (&values[i][..], *expiry);
                                many.set(i, Change::Put { value, expires_at_ms, encoding: 0 });
                            }
                            Planned::Put { expiry, .. } => {
                                many.put_owned(i, values[i].clone(), *expiry, 0);
                            }
                            Planned::Delete => many.set(i, Change::Delete),
                            Planned::Expire(at) => many.set(i, Change::Expire(*at)),
                            Planned::Keep => many.set(i, Change::Keep),
                        }
                    }
                    (0..plan.len()).map(|i| many.get(i).map(entry)).collect::<Vec<_>>()
                })
            })
            .expect("updates");
        assert_eq!(seen, before, "what the command saw");
        // The last change of a key counts.
        let mut last = std::collections::HashMap::new();
        for (i, (at, _)) in plan.iter().enumerate() {
            last.insert((at.db, at.key), i);
        }
        for i in last.into_values() {
            let (at, planned) = &plan[i];
            match planned {
                Planned::Put { expiry, .. } => {
                    let (value, expires_at_ms) = (values[i].clone(), *expiry);
                    self.model.put(at.db, &keys[i], Entry { value, expires_at_ms, encoding: 0 });
                }
                Planned::Delete => self.model.remove(at.db, &keys[i]),
                Planned::Expire(to) => self.model.expire(at.db, &keys[i], *to),
                Planned::Keep => {}
            }
        }
    }

    fn rename(&mut self, from: Place, to: Place) {
        let keys = [self.keys[from.key].clone(), self.keys[to.key].clone()];
        let same = (from.db, from.key) == (to.db, to.key);
        let limit = self.store().value_limit(keys[1].len());
        let moved = self.model.get(from.db, &keys[0]).cloned();
        if same || moved.as_ref().is_some_and(|e| e.value.len() > limit) {
            return;
        }
        let places = [(Database(from.db), &keys[0][..]), (Database(to.db), &keys[1][..])];
        let was_there = self
            .session()
            .run(|inside, op| {
                inside.update_many(op, &places, |many| {
                    let was_there = many.get(0).is_some();
                    if was_there {
                        many.copy(0, 1);
                        many.set(0, Change::Delete);
                    }
                    was_there
                })
            })
            .expect("renames");
        assert_eq!(was_there, moved.is_some());
        if let Some(entry) = moved {
            self.model.remove(from.db, &keys[0]);
            self.model.put(to.db, &keys[1], entry);
        }
    }

    fn read_many(&mut self, db: u8, numbers: &[usize]) {
        let keys: Vec<Vec<u8>> = numbers.iter().map(|k| self.keys[*k].clone()).collect();
        let names: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let mut seen = vec![None; keys.len()];
        self.session()
            .run(|inside, op| {
                inside.read_many(op, Database(db), &names, |i, v| seen[i] = v.map(entry))
            })
            .expect("reads");
        let expected: Vec<_> = keys.iter().map(|k| self.model.get(db, k).cloned()).collect();
        assert_eq!(seen, expected);
    }

    fn reopen(&mut self, meanwhile: impl FnOnce(&Disk)) {
        self.open = None;
        meanwhile(&self.disk);
        self.open_again();
        self.model = self.saved.clone();
        self.check();
    }

    /// As many whole pages as the ring has, and one more.
    fn evict(&mut self, db: u8) {
        let pages = (self.config.mutable_size + self.config.readonly_size) / self.config.page_size;
        let before = self.store().stats().log_tail;
        for key in 0..=pages as usize {
            // None of these is in a mutable page any more when its turn comes again.
            self.put(Place { db, key: KEYS + key }, usize::MAX, None, 0);
        }
        let now = self.store().stats();
        assert!(now.log_head >= before, "everything has left memory");
        assert!(now.log_flushed_until >= now.log_head, "what left memory is on the device");
    }

    fn crash(&mut self, seed: u64) {
        self.disk.crash(seed);
        self.reopen(|_| {});
    }

    /// Says whether the checkpoint had ended before, and whether it was found.
    fn crash_in_checkpoint(&mut self, step: u64, seed: u64) -> (bool, bool) {
        if let Disk::Simulated(device) = &self.disk {
            device.cut_at(device.io_count() + step);
        }
        let taken = self.model.clone();
        let ended = self.store().checkpoint().is_ok();
        if ended {
            self.saved = taken.clone();
        }
        self.disk.crash(seed);
        self.open = None;
        self.open_again();
        let found = self.found();
        assert!(found == self.saved || found == taken, "neither the last checkpoint nor this one");
        let is_there = found == taken;
        (self.model, self.saved) = (found.clone(), found);
        self.check();
        (ended, is_there)
    }

    /// What the store holds of all keys.
    fn found(&mut self) -> Model {
        let keys = self.keys.clone();
        let mut found = Model::new(3);
        for db in 0..3u8 {
            for key in &keys {
                if let Some(entry) = entry_of(self.session(), db, key) {
                    found.put(db, key, entry);
                }
            }
        }
        found
    }

    fn open_again(&mut self) {
        let store = self.disk.open(&self.config);
        let session = store.blocking_session();
        self.open = Some((store, session));
    }

    fn check(&mut self) {
        let (store, session) = self.open.as_mut().expect("it is open");
        check(store, session, &self.model, &self.keys);
    }
}

fn entry(v: Value<'_>) -> Entry {
    Entry { value: v.bytes.to_vec(), expires_at_ms: v.expires_at_ms, encoding: v.encoding }
}

fn live(config: Config, disk: Disk, steps: &[Step]) {
    let mut pair = Pair::new(config, disk);
    steps.iter().for_each(|step| pair.run(step));
    pair.check();
    pair.run(&Step::Checkpoint);
    pair.run(&Step::Reopen);
}

fn cases(count: u32) -> ProptestConfig {
    let cases = ProptestConfig::default().cases;
    // `PROPTEST_CASES` overrides; 256 is proptest's default.
    ProptestConfig {
        cases: if cases == 256 { count } else { cases },
        max_shrink_iters: 400,
        ..Default::default()
    }
}

fn simulated() -> Disk {
    Disk::Simulated(FaultDevice::new())
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn a_ring_of_two_pages_equals_the_model(steps in prop::collection::vec(step(), 1..120)) {
        live(layout("simulated".as_ref(), 4096, 2), simulated(), &steps);
    }

    #[test]
    fn a_ring_of_eight_larger_pages_equals_the_model(
        steps in prop::collection::vec(step(), 1..250),
    ) {
        let mut config = layout("simulated".as_ref(), 16 << 10, 8);
        config.compress_images = false;
        config.block_cache_size = 64 << 10;
        live(config, simulated(), &steps);
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn a_store_in_memory_equals_the_model(steps in prop::collection::vec(step(), 1..120)) {
        live(in_memory(layout("simulated".as_ref(), 4096, 4)), simulated(), &steps);
    }

    /// Most of its log is read from where it is mapped.
    #[test]
    fn a_store_in_memory_with_a_wide_window_equals_the_model(
        steps in prop::collection::vec(step(), 1..160),
    ) {
        let mut config = in_memory(layout("simulated".as_ref(), 4096, 4));
        (config.readonly_size, config.compress_images) = (256 << 10, false);
        live(config, simulated(), &steps);
    }
}

proptest! {
    #![proptest_config(cases(6))]

    #[test]
    fn real_files_equal_the_model(steps in prop::collection::vec(step(), 1..120)) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        live(layout(directory.path(), 4096, 2), Disk::Real(directory), &steps);
    }
}

/// The largest number of a bucket that is in the newest image, which is not compressed.
fn largest_bucket(device: &FaultDevice) -> u64 {
    let files = device.list().expect("lists");
    let image = files.into_iter().filter(|f| matches!(f, FileId::Index(_))).max();
    let bytes = device.contents(image.expect("there is an image")).expect("it is there");
    let length = u32::from_le_bytes(bytes[12..16].try_into().expect("four bytes")) as usize;
    let mut words = bytes[24..24 + length].chunks_exact(8);
    let mut largest = 0;
    while let Some(head) = words.next() {
        let head = u64::from_le_bytes(head.try_into().expect("eight bytes"));
        largest = largest.max(head & ((1 << 48) - 1));
        words.nth((head >> 48) as usize - 1);
    }
    largest
}

/// The steps that are rare in other tests do what they are named for.
#[test]
fn steps_grow_evict_and_crash() {
    let mut config = support::tiny();
    config.compress_images = false;
    let device = FaultDevice::new();
    let mut pair = Pair::new(config, Disk::Simulated(device.clone()));
    let at = Place { db: 0, key: 1 };
    pair.run(&Step::Grow(0));
    pair.run(&Step::Checkpoint);
    assert!(largest_bucket(&device) >= 16, "the index has not grown");
    let written = pair.store().stats().device_write_bytes;
    pair.run(&Step::Evict(0));
    assert!(pair.store().stats().device_write_bytes > written, "nothing was flushed");
    let with_all = pair.model.clone();
    pair.run(&Step::Crash { seed: 1 });
    assert!(pair.model != with_all, "nothing was lost");
    let mut outcomes = std::collections::BTreeSet::new();
    for step in 1..=CHECKPOINT_STEPS {
        for seed in 0..8 {
            pair.put(at, 20, None, 0);
            outcomes.insert(pair.crash_in_checkpoint(step, seed));
        }
    }
    // It failed and was lost, it failed and was found, it ended.
    assert!(outcomes.into_iter().eq([(false, false), (false, true), (true, true)]));
}

/// A start with data, then a checkpoint without a write, named a segment that was never made, and
/// the next start was refused.
#[test]
fn a_checkpoint_of_nothing_new_can_be_opened() {
    let mut pair = Pair::new(support::tiny(), simulated());
    let at = Place { db: 0, key: 1 };
    pair.put(at, 50, None, 0);
    for _ in 0..3 {
        pair.run(&Step::Checkpoint);
        pair.run(&Step::Reopen);
    }
    pair.put(at, 60, None, 0);
    pair.run(&Step::Checkpoint);
    pair.run(&Step::Reopen);
}

/// The expiry of a key that has expired was set again by a command large enough to run alone.
#[test]
fn a_large_command_does_not_bring_an_expired_key_back() {
    let mut pair = Pair::new(support::tiny(), simulated());
    let (dead, large) = (Place { db: 0, key: 0 }, Place { db: 0, key: 5 });
    pair.put(dead, 20, Some(PAST), 0);
    let put = Planned::Put { length: 1400, expiry: None };
    pair.many(&[
        (dead, Planned::Expire(Some(FUTURE))),
        (large, put.clone()),
        (Place { db: 0, key: 6 }, put.clone()),
        (Place { db: 1, key: 6 }, put),
    ]);
    pair.check();
}

/// A key that left too little room for the slack of an overwritten value, and one that fits in no
/// page at all, met an assertion instead of an error.
#[test]
fn keys_as_long_as_a_page_are_stored_or_refused() {
    let device = FaultDevice::new();
    let store = support::open(&support::tiny(), &device);
    let mut s = store.blocking_session();
    for length in (3700..4200).step_by(4) {
        let key = vec![b'l'; length];
        for round in 0..2 {
            let value = vec![round; store.value_limit(length).min(250)];
            let fits = 32 + length.next_multiple_of(8) <= 4096;
            assert_eq!(s.upsert(Database(0), &key, &value).is_ok(), fits, "a key of {length}");
            let expected = fits.then_some(value);
            assert_eq!(s.read(Database(0), &key).expect("reads"), expected);
        }
        s.delete(Database(0), &key).expect("deletes");
    }
}

/// After a restart the last page of the log was read beyond the cut, failed its checksum, and the
/// keys in it that had expired stayed.
#[test]
fn expired_keys_on_a_page_that_the_cut_divides_leave_after_a_restart() {
    let device = FaultDevice::new();
    let config = layout("simulated".as_ref(), 16 << 10, 4);
    {
        let store = support::open(&config, &device);
        let mut s = store.blocking_session();
        for i in 0..40u32 {
            let put = Change::Put { value: b"gone", expires_at_ms: Some(PAST), encoding: 0 };
            s.rmw(Database(0), &i.to_le_bytes(), |_, _| (put, ())).expect("writes");
        }
        store.checkpoint().expect("checkpoints");
        assert_eq!(store.key_count(Database(0)), (40, 40));
    }
    let store = support::open(&config, &device);
    store.pause_expiry_cycle(false);
    let since = std::time::Instant::now();
    while store.key_count(Database(0)) != (0, 0) {
        assert!(since.elapsed().as_secs() < 30, "{:?} are left", store.key_count(Database(0)));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// A random key of a cold store was sought in another bucket after each read, so it took a read
/// for each of some hundred tries.
#[test]
fn a_random_cold_key_takes_few_reads() {
    let device = FaultDevice::new();
    let store = support::open(&support::tiny(), &device);
    let mut s = store.blocking_session();
    for i in 0..3000u32 {
        s.upsert(Database(0), &i.to_le_bytes(), b"cold").expect("writes");
    }
    let before = store.stats().device_reads;
    for _ in 0..50 {
        let found = s.run(|inside, op| inside.random_key(op, Database(0), |v| v.is_some()));
        assert!(found.expect("reads"));
    }
    let reads = store.stats().device_reads - before;
    // A bucket holds up to seven records, and a few of them overflow.
    assert!(reads < 50 * 20, "{reads} reads for 50 keys");
    assert!(entry_of(&mut s, 0, &7u32.to_le_bytes()).is_some());
}

/// The first read of a record near the cut went on into blocks that were never written, and the
/// record was called damaged.
#[test]
fn the_last_records_before_a_cut_are_read_after_a_restart() {
    let device = FaultDevice::new();
    let config = layout("simulated".as_ref(), 16 << 10, 4);
    for count in 140..170u32 {
        {
            let store = support::open(&config, &device);
            let mut s = store.blocking_session();
            for i in 0..count {
                s.upsert(Database(0), &i.to_le_bytes(), b"x").expect("writes");
            }
            store.checkpoint().expect("checkpoints");
        }
        let store = support::open(&config, &device);
        let mut s = store.blocking_session();
        for i in (0..count).rev() {
            assert!(entry_of(&mut s, 0, &i.to_le_bytes()).is_some(), "{i} of {count}");
        }
    }
}
