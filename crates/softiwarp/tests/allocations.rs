//! In steady state nothing is allocated: not for a message, not for a Write or a Read, not for a tag.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::{alloc::System, future::poll_fn, task::Poll};

use common::{Pair, pair_with, segment, segments, start};
use rpcrdma_fabric::{Access, Completion, Op, Region, Work};
use softiwarp::Config;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations up to now.
fn count() -> usize {
    let stats = ALLOCATOR.stats();
    stats.allocations + stats.reallocations
}

/// One round: the active side exposes memory and asks; the passive side writes to it, reads from it, and answers with a
/// Send that invalidates.
struct Round {
    target: Option<Region>,
    source: Option<Region>,
    /// Of the passive side.
    write: Option<Region>,
    read: Option<Region>,
    answer: Option<Region>,
    call: Option<Region>,
}

impl Round {
    fn is_back(&self) -> bool {
        let Self { target, source, write, read, answer, call } = self;
        [target, source, write, read, answer, call].iter().all(|region| region.is_some())
    }
}

const BULK: usize = 100_000;

async fn round(pair: &mut Pair, memory: &mut Round) {
    let qp = &mut pair.active.qp;
    let target = qp.expose(memory.target.take().unwrap(), BULK as u32, Access::RemoteWrite).unwrap();
    let source = qp.expose(memory.source.take().unwrap(), BULK as u32, Access::RemoteRead).unwrap();
    let buf = memory.call.take().unwrap();
    qp.post(Work::Send { id: 1, buf, len: 200, invalidate: None }).unwrap();
    let qp = &mut pair.passive.qp;
    let (buf, to) = (memory.write.take().unwrap(), segments(&[segment(target)]));
    let mut write = Some(Work::Write { id: 2, buf, at: 0, to });
    let (buf, from) = (memory.read.take().unwrap(), segments(&[segment(source)]));
    qp.post(Work::Read { id: 3, buf, at: 0, from }).unwrap();
    let mut answered = false;
    poll_fn(|cx| {
        loop {
            let progress = pair.active.poll(cx) | pair.passive.poll(cx);
            assert!(pair.active.lost.is_none() && pair.passive.lost.is_none());
            for c in pair.active.done.drain(..) {
                match c {
                    Completion::Received { buf, len: 100, invalidated } => {
                        assert_eq!(invalidated, Some(target.stag));
                        pair.active.qp.post_recv(buf).unwrap();
                        pair.active.qp.invalidate(source.stag);
                        answered = true;
                    }
                    Completion::Reclaimed { stag, buf } if stag == target.stag => memory.target = Some(buf),
                    Completion::Reclaimed { buf, .. } => memory.source = Some(buf),
                    Completion::Done { buf, .. } => memory.call = Some(buf),
                    other => panic!("{other:?}"),
                }
            }
            for c in pair.passive.done.drain(..) {
                match c {
                    Completion::Received { buf, len: 200, .. } => pair.passive.qp.post_recv(buf).unwrap(),
                    Completion::Done { op: Op::Read, buf, .. } => {
                        memory.read = Some(buf);
                        pair.passive.qp.post(write.take().unwrap()).unwrap();
                        let buf = memory.answer.take().unwrap();
                        let send = Work::Send { id: 4, buf, len: 100, invalidate: Some(target.stag) };
                        pair.passive.qp.post(send).unwrap();
                    }
                    Completion::Done { op: Op::Write, buf, .. } => memory.write = Some(buf),
                    Completion::Done { buf, .. } => memory.answer = Some(buf),
                    other => panic!("{other:?}"),
                }
            }
            if answered && memory.is_back() {
                return Poll::Ready(());
            }
            if !progress {
                return Poll::Pending;
            }
        }
    })
    .await;
}

#[test]
fn nothing_is_allocated_per_message() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for crc in [true, false] {
        let mut config = Config::default();
        (config.crc, config.nudge) = (crc, false);
        let mut pair = runtime.block_on(pair_with(config.clone(), config, start(4, 256), start(4, 256)));
        let mut memory = Round {
            target: Some(Region::alloc(BULK)),
            source: Some(Region::alloc(BULK)),
            write: Some(Region::alloc(BULK)),
            read: Some(Region::alloc(BULK)),
            answer: Some(Region::alloc(100)),
            call: Some(Region::alloc(200)),
        };
        let allocated = runtime.block_on(async {
            // Queues and tables grow to their working size.
            for _ in 0..200 {
                round(&mut pair, &mut memory).await;
            }
            let before = count();
            for _ in 0..1000 {
                round(&mut pair, &mut memory).await;
            }
            count() - before
        });
        assert_eq!(allocated, 0, "{allocated} allocations in 1000 rounds, CRC {crc}");
    }
}
