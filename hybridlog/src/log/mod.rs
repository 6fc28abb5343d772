//! The log: append at the tail, look at an address in memory, fetch one from the device.
//!
//! ```text
//!   begin ........... head .................... read_only ............ tail ... limit
//!   | on the device   | immutable: mapped files | frames, in-place    | ready frames
//!   |                 | or frames               |                     |
//! ```
//!
//! One page thread ([`page_thread`]) owns every transition of a frame. Writers hold tickets
//! ([`tail`]), so an append never waits; who finds no room queues up in [`room`].

pub(crate) mod ages;
pub(crate) mod boundaries;
pub(crate) mod earlier;
pub(crate) mod frames;
pub(crate) mod health;
pub(crate) mod helper;
pub(crate) mod memory;
pub(crate) mod page_table;
pub(crate) mod page_thread;
pub(crate) mod room;
pub(crate) mod scan;
pub(crate) mod space;
pub(crate) mod syncs;
pub(crate) mod tail;
pub(crate) mod window;

use crate::config::{Geometry, MAPPED_PAGES_MAX};
use crate::device::{Device, Mapping};
use crate::record::{Draft, RecordRef};
use crate::sync::{
    Arc, Condvar, Instant, Locked, Mutex,
    atomic::{AtomicU64, Ordering},
    mutant, thread, wait_timeout_while,
};
use crate::tier::raw::{Fetched, RawSegments, ReadFailure};
use ages::Ages;
use boundaries::Boundaries;
use earlier::EarlierPages;
use ferrite_index::{Address, Epoch, Pin, assert_unpinned};
use frames::Frames;
use health::Health;
use memory::MemoryLimit;
use room::RoomQueue;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;
use tail::{Reserved, Tail};

/// Where a log begins and what earlier runs left of it.
pub(crate) struct Origin {
    /// The lowest address that is still needed.
    pub begin: u64,
    /// Where this run starts: a segment's first address.
    pub start: u64,
    /// What earlier runs left, ascending.
    pub extents: Vec<(u64, u64)>,
}

pub(crate) struct Log {
    pub geometry: Geometry,
    /// Whether the device is memory too: then all of the log stays readable without it.
    pub is_in_memory: bool,
    pub start: u64,
    /// What of earlier runs may be in memory.
    pub earlier: EarlierPages,
    /// No kept checkpoint needs what lies below: it may leave memory whatever else could stay.
    not_needed_below: AtomicU64,
    /// Why pages are not mapped from their files but stay in their frames, if so.
    pub unmapped: Option<String>,
    pub boundaries: Boundaries,
    pub tail: Tail,
    pub room: RoomQueue,
    pub raw: RawSegments,
    pub device: Arc<dyn Device>,
    pub epoch: Arc<Epoch>,
    pub health: Health,
    /// Bytes of disk that clients' writes leave to checkpoints and compaction: two segments, or an
    /// eighth of what was free at the start.
    pub space_reserve: u64,
    /// What a log in memory may take.
    pub memory: MemoryLimit,
    pub counters: Counters,
    pub ages: Ages,
    /// The earliest expiry of each page in memory, by frame; `u64::MAX` is none.
    page_expiry: Vec<AtomicU64>,
    /// The same for pages that left memory, by the page's start.
    pub cold_expiry: Mutex<BTreeMap<u64, u64>>,
    frames: Arc<Frames>,
    wake: Wake,
}

/// Plain counters; INFO and metrics read them.
#[derive(Default)]
pub(crate) struct Counters {
    pub write_bytes: AtomicU64,
    pub in_place: AtomicU64,
    pub appends: AtomicU64,
    pub expired: AtomicU64,
}

/// How long to wait for pages that are not needed any more to leave memory.
const LEAVING: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Wake {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Log {
    /// A log whose data below `origin.start`, if any, lies on the device.
    pub fn new(
        geometry: Geometry,
        origin: Origin,
        device: Arc<dyn Device>,
        epoch: Arc<Epoch>,
        cache_bytes: u64,
    ) -> io::Result<Arc<Self>> {
        let Origin { begin, start, extents } = origin;
        assert!(start > 0 && start.is_multiple_of(geometry.segment_words));
        let page_expiry = (0..geometry.frames).map(|_| AtomicU64::new(u64::MAX)).collect();
        let earlier = EarlierPages::choose(&geometry, begin, start, &extents);
        let lowest = earlier.lowest();
        let free = device.free_space().unwrap_or(u64::MAX);
        Ok(Arc::new(Self {
            geometry,
            is_in_memory: device.io_kind() == "memory",
            start,
            unmapped: why_unmapped(&geometry, &*device),
            not_needed_below: AtomicU64::new(begin),
            boundaries: Boundaries::new(begin, lowest.max(begin), start),
            tail: Tail::new(start, earlier.limit_for(lowest), geometry.page_words),
            room: RoomQueue::default(),
            raw: RawSegments::new(Arc::clone(&device), geometry, cache_bytes, extents),
            device,
            epoch,
            health: Health::default(),
            space_reserve: (geometry.segment_words * 16).min(free / 8),
            memory: MemoryLimit::default(),
            counters: Counters::default(),
            ages: Ages::default(),
            page_expiry,
            cold_expiry: Mutex::default(),
            frames: Arc::new(Frames::new(geometry, lowest, start)?),
            earlier,
            wake: Wake::default(),
        }))
    }

    pub fn frame_bytes(&self) -> u64 {
        self.frames.bytes()
    }

    /// Bytes of pages that are mapped from their files.
    pub fn mapped_bytes(&self) -> u64 {
        self.frames.mapped_bytes()
    }

    /// The record at an address that was at or above `head` inside this pin; `None` when it is of
    /// an earlier run and its page was not brought into memory.
    #[inline]
    pub fn record<'p>(
        &self,
        _pin: &'p Pin<'_>,
        head: u64,
        address: Address,
    ) -> Option<RecordRef<'p>> {
        assert!(address.raw() >= head, "the record has left memory");
        // SAFETY: index entries and previous addresses only name published records (they are
        // written after the record), `head` was loaded inside the pin, and frames below the tail
        // at or above it are not reused before a grace period, which waits for the pin.
        unsafe { self.frames.record(address) }
    }

    /// Appends a record, paid from `credit`. `Err` says how much credit it would need.
    pub fn append(
        &self,
        _pin: &Pin<'_>,
        draft: &Draft<'_>,
        previous: Address,
        credit: &mut u64,
    ) -> Result<Address, u64> {
        let reserved = self.tail.reserve(draft.words(), credit)?;
        self.pad(&reserved);
        let address = Address::new(reserved.address);
        assert!(previous < address, "a chain must descend");
        // SAFETY: just reserved, and pinned.
        unsafe { self.frames.write(address, draft, previous) };
        if let Some(at) = draft.expires_at_ms {
            self.note_expiry(reserved.address, at);
        }
        if reserved.pad > 0 || reserved.address.is_multiple_of(self.geometry.page_words) {
            self.wake();
        }
        Ok(address)
    }

    /// Pads the tail to a block, at a safepoint, and makes everything below it read-only. Returns
    /// the new tail: the cut.
    pub fn fold_over(&self, block_words: u64, credit: &mut u64) -> u64 {
        let cut = self.tail.align(block_words, credit, |at, words| {
            // SAFETY: at a safepoint nobody else appends, so the words behind the tail, which
            // `credit` covers, are this caller's.
            unsafe { self.frames.pad(at, words) };
        });
        self.boundaries.announce_read_only(cut);
        self.wake();
        cut
    }

    fn pad(&self, reserved: &Reserved) {
        if reserved.pad > 0 {
            // SAFETY: the words from `pad_at` on were just reserved.
            unsafe { self.frames.pad(reserved.pad_at, reserved.pad) };
        }
    }

    /// Remembers that a record of the page at `address` expires then.
    pub fn note_expiry(&self, address: u64, expires_at_ms: u64) {
        // Release: who takes the note finds the expiry in the record.
        self.page_expiry(address).fetch_min(expires_at_ms, Ordering::Release);
    }

    /// The earliest expiry in the page, while it is in memory.
    pub fn page_expiry(&self, address: u64) -> &AtomicU64 {
        let page = address / self.geometry.page_words;
        &self.page_expiry[(page % self.geometry.frames) as usize]
    }

    /// The pages of `[from, to)` have left memory, since `to` is the new `safe_head`: takes their
    /// mappings, for the caller to drop, and readies the frames for the pages that follow in them.
    fn pages_left_memory(&self, from: u64, to: u64) -> Vec<Mapping> {
        let mut mappings = Vec::new();
        let mut leave = |page: u64| {
            // SAFETY: the page lies below `safe_head`.
            mappings.extend(unsafe { self.frames.hide(page) });
        };
        let from = self.geometry.page_start(from);
        let earlier = self.earlier.pages().iter().map(|(at, _)| *at);
        earlier.filter(|at| (from..to).contains(at)).for_each(&mut leave);
        for page in (from.max(self.start)..to).step_by(self.geometry.page_words as usize) {
            leave(page);
            self.ready_frame(page);
        }
        mappings
    }

    /// Readies the frame of a page below `safe_head` for the page that follows in it.
    fn ready_frame(&self, page_start: u64) {
        let expiry = self.page_expiry(page_start).swap(u64::MAX, Ordering::Relaxed);
        if expiry != u64::MAX {
            let mut cold = self.cold_expiry.locked();
            let noted = cold.entry(page_start).or_insert(u64::MAX);
            *noted = (*noted).min(expiry);
        }
        if self.is_in_memory {
            // The frame's next page may be long in coming: the kernel has the memory until then.
            // SAFETY: the page is below `safe_head`, and `limit` does not cover its successor yet.
            unsafe { self.frames.release_frame(page_start / self.geometry.page_words) };
            return;
        }
        // SAFETY: the page is below `safe_head`, and `limit` does not cover its successor yet.
        unsafe { self.frames.zero_page(page_start) };
    }

    /// Gives up the log below `begin`, which no kept checkpoint needs, as far as it has left memory:
    /// that takes a moment, which this waits for, or until a page is flushed.
    pub fn truncate(&self, begin: u64) {
        assert_unpinned();
        self.not_needed_below.fetch_max(begin, Ordering::Relaxed);
        let whole = self.geometry.page_start(begin.min(self.boundaries.flushed_until()));
        let patience = Instant::now() + LEAVING;
        while self.boundaries.safe_head() < whole && Instant::now() < patience {
            self.wake();
            thread::sleep(Duration::from_micros(200));
        }
        self.boundaries.truncate(begin.min(self.boundaries.safe_head()));
    }

    /// Fetches a record, waiting for it. `None` when the log has come to begin above it meanwhile, so
    /// that its file may be gone and no chain leads there any more. Never call it while pinned.
    pub fn fetch_blocking(&self, address: Address) -> Result<Option<Fetched>, ReadFailure> {
        match self.raw.fetch_blocking(address) {
            Ok(fetched) => Ok(Some(fetched)),
            Err(_) if self.has_given_back(address.raw()) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether the log begins above an address by now. `begin` moves before a file goes.
    pub fn has_given_back(&self, address: u64) -> bool {
        address < self.boundaries.begin() && !mutant!("given_back_is_damage")
    }

    /// Words of the log at or above `from`, which lies below the tail; without the gaps between runs.
    pub fn words_from(&self, from: u64) -> u64 {
        self.raw.words_from(from) + self.tail.load().saturating_sub(from.max(self.start))
    }

    /// Bytes of the log.
    pub fn bytes(&self) -> u64 {
        self.words_from(self.boundaries.begin()) * 8
    }

    /// Below it nothing is needed any more.
    pub fn not_needed_below(&self) -> u64 {
        self.not_needed_below.load(Ordering::Relaxed)
    }

    /// Tells the page thread that there may be something to do.
    pub fn wake(&self) {
        *self.wake.asked.locked() = true;
        self.wake.changed.notify_one();
    }

    fn wait_for_wake(&self, at_most: Duration) {
        assert_unpinned();
        let Wake { asked, changed } = &self.wake;
        *wait_timeout_while(changed, asked, at_most, |asked| !*asked) = false;
    }
}

/// Whether flushed pages stay in frames, and why.
fn why_unmapped(geometry: &Geometry, device: &dyn Device) -> Option<String> {
    let pages = geometry.readonly_pages();
    if pages > MAPPED_PAGES_MAX {
        return Some(format!("{pages} pages are too many mappings; choose larger pages"));
    }
    device.can_map(pages * geometry.page_words * 8).err()
}
