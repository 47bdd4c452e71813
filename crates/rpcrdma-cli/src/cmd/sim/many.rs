//! Many runs: seeds, or cuts.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rpcrdma_sim::{
    campaign::{self, Totals},
    coverage::{self, Coverage, Pair},
    plan::{Cuts, pairs, singles},
    record::Keep,
    spec::{Spec, Weather, Workload},
};
use serde::Serialize;

use super::{Sim, picture};
use crate::{
    failure::{EXIT_FAILURE, EXIT_INTERRUPTED, Failure, Outcome},
    out::{self, Out},
    units,
};

/// When enough seeds have been run.
pub(super) enum Until {
    Seeds(u64),
    Time(Duration),
}

/// What came out.
#[derive(Serialize)]
struct Record {
    first_seed: u64,
    runs: u64,
    seconds: f64,
    runs_per_second: f64,
    steps: u64,
    events: u64,
    faults: u64,
    connections: u64,
    calls: u64,
    retransmissions: u64,
    pairs_reached: u64,
    pairs_not_reached: Vec<String>,
    pairs_that_cannot_happen: u64,
    pairs_that_cannot_happen_and_did: Vec<String>,
    failed: u64,
    failures: Vec<Broken>,
}

#[derive(Serialize)]
struct Broken {
    run: String,
    rule: String,
}

/// Runs one seed after another.
pub(super) fn seeds(sim: &Sim, spec: Spec, until: Until) -> Outcome {
    let first = match (&until, sim.seed) {
        (_, Some(seed)) => seed,
        (Until::Seeds(_), None) => 1,
        (Until::Time(_), None) => fresh_seed(),
    };
    let (most, end) = match until {
        Until::Seeds(n) => (n, None),
        Until::Time(t) => (u64::MAX, Some(t)),
    };
    let seeds = (0..most).map(|n| {
        let seed = first.wrapping_add(n);
        let usual = if spec.world == Weather::Random { Workload::by_seed(seed) } else { spec.workload };
        Spec { seed, workload: sim.workload.unwrap_or(usual), ..spec.clone() }
    });
    let title = format!(
        "seeds from {first} on, {} work in {} worlds{}",
        sim.workload.map_or("all kinds of", Workload::name),
        spec.world.name(),
        spec.cuts.as_ref().map_or_else(String::new, |cuts| format!(", {}", cuts.in_words())),
    );
    campaign(sim, first, &title, seeds, if end.is_some() { None } else { Some(most) }, end)
}

/// A first seed that no earlier run has had.
fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_secs().wrapping_mul(1_000_000)
}

/// Runs one seed with one cut, or with two, in every place.
pub(super) fn cuts(sim: &Sim, spec: &Spec, count: usize) -> Outcome {
    let length = |cuts: &Cuts| spec.with_cuts(cuts.clone()).run(Keep::Nothing).steps;
    let steps = length(&Cuts::default());
    let plans: Vec<Cuts> = if count == 1 { singles(steps).collect() } else { pairs(steps, length).collect() };
    let title = format!(
        "{} of the {} steps of seed {}: {} work in a {} world",
        if count == 1 { "a reset at each" } else { "two resets, at each pair" },
        units::count(steps),
        spec.seed,
        spec.workload.name(),
        spec.world.name(),
    );
    let most = plans.len() as u64;
    let specs = plans.into_iter().map(|cuts| spec.with_cuts(cuts));
    campaign(sim, spec.seed, &title, specs, Some(most), None)
}

fn campaign<S>(
    sim: &Sim,
    first: u64,
    title: &str,
    specs: S,
    most: Option<u64>,
    time: Option<Duration>,
) -> Outcome
where
    S: Iterator<Item = Spec> + Send,
{
    let mut out = Out::new();
    if sim.talks() {
        out.line(format!("  {:<14} {title}", "simulated"))?;
        out.flush()?;
    }
    let bar = bar(sim, most);
    let interrupted = &*Box::leak(Box::new(AtomicBool::new(false)));
    std::thread::spawn(|| watch_for_interrupt(interrupted));
    let started = Instant::now();
    let totals = campaign::run(sim.jobs(), specs, |totals| {
        draw(&bar, totals, started.elapsed(), time);
        !interrupted.load(Ordering::Relaxed) && time.is_none_or(|t| started.elapsed() < t)
    });
    let took = started.elapsed();
    bar.finish_and_clear();
    out::set_bar(None);
    if sim.json {
        out.json(&record(first, &totals, took))?;
    } else {
        report(sim, &mut out, &totals, took)?;
    }
    out.flush()?;
    Ok(match (totals.failed, interrupted.load(Ordering::Relaxed)) {
        (1.., _) => ExitCode::from(EXIT_FAILURE),
        (0, true) => ExitCode::from(EXIT_INTERRUPTED),
        (0, false) => ExitCode::SUCCESS,
    })
}

/// Ctrl-C ends a campaign with its report; a second one ends it at once.
fn watch_for_interrupt(interrupted: &AtomicBool) {
    let Ok(runtime) = super::super::runtime() else { return };
    runtime.block_on(async {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.store(true, Ordering::Relaxed);
        }
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(EXIT_INTERRUPTED.into());
        }
    });
}

fn bar(sim: &Sim, most: Option<u64>) -> ProgressBar {
    if !sim.talks() || !out::stderr_is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(most.unwrap_or(100)), ProgressDrawTarget::stderr_with_hz(5));
    let style = ProgressStyle::with_template("{wide_bar:.cyan/dim} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("━╸─"));
    out::set_bar(Some(bar.clone()));
    bar
}

fn draw(bar: &ProgressBar, totals: &Totals, passed: Duration, time: Option<Duration>) {
    match time {
        Some(t) => bar.set_position((passed.as_secs_f64() / t.as_secs_f64() * 100.0) as u64),
        None => bar.set_position(totals.runs),
    }
    let rate = units::per_second(totals.runs, passed);
    bar.set_message(format!(
        "{}, {rate:.0}/s{}",
        units::things(totals.runs, "run", "runs"),
        match totals.failed {
            0 => String::new(),
            n => format!(", {n} FAILED"),
        }
    ));
}

fn report(sim: &Sim, out: &mut Out, totals: &Totals, took: Duration) -> Result<(), Failure> {
    let sum = totals.coverage.sum();
    if sim.talks() {
        let rate = units::per_second(totals.runs, took);
        let rows = [
            (
                "runs",
                format!(
                    "{} in {}: {rate:.0} per second on {}",
                    units::count(totals.runs),
                    units::time(took),
                    units::things(sim.jobs() as u64, "thread", "threads"),
                ),
            ),
            ("steps", units::count(totals.steps)),
            ("events", format!("{}, all rules checked after each", units::count(totals.events))),
            ("faults", units::count(totals.faults)),
            ("connections", units::count(totals.connections)),
            (
                "calls",
                format!("{}, {} of them again", units::count(totals.calls), units::count(totals.again)),
            ),
            ("coverage", sum.to_string()),
        ];
        for (label, value) in rows {
            out.line(format!("  {label:<14} {value}"))?;
        }
    }
    if sim.coverage {
        table(out, &totals.coverage)?;
        for pair in sum.missing.iter().chain(&sum.rare) {
            out.line(format!("  not reached: {pair}"))?;
        }
    }
    for pair in &sum.surprises {
        out.line(format!("  {} {pair}", out.paint("1;31", "cannot happen, and did:")))?;
    }
    if totals.failed == 0 {
        if sim.talks() {
            let pass = out.paint("1;32", "PASS");
            out.line(format!(
                "{pass}  every call was answered, once, with the right bytes, and no rule was broken"
            ))?;
        }
        return Ok(());
    }
    let fail = out.paint("1;31", "FAIL");
    out.line(format!("{fail}  a rule was broken in {} of {} runs", totals.failed, totals.runs))?;
    for failure in totals.failures.iter().take(10) {
        out.line(format!("  {failure}"))?;
    }
    if let Some(shortest) = totals.shortest() {
        out.line("")?;
        picture::show(sim, &shortest.spec, Keep::Last(super::KEPT), out, true)?;
    }
    Ok(())
}

fn record(first: u64, totals: &Totals, took: Duration) -> Record {
    let sum = totals.coverage.sum();
    Record {
        first_seed: first,
        runs: totals.runs,
        seconds: took.as_secs_f64(),
        runs_per_second: units::per_second(totals.runs, took),
        steps: totals.steps,
        events: totals.events,
        faults: totals.faults,
        connections: totals.connections,
        calls: totals.calls,
        retransmissions: totals.again,
        pairs_reached: sum.reached,
        pairs_not_reached: sum.missing.into_iter().chain(sum.rare).collect(),
        pairs_that_cannot_happen: sum.never,
        pairs_that_cannot_happen_and_did: sum.surprises,
        failed: totals.failed,
        failures: (totals.failures.iter())
            .map(|f| Broken { run: f.spec.to_string(), rule: f.why.clone() })
            .collect(),
    }
}

/// Shows how often each pair of each table was reached.
pub(super) fn table(out: &mut Out, coverage: &Coverage) -> Result<(), Failure> {
    for table in coverage::tables() {
        out.line("")?;
        let states: String = table.states.iter().map(|s| format!("{s:>12}")).collect();
        out.line(out.paint("1", &format!("  {:<22}{states}", table.name)))?;
        for (e, event) in table.events.iter().enumerate() {
            let cells: String = (0..table.states.len())
                .map(|s| match coverage.pair(&table, e, s) {
                    Pair::Reached(n) => out.paint("32", &format!("{:>12}", units::count(n))),
                    Pair::Never(_) => out.paint("2", &format!("{:>12}", "·")),
                    Pair::Rare(_) => out.paint("2", &format!("{:>12}", "-")),
                    Pair::Missing => out.paint("33", &format!("{:>12}", "0")),
                    Pair::Surprise(n, _) => out.paint("1;31", &format!("{:>12}", format!("!{n}"))),
                })
                .collect();
            out.line(format!("  {event:<22}{cells}"))?;
        }
    }
    out.line("")
}
