//! What the keyed hash (SipHash-1-3) of a key costs, by the key's length.

use crate::{Rows, repeated};
use ferrite_index::HashSecret;
use std::hint::black_box;

pub(crate) fn run(rows: &mut Rows) {
    let secret = HashSecret::from_bytes([7; 16]);
    for length in [8, 16, 44] {
        let key = vec![b'k'; length];
        rows.row(&format!("key hash, {length} bytes"), |count| {
            repeated(count, || secret.hash(black_box(&key)))
        });
    }
}
