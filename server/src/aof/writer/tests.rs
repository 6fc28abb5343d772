//! A writer on a disk of the tests' own: the power is cut at each step in turn, and each step fails
//! once. What is said to be on disk is found again, as a prefix, and a crash is never taken for
//! damage.

use super::super::chain::{Gap, Origin, Parts};
use super::super::effect::{Effect, Step};
use super::super::files::LocalFiles;
use super::super::reader::{End, PartReader};
use super::super::testing::entry;
use super::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::rc::Rc;

const AOF: &str = "appendonly.aof";

/// One step of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
enum DiskStep {
    Create(PathBuf),
    Write(usize),
    SyncFile(usize),
    Link(PathBuf),
    Rename(PathBuf),
    Remove(PathBuf),
    SyncNames,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    /// Bytes that are on disk.
    synced: usize,
}

type Names = BTreeMap<PathBuf, usize>;

/// What is there: names, those of them that are on disk, and files.
type Content = (Names, Names, Vec<Inode>);

#[derive(Clone, Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: Names,
    synced_names: Names,
    steps: Vec<DiskStep>,
    /// What was there before each step.
    history: Vec<Content>,
    /// The step that fails.
    fails: Option<usize>,
}

impl State {
    fn step(&mut self, step: DiskStep) -> io::Result<()> {
        self.history.push((self.names.clone(), self.synced_names.clone(), self.inodes.clone()));
        self.steps.push(step);
        match self.fails {
            Some(at) if at + 1 == self.steps.len() => Err(io::Error::other("the disk says no")),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Disk(Rc<RefCell<State>>);

#[derive(Debug)]
struct DiskFile(Disk, usize);

impl Files for Disk {
    type File = DiskFile;

    fn create(&self, path: &Path) -> io::Result<DiskFile> {
        let mut state = self.0.borrow_mut();
        state.step(DiskStep::Create(path.into()))?;
        assert!(!state.names.contains_key(path), "no number is used twice: {path:?}");
        let number = state.inodes.len();
        state.inodes.push(Inode::default());
        state.names.insert(path.into(), number);
        Ok(DiskFile(self.clone(), number))
    }
    fn replace_link(&self, original: &Path, link: &Path) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.step(DiskStep::Link(link.into()))?;
        let number = state.names[original];
        state.names.insert(link.into(), number);
        Ok(())
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.step(DiskStep::Rename(to.into()))?;
        assert!(!state.names.contains_key(to), "no number is used twice: {to:?}");
        let number = state.names.remove(from).expect("it is there");
        state.names.insert(to.into(), number);
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.step(DiskStep::Remove(path.into()))?;
        state.names.remove(path);
        Ok(())
    }
    fn sync_directory(&self, _path: &Path) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.step(DiskStep::SyncNames)?;
        state.synced_names = state.names.clone();
        Ok(())
    }
}

impl PartFile for DiskFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.0.borrow_mut();
        let result = state.step(DiskStep::Write(self.1));
        let inode = &mut state.inodes[self.1];
        if offset == 0 && inode.bytes.len() > bytes.len() {
            // The first line of a part with a base comes last.
            if result.is_ok() {
                inode.bytes[..bytes.len()].copy_from_slice(bytes);
                inode.synced = 0;
            }
            return result;
        }
        assert_eq!(inode.bytes.len() as u64, offset, "parts are appended to");
        // A write that fails has done some of its work.
        let written = if result.is_ok() { bytes } else { &bytes[..bytes.len() * 2 / 3] };
        inode.bytes.extend_from_slice(written);
        result
    }
    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.0.borrow_mut();
        state.step(DiskStep::SyncFile(self.1))?;
        let inode = &mut state.inodes[self.1];
        inode.synced = inode.bytes.len();
        Ok(())
    }
}

/// What a crash leaves of bytes that were not synced.
#[derive(Clone, Copy, Debug)]
enum Unsynced {
    Kept,
    Lost,
    Half,
    Zeros,
    /// Some sectors are there, others are not.
    Holes,
}

/// What a start finds after a crash: files in `to`.
fn crash((names, synced_names, inodes): &Content, unsynced: Unsynced, names_kept: bool, to: &Path) {
    for (path, inode) in if names_kept { names } else { synced_names } {
        let Inode { bytes, synced } = &inodes[*inode];
        let mut bytes = bytes.clone();
        match unsynced {
            Unsynced::Kept => {}
            Unsynced::Lost => bytes.truncate(*synced),
            Unsynced::Half => bytes.truncate(synced + (bytes.len() - synced) / 2),
            Unsynced::Zeros => bytes[*synced..].fill(0),
            Unsynced::Holes => {
                let holes = bytes[*synced..].chunks_mut(64).step_by(3);
                holes.for_each(|sector| sector.fill(0));
            }
        }
        fs::write(to.join(path.file_name().expect("a name")), bytes).expect("written");
    }
}

const UNSYNCED: [Unsynced; 5] =
    [Unsynced::Kept, Unsynced::Lost, Unsynced::Half, Unsynced::Zeros, Unsynced::Holes];

/// The positions of all entries that a start replays.
fn replay(directory: &Path, origin: Origin) -> (Vec<u64>, Option<Gap>) {
    let chain = Parts::find(directory, AOF).expect("readable").chain(origin).expect("a chain");
    let mut positions = Vec::new();
    let count = chain.links.len();
    for (i, link) in chain.links.into_iter().enumerate() {
        let file = fs::File::open(&link.path).expect("it is there");
        let mut reader = PartReader::open(file, &link.path, link.known).expect("sound");
        while let Some(command) = reader.next_command().expect("no crash is damage") {
            if let Step::Effect(Effect::Put { key, .. }) = command.step() {
                positions.push(std::str::from_utf8(key).expect("digits").parse().expect("digits"));
            }
        }
        let torn = matches!(reader.end(), Some(End::Torn(_)));
        assert!(!torn || i + 1 == count, "only the last part ends torn");
    }
    (positions, chain.gap)
}

fn first_header() -> Header {
    Header { number: 1, start: Start::Empty, before: None, time_ms: 1_000 }
}

fn push<F: Files>(writer: &mut PartWriter<F>, position: u64) -> Result<(), WriteError> {
    let key = position.to_string();
    let effect = Effect::Put { key: key.as_bytes(), value: &[b'v'; 90], expires_at_ms: None };
    writer.push(&entry(position, 1_000 + position / 3, effect))
}

/// A life: three parts, syncs here and there. `acknowledged` is told after each call what is on disk,
/// with the number of steps so far.
fn life(disk: &Disk, acknowledged: &mut dyn FnMut(u64, usize)) -> Result<(), (u64, WriteError)> {
    let begun = PartWriter::begin(disk.clone(), Path::new("d"), AOF, first_header(), 0);
    let Ok(mut writer) = begun else { return Ok(()) };
    for position in 1..=40 {
        let done = (|| {
            push(&mut writer, position)?;
            if position % 2 == 0 {
                writer.write()?;
            }
            if position % 4 == 0 {
                writer.sync()?;
            }
            match position {
                13 => writer.next_part(Start::Checkpoint(1), 0, 0),
                27 => writer.next_part(Start::Part, 5_000, 0),
                16 => writer.mark(1_010),
                _ => Ok(()),
            }
        })();
        acknowledged(writer.progress().synced_position, disk.0.borrow().steps.len());
        if let Err(e) = done {
            refuses_everything(disk, &mut writer);
            if let Some(sync) = writer.salvage() {
                let written = writer.progress().written_position;
                let result = sync.wait();
                writer.finish_salvage(&sync, result);
                assert_eq!(writer.progress().synced_position, written);
                assert!(writer.salvage().is_none(), "once");
                acknowledged(written, disk.0.borrow().steps.len());
            }
            begin_anew(disk, &mut writer, position);
            return Err((position, e));
        }
    }
    Ok(())
}

fn refuses_everything(disk: &Disk, writer: &mut PartWriter<Disk>) {
    let steps = disk.0.borrow().steps.len();
    let failed = |result: Result<(), WriteError>| {
        assert!(matches!(result, Err(WriteError(_))), "{result:?}");
    };
    failed(push(writer, 1_000));
    failed(writer.write());
    failed(writer.sync());
    failed(writer.mark(9_000));
    failed(writer.next_part(Start::Part, 9_000, 0));
    assert!(writer.begin_sync().is_err() && writer.failure().is_some());
    assert_eq!(disk.0.borrow().steps.len(), steps, "the disk is not asked again");
}

/// The part at the cut of checkpoint 9, which has everything up to `position`; and two entries.
fn begin_anew(disk: &Disk, writer: &mut PartWriter<Disk>, position: u64) {
    let failed = disk.0.borrow().names[writer.path()];
    let steps = disk.0.borrow().steps.len();
    writer.begin_anew(9, 2_000, position).expect("the disk is well again");
    for next in [position + 1, position + 2] {
        push(writer, next).expect("it takes entries again");
    }
    writer.write().expect("written");
    writer.sync().expect("synced");
    let touched = |step: &DiskStep| matches!(step, DiskStep::Write(n) | DiskStep::SyncFile(n) if *n == failed);
    assert!(!disk.0.borrow().steps[steps..].iter().any(touched), "the failed part is let alone");
}

#[test]
fn what_is_said_to_be_on_disk_survives_a_power_cut_at_any_step() {
    let disk = Disk::default();
    let mut acknowledged = vec![(0, 0)];
    life(&disk, &mut |position, steps| acknowledged.push((position, steps))).expect("no failure");
    let state = disk.0.borrow();
    assert!(state.steps.len() > 40);
    let mut torn = 0;
    for (at, before) in state.history.iter().enumerate() {
        // What was said before the call in which the power went.
        let said = acknowledged.iter().rfind(|(_, steps)| *steps <= at).expect("the first").0;
        for (unsynced, names_kept) in UNSYNCED.into_iter().flat_map(|u| [(u, true), (u, false)]) {
            let directory = tempfile::tempdir().expect("a directory");
            crash(before, unsynced, names_kept, directory.path());
            let (positions, gap) = replay(directory.path(), Origin::Empty);
            let what = format!("step {at} ({:?}), {unsynced:?}, {names_kept}", state.steps[at]);
            assert!(
                positions.iter().copied().eq(1..=positions.len() as u64),
                "{what}: {positions:?}"
            );
            assert!(positions.len() as u64 >= said, "{what}: {} of {said}", positions.len());
            assert_eq!(gap, None, "{what}");
            torn += usize::from(positions.len() as u64 > said);
        }
    }
    assert!(torn > 10, "some of what was not synced is found, too: {torn}");
}

#[test]
fn a_failed_step_ends_the_part_and_a_checkpoint_begins_a_new_one() {
    let steps = {
        let disk = Disk::default();
        life(&disk, &mut |_, _| {}).expect("no failure");
        disk.0.borrow().steps.len()
    };
    let (mut ended, mut went_on) = (0, 0);
    for at in 0..steps {
        let disk = Disk::default();
        disk.0.borrow_mut().fails = Some(at);
        let mut said = 0;
        let result = life(&disk, &mut |position, _| said = position);
        let state = disk.0.borrow();
        let last = (state.names.clone(), state.synced_names.clone(), state.inodes.clone());
        for (unsynced, names_kept) in UNSYNCED.into_iter().flat_map(|u| [(u, true), (u, false)]) {
            let directory = tempfile::tempdir().expect("a directory");
            crash(&last, unsynced, names_kept, directory.path());
            let (positions, gap) = replay(directory.path(), Origin::Empty);
            let what = format!("step {at} ({:?}) fails, {unsynced:?}, {result:?}", state.steps[at]);
            assert!(
                positions.iter().copied().eq(1..=positions.len() as u64),
                "{what}: {positions:?}"
            );
            assert!(positions.len() as u64 >= said, "{what}: {} of {said}", positions.len());
            let Err((cut, _)) = &result else {
                assert_eq!(gap, None, "{what}");
                went_on += 1;
                continue;
            };
            ended += 1;
            // From the beginning it ends where the failed part does; the checkpoint leads on.
            assert!(matches!(gap, Some(Gap::Only { checkpoint: 9, .. })), "{what}: {gap:?}");
            let (positions, gap) = replay(directory.path(), Origin::Checkpoint(9));
            assert_eq!((positions, gap), (vec![cut + 1, cut + 2], None), "{what}");
        }
    }
    assert!(ended > 100 && went_on > 10, "{ended} {went_on}");
}

#[test]
fn the_next_part_begins_after_the_old_one_is_on_disk() {
    let disk = Disk::default();
    life(&disk, &mut |_, _| {}).expect("no failure");
    let state = disk.0.borrow();
    let begun = state.steps.iter().rposition(|step| matches!(step, DiskStep::Create(_)));
    let begun = begun.expect("three were made");
    assert_eq!(state.steps[begun - 1], DiskStep::SyncFile(1), "the old one, whole");
    let link = Path::new("d").join(AOF);
    assert_eq!(
        state.steps[begun..begun + 6],
        [
            DiskStep::Create(Path::new("d").join("appendonly.000003.aof")),
            DiskStep::Write(2),
            DiskStep::SyncFile(2),
            DiskStep::SyncNames,
            DiskStep::Link(link.clone()),
            DiskStep::SyncNames,
        ]
    );
    assert_eq!(state.names[&link], 2);
}

#[test]
fn a_sync_on_another_thread_counts_for_what_was_written_before_it() {
    let disk = Disk::default();
    let mut writer =
        PartWriter::begin(disk, Path::new("d"), AOF, first_header(), 0).expect("begun");
    push(&mut writer, 1).expect("taken");
    writer.write().expect("written");
    let sync = writer.begin_sync().expect("well").expect("something to sync");
    push(&mut writer, 2).expect("taken");
    writer.write().expect("written");
    let result = sync.wait();
    writer.finish_sync(sync, result).expect("synced");
    let progress = writer.progress();
    assert_eq!((progress.synced_position, progress.written_position), (1, 2));
    assert!(progress.synced_offset < progress.written_offset);
    // One that ends when the part has been left is of no interest any more.
    let late = writer.begin_sync().expect("well").expect("something to sync");
    writer.next_part(Start::Part, 0, 0).expect("turned");
    writer.finish_sync(late, Err(io::ErrorKind::Other.into())).expect("of another part");
    assert_eq!(writer.progress().synced_position, 2);
}

#[test]
fn parts_on_a_real_disk_are_replayed_and_linked() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut writer =
        PartWriter::begin(LocalFiles, directory.path(), AOF, first_header(), 0).expect("begun");
    for position in 1..=30 {
        push(&mut writer, position).expect("taken");
        if position % 10 == 0 {
            writer.next_part(Start::Part, 0, 0).expect("turned");
        }
    }
    writer.write().expect("written");
    writer.sync().expect("synced");
    let part = |name: &str| fs::read(directory.path().join(name)).expect("it is there");
    assert_eq!(writer.path(), directory.path().join("appendonly.000004.aof"));
    assert_eq!(part(AOF), part("appendonly.000004.aof"));
    let found = Parts::find(directory.path(), AOF).expect("readable");
    assert_eq!((found.parts().len(), found.next_number(), found.has_alias()), (4, 5, true));
    let (positions, gap) = replay(directory.path(), Origin::Empty);
    assert_eq!((positions, gap), ((1..=30).collect(), None));
    // A part's name is taken: nothing is written over it.
    let taken = PartWriter::begin(LocalFiles, directory.path(), AOF, first_header(), 0);
    let failure = taken.expect_err("it is there");
    assert_eq!((failure.action, failure.kind), ("create", io::ErrorKind::AlreadyExists));
}

fn put_in<F: Files>(base: &mut BaseWriter<F>, position: u64) {
    let key = position.to_string();
    let effect = Effect::Put { key: key.as_bytes(), value: b"v", expires_at_ms: None };
    base.put(1_000 + position / 3, 0, effect);
}

/// A life with a rewrite: a base is begun behind entry 10, a checkpoint's part behind 13, and the switch
/// comes behind 20. What was acknowledged is told as in [`life`].
fn life_with_base(
    disk: &Disk,
    acknowledged: &mut dyn FnMut(u64, usize),
) -> Result<(), (u64, WriteError)> {
    let directory = Path::new("d");
    let begun = PartWriter::begin(disk.clone(), directory, AOF, first_header(), 0);
    let Ok(mut writer) = begun else { return Ok(()) };
    let mut base = None;
    for position in 1..=30 {
        let done = (|| {
            push(&mut writer, position)?;
            base.iter_mut().for_each(|base| put_in(base, position));
            if position % 4 == 0 {
                writer.write()?;
                writer.sync()?;
            }
            match position {
                10 => {
                    writer.begin_section();
                    let number = writer.reserve_number();
                    let new = BaseWriter::create(disk.clone(), directory, AOF, number, 1_003, 10);
                    base = new.ok();
                    base.iter_mut().for_each(|b| (1..=10).for_each(|p| put_in(b, p)));
                    let written = base.as_mut().map(|b| b.write().and_then(|()| b.sync()));
                    if let Some(Err(_)) = written {
                        base = None;
                    }
                }
                13 => writer.next_part(Start::Checkpoint(1), 0, 0)?,
                20 => match base.take().map(|base| writer.switch_to(base, 20)) {
                    Some(Err(SwitchError::Part(e))) => return Err(e),
                    Some(Err(SwitchError::Base(_)) | Ok(())) | None => {}
                },
                _ => {}
            }
            Ok(())
        })();
        acknowledged(writer.progress().synced_position, disk.0.borrow().steps.len());
        if let Err(e) = done {
            drop(base.take());
            begin_anew(disk, &mut writer, position);
            return Err((position, e));
        }
    }
    Ok(())
}

/// The positions of the entries that a start has behind the last `FLUSHALL`, and whether it met one.
fn started(directory: &Path, origin: Origin) -> (Vec<u64>, bool, Option<Gap>) {
    let chain = Parts::find(directory, AOF).expect("readable").chain(origin).expect("a chain");
    let gap = chain.gap.clone();
    let mut replay = super::super::replay::Replay::new(&chain, None).expect("readable");
    let (mut positions, mut flushed) = (Vec::new(), false);
    while let Some(entry) = replay.next_entry().expect("no crash is damage") {
        match entry.effect {
            Effect::Put { key, .. } => {
                positions.push(std::str::from_utf8(key).expect("digits").parse().expect("digits"));
            }
            Effect::FlushAll => {
                positions.clear();
                flushed = true;
            }
            other => panic!("nobody wrote {other:?}"),
        }
    }
    (positions, flushed, gap)
}

#[test]
fn a_power_cut_at_any_step_of_a_rewrite_leaves_the_chain_without_the_base_or_with_all_of_it() {
    let disk = Disk::default();
    let mut acknowledged = vec![(0, 0)];
    let told = &mut |position, steps| acknowledged.push((position, steps));
    life_with_base(&disk, told).expect("no failure");
    let state = disk.0.borrow();
    let (mut with, mut without) = (0, 0);
    for (at, before) in state.history.iter().enumerate() {
        let said = acknowledged.iter().rfind(|(_, steps)| *steps <= at).expect("the first").0;
        for (unsynced, names_kept) in UNSYNCED.into_iter().flat_map(|u| [(u, true), (u, false)]) {
            let directory = tempfile::tempdir().expect("a directory");
            crash(before, unsynced, names_kept, directory.path());
            let what = format!("step {at} ({:?}), {unsynced:?}, {names_kept}", state.steps[at]);
            let (positions, flushed, gap) = started(directory.path(), Origin::Empty);
            let count = positions.len() as u64;
            assert!(positions.into_iter().eq(1..=count), "{what}");
            assert!(count >= said && gap.is_none(), "{what}: {count} of {said}");
            *(if flushed { &mut with } else { &mut without }) += 1;
            if said > 13 {
                // From the checkpoint it is the same, without what the base repeats.
                let (positions, flushed, gap) = started(directory.path(), Origin::Checkpoint(1));
                assert!(positions.into_iter().eq(14..=count), "{what}");
                assert!(!flushed && gap.is_none(), "{what}");
            }
        }
    }
    assert!(with > 50 && without > 50, "{with} {without}");
    let last = DiskStep::Rename(Path::new("d").join("appendonly.000004.aof"));
    let at = state.steps.iter().position(|step| *step == last).expect("the switch");
    let base = state.inodes.len() - 2;
    assert_eq!(state.steps[at - 2..at], [DiskStep::Write(base), DiskStep::SyncFile(base)]);
}

#[test]
fn a_step_of_a_rewrite_that_fails_leaves_the_live_part_as_it_was_or_ends_it() {
    let steps = {
        let disk = Disk::default();
        life_with_base(&disk, &mut |_, _| {}).expect("no failure");
        disk.0.borrow().steps.len()
    };
    let (mut ended, mut went_on) = (0, 0);
    for at in 0..steps {
        let disk = Disk::default();
        disk.0.borrow_mut().fails = Some(at);
        let mut said = 0;
        let result = life_with_base(&disk, &mut |position, _| said = position);
        let state = disk.0.borrow();
        let step = &state.steps[at];
        assert!(
            !state.names.contains_key(&Path::new("d").join("appendonly.rewrite"))
                || matches!(step, DiskStep::Remove(_)),
            "{step:?}"
        );
        let last = (state.names.clone(), state.synced_names.clone(), state.inodes.clone());
        for (unsynced, names_kept) in UNSYNCED.into_iter().flat_map(|u| [(u, true), (u, false)]) {
            let directory = tempfile::tempdir().expect("a directory");
            crash(&last, unsynced, names_kept, directory.path());
            let what = format!("step {at} ({step:?}) fails, {unsynced:?}, {result:?}");
            let (positions, _, gap) = started(directory.path(), Origin::Empty);
            let count = positions.len() as u64;
            assert!(positions.into_iter().eq(1..=count), "{what}");
            assert!(count >= said, "{what}: {count} of {said}");
            match &result {
                Ok(()) => {
                    assert_eq!(gap, None, "{what}");
                    went_on += 1;
                }
                Err((cut, _)) => {
                    let (positions, _, gap) = started(directory.path(), Origin::Checkpoint(9));
                    assert_eq!((positions, gap), (vec![cut + 1, cut + 2], None), "{what}");
                    ended += 1;
                }
            }
        }
    }
    assert!(ended > 50 && went_on > 50, "{ended} {went_on}");
}

/// What was on disk is missing: that is damage, for both who begin with the base and who pass over it.
#[test]
fn a_base_that_has_become_shorter_is_damage() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path();
    let mut writer = PartWriter::begin(LocalFiles, place, AOF, first_header(), 0).expect("begun");
    push(&mut writer, 1).expect("taken");
    writer.begin_section();
    let number = writer.reserve_number();
    let mut base =
        BaseWriter::create(LocalFiles, place, AOF, number, 1_000, 1).expect("there is room");
    put_in(&mut base, 1);
    base.write().expect("written");
    let length = base.length();
    writer.switch_to(base, 1).expect("switched");
    assert_eq!(
        (writer.header().number, writer.header().base().map(|b| b.length)),
        (2, Some(length))
    );
    assert_eq!(started(place, Origin::Empty), (vec![1], true, None));
    let file = fs::File::options().write(true).open(writer.path()).expect("it is there");
    for kept in [length - 1, length - 40, 200] {
        file.set_len(kept).expect("cut");
        let chain = Parts::find(place, AOF).expect("readable").chain(Origin::Empty);
        let mut replay = super::super::replay::Replay::new(&chain.expect("a chain"), None);
        let replay = replay.as_mut().expect("readable");
        let damage = loop {
            match replay.next_entry() {
                Ok(Some(_)) => {}
                other => break format!("{other:?}"),
            }
        };
        assert!(damage.contains("Damaged"), "{kept}: {damage}");
        let file = fs::File::open(writer.path()).expect("it is there");
        let mut reader =
            PartReader::open(file, writer.path(), Default::default()).expect("its first line");
        let damage = format!("{:?}", reader.skip_base());
        assert!(damage.contains("Damaged"), "{kept}: {damage}");
    }
}
