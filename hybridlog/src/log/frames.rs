//! [unsafe room] The ring of frames: anonymous memory that holds the newest pages of the log.
//!
//! Page `p` lives in frame `p % frames`. Which addresses a frame holds at an instant is the
//! boundaries' business: an address at or above `head`, loaded inside a pin, stays in its frame
//! until the pin ends.

use crate::config::Geometry;
use crate::device::ALIGNMENT;
use crate::record::{self, Draft, RecordRef};
use crate::sync::AtomicU64;
use ferrite_index::Address;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

/// What transparent huge pages are made of.
const HUGE_PAGE: usize = 2 << 20;

pub(crate) struct Frames {
    /// The start of `geometry.frames` pages, page-aligned, mapped for the life of this value,
    /// zeroed by the kernel, and only accessed as atomic words or below `safe_read_only`.
    base: NonNull<AtomicU64>,
    mapping: NonNull<libc::c_void>,
    mapped_bytes: usize,
    geometry: Geometry,
}

// SAFETY: the memory belongs to the value and is accessed through atomics or while immutable.
unsafe impl Send for Frames {}
// SAFETY: as above.
unsafe impl Sync for Frames {}

impl Frames {
    /// Maps the ring; the kernel gives the memory when a page is first touched.
    pub fn new(geometry: Geometry) -> io::Result<Self> {
        let bytes = (geometry.ring_words() * 8) as usize;
        let mapped_bytes = bytes + HUGE_PAGE;
        // SAFETY: a fresh private anonymous mapping; nothing is replaced.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping = NonNull::new(mapping).expect("mmap never maps the null page");
        let start = mapping.as_ptr() as usize;
        let aligned = start.next_multiple_of(HUGE_PAGE) - start;
        // SAFETY: `aligned < HUGE_PAGE`, so this and `bytes` more stay inside the mapping.
        let base = unsafe { mapping.cast::<u8>().add(aligned) };
        // SAFETY: the range lies in the mapping. The advice may be refused; nothing depends on it.
        unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        Ok(Self { base: base.cast(), mapping, mapped_bytes, geometry })
    }

    /// Bytes of all frames.
    pub fn bytes(&self) -> u64 {
        self.geometry.ring_words() * 8
    }

    fn words(&self, address: u64) -> NonNull<AtomicU64> {
        let page = address / self.geometry.page_words;
        let offset = address & (self.geometry.page_words - 1);
        let index = (page % self.geometry.frames) * self.geometry.page_words + offset;
        // SAFETY: the index is below the ring's words.
        unsafe { self.base.add(index as usize) }
    }

    /// The record at an address.
    ///
    /// # Safety
    /// A record was published (or its frame zeroed) at `address`, which was at or above `head`
    /// inside a pin that lives for `'a`.
    pub unsafe fn record<'a>(&self, address: Address) -> RecordRef<'a> {
        let words = self.words(address.raw());
        // SAFETY: the caller vouches for the record; frames are always initialised memory.
        unsafe { RecordRef::new(words) }
    }

    /// Writes a record into reserved words.
    ///
    /// # Safety
    /// The caller reserved `draft.words()` words at `address` from the tail and is still pinned.
    pub unsafe fn write(&self, address: Address, draft: &Draft<'_>, previous: Address) {
        let words = self.words(address.raw());
        // SAFETY: the reservation makes the words exclusively the caller's.
        unsafe { record::write_record(words, draft, previous) };
    }

    /// Writes a PAD over reserved words.
    ///
    /// # Safety
    /// As for [`Frames::write`], for `count` words.
    pub unsafe fn pad(&self, address: u64, count: u64) {
        let words = self.words(address);
        // SAFETY: the reservation makes the word exclusively the caller's.
        unsafe { record::write_pad(words, count) };
    }

    /// Zeroes the frame that the page at `page_start` will use.
    ///
    /// # Safety
    /// The frame's former page left memory (its address is below `safe_head`), and no ticket for
    /// the new one was granted yet.
    pub unsafe fn zero_page(&self, page_start: u64) {
        let frame = self.words(page_start).as_ptr().cast::<u8>();
        // SAFETY: one whole frame, which nobody else may access now, says the caller.
        unsafe { std::ptr::write_bytes(frame, 0, self.geometry.page_words as usize * 8) };
    }

    /// The bytes of `[from, to)`, within one page, for a flush.
    ///
    /// # Safety
    /// `to <= safe_read_only`, and the frame is not reused before the slice is dropped.
    pub unsafe fn flush_slice(self: &Arc<Self>, from: u64, to: u64) -> FlushSlice {
        debug_assert!(from < to);
        debug_assert!(self.geometry.page_start(from) == self.geometry.page_start(to - 1));
        debug_assert!((from * 8).is_multiple_of(ALIGNMENT as u64));
        let bytes = (to - from) as usize * 8;
        FlushSlice { start: self.words(from), bytes, _frames: Arc::clone(self) }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size and not unmapped since.
        unsafe { libc::munmap(self.mapping.as_ptr(), self.mapped_bytes) };
    }
}

/// Part of a page that never changes any more.
pub(crate) struct FlushSlice {
    start: NonNull<AtomicU64>,
    bytes: usize,
    _frames: Arc<Frames>,
}

// SAFETY: it only reads memory that `flush_slice`'s caller vouched to be immutable and kept.
unsafe impl Send for FlushSlice {}
// SAFETY: as above.
unsafe impl Sync for FlushSlice {}

impl AsRef<[u8]> for FlushSlice {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: immutable and kept until this value drops (`flush_slice`'s contract).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast::<u8>(), self.bytes) }
    }
}
