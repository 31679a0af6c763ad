//! The simulator in `cargo test`: many seeds, and the promise that one seed is one run.

use pstorage_tests::simulator::{Fault, Options, Place, Plan, What, all_cores, campaign, run, run_plan};
use std::time::Duration;

const SEEDS: u64 = 2000;

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

/// A server that was cut off while another was added does not know where that one is, and must answer it all the same: it
/// is the master by now, as a master that is removed hands over to the newest.
#[test]
fn a_metadata_server_that_missed_an_addition_follows_the_added_one() {
    let options = Options::default();
    for seed in 1..=4 {
        let mut plan = Plan::of_seed(seed, options.chaos);
        plan.shape.mds = 4;
        let fault = |at_ms, lasts_ms, what| {
            let (at, lasts) = (Duration::from_millis(at_ms), Duration::from_millis(lasts_ms));
            Fault { at, lasts, what }
        };
        plan.faults = vec![
            fault(1000, 8000, What::Isolation(Place::Mds(0))),
            fault(3000, 0, What::AddMds),
            fault(5000, 0, What::RemoveMds(1)),
            fault(6000, 0, What::RemoveMds(2)),
        ];
        run_plan(&plan, &options).unwrap_or_else(|failure| panic!("{failure}"));
    }
}
