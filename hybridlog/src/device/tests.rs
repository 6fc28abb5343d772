//! What every device must do, whatever it is made of. Each form runs all of it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::fault::{Completion, FaultDevice};
use super::*;
use crate::IoChoice;

/// Submits a read and waits for it.
pub(super) fn read(
    device: &dyn Device,
    file: FileId,
    offset: u64,
    length: usize,
) -> io::Result<Buffer> {
    let (sender, receiver) = mpsc::channel();
    device.submit(Request::Read {
        file,
        offset,
        buffer: Buffer::zeroed(length),
        done: Box::new(move |result| sender.send(result).unwrap()),
    });
    receiver.recv().expect("every completion is called")
}

/// Submits a write and waits for it.
pub(super) fn write(
    device: &dyn Device,
    file: FileId,
    offset: u64,
    bytes: &[u8],
) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel();
    device.submit(Request::Write {
        file,
        offset,
        bytes: Bytes::new(bytes.to_vec()),
        done: Box::new(move |result| sender.send(result).unwrap()),
    });
    receiver.recv().expect("every completion is called")
}

/// Submits a sync and waits for it.
pub(super) fn sync(device: &dyn Device, file: FileId) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel();
    device
        .submit(Request::Sync { file, done: Box::new(move |result| sender.send(result).unwrap()) });
    receiver.recv().expect("every completion is called")
}

/// A block whose bytes tell where it belongs.
pub(super) fn block(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..ALIGNMENT / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect()
}

const BLOCK: u64 = ALIGNMENT as u64;

/// One test of a device, made in an empty directory.
macro_rules! contract {
    ($($form:ident: $make:expr;)*) => {
        $(mod $form {
            use super::*;

            fn run(test: impl FnOnce(Arc<dyn Device>)) {
                let directory = tempfile::tempdir().unwrap();
                let make: fn(&Path) -> Option<Arc<dyn Device>> = $make;
                if let Some(device) = make(directory.path()) {
                    test(device);
                }
            }

            contract!(@tests
                what_is_written_is_read_back
                a_read_past_the_end_is_unexpected_eof
                a_created_file_has_its_size_and_reads_as_zeros
                creating_an_existing_file_is_an_error
                a_missing_file_is_not_found
                a_rename_replaces_the_other_file
                a_removed_file_is_gone_and_its_name_can_be_used_again
                the_list_is_what_exists
                a_write_extends_its_file
                unaligned_offsets_work
                large_requests_are_carried_out_whole
                many_requests_from_many_threads_all_complete
                a_completion_may_submit
                the_last_handle_may_be_dropped_in_a_completion
                a_write_lets_go_of_its_bytes_before_it_completes
                a_panicking_completion_harms_no_other
                dropping_the_device_completes_what_was_submitted
                there_is_free_space
            );
        })*
    };
    (@tests $($test:ident)*) => {
        $(#[test]
        fn $test() {
            run(super::$test);
        })*
    };
}

contract! {
    posix: |path| Some(open(path, "ferrite", IoChoice::Posix).unwrap().device);
    io_uring: |path| match open(path, "ferrite", IoChoice::IoUring) {
        Ok(opened) => Some(opened.device),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    };
    simulated: |_| Some(FaultDevice::new());
    simulated_out_of_order: |_| {
        let device = FaultDevice::new();
        device.set_completion(Completion::Shuffled(1));
        Some(device)
    };
}

fn what_is_written_is_read_back(device: Arc<dyn Device>) {
    for file in [FileId::Segment(1), FileId::Side(1), FileId::Index(1), FileId::ManifestNew] {
        device.create(file, 0).unwrap();
        write(&*device, file, 0, &block(1)).unwrap();
        write(&*device, file, BLOCK, &block(2)).unwrap();
        assert_eq!(*read(&*device, file, BLOCK, ALIGNMENT).unwrap(), block(2));
        sync(&*device, file).unwrap();
        let both = read(&*device, file, 0, 2 * ALIGNMENT).unwrap();
        assert_eq!(both[..ALIGNMENT], block(1));
        assert_eq!(both[ALIGNMENT..], block(2));
        // The log never does that, and the simulated disk refuses it.
        if !matches!(file, FileId::Segment(_)) {
            write(&*device, file, 0, &block(3)).unwrap();
            assert_eq!(*read(&*device, file, 0, ALIGNMENT).unwrap(), block(3));
        }
    }
    device.sync_directory().unwrap();
}

fn a_read_past_the_end_is_unexpected_eof(device: Arc<dyn Device>) {
    for file in [FileId::Segment(1), FileId::Index(1)] {
        device.create(file, 0).unwrap();
        write(&*device, file, 0, &block(1)).unwrap();
        for (offset, length) in [(0, 2 * ALIGNMENT), (BLOCK, ALIGNMENT), (100 * BLOCK, ALIGNMENT)] {
            let error = read(&*device, file, offset, length).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset} {length}");
        }
        // An end inside a block: what a direct read cannot do by itself.
        write(&*device, file, BLOCK, &block(2)[..100]).unwrap();
        let error = read(&*device, file, 0, 2 * ALIGNMENT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(*read(&*device, file, 0, ALIGNMENT).unwrap(), block(1));
    }
}

fn a_created_file_has_its_size_and_reads_as_zeros(device: Arc<dyn Device>) {
    let size = 64 * BLOCK;
    device.create(FileId::Segment(7), size).unwrap();
    assert_eq!(device.size(FileId::Segment(7)).unwrap(), size);
    assert!(read(&*device, FileId::Segment(7), 0, size as usize).unwrap().iter().all(|b| *b == 0));
    write(&*device, FileId::Segment(7), 63 * BLOCK, &block(5)).unwrap();
    assert_eq!(device.size(FileId::Segment(7)).unwrap(), size);
    assert_eq!(*read(&*device, FileId::Segment(7), 63 * BLOCK, ALIGNMENT).unwrap(), block(5));
    assert!(
        read(&*device, FileId::Segment(7), 62 * BLOCK, ALIGNMENT).unwrap().iter().all(|b| *b == 0)
    );
}

fn creating_an_existing_file_is_an_error(device: Arc<dyn Device>) {
    device.create(FileId::Index(1), 0).unwrap();
    write(&*device, FileId::Index(1), 0, &block(1)).unwrap();
    let error = device.create(FileId::Index(1), BLOCK).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(*read(&*device, FileId::Index(1), 0, ALIGNMENT).unwrap(), block(1));
}

fn a_missing_file_is_not_found(device: Arc<dyn Device>) {
    let file = FileId::Segment(3);
    let kinds = [
        read(&*device, file, 0, ALIGNMENT).unwrap_err().kind(),
        write(&*device, file, 0, &block(1)).unwrap_err().kind(),
        sync(&*device, file).unwrap_err().kind(),
        device.size(file).unwrap_err().kind(),
        device.remove(file).unwrap_err().kind(),
        device.rename(file, FileId::Segment(4)).unwrap_err().kind(),
    ];
    assert_eq!(kinds, [io::ErrorKind::NotFound; 6]);
    assert_eq!(device.list().unwrap(), []);
}

fn a_rename_replaces_the_other_file(device: Arc<dyn Device>) {
    for version in 0..3 {
        device.create(FileId::ManifestNew, 0).unwrap();
        write(&*device, FileId::ManifestNew, 0, &block(version)).unwrap();
        sync(&*device, FileId::ManifestNew).unwrap();
        device.rename(FileId::ManifestNew, FileId::Manifest).unwrap();
        device.sync_directory().unwrap();
        assert_eq!(*read(&*device, FileId::Manifest, 0, ALIGNMENT).unwrap(), block(version));
        assert_eq!(device.list().unwrap(), [FileId::Manifest]);
        // A write to the new name goes to the renamed file.
        write(&*device, FileId::Manifest, BLOCK, &block(version + 10)).unwrap();
        assert_eq!(device.size(FileId::Manifest).unwrap(), 2 * BLOCK);
        sync(&*device, FileId::Manifest).unwrap();
    }
}

fn a_removed_file_is_gone_and_its_name_can_be_used_again(device: Arc<dyn Device>) {
    let file = FileId::Segment(2);
    for version in 0..3 {
        device.create(file, 2 * BLOCK).unwrap();
        assert!(read(&*device, file, 0, ALIGNMENT).unwrap().iter().all(|byte| *byte == 0));
        write(&*device, file, 0, &block(version)).unwrap();
        assert_eq!(*read(&*device, file, 0, ALIGNMENT).unwrap(), block(version));
        device.remove(file).unwrap();
        assert_eq!(device.list().unwrap(), []);
        let error = read(&*device, file, 0, ALIGNMENT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}

fn the_list_is_what_exists(device: Arc<dyn Device>) {
    assert_eq!(device.list().unwrap(), []);
    let mut files = vec![
        FileId::Manifest,
        FileId::ManifestNew,
        FileId::Index(4),
        FileId::Segment(0),
        FileId::Segment(10),
        FileId::Side(10),
    ];
    for file in &files {
        device.create(*file, 0).unwrap();
    }
    let listed = || {
        let mut listed = device.list().unwrap();
        listed.sort_unstable();
        listed
    };
    files.sort_unstable();
    assert_eq!(listed(), files);
    device.remove(files.remove(3)).unwrap();
    assert_eq!(listed(), files);
}

fn a_write_extends_its_file(device: Arc<dyn Device>) {
    let file = FileId::Index(1);
    device.create(file, 0).unwrap();
    assert_eq!(device.size(file).unwrap(), 0);
    write(&*device, file, 3 * BLOCK, &block(1)).unwrap();
    assert_eq!(device.size(file).unwrap(), 4 * BLOCK);
    assert!(read(&*device, file, 0, 3 * ALIGNMENT).unwrap().iter().all(|byte| *byte == 0));
    write(&*device, file, 4 * BLOCK, b"odd").unwrap();
    assert_eq!(device.size(file).unwrap(), 4 * BLOCK + 3);
    write(&*device, file, 0, b"").unwrap();
    assert_eq!(device.size(file).unwrap(), 4 * BLOCK + 3);
}

fn unaligned_offsets_work(device: Arc<dyn Device>) {
    for file in [FileId::Segment(1), FileId::Side(1)] {
        device.create(file, 4 * BLOCK).unwrap();
        write(&*device, file, 100, &block(9)).unwrap();
        assert_eq!(*read(&*device, file, 100, ALIGNMENT).unwrap(), block(9));
        assert_eq!(read(&*device, file, 0, 2 * ALIGNMENT).unwrap()[100..][..ALIGNMENT], block(9));
    }
}

fn large_requests_are_carried_out_whole(device: Arc<dyn Device>) {
    let blocks = 2048;
    let bytes: Vec<u8> = (0..blocks).flat_map(block).collect();
    device.create(FileId::Segment(1), blocks * BLOCK).unwrap();
    write(&*device, FileId::Segment(1), 0, &bytes).unwrap();
    sync(&*device, FileId::Segment(1)).unwrap();
    assert!(*read(&*device, FileId::Segment(1), 0, bytes.len()).unwrap() == *bytes);
}

fn many_requests_from_many_threads_all_complete(device: Arc<dyn Device>) {
    const THREADS: u64 = 4;
    const EACH: u64 = 256;
    for thread in 0..THREADS {
        device.create(FileId::Segment(thread), EACH * BLOCK).unwrap();
    }
    let wrong = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (device, wrong) = (&device, Arc::clone(&wrong));
            scope.spawn(move || {
                let file = FileId::Segment(thread);
                let (sender, receiver) = mpsc::channel();
                for number in 0..EACH {
                    let sender = sender.clone();
                    device.submit(Request::Write {
                        file,
                        offset: number * BLOCK,
                        bytes: Bytes::new(block(thread << 32 | number)),
                        done: Box::new(move |result| sender.send((number, result)).unwrap()),
                    });
                    if number % 64 == 0 {
                        device.submit(Request::Sync { file, done: Box::new(Result::unwrap) });
                    }
                }
                // Each block is read as soon as it is written, while the others are in flight.
                let (read_sender, read_receiver) = mpsc::channel();
                for _ in 0..EACH {
                    let (number, result) = receiver.recv().unwrap();
                    result.unwrap();
                    let sender = read_sender.clone();
                    device.submit(Request::Read {
                        file,
                        offset: number * BLOCK,
                        buffer: Buffer::zeroed(ALIGNMENT),
                        done: Box::new(move |result| sender.send((number, result)).unwrap()),
                    });
                }
                for _ in 0..EACH {
                    let (number, result) = read_receiver.recv().unwrap();
                    if *result.unwrap() != block(thread << 32 | number) {
                        wrong.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    assert_eq!(wrong.load(Ordering::SeqCst), 0);
}

fn a_completion_may_submit(device: Arc<dyn Device>) {
    /// Reads the blocks one after the other, each from the completion of the one before.
    fn chain(device: Arc<dyn Device>, number: u64, sender: mpsc::Sender<u64>) {
        let again = Arc::clone(&device);
        device.submit(Request::Read {
            file: FileId::Segment(1),
            offset: number * BLOCK,
            buffer: Buffer::zeroed(ALIGNMENT),
            done: Box::new(move |result| {
                assert_eq!(*result.unwrap(), block(number));
                if number + 1 < 100 {
                    chain(again, number + 1, sender);
                } else {
                    sender.send(number).unwrap();
                }
            }),
        });
    }
    device.create(FileId::Segment(1), 100 * BLOCK).unwrap();
    for number in 0..100 {
        write(&*device, FileId::Segment(1), number * BLOCK, &block(number)).unwrap();
    }
    let (sender, receiver) = mpsc::channel();
    for _ in 0..50 {
        chain(Arc::clone(&device), 0, sender.clone());
    }
    drop(sender);
    assert_eq!(receiver.iter().count(), 50);
}

fn the_last_handle_may_be_dropped_in_a_completion(device: Arc<dyn Device>) {
    device.create(FileId::Index(1), BLOCK).unwrap();
    let (sender, receiver) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let held = Arc::clone(&device);
    device.submit(Request::Read {
        file: FileId::Index(1),
        offset: 0,
        buffer: Buffer::zeroed(ALIGNMENT),
        done: Box::new(move |result| {
            released.recv().unwrap();
            drop(held);
            sender.send(result).unwrap();
        }),
    });
    drop(device);
    release.send(()).unwrap();
    receiver.recv().unwrap().unwrap();
}

fn a_write_lets_go_of_its_bytes_before_it_completes(device: Arc<dyn Device>) {
    struct Page(Vec<u8>, #[expect(dead_code, reason = "held for its count")] Arc<()>);
    impl AsRef<[u8]> for Page {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    device.create(FileId::Segment(1), BLOCK).unwrap();
    for file in [FileId::Segment(1), FileId::Segment(404)] {
        let (sender, receiver) = mpsc::channel();
        let held = Arc::new(());
        device.submit(Request::Write {
            file,
            offset: 0,
            bytes: Bytes::new(Page(block(1), Arc::clone(&held))),
            done: Box::new(move |_| sender.send(Arc::strong_count(&held)).unwrap()),
        });
        assert_eq!(receiver.recv().unwrap(), 1);
    }
}

fn a_panicking_completion_harms_no_other(device: Arc<dyn Device>) {
    device.create(FileId::Index(1), BLOCK).unwrap();
    for _ in 0..50 {
        device.submit(Request::Sync {
            file: FileId::Index(1),
            // Not `panic!`, whose message would fill the output of the test.
            done: Box::new(|_| std::panic::resume_unwind(Box::new("on purpose"))),
        });
        read(&*device, FileId::Index(1), 0, ALIGNMENT).unwrap();
    }
}

fn dropping_the_device_completes_what_was_submitted(device: Arc<dyn Device>) {
    const REQUESTS: u64 = 500;
    device.create(FileId::Segment(1), REQUESTS * BLOCK).unwrap();
    let (sender, receiver) = mpsc::channel();
    for number in 0..REQUESTS {
        let sender = sender.clone();
        device.submit(Request::Write {
            file: FileId::Segment(1),
            offset: number * BLOCK,
            bytes: Bytes::new(block(number)),
            done: Box::new(move |result| sender.send(result).unwrap()),
        });
    }
    drop(sender);
    drop(device);
    // Without waiting: all were called before the drop returned.
    assert_eq!(receiver.try_iter().filter(Result::is_ok).count(), REQUESTS as usize);
}

fn there_is_free_space(device: Arc<dyn Device>) {
    assert!(device.free_space().unwrap() > 0);
}

/// A file system mounted for one test; unmounted when dropped.
struct Mounted {
    path: tempfile::TempDir,
}

impl Mounted {
    /// Mounts, or says why the test is skipped: it takes root.
    fn new(kind: &str, options: &str) -> Option<Self> {
        let path = tempfile::tempdir().unwrap();
        let arguments = ["-t", kind, "-o", options, "ferrite-test"];
        let mounted =
            std::process::Command::new("mount").args(arguments).arg(path.path()).output().unwrap();
        if !mounted.status.success() {
            eprintln!("skipped: {}", String::from_utf8_lossy(&mounted.stderr).trim());
            return None;
        }
        Some(Self { path })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.path.path()).status();
    }
}

/// Both local forms, each in an empty directory of a file system; io_uring where it is granted.
fn local_forms(mounted: &Mounted) -> Vec<Arc<dyn Device>> {
    [IoChoice::Posix, IoChoice::IoUring]
        .into_iter()
        .filter_map(|io| {
            let path = mounted.path.path().join(format!("{io:?}"));
            open(&path, "ferrite", io).map_err(|error| eprintln!("skipped: {error}")).ok()
        })
        .map(|opened| opened.device)
        .collect()
}

#[test]
fn a_full_file_system_is_storage_full_and_recovers() {
    let Some(mounted) = Mounted::new("tmpfs", "size=1m") else { return };
    let devices = local_forms(&mounted);
    assert!(!devices.is_empty());
    for device in devices {
        let kind = |result: io::Result<()>| result.unwrap_err().kind();
        let (full, file) = (io::ErrorKind::StorageFull, FileId::Index(1));
        assert_eq!(kind(device.create(FileId::Segment(1), 2 << 20)), full);
        assert_eq!(device.list().unwrap(), [], "what could not be made whole is not there");
        device.create(file, 0).unwrap();
        assert_eq!(kind(write(&*device, file, 0, &vec![1; 2 << 20])), full);
        assert!(device.free_space().unwrap() < 1 << 20);
        device.remove(file).unwrap();
        device.create(file, 0).unwrap();
        write(&*device, file, 0, &block(1)).unwrap();
        assert_eq!(*read(&*device, file, 0, ALIGNMENT).unwrap(), block(1));
        device.remove(file).unwrap();
    }
}

/// Files or names may run out before bytes do: the file's own, or that of its link.
#[test]
fn a_file_system_without_room_for_a_name_is_full() {
    let Some(mounted) = Mounted::new("tmpfs", "size=1m,nr_inodes=32") else { return };
    let devices = local_forms(&mounted);
    assert!(!devices.is_empty());
    for device in devices {
        let made = |number: &u64| device.create(FileId::Index(*number), 0);
        let failed = (1..40).find_map(|number| made(&number).err()).expect("there are 32");
        assert!(super::is_full(&failed), "{failed}");
        let files = device.list().unwrap();
        assert!(!files.is_empty());
        files.into_iter().for_each(|file| device.remove(file).unwrap());
        device.create(FileId::Index(1), 0).unwrap();
        device.remove(FileId::Index(1)).unwrap();
    }
}

/// ramfs has no direct I/O and no fallocate.
#[test]
fn a_file_system_without_direct_reads_is_read_through_the_page_cache() {
    let Some(mounted) = Mounted::new("ramfs", "mode=700") else { return };
    let devices = local_forms(&mounted);
    assert!(!devices.is_empty());
    for device in devices {
        let why = device.direct_reads().unwrap_err();
        assert!(why.contains("O_DIRECT"), "{why}");
        device.create(FileId::Segment(1), 8 * BLOCK).unwrap();
        assert_eq!(device.size(FileId::Segment(1)).unwrap(), 8 * BLOCK);
        write(&*device, FileId::Segment(1), BLOCK, &block(1)).unwrap();
        assert_eq!(*read(&*device, FileId::Segment(1), BLOCK, ALIGNMENT).unwrap(), block(1));
    }
}
