//! Every single cut, and every pair of cuts, of small workloads: before and after every step, on either side, with and
//! without what is under way.
#![allow(clippy::unwrap_used, reason = "a failed test may panic anywhere")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rpcrdma::fabric::{
    QpLimits,
    sim::{Face, Fault, Side, What, When},
};
use rpcrdma_sim::{
    plan::{self, Cuts},
    rig::{Outcome, Scenario, World, run},
    workload,
};

type Workload = fn(Scenario) -> Outcome;

fn tiny(s: Scenario) -> Outcome {
    run(s, async |w: Arc<World>| {
        workload::tiny(Arc::clone(&w)).await?;
        w.executed_once()
    })
}

fn minute(s: Scenario) -> Outcome {
    run(s, async |w: Arc<World>| {
        workload::minute(Arc::clone(&w)).await?;
        w.executed_once()
    })
}

fn shapes(s: Scenario) -> Outcome {
    run(s, async |w: Arc<World>| {
        workload::shapes(Arc::clone(&w)).await?;
        w.executed_once()
    })
}

/// Runs a workload under each plan, and returns how many there were.
fn every(scenario: impl Fn() -> Scenario + Sync, workload: Workload, plans: &[Cuts]) -> usize {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<Outcome>> = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(cuts) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = workload(Scenario {
                        faults: Box::new(cuts.clone()),
                        plan: cuts.to_string(),
                        ..scenario()
                    });
                    if outcome.verdict.is_err() {
                        failed.lock().unwrap().get_or_insert(outcome);
                        return;
                    }
                }
            });
        }
    });
    if let Some(outcome) = failed.into_inner().unwrap() {
        outcome.check();
    }
    plans.len()
}

fn steps(scenario: Scenario, workload: Workload) -> u64 {
    let outcome = workload(scenario);
    outcome.check();
    outcome.steps
}

fn infiniband() -> Scenario {
    let mut s = Scenario::quiet(21);
    s.profile.face = Face::InfiniBand { rnr_retry: 0, rnr_timer: 1 };
    s.profile.late_ready = true;
    s.profile.remote_invalidation = false;
    s.profile.batch = 1;
    s.profile.limits = QpLimits { sends: 2, exposed: 3, ..QpLimits::default() };
    s.server.rdma.grant = 2;
    s
}

fn singles(steps: u64) -> Vec<Cuts> {
    (1..=steps).flat_map(|step| plan::resets().map(move |fault| Cuts::new([(step, fault)]))).collect()
}

#[test]
fn every_single_cut_of_one_file() {
    let plans = singles(steps(Scenario::quiet(20), tiny));
    println!("{} plans", every(|| Scenario::quiet(20), tiny, &plans));
}

#[test]
fn every_single_cut_of_one_file_on_another_fabric() {
    let plans = singles(steps(infiniband(), tiny));
    println!("{} plans", every(infiniband, tiny, &plans));
}

#[test]
fn every_single_cut_of_every_shape() {
    let plans = singles(steps(infiniband(), shapes));
    // A third of them: the shapes take many steps.
    let plans: Vec<Cuts> = plans.into_iter().step_by(3).collect();
    println!("{} plans", every(infiniband, shapes, &plans));
}

/// The connection falls silent, or a device goes away, at every step.
#[test]
fn every_silence_and_every_removal() {
    for scenario in [|| Scenario::quiet(22), infiniband] {
        let mut plans = Vec::new();
        for step in 1..=steps(scenario(), minute) {
            for what in [
                What::Silence,
                What::Remove { side: Side::Active, down: 50 },
                What::Remove { side: Side::Passive, down: 2000 },
                What::Registration,
                What::Refuse,
            ] {
                plans.push(Cuts::new([(step, Fault { when: When::Before, what })]));
            }
        }
        println!("{} plans", every(scenario, minute, &plans));
    }
}

/// Two cuts: the second one anywhere behind the first, also while the first is still being dealt with.
#[test]
fn every_pair_of_cuts() {
    let count = steps(Scenario::quiet(23), minute);
    let mut plans = Vec::new();
    let faults: Vec<Fault> = plan::resets().collect();
    for first in 1..=count {
        // The run is longer by what the first cut costs.
        for second in first + 1..=count + 20 {
            for (nth, before) in faults.iter().enumerate() {
                let after = faults[(nth * 3 + (first + second) as usize) % faults.len()];
                plans.push(Cuts::new([(first, *before), (second, after)]));
            }
        }
    }
    println!("{count} steps, {} plans", every(|| Scenario::quiet(23), minute, &plans));
}
