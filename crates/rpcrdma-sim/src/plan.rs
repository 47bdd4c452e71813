//! Plans of faults.

use std::{collections::BTreeMap, fmt};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use rpcrdma::fabric::sim::{Fault, Faults, Side, Step, StepKind, What, When};

/// Faults at given steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cuts(BTreeMap<u64, Fault>);

impl Cuts {
    /// These faults.
    #[must_use]
    pub fn new(cuts: impl IntoIterator<Item = (u64, Fault)>) -> Self {
        Self(cuts.into_iter().collect())
    }
}

impl fmt::Display for Cuts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (step, fault)) in self.0.iter().enumerate() {
            write!(f, "{}step {step}: {fault}", if i > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

impl Faults for Cuts {
    fn at(&mut self, step: &Step) -> Option<Fault> {
        self.0.get(&step.number).copied()
    }
}

/// Every way in which a connection can be reset at a step.
pub fn resets() -> impl Iterator<Item = Fault> {
    [When::Before, When::After].into_iter().flat_map(|when| {
        [Side::Active, Side::Passive].into_iter().flat_map(move |first| {
            [false, true].map(|drop| Fault { when, what: What::Reset { first, drop } })
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
