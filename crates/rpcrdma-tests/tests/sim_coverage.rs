//! Every pair of state and event is reached, or known to be out of reach.

use std::env;

use rpcrdma_sim::{
    campaign::{self, Totals},
    coverage::{Pair, tables},
    spec::{Spec, Weather, Workload},
};

fn all(seeds: u64) -> Totals {
    let worlds = [
        (Workload::Mixed, Weather::Random),
        (Workload::Restarts, Weather::Random),
        (Workload::Fickle, Weather::Random),
        (Workload::Hostile, Weather::Random),
    ];
    let specs = (1..=seeds)
        .flat_map(|seed| worlds.map(|(workload, world)| Spec { seed, world, workload, cuts: None }));
    campaign::run(2, specs, |totals| totals.failed == 0)
}

#[test]
fn every_pair_of_state_and_event_is_reached_or_known_to_be_out_of_reach() {
    let seeds = env::var("RPCRDMA_SIM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(150);
    let totals = all(seeds);
    totals.check();
    let sum = totals.coverage.sum();
    println!("{} runs: {sum}", totals.runs);
    for table in tables() {
        println!(
            "\n{:<22}{}",
            table.name,
            table.states.iter().map(|s| format!("{s:>12}")).collect::<String>()
        );
        for (e, event) in table.events.iter().enumerate() {
            let cell = |s| match totals.coverage.pair(&table, e, s) {
                Pair::Reached(n) => n.to_string(),
                Pair::Never(_) => "·".to_owned(),
                Pair::Rare(_) => "-".to_owned(),
                Pair::Missing => "MISSING".to_owned(),
                Pair::Surprise(n, _) => format!("!{n}"),
            };
            println!(
                "{event:<22}{}",
                (0..table.states.len()).map(|s| format!("{:>12}", cell(s))).collect::<String>()
            );
        }
    }
    assert!(sum.surprises.is_empty(), "cannot happen, and did:\n  {}", sum.surprises.join("\n  "));
    assert!(sum.missing.is_empty(), "not reached:\n  {}", sum.missing.join("\n  "));
}
