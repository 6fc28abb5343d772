//! Raw segments: the log as it was flushed, in blocks of 4 KiB that are written once.
//!
//! Each block's CRC32C (iSCSI) lies in the segment's side file, four bytes little-endian at four
//! times the block's number, so records stay contiguous. Nothing read from a segment is used
//! before its blocks match. Side blocks go through the block cache; one that does not match is
//! read again once, since a flush may have filled it meanwhile.

use crate::config::Geometry;
use crate::device::{ALIGNMENT, Buffer, Device, FileId, Request, blocking};
use crate::record::RecordRef;
use crate::sync::{
    Arc, AtomicU64,
    atomic::{AtomicU64 as Counter, Ordering},
    mpsc,
};
use crate::tier::block_cache::BlockCache;
use ferrite_index::{Address, assert_unpinned};
use std::io;
use std::ptr::NonNull;

/// Blocks whose checksums fit in one block of the side file.
pub(crate) const CRCS_A_BLOCK: u64 = (ALIGNMENT / 4) as u64;
/// Bytes after a record's start that the first read covers: most records end there.
const FIRST_READ: u64 = 512;

/// CRC32C of one block.
pub(crate) fn block_crc(block: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, block) as u32
}

/// The size of a side file.
pub(crate) fn side_size(geometry: &Geometry) -> u64 {
    (geometry.segment_words * 8 / ALIGNMENT as u64 * 4).next_multiple_of(ALIGNMENT as u64)
}

/// A record fetched from the device, verified. It holds no more than its own words: a command of
/// many cold keys keeps all of them until it ends.
pub(crate) struct Fetched {
    pub address: Address,
    /// The whole record.
    words: Box<[AtomicU64]>,
}

impl Fetched {
    pub fn record(&self) -> RecordRef<'_> {
        let start = NonNull::from(&*self.words).cast::<AtomicU64>();
        // SAFETY: `RawSegments::deliver` copied a whole record, which lives as long as `self` and
        // which nobody writes.
        unsafe { RecordRef::new(start) }
    }
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fetched({:?})", self.address)
    }
}

/// What went wrong, for the client and the log, and whether trying again could help.
pub(crate) type ReadFailure = String;
type Done<T> = Box<dyn FnOnce(Result<T, ReadFailure>) + Send>;

/// Reads the flushed part of the log. Clones share the cache and the counters.
#[derive(Clone)]
pub(crate) struct RawSegments(Arc<Inner>);

struct Inner {
    device: Arc<dyn Device>,
    geometry: Geometry,
    cache: BlockCache,
    /// What earlier runs left, ascending: nothing lies between an extent's end and the next one.
    extents: Vec<(u64, u64)>,
    reads: Counter,
    read_bytes: Counter,
}

impl RawSegments {
    pub fn new(
        device: Arc<dyn Device>,
        geometry: Geometry,
        cache_bytes: u64,
        extents: Vec<(u64, u64)>,
    ) -> Self {
        let cache = BlockCache::new(cache_bytes);
        let inner = Inner {
            device,
            geometry,
            cache,
            extents,
            reads: Counter::new(0),
            read_bytes: Counter::new(0),
        };
        Self(Arc::new(inner))
    }

    /// Records (or ranges) read, and bytes.
    pub fn counters(&self) -> (u64, u64) {
        (self.0.reads.load(Ordering::Relaxed), self.0.read_bytes.load(Ordering::Relaxed))
    }

    pub fn cache_bytes(&self) -> u64 {
        self.0.cache.bytes()
    }

    /// Where the written part of an address's page ends: at the page's end, or at the cut that
    /// ended an earlier run.
    pub fn end_of_page(&self, address: u64) -> u64 {
        let page_end = self.0.geometry.page_start(address) + self.0.geometry.page_words;
        let extent = self.0.extents.iter().find(|(from, to)| (*from..*to).contains(&address));
        extent.map_or(page_end, |(_, to)| page_end.min(*to))
    }

    /// The lowest address of earlier runs at or above `address`, if there is one.
    pub fn first_written(&self, address: u64) -> Option<u64> {
        let at_or_above = |(from, to): &&(u64, u64)| address < *to && from < to;
        self.0.extents.iter().find(at_or_above).map(|(from, _)| address.max(*from))
    }

    /// Words of earlier runs at or above `address`.
    pub fn words_from(&self, address: u64) -> u64 {
        self.0.extents.iter().map(|(from, to)| to.saturating_sub(address.max(*from))).sum()
    }

    /// The file that an address lies in.
    pub fn path_of(&self, address: u64) -> std::path::PathBuf {
        self.0.device.path(self.file_of(address))
    }

    /// Says that checksums of these blocks were written: forget what the cache holds of them.
    pub fn side_written(&self, segment: u64, first_block: u64, blocks: u64) {
        for side in first_block / CRCS_A_BLOCK..=(first_block + blocks - 1) / CRCS_A_BLOCK {
            self.0.cache.forget((segment, side));
        }
    }

    /// Fetches the record at an address below `flushed_until`.
    pub fn fetch(&self, address: Address, done: Done<Fetched>) {
        let block_words = (ALIGNMENT / 8) as u64;
        let first = address.raw() / block_words * block_words;
        let end = (address.raw() + FIRST_READ / 8).next_multiple_of(block_words);
        self.fetch_blocks(address, first, end.min(self.end_of_page(address.raw())), done);
    }

    fn fetch_blocks(&self, address: Address, first: u64, end: u64, done: Done<Fetched>) {
        let this = self.clone();
        self.read(
            first,
            end,
            Box::new(move |result| match result {
                Ok(buffer) => this.deliver(address, first, end, buffer, done),
                Err(e) => done(Err(e)),
            }),
        );
    }

    /// Hands the record over once all of it was read.
    fn deliver(&self, address: Address, first: u64, end: u64, buffer: Buffer, done: Done<Fetched>) {
        let offset = (address.raw() - first) as usize * 8;
        let segment_end =
            (self.0.geometry.segment_of(address.raw()) + 1) * self.0.geometry.segment_words;
        if buffer.len() < offset + 16 {
            return done(Err(format!("{address:?} is no record's address: too close to an end")));
        }
        let header = NonNull::from(&buffer[offset..]).cast::<AtomicU64>();
        // SAFETY: two words, info and shape, are inside the buffer.
        let record = unsafe { RecordRef::new(header) };
        let (info, shape) = (record.info(), record.shape());
        if !info.is_valid() || !shape.is_plausible(info, segment_end - address.raw()) {
            let file = self.0.device.path(self.file_of(address.raw()));
            let offset = self.0.geometry.offset_in_segment(address.raw());
            return done(Err(format!(
                "no record lies at offset {offset} of {}, where the index points; restore \
                 the file from a backup",
                file.display()
            )));
        }
        let needed = (address.raw() + shape.words()).next_multiple_of((ALIGNMENT / 8) as u64);
        if needed > end {
            return self.fetch_blocks(address, first, needed, done);
        }
        let bytes = &buffer[offset..offset + shape.words() as usize * 8];
        let word = |w: &[u8]| u64::from_ne_bytes(w.try_into().expect("chunks of 8"));
        let words = bytes.chunks_exact(8).map(|w| AtomicU64::new(word(w))).collect();
        done(Ok(Fetched { address, words }));
    }

    /// Reads and verifies `[first, end)`, whole blocks of one segment.
    pub fn read(&self, first: u64, end: u64, done: Done<Buffer>) {
        self.0.reads.fetch_add(1, Ordering::Relaxed);
        self.0.read_bytes.fetch_add((end - first) * 8, Ordering::Relaxed);
        Verified { this: self.clone(), first, end, second_try: false, done }.start();
    }

    /// The same, waiting for it. Never call it while pinned.
    pub fn read_blocking(&self, first: u64, end: u64) -> Result<Buffer, ReadFailure> {
        assert_unpinned();
        let (tx, rx) = mpsc::sync_channel(1);
        self.read(first, end, Box::new(move |result| drop(tx.send(result))));
        rx.recv().unwrap_or_else(|_| Err("the device dropped a read".into()))
    }

    /// Compares what lies from `first` on, in whole blocks of one segment that came from elsewhere
    /// (a mapping), with its checksums, and says where they differ. Waits; never call it while
    /// pinned. An error means that the checksums cannot be read.
    pub fn compare_blocking(
        &self,
        first: u64,
        bytes: &[u8],
    ) -> Result<Option<ReadFailure>, ReadFailure> {
        let Inner { device, geometry, .. } = &*self.0;
        let segment = geometry.segment_of(first);
        let (file, side) = (FileId::Segment(segment), FileId::Side(segment));
        let number = geometry.offset_in_segment(first) / ALIGNMENT as u64;
        let blocks = (bytes.len() / ALIGNMENT) as u64;
        let first_side = number / CRCS_A_BLOCK;
        let sides = (number + blocks).div_ceil(CRCS_A_BLOCK) - first_side;
        let (at, length) = (first_side * ALIGNMENT as u64, sides * ALIGNMENT as u64);
        let crcs = blocking::read_at(&**device, side, at, length)
            .map_err(|e| self.damaged(side, at, &format!("cannot be read: {e}")))?;
        let crcs = crcs[(number % CRCS_A_BLOCK) as usize * 4..].chunks_exact(4);
        for ((block, crc), number) in bytes.chunks_exact(ALIGNMENT).zip(crcs).zip(number..) {
            let expected = u32::from_le_bytes(crc.try_into().expect("four bytes"));
            let found = block_crc(block);
            if expected != found {
                return Ok(Some(self.mismatch(file, number, expected, found)));
            }
        }
        Ok(None)
    }

    /// The same segments for a reader of its own: counters and cache start empty.
    pub fn with_own_counters(&self) -> Self {
        let Inner { device, geometry, extents, .. } = &*self.0;
        Self::new(Arc::clone(device), *geometry, 0, extents.clone())
    }

    fn mismatch(&self, file: FileId, block: u64, expected: u32, found: u32) -> ReadFailure {
        let what = format!("fails its checksum (expected {expected:08x}, found {found:08x})");
        self.damaged(file, block * ALIGNMENT as u64, &what)
    }

    /// Says so in the log too.
    fn damaged(&self, file: FileId, offset: u64, what: &str) -> ReadFailure {
        let path = self.0.device.path(file);
        if matches!(self.0.device.size(file), Err(e) if e.kind() == io::ErrorKind::NotFound) {
            // Whoever needed it finds at the next try that it is not needed any more, or else that
            // somebody took it away.
            return format!("{} is gone; restore it from a backup", path.display());
        }
        let message =
            format!("{} at offset {offset} {what}; restore the file from a backup", path.display());
        tracing::error!("{message}");
        message
    }

    /// Fetches one record, waiting for it. Never call it while pinned.
    pub fn fetch_blocking(&self, address: Address) -> Result<Fetched, ReadFailure> {
        assert_unpinned();
        let (tx, rx) = mpsc::sync_channel(1);
        self.fetch(address, Box::new(move |result| drop(tx.send(result))));
        rx.recv().unwrap_or_else(|_| Err("the device dropped a read".into()))
    }

    fn file_of(&self, address: u64) -> FileId {
        FileId::Segment(self.0.geometry.segment_of(address))
    }
}

/// One verified read on its way: the checksums first, then the data, then the comparison.
struct Verified {
    this: RawSegments,
    first: u64,
    end: u64,
    second_try: bool,
    done: Done<Buffer>,
}

impl Verified {
    fn start(self) {
        let blocks = self.block_range();
        self.collect(blocks.start / CRCS_A_BLOCK, Vec::new());
    }

    fn block_range(&self) -> std::ops::Range<u64> {
        let offset = self.this.0.geometry.offset_in_segment(self.first);
        let first = offset / ALIGNMENT as u64;
        first..first + (self.end - self.first) * 8 / ALIGNMENT as u64
    }

    fn segment(&self) -> u64 {
        self.this.0.geometry.segment_of(self.first)
    }

    /// Gets the side blocks from `side` on, then the data.
    fn collect(self, mut side: u64, mut got: Vec<Arc<Buffer>>) {
        let last = (self.block_range().end - 1) / CRCS_A_BLOCK;
        let segment = self.segment();
        while side <= last {
            // What a slower read has put into the cache meanwhile may be older than this try.
            let cached =
                if self.second_try { None } else { self.this.0.cache.get((segment, side)) };
            let Some(block) = cached else { return self.read_side(side, got) };
            got.push(block);
            side += 1;
        }
        self.read_data(got);
    }

    fn read_side(self, side: u64, mut got: Vec<Arc<Buffer>>) {
        let file = FileId::Side(self.segment());
        let device = Arc::clone(&self.this.0.device);
        device.submit(Request::Read {
            file,
            offset: side * ALIGNMENT as u64,
            buffer: Buffer::zeroed(ALIGNMENT),
            done: Box::new(move |result| match result {
                Ok(block) => {
                    let block = Arc::new(block);
                    self.this.0.cache.insert((self.segment(), side), Arc::clone(&block));
                    got.push(block);
                    self.collect(side + 1, got);
                }
                Err(e) => self.fail(file, side * ALIGNMENT as u64, &format!("cannot be read: {e}")),
            }),
        });
    }

    fn read_data(self, sides: Vec<Arc<Buffer>>) {
        let file = FileId::Segment(self.segment());
        let offset = self.this.0.geometry.offset_in_segment(self.first);
        let device = Arc::clone(&self.this.0.device);
        device.submit(Request::Read {
            file,
            offset,
            buffer: Buffer::zeroed((self.end - self.first) as usize * 8),
            done: Box::new(move |result| match result {
                Ok(buffer) => self.compare(buffer, &sides),
                Err(e) => self.fail(file, offset, &format!("cannot be read: {e}")),
            }),
        });
    }

    fn compare(mut self, buffer: Buffer, sides: &[Arc<Buffer>]) {
        let blocks = self.block_range();
        let first_side = blocks.start / CRCS_A_BLOCK;
        for (number, block) in blocks.clone().zip(buffer.chunks_exact(ALIGNMENT)) {
            let side = &sides[(number / CRCS_A_BLOCK - first_side) as usize];
            let at = (number % CRCS_A_BLOCK) as usize * 4;
            let expected = u32::from_le_bytes(side[at..at + 4].try_into().expect("four bytes"));
            let found = block_crc(block);
            if expected == found {
                continue;
            }
            if !self.second_try {
                self.second_try = true;
                // A flush may have filled a cached side block meanwhile.
                self.this.side_written(self.segment(), blocks.start, blocks.end - blocks.start);
                return self.start();
            }
            let file = FileId::Segment(self.segment());
            let failure = self.this.mismatch(file, number, expected, found);
            return (self.done)(Err(failure));
        }
        (self.done)(Ok(buffer));
    }

    fn fail(self, file: FileId, offset: u64, what: &str) {
        let failure = self.this.damaged(file, offset, what);
        (self.done)(Err(failure));
    }
}
