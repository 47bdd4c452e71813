//! The passive side of connecting.
//!
//! # Operation
//! Requests arrive on the listener's channel. One that is accepted moves to a channel of its own, gets a queue pair with its
//! Receives posted, and is answered; the connection begins when the peer confirms.
//!
//! All addresses of IPv6 are without those of IPv4 on most iWARP devices, so they are two places, as in Linux. On siw they
//! also leave out what comes from this machine itself; where there is one, each address that devices have now is a place.
//!
//! # When it breaks
//! If the device goes away, the listener looks for one with its address every second, and listens again where it was. So it
//! does at those of several addresses that it cannot listen at in the beginning.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rpcrdma_fabric::{
    Answer, BoxFuture, BoxQueuePair, ConnectError, Decide, Listener as Seam, Request, Start,
};
use tokio::time::{Sleep, sleep, timeout};

use crate::{
    Config,
    connect::{make, next, open_channel, reads},
    devices::siw_addresses,
    ffi::Lib,
    qp::Terms,
    sys::{Channel, Device, Event, Happened, Id, Offer},
};

/// Where requests arrive.
struct Place {
    local: SocketAddr,
    state: State,
}

enum State {
    Listening(Id),
    /// The device has gone, or could not be had yet; when to look for one.
    Gone(Pin<Box<Sleep>>),
}

/// Requests that the kernel keeps before we look.
const BACKLOG: i32 = 1024;

/// How often to look for a device in the place of one that has gone.
const AGAIN: Duration = Duration::from_secs(1);

/// Takes connections from RNICs.
pub struct Listener {
    places: Vec<Place>,
    /// The place whose turn it is.
    turn: usize,
    local: SocketAddr,
    config: Config,
}

impl Listener {
    /// Listens at `addr`, on the device that has the address, or on all devices if it is unspecified; all addresses of IPv6
    /// include those of IPv4. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If this machine has no verbs, no device has the address, or the port is taken.
    pub fn bind(addr: SocketAddr, config: Config) -> io::Result<Self> {
        let (places, local) = places(addr, &addresses_of(addr.ip(), siw_addresses), listen)?;
        Ok(Self { places, turn: 0, local, config })
    }
}

/// Listens at these addresses for the one that was asked for, and says where that is. Those that cannot be had yet, as an
/// address of IPv6 that the kernel still looks for in the network, are tried again.
fn places(
    asked: SocketAddr,
    addresses: &[IpAddr],
    mut listen: impl FnMut(SocketAddr) -> io::Result<Id>,
) -> io::Result<(Vec<Place>, SocketAddr)> {
    let mut local = asked;
    let (mut places, mut failed) = (Vec::new(), Vec::new());
    for ip in addresses {
        let mut at = local;
        at.set_ip(*ip);
        match listen(at) {
            Ok(id) => {
                at = id.local_addr().ok_or(ErrorKind::AddrNotAvailable)?;
                local.set_port(at.port());
                places.push(Place { local: at, state: State::Listening(id) });
            }
            // One of several that devices had a moment ago.
            Err(e) if *ip != asked.ip() && e.kind() != ErrorKind::AddrInUse => failed.push((*ip, e)),
            Err(e) => return Err(e),
        }
    }
    if places.is_empty()
        && let Some((_, e)) = failed.pop()
    {
        return Err(e);
    }
    for (ip, error) in failed {
        let mut at = local;
        at.set_ip(ip);
        tracing::warn!(local = %at, %error, "nobody can connect there yet");
        places.push(Place { local: at, state: State::Gone(Box::pin(sleep(AGAIN))) });
    }
    Ok((places, local))
}

/// The addresses to listen at for one that was asked for; see the module's head.
fn addresses_of(asked: IpAddr, siw: impl FnOnce() -> Vec<IpAddr>) -> Vec<IpAddr> {
    if !asked.is_unspecified() {
        return vec![asked];
    }
    let mut each = siw();
    each.retain(|ip| asked.is_ipv6() || ip.is_ipv4());
    match asked {
        _ if !each.is_empty() => each,
        IpAddr::V4(_) => vec![asked],
        IpAddr::V6(_) => vec![Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()],
    }
}

fn listen(addr: SocketAddr) -> io::Result<Id> {
    let lib = Lib::get()?;
    let mut id = Id::new(&Arc::new(open_channel(lib)?))?;
    if addr.ip().is_unspecified() {
        id.keep_to_family()?;
    }
    id.bind(addr).map_err(|e| match e.raw_os_error() {
        // The kernel says this of a port that somebody else has at some address.
        Some(libc::EADDRNOTAVAIL) if addr.ip().is_unspecified() => ErrorKind::AddrInUse.into(),
        Some(libc::EADDRNOTAVAIL) => io::Error::new(
            e.kind(),
            format!(
                "no RDMA device has the address {}, or another server listens at all addresses: {e}",
                addr.ip()
            ),
        ),
        Some(libc::ENODEV) => {
            io::Error::new(e.kind(), format!("no RDMA device has the address {}: {e}", addr.ip()))
        }
        _ => e,
    })?;
    id.listen(BACKLOG)?;
    Ok(id)
}

impl Place {
    fn poll_accept(&mut self, cx: &mut Context<'_>, config: &Config) -> Poll<io::Result<Box<dyn Request>>> {
        loop {
            let id = match &mut self.state {
                State::Listening(id) => id,
                State::Gone(timer) => {
                    ready!(timer.as_mut().poll(cx));
                    self.state = match listen(self.local) {
                        Ok(id) => {
                            tracing::info!(local = %self.local, "listening on an RDMA device");
                            State::Listening(id)
                        }
                        Err(error) => {
                            tracing::debug!(local = %self.local, %error, "not listening");
                            State::Gone(Box::pin(sleep(AGAIN)))
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
                    let config = config.clone();
                    let device = Device::of(&id);
                    let request = VerbsRequest { device, id, peer, private_data, asked, config };
                    return Poll::Ready(Ok(Box::new(request)));
                }
                event
                    if matches!(event.what, Happened::DeviceRemoved | Happened::AddressChanged)
                        && event.concerns(id) =>
                {
                    tracing::warn!(local = %self.local, "the RDMA device has gone, and nobody can connect until it is back");
                    self.state = State::Gone(Box::pin(sleep(AGAIN)));
                }
                // A peer that gave up before it was answered, or whose device has gone.
                _ => {}
            }
        }
    }
}

impl Seam for Listener {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Box<dyn Request>>> {
        let count = self.places.len();
        for _ in 0..count {
            self.turn = (self.turn + 1) % count;
            if let Some(place) = self.places.get_mut(self.turn)
                && let Poll::Ready(request) = place.poll_accept(cx, &self.config)
            {
                return Poll::Ready(request);
            }
        }
        Poll::Pending
    }
}

/// A request that has not been answered.
struct VerbsRequest {
    device: io::Result<Arc<Device>>,
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

    fn can_invalidate(&self) -> bool {
        self.device.as_ref().is_ok_and(|device| device.abilities.can_invalidate())
    }

    fn accept<'a>(self: Box<Self>, answer: Decide<'a>) -> BoxFuture<'a, Result<BoxQueuePair, ConnectError>> {
        Box::pin(self.set_up(answer))
    }
}

impl VerbsRequest {
    async fn set_up(self: Box<Self>, answer: Decide<'_>) -> Result<BoxQueuePair, ConnectError> {
        let Self { device, mut id, peer, private_data, asked, config } = *self;
        let device = device?;
        let channel: Arc<Channel> = Arc::new(open_channel(id.lib())?);
        id.migrate(&channel)?;
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
        // The Receives are posted before the peer learns that it may send.
        let mut qp = make(id, &device, &config, recvs, limits, peer)?;
        let offer = Offer { private_data: &ours, responder_resources: reads_in, initiator_depth: reads_out };
        qp.id()?.accept(&offer)?;
        let event =
            timeout(config.connect_timeout, next(&channel)).await.unwrap_or(Err(ConnectError::TimedOut))?;
        match (event.what, event.error()) {
            (Happened::Established, _) => {
                qp.established(Terms { reads_in, reads_out, private_data, nudge: false });
                Ok(Box::new(qp))
            }
            (_, Some(e)) => Err(e.into()),
            (what, None) => {
                Err(ConnectError::Incompatible(format!("the peer did not confirm the connection ({what:?})")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use super::*;
    use crate::ffi::{
        cm::event,
        fake::{self, Device as Fake, Kind},
    };

    fn channel() -> Arc<Channel> {
        Arc::new(Channel::new(fake::lib()).unwrap())
    }

    /// An identifier of the fake library that listens.
    fn listen_on(fake: &Fake, port: u16) -> Id {
        let mut id = Id::new(&channel()).unwrap();
        id.bind(SocketAddr::new(fake.address(), port)).unwrap();
        id.listen(BACKLOG).unwrap();
        id
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_had_yet_is_tried_again_at_the_same_port() {
        let fake = Fake::new(Kind::Windows);
        let late: IpAddr = "fd00::1".parse().unwrap();
        let asked: SocketAddr = "[::]:0".parse().unwrap();
        let has = |error: ErrorKind| {
            move |at: SocketAddr| if at.ip() == late { Err(error.into()) } else { Ok(listen_on(fake, 20049)) }
        };
        let (found, local) =
            places(asked, &[late, fake.address()], has(ErrorKind::AddrNotAvailable)).unwrap();
        let seen: Vec<_> =
            found.iter().map(|p| (p.local.to_string(), matches!(p.state, State::Gone(_)))).collect();
        let here = SocketAddr::new(fake.address(), 20049).to_string();
        assert_eq!(seen, [(here, false), ("[fd00::1]:20049".to_owned(), true)]);
        assert_eq!(local.to_string(), "[::]:20049");
        for (addresses, error) in
            [(&[fake.address(), late][..], ErrorKind::AddrInUse), (&[late], ErrorKind::AddrNotAvailable)]
        {
            assert_eq!(places(asked, addresses, has(error)).err().map(|e| e.kind()), Some(error));
        }
    }

    #[tokio::test]
    async fn what_happens_to_a_request_does_not_happen_to_the_listener() {
        let fake = Fake::new(Kind::Windows);
        let local = SocketAddr::new(fake.address(), 20049);
        let mut place = Place { local, state: State::Listening(listen_on(fake, 20049)) };
        let (config, mut cx) = (Config::default(), Context::from_waker(Waker::noop()));
        assert!(place.poll_accept(&mut cx, &config).is_pending());
        for what in [event::DEVICE_REMOVAL, event::ADDR_CHANGE] {
            fake.ask();
            let asked = poll_fn(|cx| place.poll_accept(cx, &config)).await.unwrap();
            assert_eq!(asked.peer_addr().ip(), fake.address());
            fake.tell_asker(what);
            // Behind it, so that it has been read.
            fake.ask();
            let next = poll_fn(|cx| match place.poll_accept(cx, &config) {
                Poll::Pending if matches!(place.state, State::Gone(_)) => Poll::Ready(None),
                next => next.map(Some),
            });
            assert!(next.await.is_some(), "the listener has gone");
        }
        fake.tell_listener(event::DEVICE_REMOVAL);
        // Until it looks for another one, which it must not do here.
        while matches!(place.state, State::Listening(_)) {
            assert!(place.poll_accept(&mut cx, &config).is_pending());
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn events_that_move_to_another_channel_are_seen_there_at_once() {
        let fake = Fake::new(Kind::Windows);
        let mut id = listen_on(fake, 20049);
        let mut cx = Context::from_waker(Waker::noop());
        let to = channel();
        assert!(to.poll_event(&mut cx).is_pending());
        for what in [event::UNREACHABLE, event::DISCONNECTED] {
            fake.tell_listener(what);
        }
        id.migrate(&to).unwrap();
        for expected in [Happened::Unreachable, Happened::Disconnected] {
            let Poll::Ready(Ok(event)) = to.poll_event(&mut cx) else { panic!("{expected:?} is not seen") };
            assert!(event.what == expected && event.concerns(&id) && event.error().is_none());
        }
        assert!(to.poll_event(&mut cx).is_pending());
        fake.tell_listener(event::ESTABLISHED);
        assert_eq!(to.event().await.unwrap().what, Happened::Established);
    }

    #[tokio::test]
    async fn what_the_library_itself_could_not_do_is_said() {
        let fake = Fake::new(Kind::Windows);
        let id = listen_on(fake, 20049);
        fake.fail_listener(event::ADDR_ERROR, libc::EMFILE);
        let error = id.channel().event().await.unwrap().error().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        fake.fail_listener(event::ADDR_ERROR, 0);
        let error = id.channel().event().await.unwrap().error().unwrap().to_string();
        assert_eq!(error, "the library of the connection manager could not go on");
    }

    #[test]
    fn all_addresses_are_those_of_both_families_and_on_siw_each_of_them() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let places =
            |asked: &str, siw: &[&str]| addresses_of(ip(asked), || siw.iter().map(|s| ip(s)).collect());
        let both = ["10.0.0.1", "fd00::1"];
        assert_eq!(places("10.0.0.7", &both), [ip("10.0.0.7")]);
        assert_eq!(places("::", &[]), [ip("::"), ip("0.0.0.0")]);
        assert_eq!(places("0.0.0.0", &[]), [ip("0.0.0.0")]);
        assert_eq!(places("::", &both), both.map(ip));
        assert_eq!(places("0.0.0.0", &both), [ip("10.0.0.1")]);
        assert_eq!(places("0.0.0.0", &both[1..]), [ip("0.0.0.0")]);
    }
}
