//! The log's blocks as a start reads them: in long sequential reads, each block compared with its
//! checksum before anybody sees it.
//!
//! Ranges are in words, `[first, end)`: whole blocks of one segment. The next range is on its way
//! while one is looked at, and buffers are used again.

use crate::OpenError;
use crate::config::{BLOCK_WORDS, Geometry};
use crate::device::{ALIGNMENT, Buffer, Device, FileId, Request};
use crate::sync::mpsc::{self, Receiver};
use crate::tier::raw::{CRCS_A_BLOCK, block_crc};
use ferrite_index::assert_unpinned;
use std::io;

pub(crate) type Range = (u64, u64);

/// What one read covers when nothing is looked at but the checksums.
const STEP_WORDS: u64 = (1 << 20) / 8;
const ADVICE: &str = "put both back from a backup, or move the folder aside to start empty";

/// The newest `most` words of `extents` from `begin` up to `end`, newest first, in ranges.
pub(crate) fn newest_first(
    geometry: &Geometry,
    extents: &[Range],
    begin: u64,
    end: u64,
    most: u64,
) -> Vec<Range> {
    let mut parts = Vec::new();
    let mut left = most;
    for &(from, to) in extents.iter().rev() {
        let from = from.max(begin / BLOCK_WORDS * BLOCK_WORDS);
        let mut to = to.min(end / BLOCK_WORDS * BLOCK_WORDS);
        while from < to && left > 0 {
            let segment_start = (to - 1) / geometry.segment_words * geometry.segment_words;
            let words = (to - from.max(segment_start)).min(left).next_multiple_of(BLOCK_WORDS);
            parts.extend(pieces(to - words, to, STEP_WORDS));
            left = left.saturating_sub(words);
            to -= words;
        }
    }
    parts
}

/// `[from, to)` in pieces of at most `step` words, each ending at a multiple of it.
pub(crate) fn pieces(from: u64, to: u64, step: u64) -> impl Iterator<Item = Range> {
    let next = move |at: u64| (at / step * step + step).min(to);
    std::iter::successors(Some(from), move |at| Some(next(*at)))
        .take_while(move |at| *at < to)
        .map(move |at| (at, next(at)))
}

/// Reads the ranges in their order and hands each to `visit` once its blocks match.
///
/// # Errors
/// What `visit` fails with, and [`OpenError::Damaged`] with the file and the byte.
pub(crate) fn read_verified(
    device: &dyn Device,
    geometry: &Geometry,
    ranges: impl IntoIterator<Item = Range>,
    mut visit: impl FnMut(Range, &[u8]) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let mut reader = Reader { device, geometry, side: None, spare: None };
    let mut ranges = ranges.into_iter();
    let mut coming = ranges.next().map(|range| reader.start(range));
    while let Some(reading) = coming {
        coming = ranges.next().map(|range| reader.start(range));
        let range = reading.range;
        let file = FileId::Segment(geometry.segment_of(range.0));
        let offset = geometry.offset_in_segment(range.0);
        let buffer = reading.wait().map_err(|e| unreadable(device, file, offset, &e))?;
        reader.compare(range, &buffer)?;
        visit(range, &buffer)?;
        reader.spare = Some(buffer);
    }
    Ok(())
}

struct Reader<'a> {
    device: &'a dyn Device,
    geometry: &'a Geometry,
    /// Segment and number of a block of checksums, and the block.
    side: Option<(u64, u64, Buffer)>,
    spare: Option<Buffer>,
}

/// A range on its way.
struct Reading {
    range: Range,
    arriving: Receiver<io::Result<Buffer>>,
}

impl Reading {
    fn wait(self) -> io::Result<Buffer> {
        assert_unpinned();
        let dropped = || Err(io::Error::other("the device dropped a read"));
        self.arriving.recv().unwrap_or_else(|_| dropped())
    }
}

impl Reader<'_> {
    fn start(&mut self, range: Range) -> Reading {
        let (first, end) = range;
        assert!(first < end && first % BLOCK_WORDS == 0 && end % BLOCK_WORDS == 0);
        assert_eq!(self.geometry.segment_of(first), self.geometry.segment_of(end - 1));
        let length = ((end - first) * 8) as usize;
        let spare = self.spare.take().filter(|b| b.len() == length);
        let file = FileId::Segment(self.geometry.segment_of(first));
        let offset = self.geometry.offset_in_segment(first);
        let buffer = spare.unwrap_or_else(|| Buffer::zeroed(length));
        Reading { range, arriving: self.submit(file, offset, buffer) }
    }

    fn submit(&self, file: FileId, offset: u64, buffer: Buffer) -> Receiver<io::Result<Buffer>> {
        let (tx, arriving) = mpsc::sync_channel(1);
        let done = Box::new(move |result| drop(tx.send(result)));
        self.device.submit(Request::Read { file, offset, buffer, done });
        arriving
    }

    fn compare(&mut self, (first, _): Range, bytes: &[u8]) -> Result<(), OpenError> {
        let segment = self.geometry.segment_of(first);
        let first_block = self.geometry.offset_in_segment(first) / ALIGNMENT as u64;
        for (number, block) in (first_block..).zip(bytes.chunks_exact(ALIGNMENT)) {
            let expected = self.checksum(segment, number)?;
            let found = block_crc(block);
            if expected != found {
                let side = self.device.path(FileId::Side(segment));
                return Err(OpenError::Damaged {
                    path: self.device.path(FileId::Segment(segment)),
                    offset: number * ALIGNMENT as u64,
                    found: format!(
                        "the block there does not match its checksum ({found:08x}; {} at offset \
                         {} has {expected:08x})",
                        side.display(),
                        number * 4
                    ),
                    advice: ADVICE.into(),
                });
            }
        }
        Ok(())
    }

    /// What the side file says of a block.
    fn checksum(&mut self, segment: u64, number: u64) -> Result<u32, OpenError> {
        let wanted = (segment, number / CRCS_A_BLOCK);
        let held = self.side.take().filter(|(segment, block, _)| (*segment, *block) == wanted);
        let (_, _, block) = self.side.insert(match held {
            Some(held) => held,
            None => (wanted.0, wanted.1, self.read_side(wanted)?),
        });
        let at = (number % CRCS_A_BLOCK) as usize * 4;
        Ok(u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes")))
    }

    fn read_side(&self, (segment, block): (u64, u64)) -> Result<Buffer, OpenError> {
        let (file, offset) = (FileId::Side(segment), block * ALIGNMENT as u64);
        let arriving = self.submit(file, offset, Buffer::zeroed(ALIGNMENT));
        assert_unpinned();
        let read = arriving.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        read.map_err(|e| unreadable(self.device, file, offset, &e))
    }
}

fn unreadable(device: &dyn Device, file: FileId, offset: u64, error: &io::Error) -> OpenError {
    OpenError::Damaged {
        path: device.path(file),
        offset,
        found: format!("it cannot be read: {error}"),
        advice: "put the file back from a backup, or move the folder aside to start empty".into(),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const GEOMETRY: Geometry =
        Geometry { page_words: 512, segment_words: 4 * 512, frames: 2, mutable_pages: 1 };

    fn newest(begin: u64, end: u64, most: u64) -> Vec<Range> {
        let extents = [(2048, 3 * 2048 + 512), (4 * 2048, 5 * 2048)];
        newest_first(&GEOMETRY, &extents, begin, end, most)
    }

    #[test]
    fn what_is_verified_is_the_newest_and_no_more_than_asked_for() {
        let all = [(8192, 10_240), (6144, 6656), (4096, 6144), (2048, 4096)];
        assert_eq!(newest(0, u64::MAX, u64::MAX), all);
        assert_eq!(newest(0, u64::MAX, 2048 + 512 + 1), [all[0], all[1], (5632, 6144)]);
        assert_eq!(newest(0, 8192 + 700, 1), [(8192, 8704)], "the end is in a block's middle");
        assert_eq!(newest(6000, 8192, u64::MAX), [(6144, 6656), (5632, 6144)]);
        assert_eq!(newest(0, u64::MAX, 0), []);
        assert_eq!(newest(0, 2048, u64::MAX), []);
    }

    #[test]
    fn pieces_end_at_multiples_of_the_step() {
        let all: Vec<_> = pieces(512, 2560, 1024).collect();
        assert_eq!(all, [(512, 1024), (1024, 2048), (2048, 2560)]);
        assert_eq!(pieces(1024, 1024, 512).count(), 0);
    }
}
