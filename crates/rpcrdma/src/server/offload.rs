//! Where work that may block is done.
//!
//! # Operation
//! Blocking threads are few, and one client can have work for all of them for minutes. So a thread that is free takes its
//! next job from another client than the last one, in turn: with a thousand jobs of one client in line, a second client
//! waits for one job of the first, not for all.
//!
//! # Limits
//! How many jobs are in line is bounded by those who bring them. Clients are told apart by their addresses.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::mpsc;

use super::service::{OutgoingReply, Served};

/// Work that may block.
pub type Job = Box<dyn FnOnce() + Send>;

/// Does work that may block somewhere else than on the caller's thread: by default on the runtime's blocking threads. A
/// simulation does it in its own time.
#[derive(Clone)]
pub struct Offload(Arc<dyn Fn(IpAddr, Job) + Send + Sync>);

impl Offload {
    /// Work is done by this function, now or later. A job that is dropped is a Call that is never answered.
    #[must_use]
    pub fn new(run: impl Fn(Job) + Send + Sync + 'static) -> Self {
        Self(Arc::new(move |_, job| run(job)))
    }

    /// Has a client's Call served. What `report` hears of it, even when `serve` panics, brings `what` back.
    ///
    /// When its receiver has gone meanwhile and the Call has not begun, it is not served at all: its client sends it again
    /// on another connection, or has lost interest.
    pub(super) fn run<T: Send + 'static>(
        &self,
        client: IpAddr,
        what: T,
        reply: OutgoingReply,
        report: mpsc::UnboundedSender<Executed<T>>,
        serve: impl FnOnce(&T, &mut OutgoingReply) -> Served + Send + 'static,
    ) {
        // Unless it is served, its client is told to send it again by a lost connection.
        let executed = Executed { what, served: Served::Close, reply };
        let mut errand = Errand { executed: Some(executed), report };
        let job = move || {
            if errand.report.is_closed() {
                return;
            }
            if let Some(Executed { what, served, reply }) = &mut errand.executed {
                *served = serve(what, reply);
            }
        };
        (self.0)(client, Box::new(job));
    }
}

/// What became of a Call elsewhere.
pub(super) struct Executed<T> {
    pub(super) what: T,
    pub(super) served: Served,
    pub(super) reply: OutgoingReply,
}

/// A Call that is elsewhere. It reports back when it is dropped, so that a panic of the service is noticed, too.
struct Errand<T> {
    executed: Option<Executed<T>>,
    report: mpsc::UnboundedSender<Executed<T>>,
}

impl<T> Drop for Errand<T> {
    fn drop(&mut self) {
        if let Some(executed) = self.executed.take() {
            // Nobody listens when the connection has ended meanwhile.
            let _ = self.report.send(executed);
        }
    }
}

impl Default for Offload {
    fn default() -> Self {
        let line = Arc::<Mutex<Line>>::default();
        Self(Arc::new(move |client, job| {
            lock(&line).push(client, job);
            let line = Arc::clone(&line);
            // As many threads come as there are jobs, each for the job whose turn it is then.
            drop(tokio::task::spawn_blocking(move || {
                let job = lock(&line).pop();
                if let Some(job) = job {
                    job();
                }
            }));
        }))
    }
}

fn lock(line: &Mutex<Line>) -> std::sync::MutexGuard<'_, Line> {
    // No job runs while it is locked, so nothing panics half way.
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Offload")
    }
}

/// The jobs of all clients that wait for a thread.
#[derive(Default)]
struct Line {
    jobs: HashMap<IpAddr, VecDeque<Job>>,
    /// Clients with jobs, in the order of their turns.
    turns: VecDeque<IpAddr>,
}

impl Line {
    fn push(&mut self, client: IpAddr, job: Job) {
        let jobs = self.jobs.entry(client).or_default();
        if jobs.is_empty() {
            self.turns.push_back(client);
        }
        jobs.push_back(job);
    }

    fn pop(&mut self) -> Option<Job> {
        let client = self.turns.pop_front()?;
        let jobs = self.jobs.get_mut(&client)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.jobs.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn clients_take_turns_and_each_keeps_its_order() {
        let (done, order) = mpsc::channel();
        let mut line = Line::default();
        for (client, nth) in [(1, 0), (1, 1), (1, 2), (2, 0), (3, 0), (3, 1)] {
            let done = done.clone();
            line.push(IpAddr::from([10, 0, 0, client]), Box::new(move || done.send((client, nth)).unwrap()));
        }
        while let Some(job) = line.pop() {
            job();
        }
        let order: Vec<_> = order.try_iter().collect();
        assert_eq!(order, [(1, 0), (2, 0), (3, 0), (1, 1), (3, 1), (1, 2)]);
        assert!(line.jobs.is_empty(), "who has no jobs leaves nothing behind");
    }
}
