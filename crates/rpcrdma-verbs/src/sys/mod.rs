//! Safe owners of what the C libraries hand out.
//!
//! # Ownership
//! Each type owns one object and destroys it when dropped; what an object needs to outlive it, it holds. So the order of
//! teardown follows from the types: a window and a registration hold their protection domain, the domain its device, and
//! the device an identifier that keeps the library from closing it. A queue pair holds its completion queue and its
//! identifier, and goes before both.
//!
//! Posting is the one thing that cannot be made safe here: the device uses the memory long after the call. Those
//! functions are `unsafe` and say what their caller has to guarantee.
#![allow(unsafe_code, reason = "functions of C libraries")]

mod alarm;
mod cm;
mod device;
mod interface;
mod queue;

use std::{io, os::fd::RawFd, task::Context, task::Poll};

use tokio::io::{Interest, unix::AsyncFd};

pub(crate) use alarm::{Alarm, Trouble};
pub(crate) use cm::{Channel, Event, Happened, Id, Offer};
pub(crate) use device::{
    BlockMr, Device, Domain, DomainKind, Link, ListedDevice, Mr, MrHandle, MwHandle, Rights, Window,
    list_devices,
};
pub(crate) use interface::addresses;
pub(crate) use queue::{Qp, Request, Want, status_text};

/// What a call that answers with -1 means.
fn check(answer: i32) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a call that answers with an error number means.
fn check_number(answer: i32) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        // Some drivers answer as the system calls do.
        n if n < 0 => Err(io::Error::last_os_error()),
        n => Err(io::Error::from_raw_os_error(n)),
    }
}

/// A descriptor that a C library owns, watched for something to read.
struct Watched(AsyncFd<RawFd>);

impl Watched {
    /// Watches `fd` and makes reading it return at once. Must be called in a tokio runtime.
    ///
    /// # Safety
    /// The descriptor is open until this is dropped.
    unsafe fn new(fd: RawFd) -> io::Result<Self> {
        // SAFETY: the descriptor is open for longer than this call.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let flags = rustix::fs::fcntl_getfl(borrowed)?;
        rustix::fs::fcntl_setfl(borrowed, flags | rustix::fs::OFlags::NONBLOCK)?;
        // SAFETY: the descriptor is open as long as this is, and is always the same.
        Ok(Self(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?))
    }

    /// Calls `read` until it gives something, or registers the task to be woken when there is something.
    fn poll_read<T>(
        &self,
        cx: &mut Context<'_>,
        mut read: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            let mut ready = std::task::ready!(self.0.poll_read_ready(cx))?;
            if let Ok(result) = ready.try_io(|_| read()) {
                return Poll::Ready(result);
            }
        }
    }
}
