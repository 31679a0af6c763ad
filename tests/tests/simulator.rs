//! The simulator in `cargo test`: many seeds, and the promise that one seed is one run.

use pstorage_tests::simulator::{Fault, Options, Plan, What, all_cores, campaign, run, run_plan};
use std::time::Duration;

const SEEDS: u64 = 500;

#[test]
fn the_seeds_hold() {
    let totals = campaign(1..SEEDS + 1, &Options::default(), all_cores(), |t| t.failures.is_empty());
    println!("simulator: {totals}");
    if let Some(failure) = totals.failures.first() {
        panic!("{failure}");
    }
    assert_eq!(totals.seeds, SEEDS);
    assert!(
        totals.done_ops > 500 * SEEDS && totals.faults.len() >= 9,
        "the simulator does its work: {totals}"
    );
}

#[test]
fn one_seed_is_one_run() {
    for seed in [3, 104] {
        let run = || run(seed, &Options::default()).unwrap_or_else(|failure| panic!("{failure}"));
        let (first, again) = (run(), run());
        assert_eq!(
            (first.trace, first.events, first.done_ops),
            (again.trace, again.events, again.done_ops),
            "seed {seed}: two runs differ: something depends on more than the seed"
        );
    }
}

/// The vote of a removed server is needed until raft has let it go.
#[test]
fn metadata_servers_can_be_removed_down_to_one() {
    let options = Options::default();
    for (seed, apart_ms) in [(1, 20), (2, 400), (3, 4000)] {
        let mut plan = Plan::of_seed(seed, options.chaos);
        plan.shape.mds = 3;
        let remove = |n| Fault {
            at: Duration::from_millis(1000 + (2 - n) as u64 * apart_ms),
            lasts: Duration::ZERO,
            what: What::RemoveMds(n),
        };
        plan.faults = vec![remove(2), remove(1)];
        run_plan(&plan, &options).unwrap_or_else(|failure| panic!("{apart_ms} ms apart: {failure}"));
    }
}
