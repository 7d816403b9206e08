//! This node in the fleet: its lease, and its blocks in the directory.
//!
//! What changes is a set of blocks whose entries may be wrong. Each is written as the node holds it
//! by then: published or taken out. So the order of changes is of no account, a write that failed is
//! done again, and what is too much to remember is announced anew, a group of slots at a time.

use super::answer::{integer, items, text};
use super::cluster::{From, Op};
use super::owners::Claim;
use super::registry::{LAYOUT, RECORDS, lease_key, registry_slot};
use super::slots::{GROUPS, group};
use super::write::Write;
use super::{Directory, NodeId, NodeState, counts, locked};
use crate::chain::BlockKey;
use redis::{Value, cmd};
use std::collections::{HashSet, VecDeque};
use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;
use tracing::{error, info, warn};

/// How long a node is in the fleet that says nothing. Longer than a failover takes.
const LEASE: Duration = Duration::from_secs(15);
const BEAT: Duration = Duration::from_secs(3);
/// A beat that takes longer is the next one's.
const BEAT_PATIENCE: Duration = Duration::from_secs(2);
/// Blocks whose entries may be wrong; of more, their groups are announced anew.
const CHANGES_MAX: usize = 1 << 18;
/// Of these at once.
const CHANGES_AT_ONCE: usize = 1024;
/// After writes that no server took, and while there is no server.
const PAUSE: Duration = Duration::from_millis(100);

/// What of a node outlives its process, and must: who it is to the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    pub node: NodeId,
    /// Tells its disks from those of another node of this number.
    pub identity: u128,
    /// 0 before it ever joined.
    pub epoch: u16,
    /// Of each group, the marker that its blocks were announced under; 0 is none.
    pub announced: [u64; GROUPS],
}

impl Life {
    /// The life of disks that were never in the fleet.
    pub fn begin(node: NodeId) -> Self {
        let identity = u128::from(fastrand::u64(1..)) << 64 | u128::from(fastrand::u64(..));
        Self { node, identity, epoch: 0, announced: [0; GROUPS] }
    }

    /// What was published before does not count any more; `None` in the last epoch there is.
    pub fn renewed(&self) -> Option<Self> {
        let epoch = self.epoch.checked_add(1)?;
        Some(Self { epoch, announced: [0; GROUPS], ..self.clone() })
    }
}

/// What a node holds, and where it keeps its life.
pub trait Holdings: Debug + Send + Sync + 'static {
    /// Keeps it on the disk, durably. May block.
    fn keep(&self, life: &Life) -> io::Result<()>;
    /// Whether a block is resident, and not about to go.
    fn holds(&self, key: BlockKey) -> bool;
    /// Pages of blocks; together they are all that stayed meanwhile.
    fn pages(&self) -> usize;
    fn page(&self, page: usize) -> Vec<BlockKey>;
}

/// A node's part in the fleet. Clones share it.
#[derive(Clone, Debug)]
pub struct Membership {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) directory: Directory,
    address: String,
    bucket_bits: u8,
    pub(super) holdings: Arc<dyn Holdings>,
    pub(super) life: Mutex<Life>,
    /// In this life's epoch; it publishes, and is found.
    joined: AtomicBool,
    pub(super) joined_now: Notify,
    draining: AtomicBool,
    changes: Mutex<Changes>,
    changed: Notify,
    /// Held from when it is seen what is held until that is written.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Changes {
    queue: VecDeque<BlockKey>,
    queued: HashSet<BlockKey>,
}

impl Membership {
    /// A node that is about to join; `run` has it do so. `bucket_bits` counts where nobody ever
    /// joined before.
    pub fn new(
        directory: Directory,
        address: String,
        bucket_bits: u8,
        life: Life,
        holdings: Arc<dyn Holdings>,
    ) -> Self {
        *locked(&directory.shared.own) = Some(life.node);
        Self {
            inner: Arc::new(Inner {
                directory,
                address,
                bucket_bits,
                holdings,
                life: Mutex::new(life),
                joined: AtomicBool::new(false),
                joined_now: Notify::new(),
                draining: AtomicBool::new(false),
                changes: Mutex::default(),
                changed: Notify::new(),
                writing: tokio::sync::Mutex::default(),
            }),
        }
    }

    pub fn directory(&self) -> &Directory {
        &self.inner.directory
    }

    pub fn node(&self) -> NodeId {
        locked(&self.inner.life).node
    }

    pub fn epoch(&self) -> u16 {
        locked(&self.inner.life).epoch
    }

    pub fn state(&self) -> NodeState {
        self.inner.state()
    }

    /// Whether the fleet finds this node's blocks.
    pub fn is_joined(&self) -> bool {
        self.inner.joined.load(Relaxed)
    }

    /// Blocks whose entries are still to be written.
    pub fn pending(&self) -> usize {
        locked(&self.inner.changes).queue.len()
    }

    /// Blocks came, durably, or went. Waits for nothing.
    pub fn changed(&self, keys: &[BlockKey]) {
        let mut changes = locked(&self.inner.changes);
        let mut dropped = Vec::new();
        for &key in keys {
            if changes.queued.contains(&key) {
                continue;
            }
            if changes.queue.len() >= CHANGES_MAX {
                dropped.push(key);
            } else {
                changes.queued.insert(key);
                changes.queue.push_back(key);
            }
        }
        drop(changes);
        if !dropped.is_empty() {
            counts::add(&self.inner.directory.shared.counts.dropped_changes, dropped.len());
            self.inner.doubt(dropped.into_iter().map(group));
        }
        self.inner.changed.notify_one();
    }

    /// Any of the node's entries may be wrong.
    pub fn doubt_all(&self) {
        self.inner.doubt(0..GROUPS);
    }

    /// From now on no peer is sent here.
    pub async fn drain(&self) {
        self.inner.draining.store(true, Relaxed);
        self.inner.beat(LEASE).await;
    }

    /// Ends the lease: the node's entries sleep until it is back.
    pub async fn leave(&self) {
        self.inner.draining.store(true, Relaxed);
        self.inner.beat(Duration::ZERO).await;
        self.inner.joined.store(false, Relaxed);
    }

    /// Keeps the node in the fleet, for as long as it is polled.
    pub async fn run(&self) {
        let inner = &self.inner;
        tokio::join!(
            inner.keep_lease(),
            inner.publish(),
            inner.announce(),
            inner.audit(),
            inner.sweep()
        );
    }
}

impl Inner {
    pub(super) fn is_joined(&self) -> bool {
        self.joined.load(Relaxed)
    }

    pub(super) fn claim(&self) -> Claim {
        let life = locked(&self.life);
        Claim { node: life.node, epoch: life.epoch }
    }

    /// Blocks of these groups are announced anew, also after a restart.
    fn doubt(&self, groups: impl Iterator<Item = usize>) {
        let mut life = locked(&self.life);
        let mut is_new = false;
        for group in groups {
            is_new |= std::mem::take(&mut life.announced[group]) != 0;
        }
        let kept = is_new.then(|| life.clone());
        drop(life);
        if let Some(life) = kept {
            self.keep_aside(life);
        }
    }

    /// Off the runtime, as it syncs. Where it is lost, a restart announces too little, and the audit
    /// finds it.
    fn keep_aside(&self, life: Life) {
        let holdings = Arc::clone(&self.holdings);
        drop(tokio::task::spawn_blocking(move || keep(&*holdings, &life)));
    }

    async fn keep_lease(&self) {
        while !self.directory.counts().is_reached() {
            tokio::time::sleep(PAUSE).await;
        }
        loop {
            let begun = Instant::now();
            if !self.is_joined() || !self.beat(LEASE).await {
                self.join().await;
            }
            tokio::time::sleep(BEAT.saturating_sub(begun.elapsed())).await;
        }
    }

    /// `false` where the registry knows this life no more.
    async fn beat(&self, lease: Duration) -> bool {
        if !self.is_joined() {
            return true;
        }
        let life = locked(&self.life).clone();
        let state = if self.draining.load(Relaxed) { "draining" } else { "live" };
        let mut command = cmd("FCALL");
        command.arg("refrain1_beat").arg(2).arg(RECORDS).arg(lease_key(life.node));
        command.arg(life.node.0).arg(hex(life.identity)).arg(life.epoch);
        command.arg(state).arg(millis(lease));
        match self.call(command).await.as_ref().and_then(integer) {
            Some(0) => {
                warn!(node = life.node.0, "the fleet's registry has lost this node: joining again");
                self.joined.store(false, Relaxed);
                false
            }
            // Nobody answers: a lease lapses, or not, and the next beat sees.
            _ => true,
        }
    }

    async fn join(&self) {
        if self.draining.load(Relaxed) {
            return;
        }
        let before = locked(&self.life).clone();
        let mut command = cmd("FCALL");
        command.arg("refrain1_join").arg(3).arg(RECORDS).arg(lease_key(before.node)).arg(LAYOUT);
        command.arg(before.node.0).arg(hex(before.identity)).arg(before.epoch);
        command.arg(&self.address).arg(unix_ms()).arg(millis(LEASE));
        // Entries that an earlier node of this number left are told apart by luck alone, where
        // nobody remembers its epoch.
        command.arg(fastrand::u16(1..1 << 15)).arg(self.bucket_bits);
        let answer = self.call(command).await;
        let Some(answer) = answer.as_ref().and_then(items) else { return };
        let node = before.node.0;
        let epoch = answer.first().and_then(integer).and_then(|epoch| u16::try_from(epoch).ok());
        let Some(epoch) = epoch.filter(|epoch| *epoch != 0) else {
            match answer.get(1).and_then(text).unwrap_or_default() {
                "" => error!(node, "this node's number has used up its epochs: give it another"),
                holder => error!(node, holder, "this node's number is another's, which is alive"),
            }
            return;
        };
        let mut life = Life { epoch, ..before.clone() };
        if epoch != before.epoch {
            // Whatever was announced, it was in another epoch.
            life.announced = [0; GROUPS];
            let (holdings, kept) = (Arc::clone(&self.holdings), life.clone());
            let keeping = tokio::task::spawn_blocking(move || keep(&*holdings, &kept)).await;
            if !keeping.unwrap_or(false) {
                // An epoch that a restart does not know would be raised each time.
                return;
            }
        }
        *locked(&self.life) = life;
        self.joined.store(true, Relaxed);
        info!(node, epoch, address = self.address, "joined the fleet");
        self.joined_now.notify_waiters();
        self.changed.notify_one();
    }

    async fn call(&self, command: redis::Cmd) -> Option<Value> {
        let op = Op { slot: registry_slot(), command };
        let deadline = Instant::now() + BEAT_PATIENCE;
        let cluster = &self.directory.shared.cluster;
        cluster.run(&[op], From::Master, deadline).await.pop().flatten()
    }

    /// Writes what changes, as it comes.
    async fn publish(&self) {
        loop {
            let some: Vec<_> = {
                let mut changes = locked(&self.changes);
                let count = changes.queue.len().min(CHANGES_AT_ONCE);
                let some = if self.is_joined() { count } else { 0 };
                let some: Vec<_> = changes.queue.drain(..some).collect();
                for key in &some {
                    changes.queued.remove(key);
                }
                some
            };
            if some.is_empty() {
                self.changed.notified().await;
                continue;
            }
            let failed = self.write(&some).await;
            if !failed.is_empty() {
                self.put_back(&failed);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Has entries say what is held; the blocks that no server took.
    pub(super) async fn write(&self, keys: &[BlockKey]) -> Vec<BlockKey> {
        let _one_after_the_other = self.writing.lock().await;
        let claim = self.claim();
        let write = |&key: &BlockKey| {
            let write = if self.holdings.holds(key) { Write::Put } else { Write::Remove };
            (key, claim, write)
        };
        let writes = keys.iter().map(write).collect();
        self.directory.shared.write(writes).await
    }

    fn put_back(&self, keys: &[BlockKey]) {
        let mut changes = locked(&self.changes);
        for &key in keys {
            if changes.queued.insert(key) {
                changes.queue.push_back(key);
            }
        }
    }

    fn state(&self) -> NodeState {
        match (self.is_joined(), self.draining.load(Relaxed)) {
            (false, _) => NodeState::Away,
            (true, true) => NodeState::Draining,
            (true, false) => NodeState::Live,
        }
    }
}

/// Whether it is kept.
pub(super) fn keep(holdings: &dyn Holdings, life: &Life) -> bool {
    let kept = holdings.keep(life);
    if let Err(error) = &kept {
        warn!(%error, "this node's part in the fleet cannot be kept on its disks");
    }
    kept.is_ok()
}

fn hex(identity: u128) -> String {
    format!("{identity:032x}")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, millis)
}
