//! The image file: every index of the store, in compressed and checksummed sections.
//!
//! ```text
//!   magic "FERRIDX1"
//!   section*   slot u32 | raw bytes u32 | stored bytes u32 | CRC32C u32 | stored
//!   end        slot u32 = 0xffff_ffff | sections u32 | 0 u32 | CRC32C of the 12 bytes before
//! ```
//!
//! Stored bytes are zstd when fewer than the raw bytes, else raw. Raw bytes are whole groups of
//! `ferrite_index::read_image`. A section's checksum is that of its first three fields followed
//! by the checksum of `stored`. The file is padded with zeros to a block.

use crate::checkpoint::manifest::ImageRef;
use crate::device::{ALIGNMENT, Device, FileId, blocking};
use crate::store::Inner;
use crate::sync::{Instant, mutant, thread};
use crate::tier::raw::block_crc;
use crc_fast::{CrcAlgorithm, Digest};
use ferrite_index::{Address, KeyHash, read_image};
use std::io;

const MAGIC: &[u8; 8] = b"FERRIDX1";
const END: u32 = u32::MAX;
/// Buckets read under one pin.
const BUCKETS_A_PIN: u64 = 256;
/// Raw bytes of a section.
const SECTION: usize = 1 << 18;

/// What was written of an image.
pub(crate) struct Written {
    /// Its length in bytes.
    pub bytes: u64,
    /// The CRC32C of all of them.
    pub crc: u32,
    /// How often it rested on the way.
    #[cfg_attr(any(not(test), loom), expect(dead_code, reason = "only a test asks"))]
    pub rests: u32,
}

/// Writes and syncs an image into a file that is there, from `offset` on. Paced, since work goes on:
/// after each section it rests for as long as that took, unless the index waits for it to grow.
pub(crate) fn write(
    inner: &Inner,
    device: &dyn Device,
    file: FileId,
    offset: u64,
) -> io::Result<Written> {
    let mut out = Sections {
        device,
        file,
        compress: inner.config.compress_images,
        offset,
        written: 0,
        crc: Digest::new(CrcAlgorithm::Crc32Iscsi),
        sections: 0,
        pending: MAGIC.to_vec(),
    };
    let participant = inner
        .log
        .epoch
        .register("index image")
        .ok_or_else(|| io::Error::other("no epoch slot is free"))?;
    let (_, tables) = inner.tables();
    let mut pace = Pace { since: Instant::now(), rests: 0 };
    for slot in &tables.slots {
        let hold = slot.index.hold_growth();
        let mut raw = Vec::new();
        let mut bucket = 0;
        while bucket < slot.index.bucket_count() {
            let pin = participant.pin();
            bucket = slot.index.image_chunk(&pin, &hold, bucket, BUCKETS_A_PIN, &mut raw);
            drop(pin);
            if raw.len() >= SECTION {
                out.section(u32::from(slot.number), &raw)?;
                raw.clear();
                pace.rest(slot.index.wants_to_grow());
            }
        }
        if !raw.is_empty() {
            out.section(u32::from(slot.number), &raw)?;
        }
    }
    let (bytes, crc) = out.finish()?;
    Ok(Written { bytes, crc, rests: pace.rests })
}

/// Leaves others their share of the processor.
struct Pace {
    since: Instant,
    rests: u32,
}

impl Pace {
    /// Rests for as long as it has worked, unless somebody waits for the end of the work.
    fn rest(&mut self, is_waited_for: bool) {
        if !is_waited_for && !mutant!("image_without_rest") {
            thread::sleep(self.since.elapsed());
            self.rests += 1;
        }
        self.since = Instant::now();
    }
}

struct Sections<'a> {
    device: &'a dyn Device,
    file: FileId,
    compress: bool,
    /// Where in the file it begins.
    offset: u64,
    written: u64,
    crc: Digest,
    sections: u32,
    pending: Vec<u8>,
}

impl Sections<'_> {
    fn section(&mut self, slot: u32, raw: &[u8]) -> io::Result<()> {
        let packed = if self.compress { zstd::bulk::compress(raw, 1)? } else { Vec::new() };
        let stored = if self.compress && packed.len() < raw.len() { &packed } else { raw };
        let fields = [slot, raw.len() as u32, stored.len() as u32];
        let start = self.pending.len();
        fields.iter().for_each(|f| self.pending.extend_from_slice(&f.to_le_bytes()));
        // The checksum's place, filled once what it covers stands behind it.
        self.pending.extend_from_slice(&[0; 4]);
        self.pending.extend_from_slice(stored);
        let crc = section_crc(&self.pending[start..]);
        self.pending[start + 12..start + 16].copy_from_slice(&crc.to_le_bytes());
        self.sections += 1;
        if self.pending.len() >= SECTION { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.pending);
        let length = bytes.len() as u64;
        self.crc.update(&bytes);
        blocking::write(self.device, self.file, self.offset + self.written, bytes)?;
        self.written += length;
        Ok(())
    }

    /// Bytes of the image and their checksum.
    fn finish(mut self) -> io::Result<(u64, u32)> {
        let fields = [END.to_le_bytes(), self.sections.to_le_bytes(), [0; 4]].concat();
        self.pending.extend_from_slice(&fields);
        self.pending.extend_from_slice(&block_crc(&fields).to_le_bytes());
        let length = (self.written as usize + self.pending.len()).next_multiple_of(ALIGNMENT);
        self.pending.resize(length - self.written as usize, 0);
        self.flush()?;
        blocking::sync(self.device, self.file)?;
        Ok((self.written, self.crc.finalize() as u32))
    }
}

/// The checksum of a section: all of it but the checksum's own place.
fn section_crc(section: &[u8]) -> u32 {
    let stored = block_crc(&section[16..]);
    let mut covered = section[..12].to_vec();
    covered.extend_from_slice(&stored.to_le_bytes());
    block_crc(&covered)
}

/// Reads an image and hands out every entry with its slot. `Err` says what is wrong and where.
pub(crate) fn read(
    device: &dyn Device,
    image: &ImageRef,
    smallest_bits: u32,
    entry: impl FnMut(u32, KeyHash, bool, Address),
) -> Result<(), (u64, String)> {
    let file = FileId::Index(image.number);
    if !image.length.is_multiple_of(ALIGNMENT as u64) {
        return Err((image.length, "its length is none that an image has".into()));
    }
    let bytes = blocking::read(device, file, image.length).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => (0, "it is missing".into()),
        io::ErrorKind::UnexpectedEof => {
            let needs = format!("it ends there; the checkpoint needs {} bytes", image.length);
            (device.size(file).unwrap_or(0), needs)
        }
        _ => (0, format!("it cannot be read: {e}")),
    })?;
    parse(&bytes, smallest_bits, entry)
}

/// The same of an image's bytes.
pub(crate) fn parse(
    bytes: &[u8],
    smallest_bits: u32,
    mut entry: impl FnMut(u32, KeyHash, bool, Address),
) -> Result<(), (u64, String)> {
    let damaged = |at: usize, what: String| (at as u64, what);
    if bytes.get(..8) != Some(MAGIC) {
        return Err(damaged(0, "it does not start as an index image".into()));
    }
    let mut at = 8;
    let mut sections = 0;
    loop {
        let head = bytes.get(at..at + 16).ok_or_else(|| damaged(at, "it ends early".into()))?;
        let field =
            |i: usize| u32::from_le_bytes(head[i * 4..i * 4 + 4].try_into().expect("four bytes"));
        let (slot, raw_length, stored_length, crc) = (field(0), field(1), field(2), field(3));
        if slot == END {
            if crc != block_crc(&head[..12]) || raw_length != sections {
                return Err(damaged(at, "its end mark is damaged".into()));
            }
            let rest = &bytes[at + 16..];
            return match rest.iter().position(|byte| *byte != 0) {
                None => Ok(()),
                Some(n) => Err(damaged(at + 16 + n, "nothing belongs behind its end".into())),
            };
        }
        at += 16;
        let stored = bytes
            .get(at..at.saturating_add(stored_length as usize))
            .ok_or_else(|| damaged(at, "it ends early".into()))?;
        if section_crc(&bytes[at - 16..at + stored.len()]) != crc {
            return Err(damaged(at, "the section there fails its checksum".into()));
        }
        let unpacked;
        let raw = if stored_length == raw_length {
            stored
        } else {
            unpacked = zstd::bulk::decompress(stored, raw_length as usize).map_err(|e| {
                damaged(at, format!("the section there cannot be decompressed: {e}"))
            })?;
            if unpacked.len() != raw_length as usize {
                return Err(damaged(at, "the section there is shorter than it says".into()));
            }
            &unpacked
        };
        read_image(raw, smallest_bits, |hash, node, address| entry(slot, hash, node, address))
            .map_err(|e| damaged(at, e.to_string()))?;
        at += stored.len();
        sections += 1;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::device::fault::FaultDevice;
    use crate::{Config, Database, Store};

    #[test]
    fn an_image_rests_after_each_section_unless_the_index_waits_to_grow() {
        let mut config = Config::new("simulated");
        (config.page_size, config.segment_size) = (64 << 10, 4 << 20);
        (config.mutable_size, config.readonly_size) = (4 << 20, 4 << 20);
        let store = Store::open_on(config, FaultDevice::new()).expect("opens");
        let (_, tables) = store.inner().tables();
        let index = &tables.slot(Database(0)).index;
        let mut session = store.blocking_session();
        let mut keys = 0u64..;
        let mut put = || {
            let key = keys.next().expect("there are more").to_le_bytes();
            session.upsert(Database(0), &key, b"value").expect("writes");
        };
        // Eight bytes an entry.
        (0..3 * SECTION / 8).for_each(|_| put());
        let write = |number| {
            let device = &*store.inner().log.device;
            device.create(FileId::Index(number), 0).expect("creates");
            write(store.inner(), device, FileId::Index(number), 0).expect("writes")
        };
        let written = write(901);
        assert!(written.rests >= 3, "{} rests in {} bytes", written.rests, written.bytes);

        let hold = index.hold_growth();
        while !index.wants_to_grow() {
            put();
        }
        let written = write(902);
        assert_eq!(written.rests, 0, "what waits for it would wait longer");
        drop(hold);
    }
}
