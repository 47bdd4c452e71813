//! One run, shown.

use std::process::ExitCode;

use rpcrdma_sim::{
    coverage::Coverage,
    record::Keep,
    rig,
    spec::Spec,
    svg,
    timeline::{Detail, Line, Row, Timeline},
};
use serde::Serialize;

use super::{Sim, many};
use crate::{
    failure::{EXIT_FAILURE, Failure, Outcome},
    out::{self, Out},
    units,
};

/// What came out.
#[derive(Serialize)]
struct Record<'a> {
    run: String,
    plan: &'a str,
    broken: Option<&'a str>,
    steps: u64,
    events: u64,
    faults: u64,
    connections: u64,
    calls: u64,
    retransmissions: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<Vec<Happened<'a>>>,
}

/// A row of the timeline.
#[derive(Serialize)]
struct Happened<'a> {
    ms: u64,
    step: u64,
    connection: u64,
    side: &'static str,
    what: &'a str,
    client_receives: usize,
    granted: Option<u32>,
    window: usize,
    outstanding: usize,
    permits: usize,
    server_receives: usize,
    held: usize,
}

impl<'a> From<&'a Row> for Happened<'a> {
    fn from(row: &'a Row) -> Self {
        let n = &row.numbers;
        Self {
            ms: row.at.as_millis() as u64,
            step: row.step,
            connection: row.conn,
            side: if row.side == rpcrdma::fabric::sim::Side::Active { "client" } else { "server" },
            what: &row.words,
            client_receives: n.posted[0],
            granted: n.granted,
            window: n.window,
            outstanding: n.outstanding,
            permits: n.permits,
            server_receives: n.posted[1],
            held: n.held,
        }
    }
}

/// Runs a spec and shows what happened.
pub(super) fn one(sim: &Sim, spec: &Spec, keep: Keep) -> Outcome {
    let mut out = Out::new();
    let failed = show(sim, spec, keep, &mut out, false)?;
    out.flush()?;
    Ok(if failed { ExitCode::from(EXIT_FAILURE) } else { ExitCode::SUCCESS })
}

/// The same, on an output that others print to as well. Whether a rule was broken. `again`: it is known to be.
pub(super) fn show(sim: &Sim, spec: &Spec, keep: Keep, out: &mut Out, again: bool) -> Result<bool, Failure> {
    let outcome = spec.run(keep);
    let broken = outcome.verdict.as_ref().err().map(String::as_str);
    let detail = if sim.events { Detail::All } else { Detail::Story };
    let rows = outcome.timeline.rows(detail);
    let most = if sim.rows == 0 { rows.len() } else { sim.rows };
    let window = Timeline::window(&rows, most);
    let (before, after) = (window.start, rows.len() - window.end);
    if let Some(file) = &sim.svg {
        let title = format!("rpcrdma sim {spec}");
        let subtitle = broken.map_or_else(|| outcome.plan.clone(), |why| format!("BROKEN: {why}"));
        std::fs::write(file, svg::draw(&title, &subtitle, &rows, window.clone()))
            .map_err(|e| Failure::of(file.display(), e))?;
    }
    let rows = rows.get(window).unwrap_or_default();
    if sim.json {
        out.json(&Record {
            run: spec.to_string(),
            plan: &outcome.plan,
            broken,
            steps: outcome.steps,
            events: outcome.events,
            faults: outcome.faults,
            connections: outcome.connections,
            calls: outcome.calls.0,
            retransmissions: outcome.calls.1,
            timeline: sim.timeline.then(|| rows.iter().map(Happened::from).collect()),
        })?;
        return Ok(broken.is_some());
    }
    if sim.timeline || broken.is_some() {
        ladder(out, rows, (before, after))?;
    }
    if sim.coverage {
        many::table(out, &outcome.coverage)?;
    }
    if !again && !out::quiet() {
        report(out, spec, &outcome)?;
    }
    if let Some(file) = sim.svg.as_ref().filter(|_| sim.talks()) {
        out.line(format!("  {:<14} {}", "drawn in", file.display()))?;
    }
    match broken {
        None if again || out::quiet() => {}
        None => {
            let sum = "every call was answered, once, with the right bytes, and no rule was broken";
            out.line(format!("{}  {sum}", out.paint("1;32", "PASS")))?;
        }
        Some(why) => {
            out.line(format!("{}  {why}", out.paint("1;31", "FAIL")))?;
            out.line(format!("      again: rpcrdma sim {spec} --timeline"))?;
        }
    }
    Ok(broken.is_some())
}

fn ladder(out: &mut Out, rows: &[Row], (before, after): (usize, usize)) -> Result<(), Failure> {
    let print = |out: &mut Out, line: &Line| {
        let text: String = line.iter().map(|(tone, text)| out.paint(tone.sgr(), text)).collect();
        out.line(text.trim_end())
    };
    print(out, &Timeline::heading())?;
    if before > 0 {
        out.line(format!("{:>7} {} before", "...", units::things(before as u64, "row", "rows")))?;
    }
    for row in rows {
        print(out, &Timeline::line(row))?;
    }
    if after > 0 {
        let more = units::things(after as u64, "more row", "more rows");
        out.line(format!("{:>7} {more}; --rows 0 shows all", "..."))?;
    }
    out.line("")
}

fn report(out: &mut Out, spec: &Spec, outcome: &rig::Outcome) -> Result<(), Failure> {
    let rows = [
        ("run", spec.to_string()),
        ("plan", outcome.plan.clone()),
        (
            "steps",
            format!("{}, {}", units::count(outcome.steps), units::things(outcome.faults, "fault", "faults")),
        ),
        ("connections", units::count(outcome.connections)),
        (
            "calls",
            format!("{}, {} of them again", units::count(outcome.calls.0), units::count(outcome.calls.1)),
        ),
        ("coverage", covered(&outcome.coverage)),
    ];
    for (label, value) in rows {
        out.line(format!("  {label:<14} {value}"))?;
    }
    Ok(())
}

/// Pairs that were reached, in short.
fn covered(coverage: &Coverage) -> String {
    let sum = coverage.sum();
    format!(
        "{} of {} pairs of state and event",
        sum.reached,
        sum.reached + (sum.rare.len() + sum.missing.len()) as u64
    )
}
