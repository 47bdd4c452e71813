//! What to run, as a person or a failed run says it: seed, world, workload and cuts.
//!
//! # Operation
//! A [`Spec`] has all that [`crate::rig::run`] needs, and is written and read as arguments of `rpcrdma sim`. The same spec
//! is the same run, event by event.

use std::{fmt, str::FromStr, sync::Arc};

use rpcrdma::fabric::{QpLimits, sim::Face};

use crate::{
    plan::Cuts,
    record::Keep,
    rig::{Outcome, Scenario, World, run},
    whims,
    workload::{self, Result},
};

/// Which world a workload runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weather {
    /// Quick, iWARP-like, and nothing breaks but what the cuts say.
    Quiet,
    /// InfiniBand-like without a second try for a message without a Receive, with short queues, few registrations, a grant
    /// of 2, completions one by one, and a server that waits for the client's confirmation. Nothing else breaks.
    Narrow,
    /// Every property comes from the seed, and so do the faults, if there are no cuts.
    Random,
}

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Workload {
    /// A CREATE and a REMOVE.
    Minute,
    /// A file is created, written, read, renamed and removed.
    Tiny,
    /// Three times Calls of every shape, at one time.
    Shapes,
    /// Twelve callers with four GETATTRs each.
    Burst,
    /// One or two clients with several workers, all operations and sizes, by the dice.
    Mixed,
    /// Several workers, and a server that stops and starts.
    Restarts,
    /// Clients of a server that does not keep the rules.
    Fickle,
    /// Clients that do not keep them, beside one that does.
    Hostile,
}

/// What is not a world, or not a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    what: &'static str,
    names: Vec<&'static str>,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no such {}; there are: {}", self.what, self.names.join(", "))
    }
}

impl std::error::Error for Unknown {}

impl Weather {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Quiet, Self::Narrow, Self::Random];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Narrow => "narrow",
            Self::Random => "random",
        }
    }

    /// A world of this kind.
    #[must_use]
    pub fn scenario(self, seed: u64) -> Scenario {
        match self {
            Self::Quiet => Scenario::quiet(seed),
            Self::Random => Scenario::from_seed(seed),
            Self::Narrow => {
                let mut s = Scenario::quiet(seed);
                s.profile.face = Face::InfiniBand { rnr_retry: 0, rnr_timer: 1 };
                s.profile.late_ready = true;
                s.profile.remote_invalidation = false;
                s.profile.batch = 1;
                s.profile.limits = QpLimits { sends: 2, exposed: 3, ..QpLimits::default() };
                s.server.rdma.grant = 2;
                s
            }
        }
    }
}

impl FromStr for Weather {
    type Err = Unknown;

    fn from_str(text: &str) -> std::result::Result<Self, Unknown> {
        let unknown = || Unknown { what: "world", names: Self::ALL.map(Self::name).to_vec() };
        Self::ALL.into_iter().find(|w| w.name() == text).ok_or_else(unknown)
    }
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Minute,
        Self::Tiny,
        Self::Shapes,
        Self::Burst,
        Self::Mixed,
        Self::Restarts,
        Self::Fickle,
        Self::Hostile,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Tiny => "tiny",
            Self::Shapes => "shapes",
            Self::Burst => "burst",
            Self::Mixed => "mixed",
            Self::Restarts => "restarts",
            Self::Fickle => "fickle",
            Self::Hostile => "hostile",
        }
    }

    /// What a random world is made for: mixed work mostly, and now and then one of the others that are up to chance.
    #[must_use]
    pub fn by_seed(seed: u64) -> Self {
        match seed % 8 {
            5 => Self::Restarts,
            6 => Self::Fickle,
            7 => Self::Hostile,
            _ => Self::Mixed,
        }
    }

    async fn work(self, w: Arc<World>) -> Result {
        match self {
            Self::Minute => workload::minute(w).await,
            Self::Tiny => workload::tiny(w).await,
            Self::Shapes => workload::shapes(w).await,
            Self::Burst => workload::burst(w).await,
            Self::Mixed => workload::mixed(w).await,
            Self::Restarts => whims::restarts(w).await,
            Self::Fickle => whims::fickle(w).await,
            Self::Hostile => whims::hostile(w).await,
        }
    }
}

impl FromStr for Workload {
    type Err = Unknown;

    fn from_str(text: &str) -> std::result::Result<Self, Unknown> {
        let unknown = || Unknown { what: "workload", names: Self::ALL.map(Self::name).to_vec() };
        Self::ALL.into_iter().find(|w| w.name() == text).ok_or_else(unknown)
    }
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Where all chance comes from.
    pub seed: u64,
    /// The world.
    pub world: Weather,
    /// What clients do in it.
    pub workload: Workload,
    /// What breaks. `None`: what the world says.
    pub cuts: Option<Cuts>,
}

impl Spec {
    /// A random world and random work.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        Self { seed, world: Weather::Random, workload: Workload::Mixed, cuts: None }
    }

    /// The same, with these faults and no others.
    #[must_use]
    pub fn with_cuts(&self, cuts: Cuts) -> Self {
        Self { cuts: Some(cuts), ..self.clone() }
    }

    /// The scenario of this spec.
    #[must_use]
    pub fn scenario(&self, keep: Keep) -> Scenario {
        let mut scenario = self.world.scenario(self.seed);
        scenario.keep = keep;
        scenario.replay = Some(self.to_string());
        if let Some(cuts) = &self.cuts {
            scenario.faults = Box::new(cuts.clone());
            scenario.plan = cuts.in_words();
        }
        scenario
    }

    /// Runs it. Every operation has to succeed, and what must not be repeated is executed once.
    #[must_use]
    pub fn run(&self, keep: Keep) -> Outcome {
        run(self.scenario(keep), async |w: Arc<World>| {
            self.workload.work(Arc::clone(&w)).await?;
            w.executed_once()
        })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, world, workload, cuts } = self;
        write!(f, "--seed {seed} --world {} --workload {}", world.name(), workload.name())?;
        match cuts {
            Some(cuts) => write!(f, " --cuts {cuts}"),
            None => Ok(()),
        }
    }
}
