//! Proves that no seed which once found something finds it again, that a few hundred others find
//! nothing, and that a seed is one run.

use refrain_simulation::hunt::{Until, found, hunt, scratch};
use refrain_simulation::world::run;

#[test]
fn seeds_that_found_something_find_nothing_any_more() {
    let directory = scratch().unwrap();
    for seed in found() {
        println!("seed {seed}");
        run(seed, directory.path());
    }
}

#[test]
fn the_first_seeds_find_nothing_and_their_runs_do_something() {
    let total = hunt(0, Until::Seeds(200), 2).unwrap();
    let total = total.expect("a seed fails: its panic says why");
    for count in [total.loaded, total.missed, total.saved, total.promised, total.refused] {
        assert!(count > 200, "{total:?}");
    }
}

#[test]
fn a_seed_is_one_run() {
    let (left, right) = (scratch().unwrap(), scratch().unwrap());
    for seed in 0..40 {
        assert_eq!(run(seed, left.path()), run(seed, right.path()), "seed {seed}");
    }
}
