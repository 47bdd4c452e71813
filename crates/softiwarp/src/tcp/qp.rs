//! A queue pair on a TCP socket.
//!
//! # Operation
//! `poll` alternates between writing what the engine has queued and reading where the engine wants bytes, until the
//! socket takes and gives no more, or a budget is spent. A read or write that moved fewer bytes than it could have
//! found the socket at its limit, so it is not tried again before the runtime says so. Before it gives up the thread,
//! `poll` may [spin](rpcrdma_fabric::Spin) for a moment.
//!
//! # When it breaks
//! When a write fails, reading goes on to the end: the peer may have said why, in a Terminate that is already here.
//!
//! # Limits
//! A graceful end takes as long as the peer takes to read what is on the way; whoever cannot wait aborts.

use std::{
    future::Future,
    io::{self, ErrorKind, IoSliceMut},
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use rpcrdma_fabric::{
    Access, Completion, Exposed, Lost, Peer, QpLimits, QueuePair, Region, Rejected, Shutdown, Spin, Stag,
    Work,
};
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    runtime::Handle,
    time::{Sleep, sleep_until},
};

use super::linger::linger;
use crate::engine::{Engine, Failure, Slices};

/// What one poll does before it lets others run.
struct Budget {
    /// Reads and writes.
    calls: usize,
    /// Bytes read.
    bytes: usize,
    /// Length of the list of completions from which on no more is read, so that what they ask for can begin.
    enough: usize,
}

impl Budget {
    /// For a poll that starts with a list of this length.
    fn new(done: usize) -> Self {
        Self { calls: 256, bytes: 1024 * 1024, enough: done + 64 }
    }
}

/// See the module's head.
pub(super) struct TcpQueuePair {
    /// None once the connection is over.
    stream: Option<TcpStream>,
    engine: Engine,
    peer: Peer,
    runtime: Handle,
    timer: Option<Pin<Box<Sleep>>>,
    spin: Spin,
    /// Close when everything is sent.
    closing: bool,
    /// Why writing has ended.
    write_error: Option<ErrorKind>,
    /// What `poll` answers when it is over.
    lost: Option<Lost>,
}

/// Why reading or writing stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// There is nothing more to do.
    Done,
    /// The socket will wake us, or never take another byte.
    Blocked,
    /// Others are to have their turn.
    Budget,
}

/// How far a read or write got.
enum Moved {
    /// So many bytes, and there may be more.
    Some(usize),
    /// So many bytes, and then the socket was at its limit.
    Last(usize),
    /// The socket is at its limit.
    Nothing,
}

/// Does one system call on the socket. If it moves fewer than `most` bytes, the runtime is told that the socket is not
/// ready, which saves the call that would find that out.
fn transfer(
    stream: &TcpStream,
    interest: Interest,
    most: usize,
    mut call: impl FnMut() -> io::Result<usize>,
) -> io::Result<Moved> {
    let mut short = None;
    let result = stream.try_io(interest, || {
        let n = loop {
            match call() {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if n > 0 && n < most {
            short = Some(n);
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(n)
    });
    match (result, short) {
        (_, Some(n)) => Ok(Moved::Last(n)),
        (Ok(n), None) => Ok(Moved::Some(n)),
        (Err(e), None) if e.kind() == ErrorKind::WouldBlock => Ok(Moved::Nothing),
        (Err(e), None) => Err(e),
    }
}

/// Calls `read` with the places where the engine wants bytes and their length.
fn with_places<T>(engine: &mut Engine, read: impl FnOnce(&mut [IoSliceMut<'_>], usize) -> T) -> T {
    let mut places = engine.input();
    let most = places.iter().map(|place| place.len()).sum();
    let skip = usize::from(places.first().is_some_and(|place| place.is_empty()));
    read(places.get_mut(skip..).unwrap_or_default(), most)
}

/// Gives the engine the `n` bytes that were read; none are the end of the stream.
fn take(engine: &mut Engine, write_error: Option<ErrorKind>, n: usize, done: &mut Vec<Completion>) {
    match write_error {
        _ if n > 0 => engine.received(n, done),
        Some(kind) => engine.fail(Failure { lost: Lost::Io(kind), terminate: None }),
        None => engine.end_of_stream(),
    }
}

impl TcpQueuePair {
    pub(super) fn new(stream: TcpStream, engine: Engine, peer: Peer, spin: Option<Duration>) -> Self {
        Self {
            stream: Some(stream),
            engine,
            peer,
            runtime: Handle::current(),
            timer: None,
            spin: Spin::new(spin),
            closing: false,
            write_error: None,
            lost: None,
        }
    }

    /// Writes until nothing is queued or the socket is full.
    fn write(&mut self, cx: &mut Context<'_>, budget: &mut Budget, done: &mut Vec<Completion>) -> Stopped {
        let Some(stream) = &self.stream else { return Stopped::Blocked };
        loop {
            if self.write_error.is_some() {
                return Stopped::Blocked;
            }
            self.engine.fill(done);
            if !self.engine.has_output() {
                return Stopped::Done;
            }
            if budget.calls == 0 {
                return Stopped::Budget;
            }
            budget.calls -= 1;
            let moved = {
                let mut slices = Slices::new();
                self.engine.output(&mut slices);
                let most = slices.iter().map(|slice| slice.len()).sum();
                transfer(stream, Interest::WRITABLE, most, || Ok(rustix::io::writev(stream, &slices)?))
            };
            match moved {
                Ok(Moved::Some(n) | Moved::Last(n)) => self.engine.wrote(n, Instant::now(), done),
                Ok(Moved::Nothing) => match stream.poll_write_ready(cx) {
                    Poll::Pending => return Stopped::Blocked,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(e)) => self.write_error = Some(e.kind()),
                },
                Err(e) => self.write_error = Some(e.kind()),
            }
        }
    }

    /// Reads until the socket is empty.
    fn read(&mut self, cx: &mut Context<'_>, budget: &mut Budget, done: &mut Vec<Completion>) -> Stopped {
        let Some(stream) = &self.stream else { return Stopped::Done };
        while self.engine.failure().is_none() {
            if budget.calls == 0 || budget.bytes == 0 || done.len() >= budget.enough {
                return Stopped::Budget;
            }
            budget.calls -= 1;
            let moved = with_places(&mut self.engine, |places, most| {
                transfer(stream, Interest::READABLE, most, || Ok(rustix::io::readv(stream, &mut *places)?))
            });
            match moved {
                Ok(Moved::Some(n) | Moved::Last(n)) => {
                    budget.bytes = budget.bytes.saturating_sub(n);
                    take(&mut self.engine, self.write_error, n, done);
                }
                Ok(Moved::Nothing) => match stream.poll_read_ready(cx) {
                    Poll::Pending => return Stopped::Blocked,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(e)) => return self.broken(e.kind()),
                },
                Err(e) => return self.broken(e.kind()),
            }
        }
        Stopped::Done
    }

    /// Waits for bytes without sleeping, if that has paid off lately. True if something has come.
    fn spin(&mut self, done: &mut Vec<Completion>) -> bool {
        let Some(stream) = &self.stream else { return false };
        let Some(until) = self.spin.begin(Instant::now) else { return false };
        loop {
            let read = with_places(&mut self.engine, |places, _| rustix::io::readv(stream, places));
            match read {
                Ok(n) => {
                    self.spin.hit();
                    take(&mut self.engine, self.write_error, n, done);
                    return true;
                }
                // A real error shows again when the socket is read the ordinary way.
                Err(_) if Instant::now() >= until => {
                    self.spin.miss();
                    return false;
                }
                Err(_) => std::hint::spin_loop(),
            }
        }
    }

    fn broken(&mut self, kind: ErrorKind) -> Stopped {
        self.engine.fail(Failure { lost: Lost::Io(kind), terminate: None });
        Stopped::Done
    }

    /// Arms the timer for what the engine waits for. True if something was due.
    fn tick(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(due) = self.engine.next_timeout() else {
            self.timer = None;
            return false;
        };
        let now = Instant::now();
        if due <= now {
            self.engine.handle_timeout(now);
            return true;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
        if timer.deadline() != due.into() {
            timer.as_mut().reset(due.into());
        }
        timer.as_mut().poll(cx).is_ready()
    }

    /// The connection is over: closes the socket and hands out all memory.
    fn finish(&mut self, lost: Lost, done: &mut Vec<Completion>) {
        // Over a broken connection there is nothing more to say.
        if let Some(stream) = self.stream.take()
            && !matches!(lost, Lost::Io(_))
        {
            let last_words = if self.write_error.is_none() { self.engine.last_words() } else { Vec::new() };
            linger(&self.runtime, stream, last_words);
        }
        self.engine.flush(done);
        self.timer = None;
        self.lost = Some(lost);
    }

    /// What `poll` answers after the end.
    fn over(lost: Lost, grew: bool) -> Poll<Result<(), Lost>> {
        Poll::Ready(if grew { Ok(()) } else { Err(lost) })
    }
}

impl QueuePair for TcpQueuePair {
    fn limits(&self) -> QpLimits {
        self.engine.limits()
    }

    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn post_recv(&mut self, buf: Region) -> Result<(), Rejected<Region>> {
        self.engine.post_recv(buf)
    }

    fn post(&mut self, work: Work) -> Result<(), Rejected<Work>> {
        self.engine.post(work)
    }

    fn expose(&mut self, region: Region, len: u32, access: Access) -> Result<Exposed, Rejected<Region>> {
        self.engine.expose(region, len, access)
    }

    fn invalidate(&mut self, stag: Stag) {
        self.engine.invalidate(stag);
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<Result<(), Lost>> {
        let before = done.len();
        if let Some(lost) = &self.lost {
            return Poll::Ready(Err(lost.clone()));
        }
        self.engine.report_reclaimed(done);
        let mut budget = Budget::new(before);
        let exhausted = loop {
            let written = self.write(cx, &mut budget, done);
            let read = self.read(cx, &mut budget, done);
            if self.engine.failure().is_some() {
                break false;
            }
            if written == Stopped::Budget || read == Stopped::Budget {
                break true;
            }
            // What was read may be something to answer.
            self.engine.fill(done);
            let more = written == Stopped::Done && self.engine.has_output();
            if more || self.tick(cx) {
                continue;
            }
            if done.len() > before || self.engine.has_output() || !self.spin(done) {
                break false;
            }
        };
        if self.closing && self.engine.is_idle() {
            self.engine.fail(Failure { lost: Lost::Closed, terminate: None });
        }
        if let Some(failure) = self.engine.failure() {
            let lost = failure.lost.clone();
            self.finish(lost.clone(), done);
            return Self::over(lost, done.len() > before);
        }
        if done.len() > before {
            return Poll::Ready(Ok(()));
        }
        if exhausted {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn shutdown(&mut self, how: Shutdown) {
        match how {
            Shutdown::Graceful => self.closing = true,
            Shutdown::Abort => {
                self.engine.fail(Failure { lost: Lost::Closed, terminate: None });
                if let Some(stream) = self.stream.take()
                    && let Err(error) = SockRef::from(&stream).set_linger(Some(Duration::ZERO))
                {
                    tracing::debug!(%error, "the connection is not reset but closed");
                }
            }
        }
    }
}
