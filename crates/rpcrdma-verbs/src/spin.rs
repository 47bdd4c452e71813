//! When to look for completions again and again instead of sleeping.
//!
//! An answer often comes sooner than a sleeping thread wakes, but where it does not, spinning burns time that others need.
//! After a few waits in a row in which nothing came, only one wait in many is spent looking, until one of those pays off.

use std::time::{Duration, Instant};

/// Fruitless waits in a row after which looking becomes rare.
const FRUITLESS: u32 = 4;
/// Then every so many waits.
const RARELY: u32 = 64;

#[derive(Debug)]
pub(crate) struct Spin {
    limit: Option<Duration>,
    fruitless: u32,
}

impl Spin {
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        Self { limit, fruitless: 0 }
    }

    /// Calls `look` until it finds something or the time is up. Whether it did.
    pub(crate) fn look(&mut self, mut look: impl FnMut() -> bool) -> bool {
        let Some(limit) = self.limit else { return false };
        if self.fruitless >= FRUITLESS && !(self.fruitless - FRUITLESS + 1).is_multiple_of(RARELY) {
            self.fruitless = self.fruitless.wrapping_add(1).max(FRUITLESS);
            return false;
        }
        let until = Instant::now() + limit;
        loop {
            if look() {
                self.fruitless = 0;
                return true;
            }
            if Instant::now() >= until {
                self.fruitless = self.fruitless.wrapping_add(1).max(1);
                return false;
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_limit_never() {
        assert!(!Spin::new(None).look(|| panic!("not asked for")));
    }

    #[test]
    fn fruitless_waits_make_it_rare_and_one_that_pays_off_brings_it_back() {
        let mut spin = Spin::new(Some(Duration::ZERO));
        let mut looked = 0;
        for _ in 0..FRUITLESS + 3 * RARELY {
            assert!(!spin.look(|| {
                looked += 1;
                false
            }));
        }
        assert_eq!(looked, FRUITLESS + 3);
        let found = (0..RARELY).any(|_| spin.look(|| true));
        assert!(found);
        assert!(spin.look(|| true));
    }
}
