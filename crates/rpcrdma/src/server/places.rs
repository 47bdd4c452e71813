//! How many connections there may be: in all, and from one address, so that no machine can lock the others out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The places for connections. Clones share them.
#[derive(Clone)]
pub(super) struct Places {
    taken: Arc<Mutex<Taken>>,
    most: usize,
    most_per_peer: usize,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// A connection's place, given back by dropping it.
pub(super) struct Place {
    places: Places,
    peer: IpAddr,
}

impl Places {
    pub(super) fn new(most: usize, most_per_peer: usize) -> Self {
        Self { taken: Arc::default(), most, most_per_peer }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics between the writes of a guarded section.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `peer`, if there is one.
    pub(super) fn take(&self, peer: IpAddr) -> Option<Place> {
        let mut taken = self.taken();
        let by_peer = taken.by_peer.get(&peer).copied().unwrap_or(0);
        if taken.all >= self.most || by_peer >= self.most_per_peer {
            return None;
        }
        taken.all += 1;
        taken.by_peer.insert(peer, by_peer + 1);
        Some(Place { places: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all = taken.all.saturating_sub(1);
        match taken.by_peer.get_mut(&self.peer) {
            Some(n) if *n > 1 => *n -= 1,
            _ => {
                taken.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_more_than_a_share() {
        let places = Places::new(3, 2);
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let mut first = vec![places.take(a).unwrap(), places.take(a).unwrap()];
        assert!(places.take(a).is_none(), "a's share is taken");
        let second = places.take(b).unwrap();
        assert!(places.take(b).is_none(), "all are taken");
        first.pop();
        assert!(places.take(b).is_some());
        drop((first, second));
        assert!(places.taken().by_peer.is_empty() && places.taken().all == 0);
    }
}
