//! What a store finds after a power cut, a failing disk, a full disk and flipped bits.
//!
//! A scripted life runs on the simulated device, which is cut at each of its I/Os in turn, and once
//! more at every fourth I/O of the recovery, after each first cut at others. What is found afterwards is
//! exactly the state of the last checkpoint that was reported, or of the one being taken when the power
//! went. The same life meets one error at each I/O in turn, and each file is damaged at many places: the
//! start is refused by name, a read fails, or the data is right.

mod support;

use ferrite_hybridlog::device::fault::{Completion, Fault, FaultDevice, Operation};
use ferrite_hybridlog::device::{Device, FileId};
use ferrite_hybridlog::{
    Backend, BlockingSession, Change, Config, Database, OpenError, OperationError, Store,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use support::{Entry, FUTURE, Model, PAST, check, in_memory, keys_on, layout, tiny};

const GROUPS: usize = 6;
const EACH: usize = 3;

/// A device on which a store was made and closed, and the keys that collide in it.
struct Made {
    config: Config,
    device: Arc<FaultDevice>,
    keys: Vec<Vec<u8>>,
}

impl Made {
    fn new(config: Config) -> Self {
        let device = FaultDevice::new();
        let store = support::open(&config, &device);
        if config.backend == Backend::Memory {
            // Before the first one it has no file.
            store.checkpoint().expect("checkpoints");
        }
        drop(store);
        let keys = keys_on(&device, GROUPS, EACH);
        Self { config, device, keys }
    }

    /// A copy of the device as it is now.
    fn copy(&self) -> Arc<FaultDevice> {
        // Nothing is unsynced, so no seed loses anything.
        self.device.crash(0)
    }
}

/// A life: what was done, what was reported, what a start may find.
struct Life<'a> {
    made: &'a Made,
    store: Store,
    session: BlockingSession,
    model: Model,
    /// The state of the last checkpoint that was reported, then those of later failed ones.
    found: Vec<Model>,
    /// How many writes and checkpoints failed.
    failures: usize,
    /// Whether to go on after a failure.
    stubborn: bool,
}

impl<'a> Life<'a> {
    fn new(made: &'a Made, device: &Arc<FaultDevice>) -> Result<Self, OpenError> {
        let store = Store::open_on(made.config.clone(), device.clone() as Arc<dyn Device>)?;
        store.pause_expiry_cycle(true);
        let session = store.blocking_session();
        let model = Model::new(3);
        let found = vec![model.clone()];
        Ok(Self { made, store, session, model, found, failures: 0, stubborn: false })
    }

    fn is_over(&self) -> bool {
        self.failures > 0 && !self.stubborn
    }

    fn put(&mut self, db: u8, key: usize, value: Vec<u8>, expires_at_ms: Option<u64>) {
        let name = &self.made.keys[key];
        let put = Change::Put { value: &value, expires_at_ms, encoding: 0 };
        match self.session.rmw(Database(db), name, |_, _| (put, ())) {
            Ok(()) => self.model.put(db, name, Entry { value, expires_at_ms, encoding: 0 }),
            Err(e) => self.failed(&e),
        }
    }

    fn delete(&mut self, db: u8, key: usize) {
        let name = &self.made.keys[key];
        match self.session.delete(Database(db), name) {
            Ok(was_there) => {
                assert_eq!(was_there, self.model.get(db, name).is_some());
                self.model.remove(db, name);
            }
            Err(e) => self.failed(&e),
        }
    }

    fn failed(&mut self, error: &OperationError) {
        let expected =
            matches!(error, OperationError::NotWritable(_) | OperationError::Unreadable(_));
        assert!(expected, "{error}");
        self.failures += 1;
    }

    fn checkpoint(&mut self) {
        match self.store.checkpoint() {
            Ok(_) => self.found = vec![self.model.clone()],
            Err(_) => {
                self.found.push(self.model.clone());
                self.failures += 1;
            }
        }
    }

    fn compact(&mut self) {
        if self.store.compact().is_err() {
            self.failures += 1;
        }
    }

    /// Every key is right or cannot be read.
    fn look(&mut self) {
        for db in 0..2u8 {
            for key in &self.made.keys {
                let value = self.session.read(Database(db), key);
                match value {
                    Ok(value) => {
                        assert_eq!(value.as_ref(), self.model.get(db, key).map(|e| &e.value));
                    }
                    Err(e) => assert!(matches!(e, OperationError::Unreadable(_)), "{e}"),
                }
            }
        }
    }

    /// The script: writes of all sizes, overwrites in place and by copy, deletes, expiries, flushed
    /// and swapped databases, commands of several keys, and checkpoints between them.
    fn run(&mut self) {
        for round in 0..5u8 {
            for i in 0..2 * self.made.keys.len() {
                let (db, key) =
                    ((i % 3 / 2) as u8, (i * 7 + usize::from(round)) % self.made.keys.len());
                let length = [5, 90, 300, 700][(i + usize::from(round)) % 4];
                let expiry = [None, Some(FUTURE), None, Some(PAST), None][i % 5];
                self.put(db, key, vec![round * 50 + i as u8; length], expiry);
                if self.is_over() {
                    return;
                }
                if i % 4 == 3 {
                    self.delete(db, (key + 5) % self.made.keys.len());
                }
                if i == 9 {
                    self.tables(round);
                }
                if i == 20 {
                    self.many(round);
                }
                if i == 22 && round == 3 {
                    self.compact();
                }
            }
            self.checkpoint();
            if self.is_over() {
                return;
            }
            self.look();
        }
        self.put(0, 1, b"beyond the last checkpoint".to_vec(), None);
    }

    fn tables(&mut self, round: u8) {
        let done = match round {
            1 => self.store.flush_database(Database(1)).map(|()| self.model.0[1].clear()),
            2 => self
                .store
                .swap_databases(Database(0), Database(1))
                .map(|()| self.model.0.swap(0, 1)),
            3 => self.store.flush_all().map(|()| self.model = Model::new(3)),
            _ => Ok(()),
        };
        if let Err(e) = done {
            self.failed(&e);
        }
    }

    /// One command of several keys, small enough not to run alone: that one aborts the process when
    /// the disk fails half way.
    fn many(&mut self, round: u8) {
        let keys = &self.made.keys[..4];
        let places: Vec<(Database, &[u8])> =
            keys.iter().map(|k| (Database(0), k.as_slice())).collect();
        let value = vec![round; 100];
        let done = self.session.run(|inside, op| {
            inside.update_many(op, &places, |many| {
                for i in 0..places.len() {
                    many.put_owned(i, value.clone(), None, 0);
                }
            })
        });
        match done {
            Ok(()) => {
                for key in keys {
                    let entry = Entry { value: value.clone(), expires_at_ms: None, encoding: 0 };
                    self.model.put(0, key, entry);
                }
            }
            Err(e) => self.failed(&e),
        }
    }
}

/// Opens what a device holds and says which of the states it is. Panics when it is none.
fn recovered(made: &Made, device: &Arc<FaultDevice>, states: &[Model], story: &str) {
    let store = match Store::open_on(made.config.clone(), device.clone() as Arc<dyn Device>) {
        Ok(store) => store,
        Err(e) => panic!("{story}: {e}"),
    };
    store.pause_expiry_cycle(true);
    let mut s = store.blocking_session();
    let keys = &made.keys;
    let mut found = Model::new(3);
    for db in 0..3u8 {
        for key in keys {
            if let Some(entry) = support::entry_of(&mut s, db, key) {
                found.put(db, key, entry);
            }
        }
    }
    assert!(states.contains(&found), "{story}: {found:?} is none of {states:?}");
    check(&store, &mut s, &found, keys);
}

/// Of the recovery's steps every so many is cut after each first cut: over the first ones all are.
const SECOND: u64 = 4;
/// Seeds of a crash: the device's styles of losing things come from them.
const SEEDS: u64 = 3;

fn cut_at_every_step(config: Config, completion: Completion) {
    let made = Made::new(config);
    let whole = made.copy();
    whole.set_completion(completion);
    let mut life = Life::new(&made, &whole).expect("opens");
    life.run();
    assert_eq!(life.failures, 0);
    drop(life);
    let steps = whole.io_count();
    let least = if made.config.backend == Backend::Memory { 40 } else { 60 };
    assert!(steps > least, "{steps} steps");
    for step in 1..=steps {
        let device = made.copy();
        device.set_completion(completion);
        device.cut_at(step);
        let Ok(mut life) = Life::new(&made, &device) else { continue };
        life.run();
        let states = std::mem::take(&mut life.found);
        drop(life);
        for seed in 0..SEEDS {
            let story = format!("cut at step {step} of {steps}, crash {seed}");
            let after = device.crash(seed + step * SEEDS);
            recovered(&made, &after, &states, &story);
            // The recovery's own steps; and a start after a start finds the same.
            let again = after.io_count();
            recovered(&made, &after, &states, &format!("{story}, started twice"));
            if seed == step % SEEDS {
                for second in (1 + step % SECOND..=again).step_by(SECOND as usize) {
                    let device = device.crash(seed + step * SEEDS);
                    device.cut_at(second);
                    drop(Store::open_on(made.config.clone(), device.clone() as Arc<dyn Device>));
                    let after = device.crash(second);
                    recovered(&made, &after, &states, &format!("{story}, then at {second}"));
                }
            }
        }
    }
}

#[test]
fn a_cut_at_any_step_leaves_the_last_checkpoint() {
    cut_at_every_step(tiny(), Completion::InOrder);
}

#[test]
fn a_cut_at_any_step_leaves_the_last_checkpoint_on_a_disk_that_reorders() {
    let mut config = layout("simulated".as_ref(), 16 << 10, 4);
    config.compress_images = false;
    cut_at_every_step(config, Completion::Shuffled(1));
}

#[test]
fn a_cut_at_any_step_leaves_the_last_checkpoint_of_a_store_in_memory() {
    cut_at_every_step(in_memory(tiny()), Completion::InOrder);
}

#[test]
fn a_cut_at_any_step_leaves_the_last_checkpoint_of_a_store_in_memory_on_a_disk_that_reorders() {
    let mut config = layout("simulated".as_ref(), 16 << 10, 4);
    config.compress_images = false;
    cut_at_every_step(in_memory(config), Completion::Shuffled(3));
}

/// Segments of one page are synced as soon as they are flushed, most of them by no checkpoint.
fn one_page_segments() -> Config {
    let mut config = tiny();
    config.segment_size = config.page_size;
    config
}

#[test]
fn a_cut_at_any_step_leaves_the_last_checkpoint_in_segments_of_one_page() {
    cut_at_every_step(one_page_segments(), Completion::Shuffled(2));
}

/// Fills the first segment of a new run and waits until it is flushed; says which one it is.
fn fill_a_segment(life: &mut Life<'_>, before: impl FnOnce(FileId)) -> u64 {
    let size = life.made.config.segment_size;
    let segment = life.store.stats().log_tail / size;
    before(FileId::Segment(segment));
    let keys = life.made.keys.len();
    for i in 0usize.. {
        let stats = life.store.stats();
        if stats.log_flushed_until >= (segment + 1) * size || stats.not_writable.is_some() {
            return segment;
        }
        life.put(0, i % keys, vec![i as u8; 900], None);
    }
    unreachable!("the log ends");
}

/// Polls for what must come.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = std::time::Instant::now();
    while !is_so() {
        assert!(since.elapsed().as_secs() < 60, "it never came: {what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// The page thread has whole segments synced. A checkpoint that cuts meanwhile is complete only with
/// those syncs: its own list of what to sync does not have them.
#[test]
fn a_checkpoint_waits_for_the_syncs_of_whole_segments() {
    let made = Made::new(tiny());
    for side in [false, true] {
        let device = made.copy();
        let mut life = Life::new(&made, &device).expect("opens");
        fill_a_segment(&mut life, |segment| {
            let FileId::Segment(n) = segment else { unreachable!("it is one") };
            device.hold_syncs(if side { FileId::Side(n) } else { segment });
        });
        wait_until("the sync", || device.is_holding());
        let manifest = device.contents(FileId::Manifest);
        std::thread::scope(|scope| {
            let checkpoint = scope.spawn(|| life.store.checkpoint());
            // Far longer than it takes when nothing is waited for. The manifest is written once
            // before, to reserve the checkpoint's number.
            std::thread::sleep(std::time::Duration::from_millis(300));
            let was_done = checkpoint.is_finished();
            device.release_syncs();
            checkpoint.join().expect("does not panic").expect("checkpoints");
            assert!(!was_done, "the checkpoint was complete without the sync");
        });
        assert_ne!(device.contents(FileId::Manifest), manifest);
        let states = [life.model.clone()];
        drop(life);
        for seed in 0..8 {
            recovered(&made, &device.crash(seed), &states, &format!("side: {side}, {seed}"));
        }
    }
}

#[test]
fn a_failed_sync_of_a_whole_segment_ends_writing_for_good() {
    let made = Made::new(tiny());
    for side in [false, true] {
        let device = made.copy();
        let mut life = Life::new(&made, &device).expect("opens");
        life.stubborn = true;
        fill_a_segment(&mut life, |segment| {
            let FileId::Segment(n) = segment else { unreachable!("it is one") };
            let file = if side { FileId::Side(n) } else { segment };
            device.inject(Fault::new(Operation::Sync, libc::EIO).file(file).times(1));
        });
        wait_until("the refusal", || life.store.stats().not_writable.is_some());
        let reason = life.store.stats().not_writable.expect("it is refused");
        assert!(reason.starts_with("syncing ") && reason.contains("log-"), "{reason}");
        device.heal();
        life.checkpoint();
        let failures = life.failures;
        life.put(0, 0, b"more".to_vec(), None);
        assert_eq!(life.failures, failures + 1, "it takes writes");
        life.look();
        let states = life.found.split_off(0);
        drop(life);
        for seed in 0..4 {
            recovered(&made, &device.crash(seed), &states[..1], "nothing was promised");
        }
    }
}

/// Who cannot open a file has synced nothing and failed nothing. The checkpoint that met it once
/// forgot what it had not come to, and the next one was complete without it.
#[test]
fn a_file_that_could_not_be_opened_is_synced_by_the_next_checkpoint() {
    for config in [tiny(), one_page_segments()] {
        let made = Made::new(config);
        // The faults strike the page thread's syncs, or only those of the checkpoint.
        for whole in [true, false] {
            let device = made.copy();
            let mut life = Life::new(&made, &device).expect("opens");
            life.stubborn = true;
            let first = life.store.stats().log_tail / made.config.segment_size;
            let fault = || {
                // Image and manifest can be synced.
                for segment in (first..first + 100).map(FileId::Segment) {
                    device.inject(Fault::new(Operation::Sync, libc::EMFILE).file(segment));
                }
            };
            if whole {
                fault();
                fill_a_segment(&mut life, |_| {});
                fill_a_segment(&mut life, |_| {});
            }
            life.put(0, 1, vec![7; 600], None);
            if !whole {
                fault();
            }
            life.checkpoint();
            assert_eq!(life.failures, 1, "it could open nothing");
            assert_eq!(life.store.stats().not_writable, None);
            device.heal();
            life.checkpoint();
            assert_eq!(life.failures, 1);
            let states = [life.model.clone()];
            drop(life);
            for seed in 0..16 {
                recovered(&made, &device.crash(seed), &states, &format!("{whole}, {seed}"));
            }
        }
    }
}

#[test]
fn a_cut_while_a_store_is_made_leaves_an_empty_one() {
    let whole = FaultDevice::new();
    drop(support::open(&tiny(), &whole));
    for step in 1..=whole.io_count() {
        for seed in 0..8 {
            let device = FaultDevice::new();
            device.cut_at(step);
            drop(Store::open_on(tiny(), device.clone() as Arc<dyn Device>));
            let after = device.crash(seed);
            let store = support::open(&tiny(), &after);
            let mut s = store.blocking_session();
            assert_eq!(s.read(Database(0), b"key").expect("reads"), None);
            s.upsert(Database(0), b"key", b"value").expect("writes");
            store.checkpoint().expect("checkpoints");
        }
    }
}

/// The files of the store that have numbers.
fn numbered(device: &FaultDevice) -> BTreeSet<FileId> {
    let files = device.list().expect("lists");
    files.into_iter().filter(|f| !matches!(f, FileId::Manifest | FileId::ManifestNew)).collect()
}

/// What a crash left is removed by the next start. Its numbers once came back when that start, too,
/// ended without a checkpoint: nothing was left then that knew them.
#[test]
fn no_number_comes_back_after_a_second_crash() {
    for power_cut in [false, true] {
        let made = Made::new(tiny());
        let mut device = made.copy();
        let mut ever = numbered(&device);
        let mut made_files = 0;
        for life in 0..24u64 {
            let before = numbered(&device);
            ever.extend(&before);
            let mut now = Life::new(&made, &device).expect("opens");
            now.stubborn = true;
            let written = if life % 3 == 1 { 0 } else { 70 };
            for i in 0..written {
                now.put(0, i % made.keys.len(), vec![life as u8; 900], None);
            }
            match life % 4 {
                // The image is complete, and no manifest names it.
                1 | 2 => {
                    let fault = Fault::new(Operation::Rename, libc::EIO).after(life / 4 % 2);
                    device.inject(fault.times(1));
                    now.checkpoint();
                    assert!(now.failures > 0, "nothing was renamed");
                }
                3 if life > 12 => now.checkpoint(),
                _ => {}
            }
            device.heal();
            let after = numbered(&device);
            for file in after.difference(&before) {
                assert!(!ever.contains(file), "{file:?} came back in life {life}");
                made_files += 1;
            }
            drop(now);
            // A segment's name that the power cut took has named nothing that a start could find.
            let lasts = |f: &FileId| !power_cut || matches!(f, FileId::Index(_));
            ever.extend(after.into_iter().chain(numbered(&device)).filter(lasts));
            if power_cut {
                device = device.crash(life);
            }
        }
        assert!(made_files > 50, "{made_files} files were made");
    }
}

/// One error at each step of its kind in turn; the life goes on as well as it can.
#[test]
fn one_error_at_any_step_is_reported_and_nothing_wrong_is_served() {
    let made = Made::new(tiny());
    let kinds = [
        Operation::Write,
        Operation::Sync,
        Operation::Create,
        Operation::Remove,
        Operation::Rename,
        Operation::SyncDirectory,
        Operation::Read,
    ];
    for kind in kinds {
        let mut met = 0;
        for n in 0..90u64 {
            // Closed in the one case, crashed in the other.
            let (skip, crash) = (n / 2, n % 2 == 1);
            let skip = if kind == Operation::Read { 5 * skip } else { skip };
            let device = made.copy();
            device.inject(Fault::new(kind, libc::EIO).after(skip).times(1));
            let mut life = match Life::new(&made, &device) {
                Ok(life) => life,
                Err(e) => {
                    let named = matches!(
                        e,
                        OpenError::Io { .. }
                            | OpenError::Damaged { .. }
                            | OpenError::DamagedImage { .. }
                    );
                    assert!(named, "{e}");
                    continue;
                }
            };
            life.stubborn = true;
            life.run();
            life.look();
            let stats = life.store.stats();
            if life.failures > 0 {
                met += 1;
            }
            let states = std::mem::take(&mut life.found);
            drop(life);
            let story =
                format!("{kind:?} {skip} failed ({:?}), crash: {crash}", stats.not_writable);
            device.heal();
            let device = if crash { device.crash(skip) } else { device };
            recovered(&made, &device, &states, &story);
        }
        // A file that cannot be removed stays until a later start.
        assert!(met > 0 || kind == Operation::Remove, "{kind:?} never failed");
    }
}

/// Writes until the store refuses, reads everything, lets `heal` end the cause, and writes again
/// without a restart; what is there then survives a close and a crash.
fn refuses_and_heals(
    made: &Made,
    device: &Arc<FaultDevice>,
    cause: impl FnOnce(&FaultDevice),
    heal: impl FnOnce(&FaultDevice),
    what: &str,
) {
    let mut life = Life::new(made, device).expect("opens");
    life.stubborn = true;
    life.put(0, 0, b"before".to_vec(), None);
    cause(device);
    let mut i = 0usize;
    while life.failures == 0 {
        life.put((i % 2) as u8, i % made.keys.len(), vec![i as u8; 600], None);
        i += 1;
        assert!(i < 10_000, "{what}: everything is taken");
    }
    life.look();
    for key in &made.keys {
        // What is in memory or on the disk is readable, whatever else failed.
        assert_eq!(
            life.session.read(Database(0), key).expect("reads"),
            life.model.get(0, key).map(|e| e.value.clone()),
        );
    }
    life.checkpoint();
    heal(device);
    let since = std::time::Instant::now();
    let healed = b"healed".to_vec();
    while life.model.get(0, &made.keys[3]).is_none_or(|e| e.value != healed) {
        life.put(0, 3, healed.clone(), None);
        assert!(since.elapsed().as_secs() < 60, "{what}: {:?}", life.store.stats().not_writable);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    life.store.checkpoint().expect("checkpoints");
    check(&life.store, &mut life.session, &life.model, &made.keys);
    let states = [life.model.clone()];
    drop(life);
    recovered(made, device, &states, &format!("{what}, closed"));
    recovered(made, &device.crash(1), &states, &format!("{what}, crashed"));
}

#[test]
fn a_full_disk_refuses_writes_serves_reads_and_heals_without_a_restart() {
    let made = Made::new(tiny());
    // Enough for so many bytes more: in the middle of a page, of a segment, of nothing.
    for space in [0, 3000, 5000, 9000, 20_000, 41_000, 70_000] {
        let device = made.copy();
        let cause = |device: &FaultDevice| device.set_free_space(space);
        let heal = |device: &FaultDevice| device.set_free_space(1 << 30);
        refuses_and_heals(&made, &device, cause, heal, &format!("{space} bytes"));
    }
}

/// A process that ran out of descriptors has not lost its disk: what it wrote must not depend on a
/// restart that loses it.
#[test]
fn a_shortage_of_descriptors_or_memory_passes_without_a_restart() {
    let made = Made::new(tiny());
    for (operation, errno) in [
        (Operation::Create, libc::EMFILE),
        (Operation::Write, libc::ENFILE),
        (Operation::Write, libc::ENOMEM),
    ] {
        let device = made.copy();
        let cause = |device: &FaultDevice| device.inject(Fault::new(operation, errno));
        let what = format!("{operation:?} {errno}");
        refuses_and_heals(&made, &device, cause, FaultDevice::heal, &what);
    }
}

#[test]
fn a_checkpoint_that_finds_the_disk_full_fails_and_the_next_one_does_not() {
    let made = Made::new(layout("simulated".as_ref(), 16 << 10, 4));
    let device = made.copy();
    let mut life = Life::new(&made, &device).expect("opens");
    life.stubborn = true;
    for key in 0..made.keys.len() {
        life.put(0, key, vec![key as u8; 1500], None);
    }
    assert_eq!(life.failures, 0);
    // Enough for the manifest and an image, not for a page.
    device.set_free_space(14 << 10);
    life.checkpoint();
    assert_eq!(life.failures, 1, "there is no room for the log");
    life.look();
    device.set_free_space(1 << 30);
    life.checkpoint();
    assert_eq!(life.failures, 1, "there is room again");
    let states = [life.model.clone()];
    drop(life);
    recovered(&made, &device.crash(0), &states, "after the disk was full");
}

/// It would wait, with everybody else behind the gate, for somebody to free space.
#[test]
fn a_command_that_the_disk_may_not_hold_is_refused_before_its_first_effect() {
    let made = Made::new(tiny());
    let device = made.copy();
    let store = support::open(&made.config, &device);
    let mut s = store.blocking_session();
    device.set_free_space(100_000);
    let keys: Vec<Vec<u8>> = (0..200u32).map(|i| i.to_le_bytes().to_vec()).collect();
    let places: Vec<(Database, &[u8])> = keys.iter().map(|k| (Database(0), &k[..])).collect();
    let refused = s.run(|inside, op| {
        inside.update_many(op, &places, |many| {
            (0..places.len()).for_each(|i| many.put_owned(i, vec![1; 900], None, 0));
        })
    });
    assert!(matches!(refused, Err(OperationError::NotWritable(_))), "{refused:?}");
    assert_eq!(s.read(Database(0), &keys[0]).expect("reads"), None);
    s.upsert(Database(0), &keys[0], b"small").expect("writes");
}

/// A life that ended well, for those who damage its files.
fn ended() -> (Made, Model) {
    let mut made = Made::new(tiny());
    let device = made.copy();
    let mut life = Life::new(&made, &device).expect("opens");
    life.run();
    life.checkpoint();
    let model = life.model.clone();
    drop(life);
    made.device = device.crash(0);
    (made, model)
}

/// Opens a damaged store: the start is refused by the name of what is damaged, or each key is right
/// or unreadable. Says which of the three it was.
fn damaged(
    made: &Made,
    device: &Arc<FaultDevice>,
    file: FileId,
    model: &Model,
    story: &str,
) -> usize {
    let store = match Store::open_on(made.config.clone(), device.clone() as Arc<dyn Device>) {
        Ok(store) => store,
        Err(OpenError::Damaged { path, advice, .. }) => {
            // A block and its checksum do not say which of them is wrong.
            let named = match file {
                FileId::Side(n) => vec![FileId::Side(n), FileId::Segment(n)],
                other => vec![other],
            };
            assert!(named.iter().any(|f| device.path(*f) == path), "{story}: {path:?}");
            assert!(!advice.is_empty());
            return 0;
        }
        Err(OpenError::DamagedImage { path, .. }) => {
            assert_eq!(path, device.path(file), "{story}");
            mended(made, device, model, story);
            return 0;
        }
        Err(e) => panic!("{story}: {e}"),
    };
    store.pause_expiry_cycle(true);
    let mut s = store.blocking_session();
    let mut unreadable = 0;
    for db in 0..3u8 {
        for key in &made.keys {
            match s.read(Database(db), key) {
                Ok(value) => {
                    let expected = model.get(db, key).map(|e| &e.value);
                    assert_eq!(value.as_ref(), expected, "{story}: wrong data");
                }
                Err(OperationError::Unreadable(what)) => {
                    assert!(what.contains("log-") && what.contains("offset"), "{what}");
                    unreadable += 1;
                }
                Err(e) => panic!("{story}: {e}"),
            }
        }
    }
    1 + usize::from(unreadable > 0)
}

/// Opens with a rebuilt index a store whose image is bad: all is there, and then is without that.
fn mended(made: &Made, device: &Arc<FaultDevice>, model: &Model, story: &str) {
    let config = Config { rebuild_index: true, ..made.config.clone() };
    let store = support::open(&config, device);
    assert!(store.recovery().index_rebuilt, "{story}");
    check(&store, &mut store.blocking_session(), model, &made.keys);
    drop(store);
    recovered(made, device, std::slice::from_ref(model), story);
}

/// The image of the newest checkpoint.
fn newest_image(device: &FaultDevice) -> FileId {
    let files = device.list().expect("lists").into_iter();
    files.filter(|f| matches!(f, FileId::Index(_))).max().expect("there is an image")
}

/// The checkpoint at the end of it either is there or the start is still refused; nothing is lost
/// by trying again.
#[test]
fn a_rebuild_of_the_index_that_is_cut_at_any_step_can_be_done_again() {
    let (made, model) = ended();
    let image = newest_image(&made.device);
    made.device.flip(image, 20, 3);
    let damaged = made.device.crash(0);
    let rebuild = Config { rebuild_index: true, ..made.config.clone() };
    let open = |config: &Config, device: &Arc<FaultDevice>| {
        Store::open_on(config.clone(), device.clone() as Arc<dyn Device>)
    };
    let whole = damaged.crash(0);
    drop(open(&rebuild, &whole).expect("opens"));
    let steps = whole.io_count();
    assert!(steps > 5, "{steps} steps");
    let mut saved = 0;
    for step in 1..=steps {
        for seed in 0..8 {
            let story = format!("cut at step {step} of {steps}, crash {seed}");
            let device = damaged.crash(0);
            device.cut_at(step);
            drop(open(&rebuild, &device));
            let after = device.crash(seed);
            match open(&made.config, &after) {
                Ok(store) => {
                    saved += 1;
                    drop(store);
                    recovered(&made, &after, std::slice::from_ref(&model), &story);
                }
                Err(OpenError::DamagedImage { path, .. }) => {
                    assert_eq!(path, after.path(image), "{story}");
                    mended(&made, &after, &model, &story);
                }
                Err(e) => panic!("{story}: {e}"),
            }
        }
    }
    assert!((1..steps * 8).contains(&saved), "{saved} of {} were saved", steps * 8);
}

/// A disk without room for the new image does not keep the data from those who ask for it.
#[test]
fn a_rebuilt_index_that_cannot_be_saved_serves_until_it_is() {
    let (made, model) = ended();
    made.device.flip(newest_image(&made.device), 20, 3);
    let device = made.device.crash(0);
    device.inject(Fault::new(Operation::Create, libc::ENOSPC).times(2));
    let config = Config { rebuild_index: true, ..made.config.clone() };
    let store = support::open(&config, &device);
    check(&store, &mut store.blocking_session(), &model, &made.keys);
    drop(store);
    device.heal();
    let refused = Store::open_on(made.config.clone(), device.clone() as Arc<dyn Device>);
    assert!(matches!(refused, Err(OpenError::DamagedImage { .. })), "it was not saved");
    let store = support::open(&config, &device);
    drop(store);
    recovered(&made, &device, std::slice::from_ref(&model), "saved at last");
}

#[test]
fn a_flipped_bit_anywhere_is_refused_or_harmless() {
    let (made, model) = ended();
    let [refused, right, unreadable] = flips(&made, &model);
    assert!(refused > 20 && right > 20, "{refused} refused, {right} right");
    assert_eq!(unreadable, 0, "the whole log is verified at the start");
}

#[test]
fn a_flipped_bit_that_the_start_does_not_look_at_is_unreadable_or_harmless() {
    let (mut made, model) = ended();
    made.config.verify_at_start = 0;
    let outcomes = flips(&made, &model);
    assert!(outcomes.iter().all(|n| *n > 20), "{outcomes:?}: refused, right, unreadable");
}

/// Flips bits all over the files; counts the starts that were refused, right, and right but for
/// what cannot be read.
fn flips(made: &Made, model: &Model) -> [u32; 3] {
    let mut outcomes = [0; 3];
    let mut seed = 1u64;
    for file in made.device.crash(0).list().expect("lists") {
        let contents = made.device.crash(0).contents(file).expect("it is there");
        let used = contents.iter().rposition(|b| *b != 0).map_or(1, |last| last + 1) as u64;
        for round in 0..200u64 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // Mostly where something is, at the start most of all.
            let at = match round % 4 {
                0 => round / 4 % used,
                3 => (seed >> 24) % contents.len() as u64,
                _ => (seed >> 24) % used,
            };
            let device = made.copy();
            device.flip(file, at, (seed >> 16) as u8 % 8);
            let story = format!("bit {} of byte {at} of {file:?}", (seed >> 16) as u8 % 8);
            outcomes[damaged(made, &device, file, model, &story)] += 1;
        }
    }
    outcomes
}

#[test]
fn a_file_that_is_cut_short_or_missing_is_refused_unreadable_or_harmless() {
    let (mut made, model) = ended();
    // What the sizes alone tell is refused whatever is verified.
    made.config.verify_at_start = 0;
    let mut refused = 0;
    let newest = newest_image(&made.copy());
    for file in made.device.crash(0).list().expect("lists") {
        let size = made.device.crash(0).size(file).expect("it is there");
        for part in 0..16 {
            let device = made.copy();
            device.truncate(file, size * part / 16);
            let story = format!("{file:?} cut to {part}/16");
            refused += usize::from(damaged(&made, &device, file, &model, &story) == 0);
        }
        let device = made.copy();
        device.remove(file).expect("removes");
        let outcome = damaged(&made, &device, file, &model, &format!("{file:?} is missing"));
        let unneeded = matches!(file, FileId::Index(_)) && file != newest;
        assert!(outcome == 0 || unneeded, "a store without {file:?} was opened");
    }
    assert!(refused > 10, "{refused} were refused");
}
