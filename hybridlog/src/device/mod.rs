//! The local files of a store, behind one trait, so that tests can put a simulated disk there.
//!
//! A device is one flat directory of [`FileId`]s. Reads, writes and syncs are submitted and
//! complete on any thread; the rare operations on the directory block. Everything that
//! durability rests on goes through here, so a simulated device can cut the power at every step.
//!
//! Promises:
//! * A completed write is visible to every later read. It survives a power cut only after a
//!   [`Request::Sync`] of the file that was submitted after the write completed has completed,
//!   and, for a new or renamed file, after [`Device::sync_directory`].
//! * Requests may complete in any order. A completion is called exactly once, never on the
//!   submitting call's stack while it holds a lock of the device.
//! * Buffers are aligned to [`ALIGNMENT`]; offsets and lengths of segment I/O are multiples of it.

pub(crate) mod blocking;
mod descriptors;
mod directory;
#[cfg(any(test, feature = "testing"))]
pub mod fault;
mod local;
mod mapping;
pub(crate) mod memory;
mod names;
mod posix;
#[cfg(test)]
mod tests;
mod uring;

pub(crate) use directory::{create_durably, home_of};
pub use local::{LocalDevice, Opened, open};
pub use mapping::Mapping;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Alignment of buffers, offsets and lengths of segment I/O: what `O_DIRECT` asks for.
pub const ALIGNMENT: usize = 4096;

/// A file of the store. The names on disk are docs/format.md's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum FileId {
    /// `ferrite.ckpt`: the manifest.
    Manifest,
    /// The manifest being written; renamed to [`FileId::Manifest`].
    ManifestNew,
    /// `ferrite.ckpt.previous`: the whole checkpoint before the newest one, of a store in memory.
    Previous,
    /// `ferrite.index-N.ckpt`: the index image of checkpoint N.
    Index(u64),
    /// `ferrite.log-N.ckpt`: raw segment N of the log.
    Segment(u64),
    /// `ferrite.log-N.side.ckpt`: the checksums of segment N's blocks.
    Side(u64),
}

/// Called once with the outcome.
pub type Done<T> = Box<dyn FnOnce(io::Result<T>) + Send>;

/// One unit of asynchronous I/O.
pub enum Request {
    /// Fills the whole buffer from `offset`. A short read at the end of the file is
    /// `ErrorKind::UnexpectedEof`.
    Read {
        /// The file.
        file: FileId,
        /// Byte offset.
        offset: u64,
        /// Where the bytes go; handed back on success.
        buffer: Buffer,
        /// The completion.
        done: Done<Buffer>,
    },
    /// Writes all bytes at `offset`, extending the file when needed. A full disk is
    /// `ErrorKind::StorageFull`, a quota that is used up `ErrorKind::QuotaExceeded`.
    Write {
        /// The file.
        file: FileId,
        /// Byte offset.
        offset: u64,
        /// What to write.
        bytes: Bytes,
        /// The completion.
        done: Done<()>,
    },
    /// Makes all completed writes of the file durable (`fdatasync`).
    Sync {
        /// The file.
        file: FileId,
        /// The completion.
        done: Done<()>,
    },
}

/// Whether the error of a sync says that the file could not even be opened: then nothing was synced,
/// and what was written to it is as it was.
pub(crate) fn could_not_open(error: &io::Error) -> bool {
    let unopened = [libc::EMFILE, libc::ENFILE, libc::ENOENT, libc::ENOTDIR, libc::EACCES];
    error.raw_os_error().is_some_and(|e| unopened.contains(&e))
}

/// Whether an error says that there is no space: the disk is full, or the quota is used up. Either may
/// be met by whatever makes a file or a name, or makes a file longer.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A directory of files. See the module's promises.
pub trait Device: Send + Sync + 'static {
    /// Starts an I/O. Never blocks on the disk; may block shortly while the queue is full.
    fn submit(&self, request: Request);
    /// Creates an empty file and, when `size` is not 0, gives it that size at once
    /// (`fallocate`; sparse where the file system cannot). An existing file is an error.
    fn create(&self, file: FileId, size: u64) -> io::Result<()>;
    /// The length of a file in bytes; `NotFound` when it does not exist.
    fn size(&self, file: FileId) -> io::Result<u64>;
    /// Removes a file and forgets its descriptor. Reads in flight may fail.
    fn remove(&self, file: FileId) -> io::Result<()>;
    /// Replaces `to` by `from`, atomically.
    fn rename(&self, from: FileId, to: FileId) -> io::Result<()>;
    /// Gives `from` a second name, in the place of what `to` was, atomically.
    /// `ErrorKind::Unsupported` where files have one name.
    fn link(&self, from: FileId, to: FileId) -> io::Result<()>;
    /// Every file of this store that exists.
    fn list(&self) -> io::Result<Vec<FileId>>;
    /// Makes creations, renames and removals durable, in the directory and in the one that holds
    /// the links to it.
    fn sync_directory(&self) -> io::Result<()>;
    /// Bytes that can still be written to the file system, for unprivileged users.
    fn free_space(&self) -> io::Result<u64>;
    /// Where a file lies, for messages.
    fn path(&self, file: FileId) -> PathBuf;
    /// How I/O is done: `io_uring`, `posix` or `simulated`.
    fn io_kind(&self) -> &'static str;
    /// Whether reads bypass the page cache, and why not when they do not.
    fn direct_reads(&self) -> Result<(), String>;
    /// Whether `bytes` of files can be held in memory by [`Device::map`], and why not.
    fn can_map(&self, bytes: u64) -> Result<(), String>;
    /// Part of a file as memory that stays present until it is dropped: completed writes are
    /// seen in it, and reading it never waits for the disk. Blocks. `offset` and `length` are
    /// multiples of [`ALIGNMENT`], the part lies inside the file and is not written to any more.
    fn map(&self, file: FileId, offset: u64, length: usize) -> io::Result<Mapping>;
}

/// A heap buffer aligned to [`ALIGNMENT`]; its length is a multiple of it.
pub struct Buffer {
    pointer: std::ptr::NonNull<u8>,
    layout: std::alloc::Layout,
}

// SAFETY: the buffer owns its bytes; a `&Buffer` only reads them.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A zeroed buffer of at least `length` bytes, rounded up to the alignment.
    pub fn zeroed(length: usize) -> Self {
        let size = length.next_multiple_of(ALIGNMENT).max(ALIGNMENT);
        let layout = std::alloc::Layout::from_size_align(size, ALIGNMENT)
            .expect("a buffer's size is far below isize::MAX");
        // SAFETY: the layout's size is at least ALIGNMENT, so it is not zero.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(pointer) = std::ptr::NonNull::new(pointer) else {
            std::alloc::handle_alloc_error(layout)
        };
        Self { pointer, layout }
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `zeroed` initialised `layout.size()` bytes, which this value owns.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.layout.size()) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout and not freed since.
        unsafe { std::alloc::dealloc(self.pointer.as_ptr(), self.layout) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len())
    }
}

/// Bytes to write, shared with whoever made them. For pages of the log this is memory below
/// `safe_read_only`, which never changes while the flush holds it.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
}

impl Bytes {
    /// Wraps an owner of bytes; it is dropped when the write has completed.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self { owner: Arc::new(owner) }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        (*self.owner).as_ref()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}
