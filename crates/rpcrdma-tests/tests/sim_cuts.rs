//! Every single cut, and every pair of cuts, of small workloads: before and after every step, on either side, with and
//! without what is under way.

use rpcrdma::fabric::sim::{Fault, Side, What, When};
use rpcrdma_sim::{
    campaign,
    plan::{self, Cuts},
    record::Keep,
    spec::{Spec, Weather, Workload},
};

/// Runs a workload under each plan.
fn every(spec: &Spec, plans: Vec<Cuts>) {
    println!("{} plans", plans.len());
    let specs = plans.into_iter().map(|cuts| spec.with_cuts(cuts));
    campaign::run(2, specs, |totals| totals.failed == 0).check();
}

/// Steps of a run in which nothing breaks.
fn steps(spec: &Spec) -> u64 {
    let outcome = spec.run(Keep::for_tests());
    outcome.check();
    outcome.steps
}

fn spec(seed: u64, world: Weather, workload: Workload) -> Spec {
    Spec { seed, world, workload, cuts: None }
}

#[test]
fn every_single_cut_of_one_file() {
    let spec = spec(20, Weather::Quiet, Workload::Tiny);
    every(&spec, plan::singles(steps(&spec)).collect());
}

#[test]
fn every_single_cut_of_one_file_on_another_fabric() {
    let spec = spec(21, Weather::Narrow, Workload::Tiny);
    every(&spec, plan::singles(steps(&spec)).collect());
}

#[test]
fn every_single_cut_of_every_shape() {
    let spec = spec(21, Weather::Narrow, Workload::Shapes);
    every(&spec, plan::singles(steps(&spec)).collect());
}

/// The connection falls silent, or a device goes away, at every step.
#[test]
fn every_silence_and_every_removal() {
    for world in [Weather::Quiet, Weather::Narrow] {
        let spec = spec(22, world, Workload::Minute);
        let mut plans = Vec::new();
        for step in 1..=steps(&spec) {
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
        every(&spec, plans);
    }
}

/// Two cuts: the second one anywhere behind the first, also while the first is still being dealt with. Here in one or two
/// of the eight ways in which it can come, in turn; `rpcrdma sim --cuts pairs --workload minute` tries all of them.
#[test]
fn every_pair_of_cuts() {
    let spec = spec(23, Weather::Quiet, Workload::Minute);
    let length = |cuts: &Cuts| spec.with_cuts(cuts.clone()).run(Keep::Nothing).steps;
    // One short of the number of ways, so that each pair of places keeps at least one.
    let plans = plan::pairs(steps(&spec), length).step_by(7).collect();
    every(&spec, plans);
}
