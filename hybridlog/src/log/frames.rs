//! [unsafe room] The pages in memory: a ring of frames, and mappings of flushed pages.
//!
//! A page is written in frame `page % frames`, which is anonymous memory. Once it is flushed it may
//! move to a mapping of its file; the frame's memory then goes back to the kernel. Which addresses
//! are in memory at an instant is the boundaries' business, where they lie the [`PageTable`]'s: an
//! address at or above `head`, loaded inside a pin, stays where it was found until the pin ends.

use super::page_table::{Moved, PageTable};
use crate::config::Geometry;
use crate::device::{ALIGNMENT, Mapping};
use crate::record::{self, Draft, RecordRef};
use crate::sync::{Arc, AtomicU64, Locked, Mutex};
use ferrite_index::{Address, Epoch};
use std::collections::BTreeMap;
use std::io;
use std::ptr::NonNull;

/// What transparent huge pages are made of.
const HUGE_PAGE: usize = 2 << 20;

pub(crate) struct Frames {
    /// The start of `geometry.frames` pages, page-aligned, mapped for the life of this value,
    /// zeroed by the kernel, and only accessed as atomic words or below `safe_read_only`.
    base: NonNull<AtomicU64>,
    mapping: NonNull<libc::c_void>,
    mapped_bytes: usize,
    table: PageTable,
    /// What the table shows in place of frames, by page number.
    mapped: Mutex<BTreeMap<u64, Mapping>>,
    geometry: Geometry,
}

// SAFETY: the memory belongs to the value and is accessed through atomics or while immutable.
unsafe impl Send for Frames {}
// SAFETY: as above.
unsafe impl Sync for Frames {}

impl Frames {
    /// Maps the ring; the kernel gives the memory when a page is first touched. The log of this run
    /// starts at `start`; pages of earlier runs from `lowest` on may be mapped.
    pub fn new(geometry: Geometry, lowest: u64, start: u64) -> io::Result<Self> {
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
        let aligned = mapping.as_ptr().cast::<u8>().align_offset(HUGE_PAGE);
        // SAFETY: `aligned < HUGE_PAGE`, so this and `bytes` more stay inside the mapping.
        let base = unsafe { mapping.cast::<u8>().add(aligned) };
        // SAFETY: the range lies in the mapping. The advice may be refused; nothing depends on it.
        unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        let base = base.cast::<AtomicU64>();
        let pages = |address: u64| address / geometry.page_words;
        let page_bytes = geometry.page_words * 8;
        let first_place = base.as_ptr().expose_provenance() as u64;
        let table = PageTable::new(geometry.frames, pages(start), pages(lowest), |frame| {
            first_place + frame * page_bytes
        });
        Ok(Self { base, mapping, mapped_bytes, table, mapped: Mutex::default(), geometry })
    }

    /// Bytes that pages in memory may take, in frames and mappings.
    pub fn bytes(&self) -> u64 {
        self.geometry.ring_words() * 8
    }

    /// Bytes of pages that are mapped from their files.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped.locked().values().map(|mapping| mapping.len() as u64).sum()
    }

    /// Pages that are mapped from their files.
    pub fn mapped_pages(&self) -> u64 {
        self.mapped.locked().len() as u64
    }

    /// Page and offset in it, in words.
    fn split(&self, address: u64) -> (u64, usize) {
        let page_words = self.geometry.page_words;
        (address >> page_words.trailing_zeros(), (address & (page_words - 1)) as usize)
    }

    /// The word in the frame of an address of this run.
    fn words(&self, address: u64) -> NonNull<AtomicU64> {
        let (page, offset) = self.split(address);
        let index = (self.table.frame_of(page) * self.geometry.page_words) as usize + offset;
        // SAFETY: the index is below the ring's words.
        unsafe { self.base.add(index) }
    }

    /// The record at an address; `None` when it is one of an earlier run whose page is not mapped.
    ///
    /// # Safety
    /// A record was published (or its frame zeroed) at `address`, which was at or above `head`
    /// inside a pin that lives for `'a`.
    pub unsafe fn record<'a>(&self, address: Address) -> Option<RecordRef<'a>> {
        let (page, offset) = self.split(address.raw());
        let place = self.table.place(page) as usize;
        let start = NonNull::new(std::ptr::with_exposed_provenance_mut::<AtomicU64>(place))?;
        // SAFETY: a page that the table shows holds all words up to the end of what was written.
        let words = unsafe { start.add(offset) };
        // SAFETY: the caller vouches for the record; frames and mappings are initialised memory,
        // and neither goes before a grace period that waits for the pin.
        Some(unsafe { RecordRef::new(words) })
    }

    /// Shows a page of this run in a mapping of its file instead of its frame.
    ///
    /// # Safety
    /// The page is flushed and at or above `head`; the mapping holds its bytes.
    pub unsafe fn move_page(&self, epoch: &Epoch, page_start: u64, mapping: Mapping) -> Moved {
        let page = self.split(page_start).0;
        debug_assert!(mapping.len() as u64 == self.geometry.page_words * 8);
        let place = mapping.as_ptr().expose_provenance() as u64;
        self.mapped.locked().insert(page, mapping);
        self.table.begin_move(epoch, page, place)
    }

    /// Whether nobody looks at the frame of a page that moved.
    pub fn is_settled(&self, epoch: &Epoch, moved: Moved) -> bool {
        self.table.is_settled(epoch, moved)
    }

    /// Gives the memory of a page's frame back to the kernel; it reads as zeros afterwards.
    ///
    /// # Safety
    /// The page moved, the move has settled, and the page has not left memory since; or it has left
    /// memory (its address is below `safe_head`), and no ticket for the frame's next page was granted
    /// yet.
    pub unsafe fn release_frame(&self, page: u64) {
        let frame = self.words(page * self.geometry.page_words).as_ptr();
        let bytes = (self.geometry.page_words * 8) as usize;
        // SAFETY: one whole frame, whose page lies elsewhere and whose next one has no ticket yet,
        // says the caller.
        let failed = unsafe { libc::madvise(frame.cast(), bytes, libc::MADV_DONTNEED) } != 0;
        debug_assert!(!failed, "our own memory can be given back: {}", io::Error::last_os_error());
    }

    /// Shows a page of an earlier run.
    ///
    /// # Safety
    /// The page is at or above `head`; the mapping holds its bytes up to the end of what that run
    /// wrote of it.
    pub unsafe fn show_earlier(&self, page_start: u64, mapping: Mapping) {
        let page = self.split(page_start).0;
        let place = mapping.as_ptr().expose_provenance() as u64;
        self.mapped.locked().insert(page, mapping);
        self.table.put(page, place);
    }

    /// Takes the mapping of a page that has left memory, if it has one, for the caller to drop.
    ///
    /// # Safety
    /// The page lies below `safe_head`.
    pub unsafe fn hide(&self, page_start: u64) -> Option<Mapping> {
        let page = self.split(page_start).0;
        let mapping = self.mapped.locked().remove(&page)?;
        let is_earlier = page < self.table.first_page();
        let frame = self.words(page_start).as_ptr().expose_provenance() as u64;
        self.table.put(page, if is_earlier { 0 } else { frame });
        Some(mapping)
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
