//! Plans of faults, by step and by the dice.
//!
//! # In writing
//! [`Cuts`] are read and written as a list with commas. Each is a step, `=`, what breaks there, and how, with colons:
//!
//! * `120=reset`: before step 120 the connection is reset; the client sees it first.
//! * `120=reset:server:drop:after`: after step 120, the server sees it first, and what is under way from it is lost.
//! * `120=silence`: nothing goes through any more, and nobody is told.
//! * `120=remove:server:2000`: the server's device is away for 2000 ms.
//! * `120=registration`, `120=refuse`: this registration fails, this connection is refused.
//! * `every=50`: a reset every 50 steps, of every kind in turn.
//! * `none`: nothing breaks.

use std::{collections::BTreeMap, fmt, num::NonZeroU64, str::FromStr};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use rpcrdma::fabric::sim::{Fault, Faults, Side, Step, StepKind, What, When};

/// Faults at given steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cuts {
    at: BTreeMap<u64, Fault>,
    /// A reset every so many steps.
    every: Option<NonZeroU64>,
}

impl Cuts {
    /// These faults.
    #[must_use]
    pub fn new(cuts: impl IntoIterator<Item = (u64, Fault)>) -> Self {
        Self { at: cuts.into_iter().collect(), every: None }
    }

    /// A reset every so many steps, of every kind in turn.
    #[must_use]
    pub fn every(steps: NonZeroU64) -> Self {
        Self { at: BTreeMap::new(), every: Some(steps) }
    }

    /// The plan in a sentence.
    #[must_use]
    pub fn in_words(&self) -> String {
        let mut words: Vec<String> =
            self.at.iter().map(|(step, fault)| format!("at step {step} {}", in_words(fault))).collect();
        words.extend(self.every.map(|n| format!("a reset every {n} steps")));
        if words.is_empty() { "nothing breaks".to_owned() } else { words.join("; ") }
    }
}

impl Faults for Cuts {
    fn at(&mut self, step: &Step) -> Option<Fault> {
        let planned = self.at.get(&step.number).copied();
        planned.or_else(|| {
            let every = self.every?.get();
            let round = step.number / every;
            let first = if round.is_multiple_of(2) { Side::Active } else { Side::Passive };
            let what = What::Reset { first, drop: round.is_multiple_of(3) };
            step.number.is_multiple_of(every).then_some(Fault { when: When::Before, what })
        })
    }
}

/// A fault in words.
#[must_use]
pub fn in_words(fault: &Fault) -> String {
    let when = if fault.when == When::Before { "before" } else { "after" };
    match fault.what {
        What::Reset { first, drop } => {
            let lost = if drop { ", what is under way from there is lost" } else { "" };
            format!("a reset {when} the step, seen by the {} first{lost}", side(first))
        }
        What::Silence => format!("silence from {when} the step on"),
        What::Remove { side: whose, down } => format!("the {}'s device goes away for {down} ms", side(whose)),
        What::Registration => "a registration that fails".to_owned(),
        What::Refuse => "a refused connection".to_owned(),
    }
}

/// How a side is written.
fn side(side: Side) -> &'static str {
    match side {
        Side::Active => "client",
        Side::Passive => "server",
    }
}

impl fmt::Display for Cuts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at.is_empty() && self.every.is_none() {
            return f.write_str("none");
        }
        let mut comma = "";
        for (step, fault) in &self.at {
            write!(f, "{comma}{step}=")?;
            match fault.what {
                What::Reset { first, drop } => {
                    write!(f, "reset:{}{}", side(first), if drop { ":drop" } else { "" })?;
                }
                What::Silence => f.write_str("silence")?,
                What::Remove { side: whose, down } => write!(f, "remove:{}:{down}", side(whose))?,
                What::Registration => f.write_str("registration")?,
                What::Refuse => f.write_str("refuse")?,
            }
            if fault.when == When::After {
                f.write_str(":after")?;
            }
            comma = ",";
        }
        match self.every {
            Some(steps) => write!(f, "{comma}every={steps}"),
            None => Ok(()),
        }
    }
}

/// What is wrong with a plan in writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadCut(String);

impl fmt::Display for BadCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadCut {}

impl FromStr for Cuts {
    type Err = BadCut;

    fn from_str(text: &str) -> Result<Self, BadCut> {
        let mut cuts = Self::default();
        if text == "none" {
            return Ok(cuts);
        }
        for part in text.split(',').map(str::trim) {
            let (step, fault) = part.split_once('=').ok_or_else(|| {
                BadCut(format!("`{part}` is not a step and what breaks there, such as 120=reset"))
            })?;
            if step == "every" {
                let steps = fault
                    .parse()
                    .map_err(|_| BadCut(format!("`{fault}` is not a number of steps above 0")))?;
                cuts.every = Some(steps);
                continue;
            }
            let number = step.parse().map_err(|_| BadCut(format!("`{step}` is not the number of a step")))?;
            if cuts.at.insert(number, fault_in(fault)?).is_some() {
                return Err(BadCut(format!("step {number} has two faults")));
            }
        }
        Ok(cuts)
    }
}

/// Reads what breaks, and how.
fn fault_in(text: &str) -> Result<Fault, BadCut> {
    let mut words = text.split(':');
    let kind = words.next().unwrap_or_default();
    let (mut when, mut whose, mut lost, mut time) = (When::Before, None, false, None);
    for word in words {
        match word {
            "before" => when = When::Before,
            "after" => when = When::After,
            "client" => whose = Some(Side::Active),
            "server" => whose = Some(Side::Passive),
            "drop" => lost = true,
            ms => {
                let ms = ms.parse().map_err(|_| BadCut(format!("`{ms}` says nothing about a fault")))?;
                time = Some(ms);
            }
        }
    }
    let (first, is_plain) = (whose.unwrap_or(Side::Active), whose.is_none() && !lost && time.is_none());
    let what = match kind {
        "reset" if time.is_none() => What::Reset { first, drop: lost },
        "remove" if !lost => What::Remove { side: first, down: time.unwrap_or(1000) },
        "silence" if is_plain => What::Silence,
        "registration" if is_plain => What::Registration,
        "refuse" if is_plain => What::Refuse,
        "reset" | "remove" | "silence" | "registration" | "refuse" => {
            return Err(BadCut(format!("`{text}` says what a {kind} does not have")));
        }
        _ => {
            let kinds = "reset, silence, remove, registration or refuse";
            return Err(BadCut(format!("`{kind}` is not one of {kinds}")));
        }
    };
    Ok(Fault { when, what })
}

/// Every way in which a connection can be reset at a step.
fn resets() -> impl Iterator<Item = Fault> {
    [When::Before, When::After].into_iter().flat_map(|when| {
        [Side::Active, Side::Passive].into_iter().flat_map(move |first| {
            [false, true].map(|drop| Fault { when, what: What::Reset { first, drop } })
        })
    })
}

/// One reset in every place of a run that has so many steps, in every way.
pub fn singles(steps: u64) -> impl Iterator<Item = Cuts> {
    (1..=steps).flat_map(|step| resets().map(move |way| Cuts::new([(step, way)])))
}

/// Two resets in every place of a run that has so many steps while nothing breaks, each in every way: the second one
/// anywhere behind the first, also while that is still being dealt with. `length` says how many steps the run has with the
/// first cut, which costs some.
pub fn pairs(steps: u64, length: impl Fn(&Cuts) -> u64) -> impl Iterator<Item = Cuts> {
    let ways: Vec<Fault> = resets().collect();
    let firsts = (1..=steps).flat_map(|step| resets().map(move |way| (step, way)));
    firsts.flat_map(move |first| {
        let ways = ways.clone();
        let end = length(&Cuts::new([first]));
        (first.0 + 1..=end).flat_map(move |second| {
            let cuts = |way: &Fault| Cuts::new([first, (second, *way)]);
            ways.iter().map(cuts).collect::<Vec<_>>()
        })
    })
}

/// Faults by the dice.
#[derive(Debug)]
pub struct Dice {
    rng: SmallRng,
    one_in: u32,
    left: u32,
    kinds: Kinds,
}

/// How likely each kind of fault is, relative to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    /// [`What::Reset`].
    pub reset: u32,
    /// [`What::Silence`].
    pub silence: u32,
    /// [`What::Remove`].
    pub remove: u32,
    /// [`What::Registration`] and [`What::Refuse`], where they apply.
    pub refusal: u32,
}

impl Dice {
    /// At most `left` faults, one step in `one_in`.
    #[must_use]
    pub fn new(seed: u64, one_in: u32, left: u32, kinds: Kinds) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), one_in: one_in.max(1), left, kinds }
    }
}

impl Faults for Dice {
    fn at(&mut self, step: &Step) -> Option<Fault> {
        // The making of a connection is a small part of the steps, and has its own faults.
        let setup = matches!(
            step.kind,
            StepKind::Connect
                | StepKind::Request
                | StepKind::Accept
                | StepKind::Established
                | StepKind::Ready
        );
        let one_in =
            if setup || step.kind == StepKind::Expose { self.one_in.div_ceil(8) } else { self.one_in };
        if self.left == 0 || self.rng.random_range(0..one_in) != 0 {
            return None;
        }
        let Kinds { reset, silence, remove, refusal } = self.kinds;
        let lot = self.rng.random_range(0..(reset + silence + remove + refusal).max(1));
        let side = if self.rng.random() { Side::Active } else { Side::Passive };
        let what = if lot < reset {
            What::Reset { first: side, drop: self.rng.random() }
        } else if lot < reset + silence {
            What::Silence
        } else if lot < reset + silence + remove {
            What::Remove { side, down: self.rng.random_range(0..3000) }
        } else if step.kind == StepKind::Request {
            What::Refuse
        } else {
            What::Registration
        };
        if what == What::Registration && step.kind != StepKind::Expose {
            return None;
        }
        self.left -= 1;
        let when = if self.rng.random() { When::Before } else { When::After };
        Some(Fault { when, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(text: &str) -> Result<Cuts, BadCut> {
        text.parse()
    }

    #[test]
    fn cuts_are_read_as_they_are_written() {
        let kinds =
            [What::Silence, What::Remove { side: Side::Passive, down: 70 }, What::Registration, What::Refuse];
        let others = kinds.map(|what| Fault { when: When::After, what });
        for fault in resets().chain(others) {
            let one = Cuts::new([(7, fault)]);
            assert_eq!(cuts(&one.to_string()), Ok(one));
        }
        let all = Cuts::new((1..).zip(resets().chain(others)));
        assert_eq!(cuts(&all.to_string()), Ok(all));
        for text in ["none", "every=50", "3=reset:client,every=9"] {
            assert_eq!(cuts(text).map(|c| c.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn what_is_left_out_has_a_meaning() {
        let reset = What::Reset { first: Side::Active, drop: false };
        assert_eq!(cuts("5=reset"), Ok(Cuts::new([(5, Fault { when: When::Before, what: reset })])));
        let remove = What::Remove { side: Side::Active, down: 1000 };
        assert_eq!(cuts("5=remove:after"), Ok(Cuts::new([(5, Fault { when: When::After, what: remove })])));
    }

    #[test]
    fn nonsense_is_named() {
        for (text, part) in [
            ("", "``"),
            ("reset", "`reset`"),
            ("x=reset", "`x`"),
            ("5=flood", "`flood`"),
            ("5=reset:sometimes", "`sometimes`"),
            ("5=silence:server", "`silence:server`"),
            ("5=reset:40", "`reset:40`"),
            ("5=reset,5=silence", "step 5"),
            ("every=0", "`0`"),
        ] {
            let error = cuts(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn pairs_of_cuts_reach_from_the_first_step_to_the_last_one_of_the_longer_run() {
        // The first cut costs three steps.
        let all: Vec<String> = pairs(4, |_| 7).map(|cuts| cuts.to_string()).collect();
        assert_eq!(all.len(), (6 + 5 + 4 + 3) * 8 * 8);
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
        assert_eq!(all.first().map(String::as_str), Some("1=reset:client,2=reset:client"));
        assert_eq!(
            all.last().map(String::as_str),
            Some("4=reset:server:drop:after,7=reset:server:drop:after")
        );
    }

    #[test]
    fn every_so_many_steps_all_kinds_of_resets_come() {
        let mut cuts = Cuts::every(NonZeroU64::new(10).expect("above 0"));
        let step = |number| Step {
            number,
            at: std::time::Duration::ZERO,
            conn: 1,
            side: Side::Active,
            kind: StepKind::PostRecv,
        };
        let faults: std::collections::HashSet<Fault> = (1..=60).filter_map(|n| cuts.at(&step(n))).collect();
        assert_eq!(faults.len(), 4);
    }
}
