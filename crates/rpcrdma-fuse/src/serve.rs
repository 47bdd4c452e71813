//! From a request to its answer: tasks, errors, and programs that are killed while they wait.
//!
//! # Killing
//! The kernel lets nobody go whose request has been taken, not even when it is to be killed, unless the request is
//! answered. So a task that has waited for a second looks every second whether its program is dying, and if so answers
//! EINTR. A request that only asks is given up. One that changes something may have several steps, of which the server has
//! executed who knows which: it goes on without its program ([`serve_whole`]), and what it gives the kernel in the end, which
//! expects nothing any more, is taken back.

use std::{future::Future, pin::Pin, time::Duration};

use fuser::Errno;
use rpcrdma::error::Error;
use tokio::time::timeout;

use crate::{errno_of, user::is_dying};

/// How often a task that waits looks after its program.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// What a program is told when a request fails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fail(pub(crate) Errno);

impl Fail {
    pub(crate) const STALE: Self = Self(Errno::ESTALE);

    pub(crate) fn errno(n: i32) -> Self {
        Self(Errno::from_i32(n))
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        if error.status().is_none() {
            tracing::warn!("{error}");
        }
        Self::errno(errno_of(&error))
    }
}

/// An answer that can be a refusal.
pub(crate) trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ident)+) => {
        $(impl Refuse for fuser::$reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })+
    };
}

refuse! {
    ReplyAttr ReplyCreate ReplyData ReplyDirectory ReplyDirectoryPlus ReplyEmpty ReplyEntry ReplyOpen ReplyStatfs
    ReplyWrite
}

/// Works for a thread and answers. When the thread is to be killed, the work is given up.
pub(crate) async fn serve<R: Refuse, T>(
    thread: u32,
    reply: R,
    work: impl Future<Output = Result<T, Fail>>,
    answer: impl FnOnce(R, T),
) {
    match unless_killed(thread, work).await {
        Ok(value) => answer(reply, value),
        Err(Fail(errno)) => reply.refuse(errno),
    }
}

/// Works for a thread and answers. When the thread is to be killed, the work goes on, and what it yields is for `undo`.
pub(crate) async fn serve_whole<R: Refuse, T, U: Future<Output = ()>>(
    thread: u32,
    reply: R,
    work: impl Future<Output = Result<T, Fail>>,
    answer: impl FnOnce(R, T),
    undo: impl FnOnce(T) -> U,
) {
    tokio::pin!(work);
    match until_killed(thread, work.as_mut()).await {
        Some(Ok(value)) => answer(reply, value),
        Some(Err(Fail(errno))) => reply.refuse(errno),
        None => {
            reply.refuse(Errno::EINTR);
            // Whoever asked for it hears of no error.
            if let Ok(value) = work.await {
                undo(value).await;
            }
        }
    }
}

/// Works for a thread, until it is to be killed.
pub(crate) async fn unless_killed<T>(
    thread: u32,
    work: impl Future<Output = Result<T, Fail>>,
) -> Result<T, Fail> {
    tokio::pin!(work);
    until_killed(thread, work).await.unwrap_or(Err(Fail(Errno::EINTR)))
}

/// What comes of the work; `None` if its thread is to be killed before.
async fn until_killed<T>(thread: u32, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    loop {
        match timeout(LOOK_PERIOD, &mut work).await {
            Ok(done) => return Some(done),
            // Thread 0 is one that we cannot see.
            Err(_) if thread != 0 && is_dying(thread) => return None,
            Err(_) => {}
        }
    }
}
