//! Proves that a power loss after any write or sync of a workload of saves, seals, reclaim and drops
//! of namespaces, with whatever it leaves of the latest writes, costs no promised block and brings back
//! none that was dropped.

use refrain_simulation::crash::every_crash_point;
use refrain_simulation::faults::Faults;
use refrain_simulation::hunt::scratch;
use refrain_simulation::names::Family;
use refrain_simulation::plan::Plan;
use refrain_store::engine::{Durability, Limits};
use std::time::Duration;

/// Two pages a block, four segments of a dozen: the prompts fill them more than once.
fn plan() -> Plan {
    Plan {
        drives: 1,
        segments: 4,
        segment_bytes: 28 * 4096,
        families: vec![Family::new(0, 1, 4096, 1)],
        durability: Durability::Group,
        limits: Limits { group_interval: Duration::from_millis(3), ..Limits::default() },
        load_arena: 1 << 20,
        save_queue: 1 << 20,
        lease_default: Duration::from_millis(50),
        lease_max: Duration::from_secs(3),
        clients: 2,
        rounds: 60,
        depth: 5,
        tokens: 6,
        drops: u32::MAX,
        lives: 1,
        faults: Faults::default(),
    }
}

#[test]
fn no_crash_point_costs_a_promised_block() {
    let directory = scratch().unwrap();
    let tried = every_crash_point(&plan(), 1, directory.path());
    println!("{tried:?}");
    // Every segment was used again, most of them more than once.
    assert!(tried.begun > 8 && tried.images > 5000 && tried.owed > 50_000, "{tried:?}");
}

#[test]
fn no_crash_point_of_a_drop_brings_a_block_back_or_costs_another_namespace_one() {
    let directory = scratch().unwrap();
    let families = vec![Family::new(0, 1, 4096, 1), Family::new(1, 1, 4096, 1)];
    let plan = Plan { families, rounds: 40, depth: 4, drops: 8, segments: 6, ..plan() };
    let tried = every_crash_point(&plan, 2, directory.path());
    println!("{tried:?}");
    assert!(tried.drops > 5 && tried.images > 3000 && tried.owed > 5000, "{tried:?}");
}
