//! What the index costs when the bucket is in the cache: a look without a latch, the latch of one
//! writer, a share of a reader of several keys; alone, beside another thread, and against one.

use crate::{Rows, repeated};
use ferrite_benches::keys::Key;
use ferrite_benches::timing::side_by_side;
use ferrite_index::{
    Address, Busy, Epoch, HashIndex, HashSecret, IndexConfig, KeyHash, Participant,
};
use std::hint::{black_box, spin_loop};
use std::sync::Arc;

pub(crate) fn run(rows: &mut Rows) {
    let epoch = Arc::new(Epoch::new(4));
    let seat = || epoch.register("bench").expect("there are seats left");
    let config = IndexConfig { smallest_bits: 10, max_bytes: 0, huge_pages: false };
    let index = HashIndex::new(config, Arc::clone(&epoch)).expect("64 KiB of memory");
    let secret = HashSecret::from_bytes([7; 16]);
    let hashes = [1, 2].map(|number| secret.hash(Key::of(number).bytes()));
    assert_ne!(index.bucket_number(hashes[0]), index.bucket_number(hashes[1]));
    let participant = seat();
    for (n, hash) in (1..).zip(hashes) {
        let pin = participant.pin();
        let latch = index.latch(&pin, hash).expect("nobody else is here");
        latch.reserve(hash, false).expect("the index has no limit");
        latch.set(hash, false, Address::new(n));
    }

    let pin = participant.pin();
    rows.row("index: a probe that finds its entry", |count| {
        repeated(count, || index.probe(&pin, black_box(hashes[0]), false).map(|p| p.address()))
    });
    rows.row("bucket latch: take and let go", |count| {
        repeated(count, || drop(black_box(index.latch(&pin, black_box(hashes[0])))))
    });
    rows.row("bucket latch: take a share and let go", |count| {
        repeated(count, || drop(black_box(index.latch_shared(&pin, black_box(hashes[0])))))
    });
    drop(pin);
    let together = |count, hash_of: fn(usize) -> usize| {
        let prepare = |thread| (seat(), hashes[hash_of(thread)]);
        side_by_side(2, prepare, |(participant, hash)| latches(&index, &participant, hash, count))
    };
    rows.row("bucket latch: 2 threads, a bucket each", |count| together(count, |thread| thread));
    rows.row("bucket latch: 2 threads, the same bucket", |count| together(count, |_| 0));
}

/// Takes the latch so many times; a busy one is tried again.
fn latches(index: &HashIndex, participant: &Participant, hash: KeyHash, count: u64) {
    let pin = participant.pin();
    for _ in 0..count {
        loop {
            match index.latch(&pin, black_box(hash)) {
                Ok(latch) => break drop(black_box(latch)),
                Err(Busy) => spin_loop(),
            }
        }
    }
}
