//! How many reads, upserts and increments a second the store answers from memory, beside papaya,
//! dashmap and scc.
//!
//! `cargo bench -p ferrite-benches --bench engine` ends with two Markdown tables. With 10 million
//! keys it takes about eight minutes and 5 GiB. `FERRITE_BENCH_KEYS=100000` is a quick look of half a
//! minute (below a million keys a row gets 0.2 s instead of 4), and criterion's filter picks rows:
//! `-- read/zipf`.
//!
//! All engines are filled first and then take turns row by row, so what the machine does meanwhile
//! meets all of them. What is the same for all:
//!
//! * keys and values of 8 bytes; SipHash-1-3 under one random key, computed by the same function; the
//!   same draws, from the same seed, made beforehand; at least as many draws as keys;
//! * each key was stored and overwritten once before the clock runs, in the order of its number, which
//!   has nothing to do with how often it is asked for; the maps had room for all keys from the start;
//! * each value that is read, also by an increment, is checked for its key, and after the last row
//!   the counts of all values add up to the increments that were made, or the run fails;
//! * a change is seen by all threads as soon as its call returns;
//! * 64 operations a stay inside, for those who have such a thing: a session of Ferrite, a pin of papaya;
//! * all memory is put on huge pages when an engine is filled and before each row, whoever allocated
//!   it and how (see `ferrite_benches::memory`). The first table says how much the kernel granted.
//!
//! Ferrite writes in place here: the mutable region holds all records. After the others it is filled
//! once more with huge pages refused, for index and frames.
//!
//! Figures: the median of 20 samples of some 0.2 s, in million operations a second of all threads
//! together, by the wall clock; and the slowest and fastest sample.

mod ferrite;
mod peers;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use ferrite::Ferrite;
use ferrite_benches::keys::{Distribution, Key};
use ferrite_benches::memory::{self, Resident};
use ferrite_benches::table::Table;
use ferrite_benches::timing::{Samples, side_by_side};
use ferrite_benches::values;
use peers::{Dashmap, KeyHasher, Papaya, Scc};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Operations in a stay inside.
const BATCH: usize = 64;
const SAMPLES: usize = 20;
const THREADS: [usize; 2] = [1, 2];
const DISTRIBUTIONS: [Distribution; 2] = [Distribution::Uniform, Distribution::Zipf(0.99)];

/// A map of 8-byte keys to 8-byte values that threads share.
trait Engine: Sync {
    type Worker<'a>: Worker
    where
        Self: 'a;

    /// One thread's handle.
    fn worker(&self) -> Self::Worker<'_>;
}

/// One thread's handle on an engine. A call gets one batch.
trait Worker {
    /// Reads each key, which is there, and shows its value.
    fn read(&mut self, keys: &[Key], seen: impl FnMut(Key, u64));
    /// Stores `value(key)` under each key, whether it is there or not.
    fn upsert(&mut self, keys: &[Key], value: impl Fn(Key) -> u64);
    /// Replaces each key's value by what [`values::incremented`] makes of it, as one step.
    fn increment(&mut self, keys: &[Key]);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Read,
    Upsert,
    Increment,
}

impl Operation {
    /// Increments last: the counts that they make are added up in the end.
    const ALL: [Self; 3] = [Self::Read, Self::Upsert, Self::Increment];

    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Upsert => "upsert",
            Self::Increment => "increment",
        }
    }

    fn run(self, worker: &mut impl Worker, keys: &[Key], salt: u8) {
        match self {
            Self::Read => worker.read(keys, |key, value| {
                values::count(key, value);
            }),
            Self::Upsert => worker.upsert(keys, |key| values::fresh(key, salt)),
            Self::Increment => worker.increment(keys),
        }
    }
}

/// One row's workload.
struct Row<'a> {
    operation: Operation,
    distribution: Distribution,
    /// For each thread its draws, a multiple of [`BATCH`].
    draws: &'a [Vec<u32>],
}

/// An engine under its name, and how many increments it was asked for.
struct Candidate<E> {
    name: &'static str,
    engine: E,
    increments: AtomicU64,
}

impl<E: Engine> Candidate<E> {
    /// Fills an engine: each key stored, then overwritten once.
    fn filled(name: &'static str, keys: u32, memory: &mut Table, make: impl FnOnce() -> E) -> Self {
        eprintln!("filling {name}");
        put_on_huge_pages();
        let before = Resident::now().unwrap_or_default();
        let engine = make();
        for salt in 0..2 {
            side_by_side(
                1,
                |_| engine.worker(),
                |mut worker| {
                    in_order(keys, |batch| worker.upsert(batch, |key| values::fresh(key, salt)));
                },
            );
        }
        put_on_huge_pages();
        let grown = Resident::now().unwrap_or_default().since(before);
        memory.row([
            name.to_owned(),
            format!("{:.0}", grown.bytes as f64 / f64::from(keys)),
            format!("{:.0} %", 100.0 * grown.huge_bytes as f64 / grown.bytes.max(1) as f64),
        ]);
        Self { name, engine, increments: AtomicU64::new(0) }
    }

    fn measure(&self, group: &mut BenchmarkGroup<'_, WallTime>, table: &mut Table, row: &Row<'_>) {
        let Row { operation, distribution, draws } = row;
        let threads = draws.len();
        let labels = [operation.name(), &distribution.name(), &threads.to_string(), self.name]
            .map(str::to_owned);
        let mut samples = Samples::default();
        let mut start = 0;
        put_on_huge_pages();
        group.bench_function(labels.join("/").to_lowercase(), |bencher| {
            bencher.iter_custom(|count| {
                let time = self.time(row, count, &mut start);
                samples.keep(count, time)
            });
        });
        if let Some(spread) = samples.spread(SAMPLES) {
            let millions = |ns: f64| format!("{:.2}", 1e3 / ns);
            let range = format!("{}-{}", millions(spread.slowest), millions(spread.fastest));
            table.row(labels.into_iter().chain([millions(spread.median), range]));
        }
    }

    /// The time for `count` operations by all threads together, from the batch `start` of each
    /// thread's draws on. Whole batches run, and the time is scaled to `count`.
    fn time(&self, row: &Row<'_>, count: u64, start: &mut usize) -> Duration {
        let threads = row.draws.len();
        let batches = count.div_ceil((threads * BATCH) as u64);
        let operations = batches * (threads * BATCH) as u64;
        if row.operation == Operation::Increment {
            self.increments.fetch_add(operations, Ordering::Relaxed);
        }
        let first = *start;
        *start += batches as usize;
        let time = side_by_side(
            threads,
            |thread| (self.engine.worker(), &row.draws[thread]),
            |(mut worker, draws)| {
                for batch in first..first + batches as usize {
                    let from = batch * BATCH % draws.len();
                    let keys: [Key; BATCH] = std::array::from_fn(|i| Key::of(draws[from + i]));
                    row.operation.run(&mut worker, &keys, batch as u8);
                }
            },
        );
        time.mul_f64(count as f64 / operations as f64)
    }

    /// Checks that every increment that was made is there.
    fn check_counts(&self, keys: u32) {
        let mut sum = 0;
        let mut worker = self.engine.worker();
        in_order(keys, |batch| {
            worker.read(batch, |key, value| sum += u64::from(values::count(key, value)));
        });
        let made = self.increments.load(Ordering::Relaxed);
        // Upserts set counts to 0, and all of them came before.
        assert_eq!(sum, made, "{} lost increments", self.name);
    }
}

fn put_on_huge_pages() {
    memory::collapse().expect("Linux tells a process what it has mapped");
}

/// All keys in the order of their numbers, in batches.
fn in_order(keys: u32, mut each: impl FnMut(&[Key])) {
    let numbers: Vec<u32> = (0..keys).collect();
    for batch in numbers.chunks(BATCH) {
        let batch: Vec<Key> = batch.iter().map(|number| Key::of(*number)).collect();
        each(&batch);
    }
}

/// Each distribution's draws, for as many threads as a row can have.
fn draw(keys: u32) -> Vec<(Distribution, Vec<Vec<u32>>)> {
    let most = THREADS.into_iter().max().expect("there are rows");
    let count = (keys as usize).max(1 << 16).next_multiple_of(BATCH);
    let seeds = 1..=most as u64;
    let draws = |d: Distribution| seeds.clone().map(|seed| d.draw(keys, count, seed)).collect();
    DISTRIBUTIONS.map(|distribution| (distribution, draws(distribution))).into()
}

/// Calls `each` for every row.
fn rows(draws: &[(Distribution, Vec<Vec<u32>>)], mut each: impl FnMut(&Row<'_>)) {
    for operation in Operation::ALL {
        for (distribution, draws) in draws {
            for threads in THREADS {
                let distribution = *distribution;
                each(&Row { operation, distribution, draws: &draws[..threads] });
            }
        }
    }
}

fn main() {
    let keys = std::env::var("FERRITE_BENCH_KEYS").map_or(Ok(10_000_000), |keys| keys.parse());
    let keys: u32 = keys.expect("FERRITE_BENCH_KEYS is a number of keys");
    let measured = Duration::from_millis(if keys < 1_000_000 { 200 } else { 4000 });
    let mut criterion = Criterion::default()
        .sample_size(SAMPLES)
        .nresamples(10_000)
        .warm_up_time(measured / 10)
        .measurement_time(measured)
        .without_plots()
        .configure_from_args();
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(1)).sampling_mode(SamplingMode::Flat);
    let mut table =
        Table::new(&["operation", "keys", "threads", "engine", "Mops/s", "slowest-fastest"]);
    let mut filled = Table::new(&["engine", "bytes a key", "in huge pages"]);

    let draws = draw(keys);
    let ferrite = Candidate::filled("ferrite", keys, &mut filled, || Ferrite::new(keys));
    let hash = KeyHasher::random();
    let papaya = Candidate::filled("papaya", keys, &mut filled, || Papaya::new(keys, &hash));
    let dashmap = Candidate::filled("dashmap", keys, &mut filled, || Dashmap::new(keys, &hash));
    let scc = Candidate::filled("scc", keys, &mut filled, || Scc::new(keys, &hash));
    rows(&draws, |row| {
        ferrite.measure(&mut group, &mut table, row);
        papaya.measure(&mut group, &mut table, row);
        dashmap.measure(&mut group, &mut table, row);
        scc.measure(&mut group, &mut table, row);
    });
    ferrite.check_counts(keys);
    papaya.check_counts(keys);
    dashmap.check_counts(keys);
    scc.check_counts(keys);
    drop((ferrite, papaya, dashmap, scc));

    match memory::refuse_huge_pages() {
        Ok(()) => {
            let name = "ferrite, small pages";
            let small = Candidate::filled(name, keys, &mut filled, || Ferrite::new(keys));
            rows(&draws, |row| small.measure(&mut group, &mut table, row));
            small.check_counts(keys);
        }
        Err(error) => eprintln!("the rows on small pages are left out: {error}"),
    }
    group.finish();
    criterion.final_summary();
    println!("\n{keys} keys\n\n{filled}\n{table}");
}
