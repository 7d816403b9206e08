//! One drive from its store to its threads: recovered and started. Its node does not know of it yet.

use crate::assembly::{Runner, Threads};
use crate::config::Config;
use crate::disks::Disk;
use crate::epochs::Epochs;
use crate::node::NodeError;
use crate::place::{DriveId, Group};
use crate::recovery::{self, Found};
use refrain_index::catalog::{Catalog, OpenState};
use refrain_store::answers::Answers;
use refrain_store::arena::Arena;
use refrain_store::device::Medium;
use refrain_store::drive::{DriveConfig, Opening};
use refrain_store::engine::{Durability, GroupEvent, Limits};
use refrain_store::geometry::{Generation, SegmentId};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::Notify;
use tracing::warn;

/// A drive that runs, and what was found on it.
#[derive(Debug)]
pub(crate) struct Brought {
    pub(crate) disk: Disk,
    /// Of each segment.
    pub(crate) generations: Vec<Generation>,
    pub(crate) found: Vec<Found>,
    pub(crate) scanned_segments: u32,
    pub(crate) is_from_catalog: bool,
    /// As its directory knows them.
    pub(crate) epochs: Epochs,
}

impl Brought {
    /// The drive in the directory of `drive`, which tells of what it answers. One that is looked for
    /// `again` is not made.
    pub(crate) fn from_directory(
        config: &Config,
        drive: &DriveConfig,
        arena: &Arena,
        (again, answers): (bool, &Answers),
    ) -> Result<Self, NodeError> {
        let limits = Limits { hang_patience: config.drive_patience, ..Limits::default() };
        let opening = if again {
            Opening::open_again(drive, answers)
        } else {
            Opening::open_or_make(drive, answers)
        };
        let opening = opening?.with_limits(limits);
        let catalog = Catalog::open(&opening.path().join("catalog"), opening.store_id());
        let path = || drive.path.clone();
        let catalog = catalog.map_err(|source| NodeError::Catalog { path: path(), source })?;
        answers.note();
        Self::up((opening, catalog), arena, config.durability, &mut Threads)
    }

    /// Recovers what a drive holds, and has `runner` start it.
    pub(crate) fn up<M: Medium>(
        (opening, catalog): (Opening<M>, (Catalog, OpenState)),
        arena: &Arena,
        durability: Durability,
        runner: &mut impl Runner<M>,
    ) -> Result<Self, NodeError> {
        let (path, segments) = (opening.path().to_path_buf(), opening.segment_count());
        if Group::new(DriveId(0), SegmentId(segments)).is_none() {
            let limit = (1 << 24) - 1;
            return Err(NodeError::Segments { path, segments, limit });
        }
        let mut epochs = Epochs::default();
        epochs.read(&path)?;
        let recovered = recovery::recover(&opening, catalog)
            .map_err(|source| NodeError::Catalog { path: path.clone(), source })?;
        for problem in opening.problems() {
            warn!(path = %path.display(), problem = %problem, "segment problem");
        }
        let is_from_catalog = recovered.is_from_catalog();
        let generations = opening.segments().iter().map(|head| head.generation).collect();
        let durable = recovered.records.durable(&opening);
        let (journal, mut on_group) = runner
            .journal(recovered.catalog, &durable, durability)
            .map_err(|source| NodeError::Journal { source })?;
        let reclaim = Arc::new(Notify::new());
        let sealed = Arc::clone(&reclaim);
        let on_group = Box::new(move |event: GroupEvent| {
            // A sealed segment is one that may be emptied, and the next takes a free one soon.
            if matches!(event, GroupEvent::Durable { sealed: true, .. }) {
                sealed.notify_one();
            }
            on_group(event);
        });
        let arenas = [Arc::clone(arena.mapping())];
        let store_id = opening.store_id();
        let drive = runner.drive(opening, &arenas, recovered.records.known, on_group)?;
        let (asked, moved_bytes) = (Notify::new(), AtomicU64::new(0));
        Ok(Self {
            disk: Disk { drive, store_id, journal, reclaim, asked, moved_bytes },
            generations,
            found: recovered.records.found,
            scanned_segments: recovered.records.scanned,
            is_from_catalog,
            epochs,
        })
    }
}
