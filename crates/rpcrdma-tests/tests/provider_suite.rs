//! What every provider must do, written against the seam alone and run for each provider that we have; in the end with a
//! client and a server of ours on it.
//!
//! A provider is a [`Provider`]: something that makes a listener and a connector for it. [`suite!`] runs every test for
//! one of them. What differs between transports, such as the words in an error, is not looked at here.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    collections::HashMap,
    future::poll_fn,
    net::IpAddr,
    sync::atomic::{AtomicU16, Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use rpcrdma_fabric::{
    Access, Answer, Completion, ConnectError, Connector, Exposed, Listener, Lost, Op, QpLimits, QueuePair,
    Region, RejectReason, RemoteSegment, RemoteSegments, Shutdown, Stag, Start, Work,
    sim::{Face, NoFaults, Profile, Sim},
};

#[path = "support/calls.rs"]
mod calls;
use calls::happen_once_while_connections_are_cut as calls_happen_once_while_connections_are_cut;

/// Makes both sides of a transport. The listener listens where the connector can reach it.
trait Provider {
    /// Why it cannot be tried on this machine, if so.
    fn missing(&self) -> Option<String> {
        None
    }

    fn listener(&self) -> Box<dyn Listener>;
    fn connector(&self) -> Box<dyn Connector>;
}

/// Says of a test that it passes without having tried all it is for. Whoever runs the suite on a device counts these lines.
fn skipped(why: &str) {
    println!("skipped: {why}");
}

macro_rules! suite {
    ($provider:ident, $make:expr; $($test:ident),* $(,)?) => {
        mod $provider {
            $(
                #[tokio::test]
                async fn $test() {
                    let provider: &dyn super::Provider = &$make;
                    if let Some(why) = provider.missing() {
                        return super::skipped(&why);
                    }
                    super::in_time(super::$test(provider)).await;
                }
            )*
        }
    };
    ($provider:ident, $make:expr) => {
        suite!($provider, $make;
            messages_arrive_in_order,
            a_message_may_be_empty_or_fill_its_receive,
            private_data_is_exchanged,
            a_rejection_carries_private_data,
            nobody_listening_is_an_error,
            writes_land_before_a_later_message,
            reads_fetch_what_is_exposed,
            many_segments_are_one_work,
            only_the_exposed_bytes_are_reachable,
            rights_are_kept,
            an_invalidated_tag_is_dead,
            a_message_invalidates_a_tag,
            invalidating_twice_is_harmless,
            tags_are_not_used_again_at_once,
            a_message_without_a_receive_is_fatal,
            a_message_that_does_not_fit_is_fatal,
            too_much_is_refused_and_comes_back,
            more_reads_than_may_be_open,
            a_graceful_end_delivers,
            an_abort_gives_everything_back,
            a_dropped_peer_is_noticed,
            work_after_the_end_is_refused,
            both_sides_talk_at_once,
            memory_is_free_when_work_is_done,
            several_connections_do_not_mix,
            calls_happen_once_while_connections_are_cut,
        );
    };
}

struct Softiwarp(softiwarp::Config);

impl Provider for Softiwarp {
    fn listener(&self) -> Box<dyn Listener> {
        Box::new(softiwarp::Listener::bind("127.0.0.1:0".parse().unwrap(), self.0.clone()).unwrap())
    }

    fn connector(&self) -> Box<dyn Connector> {
        Box::new(softiwarp::Connector::new(self.0.clone()))
    }
}

fn softiwarp(change: impl FnOnce(&mut softiwarp::Config)) -> Softiwarp {
    let mut config = softiwarp::Config::default();
    change(&mut config);
    Softiwarp(config)
}

suite!(softiwarp_with_crc, crate::softiwarp(|c| c.crc = true));
suite!(softiwarp_without_crc, crate::softiwarp(|c| c.crc = false));
suite!(softiwarp_peer_to_peer, crate::softiwarp(|c| c.peer_to_peer = true));
suite!(softiwarp_revision_1, crate::softiwarp(|c| c.revision = 1));
suite!(softiwarp_spinning, crate::softiwarp(|c| c.spin = Some(std::time::Duration::from_micros(30))));
suite!(softiwarp_solicited, crate::softiwarp(|c| c.solicited = true));
suite!(softiwarp_small_segments, crate::softiwarp(|c| c.max_ulpdu = 200));

/// RNICs. They are tried where the environment names an address of one, `RPCRDMA_VERBS_ADDRESS=10.0.2.15`.
struct Verbs(rpcrdma_verbs::Config);

impl Verbs {
    const ADDRESS: &str = "RPCRDMA_VERBS_ADDRESS";
}

impl Provider for Verbs {
    fn missing(&self) -> Option<String> {
        std::env::var_os(Self::ADDRESS).is_none().then(|| format!("{} is not set", Self::ADDRESS))
    }

    fn listener(&self) -> Box<dyn Listener> {
        let address: IpAddr = std::env::var(Self::ADDRESS).unwrap().parse().unwrap();
        Box::new(rpcrdma_verbs::Listener::bind((address, 0).into(), self.0.clone()).unwrap())
    }

    fn connector(&self) -> Box<dyn Connector> {
        Box::new(rpcrdma_verbs::Connector::new(self.0.clone()))
    }
}

fn verbs(change: impl FnOnce(&mut rpcrdma_verbs::Config)) -> Verbs {
    let mut config = rpcrdma_verbs::Config::default();
    change(&mut config);
    Verbs(config)
}

suite!(verbs, crate::verbs(|_| ()));
suite!(verbs_without_windows, crate::verbs(|c| c.windows = false));
suite!(verbs_spinning, crate::verbs(|c| c.spin = Some(std::time::Duration::from_micros(30))));

/// The simulated fabric, which has to be a provider like the others, or what is shown on it says nothing of them.
struct Simulated {
    sim: Sim,
    port: AtomicU16,
}

impl Provider for Simulated {
    fn listener(&self) -> Box<dyn Listener> {
        let port = self.port.fetch_add(1, Ordering::Relaxed);
        Box::new(self.sim.listen(([10, 0, 0, 1], port).into()))
    }

    fn connector(&self) -> Box<dyn Connector> {
        Box::new(self.sim.connector(IpAddr::from([10, 0, 1, 1])))
    }
}

/// A world whose time is that of the test's runtime, which lets its steps happen.
fn simulated(change: impl FnOnce(&mut Profile)) -> Simulated {
    let mut profile = Profile::default();
    change(&mut profile);
    let epoch = tokio::time::Instant::now();
    let sim = Sim::new(7, profile, Box::new(move || epoch.elapsed()), Box::new(NoFaults), None);
    let world = sim.clone();
    tokio::spawn(async move {
        loop {
            if world.step() {
                // Whoever was woken by that gets a turn.
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    Simulated { sim, port: AtomicU16::new(1) }
}

suite!(simulated_iwarp, crate::simulated(|_| ()));
suite!(
    simulated_infiniband,
    crate::simulated(|p| {
        p.face = crate::Face::InfiniBand { rnr_retry: 3, rnr_timer: 1 };
        p.late_ready = true;
        p.remote_invalidation = false;
    })
);
suite!(
    simulated_slow,
    crate::simulated(|p| {
        p.batch = 1;
        p.fragment = 1000;
        p.completion = 0..=20;
        p.laggard = (3, 30);
        p.notification = (4, 10);
        p.flush = 0..=10;
    })
);

/// A test that makes no progress fails and does not hang.
async fn in_time(test: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test makes no progress");
}

/// One end and what it has reported.
struct End {
    qp: Box<dyn QueuePair>,
    done: Vec<Completion>,
    lost: Option<Lost>,
}

impl End {
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if self.lost.is_some() {
            return false;
        }
        let before = self.done.len();
        match self.qp.poll(cx, &mut self.done) {
            Poll::Pending => {
                assert_eq!(self.done.len(), before, "completions and Pending");
                false
            }
            Poll::Ready(Ok(())) => {
                assert!(self.done.len() > before, "Ready without completions");
                true
            }
            Poll::Ready(Err(lost)) => {
                self.lost = Some(lost);
                true
            }
        }
    }

    fn received(&self) -> Vec<&[u8]> {
        let message = |c| match c {
            &Completion::Received { ref buf, len, .. } => Some(&buf[..len]),
            _ => None,
        };
        self.done.iter().filter_map(message).collect()
    }

    fn finished(&self) -> Vec<(u64, Op)> {
        let finished = |c: &Completion| match c {
            Completion::Done { id, op, .. } => Some((*id, *op)),
            _ => None,
        };
        self.done.iter().filter_map(finished).collect()
    }

    fn flushed(&self, which: Op) -> usize {
        self.done.iter().filter(|c| matches!(c, Completion::Flushed { op, .. } if *op == which)).count()
    }

    fn reclaimed(&self) -> HashMap<Stag, &[u8]> {
        let reclaimed = |c| match c {
            &Completion::Reclaimed { stag, ref buf } => Some((stag, &buf[..])),
            _ => None,
        };
        self.done.iter().filter_map(reclaimed).collect()
    }

    /// The memory of finished work.
    fn memory(&self, which: u64) -> &[u8] {
        let memory = |c| match c {
            &Completion::Done { id, ref buf, .. } if id == which => Some(&buf[..]),
            _ => None,
        };
        self.done.iter().find_map(memory).expect("the work has finished")
    }

    fn send(&mut self, id: u64, bytes: &[u8]) {
        let work = Work::Send { id, buf: Region::from(bytes), len: bytes.len(), invalidate: None };
        self.qp.post(work).unwrap();
    }

    fn expose(&mut self, bytes: &[u8], access: Access) -> Exposed {
        self.expose_part(bytes, bytes.len(), access)
    }

    /// Exposes the first bytes of a region, and lets it come into effect, as no message tells the peer of it here.
    fn expose_part(&mut self, bytes: &[u8], len: usize, access: Access) -> Exposed {
        let exposed = self.qp.expose(Region::from(bytes), len as u32, access).unwrap();
        self.poll(&mut Context::from_waker(Waker::noop()));
        exposed
    }
}

struct Pair {
    active: End,
    passive: End,
}

impl Pair {
    async fn drive(&mut self, mut enough: impl FnMut(&mut End, &mut End) -> bool) {
        poll_fn(|cx| {
            loop {
                if enough(&mut self.active, &mut self.passive) {
                    return Poll::Ready(());
                }
                if !(self.active.poll(cx) | self.passive.poll(cx)) {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }

    async fn until_lost(&mut self) -> (Lost, Lost) {
        self.drive(|a, b| a.lost.is_some() && b.lost.is_some()).await;
        (self.active.lost.clone().unwrap(), self.passive.lost.clone().unwrap())
    }
}

fn start(recvs: usize, len: usize) -> Start {
    Start { recvs: (0..recvs).map(|_| Region::alloc(len)).collect(), ..Start::default() }
}

async fn try_connect(
    listener: &mut Box<dyn Listener>,
    connector: &dyn Connector,
    active: Start,
    answer: Answer,
) -> (Result<End, ConnectError>, Result<End, ConnectError>) {
    let to = listener.local_addr();
    let passive = async {
        let request = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
        request.accept(Box::new(|_| answer)).await
    };
    let (active, passive) = tokio::join!(connector.connect(to, active), passive);
    let end = |qp| End { qp, done: Vec::new(), lost: None };
    (active.map(end), passive.map(end))
}

async fn connect_with(provider: &dyn Provider, active: Start, passive: Start) -> Pair {
    let (active, passive) =
        try_connect(&mut provider.listener(), provider.connector().as_ref(), active, Answer::Accept(passive))
            .await;
    Pair { active: active.unwrap(), passive: passive.unwrap() }
}

/// Connected, and both sides have been heard.
async fn connect(provider: &dyn Provider) -> Pair {
    let mut pair = connect_with(provider, start(9, 4096), start(9, 4096)).await;
    pair.active.send(0, b"hello");
    pair.drive(|a, b| a.finished().len() == 1 && b.received().len() == 1).await;
    pair.active.done.clear();
    pair.passive.done.clear();
    pair
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 8) ^ seed.wrapping_mul(59)) as u8).collect()
}

fn at(e: Exposed) -> RemoteSegment {
    RemoteSegment { stag: e.stag, offset: e.offset, len: e.len }
}

fn one(segment: RemoteSegment) -> RemoteSegments {
    RemoteSegments::from_slice(&[segment])
}

async fn messages_arrive_in_order(provider: &dyn Provider) {
    let mut pair = connect(provider).await;
    let messages: Vec<_> = (0..8).map(|i| bytes(i * 500, i)).collect();
    for (i, message) in messages.iter().enumerate() {
        pair.active.send(i as u64, message);
    }
    pair.drive(|a, b| b.received().len() == 8 && a.finished().len() == 8).await;
    assert_eq!(pair.passive.received(), messages);
    let order: Vec<_> = (0..8).map(|i| (i, Op::Send)).collect();
    assert_eq!(pair.active.finished(), order);
}

async fn a_message_may_be_empty_or_fill_its_receive(provider: &dyn Provider) {
    let mut pair = connect(provider).await;
    pair.passive.send(1, b"");
    pair.passive.send(2, &bytes(4096, 1));
    pair.drive(|a, _| a.received().len() == 2).await;
    assert_eq!(pair.active.received(), [&[][..], &bytes(4096, 1)]);
}

async fn private_data_is_exchanged(provider: &dyn Provider) {
    let start = |data: &[u8]| Start { private_data: data.to_vec(), ..start(1, 64) };
    let mut listener = provider.listener();
    let to = listener.local_addr();
    let connector = provider.connector();
    let mut asked = Vec::new();
    let (active, passive) = tokio::join!(connector.connect(to, start(b"question")), async {
        let request = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
        let decide = |data: &[u8]| {
            asked = data.to_vec();
            Answer::Accept(start(b"answer"))
        };
        request.accept(Box::new(decide)).await
    });
    let (active, passive) = (active.unwrap(), passive.unwrap());
    assert!(asked.starts_with(b"question") && passive.peer().private_data.starts_with(b"question"));
    assert!(active.peer().private_data.starts_with(b"answer"));
    assert_eq!(active.peer().addr, to);
    assert!(!active.peer().transport.is_empty());
}

async fn a_rejection_carries_private_data(provider: &dyn Provider) {
    let answer = Answer::Reject(b"full".to_vec());
    let connector = provider.connector();
    let (active, passive) =
        try_connect(&mut provider.listener(), connector.as_ref(), start(1, 64), answer).await;
    assert!(passive.is_err());
    let Err(ConnectError::Refused(data)) = active.map(|_| ()) else { panic!("not refused") };
    assert!(data.starts_with(b"full"));
}

async fn nobody_listening_is_an_error(provider: &dyn Provider) {
    let to = provider.listener().local_addr();
    assert!(provider.connector().connect(to, start(1, 64)).await.is_err());
}

async fn writes_land_before_a_later_message(provider: &dyn Provider) {
    for len in [0, 1, 4095, 65_536, 1 << 20] {
        let mut pair = connect(provider).await;
        let target = pair.passive.expose(&vec![0; len], Access::RemoteWrite);
        let data = bytes(len + 7, 3);
        let buf = Region::from(&data[..]);
        pair.active.qp.post(Work::Write { id: 1, buf, at: 7, to: one(at(target)) }).unwrap();
        pair.active.send(2, b"written");
        pair.drive(|_, b| b.received().len() == 1).await;
        pair.passive.qp.invalidate(target.stag);
        pair.drive(|_, b| b.reclaimed().len() == 1).await;
        assert!(pair.passive.reclaimed()[&target.stag] == &data[7..]);
    }
}

async fn reads_fetch_what_is_exposed(provider: &dyn Provider) {
    for len in [0, 1, 4095, 65_536, 1 << 20] {
        let mut pair = connect(provider).await;
        let data = bytes(len, 4);
        let source = pair.passive.expose(&data, Access::RemoteRead);
        let buf = Region::alloc(len + 3);
        pair.active.qp.post(Work::Read { id: 1, buf, at: 3, from: one(at(source)) }).unwrap();
        pair.drive(|a, _| a.finished() == [(1, Op::Read)]).await;
        assert!(pair.active.memory(1)[3..] == data);
    }
}

async fn many_segments_are_one_work(provider: &dyn Provider) {
    let mut pair = connect(provider).await;
    let lens = [10, 70_000, 1, 0, 333];
    let total: usize = lens.iter().sum();
    let data = bytes(total, 5);
    let mut rest = &data[..];
    let (mut to, mut from) = (RemoteSegments::new(), RemoteSegments::new());
    for len in lens {
        let (part, tail) = rest.split_at(len);
        rest = tail;
        to.push(at(pair.passive.expose(&vec![0; len], Access::RemoteWrite)));
        from.push(at(pair.passive.expose(part, Access::RemoteRead)));
    }
    let buf = Region::from(&data[..]);
    pair.active.qp.post(Work::Write { id: 1, buf, at: 0, to: to.clone() }).unwrap();
    pair.active.qp.post(Work::Read { id: 2, buf: Region::alloc(total), at: 0, from }).unwrap();
    pair.active.send(3, b"");
    pair.drive(|a, b| a.finished().len() == 3 && b.received().len() == 1).await;
    assert!(pair.active.memory(2) == data);
    for segment in &to {
        pair.passive.qp.invalidate(segment.stag);
    }
    pair.drive(|_, b| b.reclaimed().len() == lens.len()).await;
    let written: Vec<u8> =
        to.iter().flat_map(|segment| pair.passive.reclaimed()[&segment.stag].to_vec()).collect();
    assert!(written == data);
}

/// Does work that the peer must refuse, and expects the end of the connection and memory that is as it was.
async fn refused(provider: &dyn Provider, access: Access, work: impl Fn(RemoteSegment) -> Work) {
    let mut pair = connect(provider).await;
    // The region is longer than what the peer may reach of it.
    let target = pair.passive.expose_part(&[9; 300], 100, access);
    pair.active.qp.post(work(at(target))).unwrap();
    pair.until_lost().await;
    assert_eq!(pair.passive.reclaimed()[&target.stag], [9; 300]);
    assert_eq!(pair.passive.received().len(), 0);
}

fn write(to: RemoteSegment) -> Work {
    let buf = Region::alloc(to.len as usize);
    Work::Write { id: 1, buf, at: 0, to: one(to) }
}

fn read(from: RemoteSegment) -> Work {
    let buf = Region::alloc(from.len as usize);
    Work::Read { id: 1, buf, at: 0, from: one(from) }
}

async fn only_the_exposed_bytes_are_reachable(provider: &dyn Provider) {
    refused(provider, Access::RemoteWrite, |s| write(RemoteSegment { len: 101, ..s })).await;
    refused(provider, Access::RemoteWrite, |s| write(RemoteSegment { offset: s.offset + 100, len: 1, ..s }))
        .await;
    refused(provider, Access::RemoteWrite, |s| write(RemoteSegment { stag: Stag(s.stag.0 ^ 4), ..s })).await;
    refused(provider, Access::RemoteRead, |s| read(RemoteSegment { len: 101, ..s })).await;
    refused(provider, Access::RemoteRead, |s| read(RemoteSegment { offset: s.offset + 1, ..s })).await;
    refused(provider, Access::RemoteRead, |s| read(RemoteSegment { stag: Stag(s.stag.0 ^ 4), ..s })).await;
}

async fn rights_are_kept(provider: &dyn Provider) {
    refused(provider, Access::RemoteRead, write).await;
    if connect(provider).await.active.qp.peer().transport.contains("siw") {
        return skipped("siw says only at the end that it gives nothing to a Read of what is for writing");
    }
    refused(provider, Access::RemoteWrite, read).await;
}

async fn an_invalidated_tag_is_dead(provider: &dyn Provider) {
    let mut pair = connect(provider).await;
    let target = pair.passive.expose(&[9; 50], Access::RemoteWrite);
    pair.passive.qp.invalidate(target.stag);
    pair.drive(|_, b| b.reclaimed().len() == 1).await;
    pair.active.qp.post(write(at(target))).unwrap();
    pair.until_lost().await;
    assert_eq!(pair.passive.reclaimed()[&target.stag], [9; 50]);
}

async fn a_message_invalidates_a_tag(provider: &dyn Provider) {
    let mut pair = connect(provider).await;
    if !pair.active.qp.peer().remote_invalidation {
        return skipped("no remote invalidation");
    }
    let target = pair.active.expose(&[0; 50], Access::RemoteWrite);
    pair.passive.qp.post(write(at(target))).unwrap();
    let buf = Region::from(&b"reply"[..]);
    pair.passive.qp.post(Work::Send { id: 2, buf, len: 5, invalidate: Some(target.stag) }).unwrap();
    pair.drive(|a, _| a.received().len() == 1).await;
    let [
        Completion::Reclaimed { stag, .. },
        Completion::Received { invalidated: Some(invalidated), len: 5, .. },
    ] = &pair.active.done[..]
    else {
        panic!("{:?}", pair.active.done)
    };
    assert_eq!((*stag, *invalidated), (target.stag, target.stag));
    pair.active.qp.invalidate(target.stag);
    pair.passive.qp.post(write(at(target))).unwrap();
    pair.until_lost().await;
}

async fn invalidating_twice_is_harmless(provider: &dyn Provider) {
    let mut pair = connect(provider).await;
    let e = pair.passive.expose(&[1; 8], Access::RemoteRead);
    pair.passive.qp.invalidate(e.stag);
    pair.passive.qp.invalidate(e.stag);
    pair.passive.qp.invalidate(Stag(12345));
    pair.drive(|_, b| b.reclaimed().len() == 1).await;
    // Nothing else comes back, and the connection goes on.
    pair.active.send(1, b"x");
    pair.drive(|_, b| b.received().len() == 1).await;
    assert_eq!(pair.passive.reclaimed().len(), 1);
}

async fn tags_are_not_used_again_at_once(provider: &dyn Provider) {
    let mut pair = connect(provider).await;
    let mut seen = std::collections::HashSet::new();
    for n in 1..=64 {
        let e = pair.passive.expose(&[1; 8], Access::RemoteRead);
        assert!(seen.insert(e.stag), "a tag was used again");
        pair.passive.qp.invalidate(e.stag);
        pair.drive(|_, b| b.reclaimed().len() == n).await;
    }
}

async fn a_message_without_a_receive_is_fatal(provider: &dyn Provider) {
    let mut pair = connect_with(provider, start(2, 64), start(2, 64)).await;
    for id in 0..3 {
        pair.active.send(id, b"message");
    }
    pair.until_lost().await;
    assert_eq!(pair.passive.received().len(), 2, "the third is not kept");
    assert_eq!(pair.active.flushed(Op::Recv), 2);
}

async fn a_message_that_does_not_fit_is_fatal(provider: &dyn Provider) {
    let mut pair = connect_with(provider, start(2, 64), start(2, 64)).await;
    pair.active.send(0, &[1; 64]);
    pair.active.send(1, &[1; 65]);
    pair.until_lost().await;
    assert_eq!(pair.passive.received(), [[1; 64]]);
    assert_eq!(pair.passive.flushed(Op::Recv), 1);
}

async fn too_much_is_refused_and_comes_back(provider: &dyn Provider) {
    let limits = QpLimits { recvs: 3, sends: 3, exposed: 2, ..QpLimits::default() };
    let active = Start { limits, ..start(1, 64) };
    let mut pair = connect_with(provider, active, start(1, 64)).await;
    let qp = &mut pair.active.qp;
    let limits = qp.limits();
    assert!(limits.recvs <= 3 && limits.sends <= 3 && limits.exposed <= 2);
    let mut recvs = 1;
    let refused = loop {
        match qp.post_recv(Region::alloc(77)) {
            Ok(()) => recvs += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!((refused.why, refused.item.len(), recvs), (RejectReason::QueueFull, 77, limits.recvs));
    for _ in 0..limits.exposed {
        qp.expose(Region::alloc(5), 5, Access::RemoteRead).unwrap();
    }
    let refused = qp.expose(Region::alloc(5), 5, Access::RemoteRead).unwrap_err();
    assert_eq!((refused.why, refused.item.len()), (RejectReason::TooManyRegions, 5));
    let work = |len| Work::Send { id: 1, buf: Region::alloc(9), len, invalidate: None };
    assert_eq!(qp.post(work(10)).unwrap_err().why, RejectReason::OutOfRange);
    for _ in 0..limits.sends {
        qp.post(work(0)).unwrap();
    }
    let refused = qp.post(work(0)).unwrap_err();
    assert_eq!(refused.why, RejectReason::QueueFull);
    assert!(matches!(refused.item, Work::Send { buf, .. } if buf.len() == 9));
    let outside = RemoteSegment { stag: Stag(1), offset: 0, len: 10 };
    let work = Work::Write { id: 1, buf: Region::alloc(19), at: 10, to: one(outside) };
    assert!(qp.post(work).is_err());
}

async fn more_reads_than_may_be_open(provider: &dyn Provider) {
    let limits = QpLimits { outbound_reads: 2, ..QpLimits::default() };
    let active = Start { limits, ..start(1, 64) };
    let mut pair = connect_with(provider, active, start(1, 64)).await;
    let data = bytes(5000, 8);
    let source = pair.passive.expose(&data, Access::RemoteRead);
    for id in 0..50 {
        let from = RemoteSegment { stag: source.stag, offset: source.offset + 100 * id, len: 100 };
        let from = one(from);
        pair.active.qp.post(Work::Read { id, buf: Region::alloc(100), at: 0, from }).unwrap();
    }
    pair.drive(|a, _| a.finished().len() == 50).await;
    let order: Vec<_> = (0..50).map(|id| (id, Op::Read)).collect();
    assert_eq!(pair.active.finished(), order);
    for (id, part) in data.chunks(100).enumerate() {
        assert_eq!(pair.active.memory(id as u64), part);
    }
}

async fn a_graceful_end_delivers(provider: &dyn Provider) {
    let mut pair = connect_with(provider, start(2, 64), start(20, 60_000)).await;
    for id in 0..20 {
        pair.active.send(id, &bytes(60_000, id as usize));
    }
    pair.active.qp.shutdown(Shutdown::Graceful);
    let (active, passive) = pair.until_lost().await;
    assert_eq!((active, passive), (Lost::Closed, Lost::PeerClosed));
    assert_eq!(pair.passive.received().len(), 20);
    assert_eq!(pair.active.finished().len(), 20);
}

async fn an_abort_gives_everything_back(provider: &dyn Provider) {
    let mut pair = connect(provider).await;
    let source = pair.passive.expose(&[3; 100], Access::RemoteRead);
    pair.active.expose(&[1; 10], Access::RemoteRead);
    pair.active.expose(&[1; 10], Access::RemoteWrite);
    pair.active.send(1, b"one");
    pair.active.qp.post(read(at(source))).unwrap();
    let target = RemoteSegment { stag: Stag(1), offset: 0, len: 8 };
    pair.active.qp.post(write(target)).unwrap();
    pair.active.qp.shutdown(Shutdown::Abort);
    let (active, _) = pair.until_lost().await;
    assert_eq!(active, Lost::Closed);
    let flushed = [Op::Send, Op::Read, Op::Write, Op::Recv].map(|op| pair.active.flushed(op));
    assert_eq!((flushed, pair.active.reclaimed().len()), ([1, 1, 1, 9], 2));
    assert_eq!(pair.passive.flushed(Op::Recv), 8);
    assert_eq!(pair.passive.reclaimed().len(), 1);
    for end in [&mut pair.active, &mut pair.passive] {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..2 {
            let lost = end.lost.clone().unwrap();
            assert_eq!(end.qp.poll(&mut cx, &mut end.done), Poll::Ready(Err(lost)), "always the same");
        }
    }
}

async fn a_dropped_peer_is_noticed(provider: &dyn Provider) {
    let Pair { active, mut passive } = connect(provider).await;
    passive.expose(&[1; 10], Access::RemoteWrite);
    drop(active);
    poll_fn(|cx| {
        while passive.poll(cx) {}
        if passive.lost.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    assert_eq!((passive.flushed(Op::Recv), passive.reclaimed().len()), (8, 1));
}

async fn work_after_the_end_is_refused(provider: &dyn Provider) {
    let mut pair = connect(provider).await;
    pair.active.qp.shutdown(Shutdown::Abort);
    pair.until_lost().await;
    for end in [&mut pair.active, &mut pair.passive] {
        assert_eq!(end.qp.post_recv(Region::alloc(1)).unwrap_err().why, RejectReason::Lost);
        let work = Work::Send { id: 1, buf: Region::alloc(1), len: 1, invalidate: None };
        assert_eq!(end.qp.post(work).unwrap_err().why, RejectReason::Lost);
        let refused = end.qp.expose(Region::alloc(1), 1, Access::RemoteRead).unwrap_err();
        assert_eq!(refused.why, RejectReason::Lost);
        end.qp.invalidate(Stag(1));
        end.qp.shutdown(Shutdown::Graceful);
    }
}

/// Large transfers and messages in both directions at the same time; more than any socket buffer holds.
async fn both_sides_talk_at_once(provider: &dyn Provider) {
    let mut pair = connect(provider).await;
    let len = 4 << 20;
    let mut expected = Vec::new();
    for me in 0..2 {
        let end = if me == 0 { &mut pair.active } else { &mut pair.passive };
        let target = end.expose(&vec![0; len], Access::RemoteWrite);
        let source = end.expose(&bytes(len, me + 10), Access::RemoteRead);
        expected.push((target, source, 1 - me));
    }
    for (target, source, peer) in &expected {
        let end = if *peer == 0 { &mut pair.active } else { &mut pair.passive };
        let buf = Region::from(&bytes(len, 20 + peer)[..]);
        end.qp.post(Work::Write { id: 1, buf, at: 0, to: one(at(*target)) }).unwrap();
        end.qp.post(Work::Read { id: 2, buf: Region::alloc(len), at: 0, from: one(at(*source)) }).unwrap();
        end.send(3, b"written");
    }
    pair.drive(|a, b| [a, b].iter().all(|end| end.finished().len() == 3 && end.received().len() == 1)).await;
    for (me, (target, _, peer)) in expected.into_iter().enumerate() {
        let end = if me == 0 { &mut pair.active } else { &mut pair.passive };
        end.qp.invalidate(target.stag);
        assert!(end.memory(2) == bytes(len, peer + 10));
    }
    pair.drive(|a, b| a.reclaimed().len() == 1 && b.reclaimed().len() == 1).await;
    for (me, end) in [&pair.active, &pair.passive].into_iter().enumerate() {
        assert!(end.reclaimed().values().all(|memory| *memory == bytes(len, 20 + (1 - me))));
    }
}

/// What is done with memory after the completion must not show at the peer.
async fn memory_is_free_when_work_is_done(provider: &dyn Provider) {
    let mut pair = connect(provider).await;
    let len = 300_000;
    for round in 0..8 {
        let target = pair.passive.expose(&vec![0; len], Access::RemoteWrite);
        let buf = Region::from(&bytes(len, round)[..]);
        pair.active.qp.post(Work::Write { id: 1, buf, at: 0, to: one(at(target)) }).unwrap();
        pair.active.send(2, &bytes(4096, round));
        poll_fn(|cx| {
            while pair.active.finished().len() < 2 {
                if !pair.active.poll(cx) && !pair.passive.poll(cx) {
                    return Poll::Pending;
                }
            }
            for done in &mut pair.active.done {
                if let Completion::Done { buf, .. } = done {
                    buf.fill(0xee);
                }
            }
            Poll::Ready(())
        })
        .await;
        pair.drive(|_, b| b.received().len() == 1).await;
        pair.passive.qp.invalidate(target.stag);
        pair.drive(|_, b| b.reclaimed().len() == 1).await;
        assert_eq!(pair.passive.received(), [bytes(4096, round)]);
        assert!(pair.passive.reclaimed()[&target.stag] == bytes(len, round), "round {round}");
        pair.active.done.clear();
        pair.passive.done.clear();
    }
}

async fn several_connections_do_not_mix(provider: &dyn Provider) {
    let mut listener = provider.listener();
    let connector = provider.connector();
    let mut pairs = Vec::new();
    for _ in 0..3 {
        let answer = Answer::Accept(start(4, 64));
        let (active, passive) = try_connect(&mut listener, connector.as_ref(), start(4, 64), answer).await;
        pairs.push(Pair { active: active.unwrap(), passive: passive.unwrap() });
    }
    for (i, pair) in pairs.iter_mut().enumerate() {
        pair.active.send(1, &[i as u8; 5]);
    }
    for (i, pair) in pairs.iter_mut().enumerate() {
        pair.drive(|_, b| b.received().len() == 1).await;
        assert_eq!(pair.passive.received(), [[i as u8; 5]]);
    }
    // A tag of one connection means nothing on another.
    let [first, second, third] = &mut pairs[..] else { panic!("three") };
    let target = first.passive.expose(&[9; 10], Access::RemoteWrite);
    second.active.qp.post(write(at(target))).unwrap();
    second.until_lost().await;
    third.active.send(2, b"still there");
    third.drive(|_, b| b.received().len() == 2).await;
    first.passive.qp.invalidate(target.stag);
    first.drive(|_, b| b.reclaimed().len() == 1).await;
    assert_eq!(first.passive.reclaimed()[&target.stag], [9; 10]);
}
