//! Random worlds, random faults: thousands of seeds. `RPCRDMA_SIM_SEED` runs one of them, and
//! `RPCRDMA_SIM_SECONDS` says how long the long run takes.
#![allow(clippy::expect_used, reason = "a failed test may panic anywhere")]

use std::{
    env,
    time::{Duration, Instant},
};

use rpcrdma_sim::{
    campaign::{self, Totals},
    record::Keep,
    spec::Spec,
};

/// Runs seeds from `first` on, on both cores, while `go_on` says so.
fn many(first: u64, go_on: impl Fn(&Totals) -> bool + Sync) -> Totals {
    campaign::run(2, (first..).map(Spec::random), go_on)
}

fn report(sum: &Totals, took: Duration) {
    println!(
        "{} seeds in {:.1} s ({:.0} per second): {} steps, {} faults, {} connections, {} Calls, {} of them again",
        sum.runs,
        took.as_secs_f64(),
        sum.runs as f64 / took.as_secs_f64(),
        sum.steps,
        sum.faults,
        sum.connections,
        sum.calls,
        sum.again
    );
    sum.check();
}

#[test]
fn two_thousand_seeds() {
    if let Ok(seed) = env::var("RPCRDMA_SIM_SEED") {
        let outcome =
            Spec::random(seed.parse().expect("RPCRDMA_SIM_SEED is a number")).run(Keep::for_tests());
        println!("{outcome}");
        return outcome.check();
    }
    let start = Instant::now();
    let sum = campaign::run(2, (1..=2000).map(Spec::random), |_| true);
    report(&sum, start.elapsed());
    assert!(sum.faults > 5000 && sum.again > 5000, "too little was broken: {} faults", sum.faults);
}

/// Looks for the first seed that fails; for mistakes that were made on purpose.
#[test]
#[ignore = "fails only for a program with a mistake in it"]
fn hunt() {
    let seeds = env::var("RPCRDMA_SIM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1000);
    let sum = campaign::run(2, (1..=seeds).map(Spec::random), |totals| totals.failed == 0);
    if let Some(first) = sum.failures.iter().min_by_key(|f| f.spec.seed) {
        println!("FOUND by seed {}: {}", first.spec.seed, first.why);
        sum.check();
    }
    println!("NOT FOUND by {} seeds", sum.runs);
}

#[test]
#[ignore = "long run"]
fn as_many_seeds_as_there_is_time() {
    let seconds = env::var("RPCRDMA_SIM_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(600);
    let start = Instant::now();
    let until = start + Duration::from_secs(seconds);
    let sum = many(1_000_000, |_| Instant::now() < until);
    report(&sum, start.elapsed());
}
