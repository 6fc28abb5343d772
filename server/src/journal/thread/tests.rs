//! The journal's thread on a disk that takes its time, or says no.

use super::*;
use crate::aof::{
    Chain, Effect as FileEffect, Header, LocalFiles, Origin, PartFile, Parts, Replay,
};
use ferrite_hybridlog::{BlockingSession, Config, Database, Operation, Stop};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Condvar, Mutex, Weak};

const DB: Database = Database(0);

/// What the disk does with those who ask it for something.
#[derive(Debug, Default)]
struct Faults {
    writes_wait: Mutex<bool>,
    syncs_wait: Mutex<bool>,
    /// New files.
    begins_wait: Mutex<bool>,
    goes_on: Condvar,
    /// Who waits.
    waiting: AtomicU64,
    writes_fail: AtomicBool,
    syncs_fail: AtomicBool,
}

impl Faults {
    fn wait(&self, waits: &Mutex<bool>) {
        let waits = lock(waits);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let gone_on = self.goes_on.wait_while(waits, |waits| *waits);
        drop(gone_on.expect("nobody panics under it"));
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
    /// Whether somebody waits, most likely.
    fn waits(&self) -> bool {
        (0..3).all(|_| {
            std::thread::sleep(Duration::from_millis(1));
            self.waiting.load(Ordering::SeqCst) > 0
        })
    }
    fn keep_waiting(&self, waits: &Mutex<bool>, on: bool) {
        *lock(waits) = on;
        self.goes_on.notify_all();
    }
    fn fail(flag: &AtomicBool) -> io::Result<()> {
        match flag.load(Ordering::SeqCst) {
            true => Err(io::Error::other("the disk says no")),
            false => Ok(()),
        }
    }
}

/// A disk that may be slow, or fail.
#[derive(Clone, Debug, Default)]
struct SlowFiles(Arc<Faults>);

#[derive(Debug)]
struct SlowFile(File, Arc<Faults>);

impl Files for SlowFiles {
    type File = SlowFile;
    fn create(&self, path: &Path) -> io::Result<SlowFile> {
        self.0.wait(&self.0.begins_wait);
        Ok(SlowFile(LocalFiles.create(path)?, Arc::clone(&self.0)))
    }
    fn replace_link(&self, original: &Path, link: &Path) -> io::Result<()> {
        LocalFiles.replace_link(original, link)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        LocalFiles.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        LocalFiles.remove(path)
    }
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        LocalFiles.sync_directory(path)
    }
}

/// What a rewrite would bring.
impl From<File> for SlowFile {
    fn from(file: File) -> Self {
        Self(file, Arc::default())
    }
}

impl PartFile for SlowFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.1.wait(&self.1.writes_wait);
        if Faults::fail(&self.1.writes_fail).is_err() {
            // Some of it is there.
            PartFile::write_at(&self.0, &bytes[..bytes.len() / 2], offset)?;
            return Faults::fail(&self.1.writes_fail);
        }
        PartFile::write_at(&self.0, bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.wait(&self.1.syncs_wait);
        Faults::fail(&self.1.syncs_fail)?;
        self.0.sync()
    }
}

/// A store whose journal writes to such a disk.
struct Bench {
    directory: tempfile::TempDir,
    store: Store,
    files: SlowFiles,
    shared: Arc<Shared>,
}

const AOF: &str = "a.aof";

/// What the disk thread has of its channels.
type DiskThread = (Receiver<Job<SlowFiles>>, Sender<Done<SlowFiles>>);

impl Bench {
    fn new(policy: AofSync) -> (Self, RedoReader, PartWriter<SlowFiles>) {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = Config::new(directory.path());
        config.redo_ring_size = 1 << 20;
        let store = Store::open(config).expect("opened");
        let reader = store.redo().expect("it has a redo log");
        let header = Header { number: 1, start: Start::Empty, before: None, time_ms: 1 };
        let files = SlowFiles::default();
        let writer = PartWriter::begin(files.clone(), directory.path(), AOF, header, 0);
        let shared = Arc::new(Shared::new(policy, BTreeMap::new(), Weak::new()));
        (Self { directory, store, files, shared }, reader, writer.expect("begun"))
    }
    fn running(policy: AofSync) -> (Self, Vec<JoinHandle<()>>) {
        let (bench, reader, writer) = Self::new(policy);
        let threads = bench.shared.start(&bench.store, reader, writer);
        (bench, threads)
    }
    fn entries(&self) -> u64 {
        lock(&self.shared.state).entries
    }
    /// The journal's thread without a thread, and both ends of what leads to the disk thread.
    fn by_hand(policy: AofSync) -> (Self, Writing<SlowFiles>, DiskThread) {
        let (bench, reader, writer) = Self::new(policy);
        let (to_do, jobs) = mpsc::channel();
        let (done, results) = mpsc::channel();
        let (shared, store) = (Arc::clone(&bench.shared), bench.store.clone());
        // Nobody heals: the tests do.
        lock(&shared.healing).runs = true;
        (bench, Writing::new(reader, writer, shared, store, (to_do, results)), (jobs, done))
    }
    fn chain(&self, origin: Origin) -> Chain {
        let parts = Parts::find(self.directory.path(), AOF).expect("readable");
        parts.chain(origin).expect("a chain")
    }
    /// The keys that a start finds.
    fn replayed(&self, origin: Origin) -> Vec<String> {
        let mut replay = Replay::new(&self.chain(origin), None).expect("sound");
        let mut keys = Vec::new();
        while let Some(entry) = replay.next_entry().expect("sound") {
            if let FileEffect::Put { key, .. } = entry.effect {
                keys.push(String::from_utf8_lossy(key).into_owned());
            }
        }
        keys
    }
    fn part_numbers(&self) -> Vec<u64> {
        let parts = Parts::find(self.directory.path(), AOF).expect("readable");
        parts.parts().keys().copied().collect()
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn put(session: &mut BlockingSession, key: &str) {
    session.upsert(DB, key.as_bytes(), b"v").expect("taken");
}

/// A disk that takes its time, wherever: in a write, in a sync, at a cut.
#[test]
fn what_is_a_second_old_holds_writes_and_no_reads() {
    for place in ["write", "sync", "cut"] {
        let (bench, threads) = Bench::running(AofSync::Everysec);
        let faults = Arc::clone(&bench.files.0);
        let waits = if place == "write" { &faults.writes_wait } else { &faults.syncs_wait };
        let mut blocking = bench.store.blocking_session();
        let (store, tail) = (bench.store.clone(), bench.store.redo_tail());
        let cut = (place == "cut").then(|| {
            faults.keep_waiting(waits, true);
            let cut = std::thread::spawn(move || store.checkpoint().expect("complete"));
            until("the cut is marked", || bench.store.redo_tail() > tail);
            cut
        });
        faults.keep_waiting(waits, true);
        put(&mut blocking, "first");
        until("writes are held", || bench.shared.held.load(Ordering::SeqCst));
        let mut session = bench.store.session(|| {});
        let mut op = Operation::new(0);
        assert!(!session.enter().may_write(&mut op), "{place}");
        let read = session.enter().read(&mut Operation::new(1), DB, b"first", |v| v.is_some());
        assert_eq!(read, Ok(true));
        let waits_for_it = std::thread::spawn({
            let store = bench.store.clone();
            move || put(&mut store.blocking_session(), "third")
        });
        faults.keep_waiting(waits, false);
        waits_for_it.join().expect("it goes on");
        until("writes go on", || session.enter().may_write(&mut op));
        assert_eq!(lock(&bench.shared.state).delayed, 1, "{place}");
        cut.map(|cut| cut.join().expect("it goes on"));
        bench.shared.stop(&bench.store);
        threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
        assert_eq!(bench.replayed(Origin::Empty), ["first", "third"], "{place}");
    }
}

/// What comes while the disk thread waits is taken, and goes where it belongs.
#[test]
fn entries_are_taken_during_a_sync_and_a_cut() {
    for policy in [AofSync::Everysec, AofSync::No, AofSync::Always] {
        let (bench, threads) = Bench::running(policy);
        let faults = Arc::clone(&bench.files.0);
        let mut session = bench.store.blocking_session();
        put(&mut session, "a");
        until("it is taken", || bench.entries() == 1);
        if policy != AofSync::Always {
            faults.keep_waiting(&faults.syncs_wait, true);
            // As AOF SYNC does.
            bench.shared.sync_wanted.store(true, Ordering::SeqCst);
            bench.store.wake_redo();
            until("it waits for the sync", || faults.waits());
            put(&mut session, "b");
            until("entries are taken during a sync", || bench.entries() == 2);
            faults.keep_waiting(&faults.syncs_wait, false);
            until("it goes on", || !faults.waits());
        } else {
            put(&mut session, "b");
        }
        // Not its sync: if nothing comes for long, the journal's own thread has one to do.
        faults.keep_waiting(&faults.begins_wait, true);
        let (store, tail) = (bench.store.clone(), bench.store.redo_tail());
        let cut = std::thread::spawn(move || store.checkpoint().expect("complete").number);
        until("the cut is marked", || bench.store.redo_tail() > tail);
        put(&mut session, "c");
        until("entries are taken during a cut", || bench.entries() == 3);
        assert!(!cut.is_finished(), "a checkpoint waits for its part");
        faults.keep_waiting(&faults.begins_wait, false);
        let checkpoint = cut.join().expect("complete");
        bench.shared.stop(&bench.store);
        threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
        assert_eq!(bench.replayed(Origin::Empty), ["a", "b", "c"]);
        assert_eq!(bench.replayed(Origin::Checkpoint(checkpoint)), ["c"]);
        assert_eq!(bench.part_numbers(), [1, 2]);
    }
}

/// What was written before a write failed is sound, if the disk says so once more.
#[test]
fn a_write_that_fails_does_not_take_those_before_it_along() {
    for sync_fails in [false, true] {
        let (bench, mut writing, _disk) = Bench::by_hand(AofSync::No);
        let mut session = bench.store.blocking_session();
        put(&mut session, "sound");
        writing.round();
        put(&mut session, "lost");
        bench.files.0.writes_fail.store(true, Ordering::SeqCst);
        bench.files.0.syncs_fail.store(sync_fails, Ordering::SeqCst);
        writing.round();
        assert_eq!(writing.condition, Condition::Failed);
        assert!(session.upsert(DB, b"k", b"v").is_err(), "refused");
        bench.files.0.writes_fail.store(false, Ordering::SeqCst);
        bench.files.0.syncs_fail.store(false, Ordering::SeqCst);
        // As a checkpoint does that is never completed.
        writing.cut(7, 2_000);
        assert_eq!(writing.condition, Condition::Reborn(7));
        let expected: &[&str] = if sync_fails { &[] } else { &["sound"] };
        assert_eq!(bench.replayed(Origin::Empty), expected, "a failed sync is believed");
    }
}

#[test]
fn a_disk_that_stays_ill_leaves_one_part_behind() {
    let (bench, mut writing, _disk) = Bench::by_hand(AofSync::Always);
    let mut session = bench.store.blocking_session();
    put(&mut session, "a");
    writing.round();
    put(&mut session, "b");
    bench.files.0.syncs_fail.store(true, Ordering::SeqCst);
    writing.round();
    assert_eq!(writing.condition, Condition::Failed);
    writing.cut(2, 2_000);
    assert_eq!((writing.condition, bench.part_numbers()), (Condition::Failed, vec![1]));
    bench.files.0.syncs_fail.store(false, Ordering::SeqCst);
    for checkpoint in 3..6 {
        writing.cut(checkpoint, 2_000);
        assert_eq!(writing.condition, Condition::Reborn(checkpoint));
        lock(&bench.shared.healing).heal = Heal::Incomplete;
        writing.round();
        assert_eq!(writing.condition, Condition::Failed);
        assert_eq!(bench.part_numbers().len(), 2, "the failed one and the newest try");
        assert_eq!(bench.replayed(Origin::Empty), ["a"]);
    }
    writing.cut(6, 2_000);
    lock(&bench.shared.healing).heal = Heal::Complete(6);
    writing.round();
    assert_eq!(writing.condition, Condition::Well);
    put(&mut session, "c");
    writing.round();
    assert_eq!(bench.replayed(Origin::Checkpoint(6)), ["c"]);
    assert_eq!(bench.store.redo_durable(), bench.store.redo_tail());
    // It stands: another failure goes on from it.
    put(&mut session, "d");
    bench.files.0.syncs_fail.store(true, Ordering::SeqCst);
    writing.round();
    bench.files.0.syncs_fail.store(false, Ordering::SeqCst);
    writing.cut(7, 3_000);
    assert_eq!(bench.part_numbers().len(), 3);
    assert_eq!(bench.replayed(Origin::Checkpoint(6)), ["c"]);
}

/// A crash before the checkpoint that heals is complete finds nothing that only it could explain.
#[test]
fn a_part_that_heals_holds_nothing_until_its_checkpoint_is_complete() {
    let (bench, mut writing, _disk) = Bench::by_hand(AofSync::Always);
    let mut session = bench.store.blocking_session();
    put(&mut session, "a");
    bench.files.0.syncs_fail.store(true, Ordering::SeqCst);
    writing.round();
    bench.files.0.syncs_fail.store(false, Ordering::SeqCst);
    writing.cut(7, 2_000);
    assert_eq!(writing.condition, Condition::Reborn(7));
    let length = || {
        let parts = Parts::find(bench.directory.path(), AOF).expect("readable");
        let (_, part) = parts.parts().last_key_value().expect("begun");
        (part.header.start, part.length - part.header.render().len() as u64)
    };
    let idle = || Instant::now().checked_sub(2 * IDLE).expect("the machine runs for longer");
    writing.taken_at = idle();
    writing.round();
    assert_eq!(length(), (Start::Only(7), 0));
    lock(&bench.shared.healing).heal = Heal::Complete(7);
    writing.round();
    writing.taken_at = idle();
    writing.round();
    assert_ne!(length().1, 0, "the mark of an idle part");
}

/// A turn behind a sync that fails does not try the disk again, which might say yes.
#[test]
fn a_cut_behind_a_sync_that_fails_begins_nothing() {
    let (bench, mut writing, (jobs, done)) = Bench::by_hand(AofSync::No);
    let mut session = bench.store.blocking_session();
    put(&mut session, "a");
    bench.shared.sync_wanted.store(true, Ordering::SeqCst);
    writing.round();
    put(&mut session, "b");
    writing.take();
    writing.cut(1, 2_000);
    put(&mut session, "c");
    writing.take();
    let (sync, turn) = (jobs.recv().expect("a sync"), jobs.recv().expect("a turn"));
    bench.files.0.syncs_fail.store(true, Ordering::SeqCst);
    assert!(done.send(wait_for(sync)).is_ok());
    bench.files.0.syncs_fail.store(false, Ordering::SeqCst);
    assert!(done.send(wait_for(turn)).is_ok());
    writing.round();
    assert_eq!((writing.condition, writing.cutting), (Condition::Failed, None));
    assert_eq!(bench.part_numbers(), [1]);
}

#[test]
fn writes_are_taken_while_a_transaction_is_not_complete() {
    let (bench, mut writing, _disk) = Bench::by_hand(AofSync::Always);
    let mut session = bench.store.session(|| {});
    let mut alone = session.alone();
    let put = ferrite_hybridlog::Change::Put { value: b"v", expires_at_ms: None, encoding: 0 };
    let written = alone.enter().update(&mut Operation::new(0), DB, b"k", |_, _| (put, ()));
    assert_eq!(written, Ok::<(), Stop>(()));
    writing.round();
    assert!(writing.writer.in_group());
    assert_eq!(bench.replayed(Origin::Empty), [""; 0], "half of it is not in the file");
    drop(alone);
    writing.round();
    assert_eq!(bench.replayed(Origin::Empty), ["k"]);
    assert_eq!(bench.store.redo_durable(), bench.store.redo_tail());
}
