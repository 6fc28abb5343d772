//! What going inside and leaving costs: the pin alone, through a gate, and a whole session's stay,
//! which loads the boundaries and reads the clock too. One stay serves a batch of operations.

use crate::{Rows, repeated};
use ferrite_benches::timing::side_by_side;
use ferrite_hybridlog::{Config, Store};
use ferrite_index::{Epoch, Gate, Participant};
use std::hint::black_box;
use std::sync::Arc;

pub(crate) fn run(rows: &mut Rows) {
    let epoch = Arc::new(Epoch::new(4));
    let seat = || epoch.register("bench").expect("there are seats left");
    let pins = |participant: &Participant, count| {
        for _ in 0..count {
            drop(black_box(participant.pin()));
        }
    };
    let participant = seat();
    rows.row("epoch: pin and unpin", |count| {
        repeated(count, || drop(black_box(participant.pin())))
    });
    rows.row("epoch: the same, 2 threads at once", |count| {
        side_by_side(2, |_| seat(), |participant| pins(&participant, count))
    });
    let gate = Gate::new();
    rows.row("epoch: enter through a gate and leave", |count| {
        repeated(count, || drop(black_box(participant.enter(&gate))))
    });
    let directory = tempfile::tempdir().expect("a directory for the store");
    let store = Store::open(Config::new(directory.path())).expect("a fresh store opens");
    let mut session = store.session(|| {});
    rows.row("a session enters and leaves", |count| {
        repeated(count, || drop(black_box(session.enter())))
    });
}
