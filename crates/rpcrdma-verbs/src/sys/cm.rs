//! The connection manager: event channels, and identifiers of connections and listeners.
#![allow(unsafe_code, reason = "functions of C libraries")]

use std::{
    ffi::c_int,
    io,
    net::SocketAddr,
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockAddr, SockAddrStorage};

use super::{Watched, check};
use crate::ffi::{
    Lib,
    cm::{self, ConnParam, event},
    verbs,
};

/// Where the events of some identifiers arrive.
pub(crate) struct Channel {
    raw: NonNull<cm::EventChannel>,
    /// `None` only while it is dropped.
    watched: Option<Watched>,
    /// Events may have moved here, of which the descriptor does not tell.
    moved: AtomicBool,
    lib: &'static Lib,
}

// SAFETY: the library locks around everything that it keeps per channel, and reading the descriptor is one system call.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Channel {
    /// A channel of its own. Must be called in a tokio runtime.
    pub(crate) fn new(lib: &'static Lib) -> io::Result<Self> {
        // SAFETY: no requirements.
        let raw =
            NonNull::new(unsafe { (lib.create_event_channel)() }).ok_or_else(io::Error::last_os_error)?;
        let mut channel = Self { raw, watched: None, moved: AtomicBool::new(false), lib };
        // SAFETY: the channel is valid until it is destroyed in `drop`.
        let fd = unsafe { channel.raw.as_ref() }.fd;
        // SAFETY: it is the channel's own, and `drop` ends the watching before it closes it.
        channel.watched = Some(unsafe { Watched::new(fd) }?);
        Ok(channel)
    }

    /// The next event of any identifier on this channel.
    pub(crate) fn poll_event(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<io::Result<Event>> {
        let Some(watched) = &self.watched else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if self.moved.load(Ordering::Relaxed) {
            match self.read() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.moved.store(false, Ordering::Relaxed),
                event => return Poll::Ready(event),
            }
        }
        watched.poll_read(cx, || self.read())
    }

    /// Takes an event, if there is one.
    fn read(self: &Arc<Self>) -> io::Result<Event> {
        let mut event = ptr::null_mut();
        // SAFETY: the thread's own variable.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: the channel is valid, and `event` is where the library puts its pointer.
        check(unsafe { (self.lib.get_cm_event)(self.raw.as_ptr(), &mut event) })?;
        let failed = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let event = NonNull::new(event).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: the library gave us this event, and it is acknowledged below and never used after that.
        let mut copied = unsafe { Event::copy(event.as_ref(), self) };
        // SAFETY: as above; each event is acknowledged once.
        check(unsafe { (self.lib.ack_cm_event)(event.as_ptr()) })?;
        if copied.status == FAILED_ITSELF && failed != 0 {
            copied.status = -failed;
        }
        Ok(copied)
    }

    /// Waits for the next event.
    pub(crate) async fn event(self: &Arc<Self>) -> io::Result<Event> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // Before the descriptor is closed, or the runtime would watch whatever gets its number next.
        self.watched = None;
        // SAFETY: created by `new`, destroyed once; identifiers hold their channel, so none is left on it, and every
        // event was acknowledged where it was read.
        unsafe { (self.lib.destroy_event_channel)(self.raw.as_ptr()) }
    }
}

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    AddressResolved,
    RouteResolved,
    /// The address or the route cannot be resolved.
    Unresolvable,
    Asked,
    Established,
    Rejected,
    Unreachable,
    ConnectError,
    Disconnected,
    DeviceRemoved,
    AddressChanged,
    /// Of no interest.
    Other(c_int),
}

/// The status of an event that the library could not deal with; why is in `errno`.
const FAILED_ITSELF: i32 = -1;

/// An event, copied.
pub(crate) struct Event {
    pub(crate) what: Happened,
    /// The address of the identifier that it is about.
    about: usize,
    /// 0, a negative error number, or on InfiniBand the reason of a rejection.
    status: i32,
    /// The peer's, with the padding of the connection manager.
    pub(crate) private_data: Vec<u8>,
    /// RDMA Reads that the peer wants to have open at us.
    pub(crate) responder_resources: u8,
    /// RDMA Reads that we may have open at the peer.
    pub(crate) initiator_depth: u8,
    /// The new connection, if somebody asks for one.
    pub(crate) asker: Option<Id>,
}

impl Event {
    /// Whether it is about this identifier. One that was asked for and is not migrated yet has its events on the channel of
    /// the listener.
    pub(crate) fn concerns(&self, id: &Id) -> bool {
        self.about == id.raw.as_ptr() as usize
    }

    /// On InfiniBand, the reason of a rejection.
    pub(crate) fn reason(&self) -> Option<i32> {
        (self.status > 0).then_some(self.status)
    }

    /// The error that it tells of.
    pub(crate) fn error(&self) -> Option<io::Error> {
        match self.status {
            FAILED_ITSELF => Some(io::Error::other("the library of the connection manager could not go on")),
            n if n < 0 => Some(io::Error::from_raw_os_error(n.saturating_neg())),
            _ => None,
        }
    }

    /// # Safety
    /// `event` is an event of `channel` that has not been acknowledged, seen for the first time.
    unsafe fn copy(raw: &cm::Event, channel: &Arc<Channel>) -> Self {
        let what = match raw.event {
            event::ADDR_RESOLVED => Happened::AddressResolved,
            event::ROUTE_RESOLVED => Happened::RouteResolved,
            event::ADDR_ERROR | event::ROUTE_ERROR => Happened::Unresolvable,
            event::CONNECT_REQUEST => Happened::Asked,
            event::CONNECT_ERROR => Happened::ConnectError,
            event::UNREACHABLE => Happened::Unreachable,
            event::REJECTED => Happened::Rejected,
            event::ESTABLISHED => Happened::Established,
            event::DISCONNECTED => Happened::Disconnected,
            event::DEVICE_REMOVAL => Happened::DeviceRemoved,
            event::ADDR_CHANGE => Happened::AddressChanged,
            other => Happened::Other(other),
        };
        let carries = matches!(what, Happened::Asked | Happened::Established | Happened::Rejected);
        let mut copied = Self {
            what,
            about: raw.id as usize,
            status: raw.status,
            private_data: Vec::new(),
            responder_resources: 0,
            initiator_depth: 0,
            asker: None,
        };
        if carries {
            copied.responder_resources = raw.conn.responder_resources;
            copied.initiator_depth = raw.conn.initiator_depth;
            let len = usize::from(raw.conn.private_data_len);
            if len > 0 && !raw.conn.private_data.is_null() {
                // SAFETY: these three events carry connection parameters, whose private data is a buffer of this length
                // inside the event, which has not been acknowledged.
                let bytes = unsafe { std::slice::from_raw_parts(raw.conn.private_data.cast::<u8>(), len) };
                copied.private_data = bytes.to_vec();
            }
        }
        if what == Happened::Asked {
            // The identifier of a request is new and belongs to whoever reads the event.
            copied.asker =
                NonNull::new(raw.id).map(|raw| Id { raw, channel: Arc::clone(channel), lib: channel.lib });
        }
        copied
    }
}

/// What one side offers when connecting.
pub(crate) struct Offer<'a> {
    /// At most 255 bytes; transports take fewer.
    pub(crate) private_data: &'a [u8],
    pub(crate) responder_resources: u8,
    pub(crate) initiator_depth: u8,
}

impl Offer<'_> {
    fn param(&self) -> io::Result<ConnParam> {
        let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "private data of more than 255 bytes");
        Ok(ConnParam {
            private_data: self.private_data.as_ptr().cast(),
            private_data_len: u8::try_from(self.private_data.len()).map_err(|_| too_long())?,
            responder_resources: self.responder_resources,
            initiator_depth: self.initiator_depth,
            flow_control: 0,
            // How often an unanswered packet is sent again: nearly the most that three bits hold, as Linux does.
            retry_count: 6,
            // A Send that finds no Receive is a mistake in somebody's credits, and is not to be papered over.
            rnr_retry_count: 0,
            srq: 0,
            qp_num: 0,
        })
    }
}

/// One end of a connection, or a listener, in the connection manager's books.
pub(crate) struct Id {
    raw: NonNull<cm::Id>,
    channel: Arc<Channel>,
    lib: &'static Lib,
}

// SAFETY: the library has no state that belongs to a thread; an identifier is used by one at a time, its owner.
unsafe impl Send for Id {}
// SAFETY: through a shared reference only addresses and pointers are read that do not change once the identifier is bound,
// and the library locks for itself.
unsafe impl Sync for Id {}

impl Id {
    pub(crate) fn new(channel: &Arc<Channel>) -> io::Result<Self> {
        let lib = channel.lib;
        let mut raw = ptr::null_mut();
        // SAFETY: the channel is valid, and the identifier holds it; `raw` is where the pointer goes.
        check(unsafe { (lib.create_id)(channel.raw.as_ptr(), &mut raw, ptr::null_mut(), cm::PS_TCP) })?;
        let raw = NonNull::new(raw).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { raw, channel: Arc::clone(channel), lib })
    }

    pub(crate) fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    pub(crate) fn lib(&self) -> &'static Lib {
        self.lib
    }

    pub(super) fn raw(&self) -> NonNull<cm::Id> {
        self.raw
    }

    /// The queue pair that was made on the identifier has been destroyed.
    pub(super) fn forget_qp(&mut self) {
        // SAFETY: the identifier is valid, and ours alone; the library takes its queue pair for destroyed when this is null.
        unsafe { self.raw.as_mut() }.qp = ptr::null_mut();
    }

    /// The device that the identifier is bound to, if it is.
    pub(super) fn context(&self) -> Option<NonNull<verbs::Context>> {
        // SAFETY: the identifier is valid until it is destroyed in `drop`.
        NonNull::new(unsafe { self.raw.as_ref() }.verbs)
    }

    /// The port of the device, counted from 1.
    pub(crate) fn port(&self) -> u8 {
        // SAFETY: as in `context`.
        unsafe { self.raw.as_ref() }.port_num
    }

    /// Takes the address, with any device that has it.
    pub(crate) fn bind(&mut self, addr: SocketAddr) -> io::Result<()> {
        let addr = SockAddr::from(addr);
        // SAFETY: the identifier is valid; the address is one, and only read, though the C type does not say so.
        check(unsafe { (self.lib.bind_addr)(self.raw.as_ptr(), addr.as_ptr().cast_mut().cast()) })
    }

    /// All addresses of one family are not to include those of the other.
    pub(crate) fn keep_to_family(&mut self) -> io::Result<()> {
        let mut yes: c_int = 1;
        // SAFETY: the identifier is valid; the value is an int, as this option's is, and is read during the call.
        check(unsafe {
            (self.lib.set_option)(
                self.raw.as_ptr(),
                cm::OPTION_ID,
                cm::OPTION_AFONLY,
                ptr::from_mut(&mut yes).cast(),
                size_of::<c_int>(),
            )
        })
    }

    pub(crate) fn listen(&mut self, backlog: i32) -> io::Result<()> {
        // SAFETY: the identifier is valid.
        check(unsafe { (self.lib.listen)(self.raw.as_ptr(), backlog) })
    }

    pub(crate) fn resolve_addr(&mut self, to: SocketAddr, patience: Duration) -> io::Result<()> {
        let to = SockAddr::from(to);
        let millis = c_int::try_from(patience.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: as in `bind`; no source address is asked for.
        check(unsafe {
            (self.lib.resolve_addr)(self.raw.as_ptr(), ptr::null_mut(), to.as_ptr().cast_mut().cast(), millis)
        })
    }

    pub(crate) fn resolve_route(&mut self, patience: Duration) -> io::Result<()> {
        let millis = c_int::try_from(patience.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the identifier is valid.
        check(unsafe { (self.lib.resolve_route)(self.raw.as_ptr(), millis) })
    }

    pub(crate) fn connect(&mut self, offer: &Offer<'_>) -> io::Result<()> {
        let mut param = offer.param()?;
        // SAFETY: the identifier is valid; the parameters and the private data are read during the call.
        check(unsafe { (self.lib.connect)(self.raw.as_ptr(), &mut param) })
    }

    pub(crate) fn accept(&mut self, offer: &Offer<'_>) -> io::Result<()> {
        let mut param = offer.param()?;
        // SAFETY: as in `connect`.
        check(unsafe { (self.lib.accept)(self.raw.as_ptr(), &mut param) })
    }

    /// Turns a request away; `private_data` says why.
    pub(crate) fn reject(&mut self, private_data: &[u8]) -> io::Result<()> {
        let len = u8::try_from(private_data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the identifier is valid; the private data is read during the call.
        check(unsafe { (self.lib.reject)(self.raw.as_ptr(), private_data.as_ptr().cast(), len) })
    }

    pub(crate) fn disconnect(&mut self) -> io::Result<()> {
        // SAFETY: the identifier is valid.
        check(unsafe { (self.lib.disconnect)(self.raw.as_ptr()) })
    }

    /// Moves the identifier to another channel, with the events that wait for it.
    pub(crate) fn migrate(&mut self, to: &Arc<Channel>) -> io::Result<()> {
        // SAFETY: both are valid. The call waits for events of this identifier that were read and not acknowledged; there
        // are none, as reading and acknowledging is one step here.
        check(unsafe { (self.lib.migrate_id)(self.raw.as_ptr(), to.raw.as_ptr()) })?;
        // The kernel moves events without a word to whoever waits at the other channel.
        to.moved.store(true, Ordering::Relaxed);
        self.channel = Arc::clone(to);
        Ok(())
    }

    /// Our address, once bound.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        // SAFETY: as in `context`.
        socket_addr(&unsafe { self.raw.as_ref() }.route.addr.src)
    }

    /// The peer's address, once resolved or asked.
    pub(crate) fn peer_addr(&self) -> Option<SocketAddr> {
        // SAFETY: as in `context`.
        socket_addr(&unsafe { self.raw.as_ref() }.route.addr.dst)
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: created or received once, destroyed once. Queue pairs own their identifier and destroy themselves first.
        // The call waits for events that were read and not acknowledged; there are none.
        if let Err(error) = check(unsafe { (self.lib.destroy_id)(self.raw.as_ptr()) }) {
            tracing::debug!(%error, "a connection identifier could not be destroyed");
        }
    }
}

/// An IPv4 or IPv6 address in C's clothes; `None` for anything else.
fn socket_addr(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let mut copy = SockAddrStorage::zeroed();
    let len = copy.size_of();
    // SAFETY: `sockaddr_storage` is the type that a storage is a view of, and it is plain data.
    unsafe { *copy.view_as::<libc::sockaddr_storage>() = *storage };
    // SAFETY: the storage is initialised over its whole length.
    unsafe { SockAddr::new(copy, len) }.as_socket()
}
