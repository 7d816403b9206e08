//! Every crash point of a workload: its writes and syncs are noted, cut off after each of them, and
//! of those writes that no sync covers every subset is left, whole or torn.
//!
//! The catalogue is gone each time, so that the disk alone must say what was promised.

use crate::audit::Owed;
use crate::disk::{Change, Disk};
use crate::drive::SimulatedDrive;
use crate::model::Mark;
use crate::plan::Plan;
use crate::world::World;
use fastrand::Rng;
use refrain_index::chain::BlockKey;
use std::collections::BTreeSet;
use std::path::Path;

/// Of the latest writes that no sync covers, every subset is tried; of those before, all or none.
pub const WINDOW: usize = 5;

/// How much was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// Times that a segment was begun.
    pub begun: u64,
    pub cuts: u64,
    pub images: u64,
    /// Blocks that were owed and read, over all images.
    pub owed: u64,
}

/// Runs the workload of `plan`, which has one drive, and looks at every disk that a power loss may
/// leave of it; a panic says what was lost.
pub fn every_crash_point(plan: &Plan, seed: u64, directory: &Path) -> Tried {
    fastrand::seed(seed);
    let mut world = World::new(plan.clone(), Rng::with_seed(seed), directory);
    world.live_recorded();
    let changes = world.drives[0].disk.lock().recorded().to_vec();
    let is_head = |change: &&Change| matches!(change, Change::Written { first: 0 | 1, .. });
    let begun = changes.iter().filter(is_head).count() as u64;
    let mut tried = Tried { begun, ..Tried::default() };
    for cut in 0..=changes.len() {
        let before = &changes[..cut];
        let unsynced = unsynced(before);
        let (older, latest) = unsynced.split_at(unsynced.len().saturating_sub(WINDOW));
        let owed = owed_at(&world.marks, cut);
        tried.cuts += 1;
        for subset in 0..1_u32 << latest.len() {
            for is_kind in [true, false] {
                // The unkind cut takes all older ones, and the last pages of what it leaves.
                let is_left = |number: u64, page: usize| match latest
                    .iter()
                    .position(|latest| *latest == number)
                {
                    Some(at) => subset & (1 << at) != 0 && (page == 0 || is_kind),
                    None => is_kind || !older.contains(&number),
                };
                let (segments, bytes) = (plan.segments, plan.segment_bytes);
                let disk = Disk::replay(segments, bytes, before.iter(), is_left);
                tried.images += 1;
                tried.owed += owed.len() as u64;
                look(&world, plan, disk, &owed, directory);
            }
        }
    }
    tried
}

fn look(recorded: &World, plan: &Plan, disk: Disk, owed: &BTreeSet<BlockKey>, directory: &Path) {
    let mut world = World::new(plan.clone(), Rng::with_seed(0), directory);
    world.drives[0] = SimulatedDrive::of(0, disk);
    *world.model.borrow_mut() = recorded.model.borrow().clone();
    let owe = |key: &BlockKey| Owed { key: *key, promised: true, segments: Vec::new() };
    world.owed = owed.iter().map(owe).collect();
    world.look();
}

/// Operations that no sync covers, in order.
fn unsynced(changes: &[Change]) -> Vec<u64> {
    let mut unsynced: Vec<(usize, u64)> = Vec::new();
    for change in changes {
        match change {
            Change::Written { number, segment, .. } => unsynced.push((*segment, *number)),
            Change::Synced { segment, covered } => {
                unsynced.retain(|(of, number)| of != segment || number > covered);
            }
        }
    }
    unsynced.into_iter().map(|(_, number)| number).collect()
}

/// What is owed when so many changes have been made: promised, and not gone since.
fn owed_at(marks: &[(usize, Mark)], changes: usize) -> BTreeSet<BlockKey> {
    let mut owed = BTreeSet::new();
    for (_, mark) in marks.iter().filter(|(at, _)| *at <= changes) {
        match mark {
            Mark::Promised(key) => owed.insert(*key),
            Mark::Gone(key) => owed.remove(key),
        };
    }
    owed
}
