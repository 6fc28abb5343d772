//! Blocks: what a part is made of behind its first line.
//!
//! ```text
//!   #B part=000012 at=000000000000120 len=000000000143 crc=1a2b3c4d synced=000000000000120
//!       ms=1763800000123 sum=89abcdef\r\n                                  (one line)
//!   #TS:1763800000\r\n                        only in the first block of a second
//!   *2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n         whole commands ...
//!   *3\r\n$3\r\nSET\r\n...
//! ```
//!
//! `at` is where the line begins in the part, `len` counts the bytes behind the line and `crc` is
//! their CRC32C; `synced` says up to where the part was on disk when the block was closed, and `ms`
//! when everything in it happened. A block holds whole commands and whole transactions, of one
//! millisecond, and is never older than the one before. So the file can be cut between any two
//! blocks, by offset or by time, and what is left is a state that the store was in.

use super::checksum::crc32c;
use super::effect::{Effect, Entry, select};
use super::part::{LINE_MAX, OFFSET_MAX, TIME_MAX_MS, number_text};
use super::text::{SUM, decimal, hexadecimal, parse_decimal, parse_hexadecimal};

/// What every block begins with.
pub const MAGIC: &[u8] = b"#B part=";
/// The rest of a block's line, behind the part's number.
const FIELDS: &[u8] = b" at=000000000000000 len=000000000000 crc=00000000 synced=000000000000000 \
                        ms=0000000000000 sum=00000000\r\n";
/// Where the digits of each field begin in [`FIELDS`], and how many there are.
const AT: (usize, usize) = (4, 15);
const LEN: (usize, usize) = (24, 12);
const CRC: (usize, usize) = (41, 8);
const SYNCED: (usize, usize) = (57, 15);
const MS: (usize, usize) = (76, 13);
const SUM_AT: (usize, usize) = (94, 8);
const _: () = assert!(FIELDS.len() == SUM_AT.0 + SUM_AT.1 + 2 && FIELDS.len() + 30 < LINE_MAX);

/// Bytes of commands after which a block is closed before its millisecond is over.
const BLOCK_BYTES: usize = 64 << 10;
/// Room that is kept between writes.
const BUFFER_KEPT: usize = 4 << 20;

/// What a block's line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// The part's number.
    pub part: u64,
    /// Where the line begins in the part.
    pub at: u64,
    /// Bytes between this line and the next one.
    pub length: u64,
    /// CRC32C of those bytes.
    pub crc: u32,
    /// What of the part was on disk when the block was closed: all bytes below this offset.
    pub synced: u64,
    /// When everything in the block happened, in Unix milliseconds.
    pub time_ms: u64,
}

impl Annotation {
    /// The line.
    pub fn render(&self) -> Vec<u8> {
        let mut line = template(self.part);
        self.fill(&mut line);
        line
    }

    /// What a line, its line end included, says; `None` if it is not exactly what
    /// [`Annotation::render`] writes.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let (head, fields) = line.split_at_checked(line.len().checked_sub(FIELDS.len())?)?;
        let part = head.strip_prefix(MAGIC)?;
        if part.len() < 6 || part.len() > 6 && part[0] == b'0' {
            return None;
        }
        // What stands between the digits.
        let mut from = 0;
        for (at, digits) in [AT, LEN, CRC, SYNCED, MS, SUM_AT, (FIELDS.len(), 0)] {
            if fields[from..at] != FIELDS[from..at] {
                return None;
            }
            from = at + digits;
        }
        let number = |(at, digits): (usize, usize)| parse_decimal(&fields[at..at + digits]);
        let checksum = |(at, digits): (usize, usize)| parse_hexadecimal(&fields[at..at + digits]);
        let covered = head.len() + SUM_AT.0 - SUM.len();
        if checksum(SUM_AT)? != crc32c(&line[..covered]) {
            return None;
        }
        Some(Self {
            part: parse_decimal(part)?,
            at: number(AT)?,
            length: number(LEN)?,
            crc: checksum(CRC)?,
            synced: number(SYNCED)?,
            time_ms: number(MS)?,
        })
    }

    /// Whether every number fits in its field.
    fn fits(&self) -> bool {
        self.at <= OFFSET_MAX
            && self.length < 10u64.pow(LEN.1 as u32)
            && self.synced <= OFFSET_MAX
            && self.time_ms <= TIME_MAX_MS
    }

    /// Writes the numbers into a line that was made by [`template`].
    fn fill(&self, line: &mut [u8]) {
        let (head, fields) = line.split_at_mut(line.len() - FIELDS.len());
        let mut set = |field: (usize, usize), value| {
            decimal(value, &mut fields[field.0..field.0 + field.1]);
        };
        set(AT, self.at);
        set(LEN, self.length);
        set(SYNCED, self.synced);
        set(MS, self.time_ms);
        hexadecimal(self.crc, &mut fields[CRC.0..CRC.0 + CRC.1]);
        let covered = head.len() + SUM_AT.0 - SUM.len();
        let sum = crc32c(&line[..covered]);
        let digits = covered + SUM.len();
        hexadecimal(sum, &mut line[digits..digits + SUM_AT.1]);
    }
}

/// A block's line with zeros for all numbers but the part's.
fn template(part: u64) -> Vec<u8> {
    [MAGIC, number_text(part).as_bytes(), FIELDS].concat()
}

/// Makes blocks of entries, in memory.
///
/// Blocks are *closed* when nothing more goes into them; closed bytes are what is to be written at
/// [`Blocks::offset`] of the part, and [`Blocks::written`] gives their room back.
#[derive(Debug)]
pub struct Blocks {
    part: u64,
    template: Vec<u8>,
    /// Closed blocks, then the open one.
    buffer: Vec<u8>,
    /// Bytes of closed blocks in it.
    closed: usize,
    /// Where it begins in the part.
    offset: u64,
    /// Whether there is an open block; it begins at `closed`.
    open: bool,
    group: Group,
    /// The database that the commands so far have selected.
    database: Option<u8>,
    /// The time of the newest block; it never goes back.
    time_ms: u64,
    /// The second of the last `#TS:` line.
    second: Option<u64>,
    /// What of the part is on disk.
    synced: u64,
    /// The newest position of all entries.
    newest: u64,
    /// The newest position of those in closed blocks.
    position: u64,
    /// Whether the last closed block is empty.
    marked: bool,
}

/// Where in a group of effects that happened at once the last entry was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Group {
    None,
    /// It has begun and has no effect yet: nothing is written for it.
    Begun,
    /// Its `MULTI` is written.
    Written,
}

impl Blocks {
    /// Blocks of part `part` from `offset` on, none of them older than `time_ms`. All before
    /// `offset` is on disk, and entries up to `position` are in parts before.
    pub fn new(part: u64, offset: u64, time_ms: u64, position: u64) -> Self {
        Self {
            part,
            template: template(part),
            buffer: Vec::new(),
            closed: 0,
            offset,
            open: false,
            group: Group::None,
            database: None,
            time_ms: time_ms.min(TIME_MAX_MS),
            second: None,
            synced: offset,
            newest: position,
            position,
            marked: false,
        }
    }

    /// Appends one entry. Entries come in the order of their positions; one with an older time than
    /// the entry before gets that entry's time, and so does everything in a group.
    #[inline]
    pub fn push(&mut self, entry: &Entry<'_>) {
        debug_assert!(entry.position >= self.newest, "positions only go up");
        match entry.effect {
            Effect::Begin => {
                debug_assert!(self.group == Group::None, "groups do not nest");
                self.turn_to(entry.time_ms);
                self.group = Group::Begun;
            }
            Effect::End => {
                if self.group == Group::Written {
                    Effect::End.render(entry.database, &mut self.buffer);
                }
                self.group = Group::None;
            }
            effect => {
                if self.group == Group::None {
                    self.turn_to(entry.time_ms);
                }
                self.command(effect, entry.database);
            }
        }
        self.newest = entry.position;
    }

    /// Closes the open block, if there is one. Inside a group nothing happens, since a block holds
    /// whole groups: [`Blocks::in_group`] tells.
    pub fn close(&mut self) {
        if self.group != Group::None {
            return;
        }
        if self.open {
            self.seal();
        }
        self.position = self.newest;
    }

    /// Closes the open block, as [`Blocks::close`] does, and makes what follows readable from here on:
    /// its first command selects its database. Where that is.
    pub fn begin_section(&mut self) -> u64 {
        assert!(!self.in_group(), "sections begin between transactions");
        self.close();
        self.database = None;
        self.end()
    }

    /// Closes an empty block that says what is on disk, unless everything says so already. Then all
    /// of the part before it is known to be complete, and damage there is never taken for the end
    /// of what was written before a crash. For a time at which nothing else is to be written.
    pub fn mark(&mut self, time_ms: u64) {
        self.close();
        if self.group == Group::None && !self.marked && self.synced == self.end() {
            self.time_ms = self.time_ms.max(time_ms.min(TIME_MAX_MS));
            self.begin_block();
            self.seal();
            self.marked = true;
        }
    }

    /// Whether a group has begun and not ended.
    pub fn in_group(&self) -> bool {
        self.group != Group::None
    }
    /// The closed blocks that are not written yet.
    pub fn closed(&self) -> &[u8] {
        &self.buffer[..self.closed]
    }
    /// Where [`Blocks::closed`] belongs in the part.
    pub fn offset(&self) -> u64 {
        self.offset
    }
    /// Where the next block will be closed to: the end of all that was closed.
    pub fn end(&self) -> u64 {
        self.offset + self.closed as u64
    }
    /// The newest position in closed blocks.
    pub fn position(&self) -> u64 {
        self.position
    }
    /// The time of the newest block.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }
    /// Bytes in memory, the open block included.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }
    /// The closed blocks are written.
    pub fn written(&mut self) {
        self.offset += self.closed as u64;
        let left = self.buffer.len() - self.closed;
        self.buffer.copy_within(self.closed.., 0);
        self.buffer.truncate(left);
        self.closed = 0;
        if self.buffer.capacity() > BUFFER_KEPT {
            self.buffer.shrink_to(BUFFER_KEPT.max(left));
        }
    }
    /// The part is on disk up to `offset`; blocks closed from now on say so.
    pub fn synced(&mut self, offset: u64) {
        assert!(offset <= self.offset, "what is on disk was written");
        self.synced = self.synced.max(offset);
    }

    /// Closes the open block if it may not take an entry of this time.
    #[inline]
    fn turn_to(&mut self, time_ms: u64) {
        let time_ms = time_ms.min(TIME_MAX_MS).max(self.time_ms);
        if self.open && (time_ms > self.time_ms || self.buffer.len() - self.closed >= BLOCK_BYTES) {
            self.close();
        }
        self.time_ms = time_ms;
    }

    #[inline]
    fn command(&mut self, effect: Effect<'_>, database: u8) {
        if !self.open {
            self.begin_block();
            let second = self.time_ms / 1000;
            if self.second.replace(second) != Some(second) {
                self.buffer.extend_from_slice(b"#TS:");
                self.buffer.extend_from_slice(itoa::Buffer::new().format(second).as_bytes());
                self.buffer.extend_from_slice(b"\r\n");
            }
        }
        if self.database != Some(database) {
            self.database = Some(database);
            select(database, &mut self.buffer);
        }
        if self.group == Group::Begun {
            self.group = Group::Written;
            Effect::Begin.render(database, &mut self.buffer);
        }
        effect.render(database, &mut self.buffer);
    }

    fn begin_block(&mut self) {
        debug_assert!(!self.open && self.closed == self.buffer.len());
        self.buffer.extend_from_slice(&self.template);
        self.open = true;
        self.marked = false;
    }

    fn seal(&mut self) {
        let (line, body) = self.buffer[self.closed..].split_at_mut(self.template.len());
        let annotation = Annotation {
            part: self.part,
            at: self.offset + self.closed as u64,
            length: body.len() as u64,
            crc: crc32c(body),
            synced: self.synced,
            time_ms: self.time_ms,
        };
        assert!(annotation.fits(), "a part ends long before 10^15 bytes");
        annotation.fill(line);
        self.closed = self.buffer.len();
        self.open = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{delete, entry};
    use super::*;

    fn closed(blocks: &Blocks) -> String {
        String::from_utf8(blocks.closed().to_vec()).expect("text")
    }

    #[test]
    fn a_block_is_what_the_picture_shows() {
        let mut blocks = Blocks::new(12, 120, 0, 0);
        let effect = Effect::Put { key: b"k", value: b"v", expires_at_ms: None };
        blocks.push(&Entry { position: 9, time_ms: 1_763_800_000_123, database: 0, effect });
        assert_eq!((blocks.closed(), blocks.position()), (&b""[..], 0), "it is open");
        blocks.close();
        assert_eq!((blocks.offset(), blocks.position()), (120, 9));
        let text = closed(&blocks);
        let (line, body) = text.split_once("\r\n").expect("a line");
        assert_eq!(
            body,
            "#TS:1763800000\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n\
             $1\r\nv\r\n"
        );
        let crc = crc32c(body.as_bytes());
        let expected = format!(
            "#B part=000012 at=000000000000120 len={:012} crc={crc:08x} synced=000000000000120 \
             ms=1763800000123",
            body.len()
        );
        assert_eq!(line, format!("{expected} sum={:08x}", crc32c(expected.as_bytes())));
        let annotation = Annotation::parse(format!("{line}\r\n").as_bytes()).expect("sound");
        assert_eq!((annotation.at, annotation.length), (120, body.len() as u64));
        blocks.written();
        assert_eq!((blocks.offset(), blocks.closed()), (120 + text.len() as u64, &b""[..]));
    }

    #[test]
    fn no_flip_in_a_blocks_line_passes() {
        let annotation =
            Annotation { part: 1, at: 77, length: 5, crc: 7, synced: 3, time_ms: TIME_MAX_MS };
        let mut line = annotation.render();
        assert_eq!(Annotation::parse(&line), Some(annotation));
        for bit in 0..line.len() * 8 {
            line[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Annotation::parse(&line), None, "bit {bit}");
            line[bit / 8] ^= 1 << (bit % 8);
        }
        // Another form with a right checksum is no line of ours.
        let text = String::from_utf8(line).expect("text");
        let mut other = text[..text.len() - 15].replace("len=000000000005", "len=5").into_bytes();
        super::super::text::seal(&mut other);
        assert_eq!(Annotation::parse(&other), None);
    }

    /// The times of the blocks, and how many commands each holds.
    fn shape(blocks: &Blocks) -> Vec<(u64, usize)> {
        let (mut bytes, mut shape) = (blocks.closed(), Vec::new());
        while !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes).expect("a line") + 1;
            let block = Annotation::parse(&bytes[..end]).expect("a block's line");
            let body = &bytes[end..end + block.length as usize];
            let commands = body.split(|b| *b == b'\n').filter(|line| line.starts_with(b"*"));
            shape.push((block.time_ms, commands.count()));
            bytes = &bytes[end + block.length as usize..];
        }
        shape
    }

    #[test]
    fn a_block_has_one_millisecond_and_time_never_goes_back() {
        let mut blocks = Blocks::new(1, 80, 1_000, 0);
        for (position, time_ms) in [900, 1_000, 1_001, 1_001, 500, 1_002, 0].into_iter().enumerate()
        {
            blocks.push(&entry(position as u64, time_ms, delete(b"k")));
        }
        blocks.close();
        assert_eq!(shape(&blocks), [(1_000, 3), (1_001, 3), (1_002, 2)], "SELECT is one more");
    }

    #[test]
    fn a_block_holds_whole_groups_with_one_time() {
        let mut blocks = Blocks::new(1, 80, 0, 0);
        let value = vec![b'x'; BLOCK_BYTES];
        let large = Effect::Put { key: b"k", value: &value, expires_at_ms: None };
        blocks.push(&entry(1, 5, Effect::Begin));
        blocks.push(&entry(2, 6, large));
        blocks.close();
        assert_eq!((blocks.closed(), blocks.in_group()), (&b""[..], true));
        blocks.push(&entry(3, 7, large));
        blocks.push(&entry(4, 8, Effect::End));
        assert_eq!(blocks.position(), 0);
        blocks.push(&entry(5, 5, delete(b"k")));
        assert_eq!(blocks.position(), 4, "it was over the limit");
        blocks.close();
        assert_eq!(shape(&blocks), [(5, 5), (5, 1)], "SELECT, MULTI, two SETs, EXEC; DEL");
    }

    #[test]
    fn a_group_without_effects_leaves_nothing() {
        let mut blocks = Blocks::new(1, 80, 0, 0);
        blocks.push(&entry(1, 5, Effect::Begin));
        blocks.push(&entry(2, 5, Effect::End));
        blocks.close();
        assert_eq!((blocks.closed(), blocks.position()), (&b""[..], 2));
    }

    #[test]
    fn the_database_is_selected_when_it_changes_and_a_second_told_once() {
        let mut blocks = Blocks::new(1, 80, 0, 0);
        for (position, (time_ms, database)) in
            [(1_000, 0), (1_001, 0), (1_999, 3), (2_000, 3), (2_001, 0)].into_iter().enumerate()
        {
            let position = position as u64;
            blocks.push(&Entry { position, time_ms, database, effect: delete(b"k") });
        }
        blocks.close();
        let text = closed(&blocks);
        assert_eq!(text.matches("SELECT").count(), 3);
        assert_eq!(text.matches("#TS:1\r\n").count(), 1);
        assert_eq!(text.matches("#TS:2\r\n").count(), 1);
    }

    #[test]
    fn what_is_synced_is_told_by_later_blocks_and_by_a_mark() {
        let mut blocks = Blocks::new(1, 80, 0, 0);
        let synced = |blocks: &Blocks| {
            let end = memchr::memchr(b'\n', blocks.closed()).expect("a line") + 1;
            Annotation::parse(&blocks.closed()[..end]).expect("a block's line").synced
        };
        blocks.push(&entry(1, 5, delete(b"k")));
        blocks.close();
        assert_eq!(synced(&blocks), 80);
        blocks.written();
        blocks.mark(6);
        assert_eq!(blocks.closed(), b"", "the block is not on disk yet");
        let end = blocks.offset();
        blocks.synced(end);
        blocks.mark(6);
        assert_eq!((synced(&blocks), shape(&blocks)), (end, vec![(6, 0)]));
        blocks.written();
        blocks.synced(blocks.offset());
        blocks.mark(7);
        assert_eq!(blocks.closed(), b"", "one mark is enough");
        blocks.push(&entry(2, 5, delete(b"k")));
        blocks.close();
        assert_eq!(shape(&blocks), [(6, 1)]);
    }
}
