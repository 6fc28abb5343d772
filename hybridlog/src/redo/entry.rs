//! What the redo ring carries: the effects of writes, not the commands that had them.
//!
//! ```text
//!   header | time (Unix ms) | argument | key bytes u32, value bytes u32 | key, padded | value, padded
//! ```
//!
//! Effects are exact and need no clock: an expiry is absolute, a key that expired is deleted. An
//! entry above a quarter of the ring lies aside, in a buffer of its own, and the ring carries its
//! place in the order only.

use super::ring::{Reserved, Ring};

/// Words before an entry's bytes.
const FIXED_WORDS: u64 = 4;

/// One effect, as whoever writes it has it. Databases are named by their slots.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Effect<'a> {
    Put {
        key: &'a [u8],
        value: &'a [u8],
        expires_at_ms: Option<u64>,
    },
    Delete {
        key: &'a [u8],
    },
    Expire {
        key: &'a [u8],
        at_ms: Option<u64>,
    },
    Flush,
    FlushAll,
    /// Exchanges the slots of two databases.
    Swap {
        with: u8,
    },
    /// The effects up to `End` are one.
    Begin,
    End,
    /// A cut: what comes after belongs to the checkpoint of this mark.
    Mark(u64),
}

/// Never renumber while a ring can outlive a process; it cannot now.
mod kind {
    pub const PUT: u8 = 1;
    pub const DELETE: u8 = 2;
    pub const EXPIRE: u8 = 3;
    pub const PERSIST: u8 = 4;
    pub const FLUSH: u8 = 5;
    pub const FLUSH_ALL: u8 = 6;
    pub const SWAP: u8 = 7;
    pub const BEGIN: u8 = 8;
    pub const END: u8 = 9;
    pub const MARK: u8 = 10;
}

/// Set in a header's tag when the bytes lie aside.
const ASIDE: u32 = 1 << 8;

impl<'a> Effect<'a> {
    fn bytes(&self) -> (&'a [u8], &'a [u8]) {
        match *self {
            Self::Put { key, value, .. } => (key, value),
            Self::Delete { key } | Self::Expire { key, .. } => (key, &[]),
            _ => (&[], &[]),
        }
    }

    fn byte_words(&self) -> u64 {
        let (key, value) = self.bytes();
        (key.len().div_ceil(8) + value.len().div_ceil(8)) as u64
    }

    /// Whether the entry is too large for the ring itself.
    pub fn lies_aside(&self, ring: &Ring) -> bool {
        FIXED_WORDS + self.byte_words() > ring.capacity() / 4
    }

    /// Words of the ring that the entry takes.
    pub fn words(&self, ring: &Ring) -> u64 {
        if self.lies_aside(ring) { FIXED_WORDS } else { FIXED_WORDS + self.byte_words() }
    }

    fn argument(&self) -> u64 {
        match *self {
            // In the ring as in memory, 0 is no expiry: one in 1970 has passed all the same.
            Self::Put { expires_at_ms, .. } => expires_at_ms.map_or(0, |at| at.max(1)),
            Self::Expire { at_ms, .. } => at_ms.unwrap_or(0),
            Self::Swap { with } => u64::from(with),
            Self::Mark(mark) => mark,
            _ => 0,
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Put { .. } => kind::PUT,
            Self::Delete { .. } => kind::DELETE,
            Self::Expire { at_ms: Some(_), .. } => kind::EXPIRE,
            Self::Expire { at_ms: None, .. } => kind::PERSIST,
            Self::Flush => kind::FLUSH,
            Self::FlushAll => kind::FLUSH_ALL,
            Self::Swap { .. } => kind::SWAP,
            Self::Begin => kind::BEGIN,
            Self::End => kind::END,
            Self::Mark(_) => kind::MARK,
        }
    }

    /// Fills the words that were reserved for it. Bytes that lie aside are the caller's to keep.
    pub fn fill(&self, reserved: Reserved<'_>, slot: u8, time_ms: u64, aside: bool) {
        let (key, value) = self.bytes();
        reserved.set(1, time_ms);
        reserved.set(2, self.argument());
        reserved.set(3, (value.len() as u64) << 32 | key.len() as u64);
        if !aside {
            reserved.set_bytes(FIXED_WORDS, key);
            reserved.set_bytes(FIXED_WORDS + key.len().div_ceil(8) as u64, value);
        }
        reserved.finish(self.kind(), u32::from(slot) | if aside { ASIDE } else { 0 });
    }

    /// The bytes that lie aside.
    pub fn aside(&self) -> Box<[u8]> {
        let (key, value) = self.bytes();
        [key, value].concat().into_boxed_slice()
    }
}

/// What one entry of the redo log did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RedoEffect<'a> {
    /// The key has this value now, and this expiry (Unix ms) or none.
    Put {
        /// The key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
        /// Its expiry.
        expires_at_ms: Option<u64>,
    },
    /// The key is gone.
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// The key, which is there, expires then (Unix ms), or no more.
    Expire {
        /// The key.
        key: &'a [u8],
        /// Its expiry.
        at_ms: Option<u64>,
    },
    /// The database is empty.
    Flush,
    /// All databases are empty.
    FlushAll,
    /// The database has changed places with this one.
    Swap {
        /// The other database.
        with: u8,
    },
    /// The effects up to `End` are one: all of them or none.
    Begin,
    /// See `Begin`.
    End,
    /// What follows is not part of the checkpoint of this mark; all before is.
    Mark(u64),
}

/// One entry of the redo log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RedoEntry<'a> {
    /// Where the entry ends: it is durable once [`RedoReader::durable`](super::RedoReader::durable)
    /// was told as much.
    pub position: u64,
    /// When it was written, in Unix milliseconds. It may lie before that of the entry before.
    pub time_ms: u64,
    /// The database that it concerns.
    pub database: u8,
    /// What it did.
    pub effect: RedoEffect<'a>,
}

/// An entry as it lies in the ring, copied out.
pub(crate) struct Raw {
    kind: u8,
    pub slot: u8,
    pub time_ms: u64,
    argument: u64,
    key_length: usize,
    /// Where the value begins in the bytes: the key is padded in the ring, and not aside.
    value_at: usize,
    value_length: usize,
    pub lies_aside: bool,
}

impl Raw {
    /// Reads the entry at `position`, whose header was seen; its bytes go to the beginning of `bytes`,
    /// which only grows, unless they lie aside.
    pub fn read(
        ring: &Ring,
        position: u64,
        header: super::ring::Header,
        bytes: &mut Vec<u8>,
    ) -> Self {
        let lengths = ring.word(position + 3);
        let key_length = (lengths & u64::from(u32::MAX)) as usize;
        let lies_aside = header.tag() & ASIDE != 0;
        if !lies_aside {
            let room = 8 * (header.words() - FIXED_WORDS) as usize;
            if bytes.len() < room {
                bytes.resize(room, 0);
            }
            ring.bytes(position + FIXED_WORDS, &mut bytes[..room]);
        }
        Self {
            kind: header.kind(),
            slot: header.tag() as u8,
            time_ms: ring.word(position + 1),
            argument: ring.word(position + 2),
            key_length,
            value_at: if lies_aside { key_length } else { key_length.next_multiple_of(8) },
            value_length: (lengths >> 32) as usize,
            lies_aside,
        }
    }

    /// What it did, with its bytes.
    pub fn effect<'a>(&self, bytes: &'a [u8]) -> RedoEffect<'a> {
        let (key, value) =
            (&bytes[..self.key_length], &bytes[self.value_at..][..self.value_length]);
        match self.kind {
            kind::PUT => {
                let expires_at_ms = (self.argument != 0).then_some(self.argument);
                RedoEffect::Put { key, value, expires_at_ms }
            }
            kind::DELETE => RedoEffect::Delete { key },
            kind::EXPIRE => RedoEffect::Expire { key, at_ms: Some(self.argument) },
            kind::PERSIST => RedoEffect::Expire { key, at_ms: None },
            kind::FLUSH => RedoEffect::Flush,
            kind::FLUSH_ALL => RedoEffect::FlushAll,
            kind::SWAP => RedoEffect::Swap { with: self.argument as u8 },
            kind::BEGIN => RedoEffect::Begin,
            kind::END => RedoEffect::End,
            kind::MARK => RedoEffect::Mark(self.argument),
            other => unreachable!("no entry has the kind {other}"),
        }
    }
}
