//! The connection task, with a test as the server.

use std::sync::Arc;

use rpcrdma_proto::{
    rpcrdma::{Body, ChunkLists, Credits, Header, Limits},
    xdr::Hole,
};
use tokio::task::{JoinHandle, yield_now};

use super::{
    super::{super::channel, *},
    secs,
};
use crate::{
    client::{channel::Channel, servers::Servers},
    wire::{Wire, Wires},
};

const ONE: &str = "nfs://10.0.0.1:1/";
const TWO: &str = "nfs://10.0.0.1:1,10.0.0.1:2/";

struct Bench {
    wires: Wires,
    channel: Channel,
    metrics: Arc<ClientMetrics>,
    servers: Arc<Servers>,
}

fn config() -> RdmaConfig {
    let backoff = BackoffConfig { first: secs(1), cap: secs(8) };
    RdmaConfig { credits: 4, backoff, ..RdmaConfig::default() }
}

impl Bench {
    async fn new(url: &str, config: RdmaConfig) -> Self {
        let config = config.within_give_up();
        let servers = Arc::new(Servers::resolve(&url.parse().unwrap(), 20049).await.unwrap());
        let metrics = Arc::<ClientMetrics>::default();
        let link = Link::new(Arc::clone(&servers), config.backoff, Some(1), Arc::clone(&metrics));
        let wires = Wires::new();
        let dialer = Dialer::new(Arc::new(wires.clone()), config, 16, Pools::new(2), Arc::clone(&metrics));
        let (channel, inbox) = channel::channel(16, channel::Xids::starting_at(1));
        tokio::spawn(run(dialer, link, inbox, None));
        Self { wires, channel, metrics, servers }
    }

    /// Begins a Call.
    async fn call(&self, call: Call) -> JoinHandle<Finished> {
        let channel = self.channel.clone();
        let call = tokio::spawn(async move { channel.call(call).await });
        settle().await;
        call
    }

    /// The connection made last.
    fn wire(&self) -> Wire {
        self.wires.last()
    }

    /// Port and time in milliseconds of the attempts to connect.
    fn tried(&self, since: Instant) -> Vec<(u16, u128)> {
        let plan = self.wires.plan();
        plan.tried.iter().map(|(to, at)| (to.port(), at.duration_since(since).as_millis())).collect()
    }

    /// A connection that has brought a Reply.
    async fn answered(&self) -> Wire {
        let call = self.call(null()).await;
        let wire = self.wire();
        answer(&wire, 4);
        assert!(call.await.unwrap().outcome.is_ok());
        wire
    }
}

/// Lets everybody do what there is to do now.
async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

fn null() -> Call {
    Call { message: vec![0; 40], hole: None, argument: None, result: None, result_max: 0, reply_max: 64 }
}

/// A Call whose result goes into memory that is exposed for it.
fn read() -> Call {
    Call { result: Some(Region::alloc(8192)), result_max: 8192, ..null() }
}

/// A Call whose argument the server fetches.
fn write() -> Call {
    let argument = Some(Region::alloc(8192));
    Call { hole: Some(Hole { at: 40, len: 8192 }), argument, ..null() }
}

fn reply_to(message: &[u8], credits: u32) -> Vec<u8> {
    let (header, _) = Header::decode(message, &Limits::default()).unwrap();
    let lists = header.body.lists().unwrap().unused();
    reply(header.xid, credits, ChunkLists { read: Default::default(), ..lists })
}

fn reply(xid: Xid, credits: u32, lists: ChunkLists) -> Vec<u8> {
    let header = Header::new(xid, Credits(credits), Body::Msg(lists));
    let mut out = vec![0; header.encoded_len()];
    header.encode_into(&mut out).unwrap();
    out.extend(xid.0.to_be_bytes());
    out.extend(1u32.to_be_bytes());
    out.extend([0; 16]);
    out
}

/// Answers the oldest Call that is not answered, and returns what was sent.
fn answer(wire: &Wire, credits: u32) -> Vec<u8> {
    let call = wire.sent().expect("a Call was sent");
    wire.deliver(&reply_to(&call, credits), None);
    call
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_of_a_connection() {
    let bench = Bench::new(ONE, RdmaConfig { credits: 40, ..config() }).await;
    let _call = bench.call(null()).await;
    let wire = bench.wire();
    let state = wire.state();
    let asked = QpLimits { recvs: 56, sends: 56, exposed: 160, outbound_reads: 0, ..QpLimits::default() };
    assert_eq!(state.asked, asked, "a window of Calls, each with three regions or one more, and no Reads");
    assert_eq!(state.recvs.len(), 3, "for the Reply to the first Call, and for strays");
}

#[tokio::test(start_paused = true)]
async fn the_server_may_invalidate_if_user_and_device_agree() {
    for (user, device) in [(false, false), (false, true), (true, false), (true, true)] {
        let bench = Bench::new(ONE, RdmaConfig { remote_invalidation: user, ..config() }).await;
        bench.wires.plan().invalidation = device;
        let _call = bench.call(null()).await;
        let said = PrivateData::parse(&bench.wire().state().private_data).unwrap();
        assert_eq!(said.remote_invalidation(), user && device, "user {user}, device {device}");
        assert_eq!((said.send_size(), said.receive_size()), (4096, 4096));
    }
}

/// The next attempt after a connection that worked is made at once, and to the same place.
#[tokio::test(start_paused = true)]
async fn a_connection_that_worked_is_replaced_at_once() {
    let bench = Bench::new(TWO, config()).await;
    let start = Instant::now();
    let wire = bench.answered().await;
    assert_eq!(bench.metrics.recoveries.get(), 1, "with its first Reply");
    let call = bench.call(null()).await;
    wire.lose(Lost::PeerClosed);
    settle().await;
    assert_eq!(bench.tried(start), [(1, 0), (1, 0)]);
    answer(&bench.wire(), 4);
    assert!(call.await.unwrap().outcome.is_ok());
    assert_eq!((bench.metrics.recoveries.get(), bench.metrics.retransmissions.get()), (2, 1));
}

/// Connections that bring nothing are attempts in vain, and the waits between them grow.
#[tokio::test(start_paused = true)]
async fn connections_that_bring_nothing_are_attempts_in_vain() {
    let bench = Bench::new(ONE, config()).await;
    let start = Instant::now();
    let call = bench.call(null()).await;
    for nth in 0..3 {
        bench.wire().lose(Lost::PeerClosed);
        sleep(secs(10)).await;
        assert_eq!(bench.wires.count(), nth + 2);
    }
    let tried = bench.tried(start);
    let waits: Vec<u128> = (1..tried.len()).map(|n| tried[n].1 - 10_000 * (n as u128 - 1)).collect();
    let right = [500..=1001, 1000..=2001, 2000..=4001];
    assert!(waits.iter().zip(right).all(|(wait, right)| right.contains(wait)), "{waits:?}");
    assert_eq!(bench.metrics.recoveries.get(), 0);
    answer(&bench.wire(), 4);
    assert!(call.await.unwrap().outcome.is_ok());
    assert_eq!(bench.metrics.recoveries.get(), 1);
}

/// Silence is noticed after `call_timeout`, and the other server gets the Call.
#[tokio::test(start_paused = true)]
async fn a_silent_server_is_left_for_another() {
    // Whether or not Calls are given up some time.
    for give_up in [None, Some(secs(10))] {
        let bench = Bench::new(TWO, RdmaConfig { call_timeout: secs(3), give_up, ..config() }).await;
        let start = Instant::now();
        bench.answered().await;
        let call = bench.call(null()).await;
        sleep(secs(4)).await;
        assert_eq!(bench.tried(start), [(1, 0), (2, 3000)], "give up after {give_up:?}");
        answer(&bench.wire(), 4);
        assert!(call.await.unwrap().outcome.is_ok());
    }
}

/// A Call whose time is up ends, and its connection with it; but that says nothing about the server.
#[tokio::test(start_paused = true)]
async fn a_call_whose_time_is_up_ends_and_the_server_stays() {
    let bench = Bench::new(TWO, RdmaConfig { give_up: Some(secs(5)), ..config() }).await;
    let start = Instant::now();
    bench.answered().await;
    let call = bench.call(read()).await;
    // Others are answered, so this is not silence.
    sleep(secs(3)).await;
    let wire = bench.wire();
    let forgotten = wire.sent().unwrap();
    let other = bench.call(null()).await;
    answer(&wire, 4);
    assert!(other.await.unwrap().outcome.is_ok() && !forgotten.is_empty());
    let finished = call.await.unwrap();
    assert_eq!(start.elapsed(), secs(5));
    let Err(CallError::TimedOut { after, last }) = finished.outcome else { panic!("{finished:?}") };
    assert_eq!((after, last.as_str()), (secs(5), "a Call had no Reply in the 5 s that it may take"));
    assert!(finished.result.is_some(), "its memory is back");
    assert_eq!(bench.metrics.timed_out.get(), 1);
    bench.answered().await;
    assert_eq!(bench.tried(start), [(1, 0), (1, 5000)]);
}

/// A Call that was never sent ends in time too, and costs no connection.
#[tokio::test(start_paused = true)]
async fn a_call_that_could_not_be_sent_ends_in_time() {
    let bench = Bench::new(TWO, RdmaConfig { give_up: Some(secs(5)), ..config() }).await;
    let start = Instant::now();
    let wire = bench.answered().await;
    wire.state().refuse_exposing = usize::MAX;
    let finished = bench.call(read()).await.await.unwrap();
    assert_eq!(start.elapsed(), secs(5));
    let Err(CallError::TimedOut { last, .. }) = finished.outcome else { panic!("{finished:?}") };
    assert_eq!(last, UNREGISTERED);
    assert!(finished.result.is_some() && wire.state().shutdowns.is_empty());
    wire.state().refuse_exposing = 0;
    bench.answered().await;
    assert_eq!(bench.tried(start).len(), 1);
}

/// What may still be tried outlives its connection.
#[tokio::test(start_paused = true)]
async fn a_loss_ends_no_call_before_its_time() {
    let bench = Bench::new(ONE, RdmaConfig { give_up: Some(secs(5)), ..config() }).await;
    let wire = bench.answered().await;
    let call = bench.call(null()).await;
    sleep(secs(4)).await;
    wire.lose(Lost::PeerClosed);
    settle().await;
    answer(&bench.wire(), 4);
    assert!(call.await.unwrap().outcome.is_ok());
}

/// A connection that is left because the mount has moved was no attempt in vain.
#[tokio::test(start_paused = true)]
async fn a_connection_that_is_moved_away_from_is_no_attempt_in_vain() {
    let bench = Bench::new(TWO, config()).await;
    let start = Instant::now();
    let _call = bench.call(null()).await;
    bench.servers.failed("10.0.0.1:1".parse().unwrap());
    // Whatever wakes the task.
    let _second = bench.call(null()).await;
    assert_eq!(bench.tried(start), [(1, 0), (2, 0)]);
    bench.wire().lose(Lost::PeerClosed);
    settle().await;
    assert_eq!(bench.tried(start), [(1, 0), (2, 0), (1, 0)], "the round is not over");
}

#[tokio::test(start_paused = true)]
async fn a_refused_registration_is_tried_again_every_few_milliseconds() {
    let bench = Bench::new(ONE, config()).await;
    let wire = bench.answered().await;
    wire.state().refuse_exposing = usize::MAX;
    let call = bench.call(read()).await;
    let before = wire.state().polls;
    sleep(Duration::from_millis(100)).await;
    let polls = wire.state().polls - before;
    assert!((10..=60).contains(&polls), "{polls} turns in 100 ms");
    wire.state().refuse_exposing = 0;
    sleep(Duration::from_millis(10)).await;
    answer(&wire, 4);
    assert!(call.await.unwrap().outcome.is_ok());
}

/// Closing ends every Call with its memory: those that wait for a connection, and those that wait for a Reply.
#[tokio::test(start_paused = true)]
async fn closing_gives_memory_back() {
    for connected in [false, true] {
        let bench = Bench::new(ONE, config()).await;
        bench.wires.plan().refuse = !connected;
        let small = Call {
            hole: Some(Hole { at: 40, len: 100 }),
            argument: Some(Region::alloc(100)),
            result: Some(Region::alloc(100)),
            result_max: 100,
            ..null()
        };
        let call = bench.call(small).await;
        bench.channel.close();
        let finished = call.await.unwrap();
        assert_eq!(finished.outcome.err(), Some(CallError::Closed));
        assert!(finished.argument.is_some() && finished.result.is_some(), "connected: {connected}");
    }
}

/// A goodbye waits for the peer, but not for long.
#[tokio::test(start_paused = true)]
async fn a_goodbye_takes_half_a_second_at_most() {
    for deaf in [false, true] {
        let bench = Bench::new(ONE, config()).await;
        let wire = bench.answered().await;
        wire.state().deaf = deaf;
        let call = bench.call(null()).await;
        let start = Instant::now();
        bench.channel.close();
        call.await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_millis(if deaf { 500 } else { 0 }));
        assert_eq!(wire.state().shutdowns, [Shutdown::Graceful]);
    }
}

/// A Call that the provider does not take would never be answered: another connection has to carry it.
#[tokio::test(start_paused = true)]
async fn a_refused_send_costs_the_connection() {
    let bench = Bench::new(ONE, config()).await;
    let wire = bench.answered().await;
    wire.state().refuse_after = Some((0, RejectReason::QueueFull));
    let call = bench.call(null()).await;
    assert_eq!((bench.wires.count(), wire.state().shutdowns.as_slice()), (2, &[Shutdown::Abort][..]));
    answer(&bench.wire(), 4);
    assert!(call.await.unwrap().outcome.is_ok());
}

/// If it was refused because the connection is gone, the connection says itself why.
#[tokio::test(start_paused = true)]
async fn a_connection_that_is_gone_says_why() {
    let bench = Bench::new(ONE, RdmaConfig { give_up: Some(secs(5)), ..config() }).await;
    let wire = bench.answered().await;
    wire.state().refuse_after = Some((0, RejectReason::Lost));
    let call = bench.call(null()).await;
    assert!(wire.state().shutdowns.is_empty() && bench.wires.count() == 1);
    wire.lose(Lost::PeerClosed);
    settle().await;
    answer(&bench.wire(), 4);
    assert!(call.await.unwrap().outcome.is_ok());
}

/// A Call that is too long for a Send, and an argument of no bytes: the message is fetched, and nothing else.
#[tokio::test(start_paused = true)]
async fn an_empty_argument_is_no_chunk() {
    let bench = Bench::new(ONE, config()).await;
    let hole = Some(Hole { at: 40, len: 0 });
    let long = Call { message: vec![0; 5000], hole, argument: Some(Region::alloc(16)), ..null() };
    let call = bench.call(long).await;
    let wire = bench.wire();
    let exposed: Vec<u32> = wire.state().exposed.values().map(|(_, len, _)| *len).collect();
    assert_eq!(exposed, [5000]);
    answer(&wire, 4);
    let finished = call.await.unwrap();
    assert!(finished.outcome.is_ok() && finished.argument.is_some());
}

/// Bytes are counted where they are placed by the server and where they come with the message.
#[tokio::test(start_paused = true)]
async fn bytes_are_counted() {
    let bench = Bench::new(ONE, config()).await;
    let call = bench.call(read()).await;
    let wire = bench.wire();
    let sent = wire.sent().unwrap();
    let (header, _) = Header::decode(&sent, &Limits::default()).unwrap();
    let offered = &header.body.lists().unwrap().write[0];
    let mut lists = ChunkLists::default();
    lists.write.push(offered.returned(1000).unwrap());
    wire.deliver(&reply(header.xid, 4, lists), None);
    let finished = call.await.unwrap();
    assert_eq!(finished.outcome.unwrap().placed, Some(1000));
    assert_eq!((bench.metrics.bytes_in.get(), bench.metrics.bytes_out.get()), (1024, 0));
    let call = bench.call(write()).await;
    answer(&wire, 4);
    assert!(call.await.unwrap().outcome.is_ok());
    assert_eq!((bench.metrics.bytes_in.get(), bench.metrics.bytes_out.get()), (1048, 8192));
    assert_eq!((bench.metrics.calls.get(), bench.metrics.replies.get()), (2, 2));
    assert_eq!((bench.metrics.single_starts.get(), bench.metrics.early_sends.get()), (1, 0));
    assert_eq!((bench.metrics.overruns.get(), bench.metrics.most_outstanding.get()), (0, 1));
}

/// A Reply and the end of its connection may be noticed at one time: the connection has worked nevertheless.
#[tokio::test(start_paused = true)]
async fn a_reply_that_comes_with_the_end_of_its_connection_counts() {
    let bench = Bench::new(TWO, config()).await;
    let start = Instant::now();
    let call = bench.call(null()).await;
    answer(&bench.wire(), 4);
    bench.wire().lose(Lost::PeerClosed);
    assert!(call.await.unwrap().outcome.is_ok());
    assert_eq!(bench.metrics.recoveries.get(), 1);
    bench.answered().await;
    assert_eq!(bench.tried(start), [(1, 0), (1, 0)]);
}
