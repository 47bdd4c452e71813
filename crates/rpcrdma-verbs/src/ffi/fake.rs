//! The C libraries' part played by a few Rust functions, for tests on machines without an RDMA device.
//!
//! # Operation
//! A [`Device`] has an address of its own, by which the fake connection manager finds it. Everything that is made of it leads
//! back to it through its context, as in the real libraries. It carries nothing out: it writes down what it is asked for, and
//! the test says what completes. A Send queue that overflows ends the test, and so does an identifier that goes before its
//! queue pair.
#![allow(unsafe_code, reason = "functions of C libraries")]

use std::{
    collections::VecDeque,
    ffi::{c_char, c_int, c_void},
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
    ptr,
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
};

use rustix::event::{EventfdFlags, eventfd};
use socket2::{SockAddr, SockAddrStorage};

use super::{
    Lib,
    cm::{self, ConnParam},
    verbs::{self, RecvWr, SendWr, Wc, opcode},
};

/// A work request as the driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) opcode: c_int,
    pub(crate) flags: u32,
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) remote: u64,
    pub(crate) rkey: u32,
    pub(crate) invalidate: u32,
    pub(crate) number: u64,
}

/// What a device has and does.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) queue_pairs: usize,
    pub(crate) domains: usize,
    pub(crate) registrations: usize,
    pub(crate) windows: usize,
    /// How often giving back a registration, a window, and a queue pair, fails, and with what.
    pub(crate) refuse_mr: (usize, c_int),
    pub(crate) refuse_mw: (usize, c_int),
    pub(crate) refuse_qp: (usize, c_int),
    /// The system call that connects does not return.
    pub(crate) hold: bool,
    /// The kernel has ended the device's events.
    ended: bool,
    /// All registrations have the same tag.
    pub(crate) same_tag: bool,
    /// What was posted, for the test to take.
    pub(crate) posted: VecDeque<Seen>,
    pub(crate) receives: VecDeque<u64>,
    /// Chains, that is, calls.
    pub(crate) chains: usize,
    /// Requests that occupy the Send queue, and its length.
    pub(crate) occupied: u32,
    pub(crate) depth: u32,
    completions: VecDeque<Wc>,
    tags: u32,
    /// The identifier that a queue pair was made on last.
    connected: usize,
    /// The identifier that listens, and the one of who asked last.
    listening: usize,
    asked: usize,
}

/// A device of the fake library.
#[repr(C)]
pub(crate) struct Device {
    /// First, so that a context's address is its device's.
    context: verbs::Context,
    listed: verbs::Device,
    attr: verbs::DeviceAttr,
    state: Mutex<State>,
    changed: Condvar,
    /// Where its own events would come, and where completions are announced.
    events: OwnedFd,
    completed: OwnedFd,
    address: IpAddr,
}

// SAFETY: the pointers inside are its own, and are not written after it was made.
unsafe impl Sync for Device {}
// SAFETY: as above.
unsafe impl Send for Device {}

/// What a device can do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// InfiniBand with windows.
    Windows,
    /// Linux's rxe.
    SoftRoce,
    /// iWARP with registration per Call.
    Registration,
    /// iWARP with windows.
    IwarpWindows,
}

/// The length of both queues of fake devices.
pub(crate) const DEPTH: u32 = 40;

static DEVICES: Mutex<Vec<&'static Device>> = Mutex::new(Vec::new());

impl Device {
    /// Another device, which stays for ever.
    pub(crate) fn new(kind: Kind) -> &'static Self {
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        let fd = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        // SAFETY: plain data and optional functions, of which none is there when all is zero.
        let (mut context, mut listed, mut attr) =
            unsafe { std::mem::zeroed::<(verbs::Context, verbs::Device, verbs::DeviceAttr)>() };
        listed.transport_type = match kind {
            Kind::Windows | Kind::SoftRoce => verbs::TRANSPORT_IB,
            Kind::Registration | Kind::IwarpWindows => verbs::TRANSPORT_IWARP,
        };
        listed.name[0] = b'f' as c_char;
        let depth = DEPTH as c_int;
        (attr.max_qp_wr, attr.max_cqe, attr.max_mr) = (depth, 2 * depth + 1, 1000);
        (attr.max_qp_rd_atom, attr.max_qp_init_rd_atom) = (8, 8);
        if kind == Kind::SoftRoce {
            attr.vendor_id = verbs::VENDOR_SOFTWARE;
        }
        if kind != Kind::Registration {
            (attr.max_mw, attr.device_cap_flags) = (1000, verbs::CAP_WINDOW_TYPE_2B);
        }
        context.ops.alloc_mw = Some(alloc_mw);
        context.ops.dealloc_mw = Some(dealloc_mw);
        context.ops.poll_cq = Some(poll_cq);
        context.ops.req_notify_cq = Some(req_notify_cq);
        context.ops.post_send = Some(post_send);
        context.ops.post_recv = Some(post_recv);
        let address = Ipv4Addr::from(0x7fff_0001 + devices.len() as u32).into();
        let device = Box::leak(Box::new(Self {
            context,
            listed,
            attr,
            state: Mutex::default(),
            changed: Condvar::new(),
            events: fd(),
            completed: fd(),
            address,
        }));
        device.context.device = &mut device.listed;
        device.context.async_fd = device.events.as_raw_fd();
        devices.push(device);
        device
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something that threads may wait for.
    pub(crate) fn set(&self, what: impl FnOnce(&mut State)) {
        what(&mut self.state());
        self.changed.notify_all();
    }

    /// Waits until the device is like that.
    pub(crate) fn wait(&self, until: impl Fn(&State) -> bool) {
        let mut state = self.state();
        while !until(&state) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Something completes.
    pub(crate) fn complete(&self, wc: Wc) {
        self.state().completions.push_back(wc);
        rustix::io::write(&self.completed, &1u64.to_ne_bytes()).unwrap();
    }

    /// The kernel has taken everything from the device.
    pub(crate) fn end_events(&self) {
        self.state().ended = true;
        rustix::io::write(&self.events, &1u64.to_ne_bytes()).unwrap();
    }

    /// Something happens to the connection that was made last.
    pub(crate) fn tell(&self, event: c_int) {
        let id = self.state().connected as *mut cm::Id;
        // SAFETY: the test keeps the connection.
        unsafe { tell(id, event) }
    }

    /// Something happens to the listener.
    pub(crate) fn tell_listener(&self, event: c_int) {
        let id = self.state().listening as *mut cm::Id;
        // SAFETY: the test keeps the listener.
        unsafe { tell(id, event) }
    }

    /// The library fails with the listener, for a reason that it leaves in `errno`.
    pub(crate) fn fail_listener(&self, event: c_int, number: c_int) {
        let id = self.state().listening as *mut cm::Id;
        let told = Told { id: id as usize, event, status: -1, number, silent: false };
        // SAFETY: the test keeps the listener.
        unsafe { Channel::of(id) }.put(told);
    }

    /// Somebody wants to connect.
    pub(crate) fn ask(&self) {
        let listener = self.state().listening as *mut cm::Id;
        // SAFETY: plain data and pointers, which may be null.
        let mut child: Box<cm::Id> = Box::new(unsafe { std::mem::zeroed() });
        // SAFETY: the test keeps the listener.
        let parent = unsafe { &*listener };
        (child.channel, child.verbs, child.port_num) = (parent.channel, parent.verbs, 1);
        (child.route.addr.src, child.route.addr.dst) = (parent.route.addr.src, parent.route.addr.src);
        let child = Box::into_raw(child);
        self.state().asked = child as usize;
        // SAFETY: just made; whoever reads the event owns it.
        unsafe { tell(child, cm::event::CONNECT_REQUEST) }
    }

    /// Something happens to who asked last.
    pub(crate) fn tell_asker(&self, event: c_int) {
        let id = self.state().asked as *mut cm::Id;
        // SAFETY: the test keeps the request.
        unsafe { tell(id, event) }
    }

    /// The requests up to this number complete with what they were posted with.
    pub(crate) fn complete_send(&self, number: u64) {
        self.complete(Wc { wr_id: number, ..Wc::default() });
    }
}

/// An event channel with its events.
#[repr(C)]
struct Channel {
    raw: cm::EventChannel,
    fd: OwnedFd,
    events: Mutex<VecDeque<Told>>,
}

/// An event of an identifier.
#[derive(Clone, Copy)]
struct Told {
    id: usize,
    event: c_int,
    status: c_int,
    /// What is left in `errno`.
    number: c_int,
    /// The descriptor does not tell of it.
    silent: bool,
}

impl Channel {
    /// # Safety
    /// The identifier is valid.
    unsafe fn of<'a>(id: *mut cm::Id) -> &'a Self {
        // SAFETY: an identifier has its channel, which is one of ours.
        unsafe { &*(*id).channel.cast::<Self>() }
    }

    fn put(&self, told: Told) {
        self.events.lock().unwrap().push_back(told);
        if !told.silent {
            rustix::io::write(&self.fd, &1u64.to_ne_bytes()).unwrap();
        }
    }
}

/// The channel's descriptor tells of an event of an identifier.
///
/// # Safety
/// The identifier is valid.
unsafe fn tell(id: *mut cm::Id, event: c_int) {
    // SAFETY: as the caller promises.
    unsafe { Channel::of(id) }.put(Told { id: id as usize, event, status: 0, number: 0, silent: false });
}

fn set_errno(number: c_int) -> c_int {
    // SAFETY: the thread's own variable.
    unsafe { *libc::__errno_location() = number };
    -1
}

/// # Safety
/// A context of a device of ours.
unsafe fn device<'a>(context: *mut verbs::Context) -> &'a Device {
    // SAFETY: contexts are handed out as pointers to their devices, which begin with them and stay for ever.
    unsafe { &*context.cast::<Device>() }
}

/// Counts down how often something is to fail.
fn refused(times: &mut (usize, c_int)) -> Option<c_int> {
    times.0 = times.0.checked_sub(1)?;
    Some(times.1)
}

/// The fake libraries.
pub(crate) fn lib() -> &'static Lib {
    static LIB: OnceLock<Lib> = OnceLock::new();
    LIB.get_or_init(|| Lib {
        get_device_list,
        free_device_list,
        open_device,
        close_device,
        query_device,
        query_port,
        alloc_pd,
        dealloc_pd,
        reg_mr,
        dereg_mr,
        create_comp_channel,
        destroy_comp_channel,
        create_cq,
        destroy_cq,
        destroy_qp,
        get_cq_event,
        ack_cq_events,
        get_async_event,
        ack_async_event,
        wc_status_str,
        create_event_channel,
        destroy_event_channel,
        create_id,
        destroy_id,
        set_option,
        bind_addr,
        listen,
        resolve_addr,
        resolve_route,
        create_qp,
        connect,
        accept: connect,
        reject,
        disconnect,
        migrate_id,
        get_cm_event,
        ack_cm_event,
    })
}

// The functions themselves. SAFETY, for all of them: they are called with what they have handed out and not taken back, and
// with places to write to, as those of the libraries are.

// SAFETY: as said for all of them.
unsafe extern "C" fn get_device_list(_: *mut c_int) -> *mut *mut verbs::Device {
    set_errno(libc::ENOSYS);
    ptr::null_mut()
}
// SAFETY: as said for all of them.
unsafe extern "C" fn free_device_list(_: *mut *mut verbs::Device) {}
// SAFETY: as said for all of them.
unsafe extern "C" fn open_device(_: *mut verbs::Device) -> *mut verbs::Context {
    ptr::null_mut()
}
// SAFETY: as said for all of them.
unsafe extern "C" fn close_device(_: *mut verbs::Context) -> c_int {
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn query_device(context: *mut verbs::Context, attr: *mut verbs::DeviceAttr) -> c_int {
    // SAFETY: see above.
    unsafe { ptr::copy_nonoverlapping(&device(context).attr, attr, 1) };
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn query_port(_: *mut verbs::Context, _: u8, attr: *mut verbs::PortAttr) -> c_int {
    // SAFETY: see above.
    let attr = unsafe { &mut *attr };
    (attr.state, attr.link_layer, attr.max_msg_sz) = (verbs::PORT_ACTIVE, verbs::LINK_INFINIBAND, 1 << 16);
    0
}

// SAFETY: as said for all of them.
unsafe extern "C" fn alloc_pd(context: *mut verbs::Context) -> *mut verbs::Pd {
    // SAFETY: see above.
    unsafe { device(context) }.state().domains += 1;
    Box::into_raw(Box::new(verbs::Pd { context, handle: 0 }))
}
// SAFETY: as said for all of them.
unsafe extern "C" fn dealloc_pd(pd: *mut verbs::Pd) -> c_int {
    // SAFETY: see above.
    unsafe { device((*pd).context) }.state().domains -= 1;
    // SAFETY: see above.
    drop(unsafe { Box::from_raw(pd) });
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn reg_mr(
    pd: *mut verbs::Pd,
    addr: *mut c_void,
    length: usize,
    _: c_int,
) -> *mut verbs::Mr {
    // SAFETY: see above.
    let context = unsafe { (*pd).context };
    // SAFETY: see above.
    let mut state = unsafe { device(context) }.state();
    state.registrations += 1;
    state.tags += u32::from(!state.same_tag) << 8;
    let (lkey, rkey) = (state.tags, state.tags);
    Box::into_raw(Box::new(verbs::Mr { context, pd, addr, length, handle: 0, lkey, rkey }))
}
// SAFETY: as said for all of them.
unsafe extern "C" fn dereg_mr(mr: *mut verbs::Mr) -> c_int {
    // SAFETY: see above.
    let device = unsafe { device((*mr).context) };
    let mut state = device.state();
    if let Some(number) = refused(&mut state.refuse_mr) {
        return number;
    }
    state.registrations -= 1;
    // SAFETY: see above.
    drop(unsafe { Box::from_raw(mr) });
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn alloc_mw(pd: *mut verbs::Pd, kind: c_int) -> *mut verbs::Mw {
    // SAFETY: see above.
    let context = unsafe { (*pd).context };
    // SAFETY: see above.
    let mut state = unsafe { device(context) }.state();
    state.windows += 1;
    state.tags += 1 << 8;
    Box::into_raw(Box::new(verbs::Mw { context, pd, rkey: state.tags, handle: 0, kind }))
}
// SAFETY: as said for all of them.
unsafe extern "C" fn dealloc_mw(mw: *mut verbs::Mw) -> c_int {
    // SAFETY: see above.
    let mut state = unsafe { device((*mw).context) }.state();
    if let Some(number) = refused(&mut state.refuse_mw) {
        return number;
    }
    state.windows -= 1;
    // SAFETY: see above.
    drop(unsafe { Box::from_raw(mw) });
    0
}

// SAFETY: as said for all of them.
unsafe extern "C" fn create_comp_channel(context: *mut verbs::Context) -> *mut verbs::CompChannel {
    // One descriptor for each, as each is watched.
    // SAFETY: see above.
    let fd = unsafe { device(context) }.completed.try_clone().unwrap().into_raw_fd();
    Box::into_raw(Box::new(verbs::CompChannel { context, fd, refcnt: 0 }))
}
// SAFETY: as said for all of them.
unsafe extern "C" fn destroy_comp_channel(channel: *mut verbs::CompChannel) -> c_int {
    // SAFETY: see above.
    let channel = unsafe { Box::from_raw(channel) };
    // SAFETY: made for this channel, and nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(channel.fd) });
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn create_cq(
    context: *mut verbs::Context,
    cqe: c_int,
    cq_context: *mut c_void,
    channel: *mut verbs::CompChannel,
    _: c_int,
) -> *mut verbs::Cq {
    Box::into_raw(Box::new(verbs::Cq { context, channel, cq_context, handle: 0, cqe }))
}
// SAFETY: as said for all of them.
unsafe extern "C" fn destroy_cq(cq: *mut verbs::Cq) -> c_int {
    // SAFETY: see above.
    drop(unsafe { Box::from_raw(cq) });
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn get_cq_event(
    channel: *mut verbs::CompChannel,
    _: *mut *mut verbs::Cq,
    _: *mut *mut c_void,
) -> c_int {
    // SAFETY: see above.
    match rustix::io::read(&unsafe { device((*channel).context) }.completed, &mut [0; 8]) {
        Ok(_) => 0,
        Err(e) => set_errno(e.raw_os_error()),
    }
}
// SAFETY: as said for all of them.
unsafe extern "C" fn ack_cq_events(_: *mut verbs::Cq, _: u32) {}
// SAFETY: as said for all of them.
unsafe extern "C" fn req_notify_cq(_: *mut verbs::Cq, _: c_int) -> c_int {
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn poll_cq(cq: *mut verbs::Cq, room: c_int, into: *mut Wc) -> c_int {
    // SAFETY: see above.
    let mut state = unsafe { device((*cq).context) }.state();
    let mut count = 0;
    while count < room
        && let Some(wc) = state.completions.pop_front()
    {
        // SAFETY: see above.
        unsafe { into.add(count as usize).write(wc) };
        count += 1;
    }
    count
}
// SAFETY: as said for all of them.
unsafe extern "C" fn get_async_event(context: *mut verbs::Context, _: *mut verbs::AsyncEvent) -> c_int {
    // SAFETY: see above.
    let ended = unsafe { device(context) }.state().ended;
    set_errno(if ended { libc::EIO } else { libc::EAGAIN })
}
// SAFETY: as said for all of them.
unsafe extern "C" fn ack_async_event(_: *mut verbs::AsyncEvent) {}
// SAFETY: as said for all of them.
unsafe extern "C" fn wc_status_str(_: c_int) -> *const c_char {
    c"a status".as_ptr()
}

// SAFETY: as said for all of them.
unsafe extern "C" fn post_send(qp: *mut verbs::Qp, first: *mut SendWr, _: *mut *mut SendWr) -> c_int {
    // SAFETY: see above.
    let mut state = unsafe { device((*qp).context) }.state();
    state.chains += 1;
    let mut next = first;
    // SAFETY: see above.
    while let Some(wr) = unsafe { next.as_ref() } {
        // SAFETY: see above.
        let sge = (wr.num_sge > 0).then(|| unsafe { *wr.sg_list });
        let tag = if wr.opcode == opcode::BIND_MW { wr.bind.rkey } else { wr.rdma.rkey };
        state.occupied += 1;
        assert!(state.occupied <= state.depth, "the Send queue overflows");
        state.posted.push_back(Seen {
            opcode: wr.opcode,
            flags: wr.send_flags,
            addr: sge.map_or(0, |sge| sge.addr),
            len: sge.map_or(0, |sge| sge.length),
            remote: wr.rdma.remote_addr,
            rkey: tag,
            invalidate: wr.invalidate_rkey,
            number: wr.wr_id,
        });
        next = wr.next;
    }
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn post_recv(qp: *mut verbs::Qp, first: *mut RecvWr, _: *mut *mut RecvWr) -> c_int {
    // SAFETY: see above.
    let mut state = unsafe { device((*qp).context) }.state();
    let mut next = first;
    // SAFETY: see above.
    while let Some(wr) = unsafe { next.as_ref() } {
        state.receives.push_back(wr.wr_id);
        next = wr.next;
    }
    0
}

// SAFETY: as said for all of them.
unsafe extern "C" fn create_event_channel() -> *mut cm::EventChannel {
    let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE).unwrap();
    let raw = cm::EventChannel { fd: fd.as_raw_fd() };
    Box::into_raw(Box::new(Channel { raw, fd, events: Mutex::default() })).cast()
}
// SAFETY: as said for all of them.
unsafe extern "C" fn destroy_event_channel(channel: *mut cm::EventChannel) {
    // SAFETY: see above.
    drop(unsafe { Box::from_raw(channel.cast::<Channel>()) });
}
// SAFETY: as said for all of them.
unsafe extern "C" fn create_id(
    channel: *mut cm::EventChannel,
    id: *mut *mut cm::Id,
    context: *mut c_void,
    port_space: c_int,
) -> c_int {
    // SAFETY: plain data and pointers, which may be null.
    let mut made: Box<cm::Id> = Box::new(unsafe { std::mem::zeroed() });
    (made.channel, made.context, made.port_space, made.port_num) = (channel, context, port_space, 1);
    // SAFETY: see above.
    unsafe { *id = Box::into_raw(made) };
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn destroy_id(id: *mut cm::Id) -> c_int {
    // SAFETY: see above.
    let id = unsafe { Box::from_raw(id) };
    assert!(id.qp.is_null(), "the queue pair goes before its identifier");
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn set_option(_: *mut cm::Id, _: c_int, _: c_int, _: *mut c_void, _: usize) -> c_int {
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn bind_addr(id: *mut cm::Id, addr: *mut libc::sockaddr) -> c_int {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: an address of IPv4, as all of these devices have.
    unsafe {
        *storage.view_as::<libc::sockaddr_in>() = *addr.cast::<libc::sockaddr_in>();
        (*id).route.addr.src = *storage.view_as::<libc::sockaddr_storage>();
    }
    // SAFETY: initialised over its whole length.
    let addr = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_in>() as libc::socklen_t) };
    let ip = addr.as_socket().map(|addr| addr.ip());
    let devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(device) = devices.iter().find(|device| Some(device.address) == ip) else {
        return set_errno(libc::ENODEV);
    };
    // SAFETY: see above.
    unsafe { (*id).verbs = ptr::from_ref(*device).cast::<verbs::Context>().cast_mut() };
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn listen(id: *mut cm::Id, _: c_int) -> c_int {
    // SAFETY: see above.
    unsafe { device((*id).verbs) }.set(|state| state.listening = id as usize);
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn resolve_addr(
    _: *mut cm::Id,
    _: *mut libc::sockaddr,
    _: *mut libc::sockaddr,
    _: c_int,
) -> c_int {
    set_errno(libc::EHOSTUNREACH)
}
// SAFETY: as said for all of them.
unsafe extern "C" fn resolve_route(_: *mut cm::Id, _: c_int) -> c_int {
    set_errno(libc::EHOSTUNREACH)
}
// SAFETY: as said for all of them.
unsafe extern "C" fn create_qp(id: *mut cm::Id, pd: *mut verbs::Pd, attr: *mut verbs::QpInitAttr) -> c_int {
    // SAFETY: see above.
    let (id, attr) = unsafe { (&mut *id, &mut *attr) };
    // SAFETY: see above.
    let device = unsafe { device(id.verbs) };
    if attr.cap.max_send_wr > DEPTH || attr.cap.max_recv_wr > DEPTH {
        return set_errno(libc::EINVAL);
    }
    id.qp = Box::into_raw(Box::new(verbs::Qp {
        context: id.verbs,
        qp_context: attr.qp_context,
        pd,
        send_cq: attr.send_cq,
        recv_cq: attr.recv_cq,
        srq: ptr::null_mut(),
        handle: 0,
        qp_num: 0,
        state: 0,
        qp_type: attr.qp_type,
    }));
    let mut state = device.state();
    state.queue_pairs += 1;
    (state.occupied, state.depth) = (0, attr.cap.max_send_wr);
    state.connected = ptr::from_mut(id) as usize;
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn destroy_qp(qp: *mut verbs::Qp) -> c_int {
    // SAFETY: see above.
    let device = unsafe { device((*qp).context) };
    if let Some(number) = refused(&mut device.state().refuse_qp) {
        return number;
    }
    device.set(|state| state.queue_pairs -= 1);
    // SAFETY: see above.
    drop(unsafe { Box::from_raw(qp) });
    0
}
/// The peer agrees at once.
// SAFETY: as said for all of them.
unsafe extern "C" fn connect(id: *mut cm::Id, _: *mut ConnParam) -> c_int {
    // SAFETY: see above.
    unsafe { device((*id).verbs) }.wait(|state| !state.hold);
    // SAFETY: see above.
    unsafe { tell(id, cm::event::ESTABLISHED) };
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn reject(_: *mut cm::Id, _: *const c_void, _: u8) -> c_int {
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn disconnect(_: *mut cm::Id) -> c_int {
    0
}
/// Events move without a word, as in the kernel.
// SAFETY: as said for all of them.
unsafe extern "C" fn migrate_id(id: *mut cm::Id, to: *mut cm::EventChannel) -> c_int {
    // SAFETY: see above.
    let from = unsafe { Channel::of(id) };
    // SAFETY: see above.
    unsafe { (*id).channel = to };
    let mut left = from.events.lock().unwrap();
    for told in std::mem::take(&mut *left) {
        if told.id == id as usize {
            if !told.silent {
                rustix::io::read(&from.fd, &mut [0; 8]).unwrap();
            }
            // SAFETY: see above.
            unsafe { Channel::of(id) }.put(Told { silent: true, ..told });
        } else {
            left.push_back(told);
        }
    }
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn get_cm_event(channel: *mut cm::EventChannel, event: *mut *mut cm::Event) -> c_int {
    // SAFETY: see above.
    let channel = unsafe { &*channel.cast::<Channel>() };
    let Some(Told { id, event: what, status, number, silent }) = channel.events.lock().unwrap().pop_front()
    else {
        return set_errno(libc::EAGAIN);
    };
    if !silent {
        rustix::io::read(&channel.fd, &mut [0; 8]).unwrap();
    }
    // SAFETY: plain data and pointers, which may be null.
    let mut made: Box<cm::Event> = Box::new(unsafe { std::mem::zeroed() });
    (made.id, made.event, made.status, made.conn.initiator_depth) = (id as *mut cm::Id, what, status, 8);
    // SAFETY: see above.
    unsafe { *event = Box::into_raw(made) };
    if number != 0 {
        set_errno(number);
    }
    0
}
// SAFETY: as said for all of them.
unsafe extern "C" fn ack_cm_event(event: *mut cm::Event) -> c_int {
    // SAFETY: see above.
    drop(unsafe { Box::from_raw(event) });
    0
}
