//! A node while it is put together: drives recovered and started, then the index filled.

use crate::attempt::Attempt;
use crate::bring_up::Brought;
use crate::clock::{Clock, unix_ms};
use crate::config::Config;
use crate::disks::Disks;
use crate::journal::{Journal, OnGroup, Recovered};
use crate::metrics::Metrics;
use crate::node::{Node, NodeError, Restart};
use crate::pinning;
use crate::place::{BlockPlace, DriveId, Group};
use crate::recovery::Found;
use crate::state::State;
use refrain_index::catalog::{Catalog, OpenState, Row};
use refrain_index::chain::{Chain, Restored};
use refrain_index::hash::SequenceHash;
use refrain_index::namespace::NamespaceDigest;
use refrain_store::arena::{Arena, Mapping};
use refrain_store::device::Medium;
use refrain_store::drive::{Drive, DriveConfig, KnownSegment, OpenError, Opening};
use refrain_store::engine::Durability;
use refrain_store::geometry::stored_length;
use std::error::Error;
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;
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
    disks: Disks,
    found: Vec<(DriveId, Found)>,
    restart: Restart,
    /// Why the last drive that was left out was.
    missing: Option<NodeError>,
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
            disks: Disks::default(),
            found: Vec::new(),
            restart: Restart { from_catalog: true, ..Restart::default() },
            missing: None,
        })
    }

    /// Recovers what a drive holds, and has `runner` start it.
    pub fn add<M: Medium>(
        &mut self,
        opening: Opening<M>,
        catalog: (Catalog, OpenState),
        runner: &mut impl Runner<M>,
    ) -> Result<(), NodeError> {
        let durability = self.config.durability;
        let brought = Brought::up((opening, catalog), &self.arena, durability, runner)?;
        self.join(brought);
        Ok(())
    }

    /// Adds the config's drives, brought up beside one another, or leaves them out: of several, one
    /// that is not there, or hangs, costs its blocks.
    pub(crate) async fn add_from_directories(&mut self) -> Result<(), NodeError> {
        let drives = self.config.drive_configs();
        let begin = |drive| Attempt::begin(&self.config, drive, &self.arena, false);
        let attempts = drives.iter().map(begin).collect::<Result<Vec<_>, _>>()?;
        let waits = attempts.into_iter().map(|mut attempt| {
            let clock = self.clock.clone();
            tokio::spawn(async move { (attempt.outcome(&clock).await, attempt) })
        });
        let waits: Vec<_> = waits.collect();
        // All of them, whatever comes of the first: RocksDB's threads must not outlive a refusal.
        let mut ended = Vec::new();
        for wait in waits {
            let end = wait.await;
            ended.push(end.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
        }
        for (drive, (outcome, attempt)) in drives.iter().zip(ended) {
            match outcome {
                Some(Ok(brought)) => self.join(brought),
                Some(Err(error)) => self.leave_out(drive, error, None)?,
                None => self.leave_out(drive, attempt.hangs(), Some(attempt))?,
            }
        }
        Ok(())
    }

    fn leave_out(
        &mut self,
        drive: &DriveConfig,
        error: NodeError,
        late: Option<Attempt>,
    ) -> Result<(), NodeError> {
        if self.config.drives.len() == 1 || !error.is_of_drive() {
            return Err(error);
        }
        let cause = &error as &dyn Error;
        warn!(drive = %drive.path.display(), error = cause, "drive missing: left out");
        self.state.segments.add_drive(std::iter::empty());
        self.disks.push_missing((&drive.path, drive.capacity_bytes), &error, late);
        self.missing = Some(error);
        Ok(())
    }

    fn join(&mut self, brought: Brought) {
        self.restart.scanned_segments += brought.scanned_segments;
        self.restart.from_catalog &= brought.is_from_catalog;
        self.state.epochs.merge(&brought.epochs);
        let drive = self.state.segments.add_drive(brought.generations.into_iter());
        self.found.extend(brought.found.into_iter().map(|found| (drive, found)));
        self.disks.push(brought.disk);
    }

    /// The node, its index filled with what its drives hold.
    pub fn finish(self) -> Result<Arc<Node>, NodeError> {
        let Self { config, clock, begin, arena, mut state, disks, found, mut restart, missing } =
            self;
        if disks.iter().next().is_none()
            && let Some(error) = missing
        {
            return Err(error);
        }
        let is_whole = disks.missing().next().is_none();
        // The stores are ours by now: nobody else makes a secret meanwhile.
        let directories = || disks.iter().map(|disk| disk.drive.path());
        let secret = config.secret(directories(), is_whole)?;
        for directory in directories() {
            // Of those that were away when a namespace was dropped.
            if let Err(error) = state.epochs.write_if_behind(directory) {
                warn!(error = &error as &dyn Error, "epochs not kept on every drive");
            }
        }
        let restored = restore(&mut state, &found, clock.tick());
        let pins = pinning::restore(&mut state, &disks, unix_ms());
        let mut waiting = Vec::new();
        if !is_whole {
            let is_out = |(_, found): &(DriveId, Found)| state.chain.get(found.key()).is_none();
            waiting = found.into_iter().filter(is_out).collect();
            state.pins_waiting = pins;
        }
        let disks = Arc::new(disks);
        let watched = Arc::clone(&disks);
        let metrics = Metrics::new();
        metrics.watch_drives(move || watched.stats());
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
            waiting: Mutex::new(waiting),
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
    let blocks = found.filter_map(|(drive, found)| {
        let Found { segment, row, .. } = found;
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
        Some((found.key(), (row.position > 0).then_some(SequenceHash(row.parent)), place))
    });
    let mut chain = Chain::default();
    let restored = chain.restore(blocks, now);
    state.chain = chain;
    state.count_restored(now);
    restored
}
