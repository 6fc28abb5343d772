//! Commands from bytes, as redis-server 7.0.15 finds them.
//!
//! The decoder keeps where it stands between calls, so nothing is looked at twice, and however the
//! bytes are split over calls the commands are the same. It copies no argument: a word is a
//! [`Range`] of its command's bytes, which the caller keeps until the command has run. Only inline
//! commands (a line of words, with quotes) are unfolded into a buffer of the decoder.
//!
//! ```text
//!   input      *2\r\n$3\r\nGET\r\n$1\r\na\r\n*1\r\n$4\r\nPI
//!              ^ command                     ^ where the next call begins: `&input[length..]`
//!   words               ^^^         ^
//! ```
//!
//! A bulk string that no value could hold, in a command that stores values, is refused from its
//! header: its command's bytes are skipped as they come ([`Decoded::Skip`]) and at its end it is
//! reported ([`Decoded::Oversized`]).

use crate::commands::args::parse_i64;
use memchr::{memchr, memchr2};

/// Where a word lies: relative to the first byte of its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    start: u32,
    end: u32,
}

impl Range {
    /// The word from `start` up to `end`.
    pub fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= u32::MAX as usize);
        Self { start: start as u32, end: end as u32 }
    }
    /// The word's bytes in its command.
    #[inline]
    pub fn of(self, command: &[u8]) -> &[u8] {
        &command[self.start as usize..self.end as usize]
    }
}

/// What the bytes held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A command: [`Decoder::words`], [`Decoder::length`] bytes long.
    Command,
    /// Not yet a whole command.
    Incomplete,
    /// The first so many bytes are of no use to anybody; call again with what follows them.
    Skip(usize),
    /// The end of a command that had a bulk string over [`Bounds::value_max`]; its last
    /// [`Decoder::length`] bytes are to be dropped.
    Oversized,
    /// No RESP. Nothing that follows can be understood.
    Failed(ProtocolError),
}

/// What is taken for a bulk string.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Longer ones are protocol errors.
    pub bulk_max: u64,
    /// Longer ones are skipped if their command stores values.
    pub value_max: u64,
    /// Whether the command of that name does.
    pub stores_values: fn(&[u8]) -> bool,
}

/// Bytes without a line end that are taken for no line any more: of an inline command, a length.
/// As in Redis a longer line passes when its end comes with the bytes that exceed this.
pub const LINE_MAX: usize = 64 * 1024;

/// What is wrong with the bytes, with Redis's texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// No line end within `LINE_MAX` bytes of an inline command.
    InlineTooLong,
    /// Quotes in an inline command that are not closed, or not followed by a blank.
    UnbalancedQuotes,
    /// No line end within `LINE_MAX` bytes of a count of words.
    CountTooLong,
    /// No line end within `LINE_MAX` bytes of a word's length.
    LengthTooLong,
    /// The count of words is no number or too high.
    Count,
    /// A word's length is no number, negative or over [`Bounds::bulk_max`].
    Length,
    /// A word begins with another byte than `$`.
    NoBulk(u8),
}

impl ProtocolError {
    /// The text of the error reply.
    pub fn text(self) -> Vec<u8> {
        let text: &[u8] = match self {
            Self::InlineTooLong => b"too big inline request",
            Self::UnbalancedQuotes => b"unbalanced quotes in request",
            Self::CountTooLong => b"too big mbulk count string",
            Self::LengthTooLong => b"too big bulk count string",
            Self::Count => b"invalid multibulk length",
            Self::Length => b"invalid bulk length",
            Self::NoBulk(byte) => {
                return [b"ERR Protocol error: expected '$', got '", &[byte][..], b"'"].concat();
            }
        };
        [b"ERR Protocol error: ", text].concat()
    }
}

/// Finds the commands in a stream of bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    /// Bytes of the current command that are understood.
    position: usize,
    words: Vec<Range>,
    /// The unfolded words of an inline command.
    unfolded: Vec<u8>,
    inline: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// Before a command.
    #[default]
    Between,
    /// Before a word's header; `left` words are to come.
    Header { left: u32, skip: bool },
    /// In a word of `length` bytes; it is the first of the `left`.
    Body { left: u32, length: u64, skip: bool },
    /// A command was given out; the next call begins behind it.
    Given,
    /// For good.
    Failed(ProtocolError),
}

/// A line that holds a number.
pub(super) enum Line {
    /// Its value, and its bytes up to and with the line end.
    Number(i64, usize),
    /// Its bytes are no number.
    Malformed,
    /// Its end is not here.
    Unfinished,
    /// Its end is not here, and too much else is.
    TooLong,
}

impl Decoder {
    /// Places for words that are kept between commands.
    const WORDS_KEPT: usize = 64;
    /// Bytes for unfolded words that are kept between commands.
    const UNFOLDED_KEPT: usize = 4096;

    /// Goes on with `input`, which begins at the first byte of the current command: what the last
    /// call was given and more, or, after a command, what follows it.
    pub fn next(&mut self, input: &[u8], bounds: &Bounds) -> Decoded {
        if matches!(self.state, State::Given) {
            self.state = State::Between;
            self.position = 0;
            self.words.clear();
        }
        loop {
            let step = match self.state {
                State::Between => self.begin(input),
                State::Header { left, skip } => self.header(input, left, skip, bounds),
                State::Body { left, length, skip } => self.body(input, left, length, skip),
                State::Given => unreachable!("left above, and set only on the way out"),
                State::Failed(error) => Some(Decoded::Failed(error)),
            };
            if let Some(decoded) = step {
                return decoded;
            }
        }
    }
    /// The words of the command that was found; they lie in [`Decoder::unfolded`] if it is inline,
    /// else in the input.
    pub fn words(&self) -> &[Range] {
        &self.words
    }
    /// The words of an inline command, unfolded; `None` if the command is no inline command.
    pub fn unfolded(&self) -> Option<&[u8]> {
        self.inline.then_some(&self.unfolded)
    }
    /// Bytes of the command that was found.
    pub fn length(&self) -> usize {
        self.position
    }
    /// The command that was given out has run, or its words were copied: what they took is given
    /// back, if it was much. Does nothing in the middle of a command.
    pub fn rest(&mut self) {
        if !matches!(self.state, State::Between | State::Given) {
            return;
        }
        if self.words.capacity() > Self::WORDS_KEPT {
            self.words = Vec::new();
        }
        if self.unfolded.capacity() > Self::UNFOLDED_KEPT {
            self.unfolded = Vec::new();
        }
    }
    /// Bytes that it holds beyond the few that it keeps between commands.
    pub fn held(&self) -> usize {
        let beyond = |bytes: usize, kept: usize| if bytes > kept { bytes } else { 0 };
        let word = size_of::<Range>();
        beyond(self.words.capacity() * word, Self::WORDS_KEPT * word)
            + beyond(self.unfolded.capacity(), Self::UNFOLDED_KEPT)
    }
    /// Bytes that the current command has at least, as far as its headers tell.
    pub fn wanted(&self) -> usize {
        match self.state {
            State::Body { length, skip: false, .. } => self.position + length as usize + 2,
            _ => self.position,
        }
    }

    fn begin(&mut self, input: &[u8]) -> Option<Decoded> {
        let Some(first) = input.get(self.position) else { return Some(self.dropped()) };
        self.inline = *first != b'*';
        if self.inline {
            return self.line_of_words(input);
        }
        match number_line(&input[self.position + 1..]) {
            Line::Number(count, length) if count <= i64::from(i32::MAX) => {
                self.position += 1 + length;
                if count > 0 {
                    self.state = State::Header { left: count as u32, skip: false };
                }
                None
            }
            Line::Number(..) | Line::Malformed => Some(self.fail(ProtocolError::Count)),
            Line::TooLong => Some(self.fail(ProtocolError::CountTooLong)),
            Line::Unfinished => Some(self.dropped()),
        }
    }
    /// Empty commands before the current one are of no use any more.
    fn dropped(&mut self) -> Decoded {
        match std::mem::take(&mut self.position) {
            0 => Decoded::Incomplete,
            n => Decoded::Skip(n),
        }
    }
    #[inline]
    fn header(&mut self, input: &[u8], left: u32, skip: bool, bounds: &Bounds) -> Option<Decoded> {
        let rest = &input[self.position..];
        let Some(first) = rest.first() else { return Some(self.incomplete(skip)) };
        if *first != b'$' {
            return Some(self.no_bulk(rest, skip));
        }
        let (length, bytes) = match number_line(&rest[1..]) {
            Line::Number(length, bytes) => (length, bytes),
            Line::Malformed => return Some(self.fail(ProtocolError::Length)),
            Line::Unfinished => return Some(self.incomplete(skip)),
            Line::TooLong => return Some(self.fail(ProtocolError::LengthTooLong)),
        };
        let Ok(length) = u64::try_from(length) else {
            return Some(self.fail(ProtocolError::Length));
        };
        if length > bounds.bulk_max {
            return Some(self.fail(ProtocolError::Length));
        }
        self.position += 1 + bytes;
        let skip = skip || length > bounds.value_max && self.stores_values(input, bounds);
        self.state = State::Body { left, length, skip };
        if skip {
            self.words.clear();
        }
        None
    }
    #[cold]
    fn stores_values(&self, input: &[u8], bounds: &Bounds) -> bool {
        self.words.first().is_some_and(|name| (bounds.stores_values)(name.of(input)))
    }
    /// A word that begins with another byte than `$`. Redis first waits for the end of its line.
    #[cold]
    fn no_bulk(&mut self, rest: &[u8], skip: bool) -> Decoded {
        match line_end(rest, b'\r') {
            Some(end) if end + 1 < rest.len() => self.fail(ProtocolError::NoBulk(rest[0])),
            None if rest.len() > LINE_MAX => self.fail(ProtocolError::LengthTooLong),
            _ => self.incomplete(skip),
        }
    }
    #[inline]
    fn body(&mut self, input: &[u8], left: u32, length: u64, skip: bool) -> Option<Decoded> {
        let here = input.len() - self.position;
        if skip {
            return self.skip_body(here as u64, left, length);
        }
        let length = length as usize;
        if here < length + 2 {
            return Some(Decoded::Incomplete);
        }
        self.words.push(Range::new(self.position, self.position + length));
        // What stands in the place of the line end is not looked at, as in Redis.
        self.position += length + 2;
        self.ended(left, false)
    }
    /// `length` counts what is left of the word; its line end is two bytes more.
    fn skip_body(&mut self, here: u64, left: u32, length: u64) -> Option<Decoded> {
        if here >= length + 2 {
            self.position += length as usize + 2;
            return self.ended(left, true);
        }
        // The line end stays whole, so that what is left never gets below it.
        let dropped = here.min(length);
        self.state = State::Body { left, length: length - dropped, skip: true };
        self.position += dropped as usize;
        Some(self.incomplete(true))
    }
    /// One word has ended.
    #[inline]
    fn ended(&mut self, left: u32, skip: bool) -> Option<Decoded> {
        if left > 1 {
            self.state = State::Header { left: left - 1, skip };
            return None;
        }
        self.state = State::Given;
        Some(if skip { Decoded::Oversized } else { Decoded::Command })
    }
    /// More bytes are needed; a command that is being skipped keeps none.
    fn incomplete(&mut self, skip: bool) -> Decoded {
        if skip { self.dropped() } else { Decoded::Incomplete }
    }
    fn line_of_words(&mut self, input: &[u8]) -> Option<Decoded> {
        let rest = &input[self.position..];
        let Some(end) = line_end(rest, b'\n') else {
            return Some(if rest.len() > LINE_MAX {
                self.fail(ProtocolError::InlineTooLong)
            } else {
                self.dropped()
            });
        };
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        self.position += end + 1;
        self.unfolded.clear();
        // An annotation of an append-only file that is piped in; no command has such a name.
        if line.first() == Some(&b'#') {
            return None;
        }
        if !unfold(line, &mut self.unfolded, &mut self.words) {
            return Some(self.fail(ProtocolError::UnbalancedQuotes));
        }
        if self.words.is_empty() {
            return None;
        }
        self.state = State::Given;
        Some(Decoded::Command)
    }
    fn fail(&mut self, error: ProtocolError) -> Decoded {
        self.state = State::Failed(error);
        Decoded::Failed(error)
    }
}

/// The first `end` in `bytes`, unless a zero byte comes first: Redis looks with C's `strchr`.
fn line_end(bytes: &[u8], end: u8) -> Option<usize> {
    memchr2(end, 0, bytes).filter(|at| bytes[*at] == end)
}

/// A number, `\r` and one byte more.
#[inline]
pub(super) fn number_line(bytes: &[u8]) -> Line {
    let digit = |b: u8| i64::from(b - b'0');
    match bytes {
        [a @ b'0'..=b'9', b'\r', _, ..] => Line::Number(digit(*a), 3),
        [a @ b'1'..=b'9', b @ b'0'..=b'9', b'\r', _, ..] => {
            Line::Number(digit(*a) * 10 + digit(*b), 4)
        }
        [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b'\r', _, ..] => {
            Line::Number(digit(*a) * 100 + digit(*b) * 10 + digit(*c), 5)
        }
        _ => long_number_line(bytes),
    }
}

#[cold]
fn long_number_line(bytes: &[u8]) -> Line {
    match line_end(bytes, b'\r') {
        // The byte before `bytes` counts as one of the line.
        None if bytes.len() >= LINE_MAX => Line::TooLong,
        None => Line::Unfinished,
        Some(end) if end + 1 == bytes.len() => Line::Unfinished,
        Some(end) => parse_i64(&bytes[..end]).map_or(Line::Malformed, |n| Line::Number(n, end + 2)),
    }
}

/// Splits a line into words, as Redis's `sdssplitargs` does: words in double quotes may have
/// escapes, words in single quotes only `\'`. False if quotes are not closed or not followed by a
/// blank.
fn unfold(line: &[u8], unfolded: &mut Vec<u8>, words: &mut Vec<Range>) -> bool {
    debug_assert!(memchr(0, line).is_none());
    let mut rest = line;
    loop {
        let blanks = rest.iter().take_while(|b| is_space(**b)).count();
        rest = &rest[blanks..];
        if rest.is_empty() {
            return true;
        }
        let start = unfolded.len();
        match unfold_word(rest, unfolded) {
            Some(length) => rest = &rest[length..],
            None => return false,
        }
        words.push(Range::new(start, unfolded.len()));
    }
}

/// Unfolds the word at the front and returns how many bytes it took.
fn unfold_word(line: &[u8], unfolded: &mut Vec<u8>) -> Option<usize> {
    let mut at = 0;
    loop {
        match line.get(at) {
            None | Some(b' ' | b'\n' | b'\r' | b'\t') => return Some(at),
            Some(b'"') => return Some(at + 1 + double_quoted(&line[at + 1..], unfolded)?),
            Some(b'\'') => return Some(at + 1 + single_quoted(&line[at + 1..], unfolded)?),
            Some(byte) => unfolded.push(*byte),
        }
        at += 1;
    }
}

fn double_quoted(line: &[u8], unfolded: &mut Vec<u8>) -> Option<usize> {
    let mut at = 0;
    loop {
        match &line[at..] {
            [] => return None,
            [b'\\', b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                unfolded.push(hex(*high) << 4 | hex(*low));
                at += 4;
            }
            [b'\\', byte, ..] => {
                unfolded.push(match byte {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                at += 2;
            }
            [b'"', rest @ ..] => return closed(rest).then_some(at + 1),
            [byte, ..] => {
                unfolded.push(*byte);
                at += 1;
            }
        }
    }
}

fn single_quoted(line: &[u8], unfolded: &mut Vec<u8>) -> Option<usize> {
    let mut at = 0;
    loop {
        match &line[at..] {
            [] => return None,
            [b'\\', b'\'', ..] => {
                unfolded.push(b'\'');
                at += 2;
            }
            [b'\'', rest @ ..] => return closed(rest).then_some(at + 1),
            [byte, ..] => {
                unfolded.push(*byte);
                at += 1;
            }
        }
    }
}

/// A closing quote needs a blank or the end of the line behind it.
fn closed(rest: &[u8]) -> bool {
    rest.first().is_none_or(|b| is_space(*b))
}

/// C's `isspace`.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn hex(digit: u8) -> u8 {
    (digit as char).to_digit(16).map_or(0, |n| n as u8)
}

#[cfg(test)]
mod tests;
