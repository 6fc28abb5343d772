//! What the protocol of values that change in place costs, on a value of 8 bytes: a read and a write
//! alone, and a read while another thread writes the same value without a pause.
//!
//! The protocol is private to the store, so its production file is compiled into this program too.

use crate::production_seqlock::{initial, read, write};
use crate::{Rows, repeated};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// A value as a record holds it: its seqlock, and beside it its bytes.
#[repr(align(64))]
struct Value {
    live: AtomicU64,
    bytes: AtomicU64,
}

impl Value {
    fn get(&self) -> u64 {
        loop {
            if let Some(bytes) = read(&self.live, |_| self.bytes.load(Ordering::Relaxed)) {
                return bytes;
            }
        }
    }

    fn set(&self, bytes: u64) {
        write(&self.live, 8, || self.bytes.store(bytes, Ordering::Relaxed));
    }
}

pub(crate) fn run(rows: &mut Rows) {
    let value = Value { live: AtomicU64::new(initial(8)), bytes: AtomicU64::new(0) };
    rows.row("seqlock: read", |count| repeated(count, || black_box(&value).get()));
    rows.row("seqlock: write", |count| repeated(count, || black_box(&value).set(black_box(7))));
    rows.row("seqlock: read while another thread writes", |count| {
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    black_box(&value).set(black_box(7));
                }
            });
            let time = repeated(count, || black_box(&value).get());
            ended.store(true, Ordering::Relaxed);
            time
        })
    });
}
