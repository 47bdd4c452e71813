//! The end of a queue pair: in which order the device is made to let go, and when memory comes back.
//!
//! What it does not let go of is asked for again and again, by `poll` or, when the queue pair has been dropped, by a task that
//! has the memory meanwhile.

use std::{
    io,
    mem::ManuallyDrop,
    task::{Context, Poll},
    time::Duration,
};

use rpcrdma_fabric::{Completion, Lost, Op, Stag};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

use super::{Exposure, Guard, Pending, UnderWay, VerbsQueuePair};
use crate::sys::{Happened, Id, Qp, Window};

/// How long to wait before a queue pair that the device has not let go of is destroyed again.
pub(super) const AGAIN: Duration = Duration::from_millis(100);
/// How long the rest of a goodbye may take.
const FAREWELL: Duration = Duration::from_secs(2);

impl VerbsQueuePair {
    /// The connection is over: takes everything apart that the device has.
    ///
    /// The order matters. Disconnecting puts the queue pair into its error state; windows go before their queue pair,
    /// which some drivers keep alive for them; after the queue pair is destroyed nothing touches our memory, and it can
    /// be given back: a registration lets the queue pairs of its protection domain in, and one that the peer could use is in a
    /// domain that has no other.
    ///
    /// # Errors
    /// If the device does not let go of the queue pair, which is still here then.
    fn take_apart(&mut self) -> io::Result<()> {
        let Some(mut qp) = self.qp.take() else { return Ok(()) };
        if self.established
            && let Some(id) = qp.id()
            && let Err(error) = id.disconnect()
        {
            tracing::debug!(%error, "no goodbye");
        }
        self.last_windows.extend(self.free_windows.drain(..));
        self.last_windows.extend(self.late_windows.drain().map(|(_, window)| window));
        for exposure in self.exposures.values_mut().chain(self.doubles.iter_mut().map(|(_, double)| double)) {
            exposure.guard = match std::mem::replace(&mut exposure.guard, Guard::Empty) {
                Guard::Window(window, backing) => {
                    self.last_windows.push(window);
                    backing.map_or(Guard::Empty, Guard::Registration)
                }
                other => other,
            };
        }
        free(&mut self.last_windows);
        match qp.destroy() {
            Ok(id) => {
                self.last_windows.clear();
                if self.established && !self.disconnected {
                    linger(&self.runtime, id);
                }
            }
            Err(kept) => {
                let (qp, error) = *kept;
                self.qp = Some(qp);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes everything apart, hands out all memory, and says that it is over; later, if the device needs time.
    pub(super) fn end(
        &mut self,
        lost: Lost,
        cx: &mut Context<'_>,
        done: &mut Vec<Completion>,
        before: usize,
    ) -> Poll<Result<(), Lost>> {
        while let Err(error) = self.take_apart() {
            if !std::mem::replace(&mut self.waits_for_device, true) {
                tracing::error!(
                    "a connection's memory is not given back, as the device does not let go of it: {error}"
                );
            }
            let mut again = Box::pin(sleep(AGAIN));
            if again.as_mut().poll(cx).is_pending() {
                self.ending = Some((lost, again));
                return if done.len() > before { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
        self.give_back(lost.clone(), done);
        Poll::Ready(if done.len() > before { Ok(()) } else { Err(lost) })
    }

    /// Hands out all memory, as the queue pair has gone.
    fn give_back(&mut self, lost: Lost, done: &mut Vec<Completion>) {
        let pending = self.pending.drain(..).filter_map(|p| match p {
            Pending::Work(posting) => Some(posting.work),
            _ => None,
        });
        let under_way = self.ledger.drain().filter_map(|u| match u {
            UnderWay::Work { work, .. } => Some(work),
            _ => None,
        });
        let kept = self.kept.drain(..).map(|(work, sink)| {
            drop(sink);
            work
        });
        for work in kept.chain(under_way).chain(pending) {
            let (id, op, buf) = work.into_parts();
            done.push(Completion::Flushed { id, op, buf });
        }
        self.works = 0;
        done.extend(self.recvs.drain(..).map(|(buf, _)| Completion::Flushed { id: 0, op: Op::Recv, buf }));
        let exposed = self.exposures.drain().chain(self.doubles.drain(..)).map(
            |(tag, Exposure { region, guard, .. })| {
                drop(guard);
                (tag, region)
            },
        );
        let reclaimed = self.reclaimed.drain(..).chain(exposed);
        done.extend(reclaimed.map(|(tag, buf)| Completion::Reclaimed { stag: Stag(tag), buf }));
        self.reason_timer = None;
        self.nudge = None;
        self.lost = Some(lost);
    }
}

impl Drop for VerbsQueuePair {
    fn drop(&mut self) {
        if let Err(error) = self.take_apart() {
            tracing::error!(
                "a connection's memory is not freed, as the device does not let go of it: {error}"
            );
            let under_way: Vec<_> = self.ledger.drain().collect();
            let (recvs, pending) = (std::mem::take(&mut self.recvs), std::mem::take(&mut self.pending));
            let (exposures, doubles) =
                (std::mem::take(&mut self.exposures), std::mem::take(&mut self.doubles));
            let kept = std::mem::take(&mut self.kept);
            let memory = (recvs, pending, under_way, exposures, doubles, kept);
            bury(&self.runtime, self.qp.take(), std::mem::take(&mut self.last_windows), memory);
        }
    }
}

/// Gives windows back to the device, except for those that it does not let go of.
fn free(windows: &mut Vec<Window>) {
    windows.retain_mut(|window| match window.free() {
        Ok(()) => false,
        Err(error) => {
            tracing::debug!(%error, "a memory window cannot be freed yet");
            true
        }
    });
}

/// Destroys a queue pair, which some windows may be bound to, when the device lets go of it, and only then frees its memory;
/// never, if the runtime ends before.
fn bury(runtime: &Handle, mut qp: Option<Qp>, mut windows: Vec<Window>, memory: impl Send + 'static) {
    let memory = ManuallyDrop::new(memory);
    runtime.spawn(async move {
        while let Some(held) = qp.take() {
            sleep(AGAIN).await;
            free(&mut windows);
            qp = held.destroy().err().map(|kept| kept.0);
        }
        drop(windows);
        drop(ManuallyDrop::into_inner(memory));
    });
}

/// Keeps an identifier until the peer has heard the goodbye, which the connection manager repeats, and no longer.
fn linger(runtime: &Handle, id: Id) {
    runtime.spawn(async move {
        let heard = async {
            loop {
                match id.channel().event().await {
                    Ok(event)
                        if event.what == Happened::Disconnected || event.what == Happened::DeviceRemoved =>
                    {
                        return;
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        };
        // A peer that does not answer is not waited for.
        let _ = timeout(FAREWELL, heard).await;
    });
}
