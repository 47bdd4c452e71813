//! A bounded map that forgets what was not used for long.
//!
//! The second-chance algorithm: a hand goes round the slots, takes away the mark of those that were used since it last
//! came by, and evicts the first one without. A hit costs one hash lookup and sets a mark; nothing is allocated once
//! the map has reached its size.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

struct Slot<K, V> {
    key: K,
    value: V,
    used: bool,
}

/// A map of at most `capacity` entries.
pub(super) struct Cache<K, V> {
    index: HashMap<K, usize>,
    slots: Vec<Slot<K, V>>,
    hand: usize,
    capacity: usize,
}

impl<K: Copy + Eq + Hash, V> Cache<K, V> {
    /// An empty one; it always has room for at least one entry.
    pub(super) fn new(capacity: usize) -> Self {
        Self { index: HashMap::new(), slots: Vec::new(), hand: 0, capacity: capacity.max(1) }
    }

    pub(super) fn get(&mut self, key: &K) -> Option<&mut V> {
        let slot = &mut self.slots[*self.index.get(key)?];
        slot.used = true;
        Some(&mut slot.value)
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.index.contains_key(key)
    }

    /// Enters a value, and returns the one that had to go for it: the key's former one, or somebody else's. The caller
    /// drops it, best after the lock around the cache.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let next = self.slots.len();
        match self.index.entry(key) {
            Entry::Occupied(entry) => {
                let slot = &mut self.slots[*entry.get()];
                slot.used = true;
                return Some(std::mem::replace(&mut slot.value, value));
            }
            Entry::Vacant(entry) if next < self.capacity => {
                entry.insert(next);
                self.slots.push(Slot { key, value, used: false });
                return None;
            }
            Entry::Vacant(_) => {}
        }
        let victim = loop {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            if !std::mem::take(&mut self.slots[at].used) {
                break at;
            }
        };
        let old = std::mem::replace(&mut self.slots[victim], Slot { key, value, used: false });
        self.index.remove(&old.key);
        self.index.insert(key, victim);
        Some(old.value)
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.index.remove(key)?;
        let slot = self.slots.swap_remove(at);
        if let Some(moved) = self.slots.get(at) {
            self.index.insert(moved.key, at);
        }
        if self.hand >= self.slots.len() {
            self.hand = 0;
        }
        Some(slot.value)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_used_stays() {
        let mut cache = Cache::new(3);
        for key in 0..3 {
            assert_eq!(cache.insert(key, key * 10), None);
        }
        assert_eq!(cache.get(&0), Some(&mut 0));
        assert_eq!(cache.insert(3, 30), Some(10));
        assert!(cache.contains(&0) && !cache.contains(&1) && cache.contains(&2) && cache.contains(&3));
        assert_eq!(cache.insert(3, 31), Some(30));
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Get(u8),
        Insert(u8, u32),
        Remove(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..16u8).prop_map(Op::Get),
            (0..16u8, any::<u32>()).prop_map(|(k, v)| Op::Insert(k, v)),
            (0..16u8).prop_map(Op::Remove),
        ]
    }

    proptest! {
        #[test]
        fn it_never_lies_and_never_grows(ops in proptest::collection::vec(op(), 0..200), capacity in 0..9usize) {
            let mut cache = Cache::new(capacity);
            let mut model = HashMap::new();
            for op in ops {
                match op {
                    Op::Get(key) => if let Some(value) = cache.get(&key) {
                        prop_assert_eq!(Some(&*value), model.get(&key));
                    },
                    Op::Insert(key, value) => {
                        cache.insert(key, value);
                        model.insert(key, value);
                        prop_assert_eq!(cache.get(&key), Some(&mut { value }));
                    }
                    Op::Remove(key) => {
                        if let Some(value) = cache.remove(&key) {
                            prop_assert_eq!(Some(value), model.get(&key).copied());
                        }
                        model.remove(&key);
                        prop_assert!(!cache.contains(&key));
                    }
                }
                prop_assert!(cache.len() <= capacity.max(1));
                prop_assert_eq!(cache.len(), cache.index.len());
            }
        }
    }
}
