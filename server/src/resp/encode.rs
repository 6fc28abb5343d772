//! Replies, written straight into a connection's output, in RESP2 or RESP3.
//!
//! Promise: each method writes one complete element (or the header of an aggregate, whose
//! elements the caller writes next). Nothing is allocated beyond the output itself.

use super::super::error::ErrorReply;

/// The version of the protocol that a client speaks; HELLO changes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocol {
    /// What a connection begins with.
    #[default]
    Resp2,
    /// Maps, sets, doubles, booleans and pushes have types of their own.
    Resp3,
}

/// Writes replies to the end of an output buffer.
#[derive(Debug)]
pub struct Reply<'o> {
    out: &'o mut Vec<u8>,
    protocol: Protocol,
}

/// A place in the output at which the header of an aggregate is still to be written.
#[derive(Debug)]
#[must_use = "an aggregate without its header is no reply"]
pub struct Deferred(usize);

impl<'o> Reply<'o> {
    /// Replies in `protocol`, to the end of `out`.
    pub fn new(out: &'o mut Vec<u8>, protocol: Protocol) -> Self {
        Self { out, protocol }
    }
    /// Whether the client speaks RESP3.
    pub fn is_resp3(&self) -> bool {
        self.protocol == Protocol::Resp3
    }
    /// HELLO: the reply that follows is in `protocol`.
    pub fn switch(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }
    /// Bytes in the output so far, earlier replies included.
    pub fn position(&self) -> usize {
        self.out.len()
    }
    /// Takes back everything written since [`Reply::position`] was `position`.
    pub fn truncate(&mut self, position: usize) {
        self.out.truncate(position);
    }
    /// `+OK`.
    pub fn ok(&mut self) {
        self.out.extend_from_slice(b"+OK\r\n");
    }
    /// A simple string: `+text`. No line ends in it.
    pub fn simple(&mut self, text: &str) {
        debug_assert!(!text.contains(['\r', '\n']));
        self.line(b'+', text.as_bytes());
    }
    /// An error: `-text`.
    pub fn error(&mut self, error: &ErrorReply) {
        self.out.push(b'-');
        let clean = |b: &u8| if matches!(b, b'\r' | b'\n') { b' ' } else { *b };
        self.out.extend(error.0.iter().map(clean));
        self.out.extend_from_slice(b"\r\n");
    }
    /// An integer: `:n`.
    pub fn integer(&mut self, n: i64) {
        self.header(b':', n);
    }
    /// A count or a length as an integer.
    pub fn count(&mut self, n: usize) {
        self.integer(i64::try_from(n).unwrap_or(i64::MAX));
    }
    /// A bulk string: `$length`, the bytes.
    #[inline]
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.length(b'$', bytes.len());
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }
    /// An integer as a bulk string.
    pub fn bulk_integer(&mut self, n: i64) {
        self.bulk(itoa::Buffer::new().format(n).as_bytes());
    }
    /// No value: `$-1` or `_`.
    pub fn null(&mut self) {
        self.out.extend_from_slice(if self.is_resp3() { b"_\r\n" } else { b"$-1\r\n" });
    }
    /// No array: `*-1` or `_`.
    pub fn null_array(&mut self) {
        self.out.extend_from_slice(if self.is_resp3() { b"_\r\n" } else { b"*-1\r\n" });
    }
    /// The header of an array of `n` elements.
    pub fn array(&mut self, n: usize) {
        self.length(b'*', n);
    }
    /// The header of a map of `n` pairs: in RESP2 an array of twice as many elements.
    pub fn map(&mut self, n: usize) {
        if self.is_resp3() { self.length(b'%', n) } else { self.length(b'*', 2 * n) }
    }
    /// The header of a set of `n` elements: in RESP2 an array.
    pub fn set(&mut self, n: usize) {
        self.length(if self.is_resp3() { b'~' } else { b'*' }, n);
    }
    /// The header of a push message of `n` elements: in RESP2 an array.
    pub fn push(&mut self, n: usize) {
        self.length(if self.is_resp3() { b'>' } else { b'*' }, n);
    }
    /// A double with Redis 7.0's 17 digits: `,n`, in RESP2 a bulk string.
    pub fn double(&mut self, n: f64) {
        let text = format_double(n);
        if self.is_resp3() { self.line(b',', text.as_bytes()) } else { self.bulk(text.as_bytes()) }
    }
    /// A boolean: `#t`, in RESP2 `:1`.
    pub fn boolean(&mut self, yes: bool) {
        self.out.extend_from_slice(match (self.is_resp3(), yes) {
            (true, true) => b"#t\r\n",
            (true, false) => b"#f\r\n",
            (false, true) => b":1\r\n",
            (false, false) => b":0\r\n",
        });
    }
    /// A text for people, with its form in three letters (`txt`, `mkd`): in RESP2 a bulk string.
    pub fn verbatim(&mut self, form: &str, text: &[u8]) {
        debug_assert_eq!(form.len(), 3);
        if !self.is_resp3() {
            return self.bulk(text);
        }
        self.length(b'=', text.len() + 4);
        self.out.extend_from_slice(form.as_bytes());
        self.out.push(b':');
        self.out.extend_from_slice(text);
        self.out.extend_from_slice(b"\r\n");
    }
    /// Begins an aggregate whose size is known only after its elements are written.
    pub fn defer(&mut self) -> Deferred {
        Deferred(self.out.len())
    }
    /// Ends a deferred array that got `n` elements. Moves them by the header's size.
    pub fn finish_array(&mut self, begun: Deferred, n: usize) {
        self.finish(begun, b'*', n);
    }
    /// Ends a deferred set that got `n` elements.
    pub fn finish_set(&mut self, begun: Deferred, n: usize) {
        let kind = if self.is_resp3() { b'~' } else { b'*' };
        self.finish(begun, kind, n);
    }
    /// Ends a deferred map that got `n` pairs.
    pub fn finish_map(&mut self, begun: Deferred, n: usize) {
        let (kind, n) = if self.is_resp3() { (b'%', n) } else { (b'*', 2 * n) };
        self.finish(begun, kind, n);
    }

    fn finish(&mut self, begun: Deferred, kind: u8, n: usize) {
        let end = self.out.len();
        self.length(kind, n);
        let header = self.out.len() - end;
        self.out[begun.0..].rotate_right(header);
    }
    fn line(&mut self, kind: u8, text: &[u8]) {
        self.out.push(kind);
        self.out.extend_from_slice(text);
        self.out.extend_from_slice(b"\r\n");
    }
    #[inline]
    fn length(&mut self, kind: u8, n: usize) {
        if n < 10 {
            self.out.extend_from_slice(&[kind, b'0' + n as u8, b'\r', b'\n']);
        } else {
            self.header(kind, n as i64);
        }
    }
    fn header(&mut self, kind: u8, n: i64) {
        self.line(kind, itoa::Buffer::new().format(n).as_bytes());
    }
}

/// A double as C's `%.17g` prints it; infinities as `inf` and `-inf`, no number as `nan`.
pub fn format_double(n: f64) -> String {
    if n.is_nan() {
        return "nan".into();
    }
    if n.is_infinite() {
        return if n > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{n:.16e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("`{:e}` writes an e");
    let exponent: i32 = exponent.parse().expect("`{:e}` writes an integer after the e");
    if (-4..17).contains(&exponent) {
        let places = usize::try_from(16 - exponent).expect("at most 17 by the range above");
        return without_trailing_zeros(&format!("{n:.places$}")).into();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", without_trailing_zeros(mantissa), exponent.abs())
}

fn without_trailing_zeros(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(protocol: Protocol, f: impl FnOnce(&mut Reply<'_>)) -> String {
        let mut out = b"+earlier\r\n".to_vec();
        f(&mut Reply::new(&mut out, protocol));
        String::from_utf8(out.split_off(10)).unwrap()
    }

    #[test]
    fn doubles_print_seventeen_digits() {
        for (n, text) in [
            (3.1, "3.1000000000000001"),
            (3.0, "3"),
            (0.1, "0.10000000000000001"),
            (-0.0, "-0"),
            (1e17, "1e+17"),
            (1e16, "10000000000000000"),
            (0.0001, "0.0001"),
            (0.00001, "1.0000000000000001e-05"),
            (1.5e300, "1.5000000000000001e+300"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(format_double(n), text);
        }
    }

    #[test]
    fn each_type_in_both_protocols() {
        type Write = fn(&mut Reply<'_>);
        let cases: [(Write, &str, &str); 9] = [
            (|r| r.null(), "$-1\r\n", "_\r\n"),
            (|r| r.null_array(), "*-1\r\n", "_\r\n"),
            (|r| r.map(2), "*4\r\n", "%2\r\n"),
            (|r| r.set(12), "*12\r\n", "~12\r\n"),
            (|r| r.double(0.5), "$3\r\n0.5\r\n", ",0.5\r\n"),
            (|r| r.boolean(true), ":1\r\n", "#t\r\n"),
            (|r| r.verbatim("txt", b"hi"), "$2\r\nhi\r\n", "=6\r\ntxt:hi\r\n"),
            (|r| r.bulk_integer(-12), "$3\r\n-12\r\n", "$3\r\n-12\r\n"),
            (|r| r.error(&ErrorReply::new("ERR a\r\nb")), "-ERR a  b\r\n", "-ERR a  b\r\n"),
        ];
        for (write, resp2, resp3) in cases {
            assert_eq!(written(Protocol::Resp2, write), resp2);
            assert_eq!(written(Protocol::Resp3, write), resp3);
        }
    }

    #[test]
    fn a_deferred_header_moves_before_its_elements() {
        let text = written(Protocol::Resp3, |r| {
            let begun = r.defer();
            (0..11).for_each(|n| r.integer(n));
            r.finish_set(begun, 11);
        });
        assert!(text.starts_with("~11\r\n:0\r\n:1\r\n"), "{text}");
        assert!(text.ends_with(":10\r\n"), "{text}");
    }
}
