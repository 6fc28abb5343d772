//! What the tests of this folder share.

use super::effect::{Effect, Entry};

/// An entry for database 0.
pub(super) fn entry(position: u64, time_ms: u64, effect: Effect<'_>) -> Entry<'_> {
    Entry { position, time_ms, database: 0, effect }
}

pub(super) fn delete(key: &[u8]) -> Effect<'_> {
    Effect::Delete { key }
}

/// The words of one command in RESP.
pub(super) fn words(command: &[u8]) -> Vec<&[u8]> {
    let mut rest = command;
    let count = take_number(&mut rest, b'*');
    let words = (0..count).map(|_| {
        let length = take_number(&mut rest, b'$');
        let (word, behind) = rest.split_at(length);
        rest = behind.strip_prefix(b"\r\n").expect("a line end");
        word
    });
    let words = words.collect();
    assert_eq!(rest, b"", "one command");
    words
}

fn take_number(rest: &mut &[u8], sign: u8) -> usize {
    let end = rest.iter().position(|b| *b == b'\r').expect("a line");
    let line = &rest[..end];
    assert_eq!(line[0], sign);
    *rest = &rest[end + 2..];
    std::str::from_utf8(&line[1..]).expect("digits").parse().expect("a number")
}
