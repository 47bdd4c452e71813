//! Making connections.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    ConnId, Shared, Side,
    qp::SimQueuePair,
    world::{Backlog, NotMade, Setup},
};
use crate::{Answer, BoxFuture, BoxQueuePair, ConnectError, Connector, Decide, Listener, Request, Start};

/// Connects from one node of a simulated fabric.
pub struct SimConnector {
    shared: Arc<Shared>,
    node: IpAddr,
}

impl SimConnector {
    pub(super) fn new(shared: Arc<Shared>, node: IpAddr) -> Self {
        Self { shared, node }
    }
}

/// The queue pair of one end that is there.
fn queue_pair(shared: &Arc<Shared>, conn: ConnId, side: Side) -> Option<BoxQueuePair> {
    let (limits, peer) = {
        let mut world = shared.world();
        (world.end(conn, side)?.limits, world.describe_peer(conn, side)?)
    };
    Some(Box::new(SimQueuePair::new(Arc::clone(shared), conn, side, limits, peer)))
}

/// A connection in the making: dropped before it is made, it is given up.
struct Attempt {
    shared: Arc<Shared>,
    conn: ConnId,
    side: Side,
    made: bool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.made {
            self.shared.world().drop_end(self.conn, self.side);
        }
    }
}

fn error(why: NotMade) -> ConnectError {
    match why {
        NotMade::Refused(private_data) => ConnectError::Refused(private_data),
        NotMade::Io(kind) => ConnectError::Io(kind.into()),
    }
}

impl Connector for SimConnector {
    fn connect(&self, to: SocketAddr, start: Start) -> BoxFuture<'_, Result<BoxQueuePair, ConnectError>> {
        Box::pin(async move {
            let conn = self.shared.world().connect(self.node, to, start);
            let mut attempt =
                Attempt { shared: Arc::clone(&self.shared), conn, side: Side::Active, made: false };
            poll_fn(|cx| {
                let mut world = self.shared.world();
                let Some(c) = world.conn(conn) else {
                    return Poll::Ready(Err(ConnectError::Io(io::ErrorKind::ConnectionAborted.into())));
                };
                match &c.setup {
                    Setup::Made => Poll::Ready(Ok(())),
                    Setup::Failed(why) => Poll::Ready(Err(error(why.clone()))),
                    Setup::Asked | Setup::Answered => {
                        c.waiting[Side::Active.index()] = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
            .await?;
            attempt.made = true;
            queue_pair(&self.shared, conn, Side::Active)
                .ok_or_else(|| ConnectError::Io(io::ErrorKind::ConnectionAborted.into()))
        })
    }
}

/// Takes connections at one address of a simulated fabric.
pub struct SimListener {
    shared: Arc<Shared>,
    at: SocketAddr,
    generation: u64,
}

impl SimListener {
    pub(super) fn new(shared: Arc<Shared>, at: SocketAddr) -> Self {
        let generation = {
            let mut world = shared.world();
            let generation = world.listeners.get(&at).map_or(1, |b| b.generation + 1);
            world.listeners.insert(at, Backlog { generation, ..Backlog::default() });
            generation
        };
        Self { shared, at, generation }
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let mut world = self.shared.world();
        if world.listeners.get(&self.at).is_none_or(|b| b.generation != self.generation) {
            return;
        }
        let backlog = world.listeners.remove(&self.at).unwrap_or_default();
        for conn in backlog.waiting {
            world.reject(conn, NotMade::Io(io::ErrorKind::ConnectionRefused));
        }
    }
}

impl Listener for SimListener {
    fn local_addr(&self) -> SocketAddr {
        self.at
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Box<dyn Request>>> {
        let mut world = self.shared.world();
        let Some(backlog) = world.listeners.get_mut(&self.at).filter(|b| b.generation == self.generation)
        else {
            return Poll::Ready(Err(io::ErrorKind::AddrInUse.into()));
        };
        let Some(conn) = backlog.waiting.pop_front() else {
            backlog.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let peer = world.peer_addr(conn).unwrap_or(self.at);
        Poll::Ready(Ok(Box::new(SimRequest { shared: Arc::clone(&self.shared), conn, peer, decided: false })))
    }
}

struct SimRequest {
    shared: Arc<Shared>,
    conn: ConnId,
    peer: SocketAddr,
    decided: bool,
}

impl Drop for SimRequest {
    fn drop(&mut self) {
        if !self.decided {
            self.shared.world().reject(self.conn, NotMade::Io(io::ErrorKind::ConnectionReset));
        }
    }
}

impl Request for SimRequest {
    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    fn accept<'a>(
        mut self: Box<Self>,
        answer: Decide<'a>,
    ) -> BoxFuture<'a, Result<BoxQueuePair, ConnectError>> {
        Box::pin(async move {
            let gone = || ConnectError::Io(io::ErrorKind::ConnectionAborted.into());
            let conn = self.conn;
            let shared = Arc::clone(&self.shared);
            let asked = shared.world().asked(conn).ok_or_else(gone)?;
            self.decided = true;
            let start = match answer(&asked.private_data) {
                Answer::Accept(start) => start,
                Answer::Reject(why) => {
                    shared.world().reject(conn, NotMade::Refused(why));
                    return Err(ConnectError::Refused(Vec::new()));
                }
            };
            if !shared.world().accept(conn, start) {
                return Err(gone());
            }
            let mut attempt = Attempt { shared: Arc::clone(&shared), conn, side: Side::Passive, made: false };
            let wait = shared.world().profile.late_ready;
            if wait {
                poll_fn(|cx| {
                    let mut world = shared.world();
                    let open = world.is_open(conn, Side::Passive);
                    let Some(c) = world.conn(conn) else { return Poll::Ready(Err(gone())) };
                    if c.ready {
                        Poll::Ready(Ok(()))
                    } else if !open || matches!(c.setup, Setup::Failed(_)) {
                        Poll::Ready(Err(gone()))
                    } else {
                        c.waiting[Side::Passive.index()] = Some(cx.waker().clone());
                        Poll::Pending
                    }
                })
                .await?;
            }
            attempt.made = true;
            queue_pair(&shared, conn, Side::Passive).ok_or_else(gone)
        })
    }
}
