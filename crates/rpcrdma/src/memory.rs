//! The bulk memory of a client or server: regions in three sizes.
//!
//! A data transfer takes a region of the smallest class that holds it and gives it back by dropping it. The number of
//! regions in each class is bounded, so memory is bounded by what is in flight, never by the size of a file.

use rpcrdma_fabric::{Pool, Region};

/// Lengths of the classes in bytes. The largest holds a READ or WRITE of the largest size, or a Long message.
const CLASSES: [usize; 3] = [16 << 10, 128 << 10, MAX_TRANSFER];

/// The largest single transfer in bytes: 1 MiB of data and room for what surrounds it in a Long message.
pub const MAX_TRANSFER: usize = (1 << 20) + (8 << 10);

/// Pools of regions in three sizes. Clones share them.
#[derive(Clone)]
pub struct Pools {
    classes: [Pool; 3],
}

impl Pools {
    /// Pools that hold `most` of the largest regions, and four times as many of each smaller size.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let [small, medium, large] = CLASSES;
        let some = most.saturating_mul(4);
        Self { classes: [Pool::new(small, some), Pool::new(medium, some), Pool::new(large, most)] }
    }

    /// A region of at least `len` bytes with arbitrary content. `None` if none is free or `len` is beyond
    /// [`MAX_TRANSFER`].
    #[must_use]
    pub fn take(&self, len: usize) -> Option<Region> {
        self.classes.iter().filter(|p| p.region_len() >= len).find_map(Pool::take)
    }

    /// A region of the smallest class that holds `len` bytes, if one of that class is free.
    #[must_use]
    pub fn take_fitting(&self, len: usize) -> Option<Region> {
        self.classes.iter().find(|p| p.region_len() >= len).and_then(Pool::take)
    }

    /// Whether regions of these lengths can be had at one time, when nobody else has any.
    #[must_use]
    pub fn can_hold(&self, lengths: impl Iterator<Item = usize>) -> bool {
        let mut left = self.classes.each_ref().map(Pool::capacity);
        for len in lengths {
            let mut classes = self.classes.iter().zip(&mut left);
            let Some((_, left)) = classes.find(|(p, left)| p.region_len() >= len && **left > 0) else {
                return false;
            };
            *left -= 1;
        }
        true
    }

    /// Bytes in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.classes.iter().map(|p| p.in_use() * p.region_len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_class_that_fits_is_taken_and_a_larger_one_helps_out() {
        let pools = Pools::new(1);
        assert_eq!(pools.take(1).map(|r| r.len()), Some(CLASSES[0]));
        assert_eq!(pools.take(CLASSES[0] + 1).map(|r| r.len()), Some(CLASSES[1]));
        let small: Vec<_> = std::iter::from_fn(|| pools.take_fitting(1)).collect();
        assert_eq!(small.len(), 4, "and none of another class");
        drop(small);
        let all: Vec<_> = std::iter::from_fn(|| pools.take(0)).collect();
        assert_eq!(all.len(), 9, "4 small, 4 medium, 1 large");
        assert!(pools.take(MAX_TRANSFER).is_none());
        assert!(
            pools.can_hold([CLASSES[0]; 9].into_iter()),
            "what could be had counts, not what can be had now"
        );
        assert!(!pools.can_hold([CLASSES[0]; 10].into_iter()));
        assert!(!pools.can_hold([CLASSES[2]; 2].into_iter()));
        assert!(!pools.can_hold([MAX_TRANSFER + 1].into_iter()));
        drop(all);
        assert!(pools.take(MAX_TRANSFER + 1).is_none());
        assert_eq!(pools.in_use(), 0);
    }
}
