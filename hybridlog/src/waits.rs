//! Shows that nobody waits while pinned: in debug builds each place that blocks says so itself, by
//! its own file and line.

use crate::checkpoint::take;
use crate::config::Config;
use crate::device::fault::FaultDevice;
use crate::device::{FileId, blocking};
use crate::redo::wait_while_full;
use crate::store::Inner;
use crate::store::alone::wait_for_room;
use crate::{Database, Store};
use ferrite_index::Address;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

thread_local! {
    /// Where this thread panicked last.
    static PANICKED_IN: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A store with more data than its memory holds.
fn cold_store() -> Store {
    let mut config = Config::new("simulated");
    (config.page_size, config.segment_size) = (4096, 4096);
    (config.mutable_size, config.readonly_size) = (4096, 4096);
    let store = Store::open_on(config, FaultDevice::new()).expect("opens");
    let mut session = store.blocking_session();
    for key in 0..20u64 {
        session.upsert(Database(0), &key.to_le_bytes(), &[1; 900]).expect("writes");
    }
    store
}

#[test]
fn every_place_that_waits_refuses_to_while_pinned() {
    type Wait = fn(&Store, &Arc<Inner>);
    let waits: [(&str, Wait); 11] = [
        ("device/blocking.rs", |_, inner| {
            drop(blocking::read(&*inner.log.device, FileId::Manifest, 4096));
        }),
        ("tier/raw.rs", |_, inner| {
            let start = inner.log.start;
            drop(inner.log.raw.read_blocking(start, start + 512));
        }),
        ("tier/raw.rs", |_, inner| {
            drop(inner.log.raw.fetch_blocking(Address::new(inner.log.start)));
        }),
        ("checkpoint/mod.rs", |_, inner| drop(take(inner))),
        ("log/mod.rs", |_, inner| inner.log.truncate(inner.log.start)),
        ("store/alone.rs", |_, inner| {
            inner.log.tail.give_back(wait_for_room(&inner.log, 1, || true))
        }),
        ("store/session.rs", |store, _| store.session(|| {}).wait_until_called(|| true)),
        ("store/blocking.rs", |store, _| {
            drop(store.blocking_session().read(Database(0), &0u64.to_le_bytes()));
        }),
        ("redo/mod.rs", |_, inner| wait_while_full(inner, 1)),
        // The gate's own wait.
        ("src/epoch.rs", |store, _| drop(store.flush_database(Database(0)))),
        ("src/epoch.rs", |_, inner| inner.log.epoch.wait_until_safe(inner.log.epoch.bump())),
    ];
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let place = info.location().map_or("", |l| l.file()).to_owned();
        PANICKED_IN.with(|last| *last.borrow_mut() = place);
        tell(info);
    }));
    let store = cold_store();
    let inner = store.inner();
    let participant = inner.log.epoch.register("test").expect("there is room");
    for (file, wait) in waits {
        let pin = participant.pin();
        let outcome = catch_unwind(AssertUnwindSafe(|| wait(&store, inner)));
        drop(pin);
        assert!(outcome.is_err(), "{file} waits although its thread is pinned");
        let place = PANICKED_IN.with(RefCell::take);
        assert!(place.ends_with(file), "{file} left it to {place}");
    }
}
