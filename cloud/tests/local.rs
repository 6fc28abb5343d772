//! Objects as files of a local directory: what is put is what is read, nothing is overwritten, and
//! nothing torn is ever seen.

mod support;

use ferrite_cloud::{Config, ObjectSegments, OpenError};
use ferrite_hybridlog::segment_store::{
    SealedContent, SealedName, SegmentStore, SegmentStoreError as Error,
};
use std::sync::Barrier;
use support::*;

#[test]
fn what_was_put_is_verified_and_read_back() {
    let local = Local::new();
    for (segment, length) in [(1, 1), (2, 999), (3, 1000), (4, 1001), (5, 4500)] {
        let content = bytes(segment, length);
        let source = file(&content);
        let sent = put(&local.segments, name(segment, 1), source.path()).unwrap();
        assert_eq!(sent.length, length as u64);
        assert_eq!(verify(&local.segments, name(segment, 1), sent), Ok(()));
        assert_eq!(head(&local.segments, name(segment, 1)), Ok(length as u64));
        assert_eq!(read(&local.segments, name(segment, 1), 0, length).unwrap(), content);
        assert_eq!(std::fs::read(local.object(segment, 1)).unwrap(), content);
    }
}

#[test]
fn the_checksum_is_castagnolis() {
    let local = Local::new();
    let sent = put(&local.segments, name(1, 1), file(b"123456789").path()).unwrap();
    assert_eq!(sent, SealedContent { length: 9, crc32c: 0xe306_9283 });
}

#[test]
fn a_range_is_exact_or_an_error() {
    let local = Local::new();
    let content = bytes(3, 4096);
    put(&local.segments, name(3, 1), file(&content).path()).unwrap();
    for (offset, length) in [(0, 1), (0, 4096), (4095, 1), (1000, 2000), (17, 0), (9999, 0)] {
        let end = (offset as usize + length).min(4096);
        let expected = content.get(offset as usize..end).unwrap_or_default();
        assert_eq!(read(&local.segments, name(3, 1), offset, length).unwrap(), expected);
    }
    for (offset, length) in [(0, 4097), (4095, 2), (4096, 1), (5000, 10), (u64::MAX, 1)] {
        match read(&local.segments, name(3, 1), offset, length) {
            Err(Error::OutOfRange { offset: o, length: l, size: 4096, location }) => {
                assert_eq!((o, l), (offset, length as u64));
                assert!(location.ends_with("log-3.g1.ckpt"), "{location}");
            }
            other => panic!("{offset}+{length}: {other:?}"),
        }
    }
}

#[test]
fn what_is_not_there_is_said_so() {
    let local = Local::new();
    let expected = SealedContent { length: 1, crc32c: 0 };
    let missing =
        |e: Error| matches!(e, Error::NotFound { location } if location.ends_with("log-9.g1.ckpt"));
    assert!(missing(head(&local.segments, name(9, 1)).unwrap_err()));
    assert!(missing(read(&local.segments, name(9, 1), 0, 1).unwrap_err()));
    assert!(missing(verify(&local.segments, name(9, 1), expected).unwrap_err()));
    assert_eq!(list(&local.segments, STORE), []);
}

#[test]
fn an_object_is_never_overwritten() {
    let local = Local::new();
    let first = put(&local.segments, name(1, 1), file(&bytes(1, 3000)).path()).unwrap();
    match put(&local.segments, name(1, 1), file(&bytes(2, 3000)).path()) {
        Err(Error::AlreadyExists { location }) => assert!(location.ends_with("log-1.g1.ckpt")),
        other => panic!("{other:?}"),
    }
    assert_eq!(verify(&local.segments, name(1, 1), first), Ok(()));
    assert_eq!(local.files(), ["log-1.g1.ckpt"]);
    put(&local.segments, name(1, 2), file(&bytes(2, 3000)).path()).unwrap();
}

#[test]
fn of_racing_puts_exactly_one_wins() {
    let local = Local::new();
    let sources: Vec<_> = (0..8).map(|seed| file(&bytes(seed, 5000))).collect();
    let start = Barrier::new(sources.len());
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let racer = |source: &tempfile::NamedTempFile| {
            let path = source.path().to_owned();
            scope.spawn(|| {
                let path = path;
                start.wait();
                put(&local.segments, name(1, 1), &path)
            })
        };
        let racers: Vec<_> = sources.iter().map(racer).collect();
        racers.into_iter().map(|r| r.join().unwrap()).collect()
    });
    let won: Vec<_> = outcomes.iter().filter_map(|o| o.as_ref().ok()).collect();
    assert_eq!(won.len(), 1, "{outcomes:?}");
    assert_eq!(verify(&local.segments, name(1, 1), *won[0]), Ok(()));
    for outcome in outcomes.iter().filter(|o| o.is_err()) {
        assert!(matches!(outcome, Err(Error::AlreadyExists { .. })), "{outcome:?}");
    }
    assert_eq!(local.files(), ["log-1.g1.ckpt"]);
}

#[test]
fn damage_is_found() {
    let local = Local::new();
    let content = bytes(1, 4096);
    let sent = put(&local.segments, name(1, 1), file(&content).path()).unwrap();
    for at in [0, 1000, 4095] {
        let mut flipped = content.clone();
        flipped[at] ^= 0x10;
        std::fs::write(local.object(1, 1), &flipped).unwrap();
        match verify(&local.segments, name(1, 1), sent) {
            Err(Error::Different { expected, found, .. }) => {
                assert_eq!(expected, sent);
                assert_eq!(found.length, 4096);
                assert_ne!(found.crc32c, sent.crc32c);
            }
            other => panic!("byte {at}: {other:?}"),
        }
    }
    std::fs::write(local.object(1, 1), &content[..4095]).unwrap();
    match verify(&local.segments, name(1, 1), sent) {
        Err(Error::Different { found, .. }) => assert_eq!(found.length, 4095),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_list_shows_the_whole_objects_of_one_store_in_order() {
    let local = Local::new();
    let source = file(&bytes(1, 1500));
    let names = [name(10, 1), name(2, 3), name(2, 1), name(9, 12)];
    for n in names {
        put(&local.segments, n, source.path()).unwrap();
    }
    let theirs = SealedName { store: OTHER_STORE, segment: 5, generation: 1 };
    put(&local.segments, theirs, source.path()).unwrap();
    std::fs::create_dir_all(local.folder().join("unfinished")).unwrap();
    for stranger in ["log-3.ckpt", "notes.txt", "log-4.g1.ckpt#1", "unfinished/log-4.g1.ckpt"] {
        std::fs::write(local.folder().join(stranger), b"x").unwrap();
    }
    let listed = list(&local.segments, STORE);
    assert!(listed.iter().all(|o| o.length == 1500));
    let listed: Vec<_> = listed.iter().map(|o| o.name).collect();
    assert_eq!(listed, [name(2, 1), name(2, 3), name(9, 12), name(10, 1)]);
    assert_eq!(list(&local.segments, OTHER_STORE).len(), 1);
}

#[test]
fn a_delete_can_be_tried_again() {
    let local = Local::new();
    put(&local.segments, name(1, 1), file(&bytes(1, 10)).path()).unwrap();
    put(&local.segments, name(2, 1), file(&bytes(2, 10)).path()).unwrap();
    assert_eq!(delete(&local.segments, name(1, 1)), Ok(()));
    assert_eq!(delete(&local.segments, name(1, 1)), Ok(()));
    assert!(matches!(head(&local.segments, name(1, 1)), Err(Error::NotFound { .. })));
    assert_eq!(list(&local.segments, STORE).len(), 1);
}

#[test]
fn a_source_that_cannot_be_read_leaves_nothing() {
    let local = Local::new();
    let missing = local.directory.path().join("no such file");
    for (path, part) in [(missing.as_path(), "No such file"), (file(b"").path(), "it is empty")] {
        match put(&local.segments, name(1, 1), path) {
            Err(Error::Source { message, .. }) => assert!(message.contains(part), "{message}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(local.files(), [""; 0]);
}

#[test]
fn uploads_that_a_crash_tore_are_removed_at_the_next_start() {
    let local = Local::new();
    let sent = put(&local.segments, name(1, 1), file(&bytes(1, 2000)).path()).unwrap();
    // The three states in which a killed process can leave an upload: some of its parts, all of
    // them, and already named, with the other link still there.
    let unfinished = local.folder().join("unfinished");
    std::fs::create_dir_all(&unfinished).unwrap();
    std::fs::write(unfinished.join("0000000000000001-0#1"), b"a part").unwrap();
    std::fs::write(unfinished.join("0000000000000001-1"), b"all").unwrap();
    std::fs::hard_link(local.object(1, 1), unfinished.join("0000000000000001-2")).unwrap();
    assert_eq!(list(&local.segments, STORE).len(), 1);

    assert_eq!(remove_unfinished(&local.segments), Ok(3));
    assert_eq!(remove_unfinished(&local.segments), Ok(0));
    assert_eq!(local.files(), ["log-1.g1.ckpt"]);
    assert_eq!(verify(&local.segments, name(1, 1), sent), Ok(()));
}

#[test]
fn a_given_runtime_is_used_and_its_end_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let handle = Some(runtime.handle().clone());
    let segments = ObjectSegments::local(directory.path(), &Config::default(), handle).unwrap();
    put(&segments, name(1, 1), file(b"abc").path()).unwrap();
    assert_eq!(read(&segments, name(1, 1), 1, 2).unwrap(), b"bc");
    runtime.shutdown_background();
    assert_eq!(head(&segments, name(1, 1)), Err(Error::Closed));
}

#[test]
fn what_cannot_work_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let open = |path: &std::path::Path, config: Config| {
        ObjectSegments::local(path, &config, None).err().unwrap()
    };
    let error = open(&missing, Config::default());
    assert!(matches!(&error, OpenError::Directory { path, .. } if *path == missing));
    assert!(error.to_string().ends_with("create the directory or mount what belongs there"));
    assert!(matches!(open(file(b"x").path(), Config::default()), OpenError::Directory { .. }));
    for (setting, config) in [
        ("prefix", Config { prefix: "a//b".into(), ..Config::default() }),
        ("part_size", Config { part_size: 0, ..Config::default() }),
        ("concurrent_uploads", Config { concurrent_uploads: 0, ..Config::default() }),
        ("concurrent_uploads", Config { concurrent_uploads: usize::MAX, ..Config::default() }),
    ] {
        match open(directory.path(), config) {
            OpenError::Config { setting: named, .. } => assert_eq!(named, setting),
            other => panic!("{setting}: {other}"),
        }
    }
}

#[test]
fn it_is_an_object_of_the_trait() {
    let local = Local::new();
    let segments: Box<dyn SegmentStore> = Box::new(local.segments);
    assert_eq!(wait(|done| segments.list(STORE, done)), Ok(Vec::new()));
}
