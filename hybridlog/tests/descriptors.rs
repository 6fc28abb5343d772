//! A store under a low limit of open files: what it keeps open does not grow with what was written
//! since the last checkpoint. The limit is a child process's own.

mod support;

use ferrite_hybridlog::{Database, IoChoice, Store};
use std::os::unix::process::CommandExt;
use std::process::Command;
use support::layout;

/// Set in the child, which has the low limit.
const LOWERED: &str = "FERRITE_TEST_FEW_DESCRIPTORS";
/// Files that the child may have open.
const LIMIT: libc::rlim_t = 128;
/// Segments of one page, with two files each, that are written between two checkpoints.
const SEGMENTS: u64 = 300;

/// Descriptors that this process has open.
fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("there is a /proc").count()
}

fn value(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(400)
}

fn check(store: &Store) {
    let mut s = store.blocking_session();
    for n in 0..SEGMENTS {
        let found = s.read(Database(0), &n.to_le_bytes()).expect("reads");
        assert_eq!(found, Some(value(n)), "key {n}");
    }
}

#[test]
fn more_segments_than_descriptors_are_written_between_two_checkpoints() {
    if std::env::var_os(LOWERED).is_none() {
        return; // the test below is its parent
    }
    for io in [IoChoice::Posix, IoChoice::Auto] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = layout(folder.path(), 4096, 4);
        config.segment_size = config.page_size;
        config.io = io;
        let store = Store::open(config.clone()).expect("opens");
        let mut s = store.blocking_session();
        let mut most = 0;
        for n in 0..SEGMENTS {
            s.upsert(Database(0), &n.to_le_bytes(), &value(n)).expect("writes");
            most = most.max(open_files());
        }
        let written = store.stats().log_flushed_until / config.segment_size;
        assert!(written > SEGMENTS / 2, "{written} segments are flushed");
        println!("{}: {most} files were open at most", store.stats().io_kind);
        check(&store);
        store.checkpoint().expect("checkpoints");
        drop((s, store));
        check(&Store::open(config).expect("opens again"));
    }
}

#[test]
fn a_store_lives_under_a_low_limit_of_open_files() {
    if std::env::var_os(LOWERED).is_some() {
        return; // in the child itself
    }
    let this = std::env::current_exe().expect("a test has a program");
    let mut child = Command::new(this);
    child.args([
        "--exact",
        "more_segments_than_descriptors_are_written_between_two_checkpoints",
        "--nocapture",
    ]);
    child.env(LOWERED, "1");
    let lower = || {
        let few = libc::rlimit { rlim_cur: LIMIT, rlim_max: LIMIT };
        // SAFETY: a plain system call on a value of this frame, between fork and exec.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &few) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure only makes a system call.
    unsafe { child.pre_exec(lower) };
    let output = child.output().expect("runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}{told}");
}
