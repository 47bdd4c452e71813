//! The simulator itself: it runs, it repeats, it shows what happened.

use rpcrdma_sim::{
    rig::{Scenario, run},
    workload,
};

#[test]
fn every_workload_runs_where_nothing_breaks() {
    run(Scenario::quiet(1), workload::minute).check();
    run(Scenario::quiet(2), workload::tiny).check();
    run(Scenario::quiet(3), workload::shapes).check();
    let mixed = run(Scenario::quiet(4), workload::mixed);
    mixed.check();
    assert_eq!((mixed.faults, mixed.calls.1), (0, 0), "nothing broke, so nothing was sent again");
}

#[test]
fn a_seed_replays() {
    for seed in 1..20 {
        let first = run(Scenario::from_seed(seed), workload::mixed);
        let second = run(Scenario::from_seed(seed), workload::mixed);
        assert_eq!((first.hash, first.steps), (second.hash, second.steps), "{first}\n{second}");
    }
}
