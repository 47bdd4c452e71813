//! The passive side of connecting.
//!
//! # Operation
//! Requests arrive on the listener's channel. One that is accepted moves to a channel of its own, gets a queue pair with its
//! Receives posted, and is answered; the connection begins when the peer confirms.
//!
//! # When it breaks
//! If the device goes away, the listener looks for one with its address every second, and listens again where it was.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rpcrdma_fabric::{
    Answer, BoxFuture, BoxQueuePair, ConnectError, Decide, Listener as Seam, Peer, Request, Start,
};
use tokio::time::{Sleep, sleep, timeout};

use crate::{
    Config,
    connect::{make, next, not_connected, open_channel, reads},
    ffi::Lib,
    qp::VerbsQueuePair,
    sys::{Channel, Device, Event, Happened, Id, Offer},
};

/// Where requests arrive.
enum Place {
    Listening(Id),
    /// The device has gone; when to look for another.
    Gone(Pin<Box<Sleep>>),
}

/// Requests that the kernel keeps before we look.
const BACKLOG: i32 = 1024;

/// How often to look for a device in the place of one that has gone.
const AGAIN: Duration = Duration::from_secs(1);

/// Takes connections from RNICs.
pub struct Listener {
    place: Place,
    local: SocketAddr,
    config: Config,
}

impl Listener {
    /// Listens at `addr`, on the device that has the address, or on all devices if it is unspecified. Must be called in a
    /// tokio runtime.
    ///
    /// # Errors
    /// If this machine has no verbs, no device has the address, or the port is taken.
    pub fn bind(addr: SocketAddr, config: Config) -> io::Result<Self> {
        let id = listen(addr)?;
        let local = id.local_addr().ok_or(ErrorKind::AddrNotAvailable)?;
        Ok(Self { place: Place::Listening(id), local, config })
    }
}

fn listen(addr: SocketAddr) -> io::Result<Id> {
    let lib = Lib::get()?;
    let mut id = Id::new(&Arc::new(open_channel(lib)?))?;
    id.bind(addr).map_err(|e| match e.raw_os_error() {
        Some(libc::ENODEV | libc::EADDRNOTAVAIL) => {
            io::Error::new(e.kind(), format!("no RDMA device has the address {}: {e}", addr.ip()))
        }
        _ => e,
    })?;
    id.listen(BACKLOG)?;
    Ok(id)
}

impl Seam for Listener {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Box<dyn Request>>> {
        loop {
            let id = match &mut self.place {
                Place::Listening(id) => id,
                Place::Gone(timer) => {
                    ready!(timer.as_mut().poll(cx));
                    self.place = match listen(self.local) {
                        Ok(id) => {
                            tracing::info!(local = %self.local, "listening again on an RDMA device");
                            Place::Listening(id)
                        }
                        Err(error) => {
                            tracing::debug!(local = %self.local, %error, "not listening");
                            Place::Gone(Box::pin(sleep(AGAIN)))
                        }
                    };
                    continue;
                }
            };
            match ready!(id.channel().poll_event(cx))? {
                Event {
                    what: Happened::Asked,
                    asker: Some(id),
                    private_data,
                    responder_resources,
                    initiator_depth,
                    ..
                } => {
                    let Some(peer) = id.peer_addr() else { continue };
                    let asked = (responder_resources, initiator_depth);
                    let config = self.config.clone();
                    return Poll::Ready(Ok(Box::new(VerbsRequest { id, peer, private_data, asked, config })));
                }
                Event { what: Happened::DeviceRemoved | Happened::AddressChanged, .. } => {
                    tracing::warn!(local = %self.local, "the RDMA device has gone, and nobody can connect until it is back");
                    self.place = Place::Gone(Box::pin(sleep(AGAIN)));
                }
                // A peer that gave up before it was answered.
                _ => {}
            }
        }
    }
}

/// A request that has not been answered.
struct VerbsRequest {
    id: Id,
    peer: SocketAddr,
    private_data: Vec<u8>,
    /// RDMA Reads: that the peer wants to have open at us, and that it takes.
    asked: (u8, u8),
    config: Config,
}

impl Request for VerbsRequest {
    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    fn accept<'a>(self: Box<Self>, answer: Decide<'a>) -> BoxFuture<'a, Result<BoxQueuePair, ConnectError>> {
        Box::pin(self.set_up(answer))
    }
}

impl VerbsRequest {
    async fn set_up(self: Box<Self>, answer: Decide<'_>) -> Result<BoxQueuePair, ConnectError> {
        let Self { mut id, peer, private_data, asked, config } = *self;
        let channel: Arc<Channel> = Arc::new(open_channel(id.lib())?);
        id.migrate(&channel)?;
        let device = Device::of(&id)?;
        let start: Start = match answer(&private_data) {
            Answer::Accept(start) => start,
            Answer::Reject(why) => {
                id.reject(&why)?;
                return Err(ConnectError::Refused(why));
            }
        };
        let (reads_in, reads_out) = reads(&device, &start.limits);
        let (reads_in, reads_out) = (reads_in.min(asked.0), reads_out.min(asked.1));
        let Start { private_data: ours, recvs, limits } = start;
        let peer = Peer { addr: peer, private_data, remote_invalidation: false, transport: String::new() };
        // The Receives are posted before the peer learns that it may send.
        let mut made = make(id, &device, &config, recvs, limits, peer)?;
        made.limits.outbound_reads = u32::from(reads_out);
        made.limits.inbound_reads = u32::from(reads_in);
        let id = made.qp.id().ok_or_else(not_connected)?;
        id.accept(&Offer { private_data: &ours, responder_resources: reads_in, initiator_depth: reads_out })?;
        let event =
            timeout(config.connect_timeout, next(&channel)).await.unwrap_or(Err(ConnectError::TimedOut))?;
        match event.what {
            Happened::Established => Ok(Box::new(VerbsQueuePair::new(made))),
            _ if event.status < 0 => Err(io::Error::from_raw_os_error(-event.status).into()),
            what => {
                Err(ConnectError::Incompatible(format!("the peer did not confirm the connection ({what:?})")))
            }
        }
    }
}
