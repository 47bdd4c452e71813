//! The cache against a naive twin, and the rules one by one.

use alloc::vec::Vec;
use alloc::{format, vec};

use proptest::prelude::*;

use super::*;
use crate::rpc::{Flavor, OpaqueAuth};

const HERE: Client = Client { address: [1; 16], transport: 0 };

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn cache(max_entries: usize, max_bytes: usize) -> Cache {
    Cache::new(Limits { max_entries, max_bytes, lifetime: at(120) }, [3, 4])
}

fn header(xid: u32) -> CallHeader<'static> {
    let none = OpaqueAuth::NONE;
    CallHeader { xid: Xid(xid), prog: 100_003, vers: 3, proc: 12, cred: none, verf: none }
}

fn key(c: &Cache, xid: u32) -> Key {
    c.key(&header(xid), b"args", 4, HERE)
}

fn begin_new(c: &mut Cache, xid: u32, now: Duration) -> Ticket {
    let k = key(c, xid);
    match c.begin(&k, now) {
        Begin::New(ticket) => ticket,
        other => panic!("{xid}: {other:?}"),
    }
}

fn put(c: &mut Cache, xid: u32, reply: &[u8], now: Duration) {
    let ticket = begin_new(c, xid, now);
    c.finish(ticket, reply, now);
}

/// The Reply remembered for a Call; a Call that turns out to be new is forgotten again.
fn get(c: &mut Cache, xid: u32, now: Duration) -> Option<Vec<u8>> {
    let k = key(c, xid);
    match c.begin(&k, now) {
        Begin::Done(reply) => Some(reply.to_vec()),
        Begin::New(ticket) => {
            ticket.abandon();
            None
        }
        Begin::InProgress => panic!("{xid} is in progress"),
    }
}

#[test]
fn a_second_copy_waits_and_then_gets_the_first_reply() {
    let mut c = cache(4, 4096);
    let ticket = begin_new(&mut c, 1, at(0));
    let k = key(&c, 1);
    assert!(matches!(c.begin(&k, at(1)), Begin::InProgress));
    c.finish(ticket, b"reply", at(2));
    assert_eq!(get(&mut c, 1, at(3)).as_deref(), Some(&b"reply"[..]));
    assert_eq!((c.len(), c.bytes()), (1, 512));
}

#[test]
fn a_dropped_ticket_forgets_its_call() {
    let mut c = cache(4, 4096);
    drop(begin_new(&mut c, 1, at(0)));
    assert_eq!(c.len(), 1);
    let again = begin_new(&mut c, 1, at(0));
    assert_eq!(c.len(), 1);
    put(&mut c, 2, b"two", at(0));
    again.abandon();
    assert_eq!(get(&mut c, 2, at(0)).as_deref(), Some(&b"two"[..]));
    assert_eq!(c.len(), 1);
    // Its slot serves another Call, which the old ticket cannot touch.
    let other = begin_new(&mut c, 3, at(0));
    let k = key(&c, 3);
    assert!(matches!(c.begin(&k, at(0)), Begin::InProgress));
    c.finish(other, b"three", at(0));
    assert_eq!(get(&mut c, 3, at(0)).as_deref(), Some(&b"three"[..]));
}

#[test]
fn slots_are_used_again() {
    let mut c = cache(3, 1 << 20);
    for round in 0..100 {
        put(&mut c, round, &[0; 700], at(u64::from(round) * 50));
        drop(begin_new(&mut c, 1000 + round, at(u64::from(round) * 50)));
    }
    assert!(c.slots.len() <= 4, "{} slots for 3 entries", c.slots.len());
    assert!(c.spares.is_empty(), "a large buffer was kept");
    for round in 0..1000 {
        put(&mut c, round, b"small", at(10_000));
    }
    assert!(c.slots.len() <= 4 && c.spares.len() <= 4);
}

#[test]
fn small_buffers_are_kept_for_small_replies_and_not_too_many() {
    let mut c = cache(200, 1 << 20);
    assert!(c.is_empty());
    let tickets: Vec<_> = (0..SPARES as u32 + 2).map(|xid| begin_new(&mut c, xid, at(0))).collect();
    assert!(!c.is_empty());
    tickets.into_iter().for_each(|t| c.finish(t, b"small", at(0)));
    c.expire(at(1000));
    assert_eq!(c.spares.len(), SPARES);
    put(&mut c, 1, &[0; UNIT + 1], at(1000));
    assert_eq!(c.spares.len(), SPARES, "a larger Reply has a buffer of its own");
    put(&mut c, 2, &[0; UNIT], at(1000));
    assert_eq!(c.spares.len(), SPARES - 1);
}

#[test]
fn keys_are_spread_over_the_buckets() {
    let c = cache(64, 4096);
    let mut hit = [false; 64];
    (0..1000).for_each(|xid| hit[c.bucket(&key(&c, xid))] = true);
    assert!(hit.iter().all(|h| *h), "{hit:?}");
}

#[test]
fn tickets_may_be_dropped_by_other_threads() {
    fn send<T: Send>(_: &T) {}
    let mut c = cache(4, 4096);
    let ticket = begin_new(&mut c, 1, at(0));
    send(&c);
    send(&ticket);
}

#[test]
fn everything_in_the_key_counts() {
    let c = cache(4, 4096);
    let base = c.key(&header(1), b"args", 4, HERE);
    assert_eq!(base, c.key(&header(1), b"args", 4, HERE));
    let change = |f: &dyn Fn(&mut CallHeader<'static>)| {
        let mut h = header(1);
        f(&mut h);
        c.key(&h, b"args", 4, HERE)
    };
    let others = [
        change(&|h| h.xid = Xid(2)),
        change(&|h| h.prog = 100_005),
        change(&|h| h.vers = 2),
        change(&|h| h.proc = 13),
        change(&|h| h.cred.flavor = Flavor::SYS),
        change(&|h| h.cred.body = b"somebody"),
        c.key(&header(1), b"argz", 4, HERE),
        c.key(&header(1), b"args", 8, HERE),
        c.key(&header(1), b"args", 4, Client { transport: 1, ..HERE }),
        c.key(&header(1), b"args", 4, Client { address: [2; 16], ..HERE }),
    ];
    let mut filled = cache(4, 4096);
    put(&mut filled, 1, b"reply", at(0));
    assert!(matches!(filled.begin(&base, at(0)), Begin::Done(b"reply")));
    for (i, other) in others.iter().enumerate() {
        assert_ne!(*other, base, "{i}");
        assert!(matches!(filled.begin(other, at(0)), Begin::New(_)), "{i}");
    }
    // Only the first bytes of the arguments are looked at.
    let (mut a, mut b) = ([0u8; 300], [0u8; 300]);
    (a[299], b[255]) = (1, 1);
    assert_eq!(c.key(&header(1), &a, 300, HERE), c.key(&header(1), &[0; 300], 300, HERE));
    assert_ne!(c.key(&header(1), &b, 300, HERE), c.key(&header(1), &[0; 300], 300, HERE));
    // Another seed makes other hashes.
    let d = Cache::new(Limits::default(), [5, 6]);
    assert_ne!(d.key(&header(1), b"args", 4, HERE), base);
}

#[test]
fn the_least_recently_used_reply_goes_first() {
    let mut c = cache(3, 1 << 20);
    for xid in 1..=3 {
        put(&mut c, xid, &[xid as u8], at(0));
    }
    assert!(get(&mut c, 1, at(1)).is_some());
    put(&mut c, 4, b"4", at(2));
    assert_eq!(c.len(), 3);
    assert!(get(&mut c, 1, at(3)).is_some());
    assert!(get(&mut c, 3, at(3)).is_some());
    assert!(get(&mut c, 4, at(3)).is_some());
    assert!(get(&mut c, 2, at(3)).is_none());
}

#[test]
fn calls_in_progress_are_never_evicted() {
    let mut c = cache(2, 4096);
    let tickets: Vec<_> = (1..=5).map(|xid| begin_new(&mut c, xid, at(0))).collect();
    assert_eq!(c.len(), 5);
    for (i, ticket) in tickets.into_iter().enumerate() {
        c.finish(ticket, &[i as u8], at(1000));
    }
    assert_eq!(get(&mut c, 1, at(1000)), Some(vec![0]));
    // The next new Call brings the number of entries down to the limit.
    put(&mut c, 6, b"6", at(1000));
    assert_eq!(c.len(), 2);
    assert_eq!(get(&mut c, 1, at(1000)), Some(vec![0]));
}

#[test]
fn replies_are_bounded_in_bytes() {
    let mut c = cache(100, 2048);
    put(&mut c, 1, &[1; 513], at(0));
    put(&mut c, 2, &[2; 512], at(0));
    put(&mut c, 3, &[3; 1], at(0));
    assert_eq!((c.len(), c.bytes()), (3, 2048));
    put(&mut c, 4, &[4; 2], at(0));
    assert_eq!((c.len(), c.bytes()), (3, 1536));
    assert!(get(&mut c, 1, at(0)).is_none());
    put(&mut c, 5, &[5; 2048], at(0));
    assert_eq!((c.len(), c.bytes()), (1, 2048));
    put(&mut c, 6, &[6; 2049], at(0));
    assert!(get(&mut c, 6, at(0)).is_none());
    assert_eq!(get(&mut c, 5, at(0)), Some(vec![5; 2048]));
}

#[test]
fn a_reply_lives_until_its_lifetime_after_its_last_use() {
    let mut c = cache(10, 4096);
    put(&mut c, 1, b"1", at(0));
    put(&mut c, 2, b"2", at(0));
    assert!(get(&mut c, 1, at(119)).is_some());
    assert!(get(&mut c, 2, at(120)).is_none());
    assert!(get(&mut c, 1, at(238)).is_some());
    c.expire(at(357));
    assert_eq!(c.len(), 1);
    c.expire(at(358));
    assert_eq!((c.len(), c.bytes()), (0, 0));
    assert!(c.is_empty());
}

#[test]
fn a_ticket_means_nothing_to_another_cache() {
    let (mut a, mut b) = (cache(4, 4096), cache(4, 4096));
    let ticket = begin_new(&mut a, 1, at(0));
    let theirs = begin_new(&mut b, 1, at(0));
    b.finish(ticket, b"wrong", at(0));
    let k = key(&b, 1);
    assert!(matches!(b.begin(&k, at(0)), Begin::InProgress));
    drop(theirs);
}

/// The same rules, written down without any index.
#[derive(Default)]
struct Naive {
    limits: Limits,
    /// Finished Replies, least recently used first.
    done: Vec<(u32, Vec<u8>, Duration)>,
    running: Vec<u32>,
}

impl Naive {
    fn begin(&mut self, xid: u32, now: Duration) -> Option<Result<Vec<u8>, ()>> {
        let lifetime = self.limits.lifetime;
        self.done.retain(|(_, _, used)| now.saturating_sub(*used) < lifetime);
        if self.running.contains(&xid) {
            return Some(Err(()));
        }
        if let Some(i) = self.done.iter().position(|d| d.0 == xid) {
            let (_, reply, _) = self.done.remove(i);
            self.done.push((xid, reply.clone(), now));
            return Some(Ok(reply));
        }
        while self.done.len() + self.running.len() >= self.limits.max_entries && !self.done.is_empty() {
            self.done.remove(0);
        }
        self.running.push(xid);
        None
    }

    fn bytes(&self) -> usize {
        self.done.iter().map(|(_, reply, _)| reply.len().max(1).next_multiple_of(512)).sum()
    }

    fn finish(&mut self, xid: u32, reply: &[u8], now: Duration) {
        self.running.retain(|r| *r != xid);
        if reply.len().max(1).next_multiple_of(512) > self.limits.max_bytes {
            return;
        }
        self.done.push((xid, reply.to_vec(), now));
        while self.bytes() > self.limits.max_bytes {
            self.done.remove(0);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Begin(u32),
    Finish(prop::sample::Index, usize),
    Abandon(prop::sample::Index),
    Wait(u64),
    Expire,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..24u32).prop_map(Step::Begin),
        5 => (any::<prop::sample::Index>(), 0..2000usize).prop_map(|(i, n)| Step::Finish(i, n)),
        1 => any::<prop::sample::Index>().prop_map(Step::Abandon),
        2 => (0..60u64).prop_map(Step::Wait),
        1 => Just(Step::Expire),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn the_cache_and_its_naive_twin_agree(steps in steps(), max_entries in 1..12usize, max_bytes in 0..6000usize) {
        let limits = Limits { max_entries, max_bytes, lifetime: at(100) };
        let mut real = Cache::new(limits, [1, 2]);
        let mut naive = Naive { limits, ..Naive::default() };
        let mut tickets: Vec<(u32, Ticket)> = vec![];
        let mut now = at(0);
        let mut count = 0u32;
        for step in steps {
            match step {
                Step::Begin(xid) => {
                    let k = key(&real, xid);
                    let got = match real.begin(&k, now) {
                        Begin::New(ticket) => {
                            tickets.push((xid, ticket));
                            None
                        }
                        Begin::InProgress => Some(Err(())),
                        Begin::Done(reply) => Some(Ok(reply.to_vec())),
                    };
                    prop_assert_eq!(got, naive.begin(xid, now), "begin {}", xid);
                    prop_assert_eq!(real.len(), naive.done.len() + naive.running.len());
                }
                Step::Finish(i, len) if !tickets.is_empty() => {
                    let (xid, ticket) = tickets.swap_remove(i.index(tickets.len()));
                    count += 1;
                    let reply: Vec<u8> = format!("{count} ").bytes().cycle().take(len).collect();
                    real.finish(ticket, &reply, now);
                    naive.finish(xid, &reply, now);
                }
                Step::Abandon(i) if !tickets.is_empty() => {
                    let (xid, ticket) = tickets.swap_remove(i.index(tickets.len()));
                    drop(ticket);
                    naive.running.retain(|r| *r != xid);
                }
                Step::Wait(seconds) => now += at(seconds),
                Step::Expire => {
                    real.expire(now);
                    let lifetime = limits.lifetime;
                    naive.done.retain(|(_, _, used)| now.saturating_sub(*used) < lifetime);
                }
                _ => {}
            }
            prop_assert_eq!(real.bytes(), naive.bytes());
            prop_assert!(real.bytes() <= max_bytes);
        }
    }
}
