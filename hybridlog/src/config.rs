//! How a store is laid out, parsed into numbers that cannot be nonsense.

use crate::OpenError;
use crate::Progress;
use crate::device::ALIGNMENT;
use crate::record::HEADER_LIMIT;
use crate::sync::Arc;
use std::path::PathBuf;
use std::time::Duration;

/// [`Config::verify_at_start`] unless it is set: about a second of reading from a solid-state disk,
/// ten from a spinning one. A store that fits is whole when it starts; a larger one does not start
/// more slowly than that, whatever its size.
const VERIFY_AT_START: u64 = 1 << 30;

/// Pages that the window maps at most: the kernel allows a process some 65,000 mappings.
pub(crate) const MAPPED_PAGES_MAX: u64 = 16 << 10;

/// Addresses are reserved for so much of a log in memory, whatever the pages' size.
const WINDOW_MAX: u64 = 1 << 38;
/// What the smallest index of a store in memory is sized for unless more is known: it may grow to half
/// of this.
const INDEX_BASIS: u64 = 4 << 30;

/// How a store is laid out. Sizes are in bytes.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory. `checkpoints/` is made inside it.
    pub directory: PathBuf,
    /// Where the log lies that has left the mutable region.
    pub backend: Backend,
    /// Memory of the mutable region.
    pub mutable_size: u64,
    /// Memory of the read-only region. With [`Backend::Memory`] all of the log is in memory: so much of
    /// it is read without a copy, and it costs nothing to name much.
    pub readonly_size: u64,
    /// A page: the unit held in memory. A power of two from 4 KiB to 64 MiB.
    pub page_size: u64,
    /// A segment: one file. A power of two, at least a page.
    pub segment_size: u64,
    /// Memory for the checksums and other blocks read back from the device.
    pub block_cache_size: u64,
    /// How much of the log a start reads and compares with its checksums, the newest bytes first.
    /// What lies beyond is compared whenever it is read.
    pub verify_at_start: u64,
    /// The limit of the indexes of all databases together, in bytes; 0 is none. Those of databases
    /// that were never used do not count.
    pub index_max_size: u64,
    /// How many logical databases there are (1 to 256).
    pub databases: u16,
    /// How the device does its I/O.
    pub io: IoChoice,
    /// Whether index images are compressed with zstd.
    pub compress_images: bool,
    /// The stem of the files' names (`ferrite`).
    pub file_stem: String,
    /// Rebuilds the index from the whole log instead of loading its image, and takes a checkpoint
    /// with a new image before the store is handed out. For one start, after one that an image
    /// refused ([`OpenError::DamagedImage`]): it reads all of the log.
    pub rebuild_index: bool,
    /// How long files stay that a manifest named which another one has replaced, for whoever copies
    /// them meanwhile ([`crate::Store::set_backup_hold`]). A start ends it.
    pub backup_hold: Duration,
    /// The ring through which writes reach the reader of the redo log ([`crate::Store::redo`]), in
    /// bytes: a power of two from 4 KiB to 1 GiB, or 0 for a store without one. With one, the clock
    /// stands at the last checkpoint until [`crate::Store::redo`] is called: what had not expired then
    /// does not expire while the log of an earlier run is replayed.
    pub redo_ring_size: u64,
    /// With [`Backend::Memory`]: the memory from which the smallest index is sized, in bytes. Otherwise it
    /// is that of mutable and read-only region.
    pub index_basis: u64,
    /// The highest number of a checkpoint that is known to have been begun, 0 for none: the numbers of
    /// this store's are above it. For [`Backend::Memory`], whose files do not tell of attempts that
    /// failed; whoever keeps a redo log with the numbers knows.
    pub numbers_used: u64,
    /// Where [`crate::Store::open`] tells how far it has come.
    pub progress: Arc<Progress>,
}

/// Where the log lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backend {
    /// In files: memory holds the newest part. A checkpoint writes what is new.
    #[default]
    HybridLog,
    /// In memory, all of it. A checkpoint is one file with everything.
    Memory,
}

/// How the device does its I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoChoice {
    /// io_uring where the kernel grants it, else posix.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// pread and pwrite on a few threads.
    Posix,
}

impl Config {
    /// The defaults, in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            backend: Backend::HybridLog,
            mutable_size: 256 << 20,
            readonly_size: 256 << 20,
            page_size: 4 << 20,
            segment_size: 256 << 20,
            block_cache_size: 16 << 20,
            verify_at_start: VERIFY_AT_START,
            index_max_size: 0,
            databases: 16,
            io: IoChoice::Auto,
            compress_images: true,
            file_stem: "ferrite".into(),
            rebuild_index: false,
            backup_hold: Duration::ZERO,
            redo_ring_size: 0,
            index_basis: INDEX_BASIS,
            numbers_used: 0,
            progress: Arc::default(),
        }
    }

    /// Makes it a store in memory ([`Backend::Memory`]) that may take about `most` bytes; 0 is unknown.
    /// Sizes what such a store does not ask for: as much window as there can be, segments of a few pages
    /// (at most), since that is what compaction gives back at a time, and the index.
    pub fn in_memory(mut self, most: u64) -> Self {
        self.backend = Backend::Memory;
        self.readonly_size = ((MAPPED_PAGES_MAX - 1) * self.page_size).min(WINDOW_MAX);
        self.segment_size = self.segment_size.min(4 * self.page_size);
        self.index_basis = if most > 0 { most } else { INDEX_BASIS };
        self
    }

    /// The longest value that fits beside a key of `key_length` bytes.
    pub fn value_limit(&self, key_length: usize) -> usize {
        let page = self.page_size as usize;
        page.saturating_sub(HEADER_LIMIT + key_length.next_multiple_of(8))
    }

    /// The numbers the log works with.
    pub(crate) fn parse(&self) -> Result<Geometry, OpenError> {
        power_of_two("page_size", self.page_size, ALIGNMENT as u64, 64 << 20)?;
        power_of_two("segment_size", self.segment_size, self.page_size, 1 << 40)?;
        if self.redo_ring_size > 0 {
            power_of_two("redo_ring_size", self.redo_ring_size, 4096, 1 << 30)?;
        }
        if !(1..=256).contains(&self.databases) {
            return Err(bad("databases", self.databases, "1 to 256"));
        }
        let frames = (self.mutable_size + self.readonly_size) / self.page_size;
        if frames < 2 {
            return Err(bad(
                "mutable_size + readonly_size",
                self.mutable_size + self.readonly_size,
                &format!("at least two pages, {}", 2 * self.page_size),
            ));
        }
        let mutable_pages = (self.mutable_size / self.page_size).clamp(1, frames - 1);
        let readonly_pages = frames - mutable_pages;
        if self.backend == Backend::Memory && readonly_pages > MAPPED_PAGES_MAX {
            return Err(bad(
                "readonly_size",
                self.readonly_size,
                &format!("at most {MAPPED_PAGES_MAX} pages"),
            ));
        }
        Ok(Geometry {
            page_words: self.page_size / 8,
            segment_words: self.segment_size / 8,
            frames,
            mutable_pages,
        })
    }

    /// log2 of the buckets of the smallest index: 1/512 of the memory, 64 bytes a bucket, so that a
    /// walk over few keys is short and the largest table (256 times that) is half of the memory.
    pub(crate) fn index_smallest_bits(&self) -> u32 {
        let basis = match self.backend {
            Backend::HybridLog => self.mutable_size + self.readonly_size,
            Backend::Memory => self.index_basis,
        };
        let buckets = basis / 512 / 64;
        buckets.max(1).ilog2().clamp(4, 20)
    }
}

/// Words in a block: what is written and checksummed whole.
pub(crate) const BLOCK_WORDS: u64 = (crate::device::ALIGNMENT / 8) as u64;

/// The layout in words of 8 bytes, the unit of addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub page_words: u64,
    pub segment_words: u64,
    /// Pages that fit in memory.
    pub frames: u64,
    /// Pages, the tail's included, that stay mutable when the tail moves on.
    pub mutable_pages: u64,
}

impl Geometry {
    pub fn ring_words(&self) -> u64 {
        self.frames * self.page_words
    }
    /// Pages of the read-only region.
    pub fn readonly_pages(&self) -> u64 {
        self.frames - self.mutable_pages
    }
    pub fn page_start(&self, address: u64) -> u64 {
        address & !(self.page_words - 1)
    }
    pub fn segment_of(&self, address: u64) -> u64 {
        address / self.segment_words
    }
    /// Bytes from the start of the address's segment file.
    pub fn offset_in_segment(&self, address: u64) -> u64 {
        (address % self.segment_words) * 8
    }
}

fn power_of_two(setting: &'static str, value: u64, low: u64, high: u64) -> Result<(), OpenError> {
    if value.is_power_of_two() && (low..=high).contains(&value) {
        return Ok(());
    }
    Err(bad(setting, value, &format!("a power of two from {low} to {high}")))
}

fn bad(setting: &'static str, value: impl ToString, why: &str) -> OpenError {
    OpenError::Config { setting, value: value.to_string(), why: why.to_owned() }
}
