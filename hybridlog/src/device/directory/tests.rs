//! Links, restored copies, folders moved aside, and what must be left alone.

use std::os::unix::fs::symlink;

use super::*;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn fill(directory: &Directory, file: FileId, text: &[u8]) {
    directory.create(file, 0).unwrap();
    directory.buffered(file).unwrap().file().write_all_at(text, 0).unwrap();
}

/// A store with a manifest and a segment.
fn filled(data: &Path) -> Directory {
    let directory = Directory::open(data, "ferrite").unwrap();
    fill(&directory, FileId::ManifestNew, b"manifest");
    directory.rename(FileId::ManifestNew, FileId::Manifest).unwrap();
    fill(&directory, FileId::Segment(3), b"segment");
    directory
}

#[test]
fn files_lie_in_checkpoints_and_are_linked_relatively() {
    let data = tempfile::tempdir().unwrap();
    let directory = filled(data.path());
    directory.create(FileId::ManifestNew, 0).unwrap();
    assert_eq!(names(data.path()), ["checkpoints", "ferrite.ckpt", "ferrite.log-3.ckpt"]);
    assert_eq!(
        names(&data.path().join("checkpoints")),
        ["ferrite.ckpt", "ferrite.ckpt.new", "ferrite.log-3.ckpt"]
    );
    let target = fs::read_link(data.path().join("ferrite.log-3.ckpt")).unwrap();
    assert_eq!(target, Path::new("checkpoints/ferrite.log-3.ckpt"));
    assert_eq!(fs::read(data.path().join("ferrite.ckpt")).unwrap(), b"manifest");

    directory.remove(FileId::Segment(3)).unwrap();
    assert_eq!(names(data.path()), ["checkpoints", "ferrite.ckpt"]);
    directory.rename(FileId::Manifest, FileId::Index(1)).unwrap();
    assert_eq!(names(data.path()), ["checkpoints", "ferrite.index-1.ckpt"]);
    directory.sync().unwrap();
}

#[test]
fn opening_makes_the_directory_and_nothing_in_it() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("a/b");
    let directory = Directory::open(&data, "ferrite").unwrap();
    assert!(names(&data).is_empty());
    assert_eq!(directory.list().unwrap(), []);
    directory.sync().unwrap();
}

#[test]
fn another_stem_and_foreign_files_are_left_alone() {
    let data = tempfile::tempdir().unwrap();
    let _other = filled(data.path());
    fs::write(data.path().join("checkpoints/notes.txt"), b"mine").unwrap();
    fs::create_dir(data.path().join("checkpoints/ferrite.log-9.ckpt")).unwrap();
    fs::write(data.path().join("appendonly.aof"), b"mine").unwrap();
    symlink("nowhere", data.path().join("broken.ckpt")).unwrap();
    let directory = Directory::open(data.path(), "ferrite").unwrap();
    assert_eq!(directory.list().unwrap(), [FileId::Manifest, FileId::Segment(3)]);
    directory.create(FileId::Segment(4), 0).unwrap();
    let second = Directory::open(data.path(), "second").unwrap();
    assert_eq!(second.list().unwrap(), []);
    second.create(FileId::Segment(3), 0).unwrap();
    assert_eq!(second.list().unwrap(), [FileId::Segment(3)]);
    assert_eq!(
        directory.list().unwrap(),
        [FileId::Manifest, FileId::Segment(3), FileId::Segment(4)]
    );
    for left in ["checkpoints/notes.txt", "appendonly.aof"] {
        assert_eq!(fs::read(data.path().join(left)).unwrap(), b"mine");
    }
    assert!(fs::symlink_metadata(data.path().join("broken.ckpt")).is_ok());
}

#[test]
fn the_first_change_mends_the_links() {
    let data = tempfile::tempdir().unwrap();
    drop(filled(data.path()));
    fs::remove_file(data.path().join("ferrite.log-3.ckpt")).unwrap();
    symlink("checkpoints/ferrite.log-8.ckpt", data.path().join("ferrite.log-8.ckpt")).unwrap();
    let directory = Directory::open(data.path(), "ferrite").unwrap();
    directory.create(FileId::ManifestNew, 0).unwrap();
    assert_eq!(names(data.path()), ["checkpoints", "ferrite.ckpt", "ferrite.log-3.ckpt"]);
}

/// Copies as `cp data/*.ckpt` does: what the links name, not the links.
fn copy_by_glob(from: &Path, to: &Path) {
    for name in names(from).into_iter().filter(|name| name.ends_with(".ckpt")) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

#[test]
fn a_copy_made_with_cp_opens_and_is_moved_by_the_first_change() {
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(filled(data.path()));
    copy_by_glob(data.path(), copy.path());
    let before = names(copy.path());

    let directory = Directory::open(copy.path(), "ferrite").unwrap();
    assert_eq!(directory.list().unwrap(), [FileId::Manifest, FileId::Segment(3)]);
    assert_eq!(directory.size(FileId::Segment(3)).unwrap(), 7);
    let early = directory.buffered(FileId::Segment(3)).unwrap();
    directory.sync().unwrap();
    assert_eq!(names(copy.path()), before, "reading changes nothing");

    directory.create(FileId::Segment(4), 0).unwrap();
    assert_eq!(
        names(copy.path()),
        ["checkpoints", "ferrite.ckpt", "ferrite.log-3.ckpt", "ferrite.log-4.ckpt"]
    );
    assert!(fs::symlink_metadata(copy.path().join("ferrite.ckpt")).unwrap().is_symlink());
    assert_eq!(
        directory.list().unwrap(),
        [FileId::Manifest, FileId::Segment(3), FileId::Segment(4)]
    );
    let moved = fs::metadata(copy.path().join("checkpoints/ferrite.log-3.ckpt")).unwrap();
    assert_eq!(early.file().metadata().unwrap().ino(), moved.ino());
    assert_eq!(fs::read(copy.path().join("ferrite.ckpt")).unwrap(), b"manifest");
}

#[test]
fn an_adoption_that_was_cut_short_is_finished() {
    let copy = tempfile::tempdir().unwrap();
    let path = |name: &str| copy.path().join(name);
    fs::write(path("ferrite.ckpt"), b"manifest").unwrap();
    fs::write(path("ferrite.log-3.ckpt"), b"segment").unwrap();

    // Before the rename: a staging folder that is half filled.
    fs::create_dir(path(".ferrite-adopting")).unwrap();
    fs::hard_link(path("ferrite.ckpt"), path(".ferrite-adopting/ferrite.ckpt")).unwrap();
    let directory = Directory::open(copy.path(), "ferrite").unwrap();
    assert_eq!(directory.list().unwrap(), [FileId::Manifest, FileId::Segment(3)]);
    directory.create(FileId::Index(1), 0).unwrap();
    directory.remove(FileId::Index(1)).unwrap();
    drop(directory);

    // After the rename: a file under both names, and a link that was not renamed yet.
    fs::remove_file(path("ferrite.log-3.ckpt")).unwrap();
    fs::hard_link(path("checkpoints/ferrite.log-3.ckpt"), path("ferrite.log-3.ckpt")).unwrap();
    symlink("checkpoints/ferrite.log-3.ckpt", path(".ferrite-link")).unwrap();
    let directory = Directory::open(copy.path(), "ferrite").unwrap();
    directory.create(FileId::Index(2), 0).unwrap();
    assert_eq!(
        names(copy.path()),
        ["checkpoints", "ferrite.ckpt", "ferrite.index-2.ckpt", "ferrite.log-3.ckpt"]
    );
    assert!(fs::symlink_metadata(path("ferrite.log-3.ckpt")).unwrap().is_symlink());
    assert_eq!(fs::read(path("ferrite.log-3.ckpt")).unwrap(), b"segment");
}

#[test]
fn checkpoints_moved_aside_stay_aside() {
    let data = tempfile::tempdir().unwrap();
    drop(filled(data.path()));
    let (there, aside) = (data.path().join("checkpoints"), data.path().join("checkpoints.bad"));
    fs::rename(&there, &aside).unwrap();
    let directory = Directory::open(data.path(), "ferrite").unwrap();
    assert_eq!(directory.list().unwrap(), []);
    assert!(!there.exists(), "so that the folder can be moved back");
    drop(directory);
    fs::rename(&aside, &there).unwrap();
    let directory = Directory::open(data.path(), "ferrite").unwrap();
    assert_eq!(directory.list().unwrap(), [FileId::Manifest, FileId::Segment(3)]);
    drop(directory);

    fs::rename(&there, &aside).unwrap();
    let directory = Directory::open(data.path(), "ferrite").unwrap();
    fill(&directory, FileId::Segment(5), b"new");
    assert_eq!(directory.list().unwrap(), [FileId::Segment(5)]);
    assert_eq!(names(data.path()), ["checkpoints", "checkpoints.bad", "ferrite.log-5.ckpt"]);
    assert_eq!(names(&aside), ["ferrite.ckpt", "ferrite.log-3.ckpt"]);
}

#[test]
fn a_file_where_a_link_belongs_stops_the_open_and_is_named() {
    let data = tempfile::tempdir().unwrap();
    drop(filled(data.path()));
    let in_the_way = data.path().join("ferrite.log-7.ckpt");
    fs::write(&in_the_way, b"restored").unwrap();
    let error = Directory::open(data.path(), "ferrite").err().unwrap();
    assert!(matches!(&error, OpenError::Io { path, .. } if *path == in_the_way), "{error}");
    fs::remove_file(&in_the_way).unwrap();
    symlink("/somewhere/else", &in_the_way).unwrap();
    assert!(Directory::open(data.path(), "ferrite").is_err());
    fs::remove_file(&in_the_way).unwrap();

    // Put there while the store is open: the creation fails whole.
    let directory = Directory::open(data.path(), "ferrite").unwrap();
    fs::write(&in_the_way, b"restored").unwrap();
    let error = directory.create(FileId::Segment(7), 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert!(!data.path().join("checkpoints/ferrite.log-7.ckpt").exists());
    assert_eq!(fs::read(&in_the_way).unwrap(), b"restored");
}

#[test]
fn what_cannot_be_a_data_directory_is_refused_with_its_path() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, b"").unwrap();
    for data in [file.clone(), file.join("below")] {
        assert!(matches!(Directory::open(&data, "ferrite"), Err(OpenError::Io { .. })));
    }
    fs::write(parent.path().join("checkpoints"), b"").unwrap();
    let error = Directory::open(parent.path(), "ferrite").err().unwrap().to_string();
    assert!(error.contains("not a folder"), "{error}");
    for stem in ["", "a/b", ".hidden", "nul\0", &"x".repeat(201)] {
        assert!(matches!(
            Directory::open(parent.path(), stem),
            Err(OpenError::Config { setting: "file_stem", .. })
        ));
    }
}

#[test]
fn a_read_only_file_can_be_read() {
    let data = tempfile::tempdir().unwrap();
    drop(filled(data.path()));
    let path = data.path().join("checkpoints/ferrite.log-3.ckpt");
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    let directory = Directory::open(data.path(), "ferrite").unwrap();
    let mut text = [0; 7];
    directory.buffered(FileId::Segment(3)).unwrap().file().read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"segment");
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let data = tempfile::tempdir().unwrap();
    let directory = Directory::open(data.path(), "ferrite").unwrap();
    assert!(directory.create(FileId::Segment(1), 1 << 62).is_err());
    assert!(directory.create(FileId::Segment(1), u64::MAX).is_err());
    assert_eq!(directory.list().unwrap(), []);
    assert_eq!(names(data.path()), ["checkpoints"]);
}
