//! An embedded store: more data than memory, a checkpoint, and the same data after reopening.
//!
//! `cargo run --release -p ferrite-hybridlog --example embedded`

use ferrite_hybridlog::{Change, Config, Database, Store};
use std::error::Error;

const DB: Database = Database(0);
const KEYS: u64 = 200_000;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::temp_dir().join(format!("ferrite-embedded-{}", std::process::id()));
    let outcome = run(&directory);
    std::fs::remove_dir_all(&directory)?;
    outcome
}

fn run(directory: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let mut config = Config::new(directory);
    // 4 MiB of memory for some 20 MB of records.
    config.page_size = 256 << 10;
    config.segment_size = 4 << 20;
    config.mutable_size = 2 << 20;
    config.readonly_size = 2 << 20;

    let store = Store::open(config.clone())?;
    let mut session = store.blocking_session();
    for i in 0..KEYS {
        session.upsert(
            DB,
            &i.to_be_bytes(),
            format!("value {i} of an embedded store").as_bytes(),
        )?;
    }
    // Read-modify-write: what the closure makes of the old value is stored, as one step.
    for _ in 0..1000 {
        session.rmw(DB, b"counter", |old, new| {
            let n = old.and_then(|v| std::str::from_utf8(v.bytes).ok()?.parse().ok()).unwrap_or(0);
            new.extend_from_slice((n + 1u64).to_string().as_bytes());
            (Change::PutScratch { expires_at_ms: None, encoding: 0 }, ())
        })?;
    }
    session.delete(DB, &7u64.to_be_bytes())?;
    check(&mut session)?;
    let stats = store.stats();
    println!(
        "{} MiB of log, {} MiB of frames, {} reads from the device",
        (stats.log_tail - stats.log_begin) >> 20,
        stats.frame_bytes >> 20,
        stats.device_reads
    );
    let report = store.checkpoint()?;
    println!(
        "checkpoint {}: {} KiB in {:?}",
        report.number,
        report.bytes_written >> 10,
        report.duration
    );
    drop(session);
    drop(store);

    let store = Store::open(config)?;
    let found = store.recovery();
    println!("reopened: {} keys in {:?}", found.keys, found.duration);
    check(&mut store.blocking_session())
}

fn check(session: &mut ferrite_hybridlog::BlockingSession) -> Result<(), Box<dyn Error>> {
    for i in (0..KEYS).step_by(97) {
        let expected = (i != 7).then(|| format!("value {i} of an embedded store").into_bytes());
        if session.read(DB, &i.to_be_bytes())? != expected {
            return Err(format!("key {i} has another value").into());
        }
    }
    match session.read(DB, b"counter")?.as_deref() {
        Some(b"1000") => Ok(()),
        other => Err(format!("the counter is {other:?}").into()),
    }
}
