//! What a write did, and the command that does it again.
//!
//! Commands are deterministic: expiries are absolute, and an effect stands for what a command did
//! however it came to do it. The writer renders every write of the server here, so nothing is
//! allocated per entry and nothing goes through `format!`.

/// One effect with its place in the append-only file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where it lies in the order of all entries of this run; it only goes up.
    pub position: u64,
    /// When it was made, in Unix milliseconds.
    pub time_ms: u64,
    /// The database it changes.
    pub database: u8,
    /// What it does.
    pub effect: Effect<'a>,
}

/// What a write did to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect<'a> {
    /// The key has this string now, and this expiry or none.
    Put {
        /// The key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
        /// Unix milliseconds; without it the key stays until it is deleted.
        expires_at_ms: Option<u64>,
    },
    /// The key is gone.
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// The key has this expiry.
    Expire {
        /// The key.
        key: &'a [u8],
        /// Unix milliseconds.
        at_ms: u64,
    },
    /// The key has no expiry any more.
    Persist {
        /// The key.
        key: &'a [u8],
    },
    /// The database is empty.
    Flush,
    /// All databases are empty.
    FlushAll,
    /// The database and another one have changed places.
    Swap {
        /// The other one.
        with: u8,
    },
    /// Something that has no form of its own here.
    Verbatim {
        /// A whole command as a RESP array of bulk strings.
        command: &'a [u8],
    },
    /// What follows, up to [`Effect::End`], happened at once.
    Begin,
    /// The end of what happened at once.
    End,
}

/// What a command of the file asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// The commands that follow are for this database.
    Select(u8),
    /// Two databases change places; [`Effect::Swap`] with its database.
    Swap(u8, u8),
    /// Any other effect.
    Effect(Effect<'a>),
}

impl Effect<'_> {
    /// Appends the command that does this to `out`; `database` is the one it is for, which the
    /// commands before must have selected.
    #[inline]
    pub fn render(&self, database: u8, out: &mut Vec<u8>) {
        match *self {
            Self::Put { key, value, expires_at_ms: None } => {
                out.extend_from_slice(b"*3\r\n$3\r\nSET\r\n");
                bulk(key, out);
                bulk(value, out);
            }
            Self::Put { key, value, expires_at_ms: Some(at_ms) } => {
                out.extend_from_slice(b"*5\r\n$3\r\nSET\r\n");
                bulk(key, out);
                bulk(value, out);
                out.extend_from_slice(b"$4\r\nPXAT\r\n");
                number(at_ms, out);
            }
            Self::Delete { key } => {
                out.extend_from_slice(b"*2\r\n$3\r\nDEL\r\n");
                bulk(key, out);
            }
            Self::Expire { key, at_ms } => {
                out.extend_from_slice(b"*3\r\n$9\r\nPEXPIREAT\r\n");
                bulk(key, out);
                number(at_ms, out);
            }
            Self::Persist { key } => {
                out.extend_from_slice(b"*2\r\n$7\r\nPERSIST\r\n");
                bulk(key, out);
            }
            Self::Flush => out.extend_from_slice(b"*1\r\n$7\r\nFLUSHDB\r\n"),
            Self::FlushAll => out.extend_from_slice(b"*1\r\n$8\r\nFLUSHALL\r\n"),
            Self::Swap { with } => {
                out.extend_from_slice(b"*3\r\n$6\r\nSWAPDB\r\n");
                number(u64::from(database), out);
                number(u64::from(with), out);
            }
            Self::Verbatim { command } => {
                debug_assert!(command.starts_with(b"*") && command.ends_with(b"\r\n"));
                out.extend_from_slice(command);
            }
            Self::Begin => out.extend_from_slice(b"*1\r\n$5\r\nMULTI\r\n"),
            Self::End => out.extend_from_slice(b"*1\r\n$4\r\nEXEC\r\n"),
        }
    }
}

impl<'a> Step<'a> {
    /// What a command asks for: `words` are its arguments, `command` its bytes. A command in a form
    /// that [`Effect::render`] does not write is [`Effect::Verbatim`].
    pub fn of(words: &[&'a [u8]], command: &'a [u8]) -> Self {
        Self::known(words).unwrap_or(Self::Effect(Effect::Verbatim { command }))
    }

    fn known(words: &[&'a [u8]]) -> Option<Self> {
        let effect = match *words {
            [b"SELECT", database] => return Some(Self::Select(parse(database)?)),
            [b"SWAPDB", one, other] => return Some(Self::Swap(parse(one)?, parse(other)?)),
            [b"SET", key, value] => Effect::Put { key, value, expires_at_ms: None },
            [b"SET", key, value, b"PXAT", at_ms] => {
                Effect::Put { key, value, expires_at_ms: Some(parse(at_ms)?) }
            }
            [b"DEL", key] => Effect::Delete { key },
            [b"PEXPIREAT", key, at_ms] => Effect::Expire { key, at_ms: parse(at_ms)? },
            [b"PERSIST", key] => Effect::Persist { key },
            [b"FLUSHDB"] => Effect::Flush,
            [b"FLUSHALL"] => Effect::FlushAll,
            [b"MULTI"] => Effect::Begin,
            [b"EXEC"] => Effect::End,
            _ => return None,
        };
        Some(Self::Effect(effect))
    }
}

fn parse<T: TryFrom<u64>>(digits: &[u8]) -> Option<T> {
    super::text::parse_decimal(digits)?.try_into().ok()
}

/// Appends `SELECT database`.
pub(super) fn select(database: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(b"*2\r\n$6\r\nSELECT\r\n");
    number(u64::from(database), out);
}

/// Appends a bulk string.
#[inline]
fn bulk(bytes: &[u8], out: &mut Vec<u8>) {
    header(bytes.len(), out);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends a number as a bulk string.
#[inline]
fn number(value: u64, out: &mut Vec<u8>) {
    bulk(itoa::Buffer::new().format(value).as_bytes(), out);
}

/// Appends the header of a bulk string of so many bytes.
#[inline]
fn header(length: usize, out: &mut Vec<u8>) {
    let digit = |n: usize| b'0' + n as u8;
    match length {
        0..10 => out.extend_from_slice(&[b'$', digit(length), b'\r', b'\n']),
        10..100 => {
            let [tens, ones] = [digit(length / 10), digit(length % 10)];
            out.extend_from_slice(&[b'$', tens, ones, b'\r', b'\n']);
        }
        100..1000 => {
            let [hundreds, tens, ones] =
                [digit(length / 100), digit(length / 10 % 10), digit(length % 10)];
            out.extend_from_slice(&[b'$', hundreds, tens, ones, b'\r', b'\n']);
        }
        _ => {
            out.push(b'$');
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::words;
    use super::*;

    /// Each effect once, and sizes on both sides of each step of a length's digits.
    fn samples() -> Vec<Effect<'static>> {
        static BYTES: [u8; 1001] = [b'x'; 1001];
        let mut all = vec![
            Effect::Put { key: b"k", value: b"", expires_at_ms: None },
            Effect::Put {
                key: b"",
                value: b"\r\n\0*1\r\n",
                expires_at_ms: Some(1_763_800_000_123),
            },
            Effect::Put { key: b"k", value: b"v", expires_at_ms: Some(0) },
            Effect::Delete { key: b"#B part=" },
            Effect::Expire { key: b"k", at_ms: 7 },
            Effect::Persist { key: b"k" },
            Effect::Flush,
            Effect::FlushAll,
            Effect::Verbatim { command: b"*2\r\n$6\r\nAPPEND\r\n$1\r\nk\r\n" },
            Effect::Begin,
            Effect::End,
        ];
        all.extend([1, 9, 10, 99, 100, 999, 1000, 1001].map(|length| Effect::Put {
            key: &BYTES[..length],
            value: &BYTES[1..length],
            expires_at_ms: None,
        }));
        all
    }

    #[test]
    fn what_is_rendered_asks_for_the_same_effect() {
        for effect in samples() {
            let mut command = Vec::new();
            effect.render(3, &mut command);
            assert_eq!(Step::of(&words(&command), &command), Step::Effect(effect));
        }
        let mut command = Vec::new();
        Effect::Swap { with: 12 }.render(3, &mut command);
        assert_eq!(Step::of(&words(&command), &command), Step::Swap(3, 12));
        command.clear();
        select(15, &mut command);
        assert_eq!(Step::of(&words(&command), &command), Step::Select(15));
    }

    #[test]
    fn the_bytes_are_those_of_redis() {
        let mut out = Vec::new();
        Effect::Put { key: b"key", value: b"0123456789", expires_at_ms: Some(17) }
            .render(0, &mut out);
        let expected =
            "*5\r\n$3\r\nSET\r\n$3\r\nkey\r\n$10\r\n0123456789\r\n$4\r\nPXAT\r\n$2\r\n17\r\n";
        assert_eq!(String::from_utf8(out).expect("text"), expected);
    }

    #[test]
    fn other_forms_are_kept_as_they_are() {
        let forms = [
            "SET k v EX 1",
            "SET k v PXAT x",
            "SET k v PXAT -1",
            "DEL a b",
            "SELECT 256",
            "set k v",
        ];
        for form in forms {
            let words: Vec<&[u8]> = form.split(' ').map(str::as_bytes).collect();
            assert_eq!(
                Step::of(&words, b"*bytes\r\n"),
                Step::Effect(Effect::Verbatim { command: b"*bytes\r\n" }),
                "{form}"
            );
        }
    }
}
