//! The simulation has teeth: what may be lost is lost under some seed, what must survive survives
//! under all.

use std::collections::BTreeSet;
use std::sync::mpsc;

use super::super::tests::{block, read, sync, write};
use super::super::{ALIGNMENT, Buffer, Bytes};
use super::*;

// A side file: its blocks are written again as they fill.
const FILE: FileId = FileId::Side(1);
const BLOCK: u64 = ALIGNMENT as u64;
const SEEDS: std::ops::Range<u64> = 0..200;

/// A device with one durable file of four blocks with known contents.
fn prepared() -> Arc<FaultDevice> {
    let device = FaultDevice::new();
    device.create(FILE, 4 * BLOCK).unwrap();
    for number in 0..4 {
        write(&*device, FILE, number * BLOCK, &block(number)).unwrap();
    }
    sync(&*device, FILE).unwrap();
    device.sync_directory().unwrap();
    device
}

/// The sector `number` of the block `seed`.
fn sector(seed: u64, number: usize) -> Vec<u8> {
    block(seed)[number * 512..][..512].to_vec()
}

/// What the first block looks like after each seed's crash: for each sector, whether it is new.
fn outcomes(device: &FaultDevice, old: u64, new: u64) -> BTreeSet<Vec<bool>> {
    SEEDS
        .map(|seed| {
            let contents = device.crash(seed).contents(FILE).unwrap();
            (0..8)
                .map(|number| {
                    let found = &contents[number * 512..][..512];
                    let is_new = found == sector(new, number);
                    assert!(is_new || found == sector(old, number), "seed {seed}: invented bytes");
                    is_new
                })
                .collect()
        })
        .collect()
}

#[test]
fn an_unsynced_write_is_lost_kept_or_torn() {
    let device = prepared();
    write(&*device, FILE, 0, &block(10)).unwrap();
    assert_eq!(*read(&*device, FILE, 0, ALIGNMENT).unwrap(), block(10));
    let outcomes = outcomes(&device, 0, 10);
    assert!(outcomes.contains(&vec![false; 8]), "lost under some seed");
    assert!(outcomes.contains(&vec![true; 8]), "kept under some seed");
    assert!(outcomes.iter().any(|sectors| sectors[0] && !sectors[7]), "torn under some seed");
    assert!(outcomes.iter().any(|sectors| !sectors[0] && sectors[7]), "torn the other way");
}

#[test]
fn a_synced_write_survives_every_crash() {
    let device = prepared();
    write(&*device, FILE, 0, &block(10)).unwrap();
    sync(&*device, FILE).unwrap();
    write(&*device, FILE, BLOCK, &block(11)).unwrap();
    for seed in SEEDS {
        let after = device.crash(seed);
        assert_eq!(*read(&*after, FILE, 0, ALIGNMENT).unwrap(), block(10), "seed {seed}");
        assert_eq!(*read(&*after, FILE, 2 * BLOCK, ALIGNMENT).unwrap(), block(2), "seed {seed}");
        // What was found after one crash is there after the next.
        let found = after.contents(FILE).unwrap();
        assert_eq!(after.crash(seed + 1).contents(FILE).unwrap(), found, "seed {seed}");
    }
}

#[test]
fn unsynced_writes_reach_the_disk_in_any_order() {
    let device = prepared();
    write(&*device, FILE, 0, &block(10)).unwrap();
    write(&*device, FILE, BLOCK, &block(11)).unwrap();
    let outcomes: BTreeSet<(bool, bool)> = SEEDS
        .map(|seed| {
            let contents = device.crash(seed).contents(FILE).unwrap();
            (contents[..512] == sector(10, 0), contents[ALIGNMENT..][..512] == sector(11, 0))
        })
        .collect();
    assert_eq!(outcomes.len(), 4, "each of the two alone, both and none: {outcomes:?}");
}

#[test]
fn a_sector_written_twice_may_keep_its_middle_state() {
    let device = prepared();
    write(&*device, FILE, 0, &block(10)).unwrap();
    write(&*device, FILE, 0, &block(20)).unwrap();
    let found: BTreeSet<Vec<u8>> =
        SEEDS.map(|seed| device.crash(seed).contents(FILE).unwrap()[..512].to_vec()).collect();
    assert_eq!(found, BTreeSet::from([sector(0, 0), sector(10, 0), sector(20, 0)]));
}

#[test]
fn an_extended_file_may_be_found_short_or_with_zeros() {
    let device = prepared();
    write(&*device, FILE, 4 * BLOCK, &block(14)).unwrap();
    let found: BTreeSet<(usize, bool)> = SEEDS
        .map(|seed| {
            let contents = device.crash(seed).contents(FILE).unwrap();
            (contents.len(), contents[4 * ALIGNMENT..].starts_with(&[0; 512]))
        })
        .collect();
    let (short, long) = (4 * ALIGNMENT, 5 * ALIGNMENT);
    assert_eq!(found, BTreeSet::from([(short, false), (long, false), (long, true)]));
    sync(&*device, FILE).unwrap_err();
}

#[test]
fn a_sync_covers_only_writes_that_had_completed() {
    let device = prepared();
    device.set_completion(Completion::Stepped);
    let (sender, receiver) = mpsc::channel();
    let done = |what: &'static str| {
        let sender = sender.clone();
        Box::new(move |result: io::Result<()>| sender.send((what, result.is_ok())).unwrap())
    };
    let bytes = Bytes::new(block(10));
    device.submit(Request::Write { file: FILE, offset: 0, bytes, done: done("write") });
    device.submit(Request::Sync { file: FILE, done: done("early sync") });
    assert_eq!(device.pending(), 2);
    assert!(device.step() && device.step() && !device.step());
    let calls: Vec<_> = receiver.try_iter().collect();
    assert_eq!(calls, [("write", true), ("early sync", true)]);
    assert!(outcomes(&device, 0, 10).contains(&vec![false; 8]));

    let device = prepared();
    write(&*device, FILE, 0, &block(10)).unwrap();
    device.set_completion(Completion::Stepped);
    device.submit(Request::Sync { file: FILE, done: Box::new(Result::unwrap) });
    assert!(device.step());
    assert_eq!(outcomes(&device, 0, 10), BTreeSet::from([vec![true; 8]]));
}

#[test]
fn a_write_in_flight_may_be_found_after_the_crash() {
    let device = prepared();
    device.set_completion(Completion::Stepped);
    let (sender, receiver) = mpsc::channel();
    device.submit(Request::Write {
        file: FILE,
        offset: 0,
        bytes: Bytes::new(block(10)),
        done: Box::new(move |result| sender.send(result).unwrap()),
    });
    let outcomes = outcomes(&device, 0, 10);
    assert!(outcomes.len() > 2, "lost, kept and torn");
    assert!(receiver.recv().unwrap().is_err(), "its submitter is told that it failed");
}

#[test]
fn what_a_failed_sync_left_is_not_saved_by_the_next() {
    let device = prepared();
    write(&*device, FILE, 0, &block(10)).unwrap();
    device.inject(Fault::new(Operation::Sync, libc::EIO).file(FILE).times(1));
    let error = sync(&*device, FILE).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    sync(&*device, FILE).unwrap();
    assert!(outcomes(&device, 0, 10).contains(&vec![false; 8]));

    let device = prepared();
    write(&*device, FILE, 0, &block(10)).unwrap();
    device.inject(Fault::new(Operation::Sync, libc::EIO).times(1));
    sync(&*device, FILE).unwrap_err();
    write(&*device, FILE, 0, &block(10)).unwrap();
    sync(&*device, FILE).unwrap();
    assert_eq!(outcomes(&device, 0, 10), BTreeSet::from([vec![true; 8]]));
}

#[test]
fn unsynced_names_are_lost_or_kept_and_synced_ones_stay() {
    let device = prepared();
    device.create(FileId::Index(1), 0).unwrap();
    write(&*device, FileId::Index(1), 0, &block(1)).unwrap();
    sync(&*device, FileId::Index(1)).unwrap();
    device.remove(FILE).unwrap();
    let found: BTreeSet<Vec<FileId>> =
        SEEDS.map(|seed| device.crash(seed).list().unwrap()).collect();
    let index = FileId::Index(1);
    assert_eq!(found, BTreeSet::from([vec![], vec![index], vec![FILE], vec![index, FILE]]));
    for seed in SEEDS {
        let after = device.crash(seed);
        if let Some(contents) = after.contents(FILE) {
            assert_eq!(contents[..ALIGNMENT], block(0), "a removal that was lost brings all back");
        }
        if let Some(contents) = after.contents(index) {
            assert_eq!(contents, block(1));
        }
    }
}

/// Writes version `version` of the manifest as it must be done, or without its sync.
fn write_manifest(device: &FaultDevice, version: u64, synced: bool) -> io::Result<()> {
    if device.list()?.contains(&FileId::ManifestNew) {
        device.remove(FileId::ManifestNew)?;
    }
    device.create(FileId::ManifestNew, 0)?;
    write(device, FileId::ManifestNew, 0, &block(version))?;
    if synced {
        sync(device, FileId::ManifestNew)?;
    }
    device.rename(FileId::ManifestNew, FileId::Manifest)?;
    device.sync_directory()
}

/// Replaces manifest 1 by 2 with the power cut at each step, under each seed; the manifests found.
fn manifests_found(synced: bool) -> BTreeSet<Option<Vec<u8>>> {
    let mut found = BTreeSet::new();
    for step in 1.. {
        let device = FaultDevice::new();
        write_manifest(&device, 1, true).unwrap();
        device.cut_at(device.io_count() + step);
        let finished = write_manifest(&device, 2, synced).is_ok();
        assert_eq!(device.is_cut(), !finished);
        for seed in 0..50 {
            let after = device.crash(seed);
            found.insert(after.contents(FileId::Manifest));
            if finished && synced {
                assert_eq!(after.contents(FileId::Manifest), Some(block(2)), "seed {seed}");
            }
            // The next attempt succeeds on whatever was left.
            write_manifest(&after, 3, true).unwrap();
            let last = after.crash(seed);
            assert_eq!(last.contents(FileId::Manifest), Some(block(3)), "seed {seed}");
        }
        if finished {
            assert_eq!(step, 5 + u64::from(synced), "every step was cut");
            break;
        }
    }
    found
}

#[test]
fn a_manifest_replaced_with_care_is_old_or_new_wherever_the_power_is_cut() {
    assert_eq!(manifests_found(true), BTreeSet::from([Some(block(1)), Some(block(2))]));
}

#[test]
fn a_manifest_replaced_without_a_sync_is_found_broken() {
    let found = manifests_found(false);
    assert!(found.contains(&Some(Vec::new())), "empty");
    assert!(found.len() > 4, "and torn");
}

#[test]
fn after_the_cut_nothing_works_and_nothing_changes() {
    let device = prepared();
    device.cut_at(device.io_count() + 2);
    write(&*device, FILE, 0, &block(10)).unwrap();
    sync(&*device, FILE).unwrap_err();
    for _ in 0..3 {
        read(&*device, FILE, 0, ALIGNMENT).unwrap_err();
        write(&*device, FILE, BLOCK, &block(11)).unwrap_err();
        device.create(FileId::Segment(2), 0).unwrap_err();
        device.rename(FILE, FileId::Segment(3)).unwrap_err();
        device.sync_directory().unwrap_err();
        device.list().unwrap_err();
        device.size(FILE).unwrap_err();
    }
    for seed in SEEDS {
        let after = device.crash(seed);
        assert_eq!(after.list().unwrap(), [FILE]);
        assert_eq!(*read(&*after, FILE, BLOCK, ALIGNMENT).unwrap(), block(1));
    }
}

#[test]
fn the_same_seed_leaves_the_same_disk() {
    let run = |seed| {
        let device = prepared();
        for number in 0..20 {
            write(&*device, FILE, (number % 4) * BLOCK, &block(100 + number)).unwrap();
        }
        device.create(FileId::Side(2), BLOCK).unwrap();
        let after = device.crash(seed);
        (after.list().unwrap(), after.contents(FILE), after.contents(FileId::Side(2)))
    };
    let all: Vec<_> = SEEDS.map(run).collect();
    assert_eq!(all, SEEDS.map(run).collect::<Vec<_>>());
    assert!(all.iter().collect::<BTreeSet<_>>().len() > 50, "and others leave others");
}

#[test]
fn shuffled_completions_follow_from_their_seed() {
    let order = |seed| {
        let device = prepared();
        device.set_completion(Completion::Stepped);
        let (sender, receiver) = mpsc::channel();
        for number in 0..20 {
            let sender = sender.clone();
            device.submit(Request::Read {
                file: FILE,
                offset: 0,
                buffer: Buffer::zeroed(ALIGNMENT),
                done: Box::new(move |_| sender.send(number).unwrap()),
            });
        }
        drop(sender);
        device.set_completion(Completion::Shuffled(seed));
        receiver.iter().collect::<Vec<u64>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    let mut sorted = order(3);
    assert_ne!(sorted, (0..20).collect::<Vec<_>>());
    sorted.sort_unstable();
    assert_eq!(sorted, (0..20).collect::<Vec<_>>());
}

#[test]
fn any_waiting_request_can_be_stepped() {
    let device = prepared();
    device.set_completion(Completion::Stepped);
    let (sender, receiver) = mpsc::channel();
    for number in 0..3 {
        let sender = sender.clone();
        device.submit(Request::Write {
            file: FILE,
            offset: 0,
            bytes: Bytes::new(block(10 + number)),
            done: Box::new(move |result| sender.send((number, result.is_ok())).unwrap()),
        });
    }
    assert!(device.step_nth(2) && device.step_nth(0) && device.step_nth(0));
    assert!(!device.step_nth(0));
    let calls: Vec<_> = receiver.try_iter().collect();
    assert_eq!(calls, [(2, true), (0, true), (1, true)]);
    assert_eq!(device.contents(FILE).unwrap()[..ALIGNMENT], block(11));
}

#[test]
fn faults_strike_where_and_as_often_as_asked() {
    let device = prepared();
    device.create(FileId::Index(1), BLOCK).unwrap();
    let eio = |result: io::Result<Buffer>| result.unwrap_err().raw_os_error() == Some(libc::EIO);
    device.inject(Fault::new(Operation::Read, libc::EIO).file(FILE).after(1).times(2));
    read(&*device, FILE, 0, ALIGNMENT).unwrap();
    assert!(eio(read(&*device, FILE, 0, ALIGNMENT)));
    read(&*device, FileId::Index(1), 0, ALIGNMENT).unwrap();
    assert!(eio(read(&*device, FILE, 0, ALIGNMENT)));
    read(&*device, FILE, 0, ALIGNMENT).unwrap();

    device.inject(Fault::new(Operation::Write, libc::EIO));
    write(&*device, FILE, 0, &block(10)).unwrap_err();
    assert_eq!(*read(&*device, FILE, 0, ALIGNMENT).unwrap(), block(0));
    device.heal();
    write(&*device, FILE, 0, &block(10)).unwrap();

    device.inject(Fault::new(Operation::SyncDirectory, libc::EIO).times(1));
    device.sync_directory().unwrap_err();
    device.sync_directory().unwrap();
    device.inject(Fault::new(Operation::Rename, libc::EIO).file(FileId::Manifest));
    device.rename(FILE, FileId::Manifest).unwrap_err();
    device.rename(FILE, FileId::Segment(9)).unwrap();
}

#[test]
fn a_full_disk_refuses_to_grow_and_recovers() {
    let device = prepared();
    device.set_free_space(2 * BLOCK);
    let full = |result: io::Result<()>| result.unwrap_err().kind() == io::ErrorKind::StorageFull;
    assert!(full(device.create(FileId::Segment(2), 3 * BLOCK)));
    assert_eq!(device.list().unwrap(), [FILE]);
    write(&*device, FILE, 0, &block(10)).unwrap();
    write(&*device, FILE, 4 * BLOCK, &block(14)).unwrap();
    assert!(full(write(&*device, FILE, 6 * BLOCK, &block(16))));
    assert_eq!(device.size(FILE).unwrap(), 5 * BLOCK);
    assert_eq!(device.free_space().unwrap(), BLOCK);
    device.remove(FILE).unwrap();
    assert_eq!(device.free_space().unwrap(), 6 * BLOCK);
    device.create(FileId::Segment(2), 3 * BLOCK).unwrap();
}

#[test]
fn a_flipped_bit_and_a_cut_end_are_found_by_reads_and_after_a_crash() {
    let device = prepared();
    device.flip(FILE, BLOCK + 700, 3);
    let mut damaged = block(1);
    damaged[700] ^= 8;
    assert_eq!(*read(&*device, FILE, BLOCK, ALIGNMENT).unwrap(), damaged);
    device.truncate(FILE, 3 * BLOCK);
    let error = read(&*device, FILE, 3 * BLOCK, ALIGNMENT).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    for seed in 0..20 {
        let after = device.crash(seed);
        assert_eq!(after.size(FILE).unwrap(), 3 * BLOCK);
        assert_eq!(*read(&*after, FILE, BLOCK, ALIGNMENT).unwrap(), damaged);
    }
}

/// A segment with one written block, as an earlier run left it.
fn with_a_written_block() -> Arc<FaultDevice> {
    let device = FaultDevice::new();
    device.create(FileId::Segment(1), 4 * BLOCK).unwrap();
    write(&*device, FileId::Segment(1), BLOCK, &block(1)).unwrap();
    sync(&*device, FileId::Segment(1)).unwrap();
    device.sync_directory().unwrap();
    device.crash(0)
}

#[test]
fn a_segment_takes_new_blocks_and_the_same_bytes_again() {
    let device = with_a_written_block();
    write(&*device, FileId::Segment(1), BLOCK, &block(1)).unwrap();
    write(&*device, FileId::Segment(1), 0, &block(0)).unwrap();
    write(&*device, FileId::Segment(1), 2 * BLOCK, &block(2)).unwrap();
}

#[test]
#[should_panic(expected = "sector 8 of segment 1 was written with other bytes")]
fn other_bytes_for_a_written_block_of_a_segment_fail_the_test() {
    let device = with_a_written_block();
    write(&*device, FileId::Segment(1), BLOCK, &block(2)).unwrap_err();
}
