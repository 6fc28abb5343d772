//! From the newest manifest back to an index and a log.
//!
//! 1. The manifest must decode; every segment of its newest checkpoint must exist with its size.
//!    Nothing is guessed: what is missing or damaged refuses the start, by name.
//! 2. The image is loaded: entries below `begin` or a floor are dropped, the highest address of a
//!    (tag, node) wins. A bad image refuses the start, unless the caller asks for the index to be
//!    rebuilt by scanning the log from `begin` ([`Config::rebuild_index`]).
//! 3. `[fuzzy_start, cut)` is scanned, verified block by block, in log order.
//! 4. The blocks below are verified too, newest first, up to a bound ([`Config::verify_at_start`]).
//! 5. The tail starts in a segment number above every one that any file or manifest names, so no
//!    stale block comes back. Files that the manifest does not name are the remains of work that
//!    no checkpoint covered: they are removed, once a durable manifest knows that their numbers are
//!    used up.

use super::blocks::{newest_first, pieces, read_verified};
use super::image;
use super::manifest::{Checkpoint, Manifest};
use super::snapshot::is_snapshot;
use crate::OpenError;
use crate::Progress;
use crate::config::{BLOCK_WORDS, Config, Geometry};
use crate::device::{ALIGNMENT, Device, FileId, blocking};
use crate::log::scan::records_of;
use crate::record::RecordRef;
use crate::store::tables::{Counts, Slot, Tables};
use crate::sync::{Arc, mutant};
use ferrite_index::{
    ALGORITHM_ID, Address, Epoch, HashIndex, HashSecret, IndexConfig, IndexLimit, KeyHash,
    Participant,
};
use std::io;
use std::time::Duration;

/// What a start found.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// The number of the checkpoint that was recovered; `None` for an empty store.
    pub checkpoint: Option<u64>,
    /// Unix time of that checkpoint, in milliseconds.
    pub taken_at_ms: u64,
    /// Keys recovered, over all databases.
    pub keys: u64,
    /// How long it took.
    pub duration: Duration,
    /// Bytes of the log that the checkpoint needs.
    pub log_bytes: u64,
    /// The newest so many of them were compared with their checksums; the others are whenever they
    /// are read.
    pub verified_bytes: u64,
    /// Whether the index was rebuilt by a scan of the whole log, because
    /// [`Config::rebuild_index`] asked for it.
    pub index_rebuilt: bool,
}

/// The parts of a store as a start finds or makes them.
pub(crate) struct Recovered {
    pub manifest: Manifest,
    pub secret: HashSecret,
    pub tables: Tables,
    pub limit: Arc<IndexLimit>,
    pub begin: u64,
    pub start: u64,
    pub report: Recovery,
}

/// Reads the manifest, or makes that of a new store (and writes it).
pub(crate) fn load_manifest(
    device: &dyn Device,
    config: &Config,
    geometry: &Geometry,
) -> Result<Manifest, OpenError> {
    if manifest_is_there(device)? {
        return read_manifest(device, config, geometry);
    }
    let mut store_id = [0; 16];
    let secret = HashSecret::random().map_err(|e| io_error("seed", device, FileId::Manifest, e))?;
    let id = HashSecret::random().map_err(|e| io_error("seed", device, FileId::Manifest, e))?;
    store_id.copy_from_slice(id.bytes());
    let manifest = Manifest {
        store_id,
        hash_algorithm: ALGORITHM_ID,
        hash_secret: *secret.bytes(),
        index_smallest_bits: config.index_smallest_bits() as u8,
        page_words: geometry.page_words,
        segment_words: geometry.segment_words,
        next_number: 1,
        next_segment: 1,
        checkpoints: Vec::new(),
    };
    super::write_manifest(device, &manifest)
        .and_then(|_| device.sync_directory())
        .map_err(|e| io_error("write", device, FileId::Manifest, e))?;
    Ok(manifest)
}

/// Whether there is a manifest. Without one no file of the store may be there.
pub(crate) fn manifest_is_there(device: &dyn Device) -> Result<bool, OpenError> {
    let files = device.list().map_err(|e| io_error("list", device, FileId::Manifest, e))?;
    if files.contains(&FileId::Manifest) {
        return Ok(true);
    }
    let Some(file) = files.iter().find(|f| !matches!(f, FileId::ManifestNew)) else {
        return Ok(false);
    };
    Err(OpenError::Damaged {
        path: device.path(FileId::Manifest),
        offset: 0,
        found: format!("the manifest is missing, but {} is there", device.path(*file).display()),
        advice: "put the manifest back, or move the folder aside to start empty".into(),
    })
}

fn read_manifest(
    device: &dyn Device,
    config: &Config,
    geometry: &Geometry,
) -> Result<Manifest, OpenError> {
    let manifest = read_stored_manifest(device)?;
    same_sizes(&manifest, geometry)?;
    let slots = manifest.newest().map_or(0, |c| c.slots.len());
    if slots > usize::from(config.databases) {
        return Err(OpenError::Config {
            setting: "databases",
            value: config.databases.to_string(),
            why: format!("the store has {slots}; set it to at least that"),
        });
    }
    Ok(manifest)
}

/// The manifest that is there, whatever the store's settings are.
pub(crate) fn read_stored_manifest(device: &dyn Device) -> Result<Manifest, OpenError> {
    let file = FileId::Manifest;
    let size = device.size(file).map_err(|e| io_error("read", device, file, e))?;
    let whole = size / ALIGNMENT as u64 * ALIGNMENT as u64;
    let bytes =
        blocking::read(device, file, whole).map_err(|e| io_error("read", device, file, e))?;
    let damaged = |(offset, found): (u64, String)| OpenError::Damaged {
        path: device.path(file),
        offset,
        found,
        advice: "put back a copy of the folder, or move it aside to start empty".into(),
    };
    if is_snapshot(&bytes) {
        return Err(OpenError::OtherBackend { path: device.path(file), made_by: "memory" });
    }
    let manifest = Manifest::decode(&bytes).map_err(damaged)?;
    if manifest.hash_algorithm != ALGORITHM_ID {
        let found = format!("it names hash algorithm {}", manifest.hash_algorithm);
        return Err(damaged((32, found)));
    }
    Ok(manifest)
}

/// Whether the store was made with the sizes that are asked for.
pub(crate) fn same_sizes(manifest: &Manifest, geometry: &Geometry) -> Result<(), OpenError> {
    same("page_size", manifest.page_words * 8, geometry.page_words * 8)?;
    same("segment_size", manifest.segment_words * 8, geometry.segment_words * 8)
}

fn same(setting: &'static str, stored: u64, configured: u64) -> Result<(), OpenError> {
    if stored == configured {
        return Ok(());
    }
    Err(OpenError::Config {
        setting,
        value: configured.to_string(),
        why: format!("the store was made with {stored}; set it back"),
    })
}

fn io_error(
    action: &'static str,
    device: &dyn Device,
    file: FileId,
    source: io::Error,
) -> OpenError {
    OpenError::Io { action, path: device.path(file), source }
}

/// Brings back what the manifest's newest checkpoint says.
pub(crate) fn recover(
    device: &Arc<dyn Device>,
    config: &Config,
    geometry: Geometry,
    epoch: &Arc<Epoch>,
    mut manifest: Manifest,
) -> Result<Recovered, OpenError> {
    manifest.next_number = manifest.next_number.max(config.numbers_used + 1);
    let secret = HashSecret::from_bytes(manifest.hash_secret);
    let files = device.list().map_err(|e| io_error("list", &**device, FileId::Manifest, e))?;
    let known = (manifest.next_number, manifest.next_segment);
    raise_marks(&mut manifest, &files, &**device, &geometry)?;
    let start = manifest.next_segment * geometry.segment_words;
    let mut rebuilding = Rebuilding::new(&**device, config, geometry, epoch, &manifest, secret)?;
    let mut begin = start;
    let mut report = Recovery::default();
    if let Some(checkpoint) = manifest.newest() {
        check_segments(&**device, &geometry, checkpoint)?;
        report.log_bytes = bytes_from(checkpoint, checkpoint.begin);
        let image = Some(checkpoint.image).filter(|i| i.number > 0 && !config.rebuild_index);
        let from = image.map_or(checkpoint.begin, |image| image.fuzzy_start);
        report.verified_bytes = bytes_from(checkpoint, from);
        let verified = config.verify_at_start.max(report.verified_bytes).min(report.log_bytes);
        let image_bytes = image.map_or(0, |image| image.length);
        config.progress.expect(image_bytes + verified);
        if config.rebuild_index {
            tracing::info!("rebuilding the index from {} bytes of the log", report.log_bytes);
            report.index_rebuilt = true;
        }
        if image.is_some() {
            rebuilding.load_image(checkpoint)?;
            config.progress.advance(image_bytes);
        }
        rebuilding.scan(checkpoint, from, &config.progress)?;
        report.verified_bytes +=
            verify(&**device, &geometry, checkpoint, from, config, report.verified_bytes)?;
        begin = checkpoint.begin.min(start);
        report.checkpoint = Some(checkpoint.number);
        report.taken_at_ms = checkpoint.taken_at_ms;
        report.keys = checkpoint.slots.iter().map(|s| s.keys).sum();
    }
    rebuilding.limit.set(config.index_max_size);
    let is_news = known != (manifest.next_number, manifest.next_segment);
    remove_strangers(&**device, &geometry, &manifest, &files, is_news);
    let Rebuilding { tables, secret, limit, .. } = rebuilding;
    Ok(Recovered { secret, tables, limit, begin, start, report, manifest })
}

/// Raises the manifest's marks above the number of every file that is there.
fn raise_marks(
    manifest: &mut Manifest,
    files: &[FileId],
    device: &dyn Device,
    geometry: &Geometry,
) -> Result<(), OpenError> {
    for file in files {
        let (mark, number, limit) = match *file {
            FileId::Segment(n) | FileId::Side(n) => {
                (&mut manifest.next_segment, n, ADDRESSES / geometry.segment_words)
            }
            FileId::Index(n) => (&mut manifest.next_number, n, u64::MAX),
            FileId::Manifest | FileId::ManifestNew | FileId::Previous => continue,
        };
        if number >= limit - 1 {
            return Err(OpenError::Damaged {
                path: device.path(*file),
                offset: 0,
                found: "no store comes to so high a number".into(),
                advice: "move the file away".into(),
            });
        }
        *mark = (*mark).max(number + 1);
    }
    Ok(())
}

/// The segments that a checkpoint needs, and the bytes of each.
pub(crate) fn segments_of<'a>(
    geometry: &'a Geometry,
    checkpoint: &'a Checkpoint,
) -> impl Iterator<Item = (u64, u64)> + 'a {
    checkpoint.extents.iter().flat_map(move |(from, to)| {
        let from = (*from).max(checkpoint.begin);
        let first = geometry.segment_of(from);
        let last = geometry.segment_of(to.saturating_sub(1).max(from));
        (first..=last).map(move |n| {
            let end = (*to).min((n + 1) * geometry.segment_words);
            (n, (end - n * geometry.segment_words) * 8)
        })
    })
}

/// Bytes of the checkpoint's log from the block of `from` on.
pub(crate) fn bytes_from(checkpoint: &Checkpoint, from: u64) -> u64 {
    let from = from.max(checkpoint.begin) / BLOCK_WORDS * BLOCK_WORDS;
    checkpoint.extents.iter().map(|(first, to)| to.saturating_sub(from.max(*first)) * 8).sum()
}

/// Verifies what the scan, which began at `scanned_from`, has not read. Returns the bytes.
fn verify(
    device: &dyn Device,
    geometry: &Geometry,
    checkpoint: &Checkpoint,
    scanned_from: u64,
    config: &Config,
    scanned_bytes: u64,
) -> Result<u64, OpenError> {
    let most = config.verify_at_start.saturating_sub(scanned_bytes) / 8;
    let (extents, begin) = (&checkpoint.extents, checkpoint.begin);
    let ranges = newest_first(geometry, extents, begin, scanned_from, most);
    let mut bytes = 0;
    read_verified(device, geometry, ranges, |_, block| {
        bytes += block.len() as u64;
        config.progress.advance(block.len() as u64);
        Ok(())
    })?;
    Ok(bytes)
}

/// Bytes of the side file of a segment of so many bytes.
pub(crate) fn side_bytes(segment_bytes: u64) -> u64 {
    (segment_bytes / ALIGNMENT as u64 * 4).next_multiple_of(ALIGNMENT as u64)
}

fn check_segments(
    device: &dyn Device,
    geometry: &Geometry,
    checkpoint: &Checkpoint,
) -> Result<(), OpenError> {
    segments_of(geometry, checkpoint).try_for_each(|(segment, bytes)| {
        let first = segment * geometry.segment_words;
        check_segment(device, geometry, first, first + bytes / 8)
    })
}

/// Whether both files of a segment are there and long enough for its part `[from, to)`.
pub(crate) fn check_segment(
    device: &dyn Device,
    geometry: &Geometry,
    from: u64,
    to: u64,
) -> Result<(), OpenError> {
    let segment = geometry.segment_of(from);
    let bytes = (to - segment * geometry.segment_words) * 8;
    let needs = [(FileId::Segment(segment), bytes), (FileId::Side(segment), side_bytes(bytes))];
    for (file, least) in needs {
        let found = match device.size(file) {
            Ok(size) if size >= least => continue,
            Ok(size) => (size, format!("it ends there; the checkpoint needs {least} bytes")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (0, "it is missing".into()),
            Err(e) => return Err(io_error("look at", device, file, e)),
        };
        return Err(OpenError::Damaged {
            path: device.path(file),
            offset: found.0,
            found: found.1,
            advice: ADVICE.into(),
        });
    }
    Ok(())
}

/// What stands at an address where a record belongs.
pub(crate) fn no_record(
    device: &dyn Device,
    geometry: &Geometry,
    at: u64,
    found: String,
) -> OpenError {
    OpenError::Damaged {
        path: device.path(FileId::Segment(geometry.segment_of(at))),
        offset: geometry.offset_in_segment(at),
        found,
        advice: ADVICE.into(),
    }
}

/// Words that addresses reach: they have 48 bits.
const ADDRESSES: u64 = 1 << 48;

const ADVICE: &str = "put the file back from a backup, or move the folder aside to start empty";

struct Rebuilding<'a> {
    device: &'a dyn Device,
    geometry: Geometry,
    participant: Participant,
    smallest_bits: u32,
    secret: HashSecret,
    limit: Arc<IndexLimit>,
    tables: Tables,
}

impl<'a> Rebuilding<'a> {
    fn new(
        device: &'a dyn Device,
        config: &Config,
        geometry: Geometry,
        epoch: &Arc<Epoch>,
        manifest: &Manifest,
        secret: HashSecret,
    ) -> Result<Self, OpenError> {
        let smallest_bits = u32::from(manifest.index_smallest_bits);
        let newest = manifest.newest();
        let databases = usize::from(config.databases);
        // What the log holds is taken in whatever the limit is.
        let limit = Arc::new(IndexLimit::new(0));
        let mut slots = Vec::with_capacity(databases);
        for number in 0..databases {
            let state = newest.and_then(|c| c.slots.get(number));
            let (floor, counts) = state.map_or((0, Counts::default()), |s| {
                (s.floor, Counts { keys: s.keys, expiring: s.expiring, live: s.live })
            });
            let index = new_index(smallest_bits, epoch, &limit)?;
            slots.push(Arc::new(Slot::new(number as u8, index, floor, counts)));
        }
        let mut map = newest.map_or_else(Vec::new, |c| c.map.clone());
        map.extend(map.len() as u8..=(databases - 1) as u8);
        map.truncate(databases);
        Ok(Self {
            device,
            geometry,
            participant: epoch.register("recovery").expect("the first of a new epoch"),
            smallest_bits,
            secret,
            limit,
            tables: Tables { map, slots },
        })
    }

    /// Loads the image.
    fn load_image(&mut self, checkpoint: &Checkpoint) -> Result<(), OpenError> {
        let outcome = image::read(
            self.device,
            &checkpoint.image,
            self.smallest_bits,
            |slot, hash, node, address| {
                if let Some(slot) = self.tables.slots.get(slot as usize) {
                    let alive = address.raw() >= checkpoint.begin.max(slot.floor);
                    if alive && address.raw() < checkpoint.cut && !node {
                        self.raise(slot, hash, address);
                    }
                }
            },
        );
        outcome.map_err(|(offset, found)| {
            let path = self.device.path(FileId::Index(checkpoint.image.number));
            OpenError::DamagedImage { path, offset, found }
        })
    }

    /// Makes `address` the entry of its tag unless a higher one is there.
    fn raise(&self, slot: &Slot, hash: KeyHash, address: Address) {
        let pin = self.participant.pin();
        let latch = slot.index.latch(&pin, hash).expect("recovery is alone");
        if latch.address(hash, false).is_some_and(|there| there >= address) {
            return;
        }
        latch.reserve(hash, false).expect("overflow buckets have room for what the log holds");
        latch.set(hash, false, address);
        drop(latch);
        slot.index.grow(&pin);
    }

    fn forget(&self, slot: &Slot, hash: KeyHash) {
        let pin = self.participant.pin();
        let latch = slot.index.latch(&pin, hash).expect("recovery is alone");
        if latch.address(hash, false).is_some() {
            latch.remove(hash, false);
        }
    }

    /// Takes in the records of `[from, cut)` in log order.
    fn scan(
        &self,
        checkpoint: &Checkpoint,
        from: u64,
        progress: &Progress,
    ) -> Result<(), OpenError> {
        let from = from.max(checkpoint.begin);
        let first_block = from / BLOCK_WORDS * BLOCK_WORDS;
        let page_words = self.geometry.page_words;
        let ranges = checkpoint
            .extents
            .iter()
            .flat_map(|(first, to)| pieces(first_block.max(*first), *to, page_words));
        read_verified(self.device, &self.geometry, ranges, |(first, to), bytes| {
            let start = first.max(from);
            progress.advance(bytes.len() as u64);
            self.scan_part(checkpoint, start, to, &bytes[(start - first) as usize * 8..])
        })
    }

    /// The part of a page from `from` to `to`, whose bytes these are.
    fn scan_part(
        &self,
        checkpoint: &Checkpoint,
        from: u64,
        to: u64,
        bytes: &[u8],
    ) -> Result<(), OpenError> {
        let refused = |at, found| no_record(self.device, &self.geometry, at, found);
        let end = records_of(bytes, from, |address, record| {
            self.take_in(checkpoint, address, record);
        })
        .map_err(|(at, found)| refused(at, found))?;
        if end < to {
            return Err(refused(end, "records end there, before the cut".into()));
        }
        Ok(())
    }

    fn take_in(&self, checkpoint: &Checkpoint, address: Address, record: RecordRef<'_>) {
        let info = record.info();
        let Some(slot) = self.tables.slots.get(usize::from(record.shape().slot())) else { return };
        if !info.is_valid() || address.raw() < slot.floor {
            return;
        }
        let hash = self.secret.hash(record.key());
        let previous = info.previous();
        let chained = previous.is_valid() && previous.raw() >= checkpoint.begin.max(slot.floor);
        if info.is_tombstone() && !chained {
            self.forget(slot, hash);
        } else {
            self.raise(slot, hash, address);
        }
    }
}

/// An empty index of the store's size. All of a store share one limit.
pub(crate) fn new_index(
    smallest_bits: u32,
    epoch: &Arc<Epoch>,
    limit: &Arc<IndexLimit>,
) -> Result<HashIndex, OpenError> {
    let config = IndexConfig { smallest_bits, max_bytes: 0, huge_pages: true };
    let index = HashIndex::new(config, Arc::clone(epoch)).map_err(|e| OpenError::Config {
        setting: "index",
        value: format!("2^{smallest_bits} buckets"),
        why: e.to_string(),
    })?;
    Ok(index.sharing(limit))
}

/// Removes segments and images of work that no checkpoint covers.
///
/// Their numbers must not come back. While the manifest on the disk does not know them (`is_news`),
/// those with the highest number stay, as the only ones who do, until it is written.
fn remove_strangers(
    device: &dyn Device,
    geometry: &Geometry,
    manifest: &Manifest,
    files: &[FileId],
    is_news: bool,
) {
    let is_named = |file: &FileId| {
        manifest.checkpoints.iter().any(|c| match *file {
            FileId::Segment(n) | FileId::Side(n) => {
                segments_of(geometry, c).any(|(segment, _)| segment == n)
            }
            FileId::Index(n) => c.image.number == n,
            FileId::Manifest | FileId::ManifestNew | FileId::Previous => false,
        })
    };
    let is_witness = |file: &FileId| match *file {
        FileId::Segment(n) | FileId::Side(n) => n + 1 == manifest.next_segment,
        FileId::Index(n) => n + 1 == manifest.next_number,
        FileId::Manifest | FileId::ManifestNew | FileId::Previous => false,
    };
    // What a store in memory has kept is somebody's data.
    let stays = |f: &FileId| matches!(f, FileId::Manifest | FileId::Previous);
    let strangers = files.iter().filter(|f| !stays(f) && !is_named(f));
    let (witnesses, others): (Vec<_>, Vec<_>) = strangers.partition(|f| is_witness(f));
    let remove = |files: Vec<&FileId>| {
        for file in files {
            if let Err(e) = device.remove(*file) {
                tracing::warn!("removing {} failed: {e}", device.path(*file).display());
            }
        }
    };
    remove(others);
    if is_news
        && !witnesses.is_empty()
        && !mutant!("strangers_without_mark")
        && let Err(e) =
            super::write_manifest(device, manifest).and_then(|_| device.sync_directory())
    {
        let path = device.path(FileId::Manifest);
        return tracing::warn!(
            "writing {} failed: {e}; files of no checkpoint stay until the next start",
            path.display()
        );
    }
    remove(witnesses);
}
