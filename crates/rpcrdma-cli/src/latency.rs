//! How long things took, as a histogram.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Times from a nanosecond to an hour, to three digits.
#[derive(Clone, Debug)]
pub(crate) struct Latency {
    histogram: Histogram<u64>,
}

/// Longest time that is told apart from longer ones.
const MOST: u64 = 3_600_000_000_000;

/// What there is to say of a histogram, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) count: u64,
    pub(crate) min_ns: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p90_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) max_ns: u64,
}

impl Latency {
    pub(crate) fn new() -> Self {
        // The bounds are constants that the histogram takes; the other arm is there for the compiler.
        let histogram = Histogram::new_with_bounds(1, MOST, 3).or_else(|_| Histogram::new(3));
        Self { histogram: histogram.unwrap_or_else(|_| unreachable!("three digits are allowed")) }
    }

    pub(crate) fn record(&mut self, t: Duration) {
        self.histogram.saturating_record(u64::try_from(t.as_nanos()).unwrap_or(MOST).clamp(1, MOST));
    }

    /// Adds another histogram's times.
    pub(crate) fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.histogram.add(&other.histogram);
    }

    pub(crate) fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The time that a share of all times does not pass.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.histogram.value_at_quantile(share))
    }

    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.histogram.max())
    }

    pub(crate) fn summary(&self) -> Summary {
        let h = &self.histogram;
        Summary {
            count: h.len(),
            min_ns: if h.is_empty() { 0 } else { h.min() },
            p50_ns: h.value_at_quantile(0.5),
            p90_ns: h.value_at_quantile(0.9),
            p99_ns: h.value_at_quantile(0.99),
            max_ns: h.max(),
        }
    }

    /// A row for each doubling of time between the fastest and the slowest: upper bound and count.
    pub(crate) fn rows(&self) -> Vec<(Duration, u64)> {
        if self.histogram.is_empty() {
            return Vec::new();
        }
        let mut rows: Vec<(Duration, u64)> = self
            .histogram
            .iter_log(1000, 2.0)
            .map(|v| (Duration::from_nanos(v.value_iterated_to()), v.count_since_last_iteration()))
            .collect();
        let first = rows.iter().position(|r| r.1 > 0).unwrap_or(0);
        rows.drain(..first);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_rows_add_up() {
        let mut l = Latency::new();
        assert!(l.rows().is_empty());
        for us in 1..=1000 {
            l.record(Duration::from_micros(us));
        }
        let p50 = l.quantile(0.5).as_micros();
        assert!((499..=501).contains(&p50), "{p50}");
        assert_eq!(l.rows().iter().map(|r| r.1).sum::<u64>(), 1000);
        let mut twice = l.clone();
        twice.add(&l);
        assert_eq!(twice.count(), 2000);
        assert_eq!(twice.summary().p99_ns, l.summary().p99_ns);
        l.record(Duration::from_secs(100_000));
        assert!(l.max() >= Duration::from_secs(3600));
    }
}
