//! Every crash point of a workload: its writes and syncs are noted, cut off after each of them, and
//! of those writes that no sync covers every subset is left, whole or torn.
//!
//! The catalogue is gone each time, so that the disk alone must say what was promised.
//!
//! The drop of a namespace writes a file of its own: the new epochs under another name, synced, renamed
//! over the old ones, the directory synced. A cut during a drop finds the old file, with nothing, a part
//! or all of the new one beside it, or the new one; a cut after it, the new one alone.

use crate::audit::Owed;
use crate::disk::{Change, Disk};
use crate::drive::SimulatedDrive;
use crate::model::Mark;
use crate::plan::Plan;
use crate::world::{World, epochs_path};
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
    /// Drops of namespaces.
    pub drops: u64,
}

/// What a power loss leaves of the file of epochs, and of the one that it is made of.
#[derive(Clone, Debug, Default)]
struct EpochsFile {
    whole: Option<Vec<u8>>,
    beside: Option<Vec<u8>>,
    /// Of each family, as the whole file knows them.
    epochs: Vec<u64>,
}

impl EpochsFile {
    /// Everything that may be left when so many changes have been made to the disk.
    fn at(world: &World, families: usize, changes: usize) -> Vec<Self> {
        let mut now = Self { epochs: vec![0; families], ..Self::default() };
        let mut left = Vec::new();
        let dropped = world.marks.iter().filter_map(|(at, mark)| match mark {
            Mark::Dropped(family) => Some((*at, *family)),
            Mark::Promised(_) | Mark::Gone(_) => None,
        });
        for ((at, family), (_, bytes)) in dropped.zip(&world.dropped) {
            if at > changes {
                break;
            }
            if at == changes {
                // The drop may have come as far as this.
                let parts = [0, bytes.len() / 2, bytes.len()].map(|end| bytes[..end].to_vec());
                left.push(now.clone());
                left.extend(parts.map(|part| Self { beside: Some(part), ..now.clone() }));
            }
            now.whole = Some(bytes.clone());
            now.epochs[family] += 1;
        }
        left.push(now);
        left
    }

    fn write(&self, directory: &Path) {
        let path = epochs_path(directory);
        let write = |path: &Path, bytes: &Option<Vec<u8>>| {
            if let Some(bytes) = bytes {
                std::fs::write(path, bytes).expect("write epochs");
            }
        };
        write(&path, &self.whole);
        write(&path.with_extension("new"), &self.beside);
    }
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
    let drops = world.dropped.len() as u64;
    let mut tried = Tried { begun, drops, ..Tried::default() };
    for cut in 0..=changes.len() {
        let before = &changes[..cut];
        let unsynced = unsynced(before);
        let (older, latest) = unsynced.split_at(unsynced.len().saturating_sub(WINDOW));
        let owed = owed_at(&world.marks, cut);
        let epochs = EpochsFile::at(&world, plan.families.len(), cut);
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
                for epochs in &epochs {
                    let disk = Disk::replay(segments, bytes, before.iter(), is_left);
                    tried.images += 1;
                    tried.owed += owed.len() as u64;
                    look(&world, plan, (disk, epochs), &owed, directory);
                }
            }
        }
    }
    tried
}

fn look(
    recorded: &World,
    plan: &Plan,
    (disk, epochs): (Disk, &EpochsFile),
    owed: &BTreeSet<BlockKey>,
    directory: &Path,
) {
    let mut world = World::new(plan.clone(), Rng::with_seed(0), directory);
    epochs.write(directory);
    world.drives[0] = SimulatedDrive::of(0, disk);
    *world.model.borrow_mut() = recorded.model.borrow().clone();
    world.model.borrow_mut().back_in(&epochs.epochs);
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
            // What went with it is told of one by one.
            Mark::Dropped(_) => false,
        };
    }
    owed
}
