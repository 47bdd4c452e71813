//! `rpcrdma sim`: the simulation, for people.

mod many;
mod picture;

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::Args;
use rpcrdma_sim::{
    plan::{BadCut, Cuts},
    record::Keep,
    spec::{Spec, Weather, Workload},
};

use self::many::Until;
use crate::{
    failure::{Failure, Outcome},
    out, units,
};

/// Run clients and servers on a simulated fabric, from a seed
///
/// The real client and the real server run on a fabric that exists in memory only, on virtual time, in one thread. Every
/// delay, order and fault follows from the seed, so a seed always does the same. After every event the rules of RFC 8166
/// are checked: credits, Receives, XIDs, memory; and in the end that every call was answered, once, with the right bytes.
///
/// Without options a thousand random worlds are run. With --seed, --cuts, --timeline or --svg one is, and shown: in the
/// ladder, ● is a Call that is outstanding, ○ a permit for another, and · room that no posted Receive backs. Steps have
/// numbers, which --cuts takes.
///
/// The exit status is 1 if a rule was broken. What it takes to see that again is printed.
#[derive(Args)]
#[command(after_help = "\
Examples:
  rpcrdma sim --timeline                    a connection begins: one Call, then the window opens
  rpcrdma sim --cuts 100=reset --timeline   it is cut, and begins again
  rpcrdma sim --cuts 100=reset --svg cut.svg
  rpcrdma sim --cuts each --workload tiny   cut before and after each single step
  rpcrdma sim --seed 17                     one random world
  rpcrdma sim --time 10m                    new random worlds for ten minutes

Cuts are a list with commas: STEP=reset[:client|:server][:drop][:after], STEP=silence, STEP=remove:server:MS,
STEP=registration, STEP=refuse, every=STEPS; or none, each (one reset, at every step in turn) or pairs (two).

Worlds: quiet, narrow (short queues, few credits), random. Workloads: minute, tiny, shapes, burst,
mixed, restarts (of the server), fickle (a server that breaks the rules), hostile (clients that do).")]
pub(crate) struct Sim {
    /// The seed; the first one, if there are many [default: 1, or by the clock with --time and --hours]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Run so many seeds
    #[arg(long, value_name = "N", conflicts_with_all = ["time", "hours"])]
    seeds: Option<u64>,

    /// Run new seeds for so long: 90s, 10m, 2h
    #[arg(long, value_name = "TIME", conflicts_with = "hours", value_parser = parse_time)]
    time: Option<Duration>,

    /// Run new seeds for so many hours
    #[arg(long, value_name = "H")]
    hours: Option<u32>,

    /// Seeds to run at one time [default: one per processor]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: Option<u32>,

    /// The world [default: random for seeds, quiet if --cuts or --timeline is all there is]
    #[arg(long, value_name = "WORLD")]
    world: Option<Weather>,

    /// What clients do [default: by the seed in random worlds, mostly mixed; burst in others]
    #[arg(long, value_name = "WORKLOAD")]
    workload: Option<Workload>,

    /// What breaks, and at which step [default: what the world says]
    #[arg(long, value_name = "CUTS")]
    cuts: Option<Plan>,

    /// Show what happened, around the first fault
    #[arg(long, conflicts_with_all = ["seeds", "time", "hours"])]
    timeline: bool,

    /// Draw what happened, as an SVG
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "time", "hours"])]
    svg: Option<PathBuf>,

    /// Rows to show and to draw; 0 for all of them
    #[arg(long, value_name = "N", default_value_t = 60)]
    rows: usize,

    /// Show every event, also those that only a debugger wants to see
    #[arg(long)]
    events: bool,

    /// Show how often each state met each event; · is what cannot be, - what takes coincidences
    #[arg(long)]
    coverage: bool,

    /// One JSON object instead of a report
    #[arg(long)]
    json: bool,
}

/// What breaks: one plan, or a family of them.
#[derive(Clone, Debug)]
enum Plan {
    Cuts(Cuts),
    /// One reset, at every step in turn.
    Each,
    /// Two.
    Pairs,
}

impl FromStr for Plan {
    type Err = BadCut;

    fn from_str(text: &str) -> Result<Self, BadCut> {
        match text {
            "each" => Ok(Self::Each),
            "pairs" => Ok(Self::Pairs),
            cuts => cuts.parse().map(Self::Cuts),
        }
    }
}

/// Events that a run keeps for its timeline: more than any workload here makes.
const KEPT: usize = 1 << 20;

impl Sim {
    pub(super) fn run(self) -> Outcome {
        let shown = self.timeline || self.svg.is_some();
        let cuts = match &self.cuts {
            Some(Plan::Cuts(cuts)) => Some(cuts.clone()),
            _ => None,
        };
        let family = matches!(self.cuts, Some(Plan::Each | Plan::Pairs));
        let long = self.seeds.is_some() || self.time.is_some() || self.hours.is_some();
        if family && (long || shown) {
            return Err(Failure::usage("--cuts each and --cuts pairs are many runs of one seed already"));
        }
        let aimless = self.seed.is_none() && !long;
        let tame = aimless && (shown || self.cuts.is_some());
        let world = self.world.unwrap_or(if tame { Weather::Quiet } else { Weather::Random });
        let seed = self.seed.unwrap_or(1);
        let usual = if world == Weather::Random { Workload::by_seed(seed) } else { Workload::Burst };
        let spec = Spec { seed, world, workload: self.workload.unwrap_or(usual), cuts };
        if !family && !long && (self.seed.is_some() || shown || self.cuts.is_some()) {
            return picture::one(&self, &spec, Keep::Last(KEPT));
        }
        match self.cuts {
            Some(Plan::Each) => many::cuts(&self, &spec, 1),
            Some(Plan::Pairs) => many::cuts(&self, &spec, 2),
            _ => many::seeds(&self, spec, self.until()?),
        }
    }

    /// When enough seeds have been run.
    fn until(&self) -> Result<Until, Failure> {
        let hours = self.hours.map(|h| Duration::from_secs(u64::from(h) * 3600));
        match (self.time.or(hours), self.seeds) {
            (Some(time), _) if time.is_zero() => Err(Failure::usage("no time to run anything")),
            (Some(time), _) => Ok(Until::Time(time)),
            (None, seeds) => Ok(Until::Seeds(seeds.unwrap_or(1000))),
        }
    }

    fn jobs(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.jobs.map_or(cores, |n| n as usize)
    }

    /// Whether there is somebody to talk to.
    fn talks(&self) -> bool {
        !self.json && !out::quiet()
    }
}

/// Reads a time with a unit: `90s`, `10m`, `2h`; seconds without one.
fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || "a time is a number with a unit: 90s, 10m, 2h".to_owned();
    let text = text.trim();
    let (number, unit) = match text.strip_suffix(['m', 'h']) {
        Some(number) => (number, if text.ends_with('m') { 60.0 } else { 3600.0 }),
        None => (text, 1.0),
    };
    let seconds = units::parse_seconds(number).map_err(|_| wrong())?.as_secs_f64() * unit;
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("0.5m", 30)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "m", "10x", "-1s", "10ms"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
