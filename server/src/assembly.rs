//! A node while it is put together: drive by drive recovered and started, then the index filled.

use crate::clock::{Clock, unix_ms};
use crate::config::Config;
use crate::journal::{Journal, OnGroup, Recovered};
use crate::metrics::Metrics;
use crate::node::{Disk, Node, NodeError, Restart};
use crate::pinning;
use crate::place::{BlockPlace, DriveId, Group};
use crate::recovery::{self, Found};
use crate::state::State;
use refrain_index::catalog::{Catalog, OpenState, Row};
use refrain_index::chain::{BlockKey, Chain, Restored};
use refrain_index::hash::SequenceHash;
use refrain_index::namespace::NamespaceDigest;
use refrain_store::arena::{Arena, Mapping};
use refrain_store::device::Medium;
use refrain_store::drive::{Drive, KnownSegment, OpenError, Opening};
use refrain_store::engine::{Durability, GroupEvent};
use refrain_store::geometry::{SegmentId, stored_length};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;
use tokio::sync::Notify;
use tracing::{info, warn};

/// Who runs what serves a drive.
pub trait Runner<M> {
    fn journal(
        &mut self,
        catalog: Catalog,
        recovered: &[Recovered],
        durability: Durability,
    ) -> io::Result<(Journal, OnGroup)>;

    fn drive(
        &mut self,
        opening: Opening<M>,
        arenas: &[Arc<Mapping>],
        known: Vec<KnownSegment>,
        on_group: OnGroup,
    ) -> Result<Drive, OpenError>;
}

/// Two threads a drive.
#[derive(Debug)]
pub(crate) struct Threads;

impl Runner<File> for Threads {
    fn journal(
        &mut self,
        catalog: Catalog,
        recovered: &[Recovered],
        durability: Durability,
    ) -> io::Result<(Journal, OnGroup)> {
        Journal::start(catalog, recovered, durability)
    }

    fn drive(
        &mut self,
        opening: Opening,
        arenas: &[Arc<Mapping>],
        known: Vec<KnownSegment>,
        on_group: OnGroup,
    ) -> Result<Drive, OpenError> {
        opening.start(arenas, known, on_group)
    }
}

/// A node that does not serve yet.
#[derive(Debug)]
pub struct Assembly {
    config: Config,
    clock: Clock,
    begin: Instant,
    arena: Arc<Arena>,
    state: State,
    disks: Vec<Disk>,
    found: Vec<(DriveId, Found)>,
    restart: Restart,
}

impl Assembly {
    pub fn begin(config: &Config, clock: Clock) -> Result<Self, NodeError> {
        let begin = clock.now();
        let bytes = config.load_arena;
        let arena = Mapping::create("refrain-load", bytes);
        let arena = arena.map_err(|source| NodeError::Arena { bytes, source })?;
        Ok(Self {
            config: config.clone(),
            clock,
            begin,
            arena: Arena::new(arena),
            state: State::default(),
            disks: Vec::new(),
            found: Vec::new(),
            restart: Restart { from_catalog: true, ..Restart::default() },
        })
    }

    /// Recovers what a drive holds, and has `runner` start it.
    pub fn add<M: Medium>(
        &mut self,
        opening: Opening<M>,
        catalog: (Catalog, OpenState),
        runner: &mut impl Runner<M>,
    ) -> Result<(), NodeError> {
        let (path, segments) = (opening.path().to_path_buf(), opening.segment_count());
        if Group::new(DriveId(0), SegmentId(segments)).is_none() {
            let limit = (1 << 24) - 1;
            return Err(NodeError::Segments { path, segments, limit });
        }
        let recovered = recovery::recover(&opening, catalog)
            .map_err(|source| NodeError::Catalog { path: path.clone(), source })?;
        for problem in opening.problems() {
            warn!(path = %path.display(), problem = %problem, "segment problem");
        }
        self.restart.scanned_segments += recovered.records.scanned;
        self.restart.from_catalog &= recovered.is_from_catalog();
        let generations = opening.segments().iter().map(|head| head.generation);
        let store_id = opening.store_id();
        let drive_id = self.state.segments.add_drive(generations);
        let durable = recovered.records.durable(&opening);
        let (journal, mut on_group) = runner
            .journal(recovered.catalog, &durable, self.config.durability)
            .map_err(|source| NodeError::Journal { source })?;
        let arenas = [Arc::clone(self.arena.mapping())];
        let reclaim = Arc::new(Notify::new());
        let sealed = Arc::clone(&reclaim);
        let on_group = Box::new(move |event: GroupEvent| {
            // A sealed segment is one that may be emptied, and the next takes a free one soon.
            if matches!(event, GroupEvent::Durable { sealed: true, .. }) {
                sealed.notify_one();
            }
            on_group(event);
        });
        let drive = runner.drive(opening, &arenas, recovered.records.known, on_group)?;
        let (asked, moved_bytes) = (Notify::new(), AtomicU64::new(0));
        self.disks.push(Disk { drive, store_id, journal, reclaim, asked, moved_bytes });
        let found = recovered.records.found.into_iter();
        self.found.extend(found.map(|record| (drive_id, record)));
        Ok(())
    }

    /// The node, its index filled with what its drives hold.
    pub fn finish(self) -> Result<Arc<Node>, NodeError> {
        let Self { config, clock, begin, arena, mut state, disks, found, mut restart } = self;
        for disk in &disks {
            state.epochs.read(disk.drive.path())?;
        }
        // The stores are ours by now: nobody else makes a secret meanwhile.
        let secret = config.secret()?;
        let restored = restore(&mut state, &found, clock.tick());
        pinning::restore(&mut state, disks.iter().map(|disk| &disk.drive), unix_ms());
        let metrics = Metrics::new();
        let drives: Vec<Drive> = disks.iter().map(|disk| disk.drive.clone()).collect();
        metrics.watch_drives(move || {
            drives.iter().map(|drive| (drive.path().into(), drive.stats())).collect()
        });
        restart.blocks = u64::try_from(restored.inserted).expect("usize fits");
        restart.elapsed = clock.now() - begin;
        info!(
            blocks = restart.blocks,
            orphans = restored.orphans,
            duplicates = restored.duplicates,
            scanned_segments = restart.scanned_segments,
            elapsed_ms = restart.elapsed.as_millis(),
            "recovered"
        );
        Ok(Arc::new(Node {
            config,
            secret,
            disks,
            arena,
            metrics,
            clock,
            restart,
            leases_changed: Notify::new(),
            lease_ended: Notify::new(),
            dropping: Mutex::new(()),
            said_beyond_arena: AtomicBool::new(false),
            pinning: Mutex::new(()),
            fleet: OnceLock::new(),
            state: Mutex::new(state),
        }))
    }
}

/// Fills the index; of a block found twice, the later one counts.
fn restore(state: &mut State, found: &[(DriveId, Found)], now: u32) -> Restored {
    let mut last = None;
    let (namespaces, epochs) = (&mut state.namespaces, &state.epochs);
    // What was dropped stays away, whatever the disk still holds.
    let counts = |row: &Row| row.epoch >= epochs.get(NamespaceDigest(row.namespace));
    let found = found.iter().filter(|(_, found)| counts(&found.row));
    let blocks = found.filter_map(|(drive, Found { segment, row, .. })| {
        let digest = NamespaceDigest(row.namespace);
        // Neighbours are mostly of one namespace.
        let namespace = match last {
            Some((known, id)) if known == digest => id,
            _ => namespaces.meet(digest),
        };
        last = Some((digest, namespace));
        let group = Group::new(*drive, *segment).expect("checked when the drive was opened");
        // What no record can be is none: a checksum that fits does not make a number small.
        let place = BlockPlace::new(group, namespace, row.offset, stored_length(row.length))?;
        let key = BlockKey { sequence: SequenceHash(row.sequence), shard: row.shard };
        Some((key, (row.position > 0).then_some(SequenceHash(row.parent)), place))
    });
    let mut chain = Chain::default();
    let restored = chain.restore(blocks, now);
    state.chain = chain;
    state.count_restored(now);
    restored
}
