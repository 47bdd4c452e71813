//! How long to wait before the next attempt to connect.
//!
//! The first attempt after a connection that worked is made at once: the peer was there a moment ago. Every attempt that
//! leads to nothing doubles the wait up to a cap. The wait is spread at random, so that the clients of a restarted server
//! do not come back in step.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

/// Bounds of the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffConfig {
    /// The wait after the first attempt in vain.
    pub first: Duration,
    /// The longest wait.
    pub cap: Duration,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self { first: Duration::from_millis(10), cap: Duration::from_secs(5) }
    }
}

/// Attempts in vain since something last worked.
#[derive(Debug)]
pub(crate) struct Backoff {
    config: BackoffConfig,
    failures: u32,
    /// Before the next attempt.
    wait: Duration,
    dice: SmallRng,
}

impl Backoff {
    /// The waits follow from `seed`, if there is one.
    pub(crate) fn new(config: BackoffConfig, seed: Option<u64>) -> Self {
        let seed = seed.unwrap_or_else(|| rand::rng().random());
        Self { config, failures: 0, wait: Duration::ZERO, dice: SmallRng::seed_from_u64(seed) }
    }

    /// A connection has brought a Reply.
    pub(crate) fn worked(&mut self) {
        self.failures = 0;
        self.wait = Duration::ZERO;
    }

    /// An attempt has led to nothing: half of the next wait is certain, half of it random.
    pub(crate) fn failed(&mut self) {
        let whole = self.config.first.saturating_mul(1 << self.failures.min(20)).min(self.config.cap);
        self.failures = self.failures.saturating_add(1);
        self.wait = whole / 2 + self.dice.random_range(Duration::ZERO..=whole / 2);
    }

    /// The wait before the next attempt.
    pub(crate) fn wait(&self) -> Duration {
        self.wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_start_over() {
        let ms = Duration::from_millis;
        let mut b = Backoff::new(BackoffConfig { first: ms(10), cap: ms(1000) }, None);
        assert_eq!(b.wait(), Duration::ZERO);
        for most in [10, 20, 40, 80, 160, 320, 640, 1000, 1000] {
            b.failed();
            let w = b.wait();
            assert!(w >= ms(most) / 2 && w <= ms(most), "{w:?} of {most} ms");
        }
        (0..100).for_each(|_| b.failed());
        assert!(b.wait() <= ms(1000));
        b.worked();
        assert_eq!(b.wait(), Duration::ZERO);
    }

    #[test]
    fn waits_are_spread_and_follow_from_a_seed() {
        let waits = |seed| {
            let mut b = Backoff::new(BackoffConfig::default(), seed);
            let next = || {
                b.failed();
                b.wait()
            };
            std::iter::repeat_with(next).take(20).collect::<Vec<_>>()
        };
        assert_eq!(waits(Some(7)), waits(Some(7)));
        assert_ne!(waits(Some(7)), waits(Some(8)));
        assert_ne!(waits(None), waits(None));
    }
}
