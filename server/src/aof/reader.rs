//! Reads a part: block by block, each verified before the first of its commands is given out.
//!
//! Where reading stops before the file's end, the rest is searched for lines of blocks that are
//! sound, since they tell what was on disk when they were written:
//!
//! ```text
//!   | block | block | ~~~~~~ | block, synced=S |            S above the stop: damage
//!                   ^ reading stops here                    else: a torn tail, may be cut off
//! ```
//!
//! Memory: a window of a few hundred KiB, or one command if it is larger. A block that does not fit
//! is read twice, once for its checksum.

use super::block::{self, Annotation};
use super::checksum::{Running, crc32c};
use super::effect::Step;
use super::part::{self, Header, HeaderError, LINE_MAX};
use super::time::format_time;
use memchr::memmem;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes that are read at a time.
const WINDOW: usize = 256 << 10;

/// Where the bytes of a part come from.
pub trait Source {
    /// Reads what lies at `offset`, some of it at least; 0 bytes at the end.
    fn read_at(&self, to: &mut [u8], offset: u64) -> io::Result<usize>;
    /// How many bytes there are.
    fn length(&self) -> io::Result<u64>;
}

impl Source for File {
    fn read_at(&self, to: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, to, offset)
    }
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Source for &[u8] {
    fn read_at(&self, to: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let n = rest.len().min(to.len());
        to[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// What is known about a part from elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// All bytes below this offset were on disk once.
    pub synced: u64,
    /// Bytes from this offset on do not count, if the next part says so.
    pub until: Option<u64>,
}

/// A part that is being read.
#[derive(Debug)]
pub struct PartReader<S> {
    source: S,
    path: PathBuf,
    known: Known,
    /// Bytes of the part that count.
    length: u64,
    header: Header,
    window: Window,
    /// Where the next block begins.
    next_block: u64,
    /// Where the next command of this block begins, and the block's end.
    command: u64,
    block_end: u64,
    /// The time of this block; before the first, that of the part.
    time_ms: u64,
    /// The next block is not older.
    not_before_ms: u64,
    /// The last command, its offset and length, and its words.
    current: (u64, usize),
    words: Vec<(usize, usize)>,
    end: Option<End>,
}

/// One command of a part.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// Where it begins in the part.
    pub offset: u64,
    /// When it was done, in Unix milliseconds.
    pub time_ms: u64,
    /// Its bytes: a RESP array of bulk strings.
    pub bytes: &'a [u8],
    words: &'a [(usize, usize)],
}

impl<'a> Command<'a> {
    /// Its words, the name first.
    pub fn words(&self) -> impl ExactSizeIterator<Item = &'a [u8]> {
        let bytes = self.bytes;
        self.words.iter().map(move |(from, to)| &bytes[*from..*to])
    }
    /// What it asks for.
    pub fn step(&self) -> Step<'a> {
        let mut words = [&b""[..]; 6];
        let count = words.len().min(self.words.len());
        words.iter_mut().zip(self.words()).for_each(|(place, word)| *place = word);
        Step::of(&words[..count], self.bytes)
    }
}

/// How a part ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With a whole block, at this offset.
    Whole(u64),
    /// With something that was not completely written.
    Torn(Torn),
}

/// The end of a part that was not completely written when the machine stopped. Its text is the
/// warning for the log of a start that cuts it off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The part.
    pub path: PathBuf,
    /// What comes before is whole.
    pub offset: u64,
    /// Bytes from there to the file's end.
    pub lost_bytes: u64,
    /// Why reading stopped.
    pub why: Why,
    /// The time of the last block before it, in Unix milliseconds.
    pub kept_until_ms: u64,
    /// The latest time that a line in the lost bytes tells, in Unix milliseconds.
    pub lost_until_ms: Option<u64>,
}

/// Something in a part that was on disk once has changed. Its text is the reason why a start refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The part.
    pub path: PathBuf,
    /// What comes before is whole.
    pub offset: u64,
    /// Bytes from there to the file's end.
    pub lost_bytes: u64,
    /// What is wrong there.
    pub why: Why,
    /// The part was on disk up to this offset.
    pub synced: u64,
    /// The time of the last block before it, in Unix milliseconds.
    pub kept_until_ms: u64,
    /// The latest time that a line behind it tells, in Unix milliseconds.
    pub lost_until_ms: Option<u64>,
}

/// Why reading stops before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The first line is not what was written.
    FirstLine,
    /// No sound line of a block.
    Line,
    /// The line of a block that belongs to another offset or another part.
    Elsewhere,
    /// The line tells of more bytes than there are.
    Short,
    /// The file ends with a whole block, but it was longer.
    Shorter,
    /// The commands do not match the line's checksum.
    Checksum,
    /// The block is older than the one before.
    Older,
    /// The checksum matches, but there is something else than commands.
    NoCommand,
}

impl Why {
    /// In words, as what follows "at offset N".
    pub fn text(self) -> &'static str {
        match self {
            Self::FirstLine => "the first line does not match its checksum",
            Self::Line => "no sound line of a block stands there",
            Self::Elsewhere => "a block stands there that belongs elsewhere",
            Self::Short => "the file ends inside the block",
            Self::Shorter => "the file ends there",
            Self::Checksum => "the block does not match its checksum",
            Self::Older => "the block is older than the one before",
            Self::NoCommand => "the block holds something else than commands",
        }
    }
}

impl Torn {
    /// What is torn, for who has named the file already.
    pub fn details(&self) -> impl fmt::Display {
        let Self { offset, lost_bytes, why, kept_until_ms, lost_until_ms, .. } = self;
        if *why == Why::FirstLine {
            return format!(
                "{}, and nothing of the {lost_bytes} bytes in it was known to be on disk",
                why.text()
            );
        }
        let until = match lost_until_ms {
            Some(until) => {
                let lost_ms = until.saturating_sub(*kept_until_ms);
                format!("{lost_ms} ms before the last write that is lost")
            }
            None => "when what is lost was written is not known".to_owned(),
        };
        format!(
            "ends at offset {offset}: the {lost_bytes} bytes from there on were not completely \
             written ({}); what is kept ends at {}, {until}",
            why.text(),
            format_time(*kept_until_ms)
        )
    }
}

impl Damage {
    /// What is wrong and what to do, for who has named the file already.
    pub fn details(&self) -> impl fmt::Display {
        let Self { path, offset, lost_bytes, why, synced, kept_until_ms, lost_until_ms } = self;
        let what = format!(
            "damaged at offset {offset}: {}, and the file was on disk up to {synced}; put the file \
             back from a backup",
            why.text()
        );
        if *why == Why::FirstLine {
            return what;
        }
        let until =
            lost_until_ms.map_or(String::new(), |ms| format!(", up to {}", format_time(ms)));
        format!(
            "{what}, or give up the {lost_bytes} bytes from there on (all after {}{until}) with: \
             ferrite aof truncate --to-offset {offset} {}",
            format_time(*kept_until_ms),
            path.display()
        )
    }
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AOF: cut {}: {}", self.path.display(), self.details())
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AOF: refused {}: {}", self.path.display(), self.details())
    }
}

/// Why a part cannot be read, or not on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The system does not give the bytes.
    #[error("cannot read {}: {source}", .path.display())]
    Io {
        /// The part.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "AOF: refused {}: it does not begin as a part of Ferrite's append-only file; move it aside, \
         or load it with redis-cli --pipe into a running server if it is Redis's",
        .path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The part is of another version.
    #[error(
        "AOF: refused {}: its version is {found}; this Ferrite reads {}: start with that version",
        .path.display(), part::VERSION
    )]
    Version {
        /// The part.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// The part has another number than its name.
    #[error(
        "AOF: refused {}: it is part {}; give it the name it was written under, or move it aside",
        .path.display(), part::number_text(*.found)
    )]
    Misnamed {
        /// The file.
        path: PathBuf,
        /// The number in its first line.
        found: u64,
    },
    /// A replay was to end before the part's base is complete.
    #[error("{} begins with the state of {}, and the replay was to end before", .path.display(), format_time(*.time_ms))]
    Younger {
        /// The part.
        path: PathBuf,
        /// When it was begun, in Unix milliseconds.
        time_ms: u64,
    },
    /// Something that was on disk has changed.
    #[error("{0}")]
    Damaged(Box<Damage>),
    /// Not even the first line is whole, and nothing was ever written behind it.
    #[error("{0}")]
    Unbegun(Box<Torn>),
}

impl<S: Source> PartReader<S> {
    /// Reads the first line. `path` is for messages.
    pub fn open(source: S, path: &Path, known: Known) -> Result<Self, ReadError> {
        let mut window = Window::default();
        let io = |source| ReadError::Io { path: path.to_owned(), source };
        let file_length = source.length().map_err(io)?;
        let length = known.until.map_or(file_length, |until| until.min(file_length));
        let start = window.at_least(&source, 0, LINE_MAX, length).map_err(io)?;
        let line = first_line(start);
        let header = match Header::parse(line) {
            Ok(header) => header,
            Err(HeaderError::Version(found)) => {
                return Err(ReadError::Version { path: path.to_owned(), found });
            }
            Err(HeaderError::Damaged) => {
                // What was not written yet is missing or zeros.
                let begun = &start[..start.len().min(part::MAGIC.len())];
                let begins = part::MAGIC.starts_with(begun) || begun[0] == 0;
                let found = search(&source, None, 0, length).map_err(io)?;
                return Err(unbegun(path, file_length, known, found, begins));
            }
        };
        let next_block = line.len() as u64;
        // The file got its name when all of the base was on disk.
        let based = header.base().map_or(0, |base| base.length);
        let known = Known { synced: known.synced.max(based), ..known };
        Ok(Self {
            source,
            path: path.to_owned(),
            known,
            length,
            header,
            window,
            next_block,
            command: next_block,
            block_end: next_block,
            time_ms: header.time_ms,
            not_before_ms: if header.base().is_some() { 0 } else { header.time_ms },
            current: (next_block, 0),
            words: Vec::new(),
            end: None,
        })
    }

    /// What the part says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }
    /// How the part ends, once [`PartReader::next_command`] or [`PartReader::next_block`] has
    /// answered `None`.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }
    /// Where the next block begins: everything before is read and whole.
    pub fn offset(&self) -> u64 {
        self.next_block
    }
    /// The time of the last block that was read, in Unix milliseconds; before the first, that of
    /// the part.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }
    /// Bytes of the part that count: up to where reading may get.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Goes to where the part goes on from the one before: behind its base, if it has one, which is not
    /// looked at. To be called before anything is read.
    pub fn skip_base(&mut self) -> Result<(), ReadError> {
        let Some(base) = self.header.base() else { return Ok(()) };
        if base.length > self.length {
            self.next_block = self.length;
            return self.stop(Why::Shorter);
        }
        self.seek(base.length);
        self.not_before_ms = self.header.time_ms;
        Ok(())
    }

    /// Goes on at `offset`, where a block begins.
    pub fn seek(&mut self, offset: u64) {
        (self.next_block, self.command, self.block_end) = (offset, offset, offset);
    }

    /// The next command; `None` at the end. All of its block is verified.
    pub fn next_command(&mut self) -> Result<Option<Command<'_>>, ReadError> {
        Ok(if self.advance()? { Some(self.command()) } else { None })
    }

    /// Goes on to the next command, which [`PartReader::command`] is then; false at the end.
    pub fn advance(&mut self) -> Result<bool, ReadError> {
        loop {
            if self.command < self.block_end {
                if let Some(length) = self.decode()? {
                    self.current = (self.command, length);
                    self.command += length as u64;
                    return Ok(true);
                }
            } else if self.next_block()?.is_none() {
                return Ok(false);
            }
        }
    }

    /// The command that [`PartReader::advance`] went on to last; before any other call.
    pub fn command(&self) -> Command<'_> {
        let (offset, length) = self.current;
        let bytes = &self.window.from(offset)[..length];
        Command { offset, time_ms: self.time_ms, bytes, words: &self.words }
    }

    /// The next block, verified, whether or not the commands of the last one were read; `None` at
    /// the end.
    pub fn next_block(&mut self) -> Result<Option<Annotation>, ReadError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let at = self.next_block;
        if at == self.length {
            if self.known.synced > at {
                return self.stop(Why::Shorter).map(|()| None);
            }
            self.end = Some(End::Whole(at));
            return Ok(None);
        }
        match self.verify(at).map_err(|source| self.io(source))? {
            Ok((annotation, body)) => {
                self.command = body;
                self.block_end = body + annotation.length;
                self.next_block = self.block_end;
                self.time_ms = annotation.time_ms;
                self.not_before_ms = annotation.time_ms;
                Ok(Some(annotation))
            }
            Err(why) => self.stop(why).map(|()| None),
        }
    }

    /// The block at `at` and where its commands begin, or what is wrong with it.
    fn verify(&mut self, at: u64) -> io::Result<Result<(Annotation, u64), Why>> {
        let bytes = self.window.at_least(&self.source, at, LINE_MAX, self.length)?;
        let line = first_line(bytes);
        let Some(block) = Annotation::parse(line) else { return Ok(Err(Why::Line)) };
        let number = match self.header.base() {
            Some(base) if at < base.length => base.number,
            _ => self.header.number,
        };
        if block.at != at || block.part != number {
            return Ok(Err(Why::Elsewhere));
        }
        let body = at + line.len() as u64;
        if block.length > self.length - body {
            return Ok(Err(Why::Short));
        }
        if block.time_ms < self.not_before_ms {
            return Ok(Err(Why::Older));
        }
        let crc = match usize::try_from(block.length) {
            Ok(length) if length <= WINDOW => {
                let bytes = self.window.at_least(&self.source, body, length, self.length)?;
                crc32c(bytes.get(..length).ok_or(io::ErrorKind::UnexpectedEof)?)
            }
            _ => self.window.checksum(&self.source, body, block.length)?,
        };
        Ok(if crc == block.crc { Ok((block, body)) } else { Err(Why::Checksum) })
    }

    /// Finds the words of the command at `self.command`; its length, or `None` for an annotation,
    /// which is skipped.
    fn decode(&mut self) -> Result<Option<usize>, ReadError> {
        let (at, left) = (self.command, self.block_end - self.command);
        let mut wanted = usize::try_from(left).unwrap_or(usize::MAX).min(WINDOW);
        loop {
            let bytes = self
                .window
                .at_least(&self.source, at, wanted, self.block_end)
                .and_then(|bytes| match (bytes.len() as u64) < left.min(wanted as u64) {
                    true => Err(io::ErrorKind::UnexpectedEof.into()),
                    false => Ok(bytes),
                })
                .map_err(|source| ReadError::Io { path: self.path.clone(), source })?;
            let bytes = &bytes[..bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            if bytes.first() == Some(&b'#')
                && let Some(end) = memchr::memchr(b'\n', bytes)
            {
                self.command += end as u64 + 1;
                return Ok(None);
            }
            match split(bytes, &mut self.words) {
                Split::Command(length) => return Ok(Some(length)),
                Split::More(at_least) if at_least as u64 <= left && bytes.len() < at_least => {
                    // Words are looked for anew each time, so the window doubles at least.
                    let doubled = (bytes.len() as u64 * 2).min(left) as usize;
                    wanted = at_least.max(doubled);
                }
                Split::More(_) | Split::Failed => {
                    let damage = self.damage(self.command, Why::NoCommand, self.block_end, None);
                    return Err(ReadError::Damaged(Box::new(damage)));
                }
            }
        }
    }

    /// Reading stops at the next block: is that damage, or a torn tail?
    fn stop(&mut self, why: Why) -> Result<(), ReadError> {
        let at = self.next_block;
        let found = search(&self.source, Some(self.header.number), at, self.length)
            .map_err(|source| self.io(source))?;
        let synced = found.synced.max(self.known.synced);
        if synced > at {
            let damage = self.damage(at, why, synced, found.time_ms);
            return Err(ReadError::Damaged(Box::new(damage)));
        }
        self.end = Some(End::Torn(Torn {
            path: self.path.clone(),
            offset: at,
            lost_bytes: self.length - at,
            why,
            kept_until_ms: self.time_ms,
            lost_until_ms: found.time_ms,
        }));
        Ok(())
    }

    fn damage(&self, offset: u64, why: Why, synced: u64, lost_until_ms: Option<u64>) -> Damage {
        Damage {
            path: self.path.clone(),
            offset,
            lost_bytes: self.length - offset,
            why,
            synced,
            kept_until_ms: self.time_ms,
            lost_until_ms,
        }
    }

    fn io(&self, source: io::Error) -> ReadError {
        ReadError::Io { path: self.path.clone(), source }
    }
}

/// A file whose first line is none: which error is that? `begins` tells whether it may be a part.
fn unbegun(path: &Path, length: u64, known: Known, found: Found, begins: bool) -> ReadError {
    let path = path.to_owned();
    let (why, synced) = (Why::FirstLine, found.synced.max(known.synced));
    if synced > 0 {
        return ReadError::Damaged(Box::new(Damage {
            path,
            offset: 0,
            lost_bytes: length,
            why,
            synced,
            kept_until_ms: 0,
            lost_until_ms: found.time_ms,
        }));
    }
    if !begins {
        return ReadError::Foreign { path };
    }
    ReadError::Unbegun(Box::new(Torn {
        path,
        offset: 0,
        lost_bytes: length,
        why,
        kept_until_ms: 0,
        lost_until_ms: found.time_ms,
    }))
}

/// The first line of `bytes`, line end included; without one, all there is.
fn first_line(bytes: &[u8]) -> &[u8] {
    let bytes = &bytes[..bytes.len().min(LINE_MAX)];
    memchr::memchr(b'\n', bytes).map_or(bytes, |end| &bytes[..=end])
}

/// What sound lines of blocks tell, wherever they are.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// The highest `synced`.
    synced: u64,
    /// The latest time.
    time_ms: Option<u64>,
}

/// Looks for lines of blocks of part `part` (or of any) that stand where they say.
fn search(source: &impl Source, part: Option<u64>, from: u64, to: u64) -> io::Result<Found> {
    let finder = memmem::Finder::new(block::MAGIC);
    let (mut found, mut window, mut at) = (Found::default(), Window::default(), from);
    while at < to {
        let bytes = window.at_least(source, at, WINDOW, to)?;
        if bytes.is_empty() {
            break;
        }
        for candidate in finder.find_iter(bytes) {
            let Some(block) = Annotation::parse(first_line(&bytes[candidate..])) else { continue };
            let stands_there = block.at == at + candidate as u64 && block.synced <= block.at;
            if stands_there && part.is_none_or(|part| part == block.part) {
                found.synced = found.synced.max(block.synced);
                found.time_ms = found.time_ms.max(Some(block.time_ms));
            }
        }
        // A line that the window's end divides is found again.
        let step = bytes.len().saturating_sub(LINE_MAX).max(1) as u64;
        at = if at + bytes.len() as u64 >= to { to } else { at + step };
    }
    Ok(found)
}

/// What [`split`] finds.
enum Split {
    /// A whole command of so many bytes.
    Command(usize),
    /// At least so many bytes are needed to tell.
    More(usize),
    /// Not a command.
    Failed,
}

/// Finds the words of the command that `bytes` begin with: a RESP array of bulk strings, in the one
/// form in which it is written.
fn split(bytes: &[u8], words: &mut Vec<(usize, usize)>) -> Split {
    words.clear();
    let mut at = 0;
    let count = match length_line(bytes, &mut at, b'*') {
        Ok(count) => count,
        Err(other) => return other,
    };
    for _ in 0..count {
        let length = match length_line(bytes, &mut at, b'$') {
            Ok(length) => length,
            Err(other) => return other,
        };
        let Some(end) = at.checked_add(length).filter(|end| *end < usize::MAX - 2) else {
            return Split::Failed;
        };
        match bytes.get(end..end + 2) {
            Some(b"\r\n") => words.push((at, end)),
            Some(_) => return Split::Failed,
            None => return Split::More(end + 2),
        }
        at = end + 2;
    }
    if count == 0 { Split::Failed } else { Split::Command(at) }
}

/// The number in the line at `at`, which begins with `sign`; `at` moves behind it.
fn length_line(bytes: &[u8], at: &mut usize, sign: u8) -> Result<usize, Split> {
    /// Digits of the longest number, sign and line end.
    const LONGEST: usize = 22;
    let rest = &bytes[*at..];
    match rest.first() {
        None => return Err(Split::More(bytes.len() + 1)),
        Some(first) if *first != sign => return Err(Split::Failed),
        Some(_) => {}
    }
    let line = &rest[..rest.len().min(LONGEST)];
    let Some(end) = memchr::memchr(b'\n', line) else {
        return Err(match line.len() {
            LONGEST => Split::Failed,
            _ => Split::More(bytes.len() + 1),
        });
    };
    let digits = line[1..end].strip_suffix(b"\r").ok_or(Split::Failed)?;
    let number = super::text::parse_decimal(digits).ok_or(Split::Failed)?;
    *at += end + 1;
    usize::try_from(number).map_err(|_| Split::Failed)
}

/// A part of the file in memory.
#[derive(Debug, Default)]
struct Window {
    bytes: Vec<u8>,
    /// Where they lie in the file.
    offset: u64,
}

impl Window {
    /// What is in memory from `offset` on, which is.
    fn from(&self, offset: u64) -> &[u8] {
        &self.bytes[(offset - self.offset) as usize..]
    }

    /// The bytes from `offset` on: at least `wanted`, or up to `end` if that comes first. Fewer
    /// only if the file has become shorter.
    fn at_least(
        &mut self,
        source: &impl Source,
        offset: u64,
        wanted: usize,
        end: u64,
    ) -> io::Result<&[u8]> {
        let wanted = (wanted as u64).min(end.saturating_sub(offset)) as usize;
        let here = self.offset + self.bytes.len() as u64;
        if offset < self.offset || offset > here {
            self.bytes.clear();
            self.offset = offset;
        } else if here - offset < wanted as u64 {
            self.bytes.drain(..(offset - self.offset) as usize);
            self.offset = offset;
        }
        let skip = (offset - self.offset) as usize;
        if self.bytes.len() - skip < wanted {
            let whole = (wanted.max(WINDOW) as u64).min(end - offset) as usize;
            self.fill(source, skip + whole, skip + wanted)?;
        }
        Ok(&self.bytes[skip..])
    }

    /// Reads on until there are `enough` bytes, `whole` if they come at once.
    fn fill(&mut self, source: &impl Source, whole: usize, enough: usize) -> io::Result<()> {
        let mut filled = self.bytes.len();
        if self.bytes.capacity() > 8 * WINDOW.max(whole) {
            self.bytes.shrink_to(whole);
        }
        self.bytes.resize(whole, 0);
        while filled < enough {
            match source.read_at(&mut self.bytes[filled..], self.offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.bytes.truncate(filled);
                    return Err(e);
                }
            }
        }
        self.bytes.truncate(filled);
        Ok(())
    }

    /// The checksum of `length` bytes at `offset`, which need not stay in memory.
    fn checksum(&mut self, source: &impl Source, offset: u64, length: u64) -> io::Result<u32> {
        let (mut running, mut at, end) = (Running::new(), offset, offset + length);
        while at < end {
            let bytes = self.at_least(source, at, WINDOW, end)?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let n = bytes.len().min((end - at) as usize);
            running.update(&bytes[..n]);
            at += n as u64;
        }
        Ok(running.value())
    }
}

#[cfg(test)]
mod tests;
