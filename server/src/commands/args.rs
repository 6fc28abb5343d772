//! A command's arguments, where they lie in the input; and a cursor over them.
//!
//! Nothing is copied: an argument is a slice of the connection's input buffer, which does not
//! move while its command runs.

use crate::error::{self, ErrorReply};
use crate::resp::Range;
use smallvec::SmallVec;

/// Slices of some arguments, for the store's calls on several keys.
pub type Slices<'a> = SmallVec<[&'a [u8]; 16]>;

/// The words of one command; word 0 is its name.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    bytes: &'a [u8],
    words: &'a [Range],
}

impl<'a> Args<'a> {
    /// The words of a command that lie at `words` in `bytes`.
    pub fn new(bytes: &'a [u8], words: &'a [Range]) -> Self {
        Self { bytes, words }
    }
    /// How many words there are, the name included.
    pub fn len(&self) -> usize {
        self.words.len()
    }
    /// Whether there is not even a name.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
    /// Word `i`. The arity of the command's row says which words are there.
    #[inline]
    pub fn at(&self, i: usize) -> &'a [u8] {
        self.words[i].of(self.bytes)
    }
    /// Word `i`, if there is one.
    pub fn get(&self, i: usize) -> Option<&'a [u8]> {
        self.words.get(i).map(|w| w.of(self.bytes))
    }
    /// All words from `first` on.
    pub fn iter_from(&self, first: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.bytes;
        self.words[first.min(self.words.len())..].iter().map(move |w| w.of(bytes))
    }
    /// All words from `first` on, as slices side by side.
    pub fn slices_from(&self, first: usize) -> Slices<'a> {
        self.iter_from(first).collect()
    }
    /// The words without the first `n`.
    pub fn skip(&self, n: usize) -> Self {
        Self { bytes: self.bytes, words: &self.words[n.min(self.words.len())..] }
    }
    /// A cursor that begins at word `first`.
    pub fn cursor(&self, first: usize) -> Cursor<'a> {
        Cursor { args: *self, next: first }
    }
}

/// Walks over arguments from left to right.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    args: Args<'a>,
    next: usize,
}

impl<'a> Cursor<'a> {
    /// Words not yet taken.
    pub fn remaining(&self) -> usize {
        self.args.len().saturating_sub(self.next)
    }
    /// Whether all words are taken.
    pub fn is_empty(&self) -> bool {
        self.remaining() == 0
    }
    /// The next word, not taken.
    pub fn peek(&self) -> Option<&'a [u8]> {
        self.args.get(self.next)
    }
    /// Takes the next word, which an option needs: without it `ERR syntax error`.
    pub fn word(&mut self) -> Result<&'a [u8], ErrorReply> {
        self.next().ok_or(error::SYNTAX)
    }
    /// Takes the next word if it is `keyword` in any case.
    pub fn keyword(&mut self, keyword: &str) -> bool {
        let here = self.peek().is_some_and(|w| is(w, keyword));
        self.next += usize::from(here);
        here
    }
    /// Takes the next word as an integer.
    pub fn integer(&mut self) -> Result<i64, ErrorReply> {
        integer(self.word()?)
    }
}

impl<'a> Iterator for Cursor<'a> {
    type Item = &'a [u8];
    fn next(&mut self) -> Option<&'a [u8]> {
        let word = self.peek()?;
        self.next += 1;
        Some(word)
    }
}

/// Whether `word` is `keyword` in any case.
pub fn is(word: &[u8], keyword: &str) -> bool {
    word.eq_ignore_ascii_case(keyword.as_bytes())
}

/// An argument as an integer, or Redis's error.
pub fn integer(word: &[u8]) -> Result<i64, ErrorReply> {
    parse_i64(word).ok_or(error::NOT_AN_INTEGER)
}

/// An argument as a 32-bit integer, or Redis's error.
pub fn integer_32(word: &[u8]) -> Result<i32, ErrorReply> {
    i32::try_from(integer(word)?).map_err(|_| error::NOT_32_BITS)
}

/// An argument as a double, or Redis's error.
pub fn double(word: &[u8]) -> Result<f64, ErrorReply> {
    parse_f64(word).ok_or(error::NOT_A_FLOAT)
}

/// An integer in its one canonical form, as Redis's `string2ll` takes it: no plus sign, no leading
/// zeros, no blanks, no `-0`.
#[inline]
pub fn parse_i64(word: &[u8]) -> Option<i64> {
    let (negative, digits) = match word {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, word),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut magnitude = 0u64;
    for digit in digits {
        let value = digit.wrapping_sub(b'0');
        if value > 9 {
            return None;
        }
        // 19 digits stay below 10^19, which fits in 64 bits without a sign.
        magnitude = magnitude * 10 + u64::from(value);
    }
    match negative {
        true => 0i64.checked_sub_unsigned(magnitude),
        false => i64::try_from(magnitude).ok(),
    }
}

/// An unsigned 64-bit integer as `strtoul` in base 10 takes a whole argument (SCAN's cursor): with
/// a sign, a minus negating in 64 bits; no digits at all are zero, but only where nothing stands. A
/// C string ends at its first NUL.
pub fn parse_u64(word: &[u8]) -> Option<u64> {
    let word = word.split(|byte| *byte == 0).next().unwrap_or_default();
    let (negative, digits) = match word {
        [] => return Some(0),
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, word),
    };
    if digits.is_empty() {
        return None;
    }
    let magnitude = digits.iter().try_fold(0u64, |n, digit| match digit {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })?;
    Some(if negative { magnitude.wrapping_neg() } else { magnitude })
}

/// A double as Redis's `string2d` takes it, without NaN: C's `strtod` over the whole word, no blank
/// before it, neither overflow nor underflow to zero.
pub fn parse_f64(word: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(word).ok()?;
    let (sign, magnitude) = match text.as_bytes() {
        [b'-', ..] => (-1.0, &text[1..]),
        [b'+', ..] => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if let Some(hex) = magnitude.strip_prefix("0x").or_else(|| magnitude.strip_prefix("0X")) {
        return hexadecimal(hex).map(|n| sign * n);
    }
    if magnitude.eq_ignore_ascii_case("inf") || magnitude.eq_ignore_ascii_case("infinity") {
        return Some(sign * f64::INFINITY);
    }
    if !magnitude.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let n: f64 = magnitude.parse().ok()?;
    let mantissa = magnitude.split(['e', 'E']).next().unwrap_or_default();
    let underflow = n == 0.0 && mantissa.bytes().any(|b| matches!(b, b'1'..=b'9'));
    (n.is_finite() && !underflow).then_some(sign * n)
}

/// `1.8p3` behind C's `0x`. Exact up to 53 bits of mantissa, beyond that rounded once.
fn hexadecimal(text: &str) -> Option<f64> {
    let (mantissa, exponent) = match text.split_once(['p', 'P']) {
        Some((m, e)) => (m, e.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.len() + fraction.len() == 0 || whole.len() + fraction.len() > 15 {
        return None;
    }
    let digits = u64::from_str_radix(&format!("{whole}{fraction}"), 16).ok()?;
    let shift = exponent.checked_sub(4 * i32::try_from(fraction.len()).ok()?)?;
    let n = digits as f64 * 2f64.powi(shift);
    (n.is_finite() && (n != 0.0 || digits == 0)).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_have_one_form() {
        for (text, n) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("99999999999999999999", None),
            ("-0", None),
            ("+1", None),
            ("01", None),
            (" 1", None),
            ("1 ", None),
            ("", None),
            ("-", None),
            ("1a", None),
        ] {
            assert_eq!(parse_i64(text.as_bytes()), n, "{text:?}");
        }
    }

    #[test]
    fn cursors_are_what_strtoul_takes() {
        for (text, n) in [
            ("0", Some(0)),
            ("", Some(0)),
            ("007", Some(7)),
            ("+7", Some(7)),
            ("-1", Some(u64::MAX)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("-", None),
            (" 1", None),
            ("1 ", None),
            ("abc", None),
        ] {
            assert_eq!(parse_u64(text.as_bytes()), n, "{text:?}");
        }
        assert_eq!(parse_u64(b"\0a"), Some(0), "a C string ends at its first NUL");
    }

    #[test]
    fn doubles_are_what_strtod_takes() {
        for (text, n) in [
            ("1.5", Some(1.5)),
            ("+.5", Some(0.5)),
            ("5.", Some(5.0)),
            ("1e3", Some(1000.0)),
            ("-inf", Some(f64::NEG_INFINITY)),
            ("Infinity", Some(f64::INFINITY)),
            ("0x1p3", Some(8.0)),
            ("0x.8", Some(0.5)),
            ("1e400", None),
            ("1e-400", None),
            ("0e-400", Some(0.0)),
            ("nan", None),
            (" 1", None),
            ("1 ", None),
            ("", None),
            (".", None),
            ("1e", None),
            ("--1", None),
        ] {
            assert_eq!(parse_f64(text.as_bytes()), n, "{text:?}");
        }
    }
}
