//! How long commands take, as histograms (hdrhistogram): one for each command and worker, merged
//! when somebody asks.
//!
//! The clock is read once for a run of equal commands of one connection, since reading it costs
//! more than recording; each command of the run counts with the run's average. A worker locks only
//! its own histogram, so the lock is free except while INFO or a scrape copies it.

use hdrhistogram::Histogram;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Shortest and longest time that is told apart, in nanoseconds; what is longer counts as longest.
const SHORTEST_NS: u64 = 1;
const LONGEST_NS: u64 = 60_000_000_000;
/// Decimal digits that are exact.
const DIGITS: u8 = 2;

/// The percentiles that are shown, and the same as quantiles.
pub const PERCENTILES: [(f64, &str); 3] = [(50.0, "0.5"), (99.0, "0.99"), (99.9, "0.999")];

/// The times of one command on one worker. About 30 KiB once it has run.
#[derive(Debug, Default)]
pub struct Latency(Mutex<Option<Box<Histogram<u64>>>>);

impl Latency {
    /// `calls` runs took `nanoseconds` together.
    #[inline]
    pub fn record(&self, nanoseconds: u64, calls: u64) {
        if let Some(each) = nanoseconds.checked_div(calls) {
            let mut slot = self.lock();
            let histogram = slot.get_or_insert_with(|| Box::new(empty()));
            histogram.saturating_record_n(each.clamp(SHORTEST_NS, LONGEST_NS), calls);
        }
    }
    /// Adds what was recorded.
    fn add_to(&self, sum: &mut Option<Histogram<u64>>) {
        if let Some(histogram) = &*self.lock() {
            let sum = sum.get_or_insert_with(empty);
            sum.add(histogram.as_ref()).expect("all have the same bounds");
        }
    }
    /// CONFIG RESETSTAT.
    pub fn reset(&self) {
        if let Some(histogram) = &mut *self.lock() {
            histogram.reset();
        }
    }
    fn lock(&self) -> MutexGuard<'_, Option<Box<Histogram<u64>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`PERCENTILES`] over all of `parts`, in nanoseconds; `None` when nothing was recorded.
pub fn percentiles<'l>(
    parts: impl Iterator<Item = &'l Latency>,
) -> Option<[u64; PERCENTILES.len()]> {
    let mut sum = None;
    parts.for_each(|part| part.add_to(&mut sum));
    let sum = sum.filter(|sum| !sum.is_empty())?;
    Some(PERCENTILES.map(|(percent, _)| sum.value_at_percentile(percent)))
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(SHORTEST_NS, LONGEST_NS, DIGITS).expect("the bounds are in order")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_merged_and_runs_count_with_their_average() {
        let (a, b) = (Latency::default(), Latency::default());
        assert_eq!(percentiles([&a, &b].into_iter()), None);
        a.record(1000 * 990, 990);
        b.record(50_000 * 10, 10);
        let [p50, p99, p999] = percentiles([&a, &b].into_iter()).expect("recorded");
        let close = |ns: u64, to: u64| ns.abs_diff(to) * 100 <= to;
        assert!(close(p50, 1000) && close(p99, 1000) && close(p999, 50_000), "{p50} {p99} {p999}");
        a.reset();
        b.reset();
        assert_eq!(percentiles([&a, &b].into_iter()), None);
    }

    #[test]
    fn what_is_out_of_bounds_counts_at_the_bound() {
        let latency = Latency::default();
        latency.record(0, 1);
        latency.record(u64::MAX, 1);
        latency.record(5, 0);
        let [_, _, longest] = percentiles([&latency].into_iter()).expect("recorded");
        assert!(longest >= LONGEST_NS);
    }
}
