//! How many nanoseconds the steps take that every operation is made of.
//!
//! `cargo bench -p ferrite-benches --bench micro` takes about a minute and ends with a Markdown
//! table; criterion's filter picks rows: `-- latch`. Each module answers one question. What they touch
//! stays in the processor's caches, so these are the costs of the steps, not of the memory behind
//! them. Where threads meet, the figure is the time of one operation of one of them.
//!
//! Figures: the median of 30 samples of some 30 ms, by the wall clock; and the fastest and slowest.

mod epoch;
mod key_hash;
mod latch;
mod page_turn;
mod seqlock;

// Production files that are private to the store, compiled into this program too; they name each
// other `crate::...`.
#[allow(dead_code, unused_imports, reason = "a part of it is measured")]
#[path = "../../hybridlog/src/seqlock.rs"]
mod production_seqlock;
#[allow(dead_code, unused_imports, reason = "a part of it is measured")]
#[path = "../../hybridlog/src/log/tail.rs"]
mod production_tail;
#[allow(dead_code, unused_imports, reason = "the two above use a part of it")]
#[path = "../../hybridlog/src/sync.rs"]
mod sync;

use criterion::Criterion;
use ferrite_benches::table::Table;
use ferrite_benches::timing::Samples;
use std::hint::black_box;
use std::time::{Duration, Instant};

const SAMPLES: usize = 30;

/// Runs rows and keeps what they gave.
struct Rows {
    criterion: Criterion,
    table: Table,
}

impl Rows {
    /// One row: `time` gives the time of so many operations.
    fn row(&mut self, what: &str, time: impl FnMut(u64) -> Duration) {
        self.measure(what, time);
    }

    /// The same; gives the median in nanoseconds, if the row was run.
    fn measure(&mut self, what: &str, mut time: impl FnMut(u64) -> Duration) -> Option<f64> {
        let mut samples = Samples::default();
        self.criterion.bench_function(what, |bencher| {
            bencher.iter_custom(|count| {
                let taken = time(count);
                samples.keep(count, taken)
            });
        });
        let spread = samples.spread(SAMPLES)?;
        let range = format!("{:.1}-{:.1}", spread.fastest, spread.slowest);
        self.table.row([what.to_owned(), format!("{:.1}", spread.median), range]);
        Some(spread.median)
    }
}

/// The time that `count` calls take one after the other.
fn repeated<R>(count: u64, mut operation: impl FnMut() -> R) -> Duration {
    let start = Instant::now();
    for _ in 0..count {
        black_box(operation());
    }
    start.elapsed()
}

fn main() {
    let criterion = Criterion::default()
        .sample_size(SAMPLES)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
        .configure_from_args();
    let table = Table::new(&["step", "ns", "fastest-slowest"]);
    let mut rows = Rows { criterion, table };
    key_hash::run(&mut rows);
    epoch::run(&mut rows);
    latch::run(&mut rows);
    seqlock::run(&mut rows);
    page_turn::run(&mut rows);
    rows.criterion.final_summary();
    println!("\n{}", rows.table);
}
