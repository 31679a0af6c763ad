//! The simulator in `cargo test`: 200 seeds, the seeds that once found a defect, and the promise that one seed is one run.

use pstorage_tests::simulator::{Options, all_cores, campaign, run};

/// Seeds above 200 that found defects of the product; docs/simulator.md says which, and names those below.
const FOUND_DEFECTS: [u64; 6] = [203, 244, 245, 253, 386, 824];

#[test]
fn two_hundred_seeds_hold() {
    let totals = campaign(1..201, &Options::default(), all_cores(), |t| t.failures.is_empty());
    println!("simulator: {totals}");
    if let Some(failure) = totals.failures.first() {
        panic!("{failure}");
    }
    assert_eq!(totals.seeds, 200);
    assert!(totals.done_ops > 200_000 && totals.faults.len() >= 6, "the simulator does its work: {totals}");
}

#[test]
fn seeds_that_found_defects_hold() {
    for seed in FOUND_DEFECTS {
        run(seed, &Options::default()).unwrap_or_else(|failure| panic!("{failure}"));
    }
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
