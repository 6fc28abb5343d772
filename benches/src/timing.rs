//! Threads that start together, and what a row of a table says about its samples.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Runs `work` on so many threads at once, each with its number, and gives the time from the first
/// one's start to the last one's end. What `prepare` makes on the thread is made before.
pub fn side_by_side<P>(
    threads: usize,
    prepare: impl Fn(usize) -> P + Sync,
    work: impl Fn(P) + Sync,
) -> Duration {
    let (barrier, prepare, work) = (&Barrier::new(threads), &prepare, &work);
    let spans: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let run = |number| {
            move || {
                let prepared = prepare(number);
                barrier.wait();
                let start = Instant::now();
                work(prepared);
                (start, Instant::now())
            }
        };
        let all: Vec<_> = (0..threads).map(|number| scope.spawn(run(number))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        all.into_iter().map(join).collect()
    });
    let first = spans.iter().map(|(start, _)| *start).min().expect("at least one thread");
    let last = spans.iter().map(|(_, end)| *end).max().expect("at least one thread");
    last - first
}

/// The samples of one row, in nanoseconds an operation.
///
/// criterion calls a routine for its warm-up first and for its samples last, so the last ones are
/// what its own median is of.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

/// What the samples say, in nanoseconds an operation.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// Half of the samples are faster.
    pub median: f64,
    /// The fastest sample.
    pub fastest: f64,
    /// The slowest sample.
    pub slowest: f64,
}

impl Samples {
    /// Keeps one, and passes the time on to who measures.
    pub fn keep(&mut self, operations: u64, time: Duration) -> Duration {
        self.0.push(time.as_nanos() as f64 / operations as f64);
        time
    }

    /// The median and range of the last `count` samples; `None` if there are not even two, as in a
    /// run that only tries everything once.
    pub fn spread(&self, count: usize) -> Option<Spread> {
        if self.0.len() < 2 {
            return None;
        }
        let mut last = self.0[self.0.len().saturating_sub(count)..].to_vec();
        last.sort_by(f64::total_cmp);
        let (fastest, slowest) = (*last.first()?, *last.last()?);
        let half = last.len() / 2;
        let median =
            if last.len() % 2 == 1 { last[half] } else { last[half - 1].midpoint(last[half]) };
        Some(Spread { median, fastest, slowest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn only_the_last_samples_count() {
        let mut samples = Samples::default();
        samples.keep(1, Duration::from_nanos(1));
        assert_eq!(samples.spread(3), None);
        for ns in [900, 40, 10, 20] {
            assert_eq!(samples.keep(1, Duration::from_nanos(ns)), Duration::from_nanos(ns));
        }
        let spread = Spread { median: 20.0, fastest: 10.0, slowest: 40.0 };
        assert_eq!(samples.spread(3), Some(spread));
        assert_eq!(samples.spread(2).map(|s| s.median), Some(15.0));
    }

    #[test]
    fn every_thread_works_once_with_what_was_prepared_on_it() {
        let sum = AtomicU64::new(0);
        side_by_side(
            4,
            |number| (number as u64, thread::current().id()),
            |(number, id)| {
                assert_eq!(id, thread::current().id());
                sum.fetch_add(1 << (8 * number), Ordering::Relaxed);
            },
        );
        assert_eq!(sum.load(Ordering::Relaxed), 0x0101_0101);
    }
}
