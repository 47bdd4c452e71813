//! The active side of connecting, and what both sides have in common.
//!
//! # Operation
//! Resolve the address to a device, resolve the route, make the queue pair, post the first Receives, ask. Each step is an
//! event of the connection manager on a channel that the connection keeps for its whole life.
//!
//! Asking happens on a thread that is made for it, as Linux's siw makes the TCP connection in that system call, and waits
//! for as long as the kernel tries. The thread has the queue pair meanwhile. If nobody waits for it any more, it takes the
//! queue pair apart when the call returns. A connector has [`ASKING_MAX`] such threads for each address at most: a host that
//! does not answer keeps each of them for minutes, and the next attempt there waits for one.
//!
//! # Private data
//! InfiniBand and RoCE pad it with zeros to the room that their messages have (56 bytes in a request, 196 in an answer,
//! 148 in a rejection), so what arrives may be longer than what was sent.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use rpcrdma_fabric::{
    BoxFuture, BoxQueuePair, ConnectError, Connector as Seam, Peer, QpLimits, Region, Start,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use crate::{
    Config, Protection, Transport, Unavailable,
    devices::{connection_manager, devices, locked_memory, queues_failed, receives_fit},
    ffi::Lib,
    qp::{Terms, VerbsQueuePair},
    sys::{Channel, Device, DomainKind, Event, Happened, Id, Offer, Qp, Want},
};

/// Connections of a connector to one address that are asked for at one time.
const ASKING_MAX: usize = 8;

/// Bounds how many connections to each address are asked for at one time.
#[derive(Debug)]
pub(crate) struct Asking {
    most: usize,
    /// Of the addresses that somebody is about to connect to, and no others.
    places: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
}

impl Asking {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, places: Mutex::default() }
    }

    /// The places for connections to an address.
    pub(crate) fn at(&self, address: IpAddr) -> Arc<Semaphore> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = places.get(&address).and_then(Weak::upgrade) {
            return known;
        }
        places.retain(|_, places| places.strong_count() > 0);
        let new = Arc::new(Semaphore::new(self.most));
        places.insert(address, Arc::downgrade(&new));
        new
    }
}

/// Makes connections through RNICs. Clones share the bound on connections that are asked for at one time.
#[derive(Clone, Debug)]
pub struct Connector {
    config: Config,
    asking: Arc<Asking>,
}

impl Default for Connector {
    fn default() -> Self {
        Self::new(Config::default())
    }
}

impl Connector {
    /// A connector with these settings. Whether this machine has verbs shows when it connects.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, asking: Arc::new(Asking::new(ASKING_MAX)) }
    }

    async fn start_up(&self, to: SocketAddr, start: Start) -> Result<BoxQueuePair, ConnectError> {
        let id = resolve(to, &self.config).await?;
        Ok(Box::new(establish(id, to, start, &self.config, &self.asking).await?))
    }
}

/// Makes the connection to `to` on an identifier that is resolved. `asking` bounds how many are asked for at one time.
pub(crate) async fn establish(
    id: Id,
    to: SocketAddr,
    start: Start,
    config: &Config,
    asking: &Asking,
) -> Result<VerbsQueuePair, ConnectError> {
    let place = timeout(config.connect_timeout, asking.at(to.ip()).acquire_owned());
    let place = place.await.map_err(|_| ConnectError::TimedOut)?.map_err(io::Error::other)?;
    let device = Device::of(&id)?;
    let channel = Arc::clone(id.channel());
    let offered = reads(&device, &start.limits);
    let Start { private_data, recvs, limits } = start;
    let qp = make(id, &device, config, recvs, limits, to)?;
    let answered = async {
        let qp = ask(qp, private_data, offered, place).await?;
        Ok((qp, next(&channel).await?))
    };
    let (mut qp, event) =
        timeout(config.connect_timeout, answered).await.unwrap_or(Err(ConnectError::TimedOut))?;
    let private_data = answer(&event)?;
    // Some iWARP stacks do not say how many Reads they take.
    let depth = event.initiator_depth;
    let reads_out = if device.abilities.iwarp && depth == 0 { offered.1 } else { depth.min(offered.1) };
    qp.established(Terms { reads_in: offered.0, reads_out, private_data, nudge: device.abilities.iwarp });
    Ok(qp)
}

/// Asks the peer; see the module's head.
async fn ask(
    mut qp: VerbsQueuePair,
    private_data: Vec<u8>,
    reads: (u8, u8),
    place: OwnedSemaphorePermit,
) -> io::Result<VerbsQueuePair> {
    let (answer, asked) = oneshot::channel();
    std::thread::Builder::new().name("rdma-connect".to_owned()).spawn(move || {
        let offer =
            Offer { private_data: &private_data, responder_resources: reads.0, initiator_depth: reads.1 };
        let result = match qp.id().and_then(|id| id.connect(&offer)) {
            Ok(()) => Ok(qp),
            Err(e) => {
                drop(qp);
                Err(e)
            }
        };
        // If nobody waits any more, it is dropped here.
        drop(answer.send(result));
        drop(place);
    })?;
    asked.await.unwrap_or_else(|_| Err(not_connected()))
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
    let no_device = |e: io::Error| ConnectError::Io(unresolved(to.ip(), &e));
    id.resolve_addr(to, config.resolve_timeout).map_err(no_device)?;
    step(&channel, Happened::AddressResolved, patience).await.map_err(no_device)?;
    id.resolve_route(config.resolve_timeout).map_err(no_device)?;
    step(&channel, Happened::RouteResolved, patience).await.map_err(no_device)?;
    Ok(id)
}

/// Says why there is no way to an address.
fn unresolved(to: IpAddr, e: &io::Error) -> io::Error {
    failed(
        e,
        match e.kind() {
            // The route is there, and nobody at its end; or the machine has been told so.
            ErrorKind::TimedOut | ErrorKind::HostUnreachable => format!("{to} does not answer: {e}"),
            _ => format!("no RDMA device leads to {to}: {e}"),
        },
    )
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
                Happened::Unresolvable => return Err(why(&event)),
                Happened::DeviceRemoved => return Err(io::Error::from_raw_os_error(libc::ENODEV)),
                _ => {}
            }
        }
    };
    timeout(patience, wait).await.unwrap_or(Err(ErrorKind::TimedOut.into()))
}

/// The error that an event stands for.
fn why(event: &Event) -> io::Error {
    event.error().unwrap_or_else(|| ErrorKind::HostUnreachable.into())
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
        Happened::Rejected => Err(match (event.reason(), event.error()) {
            (Some(REJECTED_BY_USER), _) => ConnectError::Refused(event.private_data.clone()),
            (Some(NOBODY_LISTENS), _) => refused("nobody listens there".to_owned()),
            // iWARP has one number for all reasons.
            (_, Some(_)) if !event.private_data.is_empty() => {
                ConnectError::Refused(event.private_data.clone())
            }
            (_, Some(e)) => ConnectError::Io(e),
            (reason, None) => refused(format!(
                "the connection manager rejected the connection, reason {}",
                reason.unwrap_or_default()
            )),
        }),
        Happened::DeviceRemoved => Err(not_connected().into()),
        _ => Err(match why(event) {
            e if event.what == Happened::Unreachable && e.raw_os_error() == Some(libc::ETIMEDOUT) => {
                ConnectError::TimedOut
            }
            e => e.into(),
        }),
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

/// Makes the queue pair on a bound identifier, for a connection with `peer`, and posts the first Receives.
pub(crate) fn make(
    id: Id,
    device: &Arc<Device>,
    config: &Config,
    recvs: Vec<Region>,
    limits: QpLimits,
    peer: SocketAddr,
) -> Result<VerbsQueuePair, ConnectError> {
    let windows = protection(device, config) == Protection::Windows;
    // On iWARP the destinations of Reads are open to the peer, too, without a window.
    let kind = if windows && !device.abilities.iwarp { DomainKind::Shared } else { DomainKind::Own };
    let no_room = |e: io::Error| failed(&e, queues_failed(&e));
    let domain = device.domain(kind).map_err(no_room)?;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let abilities = &device.abilities;
    let most = abilities.queue_depth.min(abilities.completions.saturating_sub(MIN_SENDS + 1)).max(1);
    let wanted_recvs = count(limits.recvs.max(recvs.len())).clamp(1, most);
    // Sends, and as many bindings and invalidations again; what does not fit waits.
    let room =
        abilities.completions.saturating_sub(wanted_recvs).saturating_sub(1).min(abilities.queue_depth);
    let wanted_sends = count(limits.sends).saturating_mul(3).clamp(MIN_SENDS, 4096).min(room.max(1));
    let want = Want { sends: wanted_sends, recvs: wanted_recvs, inline: config.inline };
    if let Some(len) = recvs.first().map(|buf| buf.len()) {
        receives_fit(wanted_recvs, len, locked_memory())
            .map_err(|why| io::Error::new(ErrorKind::OutOfMemory, why))?;
    }
    let qp = Qp::new(id, &domain, want).map_err(no_room)?;
    let can_expose = if windows { abilities.regions.min(abilities.window_count) } else { abilities.regions };
    let limits = QpLimits {
        recvs: limits.recvs.max(recvs.len()).min(qp.cap.max_recv_wr as usize),
        exposed: limits.exposed.min(can_expose as usize),
        ..limits
    };
    let transport = format!("{}, {}, {}", transport(device), device.name, protection(device, config));
    let peer = Peer { addr: peer, private_data: Vec::new(), remote_invalidation: windows, transport };
    let mut qp = VerbsQueuePair::new(qp, peer, limits, windows, config.spin);
    qp.begin(recvs)?;
    Ok(qp)
}

/// The shortest Send queue that is asked for.
const MIN_SENDS: u32 = 32;

/// An error with words of our own.
pub(crate) fn failed(e: &io::Error, why: String) -> io::Error {
    io::Error::new(e.kind(), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_kept_for_addresses_that_somebody_connects_to() {
        let (asking, one) = (Asking::new(2), IpAddr::from([10, 0, 0, 1]));
        let place = asking.at(one).try_acquire_owned().unwrap();
        assert_eq!(asking.at(one).available_permits(), 1);
        for n in 0..1000u32 {
            assert_eq!(asking.at(IpAddr::from(n.to_be_bytes())).available_permits(), 2);
        }
        assert_eq!((asking.at(one).available_permits(), asking.places.lock().unwrap().len()), (1, 2));
        drop(place);
        assert_eq!(asking.at(one).available_permits(), 2);
    }

    #[test]
    fn a_host_that_does_not_answer_is_not_a_device_that_is_missing() {
        let said = |number| {
            unresolved("10.0.0.9".parse().unwrap(), &io::Error::from_raw_os_error(number)).to_string()
        };
        for number in [libc::ETIMEDOUT, libc::EHOSTUNREACH] {
            assert!(said(number).starts_with("10.0.0.9 does not answer: "), "{}", said(number));
        }
        for number in [libc::ENODEV, libc::ENETUNREACH] {
            assert!(said(number).starts_with("no RDMA device leads to 10.0.0.9: "), "{}", said(number));
        }
        let silent = unresolved("::1".parse().unwrap(), &ErrorKind::TimedOut.into());
        assert_eq!(
            (silent.kind(), silent.to_string().as_str()),
            (ErrorKind::TimedOut, "::1 does not answer: timed out")
        );
    }
}
