//! A part of the append-only file: its name and its first line.
//!
//! ```text
//!   #FERRITE-AOF version=1 part=000012 start=checkpoint:41 before=000011:000000000123456
//!       ms=1763800000123 sum=89abcdef\r\n                                  (one line)
//! ```
//!
//! The first line says what the part goes on from, so that a chain of parts shows whether one is
//! missing or shorter than it was.

use super::text::{decimal, parse_decimal, seal, sealed};
use std::ffi::OsStr;

/// The version of the format, in every part's first line.
pub const VERSION: u64 = 1;
/// What a part begins with.
pub const MAGIC: &[u8] = b"#FERRITE-AOF ";
/// The longest annotation line, line end included; redis-server takes up to 1,023 bytes.
pub const LINE_MAX: usize = 512;
/// The highest offset in a part: 15 decimal digits.
pub const OFFSET_MAX: u64 = 999_999_999_999_999;
/// The last time that fits in 13 decimal digits of Unix milliseconds, in the year 2286.
pub const TIME_MAX_MS: u64 = 9_999_999_999_999;

/// What a part says of itself in its first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its number; never used for another part. From 1.
    pub number: u64,
    /// What its commands go on from.
    pub start: Start,
    /// The part before; `None` when no part was written before this one.
    pub before: Option<Before>,
    /// When it was begun, in Unix milliseconds: no block in it is older, those of its base excepted.
    pub time_ms: u64,
}

/// What the commands of a part go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// An empty store.
    Empty,
    /// The end of the part before.
    Part,
    /// The cut of this checkpoint, which is the end of the part before.
    Checkpoint(u64),
    /// The cut of this checkpoint and nothing else: writing the part before failed, and what it
    /// lacks is in the checkpoint. Without that checkpoint the part is of no use.
    Only(u64),
    /// Anything, by its base, or the end of the part before, behind its base.
    Base(Base),
}

/// The base that a part begins with: `FLUSHALL`, and commands that together make the whole state at
/// the time at which the part was begun. Some of it makes no state that ever was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The number that its blocks carry. It was taken when the base was begun; the part got its own
    /// when the base was complete, and parts may have been begun meanwhile.
    pub number: u64,
    /// Where it ends: bytes from the beginning of the file, all of which are on disk.
    pub length: u64,
}

/// The part before another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// Its number.
    pub number: u64,
    /// How many of its bytes count; all of them are on disk.
    pub length: u64,
}

impl Header {
    /// The first line.
    pub fn render(&self) -> Vec<u8> {
        let mut line = MAGIC.to_vec();
        line.extend_from_slice(b"version=");
        unsigned(VERSION, 1, &mut line);
        line.extend_from_slice(b" part=");
        line.extend_from_slice(number_text(self.number).as_bytes());
        line.extend_from_slice(b" start=");
        let checkpoint = match self.start {
            Start::Empty => (&b"empty"[..], None),
            Start::Part => (&b"part"[..], None),
            Start::Checkpoint(number) => (&b"checkpoint:"[..], Some(number)),
            Start::Only(number) => (&b"only:"[..], Some(number)),
            Start::Base(_) => (&b"base:"[..], None),
        };
        line.extend_from_slice(checkpoint.0);
        checkpoint.1.inspect(|number| unsigned(*number, 1, &mut line));
        if let Start::Base(Base { number, length }) = self.start {
            place(number, length, &mut line);
        }
        line.extend_from_slice(b" before=");
        match self.before {
            None => line.extend_from_slice(b"none"),
            Some(Before { number, length }) => place(number, length, &mut line),
        }
        line.extend_from_slice(b" ms=");
        unsigned(self.time_ms.min(TIME_MAX_MS), 13, &mut line);
        seal(&mut line);
        debug_assert!(line.len() <= LINE_MAX);
        line
    }

    /// What a first line, its line end included, says.
    pub fn parse(line: &[u8]) -> Result<Self, HeaderError> {
        let text = sealed(line).ok_or(HeaderError::Damaged)?;
        let rest = text.as_bytes().strip_prefix(MAGIC).ok_or(HeaderError::Damaged)?;
        let mut fields = Fields(rest);
        let version = fields.decimal(b"version=").ok_or(HeaderError::Damaged)?;
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let header = Self::fields(fields).ok_or(HeaderError::Damaged)?;
        if header.render() == line { Ok(header) } else { Err(HeaderError::Damaged) }
    }

    /// The base that the part begins with, if it does.
    pub fn base(&self) -> Option<Base> {
        match self.start {
            Start::Base(base) => Some(base),
            _ => None,
        }
    }

    fn fields(mut fields: Fields<'_>) -> Option<Self> {
        let number = fields.decimal(b"part=")?;
        let start = fields.next(b"start=")?;
        let start = match start.iter().position(|b| *b == b':').map(|at| start.split_at(at + 1)) {
            Some((b"checkpoint:", number)) => Start::Checkpoint(parse_decimal(number)?),
            Some((b"only:", number)) => Start::Only(parse_decimal(number)?),
            Some((b"base:", base)) => {
                let (number, length) = parse_place(base)?;
                Start::Base(Base { number, length })
            }
            Some(_) => return None,
            None if start == b"empty" => Start::Empty,
            None if start == b"part" => Start::Part,
            None => return None,
        };
        let before = match fields.next(b"before=")? {
            b"none" => None,
            text => {
                let (number, length) = parse_place(text)?;
                Some(Before { number, length })
            }
        };
        let time_ms = fields.decimal(b"ms=")?;
        // A part goes on from an older one, or chains would have no end.
        let older = before.is_none_or(|before: Before| before.number < number);
        let header = Self { number, start, before, time_ms };
        let begun_before = header.base().is_none_or(|base| base.number <= number);
        (fields.0.is_empty() && older && begun_before).then_some(header)
    }
}

/// A part's number and an offset in it: `000011:000000000123456`.
fn place(number: u64, offset: u64, line: &mut Vec<u8>) {
    line.extend_from_slice(number_text(number).as_bytes());
    line.push(b':');
    unsigned(offset, 15, line);
}

fn parse_place(text: &[u8]) -> Option<(u64, u64)> {
    let colon = text.iter().position(|b| *b == b':')?;
    Some((parse_decimal(&text[..colon])?, parse_decimal(&text[colon + 1..])?))
}

/// Why a first line is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// It is not what was written.
    Damaged,
    /// It is of another version of the format.
    Version(u64),
}

/// The fields of a line that are still to be read, separated by one blank.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The value of the next field, which has this name.
    fn next(&mut self, name: &[u8]) -> Option<&'a [u8]> {
        let rest = self.0.strip_prefix(name)?;
        let end = memchr::memchr(b' ', rest).unwrap_or(rest.len());
        self.0 = rest.get(end + 1..).unwrap_or_default();
        Some(&rest[..end])
    }
    /// The same, as a number of decimal digits.
    fn decimal(&mut self, name: &[u8]) -> Option<u64> {
        parse_decimal(self.next(name)?)
    }
}

/// A part's number as it is written everywhere: six digits or more.
pub fn number_text(number: u64) -> String {
    format!("{number:06}")
}

/// Appends a number with at least so many digits.
fn unsigned(value: u64, width: usize, to: &mut Vec<u8>) {
    let digits = value.checked_ilog10().map_or(1, |log| log as usize + 1).max(width);
    let at = to.len();
    to.resize(at + digits, b'0');
    decimal(value, &mut to[at..]);
}

/// The file name of a part: `appendonly.000012.aof` for part 12 of `appendonly.aof`.
pub fn file_name(aof_file: &str, number: u64) -> String {
    format!("{}.{}.aof", stem(aof_file), number_text(number))
}

/// The file that a base is written to until it is complete: no part's name, and none that `cp *.aof`
/// takes.
pub fn base_file_name(aof_file: &str) -> String {
    format!("{}.rewrite", stem(aof_file))
}

/// The number of the part of `aof_file` that a file of this name is; `None` when it is no part.
pub fn number_of(aof_file: &str, name: &OsStr) -> Option<u64> {
    let middle = name.to_str()?.strip_prefix(stem(aof_file))?.strip_prefix('.')?;
    let digits = middle.strip_suffix(".aof")?;
    let number = parse_decimal(digits.as_bytes())?;
    (number > 0 && number_text(number) == digits).then_some(number)
}

/// What the names of the parts begin with: `appendonly` for `appendonly.aof`.
pub fn stem(aof_file: &str) -> &str {
    aof_file.strip_suffix(".aof").unwrap_or(aof_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> [Header; 6] {
        let header = Header { number: 1, start: Start::Empty, before: None, time_ms: 0 };
        let before = Some(Before { number: 11, length: 123_456 });
        [
            header,
            Header { number: 12, start: Start::Checkpoint(41), before, time_ms: 1_763_800_000_123 },
            Header { number: 12, start: Start::Only(0), before, time_ms: TIME_MAX_MS },
            Header { number: 1_234_567, start: Start::Part, before, time_ms: 1 },
            Header { start: Start::Base(Base { number: 1, length: 0 }), ..header },
            Header {
                number: 14,
                start: Start::Base(Base { number: 12, length: 98_765 }),
                before: Some(Before { number: 13, length: 700 }),
                time_ms: 2,
            },
        ]
    }

    /// It is written when the rest of the file is there.
    #[test]
    fn the_first_line_of_a_part_with_a_base_has_one_length() {
        let line = samples()[5].render();
        assert!(line.starts_with(
            b"#FERRITE-AOF version=1 part=000014 start=base:000012:000000000098765 \
              before=000013:000000000000700 ms=0000000000002 sum="
        ));
        let other = Header {
            number: 999_999,
            start: Start::Base(Base { number: 1, length: OFFSET_MAX }),
            before: Some(Before { number: 999_998, length: 0 }),
            time_ms: TIME_MAX_MS,
        };
        assert_eq!(other.render().len(), line.len());
    }

    #[test]
    fn a_first_line_comes_back() {
        let lines = samples().map(|header| header.render());
        assert!(lines[1].starts_with(
            b"#FERRITE-AOF version=1 part=000012 start=checkpoint:41 \
              before=000011:000000000123456 ms=1763800000123 sum="
        ));
        for (header, line) in samples().into_iter().zip(lines) {
            assert_eq!(Header::parse(&line), Ok(header));
            assert!(line.ends_with(b"\r\n") && line.len() < LINE_MAX);
        }
    }

    #[test]
    fn no_flip_and_no_other_form_passes() {
        for header in samples() {
            let mut line = header.render();
            for bit in 0..line.len() * 8 {
                line[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Header::parse(&line), Err(HeaderError::Damaged), "bit {bit}");
                line[bit / 8] ^= 1 << (bit % 8);
            }
        }
        let sealed = |text: &str| {
            let mut line = text.as_bytes().to_vec();
            seal(&mut line);
            Header::parse(&line)
        };
        let damaged = Err(HeaderError::Damaged);
        assert_eq!(sealed("#FERRITE-AOF version=2 anything"), Err(HeaderError::Version(2)));
        assert_eq!(sealed("#FERRITE-AOF version=1 part=12 start=part before=none ms=1"), damaged);
        let right = "#FERRITE-AOF version=1 part=000012 start=part before=none ms=0000000000001";
        assert!(sealed(right).is_ok());
        assert_eq!(sealed(&format!("{right} more=1")), damaged);
        assert_eq!(sealed(&right.replace("start=part", "start=else")), damaged);
        assert_eq!(sealed(&right.replace("start=part", "start=only:")), damaged);
        let base = |place| right.replace("start=part", &format!("start=base{place}"));
        assert!(sealed(&base(":000012:000000000000500")).is_ok());
        for other in ["", ":", ":000012", ":12:000000000000500", ":000013:000000000000500"] {
            assert_eq!(sealed(&base(other)), damaged, "{other}");
        }
        let before = |length| right.replace("none", &format!("{length}:000000000000100"));
        assert!(sealed(&before("000011")).is_ok());
        assert_eq!(sealed(&before("000012")), damaged, "it goes on from an older one");
    }

    #[test]
    fn names_and_numbers_belong_together() {
        assert_eq!(file_name("appendonly.aof", 12), "appendonly.000012.aof");
        assert_eq!(file_name("x.y.aof", 1_234_567), "x.y.1234567.aof");
        let number = |name: &str| number_of("appendonly.aof", OsStr::new(name));
        assert_eq!(number("appendonly.000012.aof"), Some(12));
        assert_eq!(number("appendonly.1234567.aof"), Some(1_234_567));
        for no in [
            "appendonly.aof",
            "appendonly.12.aof",
            "appendonly.0000012.aof",
            "appendonly.000000.aof",
            "appendonly.000012.aof.bad",
            "other.000012.aof",
            "appendonly.00001x.aof",
        ] {
            assert_eq!(number(no), None, "{no}");
        }
    }
}
