//! The read-only window on real files, in both of its forms: mapped and locked, and, where nothing
//! may be locked, in frames and copies. A child process that was denied the right to lock runs the
//! second one.

mod support;

use ferrite_hybridlog::device::fault::{Fault, FaultDevice, Operation};
use ferrite_hybridlog::{BlockingSession, Change, Config, Database, Store};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;
use support::{layout, open};

const PAGE: u64 = 64 << 10;
const FRAMES: u64 = 16;
const DENIED: &str = "FERRITE_TEST_MAY_NOT_LOCK";

fn key(n: u64) -> Vec<u8> {
    format!("key:{n:06}").into_bytes()
}

fn value(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(60)
}

fn put(s: &mut BlockingSession, n: u64) {
    let value = value(n);
    let put = || Change::Put { value: &value, expires_at_ms: None, encoding: 0 };
    s.rmw(Database(0), &key(n), |_, _| (put(), ())).expect("writes");
}

fn check(s: &mut BlockingSession, numbers: impl Iterator<Item = u64>) {
    for n in numbers {
        let entry = support::entry_of(s, 0, &key(n));
        assert_eq!(entry.map(|e| e.value), Some(value(n)), "key {n}");
    }
}

/// Waits for the window to hold at least so many bytes.
fn wait_for_window(store: &Store, bytes: u64) {
    for _ in 0..10_000 {
        if store.stats().mapped_bytes >= bytes {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the window holds {} bytes of {bytes}", store.stats().mapped_bytes);
}

/// Writes twice what memory holds, reads it back from every region, restarts, and finds what the
/// read-only region can hold in memory again.
fn fill_and_restart(config: &Config, form: &str) {
    const KEYS: u64 = 2 * FRAMES * PAGE / 512;
    let store = Store::open(config.clone()).expect("opens");
    let stats = store.stats();
    assert_eq!(stats.readonly_window, form, "{:?}", stats.readonly_window_reason);
    let mut s = store.blocking_session();
    for n in 0..KEYS {
        put(&mut s, n);
        // What was written a while ago, in every region, also while its page moves.
        check(&mut s, [n / 2, n - n.min(FRAMES * PAGE / 1024), n].into_iter());
    }
    if form == "mlock" {
        wait_for_window(&store, config.readonly_size - 2 * PAGE);
        // A cut flushes the mutable region too; what is mapped stays within the read-only one.
        store.checkpoint().expect("checkpoints");
        std::thread::sleep(Duration::from_millis(100));
        assert!(store.stats().mapped_bytes <= config.readonly_size);
    } else {
        assert_eq!(store.stats().mapped_bytes, 0, "without the right, pages stay in frames");
    }
    let in_memory = FRAMES * PAGE / 2;
    let window = KEYS - in_memory / 512..KEYS;
    check(&mut s, 0..KEYS);
    let reads = store.stats().device_reads;
    check(&mut s, window.clone());
    assert_eq!(store.stats().device_reads, reads, "the newest part is in memory");
    store.checkpoint().expect("checkpoints");
    drop((s, store));

    let store = Store::open(config.clone()).expect("opens again");
    wait_for_window(&store, config.readonly_size - PAGE);
    let mut s = store.blocking_session();
    let warm = KEYS - (config.readonly_size - 2 * PAGE) / 520..KEYS;
    check(&mut s, warm);
    assert_eq!(store.stats().device_reads, 0, "a restart finds the newest part in memory");
    // New pages take the place of old ones, oldest first, until none is left.
    for n in 0..KEYS {
        put(&mut s, n);
        check(&mut s, [n, KEYS - 1 - n].into_iter());
    }
    check(&mut s, 0..KEYS);
    assert!(store.stats().device_reads > 0, "memory holds half of the data");
}

/// Whether this process may lock memory: in a child it may not, else the machine decides.
fn expected_form(config: &Config) -> &'static str {
    if std::env::var_os(DENIED).is_some() {
        return "anonymous";
    }
    let store = Store::open(config.clone()).expect("opens");
    let form = store.stats().readonly_window;
    println!("this machine's form: {form}");
    form
}

#[test]
fn the_window_holds_the_newest_flushed_pages_over_restarts() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = layout(folder.path(), PAGE, FRAMES);
    fill_and_restart(&config, expected_form(&config));
}

#[test]
fn where_nothing_may_be_locked_pages_stay_in_their_frames() {
    if std::env::var_os(DENIED).is_some() {
        return; // in the child itself
    }
    let this = std::env::current_exe().expect("a test has a program");
    let mut child = Command::new(this);
    child.args(["--exact", "the_window_holds_the_newest_flushed_pages_over_restarts"]);
    child.env(DENIED, "1");
    let deny = || {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: plain system calls on values of this frame, between fork and exec.
        unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &none) };
        const CAP_IPC_LOCK: libc::c_ulong = 14;
        // Refused to those who have no capability to drop, which is as good.
        // SAFETY: as above.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) };
        Ok(())
    };
    // SAFETY: the closure only makes system calls.
    unsafe { child.pre_exec(deny) };
    let output = child.output().expect("runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

/// A file that does not hold what was written must not become all there is of it.
#[test]
fn a_page_that_its_file_does_not_hold_stays_in_memory_and_no_write_is_taken() {
    let device = FaultDevice::new();
    let config = layout(std::path::Path::new("simulated"), 4096, 8);
    let store = open(&config, &device);
    device.corrupt_maps();
    let mut s = store.blocking_session();
    let mut taken = 0;
    loop {
        let value = value(taken);
        let put = Change::Put { value: &value, expires_at_ms: None, encoding: 0 };
        if s.rmw(Database(0), &key(taken), |_, _| (put, ())).is_err() {
            break;
        }
        taken += 1;
        assert!(taken < 10_000, "nobody notices");
    }
    let why = store.stats().not_writable.expect("it takes no writes");
    assert!(why.contains("checksum"), "{why}");
    assert!(store.checkpoint().is_err());
    check(&mut s, 0..taken);
}

/// What nobody needs any more must not stay on the disk because it is warm.
#[test]
fn files_go_with_what_was_flushed_though_their_pages_are_in_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = layout(folder.path(), PAGE, FRAMES);
    let segments = || -> BTreeSet<OsString> {
        let files = std::fs::read_dir(folder.path().join("checkpoints")).expect("lists");
        let names = files.map(|file| file.expect("lists").file_name());
        names.filter(|name| name.to_string_lossy().contains(".log-")).collect()
    };
    let store = Store::open(config.clone()).expect("opens");
    let mut s = store.blocking_session();
    (0..500).for_each(|n| put(&mut s, n));
    store.checkpoint().expect("checkpoints");
    drop((s, store));

    let store = Store::open(config).expect("opens again");
    wait_for_window(&store, 2 * PAGE);
    let before = segments();
    store.flush_all().expect("flushes");
    let mut s = store.blocking_session();
    put(&mut s, 1);
    // The last checkpoint but one still needs them after the first of these.
    for _ in 0..2 {
        store.checkpoint().expect("checkpoints");
    }
    assert!(segments().is_disjoint(&before), "of {before:?} there is {:?}", segments());
    check(&mut s, std::iter::once(1));
    assert_eq!(support::entry_of(&mut s, 0, &key(2)), None);
}

#[test]
fn a_page_that_cannot_be_mapped_stays_in_its_frame() {
    let device = FaultDevice::new();
    let config = layout(std::path::Path::new("simulated"), 4096, 8);
    let store = open(&config, &device);
    device.inject(Fault::new(Operation::Map, libc::EAGAIN));
    let mut s = store.blocking_session();
    for n in 0..100 {
        put(&mut s, n);
        check(&mut s, n / 2..=n);
    }
    assert_eq!(store.stats().mapped_bytes, 0);
}
