//! Drives that a start did not find: they cost their blocks and nothing else, and come back while the
//! node runs, as soon as their store can be opened.
//!
//! Blocks that stand behind those of a missing drive are out of reach, and come back with it. So do
//! pins whose block it holds. What was dropped meanwhile stays away: its directory is told first.

use crate::address_file::AddressFiles;
use crate::attempt::{Attempt, alone};
use crate::bring_up::Brought;
use crate::disks::Missing;
use crate::epochs::EpochsError;
use crate::node::{Node, NodeError};
use crate::place::{BlockPlace, DriveId, Group};
use crate::recovery::Found;
use crate::state::{Entered, State};
use refrain_index::hash::SequenceHash;
use refrain_index::namespace::NamespaceDigest;
use refrain_store::geometry::stored_length;
use std::sync::{Arc, PoisonError};
use tracing::{info, warn};

/// Blocks let in under one lock: lookups wait for no more than that.
const ENTERED_AT_ONCE: usize = 256;

impl Node {
    /// Looks for a drive until it is there. A hand that gives it back need not tell anybody.
    /// It is told where the sidecar listens.
    pub(crate) async fn until_there(self: &Arc<Self>, id: DriveId, addresses: Arc<AddressFiles>) {
        while let Some((_, missing)) = self.disks.missing().find(|(missing, _)| *missing == id) {
            if let Err(error) = self.look_for(id, missing, &addresses).await {
                say_why(missing, &error);
            }
        }
    }

    /// One attempt at a missing drive, to its end: there is no second one meanwhile.
    async fn look_for(
        self: &Arc<Self>,
        id: DriveId,
        missing: &Missing,
        addresses: &Arc<AddressFiles>,
    ) -> Result<(), NodeError> {
        let mut attempt = if let Some(late) = missing.take_late() {
            late
        } else {
            self.clock.sleep(self.config.drive_patience).await;
            let drive = &self.config.drive_configs()[usize::from(id.0)];
            Attempt::begin(&self.config, drive, &self.arena, true)?
        };
        let brought = loop {
            match attempt.outcome(&self.clock).await {
                Some(outcome) => break outcome?,
                None => say_why(missing, &attempt.hangs()),
            }
        };
        let (node, addresses) = (Arc::clone(self), Arc::clone(addresses));
        let taken = alone("refrain-back", move || {
            let blocks = node.take_back(id, brought)?;
            if let Some(blocks) = blocks {
                let drive = node.disk(id).drive.path();
                info!(drive = %drive.display(), blocks, "drive is back");
                if let Err(error) = addresses.add(drive) {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "drive does not say where its sidecar listens");
                }
            }
            Ok(())
        })?;
        taken.await.expect("its thread ends with what came of it")
    }

    /// Lets the blocks of a drive that was missing be found; how many are found with it. `None` where
    /// the node stops, and takes nothing up any more. Blocks.
    fn take_back(&self, id: DriveId, brought: Brought) -> Result<Option<usize>, EpochsError> {
        let Brought { disk, generations, found, epochs, .. } = brought;
        // It may know of drops that no other drive was there for.
        let raised: Vec<_> = epochs.beyond(&self.state().epochs).collect();
        for (namespace, epoch) in raised {
            if let Err(error) = self.set_epoch(namespace, epoch) {
                warn!(error = &error as &dyn std::error::Error, "epoch not raised");
            }
        }
        loop {
            // Not while drops wait: the drive may hang once more.
            let told = self.state().epochs.clone();
            told.write(disk.drive.path())?;
            // No drop in between: it would not know of the drive, and the drive not of it.
            let _dropping = self.dropping.lock().unwrap_or_else(PoisonError::into_inner);
            let mut state = self.state();
            if state.draining {
                return Ok(None);
            }
            if state.epochs == told {
                state.segments.set_drive(id, generations.into_iter());
                // Before anybody can begin to stop all that is there.
                self.disks.put(id, disk);
                break;
            }
        }
        // Held meanwhile: another drive that comes back lets in what this one leaves.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(found.into_iter().map(|found| (id, found)));
        let (blocks, left) = self.let_in(std::mem::take(&mut *waiting));
        if self.disks.missing().next().is_some() {
            *waiting = left;
        }
        drop(waiting);
        self.pin_again();
        Ok(Some(blocks))
    }

    /// Enters what was found, a few blocks at a time; how many, and those that are out of reach.
    fn let_in(&self, mut found: Vec<(DriveId, Found)>) -> (usize, Vec<(DriveId, Found)>) {
        // Parents before their children; of two with one key the one that was found later.
        found.reverse();
        found.sort_by_key(|(_, found)| found.row.position);
        let (mut count, mut left) = (0, Vec::new());
        for some in found.chunks(ENTERED_AT_ONCE) {
            let now = self.clock.tick();
            let mut state = self.state();
            for (drive, found) in some {
                match enter(&mut state, *drive, found, now) {
                    Some(Entered::New) => count += 1,
                    Some(Entered::Lost) => left.push((*drive, *found)),
                    Some(Entered::Already) | None => {}
                }
            }
        }
        (count, left)
    }
}

fn say_why(missing: &Missing, error: &NodeError) {
    if missing.now_because(error) {
        let error = error as &dyn std::error::Error;
        warn!(drive = %missing.path.display(), error, "drive still missing");
    }
}

/// `None` for what does not count any more.
fn enter(state: &mut State, drive: DriveId, found: &Found, now: u32) -> Option<Entered> {
    let Found { segment, generation, row } = found;
    let digest = NamespaceDigest(row.namespace);
    if row.epoch < state.epochs.get(digest) {
        return None;
    }
    let group = Group::new(drive, *segment)?;
    let namespace = state.namespaces.meet(digest);
    let place = BlockPlace::new(group, namespace, row.offset, stored_length(row.length))?;
    let parent = (row.position > 0).then_some(SequenceHash(row.parent));
    Some(state.enter(found.key(), parent, (place, *generation), now))
}
