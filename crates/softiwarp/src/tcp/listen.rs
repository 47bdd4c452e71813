//! The passive side of start-up.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    task::{Context, Poll, ready},
};

use rpcrdma_fabric::{
    Answer, BoxFuture, BoxQueuePair, ConnectError, Decide, Listener as Seam, Peer, Request, Start,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    runtime::Handle,
    time::timeout,
};

use super::{Config, connect::read_frame, describe, linger::linger, qp::TcpQueuePair};
use crate::{engine::Engine, mpa::setup::Incoming};

/// Connections that the operating system completes before we look.
const BACKLOG: i32 = 1024;

/// Takes iWARP connections.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    local: SocketAddr,
    config: Config,
}

impl Listener {
    /// Listens at `addr`. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn bind(addr: SocketAddr, config: Config) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        let inner = TcpListener::from_std(socket.into())?;
        let local = inner.local_addr()?;
        Ok(Self { inner, local, config })
    }
}

impl Seam for Listener {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Box<dyn Request>>> {
        loop {
            match ready!(self.inner.poll_accept(cx)) {
                Ok((stream, peer)) => {
                    let config = self.config.clone();
                    return Poll::Ready(Ok(Box::new(TcpRequest { stream, peer, config })));
                }
                // The one that connected is gone already; that is its own affair.
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

/// A TCP connection that has not started up.
struct TcpRequest {
    stream: TcpStream,
    peer: SocketAddr,
    config: Config,
}

impl Request for TcpRequest {
    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    fn accept<'a>(self: Box<Self>, answer: Decide<'a>) -> BoxFuture<'a, Result<BoxQueuePair, ConnectError>> {
        Box::pin(self.start_up(answer))
    }
}

impl TcpRequest {
    async fn start_up(mut self: Box<Self>, answer: Decide<'_>) -> Result<BoxQueuePair, ConnectError> {
        self.config.apply(&self.stream);
        let patience = self.config.request_timeout;
        let request =
            timeout(patience, read_frame(&mut self.stream)).await.unwrap_or(Err(ConnectError::TimedOut))?;
        let Self { mut stream, peer, config } = *self;
        let turn_away = |stream, frame: Option<crate::mpa::frame::Frame>| {
            let bytes = frame.map(|frame| frame.encode()).unwrap_or_default();
            linger(&Handle::current(), stream, bytes);
        };
        let incoming = match Incoming::new(request) {
            Ok(incoming) => incoming,
            Err(unacceptable) => {
                let why = unacceptable.why.to_string();
                turn_away(stream, unacceptable.reply);
                return Err(ConnectError::Incompatible(why));
            }
        };
        let start: Start = match answer(incoming.private_data()) {
            Answer::Accept(start) => start,
            Answer::Reject(private_data) => {
                let local = config.local(&rpcrdma_fabric::QpLimits::default());
                let reply = incoming
                    .reject(&local, &private_data)
                    .map_err(|e| io::Error::new(ErrorKind::InvalidInput, e))?;
                turn_away(stream, Some(reply));
                return Err(ConnectError::Refused(private_data));
            }
        };
        let local = config.local(&start.limits);
        let (reply, agreed) = match incoming.accept(&local, &start.private_data) {
            Ok(accepted) => accepted,
            Err(why) => {
                turn_away(stream, incoming.reject(&local, &[]).ok());
                return Err(ConnectError::Incompatible(why.to_string()));
            }
        };
        let private_data = incoming.private_data().to_vec();
        let peer = Peer { addr: peer, private_data, remote_invalidation: true, transport: describe(&agreed) };
        // The Receives are posted before the peer learns that it may send.
        let engine = Engine::new(&agreed, start.limits, config.options(), start.recvs);
        timeout(patience, stream.write_all(&reply.encode())).await.map_err(|_| ConnectError::TimedOut)??;
        Ok(Box::new(TcpQueuePair::new(stream, engine, peer, config.spin)))
    }
}
