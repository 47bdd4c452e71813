//! The active side of connecting, and what both sides have in common.
//!
//! # Operation
//! Resolve the address to a device, resolve the route, make the queue pair, post the first Receives, ask. Each step is an
//! event of the connection manager on a channel that the connection keeps for its whole life.
//!
//! # Private data
//! InfiniBand and RoCE pad it with zeros to the room that their messages have (56 bytes in a request, 196 in an answer,
//! 148 in a rejection), so what arrives may be longer than what was sent.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use rpcrdma_fabric::{
    BoxFuture, BoxQueuePair, ConnectError, Connector as Seam, Peer, QpLimits, Region, Start,
};
use tokio::time::timeout;

use crate::{
    Config, Protection, Transport, Unavailable,
    devices::{connection_manager, devices, locked_memory, receives_fit, registration_failed},
    ffi::Lib,
    qp::{Made, VerbsQueuePair, local_key},
    sys::{Channel, Device, DomainKind, Event, Happened, Id, Offer, Qp, Want},
};

/// Makes connections through RNICs.
#[derive(Clone, Debug, Default)]
pub struct Connector {
    config: Config,
}

impl Connector {
    /// A connector with these settings. Whether this machine has verbs shows when it connects.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    async fn start_up(&self, to: SocketAddr, start: Start) -> Result<BoxQueuePair, ConnectError> {
        let config = &self.config;
        let id = resolve(to, config).await?;
        let device = Device::of(&id)?;
        let offered = reads(&device, &start.limits);
        let Start { private_data, recvs, limits } = start;
        let peer =
            Peer { addr: to, private_data: Vec::new(), remote_invalidation: false, transport: String::new() };
        let mut made = make(id, &device, config, recvs, limits, peer)?;
        let offer =
            Offer { private_data: &private_data, responder_resources: offered.0, initiator_depth: offered.1 };
        let id = made.qp.id().ok_or_else(not_connected)?;
        id.connect(&offer)?;
        let channel = Arc::clone(id.channel());
        let event =
            timeout(config.connect_timeout, next(&channel)).await.unwrap_or(Err(ConnectError::TimedOut))?;
        made.peer.private_data = answer(&event)?;
        // Some iWARP stacks do not say how many Reads they take.
        let depth = event.initiator_depth;
        let reads_out = if device.abilities.iwarp && depth == 0 { offered.1 } else { depth.min(offered.1) };
        made.limits.outbound_reads = u32::from(reads_out);
        made.limits.inbound_reads = u32::from(offered.0);
        made.nudge = device.abilities.iwarp;
        Ok(Box::new(VerbsQueuePair::new(made)))
    }
}

impl Seam for Connector {
    fn connect(&self, to: SocketAddr, start: Start) -> BoxFuture<'_, Result<BoxQueuePair, ConnectError>> {
        Box::pin(self.start_up(to, start))
    }

    fn remote_invalidation(&self, to: SocketAddr) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            route(to, &self.config).await.is_ok_and(|route| route.protection == Protection::Windows)
        })
    }
}

/// What leads to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Route {
    /// The kernel's name of the device.
    pub device: String,
    /// What it speaks.
    pub transport: Transport,
    /// How memory is opened to the peer.
    pub protection: Protection,
}

/// The RNIC that leads to an address. Must be called in a tokio runtime.
///
/// # Errors
/// If there is none, or this machine has no verbs.
pub async fn route(to: SocketAddr, config: &Config) -> Result<Route, ConnectError> {
    let id = resolve(to, config).await?;
    let device = Device::of(&id)?;
    Ok(Route {
        device: device.name.clone(),
        transport: transport(&device),
        protection: protection(&device, config),
    })
}

fn transport(device: &Device) -> Transport {
    Transport::new(device.abilities.iwarp, device.port.link)
}

fn protection(device: &Device, config: &Config) -> Protection {
    if config.windows && device.abilities.windows { Protection::Windows } else { Protection::Registration }
}

/// An identifier on the device that leads to `to`.
async fn resolve(to: SocketAddr, config: &Config) -> Result<Id, ConnectError> {
    let lib = Lib::get().map_err(io::Error::from)?;
    let channel = Arc::new(open_channel(lib)?);
    let mut id = Id::new(&channel)?;
    // The kernel keeps to its time limits; ours only cuts off what hangs.
    let patience = config.resolve_timeout * 2;
    let no_device = |e: io::Error| {
        let text = format!("no RDMA device leads to {}: {e}", to.ip());
        ConnectError::Io(io::Error::new(e.kind(), text))
    };
    id.resolve_addr(to, config.resolve_timeout).map_err(no_device)?;
    step(&channel, Happened::AddressResolved, patience).await.map_err(no_device)?;
    id.resolve_route(config.resolve_timeout).map_err(no_device)?;
    step(&channel, Happened::RouteResolved, patience).await.map_err(no_device)?;
    Ok(id)
}

/// A channel to the kernel's connection manager.
pub(crate) fn open_channel(lib: &'static Lib) -> io::Result<Channel> {
    Channel::new(lib).map_err(|e| match e.raw_os_error() {
        // The library says so when it finds no device, without a look at the connection manager.
        Some(libc::ENODEV) => devices().err().unwrap_or(Unavailable::NoDevice).into(),
        Some(libc::ENOENT | libc::ENOSYS) => Unavailable::Kernel("no connection manager".to_owned()).into(),
        Some(libc::EACCES | libc::EPERM) => {
            io::Error::new(e.kind(), connection_manager().err().unwrap_or(e.to_string()))
        }
        _ => e,
    })
}

/// Waits for one step of resolution.
async fn step(channel: &Arc<Channel>, wanted: Happened, patience: Duration) -> io::Result<()> {
    let wait = async {
        loop {
            let event = channel.event().await?;
            match event.what {
                what if what == wanted => return Ok(()),
                Happened::Unresolvable | Happened::DeviceRemoved => return Err(errno(event.status)),
                _ => {}
            }
        }
    };
    timeout(patience, wait).await.unwrap_or(Err(ErrorKind::TimedOut.into()))
}

/// The error in an event's status.
fn errno(status: i32) -> io::Error {
    match status {
        n if n < 0 => io::Error::from_raw_os_error(-n),
        _ => ErrorKind::HostUnreachable.into(),
    }
}

/// The next event that decides about a connection.
pub(crate) async fn next(channel: &Arc<Channel>) -> Result<Event, ConnectError> {
    loop {
        let event = channel.event().await?;
        if !matches!(event.what, Happened::Other(_) | Happened::AddressResolved | Happened::RouteResolved) {
            return Ok(event);
        }
    }
}

/// InfiniBand's reason "consumer reject": the peer's user said no.
const REJECTED_BY_USER: i32 = 28;
/// InfiniBand's reason "invalid service ID": nobody listens.
const NOBODY_LISTENS: i32 = 8;

/// The private data of the peer that said yes.
fn answer(event: &Event) -> Result<Vec<u8>, ConnectError> {
    let refused = |text: String| ConnectError::Io(io::Error::new(ErrorKind::ConnectionRefused, text));
    match event.what {
        Happened::Established => Ok(event.private_data.clone()),
        Happened::Rejected => Err(match event.status {
            REJECTED_BY_USER => ConnectError::Refused(event.private_data.clone()),
            NOBODY_LISTENS => refused("nobody listens there".to_owned()),
            // iWARP has one number for all reasons.
            n if n < 0 && !event.private_data.is_empty() => ConnectError::Refused(event.private_data.clone()),
            n if n < 0 => ConnectError::Io(io::Error::from_raw_os_error(-n)),
            n => refused(format!("the connection manager rejected the connection, reason {n}")),
        }),
        Happened::Unreachable if event.status == -libc::ETIMEDOUT => Err(ConnectError::TimedOut),
        Happened::DeviceRemoved => Err(not_connected().into()),
        _ => Err(errno(event.status).into()),
    }
}

/// The identifier has gone with its queue pair.
pub(crate) fn not_connected() -> io::Error {
    ErrorKind::NotConnected.into()
}

/// RDMA Reads to offer: open at us, and open at the peer.
pub(crate) fn reads(device: &Device, limits: &QpLimits) -> (u8, u8) {
    let most = |wanted: u32, device: u8| u8::try_from(wanted).unwrap_or(u8::MAX).min(device);
    (
        most(limits.inbound_reads, device.abilities.reads_in),
        most(limits.outbound_reads, device.abilities.reads_out),
    )
}

/// Makes the queue pair on a bound identifier and posts the first Receives.
pub(crate) fn make(
    id: Id,
    device: &Arc<Device>,
    config: &Config,
    recvs: Vec<Region>,
    limits: QpLimits,
    peer: Peer,
) -> Result<Made, ConnectError> {
    let windows = protection(device, config) == Protection::Windows;
    let kind = if windows { DomainKind::Shared } else { DomainKind::Own };
    let domain = device.domain(kind)?;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let abilities = &device.abilities;
    let wanted_recvs = count(limits.recvs.max(recvs.len())).clamp(1, abilities.queue_depth.max(1));
    // Sends, and as many bindings and invalidations again; what does not fit waits.
    let room =
        abilities.completions.saturating_sub(wanted_recvs).saturating_sub(1).min(abilities.queue_depth);
    let wanted_sends = count(limits.sends).saturating_mul(3).clamp(32, 4096).min(room.max(1));
    let want = Want { sends: wanted_sends, recvs: wanted_recvs, inline: config.inline };
    if let Some(len) = recvs.first().map(|buf| buf.len()) {
        receives_fit(wanted_recvs, len, locked_memory())
            .map_err(|why| io::Error::new(ErrorKind::OutOfMemory, why))?;
    }
    let qp = Qp::new(id, &domain, want)?;
    let mut posted = VecDeque::with_capacity(qp.cap.max_recv_wr as usize);
    for buf in recvs.into_iter().take(qp.cap.max_recv_wr as usize) {
        let lkey = local_key(&domain, &buf).map_err(|e| io::Error::new(e.kind(), registration_failed(&e)))?;
        posted.push_back((buf, lkey));
    }
    let limits = QpLimits {
        recvs: limits.recvs.max(posted.len()).min(qp.cap.max_recv_wr as usize),
        exposed: limits.exposed.min(abilities.regions as usize),
        ..limits
    };
    let transport = format!("{}, {}, {}", transport(device), device.name, protection(device, config));
    let peer = Peer { remote_invalidation: windows, transport, ..peer };
    let mut made = Made { qp, recvs: posted, peer, limits, windows, spin: config.spin, nudge: false };
    made.post_receives()?;
    Ok(made)
}
