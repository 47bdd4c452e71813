//! How long to wait before the next attempt to connect.
//!
//! The first attempt after a connection that worked is made at once: the peer was there a moment ago. Every attempt that
//! leads to nothing doubles the wait up to a cap. The wait is spread at random, so that the clients of a restarted server
//! do not come back in step.

use std::time::Duration;

use rand::RngExt as _;

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
}

impl Backoff {
    pub(crate) fn new(config: BackoffConfig) -> Self {
        Self { config, failures: 0 }
    }

    /// A connection has brought a Reply.
    pub(crate) fn worked(&mut self) {
        self.failures = 0;
    }

    /// An attempt has led to nothing.
    pub(crate) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// The wait before the next attempt: half of it certain, half of it random.
    pub(crate) fn wait(&self) -> Duration {
        let Some(doublings) = self.failures.checked_sub(1) else { return Duration::ZERO };
        let whole = self.config.first.saturating_mul(1 << doublings.min(20)).min(self.config.cap);
        whole / 2 + rand::rng().random_range(Duration::ZERO..=whole / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_start_over() {
        let ms = Duration::from_millis;
        let mut b = Backoff::new(BackoffConfig { first: ms(10), cap: ms(1000) });
        assert_eq!(b.wait(), Duration::ZERO);
        for most in [10, 20, 40, 80, 160, 320, 640, 1000, 1000] {
            b.failed();
            for _ in 0..20 {
                let w = b.wait();
                assert!(w >= ms(most) / 2 && w <= ms(most), "{w:?} of {most} ms");
            }
        }
        (0..100).for_each(|_| b.failed());
        assert!(b.wait() <= ms(1000));
        b.worked();
        assert_eq!(b.wait(), Duration::ZERO);
    }
}
