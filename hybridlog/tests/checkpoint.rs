//! What a checkpoint waits for, and what it keeps.
//!
//! A session that stays inside holds up the step that must not begin before it has left. That the
//! step has not begun is looked at for a while: a checkpoint that does not wait needs far less, and
//! one that does is never blamed, however slow the machine is.

mod support;

use ferrite_hybridlog::device::fault::FaultDevice;
use ferrite_hybridlog::device::{Device, FileId};
use ferrite_hybridlog::{Change, Database, Operation, Store};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use support::layout;

const DB: Database = Database(0);

/// Takes a checkpoint while a session that has written one key stays inside, and panics if
/// `too_early` holds before it has left.
fn beside_a_stay(store: &Store, too_early: impl Fn() -> bool, what: &str) {
    support::threads(|scope| {
        let mut session = store.session(|| {});
        let mut op = Operation::new(1);
        let mut inside = session.enter();
        let put = Change::Put { value: b"value", expires_at_ms: None, encoding: 0 };
        assert!(inside.update(&mut op, DB, b"inside", |_, _| (put, ())).is_ok());
        scope.spawn(|| {
            store.checkpoint().expect("checkpoints");
        });
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(400) {
            assert!(!too_early(), "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(inside);
    });
}

fn images(device: &FaultDevice) -> BTreeSet<FileId> {
    let files = device.list().expect("lists");
    files.into_iter().filter(|f| matches!(f, FileId::Index(_))).collect()
}

/// Who is inside may have a place in the log below the image's start and not yet have set its
/// entry: an image that had passed that bucket would lose the key.
#[test]
fn an_image_begins_after_all_who_were_inside_have_left() {
    let device = FaultDevice::new();
    let store = support::open(&layout("simulated".as_ref(), 16 << 10, 4), &device);
    beside_a_stay(&store, || !images(&device).is_empty(), "the image was begun");
    assert_eq!(images(&device).len(), 1);
}

#[test]
fn a_cut_falls_when_nobody_is_inside() {
    let device = FaultDevice::new();
    let store = support::open(&layout("simulated".as_ref(), 16 << 10, 4), &device);
    // The second image begins at the first cut. The next checkpoint needs no image, which would
    // wait for the session before the cut does.
    for _ in 0..2 {
        store.checkpoint().expect("checkpoints");
    }
    let (before, made) = (store.stats().log_read_only, images(&device));
    beside_a_stay(&store, || store.stats().log_read_only != before, "the cut was made");
    assert!(store.stats().log_read_only > before);
    assert_eq!(images(&device), made, "an image was made");
}

/// Image, segments and checksums of the last but one checkpoint, and no longer.
#[test]
fn the_files_of_the_last_two_checkpoints_are_kept() {
    let device = FaultDevice::new();
    let store = support::open(&support::tiny(), &device);
    let mut s = store.blocking_session();
    let mut round = || {
        store.flush_all().expect("flushes");
        for i in 0..60u32 {
            s.upsert(DB, &i.to_le_bytes(), &[7; 900]).expect("writes");
        }
        store.checkpoint().expect("checkpoints");
        let files = device.list().expect("lists");
        files.into_iter().filter(|f| *f != FileId::Manifest).collect::<BTreeSet<_>>()
    };
    let first = round();
    let second = round();
    assert!(first.is_subset(&second), "{first:?} are not all in {second:?}");
    let third = round();
    // The segment in which the first one ended holds the second one's beginning.
    let left: Vec<_> = first.intersection(&third).collect();
    assert!(left.len() <= 2, "{left:?} serve no checkpoint that is kept");
    assert!(images(&device).is_disjoint(&first), "an image serves no checkpoint that is kept");
}
