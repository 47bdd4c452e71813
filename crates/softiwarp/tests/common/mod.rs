//! Two connected queue pairs in one task, and ways to drive them.
#![allow(dead_code, unreachable_pub, reason = "every test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{future::poll_fn, task::Poll};

use rpcrdma_fabric::{
    Answer, BoxQueuePair, Completion, ConnectError, Connector as _, Listener as _, Lost, QpLimits, Region,
    RemoteSegment, RemoteSegments, Request, Start,
};
use softiwarp::{Config, Connector, Listener};

/// One end: a queue pair, and what it has reported.
pub struct End {
    pub qp: BoxQueuePair,
    pub done: Vec<Completion>,
    pub lost: Option<Lost>,
}

impl End {
    pub fn new(qp: BoxQueuePair) -> Self {
        Self { qp, done: Vec::new(), lost: None }
    }

    /// Polls once, if there is anything to expect; true if something happened.
    pub fn poll(&mut self, cx: &mut std::task::Context<'_>) -> bool {
        if self.lost.is_some() {
            return false;
        }
        match self.qp.poll(cx, &mut self.done) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(lost)) => {
                self.lost = Some(lost);
                true
            }
        }
    }
}

/// Both ends of a connection.
pub struct Pair {
    pub active: End,
    pub passive: End,
}

impl Pair {
    /// Drives both ends until `enough` says so.
    pub async fn drive(&mut self, mut enough: impl FnMut(&mut End, &mut End) -> bool) {
        let all = poll_fn(|cx| {
            loop {
                if enough(&mut self.active, &mut self.passive) {
                    return Poll::Ready(());
                }
                let progress = self.active.poll(cx) | self.passive.poll(cx);
                if !progress {
                    return Poll::Pending;
                }
            }
        });
        tokio::time::timeout(std::time::Duration::from_secs(60), all)
            .await
            .expect("nothing happens any more");
    }

    /// Drives both ends until both are lost; gives the reasons, the active side's first.
    pub async fn until_lost(&mut self) -> (Lost, Lost) {
        self.drive(|a, b| a.lost.is_some() && b.lost.is_some()).await;
        (self.active.lost.clone().unwrap(), self.passive.lost.clone().unwrap())
    }
}

pub fn local_listener(config: Config) -> Listener {
    Listener::bind("127.0.0.1:0".parse().unwrap(), config).unwrap()
}

/// Waits for a connection request.
pub async fn next_request(listener: &mut Listener) -> Box<dyn Request> {
    poll_fn(|cx| listener.poll_accept(cx)).await.unwrap()
}

pub fn start(recvs: usize, recv_len: usize) -> Start {
    Start {
        private_data: Vec::new(),
        recvs: (0..recvs).map(|_| Region::alloc(recv_len)).collect(),
        limits: QpLimits::default(),
    }
}

/// Connects with both configurations and starts.
pub async fn try_pair(
    active: Config,
    passive: Config,
    active_start: Start,
    answer: Answer,
) -> (Result<BoxQueuePair, ConnectError>, Result<BoxQueuePair, ConnectError>) {
    let mut listener = local_listener(passive);
    let to = listener.local_addr();
    let connector = Connector::new(active);
    tokio::join!(connector.connect(to, active_start), async {
        next_request(&mut listener).await.accept(Box::new(|_| answer)).await
    })
}

pub async fn pair_with(active: Config, passive: Config, a: Start, b: Start) -> Pair {
    let (active, passive) = try_pair(active, passive, a, Answer::Accept(b)).await;
    Pair { active: End::new(active.unwrap()), passive: End::new(passive.unwrap()) }
}

/// A connection with 16 Receives of 4 KiB on either side.
pub async fn pair(config: Config) -> Pair {
    pair_with(config.clone(), config, start(16, 4096), start(16, 4096)).await
}

pub fn segment(of: rpcrdma_fabric::Exposed) -> RemoteSegment {
    RemoteSegment { stag: of.stag, offset: of.offset, len: of.len }
}

pub fn segments(of: &[RemoteSegment]) -> RemoteSegments {
    RemoteSegments::from_slice(of)
}

pub fn pattern(len: usize, seed: u8) -> Region {
    let mut region = Region::alloc(len);
    for (i, byte) in region.iter_mut().enumerate() {
        *byte = (i as u8).wrapping_mul(31) ^ ((i >> 8) as u8) ^ seed;
    }
    region
}
