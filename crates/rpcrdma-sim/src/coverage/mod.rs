//! Which (state, event) pairs of the protocol's state machines the simulation has reached.
//!
//! # Operation
//! There are five tables ([`tables`]): the Requester's account, the Responder's account, the stages of a Call in a server,
//! and the life of a connection at its client's end and at its server's end. A [`Watcher`] follows every end that runs
//! our code through them, from what happens on the fabric and what the service is asked, and counts each pair in a
//! [`Coverage`]. The code under test is not instrumented.
//!
//! Every pair is either reached or on its table's list of pairs that cannot be, with a reason. A pair that is on neither
//! side, or on both, is a mistake: in the table, in the worlds that are simulated, or in the code. A short list names pairs
//! that take several coincidences: some hundred seeds may miss them, some ten thousand do not.
//!
//! # Limits
//! A state is what an observer can tell. The Responder's wait for memory, for one, is seen by the RDMA Read that ends it.

mod tables;
mod watcher;

use std::fmt;

pub use tables::{Account, Link, LinkEvent, Promise, PromiseEvent, RequestEvent};
pub use watcher::Watcher;

/// States or events of a table.
pub trait Axis: Copy + 'static {
    /// All of them.
    const ALL: &'static [Self];

    /// Its place among them.
    fn index(self) -> usize;

    /// Its name.
    fn name(self) -> &'static str;
}

/// Pairs that cannot be reached, and why.
pub struct Never<S: 'static, E: 'static> {
    /// In each of these states.
    pub states: &'static [S],
    /// Each of these events.
    pub events: &'static [E],
    /// Why not.
    pub why: &'static str,
}

/// A state machine as a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Whose it is.
    pub name: &'static str,
    /// Its states.
    pub states: Vec<&'static str>,
    /// Its events.
    pub events: Vec<&'static str>,
    /// By event, then by state: why the pair cannot be reached.
    never: Vec<Option<&'static str>>,
    /// The same: why it takes long to reach it.
    rare: Vec<Option<&'static str>>,
    /// Where its counts begin among those of all tables.
    start: usize,
}

/// What is known of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// Reached so often.
    Reached(u64),
    /// Not reached, and that cannot be.
    Never(&'static str),
    /// Not reached, which takes coincidences.
    Rare(&'static str),
    /// Not reached, and nobody knows why.
    Missing,
    /// Reached so often, although it is on the list of those that cannot be.
    Surprise(u64, &'static str),
}

/// All tables.
#[must_use]
pub fn tables() -> Vec<Table> {
    let mut start = 0;
    let mut tables = tables::all();
    for table in &mut tables {
        table.start = start;
        start += table.pairs();
    }
    tables
}

impl Table {
    fn new<S: Axis, E: Axis>(name: &'static str, never: &[Never<S, E>], rare: &[Never<S, E>]) -> Self {
        let (states, events): (Vec<_>, Vec<_>) =
            (S::ALL.iter().map(|s| s.name()).collect(), E::ALL.iter().map(|e| e.name()).collect());
        let reasons = |list: &[Never<S, E>]| {
            let mut why = vec![None; states.len() * events.len()];
            for n in list {
                for e in n.events {
                    for s in n.states {
                        if let Some(place) = why.get_mut(e.index() * states.len() + s.index()) {
                            *place = Some(n.why);
                        }
                    }
                }
            }
            why
        };
        let (never, rare) = (reasons(never), reasons(rare));
        Self { name, states, events, never, rare, start: 0 }
    }

    /// How many pairs it has.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.states.len() * self.events.len()
    }
}

/// How often each pair of each table was reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: Vec<u64>,
}

impl Coverage {
    fn count(&mut self, start: usize, width: usize, state: usize, event: usize) {
        let at = start + event * width + state;
        if self.counts.len() <= at {
            self.counts.resize(at + 1, 0);
        }
        if let Some(n) = self.counts.get_mut(at) {
            *n += 1;
        }
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (n, more) in self.counts.iter_mut().zip(&other.counts) {
            *n += more;
        }
    }

    /// What is known of a pair, by the places of event and state in the table.
    #[must_use]
    pub fn pair(&self, table: &Table, event: usize, state: usize) -> Pair {
        let at = event * table.states.len() + state;
        let count = self.counts.get(table.start + at).copied().unwrap_or(0);
        match (count, table.never.get(at).copied().flatten()) {
            (0, Some(why)) => Pair::Never(why),
            (0, None) => table.rare.get(at).copied().flatten().map_or(Pair::Missing, Pair::Rare),
            (n, Some(why)) => Pair::Surprise(n, why),
            (n, None) => Pair::Reached(n),
        }
    }

    /// Pairs reached, pairs that cannot be, and all that is wrong, in words.
    #[must_use]
    pub fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        for table in tables() {
            for (e, event) in table.events.iter().enumerate() {
                for (s, state) in table.states.iter().enumerate() {
                    let name = || format!("{}: {event} in {state}", table.name);
                    match self.pair(&table, e, s) {
                        Pair::Reached(_) => sum.reached += 1,
                        Pair::Never(_) => sum.never += 1,
                        Pair::Rare(why) => sum.rare.push(format!("{}; {why}", name())),
                        Pair::Missing => sum.missing.push(name()),
                        Pair::Surprise(n, why) => {
                            sum.surprises.push(format!("{}, {n} times, although: {why}", name()));
                        }
                    }
                }
            }
        }
        sum
    }
}

/// What a coverage comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Pairs reached that should be.
    pub reached: u64,
    /// Pairs not reached that cannot be.
    pub never: u64,
    /// Pairs not reached that take coincidences, and which.
    pub rare: Vec<String>,
    /// Pairs not reached without a reason.
    pub missing: Vec<String>,
    /// Pairs reached that cannot be.
    pub surprises: Vec<String>,
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.reached + (self.rare.len() + self.missing.len()) as u64;
        write!(f, "{} of {all} pairs of state and event; {} more cannot happen", self.reached, self.never)
    }
}
