//! A wall clock that a test sets, for a real server: the C library's `clock_gettime` is interposed, and what
//! it says of the real time is moved by what a file has.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
static volatile long long *moved_ms;
static int (*real)(clockid_t, struct timespec *);
__attribute__((constructor)) static void begin(void) {
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int file = open(getenv("CLOCK_MOVED_MS"), O_RDONLY);
    void *mapped = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    if (file < 0 || mapped == MAP_FAILED) abort();
    moved_ms = mapped;
}
int clock_gettime(clockid_t which, struct timespec *at) {
    if (!real) begin();
    int result = real(which, at);
    if (which == CLOCK_REALTIME) {
        long long ns = at->tv_sec * 1000000000LL + at->tv_nsec + *moved_ms * 1000000LL;
        at->tv_sec = ns / 1000000000LL;
        at->tv_nsec = ns % 1000000000LL;
    }
    return result;
}
"#;

/// The clock of the servers that run under it, and of the test.
pub struct Clock {
    folder: tempfile::TempDir,
    file: File,
    moved_ms: AtomicI64,
}

impl Clock {
    /// One that goes right. Needs a C compiler, as linking this test did.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("shim.c"), SHIM).expect("written");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([path("shim.so"), path("shim.c")])
            .arg("-ldl")
            .status();
        assert!(built.expect("cc runs").success());
        let file = File::create_new(path("moved")).expect("made");
        file.write_all_at(&0i64.to_ne_bytes(), 0).expect("written");
        Self { folder, file, moved_ms: AtomicI64::new(0) }
    }
    /// What a server is started with.
    pub fn environment(&self) -> [(&'static str, PathBuf); 2] {
        let path = |name: &str| self.folder.path().join(name);
        [("LD_PRELOAD", path("shim.so")), ("CLOCK_MOVED_MS", path("moved"))]
    }
    /// Unix time in milliseconds, as the servers see it.
    pub fn now_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let now = i64::try_from(now.as_millis()).expect("it fits");
        (now + self.moved_ms.load(Ordering::SeqCst)).try_into().expect("after 1970")
    }
    /// Sets it forward, or back.
    pub fn step(&self, by_ms: i64) {
        let moved = self.moved_ms.load(Ordering::SeqCst) + by_ms;
        self.file.write_all_at(&moved.to_ne_bytes(), 0).expect("written");
        self.moved_ms.store(moved, Ordering::SeqCst);
    }
}
