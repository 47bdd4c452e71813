//! What the simulated fabric promises to do to its users: the two faces of a missing Receive, limits on RDMA Reads, the
//! orders in which a dying queue pair flushes, and ends that nobody is told of.
#![allow(clippy::unwrap_used, reason = "a failed test may panic anywhere")]

use std::{
    collections::HashSet,
    future::poll_fn,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use rpcrdma_fabric::{
    Access, Answer, BoxQueuePair, Completion, Connector as _, Listener as _, Lost, Op, QpLimits, Region,
    RemoteSegment, RemoteSegments, Shutdown, Start, Work,
    sim::{
        Event, EventKind, Face, Fault, Faults, NoFaults, Observer, PacketKind, Profile, Sim, Step, StepKind,
        What, When,
    },
};
use tokio::time::{Instant, sleep, timeout};

const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 1);

fn client() -> IpAddr {
    IpAddr::from([10, 0, 1, 1])
}

/// Counts messages that find no Receive.
#[derive(Clone, Default)]
struct Misses(Arc<Mutex<u32>>);

impl Observer for Misses {
    fn see(&mut self, event: &Event<'_>) {
        *self.0.lock().unwrap() += u32::from(matches!(event.kind, EventKind::NoRecv));
    }
}

/// A world on the runtime's clock, which is virtual.
fn world(seed: u64, profile: Profile, faults: Box<dyn Faults>, observer: Option<Box<dyn Observer>>) -> Sim {
    let epoch = Instant::now();
    let sim = Sim::new(seed, profile, Box::new(move || epoch.elapsed()), faults, observer);
    let world = sim.clone();
    tokio::spawn(async move {
        loop {
            while world.step() {
                tokio::task::yield_now().await;
            }
            sleep(Duration::from_millis(1)).await;
        }
    });
    sim
}

fn start(recvs: usize, limits: QpLimits) -> Start {
    Start { recvs: (0..recvs).map(|_| Region::alloc(64)).collect(), limits, ..Start::default() }
}

/// Both ends of a connection: that of the client, with one Receive, and that of the server.
async fn connect(sim: &Sim, server: Start, limits: QpLimits) -> (BoxQueuePair, BoxQueuePair) {
    let mut listener = sim.listen(SERVER);
    let connector = sim.connector(client());
    let passive = async {
        let request = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
        request.accept(Box::new(|_| Answer::Accept(server))).await.unwrap()
    };
    let (active, passive) = tokio::join!(connector.connect(SERVER, start(1, limits)), passive);
    (active.unwrap(), passive)
}

/// All that an end reports until it is lost, and why it is; `None` if it is not for so many milliseconds.
async fn rest(qp: &mut BoxQueuePair, ms: u64) -> (Vec<Completion>, Option<Lost>) {
    let mut done = Vec::new();
    let lost = poll_fn(|cx| {
        loop {
            match qp.poll(cx, &mut done) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(lost)) => return Poll::Ready(lost),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    let lost = timeout(Duration::from_millis(ms), lost).await.ok();
    (done, lost)
}

fn message(id: u64) -> Work {
    Work::Send { id, buf: Region::alloc(8), len: 8, invalidate: None }
}

fn received(done: &[Completion]) -> usize {
    done.iter().filter(|c| matches!(c, Completion::Received { .. })).count()
}

/// How often a message without a Receive is tried, and whether the sender is lost over it.
async fn missing_receive(face: Face) -> (u32, bool, Option<Lost>) {
    let misses = Misses::default();
    let profile = Profile { face, ..Profile::default() };
    let sim = world(1, profile, Box::new(NoFaults), Some(Box::new(misses.clone())));
    let (mut active, mut passive) = connect(&sim, start(0, QpLimits::default()), QpLimits::default()).await;
    active.post(message(1)).unwrap();
    let (_, lost) = rest(&mut active, 1000).await;
    let tried = *misses.0.lock().unwrap();
    // Too late, unless the fabric waits for ever.
    let taken = lost.is_none() && {
        passive.post_recv(Region::alloc(64)).unwrap();
        received(&rest(&mut passive, 1000).await.0) == 1
    };
    (tried, taken, lost)
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_receive_ends_an_iwarp_connection_at_once() {
    let (tried, taken, lost) = missing_receive(Face::Iwarp).await;
    assert_eq!((tried, taken), (1, false));
    assert!(matches!(lost, Some(Lost::Terminated(_))), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn infiniband_tries_a_message_again_as_often_as_it_is_told_and_seven_is_for_ever() {
    for rnr_retry in 0..7 {
        let (tried, taken, lost) = missing_receive(Face::InfiniBand { rnr_retry, rnr_timer: 10 }).await;
        assert_eq!((tried, taken), (u32::from(rnr_retry) + 1, false), "{rnr_retry}");
        assert!(matches!(lost, Some(Lost::Terminated(_))), "{rnr_retry}: {lost:?}");
    }
    let (tried, taken, lost) = missing_receive(Face::InfiniBand { rnr_retry: 7, rnr_timer: 10 }).await;
    assert!(tried > 50 && taken, "tried {tried} times in a second, taken: {taken}");
    assert_eq!(lost, None);
}

/// Counts RDMA Reads under way; the answer to each is one packet.
#[derive(Clone, Default)]
struct Reads(Arc<Mutex<(i32, i32)>>);

impl Faults for Reads {
    fn at(&mut self, step: &Step) -> Option<Fault> {
        let mut reads = self.0.lock().unwrap();
        match step.kind {
            StepKind::Transmit(Op::Read) => reads.0 += 1,
            StepKind::Arrive(PacketKind::ReadResponse) => reads.0 -= 1,
            _ => {}
        }
        reads.1 = reads.1.max(reads.0);
        None
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_reads_are_open_than_both_sides_allow() {
    for (outbound, inbound, most) in [(1, 128, 1), (32, 4, 4), (3, 3, 3)] {
        let reads = Reads::default();
        let sim = world(2, Profile::default(), Box::new(reads.clone()), None);
        let theirs = QpLimits { inbound_reads: inbound, ..QpLimits::default() };
        let ours = QpLimits { outbound_reads: outbound, ..QpLimits::default() };
        let (mut active, mut passive) = connect(&sim, start(1, theirs), ours).await;
        let memory = passive.expose(Region::alloc(64), 64, Access::RemoteRead).unwrap();
        let segment = RemoteSegment { stag: memory.stag, offset: memory.offset, len: 64 };
        for id in 0..20 {
            let from = RemoteSegments::from_slice(&[segment]);
            active.post(Work::Read { id, buf: Region::alloc(64), at: 0, from }).unwrap();
        }
        let (done, lost) = rest(&mut active, 1000).await;
        assert_eq!((done.len(), lost), (20, None));
        let seen = *reads.0.lock().unwrap();
        assert_eq!(seen, (0, most), "open at the end and at most, of {outbound} and {inbound}");
    }
}

/// What has been posted comes back from a dying queue pair in more than one order, each piece once, and what has been
/// acknowledged may still be reported as done.
#[tokio::test(start_paused = true)]
async fn queues_are_flushed_in_either_order() {
    let mut orders = HashSet::new();
    for seed in 0..40 {
        let profile = Profile { device: 0..=0, completion: 50..=50, ..Profile::default() };
        let sim = world(seed, profile, Box::new(NoFaults), None);
        let (mut active, _passive) = connect(&sim, start(4, QpLimits::default()), QpLimits::default()).await;
        active.post(message(1)).unwrap();
        active.post(message(2)).unwrap();
        // Until they have left.
        assert!(rest(&mut active, 20).await.0.is_empty());
        active.post(message(3)).unwrap();
        active.shutdown(Shutdown::Abort);
        let (done, lost) = rest(&mut active, 1000).await;
        assert_eq!((done.len(), lost), (4, Some(Lost::Closed)), "three Sends and a Receive");
        let order: Vec<_> = (done.iter())
            .map(|c| match c {
                Completion::Done { id, op: Op::Send, .. } => (*id, "done"),
                Completion::Flushed { id, op: Op::Send, .. } => (*id, "flushed"),
                Completion::Flushed { op: Op::Recv, .. } => (0, "flushed"),
                other => panic!("{other:?}"),
            })
            .collect();
        let sends: Vec<u64> = order.iter().map(|(id, _)| *id).filter(|id| *id > 0).collect();
        assert_eq!(sends, [1, 2, 3], "a queue keeps its order");
        orders.insert(order);
    }
    // The Receive before, behind or (after what was done) between the Sends, the first of them done or not.
    assert_eq!(orders.len(), 4, "{orders:?}");
}

/// Nothing goes through from the first message of the client on.
struct Silence;

impl Faults for Silence {
    fn at(&mut self, step: &Step) -> Option<Fault> {
        let first = step.kind == StepKind::Transmit(Op::Send);
        first.then_some(Fault { when: When::Before, what: What::Silence })
    }
}

/// A peer that is gone without a word: who has nothing to wait for never learns of it, on any fabric, and who has learns
/// of it on InfiniBand only.
#[tokio::test(start_paused = true)]
async fn silence_is_noticed_by_who_waits_for_an_acknowledgement_and_by_nobody_else() {
    let infiniband = Face::InfiniBand { rnr_retry: 0, rnr_timer: 1 };
    for (face, noticed) in [(Face::Iwarp, None), (infiniband, Some(Lost::Io(ErrorKind::TimedOut)))] {
        let profile = Profile { face, ..Profile::default() };
        let sim = world(3, profile, Box::new(Silence), None);
        let (mut active, mut passive) =
            connect(&sim, start(4, QpLimits::default()), QpLimits::default()).await;
        active.post(message(1)).unwrap();
        assert_eq!(rest(&mut active, 1_000_000).await.1, noticed);
        let (done, lost) = rest(&mut passive, 1_000_000).await;
        assert_eq!((done.len(), lost), (0, None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_goes_away_tells_its_own_end_only_and_takes_no_connection_until_it_is_back() {
    let sim = world(4, Profile::default(), Box::new(NoFaults), None);
    let (mut active, mut passive) = connect(&sim, start(4, QpLimits::default()), QpLimits::default()).await;
    sim.remove_device(SERVER.ip(), 5000);
    let (done, lost) = rest(&mut passive, 1000).await;
    assert_eq!((done.len(), lost), (4, Some(Lost::Io(ErrorKind::NotConnected))));
    active.post(message(1)).unwrap();
    assert_eq!(rest(&mut active, 1000).await.1, None, "nobody is left who could tell");
    let connector = sim.connector(client());
    let attempt = connector.connect(SERVER, start(1, QpLimits::default()));
    assert!(timeout(Duration::from_secs(1), attempt).await.is_err(), "no device, no answer");
    sleep(Duration::from_secs(5)).await;
    connect(&sim, start(1, QpLimits::default()), QpLimits::default()).await;
}
