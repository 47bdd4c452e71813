//! Random worlds, random faults: thousands of seeds. `RPCRDMA_SIM_SEED` runs one of them, and
//! `RPCRDMA_SIM_SECONDS` says how long the long run takes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic anywhere")]

use std::{
    env,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rpcrdma_sim::{
    rig::{Outcome, Scenario, run},
    workload,
};

/// What many runs come to.
#[derive(Default)]
struct Sum {
    runs: u64,
    steps: u64,
    faults: u64,
    connections: u64,
    calls: u64,
    again: u64,
    failures: Vec<Outcome>,
}

fn one(seed: u64) -> Outcome {
    run(Scenario::from_seed(seed), workload::mixed)
}

/// Runs seeds from `first` on, on both cores, while `go_on` says so.
fn many(first: u64, go_on: impl Fn(u64) -> bool + Sync) -> Sum {
    many_until(first, go_on, &AtomicBool::new(false))
}

/// The same; `failed` is set when one fails.
fn many_until(first: u64, go_on: impl Fn(u64) -> bool + Sync, failed: &AtomicBool) -> Sum {
    let next = AtomicU64::new(first);
    let sum = Mutex::new(Sum::default());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !go_on(seed) {
                        return;
                    }
                    let outcome = one(seed);
                    let mut sum = sum.lock().unwrap();
                    sum.runs += 1;
                    sum.steps += outcome.steps;
                    sum.faults += outcome.faults;
                    sum.connections += outcome.connections;
                    sum.calls += outcome.calls.0;
                    sum.again += outcome.calls.1;
                    if outcome.verdict.is_err() {
                        failed.store(true, Ordering::Relaxed);
                        sum.failures.push(outcome);
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

fn report(sum: &Sum, took: Duration) {
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
    for failure in &sum.failures {
        println!("seed {}: {}", failure.seed, failure.verdict.as_ref().unwrap_err());
    }
    if let Some(first) = sum.failures.iter().min_by_key(|f| f.steps) {
        first.check();
    }
}

#[test]
fn two_thousand_seeds() {
    if let Ok(seed) = env::var("RPCRDMA_SIM_SEED") {
        let outcome = one(seed.parse().expect("RPCRDMA_SIM_SEED is a number"));
        println!("{outcome}");
        return outcome.check();
    }
    let start = Instant::now();
    let sum = many(1, |seed| seed <= 2000);
    report(&sum, start.elapsed());
    assert!(sum.faults > 5000 && sum.again > 5000, "too little was broken: {} faults", sum.faults);
}

/// Looks for the first seed that fails; for mistakes that were made on purpose.
#[test]
#[ignore = "fails only for a program with a mistake in it"]
fn hunt() {
    let seeds = env::var("RPCRDMA_SIM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1000);
    let found = AtomicBool::new(false);
    let sum = many_until(1, |seed| seed <= seeds && !found.load(Ordering::Relaxed), &found);
    if let Some(first) = sum.failures.iter().min_by_key(|f| f.seed) {
        println!("FOUND by seed {}: {}", first.seed, first.verdict.as_ref().unwrap_err());
        panic!("{first}");
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
