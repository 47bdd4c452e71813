//! Many runs, on several threads.
//!
//! # Operation
//! Each thread takes the next [`Spec`], runs it without a timeline, which is fast, and adds what came out to the
//! [`Totals`]. Whoever wants to see what a failed run did runs its spec again and keeps the timeline.
//!
//! # Limits
//! The order in which runs end depends on the threads; their sum does not. Of the runs that fail the first
//! [`MOST_FAILURES`] are kept.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    thread,
};

use crate::{coverage::Coverage, record::Keep, rig::Outcome, spec::Spec};

/// Failed runs that are kept; the others are counted.
pub const MOST_FAILURES: usize = 100;

/// What many runs come to.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Runs.
    pub runs: u64,
    /// Steps made, each of which could have been a fault.
    pub steps: u64,
    /// Events on the fabric, after each of which the rules were checked.
    pub events: u64,
    /// Faults.
    pub faults: u64,
    /// Connections asked for.
    pub connections: u64,
    /// Calls sent.
    pub calls: u64,
    /// How many of them were sent again.
    pub again: u64,
    /// Pairs of states and events that were reached.
    pub coverage: Coverage,
    /// Runs in which a rule was broken.
    pub failed: u64,
    /// Which they are.
    pub failures: Vec<Failure>,
}

/// A run in which a rule was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was run.
    pub spec: Spec,
    /// The rule.
    pub why: String,
    /// Steps until it was broken.
    pub steps: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  again: rpcrdma sim {} --timeline", self.why, self.spec)
    }
}

impl Totals {
    /// Adds a run.
    pub fn add(&mut self, spec: Spec, outcome: Outcome) {
        self.runs += 1;
        self.steps += outcome.steps;
        self.events += outcome.events;
        self.faults += outcome.faults;
        self.connections += outcome.connections;
        self.calls += outcome.calls.0;
        self.again += outcome.calls.1;
        self.coverage.add(&outcome.coverage);
        if let Err(why) = outcome.verdict {
            self.failed += 1;
            if self.failures.len() < MOST_FAILURES {
                self.failures.push(Failure { spec, why, steps: outcome.steps });
            }
        }
    }

    /// The failure that took the fewest steps.
    #[must_use]
    pub fn shortest(&self) -> Option<&Failure> {
        self.failures.iter().min_by_key(|f| f.steps)
    }

    /// Runs the shortest failure again, with its timeline, and panics with it.
    ///
    /// # Panics
    /// If a run has failed.
    #[track_caller]
    pub fn check(&self) {
        for failure in &self.failures {
            println!("{failure}");
        }
        if let Some(failure) = self.shortest() {
            failure.spec.run(Keep::for_tests()).check();
            panic!("{failure}\nA second run of it does not fail, so something is left to chance.");
        }
    }
}

/// Runs all that `specs` brings, on so many threads. `watch` is shown the totals after each run and says whether to go on.
///
/// # Panics
/// If a run panics outside of its tasks, which is a mistake in the rig.
pub fn run<S>(jobs: usize, specs: S, watch: impl Fn(&Totals) -> bool + Sync) -> Totals
where
    S: IntoIterator<Item = Spec>,
    S::IntoIter: Send,
{
    let specs = Mutex::new(Some(specs.into_iter()));
    let totals = Mutex::new(Totals::default());
    let next = || specs.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.next();
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(spec) = next() {
                    let outcome = spec.run(Keep::Nothing);
                    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                    totals.add(spec, outcome);
                    if !watch(&totals) {
                        *specs.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    }
                }
            });
        }
    });
    totals.into_inner().unwrap_or_else(PoisonError::into_inner)
}
