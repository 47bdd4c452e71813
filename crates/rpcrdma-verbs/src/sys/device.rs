//! Devices, protection domains, registered memory and memory windows.
//!
//! # Memory
//! Two kinds of registration exist. A [`BlockMr`] covers the whole block behind a region, gives nothing to the peer, and is
//! kept with the block: it is made when a connection first uses the block and lasts as long as the block and the domain's
//! queue pairs do, so memory from a pool is registered once. An [`Mr`] covers exactly the bytes of one transfer and lasts as long as that.
//! A [`Window`] opens a part of a `BlockMr` to the peer of one queue pair.
#![allow(unsafe_code, reason = "functions of C libraries")]

use std::{
    ffi::{CStr, c_int},
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use rpcrdma_fabric::{Region, Registration};

use super::{Alarm, Channel, Id, alarm::Watch, check_number};
use crate::ffi::{
    Lib,
    verbs::{self, access},
};

/// What a device can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    pub(crate) iwarp: bool,
    /// Linux's rxe. It checks accesses through a window against the whole registration behind it, and marks completions of
    /// Sends with Invalidate with the kernel's flag instead of the library's.
    pub(crate) soft_roce: bool,
    /// Linux's siw.
    pub(crate) siw: bool,
    /// From so many bytes on, what a request without a signal sends must stay as it is even after a later request has
    /// completed. Linux's siw lends such pages to TCP, and signalled ones it copies.
    pub(crate) lent_from: Option<u32>,
    /// Windows that belong to one queue pair and that its peer can have invalidated.
    pub(crate) windows: bool,
    /// Windows that there can be.
    pub(crate) window_count: u32,
    /// Work requests in one queue.
    pub(crate) queue_depth: u32,
    /// Entries of one completion queue.
    pub(crate) completions: u32,
    /// Registrations.
    pub(crate) regions: u32,
    /// RDMA Reads that a peer may have open at a queue pair, and that a queue pair may have open at its peer.
    pub(crate) reads_in: u8,
    pub(crate) reads_out: u8,
}

/// A page of the smallest size that there is.
const SIW_LENDS: u32 = 4096;

impl Abilities {
    fn of(transport: c_int, attr: &verbs::DeviceAttr) -> Self {
        let count = |n: c_int| u32::try_from(n).unwrap_or(0);
        let reads = |n: c_int| u8::try_from(n.clamp(0, 255)).unwrap_or(0);
        let siw = transport == verbs::TRANSPORT_IWARP && attr.vendor_id == verbs::VENDOR_SIW;
        Self {
            iwarp: transport == verbs::TRANSPORT_IWARP,
            soft_roce: transport == verbs::TRANSPORT_IB && attr.vendor_id == verbs::VENDOR_SOFTWARE,
            siw,
            lent_from: siw.then_some(SIW_LENDS),
            windows: attr.device_cap_flags & verbs::CAP_WINDOW_TYPE_2B != 0 && attr.max_mw > 0,
            window_count: count(attr.max_mw),
            queue_depth: count(attr.max_qp_wr),
            completions: count(attr.max_cqe),
            regions: count(attr.max_mr),
            reads_in: reads(attr.max_qp_rd_atom),
            reads_out: reads(attr.max_qp_init_rd_atom),
        }
    }

    /// Whether a Send can have a tag of the peer invalidated. Of the drivers for iWARP not all can.
    pub(crate) fn can_invalidate(&self) -> bool {
        self.siw || self.windows
    }
}

/// What a port is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    InfiniBand,
    Ethernet,
    Other,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Port {
    /// Counted from 1.
    pub(crate) number: u8,
    pub(crate) active: bool,
    pub(crate) link: Link,
    /// The longest message in bytes.
    pub(crate) max_message: u32,
}

/// # Safety
/// `context` is an open device.
unsafe fn query_device(lib: &Lib, context: *mut verbs::Context) -> io::Result<verbs::DeviceAttr> {
    let mut attr = MaybeUninit::<verbs::DeviceAttr>::zeroed();
    // SAFETY: the device is open, and there is room for what the library writes.
    check_number(unsafe { (lib.query_device)(context, attr.as_mut_ptr()) })?;
    // SAFETY: plain data, all of it zero or written by the library.
    Ok(unsafe { attr.assume_init() })
}

/// # Safety
/// `context` is an open device.
unsafe fn query_port(lib: &Lib, context: *mut verbs::Context, port: u8) -> io::Result<Port> {
    let mut attr = MaybeUninit::<verbs::PortAttr>::zeroed();
    // SAFETY: the device is open; the structure is at least as long as the one that the library writes.
    check_number(unsafe { (lib.query_port)(context, port, attr.as_mut_ptr()) })?;
    // SAFETY: plain data, all of it zero or written by the library.
    let attr = unsafe { attr.assume_init() };
    let link = match attr.link_layer {
        verbs::LINK_ETHERNET => Link::Ethernet,
        verbs::LINK_INFINIBAND | 0 => Link::InfiniBand,
        _ => Link::Other,
    };
    Ok(Port { number: port, active: attr.state == verbs::PORT_ACTIVE, link, max_message: attr.max_msg_sz })
}

/// # Safety
/// `device` is an entry of a device list that has not been freed, or belongs to an open context.
unsafe fn name(device: *const verbs::Device) -> String {
    // SAFETY: the library ends names with a NUL inside the field.
    let name = unsafe { CStr::from_ptr((*device).name.as_ptr()) };
    name.to_string_lossy().into_owned()
}

/// A device of the machine, for people.
pub(crate) struct ListedDevice {
    pub(crate) name: String,
    pub(crate) transport: c_int,
    /// Or why it cannot be opened.
    pub(crate) opened: io::Result<(Abilities, Vec<Port>)>,
}

/// All devices of the machine.
pub(crate) fn list_devices(lib: &Lib) -> io::Result<Vec<ListedDevice>> {
    let mut count: c_int = 0;
    // SAFETY: `count` is where the library puts the length.
    let list = unsafe { (lib.get_device_list)(&mut count) };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut devices = Vec::new();
    for i in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has `count` entries and is freed only below.
        let device = unsafe { *list.add(i) };
        if device.is_null() {
            break;
        }
        // SAFETY: an entry of the list.
        let (name, transport) = unsafe { (name(device), (*device).transport_type) };
        // SAFETY: the list is freed below.
        let opened = unsafe { look_inside(lib, device, transport) };
        devices.push(ListedDevice { name, transport, opened });
    }
    // SAFETY: the list came from the library, and devices that are open stay so.
    unsafe { (lib.free_device_list)(list) };
    Ok(devices)
}

/// Opens a device for a moment.
///
/// # Safety
/// `device` is an entry of a list that has not been freed.
unsafe fn look_inside(
    lib: &Lib,
    device: *mut verbs::Device,
    transport: c_int,
) -> io::Result<(Abilities, Vec<Port>)> {
    // SAFETY: an entry of a list that has not been freed, as the caller promises.
    let context = unsafe { (lib.open_device)(device) };
    if context.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the device is open until below.
    let found = unsafe { query_device(lib, context) }.map(|attr| {
        let ports = (1..=attr.phys_port_cnt)
            // SAFETY: as above.
            .filter_map(|port| unsafe { query_port(lib, context, port) }.ok())
            .collect();
        (Abilities::of(transport, &attr), ports)
    });
    // SAFETY: opened above, closed once, and nothing was made of it.
    unsafe { (lib.close_device)(context) };
    found
}

/// A device that connections use. The connection manager opens devices and closes them when it has no use for them, so
/// this keeps one identifier bound to the device.
pub(crate) struct Device {
    context: NonNull<verbs::Context>,
    lib: &'static Lib,
    pub(crate) name: String,
    pub(crate) abilities: Abilities,
    pub(crate) port: Port,
    removed: AtomicBool,
    /// The protection domain of connections that can share one.
    shared: Mutex<Weak<Domain>>,
    /// Before the anchor, which keeps the device open.
    watch: Watch,
    _anchor: Id,
}

// SAFETY: verbs may be called from any thread, and the context is only passed to them.
unsafe impl Send for Device {}
// SAFETY: verbs lock for themselves; the rest is safe to share by its own types.
unsafe impl Sync for Device {}

/// Devices that connections use.
static DEVICES: Mutex<Vec<Weak<Device>>> = Mutex::new(Vec::new());

impl Device {
    /// The device that an identifier is bound to. Must be called in a tokio runtime.
    pub(crate) fn of(id: &Id) -> io::Result<Arc<Self>> {
        let unbound = || io::Error::new(io::ErrorKind::NotConnected, "no RDMA device has the address");
        let context = id.context().ok_or_else(unbound)?;
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        devices.retain(|d| d.strong_count() > 0);
        let known =
            devices.iter().filter_map(Weak::upgrade).find(|d| d.context == context && !d.is_removed());
        if let Some(device) = known {
            return Ok(device);
        }
        let device = Arc::new(Self::open(id, context)?);
        devices.push(Arc::downgrade(&device));
        Ok(device)
    }

    fn open(id: &Id, context: NonNull<verbs::Context>) -> io::Result<Self> {
        let lib = id.lib();
        let local: SocketAddr = id.local_addr().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut anchor = Id::new(&Arc::new(Channel::new(lib)?))?;
        anchor.bind(match local {
            SocketAddr::V4(v4) => SocketAddr::from((*v4.ip(), 0)),
            SocketAddr::V6(mut v6) => {
                v6.set_port(0);
                v6.into()
            }
        })?;
        if anchor.context() != Some(context) {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                "the address has moved to another device",
            ));
        }
        // SAFETY: the anchor is bound to this context, and the library keeps it open for its identifiers.
        let attr = unsafe { query_device(lib, context.as_ptr()) }?;
        // SAFETY: as above.
        let port = unsafe { query_port(lib, context.as_ptr(), id.port().max(1)) }?;
        // SAFETY: as above; an open context has its device.
        let (name, transport) = unsafe {
            let device = context.as_ref().device;
            (name(device), (*device).transport_type)
        };
        Ok(Self {
            context,
            lib,
            name,
            abilities: Abilities::of(transport, &attr),
            port,
            removed: AtomicBool::new(false),
            shared: Mutex::default(),
            // SAFETY: the anchor keeps the device open and is dropped after the watch; librdmacm, which has opened the
            // device, does not look at its events.
            watch: unsafe { Watch::start(lib, context) }?,
            _anchor: anchor,
        })
    }

    /// The device has gone; what is left of it is only taken apart.
    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::Relaxed);
    }

    fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed) || self.watch.has_ended()
    }

    /// Whether the device has let go of something, of what it answered. When a device is removed, every answer is an error
    /// at once, and then the kernel takes everything from the device, the file of its events last.
    pub(super) fn let_go(&self, answer: io::Result<()>) -> io::Result<()> {
        match answer {
            Err(e) if e.raw_os_error() == Some(libc::EIO) && self.watch.has_ended() => Ok(()),
            answer => answer,
        }
    }

    /// Raises an alarm when something happens to its connection.
    pub(super) fn watch(&self, alarm: &Arc<Alarm>) {
        self.watch.add(alarm);
    }

    pub(super) fn context(&self) -> NonNull<verbs::Context> {
        self.context
    }

    pub(crate) fn lib(&self) -> &'static Lib {
        self.lib
    }

    /// A protection domain for a new connection.
    pub(crate) fn domain(self: &Arc<Self>, kind: DomainKind) -> io::Result<Arc<Domain>> {
        if kind == DomainKind::Own {
            return Domain::new(self).map(Arc::new);
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(domain) = shared.upgrade() {
            return Ok(domain);
        }
        let domain = Arc::new(Domain::new(self)?);
        *shared = Arc::downgrade(&domain);
        Ok(domain)
    }
}

/// Who has a protection domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DomainKind {
    /// All connections of the device, as what they expose is tied to their queue pair.
    Shared,
    /// One connection: any queue pair of a domain may use a registration's tag, and no other connection's peer must.
    Own,
}

/// A protection domain.
pub(crate) struct Domain {
    raw: NonNull<verbs::Pd>,
    device: Arc<Device>,
    seats: Mutex<Seats>,
}

/// Who uses a protection domain, and what they have registered in it.
#[derive(Default)]
struct Seats {
    queue_pairs: usize,
    blocks: Vec<Weak<Held>>,
}

// SAFETY: verbs may be called from any thread and lock for themselves, and the pointer is only passed to them.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    fn new(device: &Arc<Device>) -> io::Result<Self> {
        // SAFETY: the device is open as long as `device` lives.
        let raw = unsafe { (device.lib.alloc_pd)(device.context.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { raw, device: Arc::clone(device), seats: Mutex::default() })
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(super) fn raw(&self) -> NonNull<verbs::Pd> {
        self.raw
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another queue pair uses it.
    pub(super) fn enter(&self) {
        self.seats().queue_pairs += 1;
    }

    /// A queue pair has been destroyed. With the last one go the registrations of blocks, which would keep the device open,
    /// and that keeps the kernel from removing it.
    pub(super) fn leave(&self) {
        let mut seats = self.seats();
        seats.queue_pairs = seats.queue_pairs.saturating_sub(1);
        if seats.queue_pairs > 0 {
            return;
        }
        // Under the lock, so that a queue pair that comes now registers after this.
        for held in std::mem::take(&mut seats.blocks).iter().filter_map(Weak::upgrade) {
            held.give_up();
        }
    }

    fn keep(&self, held: &Arc<Held>) {
        let blocks = &mut self.seats().blocks;
        if blocks.len() == blocks.capacity() {
            blocks.retain(|held| held.strong_count() > 0);
        }
        blocks.push(Arc::downgrade(held));
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once; everything made in it holds it.
        let answer = unsafe { (self.device.lib.dealloc_pd)(self.raw.as_ptr()) };
        if let Err(error) = check_number(answer) {
            tracing::debug!(%error, "a protection domain could not be freed");
        }
    }
}

/// Who may do what with registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// The device on our behalf, and what windows open.
    Local { windows: bool },
    /// The peer may read.
    RemoteRead,
    /// The peer may write.
    RemoteWrite,
}

impl Rights {
    fn flags(self) -> c_int {
        match self {
            Self::Local { windows: false } => access::LOCAL_WRITE,
            Self::Local { windows: true } => access::LOCAL_WRITE | access::MW_BIND,
            Self::RemoteRead => access::REMOTE_READ,
            Self::RemoteWrite => access::LOCAL_WRITE | access::REMOTE_WRITE,
        }
    }
}

/// Memory that the device may reach.
pub(crate) struct Mr {
    raw: NonNull<verbs::Mr>,
    /// It has been given back.
    ended: bool,
    domain: Arc<Domain>,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
}

// SAFETY: as for `Domain`.
unsafe impl Send for Mr {}
// SAFETY: as for `Domain`.
unsafe impl Sync for Mr {}

/// Names a registration in a work request.
#[derive(Clone, Copy)]
pub(crate) struct MrHandle(pub(super) NonNull<verbs::Mr>);

// SAFETY: a name; only posting, which is unsafe, looks behind it.
unsafe impl Send for MrHandle {}
// SAFETY: as above.
unsafe impl Sync for MrHandle {}

impl Mr {
    /// Registers `len` bytes from `at`.
    ///
    /// # Safety
    /// The bytes are one allocation, which outlives the registration; and while `rights` let the peer write, or work with
    /// the registration is posted, nobody has references into them.
    unsafe fn register(domain: &Arc<Domain>, at: *const u8, len: usize, rights: Rights) -> io::Result<Self> {
        let lib = domain.device.lib;
        // SAFETY: the domain is valid; about the bytes, see above.
        let raw = unsafe { (lib.reg_mr)(domain.raw.as_ptr(), at.cast_mut().cast(), len, rights.flags()) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: a registration that the library just made.
        let (lkey, rkey) = unsafe { (raw.as_ref().lkey, raw.as_ref().rkey) };
        Ok(Self { raw, ended: false, domain: Arc::clone(domain), lkey, rkey })
    }

    /// Registers some bytes of a region.
    ///
    /// # Safety
    /// The region is kept until [`Mr::deregister`] has succeeded, or until the queue pairs of the domain are destroyed; and
    /// if the peer may write there, or work with the registration is posted, nobody looks at it.
    pub(crate) unsafe fn of_region(
        domain: &Arc<Domain>,
        region: &Region,
        at: usize,
        len: usize,
        rights: Rights,
    ) -> io::Result<Self> {
        let bytes = region.get(at..at.saturating_add(len)).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the region keeps its block alive; the rest is the caller's promise.
        unsafe { Self::register(domain, bytes.as_ptr(), len, rights) }
    }

    pub(crate) fn handle(&self) -> MrHandle {
        MrHandle(self.raw)
    }

    /// Takes the memory back from the device: after this nobody reaches it by this registration.
    ///
    /// # Errors
    /// If the device does not let go of it, as when it is bound to a window. It may be tried again.
    pub(crate) fn deregister(&mut self) -> io::Result<()> {
        if !self.ended {
            let device = &self.domain.device;
            // SAFETY: registered once, and not given back yet.
            device.let_go(check_number(unsafe { (device.lib.dereg_mr)(self.raw.as_ptr()) }))?;
            self.ended = true;
        }
        Ok(())
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        // Whoever gives memory back because of it has looked at the answer before. Otherwise the rights are local, or the
        // queue pair has gone, and all that is lost is that the memory stays locked.
        if let Err(error) = self.deregister() {
            tracing::warn!(%error, "memory stays locked, as the device does not let go of it");
        }
    }
}

/// The registration of the block behind a region, for the device on our behalf and for windows. It is kept with the block
/// as long as its domain has queue pairs.
pub(crate) struct BlockMr {
    held: Arc<Held>,
    /// Keeps the domain's address from being that of another one.
    _domain: Weak<Domain>,
    lkey: u32,
    handle: MrHandle,
}

/// A registration that the block and the domain hold.
struct Held {
    given_up: AtomicBool,
    mr: Mutex<Option<Mr>>,
}

impl Held {
    fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        // Under the lock: whoever comes second goes on when the device has let go of it.
        let mut mr = self.mr.lock().unwrap_or_else(PoisonError::into_inner);
        drop(mr.take());
    }
}

impl Drop for BlockMr {
    fn drop(&mut self) {
        // The memory is about to go, and the domain may be looking at the registration right now.
        self.held.give_up();
    }
}

impl Registration for BlockMr {
    fn is_stale(&self) -> bool {
        self.held.given_up.load(Ordering::Acquire)
    }
}

impl BlockMr {
    /// The local key and the name of the registration of a region's block, which is made if there is none. They are good as
    /// long as the queue pair that they are for.
    ///
    /// # Errors
    /// If the device or the kernel does not take the memory.
    pub(crate) fn of(domain: &Arc<Domain>, region: &Region) -> io::Result<(u32, MrHandle)> {
        let rights = Rights::Local { windows: domain.device.abilities.windows };
        region.registration(
            // No other domain has it while there is a registration, which keeps the address.
            Arc::as_ptr(domain) as usize,
            |at, len| {
                // SAFETY: the block drops its registrations before its memory, and that deregisters what has not gone by
                // then, whoever else holds it. They let nobody do anything by themselves: work that uses them is posted by
                // those who own the region.
                let mr = unsafe { Mr::register(domain, at, len, rights) }?;
                let (lkey, handle) = (mr.lkey, mr.handle());
                let held = Arc::new(Held { given_up: AtomicBool::new(false), mr: Mutex::new(Some(mr)) });
                domain.keep(&held);
                Ok(Self { held, _domain: Arc::downgrade(domain), lkey, handle })
            },
            |mr: &Self| (mr.lkey, mr.handle),
        )
    }
}

/// A type 2 memory window: opens a part of registered memory to the peer of one queue pair, until either side has it
/// invalidated.
pub(crate) struct Window {
    raw: NonNull<verbs::Mw>,
    /// It has been given back.
    ended: bool,
    domain: Arc<Domain>,
    /// The tag of the last binding, or of none yet.
    rkey: u32,
}

// SAFETY: as for `Domain`.
unsafe impl Send for Window {}

/// Names a window in a work request.
#[derive(Clone, Copy)]
pub(crate) struct MwHandle(pub(super) NonNull<verbs::Mw>);

// SAFETY: a name; only posting, which is unsafe, looks behind it.
unsafe impl Send for MwHandle {}

impl Window {
    pub(crate) fn new(domain: &Arc<Domain>) -> io::Result<Self> {
        // SAFETY: the device is open as long as its domain lives.
        let alloc = unsafe { domain.device.context.as_ref() }.ops.alloc_mw;
        let alloc = alloc.ok_or(io::ErrorKind::Unsupported)?;
        // SAFETY: the domain is valid.
        let raw = unsafe { alloc(domain.raw.as_ptr(), verbs::MW_TYPE_2) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: a window that the library just made.
        let rkey = unsafe { raw.as_ref() }.rkey;
        Ok(Self { raw, ended: false, domain: Arc::clone(domain), rkey })
    }

    pub(crate) fn handle(&self) -> MwHandle {
        MwHandle(self.raw)
    }

    /// The tag for the next binding. The lowest byte counts, so that a tag comes back only after 255 others.
    pub(crate) fn next_tag(&mut self) -> u32 {
        let counted = (self.rkey as u8).wrapping_add(1);
        (self.rkey & !0xff) | u32::from(counted)
    }

    /// Says that the window was bound under a tag, which drivers want to know when it is bound again.
    pub(crate) fn bound(&mut self, tag: u32) {
        self.rkey = tag;
        // SAFETY: the window is valid and owned; drivers read this field only when work with the window is posted.
        unsafe { self.raw.as_mut() }.rkey = tag;
    }

    /// Gives the window back to the device, which closes it.
    ///
    /// # Errors
    /// If the device does not let go of it. It may be tried again.
    pub(crate) fn free(&mut self) -> io::Result<()> {
        if !self.ended {
            let device = &self.domain.device;
            // SAFETY: as in `new`.
            let dealloc = unsafe { device.context.as_ref() }.ops.dealloc_mw;
            let dealloc = dealloc.ok_or(io::ErrorKind::Unsupported)?;
            // SAFETY: allocated once, and not freed yet.
            device.let_go(check_number(unsafe { dealloc(self.raw.as_ptr()) }))?;
            self.ended = true;
        }
        Ok(())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // Its queue pair has gone, and with it who could use it.
        if let Err(error) = self.free() {
            tracing::warn!(%error, "a memory window could not be freed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::fake::{self, Kind};

    #[tokio::test]
    async fn a_block_goes_after_its_registration_whoever_looks_at_that() {
        let fake = fake::Device::new(Kind::Windows);
        let mut id = Id::new(&Arc::new(Channel::new(fake::lib()).unwrap())).unwrap();
        id.bind(SocketAddr::new(fake.address(), 0)).unwrap();
        let domain = Device::of(&id).unwrap().domain(DomainKind::Own).unwrap();
        let region = Region::alloc(100);
        BlockMr::of(&domain, &region).unwrap();
        let held = domain.seats().blocks[0].upgrade().unwrap();
        assert_eq!(fake.state().registrations, 1);
        drop(region);
        assert_eq!(fake.state().registrations, 0);
        drop(held);
    }
}
