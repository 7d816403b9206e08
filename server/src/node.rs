//! One node: its drives, its memory, and the index over both.

use crate::clock::{Clock, unix_ms};
use crate::config::Config;
use crate::epochs::EpochsError;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::pinning;
use crate::place::{BlockPlace, DriveId, Group};
use crate::recovery::{self, Found};
use crate::secret::{SECRET_BYTES, SecretError};
use crate::state::State;
use refrain_index::catalog::{CatalogError, Row};
use refrain_index::chain::{BlockKey, Chain, Restored};
use refrain_index::hash::SequenceHash;
use refrain_index::namespace::NamespaceDigest;
use refrain_store::arena::{Arena, ArenaError, Frame, Mapping};
use refrain_store::drive::{Drive, DriveConfig, OpenError, Opening};
use refrain_store::engine::{GroupEvent, Limits};
use refrain_store::geometry::stored_length;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{info, warn};

/// Why a node does not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NodeError {
    #[error("take {bytes} bytes for the load arena")]
    Arena { bytes: u64, source: ArenaError },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("recover store {}", path.display())]
    Catalog { path: PathBuf, source: CatalogError },
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Epochs(#[from] EpochsError),
    #[error("start a journal")]
    Journal { source: io::Error },
    #[error("store {} has {segments} segments, a drive may have {limit}: give larger segments", path.display())]
    Segments { path: PathBuf, segments: u32, limit: u32 },
}

/// How a node came up.
#[derive(Clone, Debug, Default)]
pub struct Restart {
    pub elapsed: Duration,
    pub blocks: u64,
    pub scanned_segments: u32,
    /// Whether every drive's catalogue was there.
    pub from_catalog: bool,
}

/// One drive and its journal.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) drive: Drive,
    pub(crate) journal: Journal,
    /// Told when free segments may run low, or a segment is held no more.
    pub(crate) reclaim: Arc<Notify>,
    /// Told when the drive is given work.
    pub(crate) asked: Notify,
    /// Written again by reclaim.
    pub(crate) moved_bytes: AtomicU64,
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    pub(crate) config: Config,
    /// What all tenants' keys are derived from.
    pub(crate) secret: [u8; SECRET_BYTES],
    pub(crate) disks: Vec<Disk>,
    pub(crate) arena: Arc<Arena>,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) restart: Restart,
    /// Told when an earlier lease may be the next to end.
    pub(crate) leases_changed: Notify,
    /// Told when a lease has ended.
    pub(crate) lease_ended: Notify,
    /// Held while a namespace is dropped.
    pub(crate) dropping: Mutex<()>,
    /// Whether a load beyond the arena was reported.
    pub(crate) said_beyond_arena: AtomicBool,
    /// Held while pins change.
    pub(crate) pinning: Mutex<()>,
    state: Mutex<State>,
}

impl Node {
    /// Opens every drive, recovers what it holds, and starts its threads.
    pub(crate) fn open(config: &Config) -> Result<Arc<Self>, NodeError> {
        let begin = Instant::now();
        let clock = Clock::start();
        let bytes = config.load_arena;
        let arena = Mapping::create("refrain-load", bytes);
        let arena = Arena::new(arena.map_err(|source| NodeError::Arena { bytes, source })?);
        let mut state = State::default();
        let (mut disks, mut found) = (Vec::new(), Vec::new());
        let mut restart = Restart { from_catalog: true, ..Restart::default() };
        for drive in config.drive_configs() {
            let limits = Limits { hang_patience: config.drive_patience, ..Limits::default() };
            let (disk, drive, records) =
                open_disk((&drive, limits), &mut state, &arena, &mut restart)?;
            disks.push(disk);
            found.extend(records.into_iter().map(|record| (drive, record)));
        }
        for disk in &disks {
            state.epochs.read(disk.drive.path())?;
        }
        // The stores are ours by now: nobody else makes a secret meanwhile.
        let secret = config.secret()?;
        let restored = restore(&mut state, &found, clock.now());
        pinning::restore(&mut state, disks.iter().map(|disk| &disk.drive), unix_ms());
        let metrics = Metrics::new();
        let drives: Vec<Drive> = disks.iter().map(|disk| disk.drive.clone()).collect();
        metrics.watch_drives(move || {
            drives.iter().map(|drive| (drive.path().into(), drive.stats())).collect()
        });
        restart.blocks = u64::try_from(restored.inserted).expect("usize fits");
        restart.elapsed = begin.elapsed();
        info!(
            blocks = restart.blocks,
            orphans = restored.orphans,
            duplicates = restored.duplicates,
            scanned_segments = restart.scanned_segments,
            elapsed_ms = restart.elapsed.as_millis(),
            "recovered"
        );
        Ok(Arc::new(Self {
            config: config.clone(),
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
            state: Mutex::new(state),
        }))
    }

    pub fn restart(&self) -> &Restart {
        &self.restart
    }

    pub fn drives(&self) -> impl Iterator<Item = &Drive> {
        self.disks.iter().map(|disk| &disk.drive)
    }

    pub(crate) fn numbered_disks(&self) -> impl Iterator<Item = (DriveId, &Disk)> {
        (0..=u8::MAX).map(DriveId).zip(&self.disks)
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// All that is counted, as of now.
    pub(crate) fn metrics_text(&self) -> String {
        let count = |size: usize| u64::try_from(size).expect("usize fits");
        let mut state = self.state();
        state.expire_pins(unix_ms());
        let Metrics { sessions, leases, reservations, blocks, .. } = &self.metrics;
        sessions.set(count(state.sessions.len()));
        leases.set(count(state.leases.len()));
        reservations.set(count(state.leases.reservations()));
        blocks.set(count(state.chain.len()));
        let pinned = self.numbered_disks().map(|(drive, _)| state.segments.pinned_bytes(drive));
        self.metrics.pinned_bytes.set(pinned.sum());
        self.metrics.index_bytes.set(state.chain.bytes());
        self.metrics.host_frames.set(count(state.host.len()));
        self.metrics.host_bytes.set(state.host.bytes());
        self.metrics.arena_bytes.set(self.arena.mapping().bytes_len());
        drop(state);
        let queued = self.drives().map(|drive| drive.stats().queued_write_bytes);
        self.metrics.save_queue_bytes.set(queued.sum());
        self.metrics.text()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic ends the process; see `serve`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn disk(&self, drive: DriveId) -> &Disk {
        &self.disks[usize::from(drive.0)]
    }

    /// Memory for a record of `bytes`; frames of the host tier make way.
    pub(crate) fn take_frame(&self, state: &mut State, bytes: u64) -> Option<Frame> {
        if bytes > self.arena.frame_bytes_max() {
            return None;
        }
        loop {
            if let Some(frame) = self.arena.allocate(bytes) {
                return Some(frame);
            }
            if !state.host.evict() {
                return None;
            }
        }
    }

    /// Whether new work is refused.
    pub(crate) fn is_draining(&self) -> bool {
        self.state().draining
    }

    /// Refuses new work from now on.
    pub fn begin_drain(&self) {
        self.state().draining = true;
    }

    /// Ends leases whose time is up; when the next one's will be.
    pub(crate) fn expire_leases(&self, now: Instant) -> Option<Instant> {
        let mut freed = false;
        let mut state = self.state();
        while let Some(lease) = state.leases.end_one_expired(now) {
            freed |= state.let_go(&lease);
            self.metrics.leases_expired.inc();
        }
        let next = state.leases.next_end();
        drop(state);
        self.leases_ended(freed);
        next
    }

    /// Leases may have ended; `freed` says whether a segment is held no more.
    pub(crate) fn leases_ended(&self, freed: bool) {
        self.lease_ended.notify_waiters();
        if freed {
            for disk in &self.disks {
                disk.reclaim.notify_one();
            }
        }
    }

    /// Starts what runs beside the calls: ending leases, and keeping segments free.
    pub(crate) fn spawn_tasks(self: &Arc<Self>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for (drive, _) in (0..=u8::MAX).zip(&self.disks) {
            tasks.spawn(Arc::clone(self).reclaim(DriveId(drive)));
            tasks.spawn(Arc::clone(self).attend(DriveId(drive)));
        }
        tasks.spawn(Arc::clone(self).end_leases());
        tasks
    }

    async fn end_leases(self: Arc<Self>) {
        loop {
            match self.expire_leases(Instant::now()) {
                None => self.leases_changed.notified().await,
                Some(next) => {
                    let changed = self.leases_changed.notified();
                    // Whichever comes first: it is looked at again.
                    let _ = tokio::time::timeout_at(next.into(), changed).await;
                }
            }
        }
    }

    /// Ends when no lease is held any more: whoever is at work has finished.
    pub(crate) async fn drained(&self) {
        loop {
            let ended = self.lease_ended.notified();
            if self.state().leases.len() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Finishes and syncs what was taken, and closes everything. Blocks until then.
    pub fn stop(&self) {
        self.disks.iter().for_each(|disk| disk.drive.stop());
        self.disks.iter().for_each(|disk| disk.journal.stop());
    }
}

fn open_disk(
    (config, limits): (&DriveConfig, Limits),
    state: &mut State,
    arena: &Arc<Arena>,
    restart: &mut Restart,
) -> Result<(Disk, DriveId, Vec<Found>), NodeError> {
    let opening = Opening::open(config)?.with_limits(limits);
    let segments = opening.segment_count();
    if Group::new(DriveId(0), refrain_store::geometry::SegmentId(segments)).is_none() {
        let (path, limit) = (config.path.clone(), (1 << 24) - 1);
        return Err(NodeError::Segments { path, segments, limit });
    }
    let recovered = recovery::recover(&opening)
        .map_err(|source| NodeError::Catalog { path: config.path.clone(), source })?;
    for problem in opening.problems() {
        warn!(path = %config.path.display(), problem = %problem, "segment problem");
    }
    restart.scanned_segments += recovered.records.scanned;
    restart.from_catalog &= recovered.is_from_catalog();
    let drive_id = state.segments.add_drive(opening.segments().iter().map(|head| head.generation));
    let (journal, mut on_group) = Journal::start(recovered.catalog, config.durability)
        .map_err(|source| NodeError::Journal { source })?;
    let arenas = [Arc::clone(arena.mapping())];
    let reclaim = Arc::new(Notify::new());
    let sealed = Arc::clone(&reclaim);
    let on_group = Box::new(move |event: GroupEvent| {
        // A sealed segment is one that may be emptied, and the next takes a free one soon.
        if matches!(event, GroupEvent::Durable { sealed: true, .. }) {
            sealed.notify_one();
        }
        on_group(event);
    });
    let drive = opening.start(&arenas, recovered.records.known, on_group)?;
    let (asked, moved_bytes) = (Notify::new(), AtomicU64::new(0));
    let disk = Disk { drive, journal, reclaim, asked, moved_bytes };
    Ok((disk, drive_id, recovered.records.found))
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
