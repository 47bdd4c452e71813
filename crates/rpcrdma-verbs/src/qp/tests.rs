//! Queue pairs on the fake library: what real devices do only when they fail, and the accounts of the Send queue.

use std::{future::poll_fn, net::SocketAddr, sync::Arc, task::Waker};

use rpcrdma_fabric::{ConnectError, Pool, RemoteSegment, RemoteSegments, Start};

use super::{ending::AGAIN, *};
use crate::{
    Config,
    connect::{Asking, establish},
    ffi::{
        cm::event,
        fake::{self, DEPTH, Device, Kind, Seen},
        verbs::{flags, opcode},
    },
    sys::Channel,
};

const LEN: usize = 1024;
const RECVS: usize = 4;

async fn try_connect(
    device: &'static Device,
    pool: &Pool,
    recvs: usize,
) -> Result<VerbsQueuePair, ConnectError> {
    try_connect_with(device, pool, recvs, &Asking::new(1)).await
}

async fn try_connect_with(
    device: &'static Device,
    pool: &Pool,
    recvs: usize,
    asking: &Asking,
) -> Result<VerbsQueuePair, ConnectError> {
    let mut id = Id::new(&Arc::new(Channel::new(fake::lib()).unwrap())).unwrap();
    id.bind(SocketAddr::new(device.address(), 0)).unwrap();
    let recvs = (0..recvs).map_while(|_| pool.take()).collect();
    let start = Start { private_data: vec![1], recvs, limits: QpLimits::default() };
    establish(id, SocketAddr::new(device.address(), 20049), start, &Config::default(), asking).await
}

async fn connect(device: &'static Device, pool: &Pool) -> VerbsQueuePair {
    // The thread that connects is not seen by a clock that runs ahead when all tasks wait.
    tokio::time::resume();
    let qp = try_connect(device, pool, RECVS).await.unwrap();
    tokio::time::pause();
    qp
}

fn pool() -> Pool {
    Pool::new(LEN, 64)
}

/// Lets it do what it can, without waiting.
fn drive(qp: &mut VerbsQueuePair, done: &mut Vec<Completion>) -> Poll<Result<(), Lost>> {
    qp.poll(&mut Context::from_waker(Waker::noop()), done)
}

/// Everything that comes until it is over, and why it is.
async fn rest(qp: &mut VerbsQueuePair) -> (Vec<Completion>, Lost) {
    let mut done = Vec::new();
    loop {
        if let Err(lost) = poll_fn(|cx| qp.poll(cx, &mut done)).await {
            return (done, lost);
        }
    }
}

fn segment(len: u32, offset: u64) -> RemoteSegment {
    RemoteSegment { stag: Stag(77), offset, len }
}

/// What came back, in short: kinds of work, or tags.
fn names(done: &[Completion]) -> Vec<String> {
    let name = |c: &Completion| match c {
        Completion::Received { .. } => "received".to_owned(),
        Completion::Done { id, op, .. } => format!("{op:?} {id}"),
        Completion::Flushed { id, op, .. } => format!("{op:?} {id} flushed"),
        Completion::Reclaimed { .. } => "reclaimed".to_owned(),
    };
    done.iter().map(name).collect()
}

#[tokio::test(start_paused = true)]
async fn a_call_that_connects_for_ever_is_given_up_and_keeps_its_memory_until_it_returns() {
    let (device, pool) = (Device::new(Kind::Windows), pool());
    device.set(|state| state.hold = true);
    let tried = try_connect(device, &pool, RECVS).await;
    assert!(matches!(tried, Err(ConnectError::TimedOut)));
    assert_eq!((device.state().queue_pairs, pool.in_use()), (1, RECVS), "the call is still under way");
    device.set(|state| state.hold = false);
    device.wait(|state| state.queue_pairs == 0);
    // The thread is about to give it back.
    while pool.in_use() > 0 {
        std::thread::yield_now();
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_connect_for_ever_are_bounded() {
    let (device, pool) = (Device::new(Kind::Windows), pool());
    let asking = Asking::new(3);
    device.set(|state| state.hold = true);
    for begun in [1, 2, 3, 3, 3] {
        let tried = try_connect_with(device, &pool, RECVS, &asking).await;
        assert!(matches!(tried, Err(ConnectError::TimedOut)));
        assert_eq!((device.state().queue_pairs, pool.in_use()), (begun, begun * RECVS));
    }
    // Other hosts are not in the way of these.
    tokio::time::resume();
    let (other, others) = (Device::new(Kind::Windows), self::pool());
    assert!(try_connect_with(other, &others, RECVS, &asking).await.is_ok());
    tokio::time::pause();
    device.set(|state| state.hold = false);
    // The places are free again when the calls have returned.
    let places = asking.at(device.address());
    let all = places.acquire_many(3).await.unwrap();
    assert_eq!((device.state().queue_pairs, pool.in_use()), (0, 0));
    drop(all);
    tokio::time::resume();
    assert!(try_connect_with(device, &pool, RECVS, &asking).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn nothing_comes_back_before_the_device_lets_go_of_the_queue_pair() {
    for kind in [Kind::Windows, Kind::Registration] {
        let (device, pool) = (Device::new(kind), pool());
        let mut qp = connect(device, &pool).await;
        let buf = pool.take().unwrap();
        qp.post(Work::Send { id: 9, buf, len: 20, invalidate: None }).unwrap();
        qp.expose(pool.take().unwrap(), 100, Access::RemoteWrite).unwrap();
        let mut done = Vec::new();
        assert!(drive(&mut qp, &mut done).is_pending());
        device.set(|state| state.refuse_qp = (3, libc::EACCES));
        qp.shutdown(Shutdown::Abort);
        assert!(drive(&mut qp, &mut done).is_pending());
        assert!(done.is_empty() && qp.expose(pool.take().unwrap(), 1, Access::RemoteRead).is_err());
        assert!(drive(&mut qp, &mut done).is_pending(), "asked again, it does not try again at once");
        assert_eq!((device.state().refuse_qp.0, pool.in_use()), (2, RECVS + 2));
        let (done, lost) = rest(&mut qp).await;
        assert_eq!(lost, Lost::Closed);
        let mut expected = vec!["Send 9 flushed"];
        expected.extend(["Recv 0 flushed"; RECVS]);
        expected.push("reclaimed");
        assert_eq!(names(&done), expected);
        drop((done, qp));
        let state = device.state();
        assert_eq!((state.queue_pairs, state.registrations, state.windows, pool.in_use()), (0, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_is_freed_when_the_device_lets_go_of_it() {
    for times in [3, usize::MAX] {
        let (device, pool) = (Device::new(Kind::Windows), pool());
        let mut qp = connect(device, &pool).await;
        qp.expose(pool.take().unwrap(), 100, Access::RemoteWrite).unwrap();
        assert!(drive(&mut qp, &mut Vec::new()).is_pending());
        device.set(|state| state.refuse_qp = (times, libc::EACCES));
        drop(qp);
        assert_eq!((device.state().queue_pairs, pool.in_use()), (1, RECVS + 1));
        sleep(AGAIN * 4).await;
        let left = if times == 3 { (0, 0) } else { (1, RECVS + 1) };
        assert_eq!((device.state().queue_pairs, pool.in_use()), left);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_done_is_told_before_the_device_has_let_go() {
    let (device, pool) = (Device::new(Kind::Windows), pool());
    let mut qp = connect(device, &pool).await;
    qp.post(Work::Send { id: 9, buf: pool.take().unwrap(), len: 20, invalidate: None }).unwrap();
    let mut done = Vec::new();
    assert!(drive(&mut qp, &mut done).is_pending());
    device.set(|state| state.refuse_qp = (1, libc::EACCES));
    qp.shutdown(Shutdown::Graceful);
    device.complete_send(0);
    while !drive(&mut qp, &mut done).is_pending() {}
    assert_eq!((names(&done), device.state().queue_pairs), (vec!["Send 9".to_owned()], 1));
    let (done, _) = rest(&mut qp).await;
    assert_eq!(done.len(), RECVS);
}

#[tokio::test(start_paused = true)]
async fn what_a_peer_can_write_to_without_a_window_is_in_a_domain_of_its_connection() {
    for (kind, domains) in [(Kind::Windows, 1), (Kind::Registration, 2), (Kind::IwarpWindows, 2)] {
        let (device, pool) = (Device::new(kind), pool());
        let _both = (connect(device, &pool).await, connect(device, &pool).await);
        assert_eq!(device.state().domains, domains);
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_was_removed_has_let_go_of_everything() {
    let (device, pool) = (Device::new(Kind::Registration), pool());
    let mut qp = connect(device, &pool).await;
    qp.expose(pool.take().unwrap(), 100, Access::RemoteWrite).unwrap();
    device.set(|state| {
        state.refuse_qp = (usize::MAX, libc::EIO);
        state.refuse_mr = (usize::MAX, libc::EIO);
    });
    device.tell(event::DEVICE_REMOVAL);
    // The kernel refuses everything before it takes anything.
    let mut done = Vec::new();
    assert!(drive(&mut qp, &mut done).is_pending() && done.is_empty());
    device.end_events();
    let (done, lost) = rest(&mut qp).await;
    assert_eq!((done.len(), lost), (RECVS + 1, Lost::Io(ErrorKind::NotConnected)));
    drop(done);
    assert_eq!(pool.in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn memory_that_stays_registered_comes_back_after_the_queue_pair_has_gone() {
    let (device, pool) = (Device::new(Kind::Registration), pool());
    let mut qp = connect(device, &pool).await;
    let exposed = qp.expose(pool.take().unwrap(), 100, Access::RemoteWrite).unwrap();
    device.set(|state| state.refuse_mr = (1, libc::EACCES));
    device.set(|state| state.refuse_qp = (1, libc::EACCES));
    qp.invalidate(exposed.stag);
    let mut done = Vec::new();
    assert!(drive(&mut qp, &mut done).is_pending() && done.is_empty(), "the peer could still write");
    let (done, lost) = rest(&mut qp).await;
    assert_eq!(
        (names(&done).last().unwrap().as_str(), lost),
        ("reclaimed", Lost::Io(ErrorKind::PermissionDenied))
    );
}

/// Behind windows of rxe there is a registration for each region, whoever closes them.
#[tokio::test(start_paused = true)]
async fn memory_that_stays_registered_behind_a_window_comes_back_after_the_queue_pair_has_gone() {
    for by_peer in [false, true] {
        let (device, pool) = (Device::new(Kind::SoftRoce), pool());
        let mut qp = connect(device, &pool).await;
        let exposed = qp.expose(pool.take().unwrap(), 100, Access::RemoteWrite).unwrap();
        let mut done = Vec::new();
        assert!(drive(&mut qp, &mut done).is_pending());
        device.complete_send(0);
        device.set(|state| {
            state.refuse_mr = (1, libc::EINVAL);
            state.refuse_qp = (1, libc::EACCES);
        });
        if by_peer {
            let (wr_id, wc_flags) = (RECEIVE, verbs::WC_WITH_INV);
            device.complete(Wc { wr_id, wc_flags, invalidated_rkey: exposed.stag.0, ..Wc::default() });
        } else {
            qp.invalidate(exposed.stag);
            assert!(drive(&mut qp, &mut done).is_pending());
            device.complete_send(1);
        }
        while !drive(&mut qp, &mut done).is_pending() {}
        let expected: &[&str] = if by_peer { &["received"] } else { &[] };
        assert_eq!(names(&done), expected, "the device has not let go of it");
        let (done, lost) = rest(&mut qp).await;
        let end = (names(&done).last().unwrap().clone(), lost);
        assert_eq!(end, ("reclaimed".to_owned(), Lost::Io(ErrorKind::InvalidInput)));
        drop((done, qp));
        let state = device.state();
        assert_eq!((state.registrations, state.windows, state.queue_pairs), (0, 0, 0));
    }
}

/// A window may keep its queue pair.
#[tokio::test(start_paused = true)]
async fn windows_that_the_device_does_not_let_go_of_are_tried_again() {
    for dropped in [false, true] {
        let (device, pool) = (Device::new(Kind::Windows), pool());
        let mut qp = connect(device, &pool).await;
        for _ in 0..3 {
            qp.expose(pool.take().unwrap(), 100, Access::RemoteWrite).unwrap();
        }
        assert!(drive(&mut qp, &mut Vec::new()).is_pending());
        device.set(|state| {
            state.refuse_mw = (2, libc::EBUSY);
            state.refuse_qp = (1, libc::EBUSY);
        });
        let left = || {
            let state = device.state();
            (state.windows, state.queue_pairs)
        };
        if dropped {
            drop(qp);
            assert_eq!(left(), (2, 1));
            sleep(AGAIN * 2).await;
        } else {
            qp.shutdown(Shutdown::Abort);
            assert!(drive(&mut qp, &mut Vec::new()).is_pending());
            assert_eq!(left(), (2, 1));
            rest(&mut qp).await;
        }
        assert_eq!(left(), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_read_is_not_shown_while_the_peer_could_change_it() {
    let (device, pool) = (Device::new(Kind::Registration), pool());
    let mut qp = connect(device, &pool).await;
    let work = |id| Work::Read {
        id,
        buf: pool.take().unwrap(),
        at: 8,
        from: [segment(100, 5)].into_iter().collect(),
    };
    for id in [1, 2] {
        qp.post(work(id)).unwrap();
    }
    assert!(drive(&mut qp, &mut Vec::new()).is_pending());
    let numbers: Vec<_> = device.state().posted.iter().map(|r| (r.opcode, r.number)).collect();
    assert_eq!(numbers, [(opcode::RDMA_READ, 0), (opcode::RDMA_READ, 1)]);
    device.complete_send(0);
    device.complete_send(1);
    device.set(|state| state.refuse_mr = (1, libc::EBUSY));
    let (done, lost) = rest(&mut qp).await;
    assert_eq!(names(&done)[..2], ["Read 2", "Read 1 flushed"]);
    assert_eq!(lost, Lost::Io(ErrorKind::ResourceBusy));
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_is_given_out_twice_ends_the_connection_and_loses_nothing() {
    let (device, pool) = (Device::new(Kind::Registration), pool());
    let mut qp = connect(device, &pool).await;
    device.set(|state| state.same_tag = true);
    for _ in 0..2 {
        qp.expose(pool.take().unwrap(), 100, Access::RemoteRead).unwrap();
    }
    let (done, lost) = rest(&mut qp).await;
    assert_eq!((done.len(), lost), (RECVS + 2, Lost::Io(ErrorKind::AlreadyExists)));
}

#[tokio::test(start_paused = true)]
async fn regions_without_bytes_have_tags_of_their_own() {
    let (device, pool) = (Device::new(Kind::Windows), pool());
    let mut qp = connect(device, &pool).await;
    let mut tags: Vec<_> = Vec::new();
    for _ in 0..EMPTY_COUNT {
        tags.push(qp.expose(Region::alloc(1), 0, Access::RemoteRead).unwrap().stag);
    }
    assert!(qp.expose(Region::alloc(1), 0, Access::RemoteRead).is_err());
    qp.invalidate(tags[7]);
    assert_eq!(qp.expose(Region::alloc(1), 0, Access::RemoteRead).unwrap().stag, tags[7]);
    tags.sort();
    tags.dedup();
    assert_eq!(tags.len(), EMPTY_COUNT as usize);
}

/// However much is posted at once: the Send queue, which the fake library watches, never overflows, requests say what the work
/// says, and work is done in order, though on iWARP what is behind a Read may complete before it.
#[tokio::test(start_paused = true)]
async fn more_than_the_send_queue_holds_leaves_piece_by_piece() {
    for seed in 1..20u64 {
        let kind = if seed % 2 == 0 { Kind::Windows } else { Kind::Registration };
        let (device, pool) = (Device::new(kind), pool());
        let mut qp = connect(device, &pool).await;
        let mut random = seed;
        let mut next = |most: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % most
        };
        // (opcode, address, length, remote offset) of every request that is expected.
        let mut expected = VecDeque::new();
        for id in 0..40 {
            let buf = pool.take().unwrap();
            let base = buf.as_ptr() as u64;
            let what = next(3);
            if what == 0 {
                let len = next(LEN as u64 + 1);
                expected.push_back((opcode::SEND, if len > 0 { base } else { 0 }, len as u32, 0));
                qp.post(Work::Send { id, buf, len: len as usize, invalidate: None }).unwrap();
                continue;
            }
            let lens: Vec<u32> = (0..next(12)).map(|_| next(80) as u32).collect();
            let (mut at, mut segments) = (0, RemoteSegments::new());
            for (i, len) in lens.into_iter().enumerate() {
                let offset = 1000 * i as u64;
                segments.push(segment(len, offset));
                if len > 0 {
                    let opcode = if what == 1 { opcode::RDMA_WRITE } else { opcode::RDMA_READ };
                    expected.push_back((opcode, base + at, len, offset));
                }
                at += u64::from(len);
            }
            qp.post(if what == 1 {
                Work::Write { id, buf, at: 0, to: segments }
            } else {
                Work::Read { id, buf, at: 0, from: segments }
            })
            .unwrap();
        }
        let (mut ids, mut done, mut total) = (0..40, Vec::new(), 0);
        loop {
            let over = drive(&mut qp, &mut done);
            for completion in done.drain(..) {
                let Completion::Done { id, .. } = completion else { panic!("{completion:?}") };
                assert_eq!(Some(id), ids.next());
            }
            if over.is_ready() {
                continue;
            }
            let mut state = device.state();
            for request in state.posted.iter().filter(|r| r.number >= total) {
                let seen = (request.opcode, request.addr, request.len, request.remote);
                assert_eq!(Some(seen), expected.pop_front());
                let inline = request.opcode == opcode::SEND && (1..=128).contains(&request.len);
                assert_eq!(request.flags & flags::INLINE != 0, inline);
            }
            total = state.posted.back().map_or(total, |last| total.max(last.number + 1));
            // Some of what the device has completes: up to a request that is signalled. On iWARP, Reads may stay behind.
            let overtakes = kind == Kind::Registration && next(2) == 0;
            let read = |r: &Seen| r.opcode == opcode::RDMA_READ;
            let mut signalled = state.posted.iter().filter(|r| r.flags & flags::SIGNALED != 0);
            let first = signalled.clone().next();
            let Some(ends) = signalled.find(|r| overtakes && !read(r)).or(first).copied() else {
                assert!(state.posted.is_empty(), "the last request of a chain is signalled");
                break;
            };
            let number = ends.number;
            state.posted.retain(|r| r.number > number || r.number < number && read(r) && !read(&ends));
            state.occupied = (total - state.posted.front().map_or(total, |r| r.number)) as u32;
            drop(state);
            device.complete_send(number);
        }
        assert_eq!((ids.next(), expected.len()), (None, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_connection_manager_says_ends_the_connection() {
    let ends = [
        (event::DISCONNECTED, Lost::PeerClosed),
        (event::ADDR_CHANGE, Lost::Io(ErrorKind::AddrNotAvailable)),
        (event::DEVICE_REMOVAL, Lost::Io(ErrorKind::NotConnected)),
        (event::UNREACHABLE, Lost::Io(ErrorKind::ConnectionReset)),
    ];
    for (event, expected) in ends {
        let (device, pool) = (Device::new(Kind::Windows), pool());
        let mut qp = connect(device, &pool).await;
        qp.expose(pool.take().unwrap(), 100, Access::RemoteWrite).unwrap();
        device.tell(event);
        let (done, lost) = rest(&mut qp).await;
        assert_eq!((done.len(), lost), (RECVS + 1, expected));
    }
}

/// A region is opened by a request ahead of the Send that tells of it, in the same call.
#[tokio::test(start_paused = true)]
async fn a_window_is_bound_and_told_of_with_one_call_and_used_again_under_another_tag() {
    let (device, pool) = (Device::new(Kind::Windows), pool());
    let mut qp = connect(device, &pool).await;
    let mut last = None;
    for round in 0..3 {
        let chains = device.state().chains;
        let exposed = qp.expose(pool.take().unwrap(), 100, Access::RemoteWrite).unwrap();
        assert_ne!(Some(exposed.stag), last);
        last = Some(exposed.stag);
        qp.post(Work::Send { id: 1, buf: pool.take().unwrap(), len: 20, invalidate: None }).unwrap();
        let mut done = Vec::new();
        assert!(drive(&mut qp, &mut done).is_pending());
        let mut seen = std::mem::take(&mut device.state().posted);
        assert_eq!(seen.iter().map(|r| r.opcode).collect::<Vec<_>>(), [opcode::BIND_MW, opcode::SEND]);
        assert_eq!((device.state().chains, seen[0].rkey), (chains + 1, exposed.stag.0));
        device.complete_send(seen.pop_back().unwrap().number);
        assert!(drive(&mut qp, &mut done).is_ready());
        // The Reply has it invalidated.
        let first = device.state().receives.pop_front().unwrap();
        let invalidated_rkey = exposed.stag.0;
        device.complete(Wc {
            wr_id: first,
            byte_len: 10,
            wc_flags: verbs::WC_WITH_INV,
            invalidated_rkey,
            ..Wc::default()
        });
        assert!(drive(&mut qp, &mut done).is_ready());
        assert_eq!(names(&done), ["Send 1", "reclaimed", "received"]);
        device.set(|state| state.occupied -= 2);
        assert_eq!(device.state().windows, 1, "round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_pair_is_no_larger_than_its_device_allows() {
    let (device, pool) = (Device::new(Kind::Windows), pool());
    let qp = connect(device, &pool).await;
    assert_eq!((qp.limits.recvs, device.state().depth), (DEPTH as usize, DEPTH));
    assert_eq!((qp.limits.inbound_reads, qp.limits.outbound_reads), (8, 8));
    let Err(why) = try_connect(device, &pool, DEPTH as usize + 1).await else { panic!("too many Receives") };
    assert!(why.to_string().contains("the device takes 40 Receives, and 41 are wanted"), "{why}");
}
