//! Both ends over real TCP sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use common::{End, Pair, pair, pair_with, pattern, segment, segments, start};
use rpcrdma_fabric::{
    Access, Completion, Lost, Op, QpLimits, Region, RejectReason, RemoteSegment, Shutdown, Stag, Work,
};
use softiwarp::Config;

fn configs() -> Vec<Config> {
    let mut all = Vec::new();
    for crc in [true, false] {
        for peer_to_peer in [false, true] {
            let mut config = Config::default();
            (config.crc, config.peer_to_peer) = (crc, peer_to_peer);
            all.push(config);
        }
    }
    let mut old = Config::default();
    old.revision = 1;
    all.push(old);
    let mut small = Config::default();
    small.max_ulpdu = 128;
    all.push(small);
    all
}

fn send(id: u64, bytes: &[u8]) -> Work {
    Work::Send { id, buf: Region::from(bytes), len: bytes.len(), invalidate: None }
}

fn received(end: &End) -> Vec<Vec<u8>> {
    end.done
        .iter()
        .filter_map(|c| match c {
            Completion::Received { buf, len, .. } => Some(buf[..*len].to_vec()),
            _ => None,
        })
        .collect()
}

fn dones(end: &End) -> Vec<(u64, Op)> {
    end.done
        .iter()
        .filter_map(|c| match c {
            Completion::Done { id, op, .. } => Some((*id, *op)),
            _ => None,
        })
        .collect()
}

fn flushed(end: &End, which: Op) -> usize {
    end.done.iter().filter(|c| matches!(c, Completion::Flushed { op, .. } if *op == which)).count()
}

fn reclaimed(end: &End) -> Vec<Stag> {
    end.done
        .iter()
        .filter_map(|c| match c {
            Completion::Reclaimed { stag, .. } => Some(*stag),
            _ => None,
        })
        .collect()
}

fn take_reclaimed(end: &mut End) -> Region {
    let at = end.done.iter().position(|c| matches!(c, Completion::Reclaimed { .. })).unwrap();
    let Completion::Reclaimed { buf, .. } = end.done.remove(at) else { unreachable!() };
    buf
}

fn misbehaved(lost: &Lost, code: &str) -> bool {
    matches!(lost, Lost::PeerMisbehaved(text) if text.contains(code))
}

fn terminated(lost: &Lost, code: &str) -> bool {
    matches!(lost, Lost::Terminated(text) if text.contains(code))
}

#[tokio::test]
async fn messages_go_both_ways_in_every_configuration() {
    for config in configs() {
        let mut pair = pair(config.clone()).await;
        let crc = if config.crc { "CRC32c" } else { "no CRC" };
        assert!(pair.active.qp.peer().transport.contains(crc));
        pair.active.qp.post(send(1, b"question")).unwrap();
        pair.active.qp.post(send(2, &[])).unwrap();
        pair.drive(|_, passive| received(passive).len() == 2).await;
        assert_eq!(received(&pair.passive), [&b"question"[..], b""]);
        pair.passive.qp.post(send(3, &[7; 4096])).unwrap();
        pair.drive(|active, _| received(active).len() == 1).await;
        assert_eq!(received(&pair.active), [[7; 4096]]);
        assert_eq!(dones(&pair.active), [(1, Op::Send), (2, Op::Send)]);
    }
}

#[tokio::test]
async fn the_passive_side_waits_for_the_first_frame() {
    let mut pair = pair(Config::default()).await;
    pair.passive.qp.post(send(1, b"too early")).unwrap();
    pair.active.qp.post(send(2, b"now")).unwrap();
    pair.drive(|active, passive| received(active).len() == 1 && received(passive).len() == 1).await;
    assert_eq!(received(&pair.active), [b"too early"]);
}

#[tokio::test]
async fn writes_and_reads_of_a_mebibyte() {
    for config in configs() {
        let mut pair = pair(config).await;
        let len = 1 << 20;
        let target = pair.passive.qp.expose(Region::alloc(len), len as u32, Access::RemoteWrite).unwrap();
        let source = pair.passive.qp.expose(pattern(len, 9), len as u32, Access::RemoteRead).unwrap();
        let work = Work::Write { id: 1, buf: pattern(len + 10, 3), at: 10, to: segments(&[segment(target)]) };
        pair.active.qp.post(work).unwrap();
        let work =
            Work::Read { id: 2, buf: Region::alloc(len + 5), at: 5, from: segments(&[segment(source)]) };
        pair.active.qp.post(work).unwrap();
        pair.active.qp.post(send(3, b"written")).unwrap();
        pair.drive(|a, b| received(b).len() == 1 && dones(a).len() == 3).await;
        let read = pair.active.done.iter().find_map(|c| match c {
            Completion::Done { id: 2, buf, .. } => Some(buf),
            _ => None,
        });
        assert!(read.unwrap()[5..] == pattern(len, 9)[..]);
        pair.passive.qp.invalidate(target.stag);
        pair.drive(|_, b| reclaimed(b) == [target.stag]).await;
        assert!(take_reclaimed(&mut pair.passive)[..] == pattern(len + 10, 3)[10..]);
    }
}

#[tokio::test]
async fn several_segments_are_filled_one_after_the_other() {
    for config in configs() {
        let mut pair = pair(config).await;
        let sizes = [1_u32, 0, 70_000, 3, 4096];
        let total: u32 = sizes.iter().sum();
        let mut expose = |access, fill: u8| {
            sizes.map(|n| pair.passive.qp.expose(pattern(n as usize, fill), n, access).unwrap())
        };
        let targets = expose(Access::RemoteWrite, 0);
        let sources = expose(Access::RemoteRead, 5);
        let data = pattern(total as usize, 77);
        let copy = data.to_vec();
        let to = segments(&targets.map(segment));
        pair.active.qp.post(Work::Write { id: 1, buf: data, at: 0, to }).unwrap();
        let from = segments(&sources.map(segment));
        let buf = Region::alloc(total as usize);
        pair.active.qp.post(Work::Read { id: 2, buf, at: 0, from }).unwrap();
        pair.active.qp.post(send(3, b"done")).unwrap();
        pair.drive(|a, b| received(b).len() == 1 && dones(a).len() == 3).await;
        let expected: Vec<u8> = sizes.iter().flat_map(|n| pattern(*n as usize, 5).to_vec()).collect();
        let read = pair.active.done.iter().find_map(|c| match c {
            Completion::Done { id: 2, buf, .. } => Some(&buf[..]),
            _ => None,
        });
        assert!(read == Some(&expected[..]));
        let mut written = Vec::new();
        for target in targets {
            pair.passive.qp.invalidate(target.stag);
            pair.drive(|_, b| !reclaimed(b).is_empty()).await;
            written.extend_from_slice(&take_reclaimed(&mut pair.passive));
        }
        assert!(written == copy);
    }
}

#[tokio::test]
async fn work_without_segments_completes() {
    let mut pair = pair(Config::default()).await;
    pair.active.qp.post(Work::Write { id: 1, buf: Region::alloc(0), at: 0, to: segments(&[]) }).unwrap();
    pair.active.qp.post(Work::Read { id: 2, buf: Region::alloc(0), at: 0, from: segments(&[]) }).unwrap();
    pair.drive(|a, _| dones(a) == [(1, Op::Write), (2, Op::Read)]).await;
}

#[tokio::test]
async fn more_reads_than_the_depth_are_held_back() {
    let mut a = start(1, 64);
    a.limits.outbound_reads = 3;
    let mut pair = pair_with(Config::default(), Config::default(), a, start(1, 64)).await;
    assert_eq!(pair.active.qp.limits().outbound_reads, 3);
    let source = pair.passive.qp.expose(pattern(1000, 1), 1000, Access::RemoteRead).unwrap();
    for id in 0..100 {
        let from = RemoteSegment { len: 10, offset: source.offset + id * 10, ..segment(source) };
        pair.active
            .qp
            .post(Work::Read { id, buf: Region::alloc(10), at: 0, from: segments(&[from]) })
            .unwrap();
    }
    pair.drive(|a, _| dones(a).len() == 100).await;
    let mut all = Vec::new();
    for (i, c) in pair.active.done.iter().enumerate() {
        let Completion::Done { id, op: Op::Read, buf } = c else { panic!("{c:?}") };
        assert_eq!(*id, i as u64, "reads complete in order");
        all.extend_from_slice(buf);
    }
    assert!(all == pattern(1000, 1)[..]);
}

#[tokio::test]
async fn a_send_invalidates_what_it_names() {
    for config in configs() {
        let mut pair = pair(config).await;
        let e = pair.active.qp.expose(Region::alloc(100), 100, Access::RemoteWrite).unwrap();
        pair.active.qp.post(send(1, b"call")).unwrap();
        pair.drive(|_, b| received(b).len() == 1).await;
        let to = segments(&[segment(e)]);
        pair.passive.qp.post(Work::Write { id: 1, buf: pattern(100, 1), at: 0, to }).unwrap();
        let reply = Work::Send { id: 2, buf: Region::from(&b"reply"[..]), len: 5, invalidate: Some(e.stag) };
        pair.passive.qp.post(reply).unwrap();
        pair.drive(|a, _| received(a).len() == 1).await;
        let order: Vec<_> = pair
            .active
            .done
            .iter()
            .filter_map(|c| match c {
                Completion::Reclaimed { stag, buf } => {
                    assert!(buf[..] == pattern(100, 1)[..]);
                    Some(("reclaimed", Some(*stag)))
                }
                Completion::Received { invalidated, .. } => Some(("received", *invalidated)),
                _ => None,
            })
            .collect();
        assert_eq!(order, [("reclaimed", Some(e.stag)), ("received", Some(e.stag))]);
        // The tag means nothing any more, here or there.
        pair.active.qp.invalidate(e.stag);
        let to = segments(&[segment(e)]);
        pair.passive.qp.post(Work::Write { id: 3, buf: pattern(100, 1), at: 0, to }).unwrap();
        let (a, b) = pair.until_lost().await;
        assert!(misbehaved(&a, "layer 1 type 1 code 0x00"), "{a}");
        assert!(terminated(&b, "layer 1 type 1 code 0x00"), "{b}");
    }
}

#[tokio::test]
async fn a_send_cannot_invalidate_what_is_not_exposed() {
    let mut pair = pair(Config::default()).await;
    let work = Work::Send { id: 1, buf: Region::alloc(4), len: 4, invalidate: Some(Stag(0x1234_5678)) };
    pair.active.qp.post(work).unwrap();
    let (a, b) = pair.until_lost().await;
    assert!(terminated(&a, "layer 0 type 1 code 0x09"), "{a}");
    assert!(misbehaved(&b, "layer 0 type 1 code 0x09"), "{b}");
    assert!(received(&pair.passive).is_empty());
}

#[tokio::test]
async fn a_message_without_a_receive_is_fatal() {
    let mut pair = pair_with(Config::default(), Config::default(), start(2, 64), start(2, 64)).await;
    for id in 0..3 {
        pair.active.qp.post(send(id, &[1; 10])).unwrap();
    }
    let (a, b) = pair.until_lost().await;
    assert!(terminated(&a, "layer 1 type 2 code 0x02"), "{a}");
    assert!(misbehaved(&b, "layer 1 type 2 code 0x02"), "{b}");
    assert_eq!(received(&pair.passive).len(), 2);
    assert_eq!(flushed(&pair.active, Op::Recv), 2);
}

#[tokio::test]
async fn a_message_longer_than_its_receive_is_fatal() {
    for config in configs() {
        let mut pair = pair_with(config.clone(), config, start(2, 500), start(2, 500)).await;
        pair.active.qp.post(send(1, &[1; 500])).unwrap();
        pair.active.qp.post(send(2, &[2; 501])).unwrap();
        let (a, b) = pair.until_lost().await;
        assert!(terminated(&a, "layer 1 type 2 code 0x05"), "{a}");
        assert!(misbehaved(&b, "layer 1 type 2 code 0x05"), "{b}");
        assert_eq!(received(&pair.passive), [vec![1; 500]]);
    }
}

/// Does `work` against memory of the peer's and expects both ends to see `code`.
async fn forbidden(code: &str, work: impl Fn(&mut Pair) -> Work) {
    for config in configs() {
        let mut pair = pair(config).await;
        let work = work(&mut pair);
        pair.active.qp.post(work).unwrap();
        let (a, b) = pair.until_lost().await;
        assert!(terminated(&a, code), "{a}");
        assert!(misbehaved(&b, code), "{b}");
    }
}

#[tokio::test]
async fn writes_are_checked() {
    let write = |segment| Work::Write { id: 1, buf: Region::alloc(4096), at: 0, to: segments(&[segment]) };
    let expose =
        |pair: &mut Pair, access| segment(pair.passive.qp.expose(Region::alloc(4096), 100, access).unwrap());
    forbidden("layer 1 type 1 code 0x00", |pair| {
        let s = expose(pair, Access::RemoteWrite);
        write(RemoteSegment { stag: Stag(s.stag.0 ^ 1), ..s })
    })
    .await;
    forbidden("layer 1 type 1 code 0x01", |pair| {
        write(RemoteSegment { len: 101, ..expose(pair, Access::RemoteWrite) })
    })
    .await;
    forbidden("layer 1 type 1 code 0x01", |pair| {
        let s = expose(pair, Access::RemoteWrite);
        write(RemoteSegment { offset: s.offset.wrapping_sub(1) >> 1, len: 1, ..s })
    })
    .await;
    forbidden("layer 0 type 1 code 0x02", |pair| write(expose(pair, Access::RemoteRead))).await;
}

#[tokio::test]
async fn reads_are_checked() {
    let read = |segment| Work::Read { id: 1, buf: Region::alloc(4096), at: 0, from: segments(&[segment]) };
    let expose =
        |pair: &mut Pair, access| segment(pair.passive.qp.expose(Region::alloc(4096), 100, access).unwrap());
    forbidden("layer 0 type 1 code 0x00", |pair| {
        let s = expose(pair, Access::RemoteRead);
        read(RemoteSegment { stag: Stag(s.stag.0 ^ 1), ..s })
    })
    .await;
    forbidden("layer 0 type 1 code 0x01", |pair| {
        read(RemoteSegment { len: 101, ..expose(pair, Access::RemoteRead) })
    })
    .await;
    forbidden("layer 0 type 1 code 0x02", |pair| read(expose(pair, Access::RemoteWrite))).await;
}

#[tokio::test]
async fn limits_are_enforced_and_give_back() {
    let mut limits = QpLimits { recvs: 2, sends: 2, exposed: 1, ..QpLimits::default() };
    limits.outbound_reads = 0;
    let mut a = start(1, 64);
    a.limits = limits;
    let mut pair = pair_with(Config::default(), Config::default(), a, start(1, 64)).await;
    let qp = &mut pair.active.qp;
    qp.post_recv(Region::alloc(1)).unwrap();
    let refused = qp.post_recv(Region::alloc(2)).unwrap_err();
    assert_eq!((refused.why, refused.item.len()), (RejectReason::QueueFull, 2));
    qp.expose(Region::alloc(1), 1, Access::RemoteRead).unwrap();
    let refused = qp.expose(Region::alloc(3), 1, Access::RemoteRead).unwrap_err();
    assert_eq!((refused.why, refused.item.len()), (RejectReason::TooManyRegions, 3));
    assert_eq!(qp.expose(Region::alloc(3), 4, Access::RemoteRead).unwrap_err().why, RejectReason::OutOfRange);
    let long = Work::Send { id: 0, buf: Region::alloc(3), len: 4, invalidate: None };
    assert_eq!(qp.post(long).unwrap_err().why, RejectReason::OutOfRange);
    let one = segments(&[RemoteSegment { stag: Stag(9), offset: u64::MAX, len: 1 }]);
    let wraps = Work::Write { id: 0, buf: Region::alloc(3), at: 0, to: one };
    assert_eq!(qp.post(wraps).unwrap_err().why, RejectReason::OutOfRange);
    let two = segments(&[RemoteSegment { stag: Stag(9), offset: 0, len: 2 }; 2]);
    let beyond = Work::Write { id: 0, buf: Region::alloc(4), at: 1, to: two.clone() };
    assert_eq!(qp.post(beyond).unwrap_err().why, RejectReason::OutOfRange);
    let read = Work::Read { id: 0, buf: Region::alloc(4), at: 0, from: two };
    assert_eq!(qp.post(read).unwrap_err().why, RejectReason::NoReads);
    qp.post(send(1, b"a")).unwrap();
    qp.post(send(2, b"b")).unwrap();
    assert_eq!(qp.post(send(3, b"c")).unwrap_err().why, RejectReason::QueueFull);
}

#[tokio::test]
async fn a_graceful_end_lets_everything_out() {
    let mut pair = pair_with(Config::default(), Config::default(), start(3, 64), start(64, 100_000)).await;
    let e = pair.active.qp.expose(Region::alloc(8), 8, Access::RemoteRead).unwrap();
    for id in 0..64 {
        pair.active.qp.post(send(id, &vec![id as u8; 100_000])).unwrap();
    }
    pair.active.qp.shutdown(Shutdown::Graceful);
    let (a, b) = pair.until_lost().await;
    assert_eq!((a, b), (Lost::Closed, Lost::PeerClosed));
    assert_eq!(received(&pair.passive).len(), 64);
    assert_eq!(dones(&pair.active).len(), 64);
    assert_eq!(flushed(&pair.active, Op::Recv), 3);
    assert_eq!(reclaimed(&pair.active), [e.stag]);
    assert_eq!(pair.active.qp.post_recv(Region::alloc(1)).unwrap_err().why, RejectReason::Lost);
    assert_eq!(pair.active.qp.post(send(1, b"")).unwrap_err().why, RejectReason::Lost);
    assert_eq!(
        pair.active.qp.expose(Region::alloc(1), 1, Access::RemoteRead).unwrap_err().why,
        RejectReason::Lost
    );
}

#[tokio::test]
async fn a_passive_side_that_was_never_spoken_to_can_end() {
    let mut pair = pair(Config::default()).await;
    pair.passive.qp.post(send(1, b"may not be sent")).unwrap();
    pair.passive.qp.shutdown(Shutdown::Graceful);
    assert_eq!(pair.until_lost().await, (Lost::PeerClosed, Lost::Closed));
    assert_eq!(flushed(&pair.passive, Op::Send), 1);
}

#[tokio::test]
async fn an_abort_flushes_and_the_peer_sees_a_broken_connection() {
    let mut pair = pair(Config::default()).await;
    pair.active.qp.post(send(1, b"never sent")).unwrap();
    pair.active.qp.shutdown(Shutdown::Abort);
    let (a, b) = pair.until_lost().await;
    assert_eq!(a, Lost::Closed);
    assert_eq!(b, Lost::Io(std::io::ErrorKind::ConnectionReset));
    assert_eq!(flushed(&pair.active, Op::Send), 1);
    assert_eq!(flushed(&pair.passive, Op::Recv), 16);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..2 {
        assert!(matches!(
            pair.active.qp.poll(&mut cx, &mut Vec::new()),
            std::task::Poll::Ready(Err(Lost::Closed))
        ));
    }
}

#[tokio::test]
async fn a_peer_that_vanishes_is_noticed() {
    let mut pair = pair(Config::default()).await;
    let source = pair.active.qp.expose(Region::alloc(1 << 20), 1 << 20, Access::RemoteRead).unwrap();
    pair.active.qp.post(send(1, b"hello")).unwrap();
    pair.drive(|_, b| received(b).len() == 1).await;
    let from = segments(&[segment(source)]);
    pair.passive.qp.post(Work::Read { id: 1, buf: Region::alloc(1 << 20), at: 0, from }).unwrap();
    let Pair { active, mut passive } = pair;
    drop(active);
    let mut other = End::new(passive_of_nothing().await);
    let pair = &mut passive;
    std::future::poll_fn(|cx| {
        while pair.poll(cx) {}
        other.poll(cx);
        if pair.lost.is_some() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    assert_eq!(flushed(&passive, Op::Read), 1);
    assert_eq!(flushed(&passive, Op::Recv), 15);
}

/// Some queue pair that stays up.
async fn passive_of_nothing() -> rpcrdma_fabric::BoxQueuePair {
    pair(Config::default()).await.passive.qp
}

#[tokio::test]
async fn ten_thousand_messages_of_any_size() {
    const COUNT: usize = 10_000;
    for crc in [true, false] {
        let mut config = Config::default();
        config.crc = crc;
        let mut pair = pair_with(config.clone(), config, start(1, 64), start(64, 9000)).await;
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let sizes: Vec<usize> =
            (0..COUNT).map(|_| if next() % 4 == 0 { next() % 9000 } else { next() % 200 } as usize).collect();
        let (mut posted, mut got) = (0, 0);
        pair.drive(|a, b| {
            for c in b.done.drain(..) {
                let Completion::Received { buf, len, .. } = c else { panic!("{c:?}") };
                assert_eq!(len, sizes[got]);
                assert!(buf[..len] == pattern(len, got as u8)[..]);
                got += 1;
                b.qp.post_recv(buf).unwrap();
            }
            a.done.clear();
            // Never more under way than Receives are posted.
            while posted < COUNT && posted < got + 64 {
                let buf = pattern(sizes[posted], posted as u8);
                a.qp.post(Work::Send { id: 0, len: buf.len(), buf, invalidate: None }).unwrap();
                posted += 1;
            }
            assert!(a.lost.is_none() && b.lost.is_none(), "{:?} {:?}", a.lost, b.lost);
            got == COUNT
        })
        .await;
    }
}

/// Regions that are read twice and closed after the first time, through sockets that take a part of an FPDU at a time;
/// what comes back is written over at once. A region that came back while a response was still being sent from it would
/// show in the checksum, and one whose checksum was made anew from other bytes in the data.
#[tokio::test]
async fn a_region_comes_back_only_when_its_last_response_is_written() {
    const ROUNDS: u64 = 48;
    const AT_ONCE: u64 = 6;
    let mut config = Config::default();
    (config.crc, config.send_buffer, config.recv_buffer) = (true, Some(8192), Some(65_536));
    let mut pair = pair_with(config.clone(), config, start(1, 64), start(1, 64)).await;
    let len = |round: u64| 60_000 + 37_003 * (round as usize % 7);
    let mut stags = Vec::new();
    let (mut begun, mut read, mut over) = (0, 0, 0);
    pair.drive(|a, b| {
        assert!(a.lost.is_none() && b.lost.is_none(), "{:?} {:?}", a.lost, b.lost);
        for c in a.done.drain(..) {
            let Completion::Done { id, op: Op::Read, buf } = c else { panic!("{c:?}") };
            let (round, second) = (id / 2, id % 2 == 1);
            assert!(buf[..] == pattern(len(round), round as u8)[..], "round {round}");
            read += 1;
            if !second {
                b.qp.invalidate(stags[round as usize]);
            }
        }
        for c in b.done.drain(..) {
            let Completion::Reclaimed { mut buf, .. } = c else { panic!("{c:?}") };
            buf.fill(0xff);
            over += 1;
        }
        while begun < ROUNDS && begun < over + AT_ONCE {
            let n = len(begun);
            let source = b.qp.expose(pattern(n, begun as u8), n as u32, Access::RemoteRead).unwrap();
            stags.push(source.stag);
            for id in [2 * begun, 2 * begun + 1] {
                let from = segments(&[segment(source)]);
                a.qp.post(Work::Read { id, buf: Region::alloc(n), at: 0, from }).unwrap();
            }
            begun += 1;
        }
        over == ROUNDS && read == 2 * ROUNDS
    })
    .await;
}
