//! Open file descriptors, kept for the next use and bounded in number.
//!
//! Promises:
//! * [`Descriptors::get`] never hands out a descriptor of a file that was removed or replaced
//!   before the call.
//! * A descriptor with writes that no sync has covered is never closed to make room. The kernel
//!   reports a failed write-back to the descriptors that were open when it failed; one opened
//!   later can be told that all is well, and an acknowledged write would be lost without a word.
//!   So the bound is exceeded rather than that.

use crate::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;

use super::FileId;

/// The most descriptors a device keeps open, unless unsynced writes need more.
const DESCRIPTORS_MAX: u64 = 1024;

/// How a descriptor was opened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Access {
    /// For reads and writes through the page cache.
    Buffered,
    /// For reads past the page cache (`O_DIRECT`).
    Direct,
}

type Key = (FileId, Access);

/// An open file and what is known about its unsynced writes.
pub(super) struct Descriptor {
    file: File,
    /// Set at each use, cleared when the clock hand passes.
    used: AtomicBool,
    /// Counts of writes: begun, ended (also by failing), and those that a sync covers.
    writes_begun: AtomicU64,
    writes_ended: AtomicU64,
    writes_synced: AtomicU64,
}

impl Descriptor {
    fn new(file: File) -> Self {
        Self {
            file,
            used: AtomicBool::new(true),
            writes_begun: AtomicU64::new(0),
            writes_ended: AtomicU64::new(0),
            writes_synced: AtomicU64::new(0),
        }
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// To be called before a write is given to the kernel.
    pub(super) fn begin_write(&self) {
        self.writes_begun.fetch_add(1, Ordering::SeqCst);
    }

    /// To be called when a write has ended, well or badly.
    pub(super) fn end_write(&self) {
        self.writes_ended.fetch_add(1, Ordering::SeqCst);
    }

    /// To be called before a sync is given to the kernel; the result goes to
    /// [`Descriptor::end_sync`] when the sync succeeded.
    pub(super) fn begin_sync(&self) -> SyncMark {
        // Ended first: both only grow, so equality means that no write was in flight when
        // `writes_ended` was read, and the sync covers all of them.
        let ended = self.writes_ended.load(Ordering::SeqCst);
        let begun = self.writes_begun.load(Ordering::SeqCst);
        SyncMark((ended == begun).then_some(begun))
    }

    /// Records that the sync which `mark` opened succeeded.
    pub(super) fn end_sync(&self, mark: SyncMark) {
        if let SyncMark(Some(writes)) = mark {
            self.writes_synced.fetch_max(writes, Ordering::SeqCst);
        }
    }

    fn has_unsynced_writes(&self) -> bool {
        let synced = self.writes_synced.load(Ordering::SeqCst);
        synced != self.writes_begun.load(Ordering::SeqCst)
    }
}

/// The writes that a sync covers, if it is known to cover all.
pub(super) struct SyncMark(Option<u64>);

/// The open descriptors of a directory.
pub(super) struct Descriptors {
    limit: usize,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    open: HashMap<Key, Arc<Descriptor>>,
    /// The order in which the clock hand passes. A key that is no longer open is skipped.
    clock: VecDeque<Key>,
    /// Moves when names change meaning, so that a descriptor opened before is not kept.
    generation: u64,
}

impl Descriptors {
    /// A cache that uses at most a quarter of what the process may open.
    pub(super) fn new(process_limit: u64) -> Self {
        Self::with_limit((process_limit / 4).clamp(32, DESCRIPTORS_MAX) as usize)
    }

    fn with_limit(limit: usize) -> Self {
        Self { limit, cache: Mutex::default() }
    }

    /// The descriptor of `file`, opened with `open` when there is none.
    pub(super) fn get(
        &self,
        file: FileId,
        access: Access,
        open: impl Fn() -> io::Result<File>,
    ) -> io::Result<Arc<Descriptor>> {
        let key = (file, access);
        loop {
            let generation = {
                let cache = self.lock();
                if let Some(descriptor) = cache.open.get(&key) {
                    descriptor.used.store(true, Ordering::Relaxed);
                    return Ok(Arc::clone(descriptor));
                }
                cache.generation
            };
            let opened = Arc::new(Descriptor::new(self.open(&open)?));
            let mut closed = Vec::new();
            let mut cache = self.lock();
            if cache.generation != generation {
                // The name may mean another file by now.
                continue;
            }
            if let Some(earlier) = cache.open.get(&key) {
                return Ok(Arc::clone(earlier));
            }
            cache.make_room(self.limit.saturating_sub(1), &mut closed);
            cache.clock.push_back(key);
            cache.open.insert(key, Arc::clone(&opened));
            drop(cache);
            return Ok(opened);
        }
    }

    /// Opens; when the process has no descriptor left, closes half of the idle ones and tries
    /// once more.
    pub(super) fn open(&self, open: impl Fn() -> io::Result<File>) -> io::Result<File> {
        match open() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                let mut closed = Vec::new();
                self.lock().make_room(self.limit / 2, &mut closed);
                drop(closed);
                open()
            }
            other => other,
        }
    }

    /// Forgets a file that was removed. Who still holds its descriptor can use it.
    pub(super) fn forget(&self, file: FileId) {
        let closed = self.lock().take(file);
        drop(closed);
    }

    /// Hands the descriptors of a renamed file to its new name.
    pub(super) fn rename(&self, from: FileId, to: FileId) {
        let mut cache = self.lock();
        let replaced = cache.take(to);
        for (access, descriptor) in cache.take(from) {
            cache.clock.push_back((to, access));
            cache.open.insert((to, access), descriptor);
        }
        drop(cache);
        drop(replaced);
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        // Every change to the cache is complete before anything that can panic.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    fn take(&mut self, file: FileId) -> Vec<(Access, Arc<Descriptor>)> {
        self.generation += 1;
        [Access::Buffered, Access::Direct]
            .into_iter()
            .filter_map(|access| Some((access, self.open.remove(&(file, access))?)))
            .collect()
    }

    /// Moves idle descriptors to `closed` until at most `target` stay, or all that stay are in
    /// use or hold unsynced writes. The caller drops `closed` without the lock.
    fn make_room(&mut self, target: usize, closed: &mut Vec<Arc<Descriptor>>) {
        // Twice around: the first round clears the marks of use.
        for _ in 0..2 * self.clock.len() {
            if self.open.len() <= target {
                return;
            }
            let Some(key) = self.clock.pop_front() else { return };
            let Some(descriptor) = self.open.get(&key) else { continue };
            let keep = descriptor.used.swap(false, Ordering::Relaxed)
                || Arc::strong_count(descriptor) > 1
                || descriptor.has_unsynced_writes();
            if keep {
                self.clock.push_back(key);
            } else {
                closed.extend(self.open.remove(&key));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_count(descriptors: &Descriptors) -> usize {
        descriptors.lock().open.len()
    }

    fn null() -> io::Result<File> {
        File::options().read(true).write(true).open("/dev/null")
    }

    #[test]
    fn idle_descriptors_are_closed_at_the_limit() {
        let descriptors = Descriptors::with_limit(4);
        for number in 0..100 {
            descriptors.get(FileId::Segment(number), Access::Direct, null).unwrap();
            assert!(open_count(&descriptors) <= 4);
        }
        assert!(descriptors.lock().clock.len() <= 4, "the clock does not grow without bound");
    }

    #[test]
    fn a_descriptor_with_unsynced_writes_stays_open() {
        let descriptors = Descriptors::with_limit(2);
        let written = descriptors.get(FileId::Segment(0), Access::Buffered, null).unwrap();
        written.begin_write();
        written.end_write();
        let identity = Arc::as_ptr(&written);
        drop(written);
        for number in 1..50 {
            descriptors.get(FileId::Segment(number), Access::Buffered, null).unwrap();
        }
        let again = descriptors.get(FileId::Segment(0), Access::Buffered, null).unwrap();
        assert_eq!(Arc::as_ptr(&again), identity);

        let mark = again.begin_sync();
        again.end_sync(mark);
        assert!(!again.has_unsynced_writes());
        drop(again);
        for number in 1..50 {
            descriptors.get(FileId::Segment(number), Access::Buffered, null).unwrap();
        }
        assert!(!descriptors.lock().open.contains_key(&(FileId::Segment(0), Access::Buffered)));
    }

    #[test]
    fn a_write_in_flight_during_a_sync_still_needs_one() {
        let descriptor = Descriptor::new(null().unwrap());
        descriptor.begin_write();
        let mark = descriptor.begin_sync();
        descriptor.end_write();
        descriptor.end_sync(mark);
        assert!(descriptor.has_unsynced_writes());
        let mark = descriptor.begin_sync();
        descriptor.end_sync(mark);
        assert!(!descriptor.has_unsynced_writes());
    }

    #[test]
    fn a_name_that_changed_while_its_file_was_opened_is_opened_again() {
        let descriptors = Descriptors::with_limit(4);
        let calls = AtomicU64::new(0);
        descriptors
            .get(FileId::Manifest, Access::Buffered, || {
                if calls.fetch_add(1, Ordering::SeqCst) == 0 {
                    descriptors.rename(FileId::ManifestNew, FileId::Manifest);
                }
                null()
            })
            .unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }
}
