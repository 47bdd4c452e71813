//! From a request to its answer: tasks, errors, and programs that are killed while they wait.
//!
//! # Killing
//! The kernel lets nobody go whose request has been taken, not even when it is to be killed, unless the request is
//! answered. So a task that has waited for a second looks every second whether its program is dying, and if so answers
//! EINTR. What the request has started goes on without it.

use std::{future::Future, time::Duration};

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

/// Works for a thread and answers.
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

/// Works for a thread, until it is to be killed.
pub(crate) async fn unless_killed<T>(
    thread: u32,
    work: impl Future<Output = Result<T, Fail>>,
) -> Result<T, Fail> {
    tokio::pin!(work);
    loop {
        match timeout(LOOK_PERIOD, &mut work).await {
            Ok(done) => return done,
            // Thread 0 is one that we cannot see.
            Err(_) if thread != 0 && is_dying(thread) => return Err(Fail(Errno::EINTR)),
            Err(_) => {}
        }
    }
}
