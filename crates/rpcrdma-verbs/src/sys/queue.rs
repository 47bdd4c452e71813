//! Queue pairs and completion queues.
#![allow(unsafe_code, reason = "functions of C libraries")]

use std::{
    ffi::CStr,
    io,
    mem::MaybeUninit,
    ptr::{self, NonNull},
    sync::Arc,
    task::{Context, Poll},
};

use super::{Alarm, Device, Domain, Id, MrHandle, MwHandle, Watched, check, check_number};
use crate::ffi::{
    Lib,
    verbs::{self, BindWr, QpCap, QpInitAttr, RdmaWr, RecvWr, SendWr, Sge, Wc, flags, opcode},
};

/// What the library calls a status.
pub(crate) fn status_text(lib: &Lib, status: i32) -> String {
    // SAFETY: no requirements; the answer is a constant string, or null.
    let text = unsafe { (lib.wc_status_str)(status) };
    if text.is_null() {
        return format!("status {status}");
    }
    // SAFETY: see above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A completion queue and the channel on which it says that it has something.
pub(crate) struct Completions {
    cq: NonNull<verbs::Cq>,
    channel: NonNull<verbs::CompChannel>,
    /// `None` only while it is dropped.
    watched: Option<Watched>,
    device: Arc<Device>,
    /// Events that were read and not acknowledged, which takes a lock.
    unacknowledged: u32,
}

// SAFETY: verbs may be called from any thread; the owner is the only one to call them on this queue.
unsafe impl Send for Completions {}

/// Events to acknowledge at one time.
const ACKNOWLEDGE: u32 = 64;

impl Completions {
    /// A queue of at least `entries`. Must be called in a tokio runtime.
    pub(crate) fn new(device: &Arc<Device>, entries: u32) -> io::Result<Self> {
        let (lib, context) = (device.lib(), device.context().as_ptr());
        // SAFETY: the device is open as long as `device` lives.
        let channel = NonNull::new(unsafe { (lib.create_comp_channel)(context) })
            .ok_or_else(io::Error::last_os_error)?;
        let entries = i32::try_from(entries).unwrap_or(i32::MAX);
        // SAFETY: device and channel are valid.
        let cq = unsafe { (lib.create_cq)(context, entries, ptr::null_mut(), channel.as_ptr(), 0) };
        let Some(cq) = NonNull::new(cq) else {
            let error = io::Error::last_os_error();
            // SAFETY: made above, and nothing uses it.
            unsafe { (lib.destroy_comp_channel)(channel.as_ptr()) };
            return Err(error);
        };
        let mut completions =
            Self { cq, channel, watched: None, device: Arc::clone(device), unacknowledged: 0 };
        // SAFETY: the channel is valid until `drop`.
        let fd = unsafe { channel.as_ref() }.fd;
        // SAFETY: it is the channel's own, and `drop` ends the watching before it closes it.
        completions.watched = Some(unsafe { Watched::new(fd) }?);
        Ok(completions)
    }

    fn ops(&self) -> &verbs::ContextOps {
        // SAFETY: the device is open as long as `self.device` lives.
        unsafe { &self.device.context().as_ref().ops }
    }

    /// Takes completions; how many.
    pub(crate) fn poll(&mut self, into: &mut [Wc]) -> io::Result<usize> {
        let poll = self.ops().poll_cq.ok_or(io::ErrorKind::Unsupported)?;
        let room = i32::try_from(into.len()).unwrap_or(i32::MAX);
        // SAFETY: the queue is valid, and there is room for `room` completions.
        let n = unsafe { poll(self.cq.as_ptr(), room, into.as_mut_ptr()) };
        usize::try_from(n).map_err(|_| io::Error::other("the completion queue cannot be read"))
    }

    /// Asks for an event when the next completion comes.
    pub(crate) fn arm(&mut self) -> io::Result<()> {
        let arm = self.ops().req_notify_cq.ok_or(io::ErrorKind::Unsupported)?;
        // SAFETY: the queue is valid.
        check_number(unsafe { arm(self.cq.as_ptr(), 0) })
    }

    /// Waits for the event that was asked for.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(watched) = &self.watched else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let (lib, channel) = (self.device.lib(), self.channel.as_ptr());
        std::task::ready!(watched.poll_read(cx, || {
            let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: the channel is valid, and the rest is where the library puts its answer.
            check(unsafe { (lib.get_cq_event)(channel, &mut cq, &mut context) })
        }))?;
        self.unacknowledged += 1;
        if self.unacknowledged >= ACKNOWLEDGE {
            self.acknowledge();
        }
        Poll::Ready(Ok(()))
    }

    fn acknowledge(&mut self) {
        let n = std::mem::take(&mut self.unacknowledged);
        if n > 0 {
            // SAFETY: the queue is valid, and so many of its events have been read and not acknowledged.
            unsafe { (self.device.lib().ack_cq_events)(self.cq.as_ptr(), n) };
        }
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // Destroying the queue waits for events that were not acknowledged.
        self.acknowledge();
        self.watched = None;
        let lib = self.device.lib();
        // SAFETY: made in `new`, destroyed once, the queue before its channel; the queue pair that used it is gone.
        let answers = unsafe {
            [(lib.destroy_cq)(self.cq.as_ptr()), (lib.destroy_comp_channel)(self.channel.as_ptr())]
        };
        for answer in answers {
            if let Err(error) = check_number(answer) {
                tracing::debug!(%error, "a completion queue could not be destroyed");
            }
        }
    }
}

/// How large a queue pair is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    /// Work requests in the Send queue.
    pub(crate) sends: u32,
    /// Receives.
    pub(crate) recvs: u32,
    /// Bytes of a Send that the work request itself carries.
    pub(crate) inline: u32,
}

/// One work request for the Send queue. Every one has at most one piece of local memory.
#[derive(Clone, Copy)]
pub(crate) enum Request {
    Send { addr: u64, len: u32, lkey: u32, invalidate: Option<u32>, inline: bool, signal: bool },
    Write { addr: u64, len: u32, lkey: u32, to: u64, rkey: u32, signal: bool },
    Read { addr: u64, len: u32, lkey: u32, from: u64, rkey: u32, signal: bool },
    Bind { window: MwHandle, block: MrHandle, addr: u64, len: u32, tag: u32, write: bool },
    Invalidate { tag: u32 },
}

/// A queue pair with its completion queue and its end of the connection.
pub(crate) struct Qp {
    raw: NonNull<verbs::Qp>,
    /// `None` once it is destroyed.
    id: Option<Id>,
    pub(crate) completions: Completions,
    pub(crate) domain: Arc<Domain>,
    /// What it can take.
    pub(crate) cap: QpCap,
    /// Says when the device has trouble.
    pub(crate) alarm: Arc<Alarm>,
}

// SAFETY: verbs may be called from any thread; the owner is the only one to call them on this queue pair.
unsafe impl Send for Qp {}

/// Work requests that one call posts.
pub(crate) const BATCH: usize = 32;

impl Qp {
    /// A queue pair on the device of `id`, which is bound and not connected. If the device cannot have it that large, it is
    /// smaller. Must be called in a tokio runtime.
    pub(crate) fn new(id: Id, domain: &Arc<Domain>, want: Want) -> io::Result<Self> {
        let mut want = want;
        let completions =
            Completions::new(domain.device(), want.sends.saturating_add(want.recvs).saturating_add(1))?;
        loop {
            let mut attr = QpInitAttr {
                qp_context: ptr::null_mut(),
                send_cq: completions.cq.as_ptr(),
                recv_cq: completions.cq.as_ptr(),
                srq: ptr::null_mut(),
                cap: QpCap {
                    max_send_wr: want.sends,
                    max_recv_wr: want.recvs,
                    max_send_sge: 1,
                    max_recv_sge: 1,
                    max_inline_data: want.inline,
                },
                qp_type: verbs::QPT_RC,
                sq_sig_all: 0,
            };
            // SAFETY: the identifier is bound to the device of this domain and queue, and all are valid.
            let made =
                check(unsafe { (id.lib().create_qp)(id.raw().as_ptr(), domain.raw().as_ptr(), &mut attr) });
            match made {
                Ok(()) => {
                    // SAFETY: the identifier is valid, and the call above has put the queue pair there.
                    let raw =
                        NonNull::new(unsafe { id.raw().as_ref() }.qp).ok_or(io::ErrorKind::InvalidData)?;
                    let cap = QpCap {
                        // What was asked for is what the completion queue has room for.
                        max_send_wr: attr.cap.max_send_wr.min(want.sends),
                        max_recv_wr: attr.cap.max_recv_wr.min(want.recvs),
                        // Drivers give more than was asked for.
                        max_inline_data: attr.cap.max_inline_data.min(want.inline),
                        ..attr.cap
                    };
                    let alarm = Alarm::new(raw, completions.cq, id.port());
                    domain.device().watch(&alarm);
                    domain.enter();
                    return Ok(Self {
                        raw,
                        id: Some(id),
                        completions,
                        domain: Arc::clone(domain),
                        cap,
                        alarm,
                    });
                }
                // Devices say how much they take, but not how much of everything at once.
                Err(_) if want.inline > 0 => want.inline = 0,
                Err(_) if want.sends > 64 => want.sends /= 2,
                Err(e) => return Err(e),
            }
        }
    }

    pub(crate) fn id(&mut self) -> Option<&mut Id> {
        self.id.as_mut()
    }

    /// Posts work, the requests numbered from `first`; the last one is signalled, and those that say so. `requests` are at
    /// most [`BATCH`].
    ///
    /// # Errors
    /// If the queue pair does not take all of it. It is of no use then.
    ///
    /// # Safety
    /// The addresses are inside memory of the registrations that the keys and handles name. This memory, the registrations
    /// and the windows stay, and nobody has references into the memory, until the request completes or the queue pair is
    /// destroyed; for the memory of a binding, until the tag is invalidated or the window is freed.
    pub(crate) unsafe fn post_send(&mut self, first: u64, requests: &[Request]) -> io::Result<()> {
        let mut sges = [Sge { addr: 0, length: 0, lkey: 0 }; BATCH];
        let mut wrs = [const { MaybeUninit::<SendWr>::uninit() }; BATCH];
        let count = requests.len();
        if count == 0 || count > BATCH {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let wrs_at: *mut SendWr = wrs.as_mut_ptr().cast();
        let sges_at: *mut Sge = sges.as_mut_ptr();
        for (i, request) in requests.iter().enumerate() {
            let last = i + 1 == count;
            // SAFETY: `i` is inside both arrays, and one past a request that is not the last is, too.
            let (sge, next) =
                unsafe { (sges_at.add(i), if last { ptr::null_mut() } else { wrs_at.add(i + 1) }) };
            let mut signalled = last;
            let mut wr = SendWr {
                wr_id: first + i as u64,
                next,
                sg_list: sge,
                num_sge: 0,
                opcode: opcode::SEND,
                send_flags: 0,
                invalidate_rkey: 0,
                rdma: RdmaWr::default(),
                xrc: 0,
                bind: BindWr {
                    mw: ptr::null_mut(),
                    rkey: 0,
                    mr: ptr::null_mut(),
                    addr: 0,
                    length: 0,
                    access: 0,
                },
            };
            let local = match *request {
                Request::Send { addr, len, lkey, invalidate, inline, signal } => {
                    signalled |= signal;
                    if let Some(tag) = invalidate {
                        wr.opcode = opcode::SEND_WITH_INV;
                        wr.invalidate_rkey = tag;
                        // Where libsiw looks for it; the others do not look here.
                        wr.rdma.rkey = tag;
                    }
                    if inline {
                        wr.send_flags |= flags::INLINE;
                    }
                    Some(Sge { addr, length: len, lkey })
                }
                Request::Write { addr, len, lkey, to, rkey, signal } => {
                    signalled |= signal;
                    wr.opcode = opcode::RDMA_WRITE;
                    wr.rdma = RdmaWr { remote_addr: to, rkey, ..RdmaWr::default() };
                    Some(Sge { addr, length: len, lkey })
                }
                Request::Read { addr, len, lkey, from, rkey, signal } => {
                    wr.opcode = opcode::RDMA_READ;
                    signalled |= signal;
                    wr.rdma = RdmaWr { remote_addr: from, rkey, ..RdmaWr::default() };
                    Some(Sge { addr, length: len, lkey })
                }
                Request::Bind { window, block, addr, len, tag, write } => {
                    wr.opcode = opcode::BIND_MW;
                    let access = if write { verbs::access::REMOTE_WRITE } else { verbs::access::REMOTE_READ };
                    wr.bind = BindWr {
                        mw: window.0.as_ptr(),
                        rkey: tag,
                        mr: block.0.as_ptr(),
                        addr,
                        length: u64::from(len),
                        access: access as u32,
                    };
                    None
                }
                Request::Invalidate { tag } => {
                    wr.opcode = opcode::LOCAL_INV;
                    wr.invalidate_rkey = tag;
                    None
                }
            };
            if signalled {
                wr.send_flags |= flags::SIGNALED;
            }
            if let Some(local) = local.filter(|l| l.length > 0) {
                wr.num_sge = 1;
                // SAFETY: inside the array; see above.
                unsafe { sge.write(local) };
            }
            // SAFETY: `i` is inside the array.
            unsafe { wrs_at.add(i).write(wr) };
        }
        // SAFETY: the device is open as long as the domain lives.
        let post = unsafe { self.domain.device().context().as_ref() }.ops.post_send;
        let post = post.ok_or(io::ErrorKind::Unsupported)?;
        let mut bad = ptr::null_mut();
        // SAFETY: a list of `count` requests, each written above, whose pointers are into the two arrays, which the driver
        // reads during the call only. About the memory behind them, see the caller's promise.
        check_number(unsafe { post(self.raw.as_ptr(), wrs_at, &mut bad) })
    }

    /// Posts Receives, at most [`BATCH`], of these addresses, lengths and local keys. They complete in this order.
    ///
    /// # Errors
    /// If the queue pair does not take all of them. It is of no use then.
    ///
    /// # Safety
    /// As for [`Qp::post_send`].
    pub(crate) unsafe fn post_recv(&mut self, first: u64, receives: &[(u64, u32, u32)]) -> io::Result<()> {
        let count = receives.len();
        if count == 0 || count > BATCH {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut sges = [Sge { addr: 0, length: 0, lkey: 0 }; BATCH];
        let empty = RecvWr { wr_id: 0, next: ptr::null_mut(), sg_list: ptr::null_mut(), num_sge: 0 };
        let mut wrs = [empty; BATCH];
        let wrs_at = wrs.as_mut_ptr();
        let sges_at = sges.as_mut_ptr();
        for (i, &(addr, length, lkey)) in receives.iter().enumerate() {
            // SAFETY: `i` is inside both arrays, and one past a Receive that is not the last is, too.
            unsafe {
                let next = if i + 1 == count { ptr::null_mut() } else { wrs_at.add(i + 1) };
                sges_at.add(i).write(Sge { addr, length, lkey });
                let num_sge = i32::from(length > 0);
                wrs_at.add(i).write(RecvWr {
                    wr_id: first + i as u64,
                    next,
                    sg_list: sges_at.add(i),
                    num_sge,
                });
            }
        }
        // SAFETY: the device is open as long as the domain lives.
        let post = unsafe { self.domain.device().context().as_ref() }.ops.post_recv;
        let post = post.ok_or(io::ErrorKind::Unsupported)?;
        let mut bad = ptr::null_mut();
        // SAFETY: as in `post_send`.
        check_number(unsafe { post(self.raw.as_ptr(), wrs_at, &mut bad) })
    }

    /// Destroys the queue pair: the device no longer touches its memory. What is left is the identifier.
    ///
    /// # Errors
    /// If the device does not let go of it. Then it may still use the memory of what is posted.
    pub(crate) fn destroy(mut self) -> Result<Id, Box<(Self, io::Error)>> {
        self.destroy_raw().map_err(|e| Box::new((self, e)))
    }

    fn destroy_raw(&mut self) -> io::Result<Id> {
        let mut id = self.id.take().ok_or(io::ErrorKind::NotConnected)?;
        let device = self.domain.device();
        // SAFETY: made on this identifier and not destroyed yet, or the identifier would be gone.
        let answer = check_number(unsafe { (device.lib().destroy_qp)(self.raw.as_ptr()) });
        if let Err(error) = device.let_go(answer) {
            self.id = Some(id);
            return Err(error);
        }
        id.forget_qp();
        self.domain.leave();
        Ok(id)
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        if self.id.is_some()
            && let Err(error) = self.destroy_raw()
        {
            tracing::error!(%error, "a queue pair could not be destroyed");
            // It would go before its queue pair.
            std::mem::forget(self.id.take());
        }
    }
}
