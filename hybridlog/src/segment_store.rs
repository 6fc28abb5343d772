//! Sealed segments as objects, behind one trait, so that the log does not know where they lie.
//!
//! A sealed segment never changes: an object is put once under a name that is never used again,
//! read in ranges, and at last deleted. `ferrite-cloud` implements this over object stores.
//!
//! Promises:
//! * A completed [`SegmentStore::put`] is durable as far as the provider makes it so, and whole: no
//!   reader ever sees a part of an object, and no put replaces one.
//! * Operations may complete in any order. A completion is called exactly once, on a thread of the
//!   implementation, also when the store is closed meanwhile ([`SegmentStoreError::Closed`]). It
//!   must not block.
//! * Nothing here waits: the calls hand over the work and return.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Names one store for its whole life. A restored copy gets a new one, so that two stores never
/// write or delete each other's objects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(pub [u8; 16]);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreId({self})")
    }
}

/// A text that is not 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a store id is 32 lower-case hexadecimal digits")]
pub struct ParseStoreIdError;

impl FromStr for StoreId {
    type Err = ParseStoreIdError;
    fn from_str(text: &str) -> Result<Self, ParseStoreIdError> {
        let digits = text.as_bytes();
        let lower_hex = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != 32 || !digits.iter().all(lower_hex) {
            return Err(ParseStoreIdError);
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            let value = |digit: u8| if digit <= b'9' { digit - b'0' } else { digit - b'a' + 10 };
            *byte = value(pair[0]) << 4 | value(pair[1]);
        }
        Ok(Self(id))
    }
}

/// An object's name. Sealing a segment again, after compaction or with another key, makes a new
/// generation; neither number is ever used twice in one store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SealedName {
    /// The store that the segment belongs to.
    pub store: StoreId,
    /// The segment's number in the log.
    pub segment: u64,
    /// Which sealing of it.
    pub generation: u64,
}

impl fmt::Display for SealedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {} generation {} of store {}", self.segment, self.generation, self.store)
    }
}

/// What an object holds, as far as it can be told without interpreting it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealedContent {
    /// Length in bytes.
    pub length: u64,
    /// CRC32C (Castagnoli) of all bytes.
    pub crc32c: u32,
}

impl fmt::Display for SealedContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes with CRC32C {:08x}", self.length, self.crc32c)
    }
}

/// One row of [`SegmentStore::list`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SealedObject {
    /// The object.
    pub name: SealedName,
    /// Its length in bytes.
    pub length: u64,
}

/// Why an operation on a sealed segment failed. Nothing was changed, except where it says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentStoreError {
    /// There is no such object.
    #[error("{location} does not exist; restore it from a copy of the bucket")]
    NotFound {
        /// Where it was looked for.
        location: String,
    },
    /// A put found its name taken. Objects are never overwritten: when this put is a retry,
    /// [`SegmentStore::verify`] tells whether the first try arrived.
    #[error("{location} exists already and is never overwritten")]
    AlreadyExists {
        /// The object.
        location: String,
    },
    /// A range that reaches beyond the end of the object.
    #[error(
        "{location} has {size} bytes, so {length} bytes at offset {offset} cannot be read: \
         it is damaged or not the object that was uploaded"
    )]
    OutOfRange {
        /// The object.
        location: String,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// The object's length.
        size: u64,
    },
    /// An object holds something else than was put there.
    #[error("{location} holds {found}, not {expected}; upload the segment again or restore it")]
    Different {
        /// The object.
        location: String,
        /// What was put there.
        expected: SealedContent,
        /// What is there. When the length differs already, the bytes are not read and the
        /// checksum is 0.
        found: SealedContent,
    },
    /// The local file of a put could not be read, or changed its length meanwhile.
    #[error("reading {path}: {message}")]
    Source {
        /// The local file.
        path: PathBuf,
        /// What happened.
        message: String,
    },
    /// The provider failed or could not be reached. A put may have arrived all the same; anything
    /// can be tried again.
    #[error("{action} {location}: {message}")]
    Provider {
        /// What was tried, as a verb.
        action: &'static str,
        /// The object or prefix.
        location: String,
        /// The provider's answer.
        message: String,
    },
    /// The store was closed before the operation ended; whether it took effect is not known.
    #[error("the segment store was closed")]
    Closed,
}

/// Called once with the outcome.
pub type SegmentDone<T> = Box<dyn FnOnce(Result<T, SegmentStoreError>) + Send>;

/// Where sealed segments lie. See the module's promises.
pub trait SegmentStore: Send + Sync + 'static {
    /// Stores the local file `source` as a new object and completes with what was sent. The file
    /// must not change meanwhile. Fails with [`SegmentStoreError::AlreadyExists`] when the name is
    /// taken, and then leaves what is there as it is.
    fn put(&self, name: SealedName, source: PathBuf, done: SegmentDone<SealedContent>);

    /// Reads the whole object back and compares its length and checksum. The local copy may go
    /// only after this has succeeded.
    fn verify(&self, name: SealedName, expected: SealedContent, done: SegmentDone<()>);

    /// The object's length in bytes, without reading it.
    fn head(&self, name: SealedName, done: SegmentDone<u64>);

    /// Exactly `length` bytes from `offset`, in one request; fewer are
    /// [`SegmentStoreError::OutOfRange`]. A length of 0 is answered without asking the provider.
    fn read_range(&self, name: SealedName, offset: u64, length: usize, done: SegmentDone<Vec<u8>>);

    /// Every whole object of one store, sorted by name. Objects of other stores, unfinished uploads
    /// and whatever else lies in the bucket do not show.
    fn list(&self, store: StoreId, done: SegmentDone<Vec<SealedObject>>);

    /// Removes an object. One that is not there is a success, so that a delete can be tried again.
    fn delete(&self, name: SealedName, done: SegmentDone<()>);

    /// Removes what uploads of earlier processes of this store left unfinished, and completes with
    /// how many there were. Uploads of this process are not touched.
    fn remove_unfinished(&self, store: StoreId, done: SegmentDone<u64>);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_id_survives_its_text() {
        let id = StoreId(std::array::from_fn(|i| (i as u8).wrapping_mul(37)));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), 32);
    }

    #[test]
    fn other_texts_are_no_store_id() {
        let good = "00112233445566778899aabbccddeeff";
        assert!(good.parse::<StoreId>().is_ok());
        for bad in ["", &good[1..], &format!("{good}0"), &good.to_uppercase(), &"é".repeat(16)] {
            assert_eq!(bad.parse::<StoreId>(), Err(ParseStoreIdError), "{bad}");
        }
    }
}
