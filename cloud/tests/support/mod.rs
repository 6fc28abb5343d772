//! Blocking calls on a [`SegmentStore`], names and files to put.
#![allow(dead_code, reason = "each test file uses a part of it")]

use ferrite_cloud::{Config, ObjectSegments};
use ferrite_hybridlog::segment_store::{
    SealedContent, SealedName, SealedObject, SegmentDone, SegmentStore, SegmentStoreError, StoreId,
};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use tempfile::{NamedTempFile, TempDir};

pub const STORE: StoreId = StoreId([0x5a; 16]);
pub const OTHER_STORE: StoreId = StoreId([0xa5; 16]);

pub fn name(segment: u64, generation: u64) -> SealedName {
    SealedName { store: STORE, segment, generation }
}

/// Bytes that tell where they come from.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A local file to put.
pub fn file(content: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file.flush().unwrap();
    file
}

/// A configuration under which the smallest object has several parts.
pub fn small_parts() -> Config {
    Config { prefix: "cold-data/".into(), concurrent_uploads: 2, part_size: 1000 }
}

/// Waits for a completion, which must come and come once.
pub fn wait<T: Send + 'static>(call: impl FnOnce(SegmentDone<T>)) -> Result<T, SegmentStoreError> {
    let (sender, receiver) = mpsc::channel();
    call(Box::new(move |outcome| sender.send(outcome).expect("the test waits")));
    let outcome = receiver.recv().expect("a completion is called");
    assert!(receiver.recv().is_err(), "a completion is called once");
    outcome
}

pub fn put(
    s: &ObjectSegments,
    n: SealedName,
    from: &Path,
) -> Result<SealedContent, SegmentStoreError> {
    wait(|done| s.put(n, from.to_owned(), done))
}
pub fn verify(
    s: &ObjectSegments,
    n: SealedName,
    e: SealedContent,
) -> Result<(), SegmentStoreError> {
    wait(|done| s.verify(n, e, done))
}
pub fn head(s: &ObjectSegments, n: SealedName) -> Result<u64, SegmentStoreError> {
    wait(|done| s.head(n, done))
}
pub fn read(
    s: &ObjectSegments,
    n: SealedName,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>, SegmentStoreError> {
    wait(|done| s.read_range(n, offset, length, done))
}
pub fn list(s: &ObjectSegments, store: StoreId) -> Vec<SealedObject> {
    wait(|done| s.list(store, done)).unwrap()
}
pub fn delete(s: &ObjectSegments, n: SealedName) -> Result<(), SegmentStoreError> {
    wait(|done| s.delete(n, done))
}
pub fn remove_unfinished(s: &ObjectSegments) -> Result<u64, SegmentStoreError> {
    wait(|done| s.remove_unfinished(STORE, done))
}

/// A local store in a directory of its own.
pub struct Local {
    pub directory: TempDir,
    pub segments: ObjectSegments,
}

impl Local {
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let segments = ObjectSegments::local(directory.path(), &small_parts(), None).unwrap();
        Self { directory, segments }
    }
    /// The folder of the store's objects.
    pub fn folder(&self) -> PathBuf {
        self.directory.path().join("cold-data").join(STORE.to_string())
    }
    /// The file of one object.
    pub fn object(&self, segment: u64, generation: u64) -> PathBuf {
        self.folder().join(format!("log-{segment}.g{generation}.ckpt"))
    }
    /// Every file below the store's folder, as paths relative to it.
    pub fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.folder()).into_iter().flatten().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if entry.path().is_dir() {
                let inner = std::fs::read_dir(entry.path()).unwrap().map(Result::unwrap);
                found.extend(inner.map(|e| format!("{name}/{}", e.file_name().display())));
            } else {
                found.push(name);
            }
        }
        found.sort();
        found
    }
}
