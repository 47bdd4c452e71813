//! When a provider looks for bytes or completions again and again instead of sleeping.
//!
//! To sleep and be woken costs tens of microseconds; an answer often comes sooner. But where the peer is slow, or wants
//! the same processor, spinning only burns time that others need. So a few misses in a row end it, and from then on
//! one wait in many is a probe: a hit brings spinning back.

use std::time::{Duration, Instant};

/// Misses in a row after which spinning stops.
const PATIENCE: u32 = 4;
/// One wait in this many is a probe then.
const PROBE: u32 = 64;

/// Whether and how long to spin, from what came of it before.
#[derive(Debug)]
pub struct Spin {
    limit: Option<Duration>,
    misses: u32,
    /// Waits until the next probe.
    skip: u32,
}

impl Spin {
    /// Spins for so long at a time; never if `None`.
    #[must_use]
    pub fn new(limit: Option<Duration>) -> Self {
        Self { limit, misses: 0, skip: 0 }
    }

    /// Until when to spin now, if at all.
    pub fn begin(&mut self, now: impl FnOnce() -> Instant) -> Option<Instant> {
        let limit = self.limit?;
        if self.misses >= PATIENCE {
            self.skip = self.skip.checked_sub(1).unwrap_or(PROBE - 1);
            if self.skip > 0 {
                return None;
            }
        }
        Some(now() + limit)
    }

    /// Something came.
    pub fn hit(&mut self) {
        self.misses = 0;
    }

    /// Nothing came in time.
    pub fn miss(&mut self) {
        self.misses = (self.misses + 1).min(PATIENCE);
        if self.misses == PATIENCE {
            self.skip = PROBE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_limit_never() {
        assert!(Spin::new(None).begin(Instant::now).is_none());
    }

    #[test]
    fn misses_end_it_and_a_probe_that_hits_brings_it_back() {
        let now = Instant::now();
        let mut spin = Spin::new(Some(Duration::from_micros(20)));
        for _ in 0..PATIENCE {
            assert_eq!(spin.begin(|| now), Some(now + Duration::from_micros(20)));
            spin.miss();
        }
        for _ in 0..3 {
            let waits = (1..).find(|_| spin.begin(|| now).is_some());
            assert_eq!(waits, Some(PROBE), "a probe that misses changes nothing");
            spin.miss();
        }
        assert_eq!((1..).find(|_| spin.begin(|| now).is_some()), Some(PROBE));
        spin.hit();
        for _ in 0..10 {
            assert!(spin.begin(|| now).is_some());
            spin.hit();
        }
    }
}
