//! One node: its drives, its memory, and the index over both.

use crate::address_file::AddressFiles;
use crate::assembly::Assembly;
use crate::clock::{Clock, unix_ms};
use crate::config::Config;
use crate::disks::{Disk, Disks};
use crate::epochs::EpochsError;
use crate::events::Change;
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::place::DriveId;
use crate::recovery::Found;
use crate::secret::{SECRET_BYTES, SecretError};
use crate::state::State;
use refrain_index::catalog::CatalogError;
use refrain_store::arena::{Arena, ArenaError, Frame};
use refrain_store::drive::{Drive, OpenError};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::{Notify, broadcast};
use tokio::task::JoinSet;

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
    #[error("start a thread for a drive")]
    Thread { source: io::Error },
    #[error("drive {} hangs: it has answered nothing for {patience:?}", path.display())]
    Hangs { path: PathBuf, patience: Duration },
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

/// What a node holds at one moment: for workers, for what is under way, and as cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub sessions: u64,
    pub leases: u64,
    pub reservations: u64,
    /// Of the queue for saves, promised to reservations.
    pub reserved_bytes: u64,
    /// Each lease counts once for each segment that it holds.
    pub segment_holds: u64,
    /// Blocks on their way from a drive.
    pub reads: u64,
    pub blocks: u64,
    pub index_bytes: u64,
    pub host_frames: u64,
    pub host_bytes: u64,
    /// Of the load arena, in whosever hands.
    pub frame_bytes: u64,
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    pub(crate) config: Config,
    /// What all tenants' keys are derived from.
    pub(crate) secret: [u8; SECRET_BYTES],
    pub(crate) disks: Arc<Disks>,
    pub(crate) arena: Arc<Arena>,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) restart: Restart,
    /// Told when an earlier lease may be the next to end.
    pub(crate) leases_changed: Notify,
    /// Told when a lease has ended.
    pub(crate) lease_ended: Notify,
    /// Found at the start, and out of reach until a drive that was missing is back.
    pub(crate) waiting: Mutex<Vec<(DriveId, Found)>>,
    /// Held while a namespace is dropped.
    pub(crate) dropping: Mutex<()>,
    /// Whether a load beyond the arena was reported.
    pub(crate) said_beyond_arena: AtomicBool,
    /// Held while pins change.
    pub(crate) pinning: Mutex<()>,
    /// This node's part in a fleet, where it has one.
    pub(crate) fleet: OnceLock<Fleet>,
    pub(crate) state: Mutex<State>,
}

impl NodeError {
    /// Whether one drive is to blame, and nobody who could mend it by another config.
    pub(crate) fn is_of_drive(&self) -> bool {
        match self {
            Self::Open(error) => error.is_of_drive(),
            Self::Catalog { .. } | Self::Epochs(_) | Self::Hangs { .. } => true,
            Self::Arena { .. }
            | Self::Secret(_)
            | Self::Journal { .. }
            | Self::Thread { .. }
            | Self::Segments { .. } => false,
        }
    }
}

impl Node {
    /// Opens every drive, recovers what it holds, and starts its threads. Of several, those that are
    /// not there, or hang, are left out.
    pub(crate) async fn open(config: &Config) -> Result<Arc<Self>, NodeError> {
        let mut assembly = Assembly::begin(config, Clock::system())?;
        assembly.add_from_directories().await?;
        let node = tokio::task::spawn_blocking(move || assembly.finish()).await;
        node.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    pub fn restart(&self) -> &Restart {
        &self.restart
    }

    pub fn drives(&self) -> impl Iterator<Item = &Drive> {
        self.disks.iter().map(|disk| &disk.drive)
    }

    pub fn load_arena(&self) -> Arc<Arena> {
        Arc::clone(&self.arena)
    }

    pub(crate) fn numbered_disks(&self) -> impl Iterator<Item = (DriveId, &Disk)> {
        self.disks.numbered()
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Which blocks come and go from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.state().events.subscribe().0
    }

    /// What is held, as of now.
    pub fn held(&self) -> Held {
        let count = |size: usize| u64::try_from(size).expect("usize fits");
        let state = self.state();
        Held {
            sessions: count(state.sessions.len()),
            leases: count(state.leases.len()),
            reservations: count(state.leases.reservations()),
            reserved_bytes: state.leases.reserved_bytes(),
            segment_holds: state.segments.holds(),
            reads: count(state.reading.len()),
            blocks: count(state.chain.len()),
            index_bytes: state.chain.bytes(),
            host_frames: count(state.host.len()),
            host_bytes: state.host.bytes(),
            frame_bytes: self.arena.allocated_bytes(),
        }
    }

    /// All that is counted, as of now.
    pub(crate) fn metrics_text(&self) -> String {
        let mut state = self.state();
        state.expire_pins(unix_ms());
        let pinned = self.numbered_disks().map(|(drive, _)| state.segments.pinned_bytes(drive));
        self.metrics.pinned_bytes.set(pinned.sum());
        self.metrics.links.set(u64::try_from(state.links.len()).expect("usize fits"));
        drop(state);
        let held = self.held();
        let Metrics { sessions, leases, reservations, blocks, .. } = &self.metrics;
        sessions.set(held.sessions);
        leases.set(held.leases);
        reservations.set(held.reservations);
        blocks.set(held.blocks);
        self.metrics.index_bytes.set(held.index_bytes);
        self.metrics.host_frames.set(held.host_frames);
        self.metrics.host_bytes.set(held.host_bytes);
        self.metrics.arena_bytes.set(self.arena.mapping().bytes_len());
        let queued = self.drives().map(|drive| drive.stats().queued_write_bytes);
        self.metrics.save_queue_bytes.set(queued.sum());
        self.metrics.text()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic ends the process; see `serve`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn disk(&self, drive: DriveId) -> &Disk {
        self.disks.get(drive).expect("blocks lie on drives that are there")
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
            for disk in self.disks.iter() {
                disk.reclaim.notify_one();
            }
        }
    }

    /// Starts what runs beside the calls: ending leases, and keeping segments free.
    pub(crate) fn spawn_tasks(self: &Arc<Self>, addresses: &Arc<AddressFiles>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for (drive, _) in self.disks.all() {
            let (node, addresses) = (Arc::clone(self), Arc::clone(addresses));
            tasks.spawn(async move {
                node.until_there(drive, addresses).await;
                tokio::join!(Arc::clone(&node).reclaim(drive), node.attend(drive));
            });
        }
        tasks.spawn(Arc::clone(self).end_leases());
        tasks
    }

    /// Ends leases as their time comes, for as long as the node runs.
    pub async fn end_leases(self: Arc<Self>) {
        loop {
            match self.expire_leases(self.clock.now()) {
                None => self.leases_changed.notified().await,
                Some(next) => {
                    let changed = self.leases_changed.notified();
                    // Whichever comes first: it is looked at again.
                    let _ = self.clock.until(next, changed).await;
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
