//! What a device says by itself: that it, a port, a queue pair or a completion queue has failed.
//!
//! # Operation
//! Such events come on one descriptor per device, whoever they concern. A thread per device in use reads them, as no runtime
//! need live as long as the device does, and puts each into the [`Alarm`] of the connections that it is about, which wakes
//! their tasks. The thread sleeps until there is an event, and ends with the [`Watch`].
//!
//! # Who owns what
//! The open device belongs to [`Device`](super::Device), whose watch ends before it. Connections hold their alarms; the
//! watch only knows them. Addresses of queue pairs are compared and not followed.
#![allow(unsafe_code, reason = "functions of C libraries")]

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    thread::JoinHandle,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::check;
use crate::ffi::{
    Lib,
    verbs::{self, AsyncEvent, async_event},
};

/// What has failed. The later, the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trouble {
    /// The queue pair or its completion queue; completions may say why.
    Queues,
    /// The port that the connection uses.
    Port,
    /// The device, or it has gone.
    Device,
}

/// Where a connection hears of trouble.
pub(crate) struct Alarm {
    qp: usize,
    cq: usize,
    port: u8,
    state: Mutex<(Option<Trouble>, Option<Waker>)>,
}

impl Alarm {
    /// The alarm of a connection with these queues, of which only the addresses count.
    pub(super) fn new(qp: NonNull<verbs::Qp>, cq: NonNull<verbs::Cq>, port: u8) -> Arc<Self> {
        let (qp, cq) = (qp.as_ptr() as usize, cq.as_ptr() as usize);
        Arc::new(Self { qp, cq, port, state: Mutex::default() })
    }

    /// Waits for trouble: the worst of what was not told yet.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Trouble> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(trouble) = state.0.take() {
            return Poll::Ready(trouble);
        }
        match &mut state.1 {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn raise(&self, trouble: Trouble) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = state.0.max(Some(trouble));
        let waker = state.1.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What an event means for this connection.
    fn concerns(&self, event: &AsyncEvent) -> Option<Trouble> {
        let element = event.element;
        match event.event_type {
            async_event::DEVICE_FATAL => Some(Trouble::Device),
            // The number is a C int, in the first bytes of the union.
            async_event::PORT_ERR if element as u32 == u32::from(self.port) => Some(Trouble::Port),
            async_event::QP_FATAL | async_event::QP_REQ_ERR | async_event::QP_ACCESS_ERR
                if element == self.qp =>
            {
                Some(Trouble::Queues)
            }
            async_event::CQ_ERR if element == self.cq => Some(Trouble::Queues),
            _ => None,
        }
    }
}

/// The alarms of a device.
#[derive(Default)]
struct Alarms {
    known: Mutex<Vec<Weak<Alarm>>>,
    /// The kernel has taken everything from the device, and its events are the last.
    ended: AtomicBool,
}

impl Alarms {
    fn each(&self, what: impl Fn(&Alarm)) {
        // Outside the lock, as waking may run anything.
        let known: Vec<_> = {
            let mut alarms = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            alarms.retain(|alarm| alarm.strong_count() > 0);
            alarms.iter().filter_map(Weak::upgrade).collect()
        };
        known.iter().for_each(|alarm| what(alarm));
    }
}

/// Reads the events of an open device until it is dropped.
pub(super) struct Watch {
    alarms: Arc<Alarms>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// # Safety
    /// The device stays open until the watch has been dropped. Nobody but other watches reads its events: of a device that is
    /// opened anew while its last watch ends there are two for a moment, and each event comes to one of them.
    pub(super) unsafe fn start(lib: &'static Lib, context: NonNull<verbs::Context>) -> io::Result<Self> {
        // SAFETY: an open device.
        let fd = unsafe { context.as_ref() }.async_fd;
        // SAFETY: the descriptor is the device's own, which is open for longer than the thread runs.
        let events = unsafe { BorrowedFd::borrow_raw(fd) };
        let flags = rustix::fs::fcntl_getfl(events)?;
        rustix::fs::fcntl_setfl(events, flags | rustix::fs::OFlags::NONBLOCK)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let alarms = Arc::<Alarms>::default();
        let (context, known) = (Opened(context), Arc::clone(&alarms));
        let thread = std::thread::Builder::new().name("rdma-events".to_owned()).spawn(move || {
            // All of it, and not only the pointer inside.
            let context = context;
            let error = loop {
                // SAFETY: the caller's promise; the watch waits for this thread when it is dropped.
                match unsafe { read(lib, context.0, events, &stopped, &known) } {
                    Ok(Go::On) => {}
                    Ok(Go::Home) => return,
                    Err(error) => break error,
                }
            };
            tracing::debug!("a device says nothing any more: {error}");
            known.ended.store(error.raw_os_error() == Some(libc::EIO), Ordering::Release);
            known.each(|alarm| alarm.raise(Trouble::Device));
        })?;
        Ok(Self { alarms, stop, thread: Some(thread) })
    }

    /// From now on the alarm is raised when something happens.
    pub(super) fn add(&self, alarm: &Arc<Alarm>) {
        let mut alarms = self.alarms.known.lock().unwrap_or_else(PoisonError::into_inner);
        alarms.retain(|alarm| alarm.strong_count() > 0);
        alarms.push(Arc::downgrade(alarm));
        drop(alarms);
        // After all others were told.
        if self.has_ended() {
            alarm.raise(Trouble::Device);
        }
    }

    /// Whether the kernel has ended the events of the device, which it does when the device is removed.
    pub(super) fn has_ended(&self) -> bool {
        self.alarms.ended.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&self.stop, &1u64.to_ne_bytes()) {
            tracing::warn!(%error, "the thread that watches a device cannot be told to end");
            return;
        }
        if let Some(thread) = self.thread.take() {
            // It has no way to panic that would matter here.
            let _ = thread.join();
        }
    }
}

/// An open device on its way to the thread.
struct Opened(NonNull<verbs::Context>);

// SAFETY: verbs may be called from any thread.
unsafe impl Send for Opened {}

/// Whether there is more to wait for.
enum Go {
    On,
    Home,
}

/// Waits for events and tells of them. An error if there will be no more of them, as the device has gone.
///
/// # Safety
/// The device is open, and `events` is where its events come.
unsafe fn read(
    lib: &Lib,
    context: NonNull<verbs::Context>,
    events: BorrowedFd<'_>,
    stop: &OwnedFd,
    alarms: &Alarms,
) -> io::Result<Go> {
    let mut fds = [PollFd::new(&events, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
    match poll(&mut fds, None) {
        Err(rustix::io::Errno::INTR) => return Ok(Go::On),
        other => other?,
    };
    if !fds[1].revents().is_empty() {
        return Ok(Go::Home);
    }
    let mut event = MaybeUninit::<AsyncEvent>::zeroed();
    // SAFETY: the device is open, and there is room for what the library writes.
    match check(unsafe { (lib.get_async_event)(context.as_ptr(), event.as_mut_ptr()) }) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Go::On),
        other => other?,
    }
    // SAFETY: plain data, all of it zero or written by the library.
    let mut event = unsafe { event.assume_init() };
    tracing::debug!(kind = event.event_type, "a device reports something");
    alarms.each(|alarm| {
        if let Some(trouble) = alarm.concerns(&event) {
            alarm.raise(trouble);
        }
    });
    // SAFETY: an event that the library gave us, acknowledged once. What it is about is not destroyed before that.
    unsafe { (lib.ack_async_event)(&mut event) };
    Ok(Go::On)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alarm() -> Arc<Alarm> {
        Arc::new(Alarm { qp: 0x1000, cq: 0x2000, port: 2, state: Mutex::default() })
    }

    #[test]
    fn an_event_concerns_those_that_it_is_about() {
        let alarm = alarm();
        let concerns = |event_type, element| alarm.concerns(&AsyncEvent { element, event_type });
        assert_eq!(concerns(async_event::DEVICE_FATAL, 0), Some(Trouble::Device));
        // What is behind the four bytes of the number may be anything.
        assert_eq!(concerns(async_event::PORT_ERR, 0x7777_0000_0002), Some(Trouble::Port));
        assert_eq!(concerns(async_event::PORT_ERR, 1), None);
        for event in [async_event::QP_FATAL, async_event::QP_REQ_ERR, async_event::QP_ACCESS_ERR] {
            assert_eq!(concerns(event, 0x1000), Some(Trouble::Queues));
            assert_eq!(concerns(event, 0x1008), None);
        }
        assert_eq!(
            (concerns(async_event::CQ_ERR, 0x2000), concerns(async_event::CQ_ERR, 0x1000)),
            (Some(Trouble::Queues), None)
        );
        assert_eq!(concerns(4, 0x1000), None, "communication established");
    }

    #[test]
    fn an_alarm_is_told_once_and_forgotten_ones_are_not_told() {
        let (alarms, here, gone) = (Alarms::default(), alarm(), alarm());
        for alarm in [&here, &gone] {
            alarms.known.lock().unwrap().push(Arc::downgrade(alarm));
        }
        drop(gone);
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(here.poll(&mut cx), Poll::Pending);
        alarms.each(|alarm| alarm.raise(Trouble::Port));
        assert_eq!(here.poll(&mut cx), Poll::Ready(Trouble::Port));
        assert_eq!(here.poll(&mut cx), Poll::Pending);
        assert_eq!(alarms.known.lock().unwrap().len(), 1);
    }

    #[test]
    fn of_several_troubles_the_worst_is_told() {
        let alarm = alarm();
        for trouble in [Trouble::Queues, Trouble::Device, Trouble::Port, Trouble::Queues] {
            alarm.raise(trouble);
        }
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!((alarm.poll(&mut cx), alarm.poll(&mut cx)), (Poll::Ready(Trouble::Device), Poll::Pending));
    }
}
