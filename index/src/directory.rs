//! The fleet's index: which node is thought to hold which block.
//!
//! It is a hint, kept in a Redis or Valkey cluster and derived from the nodes: an owner's own index
//! is the truth about its blocks. What is lost here costs hits on other nodes' blocks and nothing
//! else, and whatever asks here has a deadline.
//!
//! A block's entry names its owners, each a node and an epoch of it; the registry says which nodes
//! live, and in which epoch. [`Directory`] reads both; a [`Membership`] has this node in them.

use crate::chain::BlockKey;
use crate::hash::SequenceHash;
use cluster::{Cluster, From, Op};
use gallop::Probe;
use owners::Claim;
use redis::{RedisError, Value, cmd};
use registry::Registry;
use slots::Spot;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

mod announce;
mod answer;
mod cluster;
mod connection;
mod counts;
mod gallop;
mod membership;
mod owners;
mod registry;
mod settings;
mod slots;
mod sweep;
mod topology;
mod write;

pub use counts::Counts;
pub use membership::{Holdings, Life, Membership};
pub use registry::{Member, NodeState};
pub use settings::{Settings, Tls, User};
/// Slots of the directory that are lost, and announced again, together: those of one first byte of a
/// hash.
pub const GROUPS: usize = slots::GROUPS;
/// The most bits that may number a bucket.
pub const BUCKET_BITS_MAX: u8 = slots::BUCKET_BITS_MAX;

/// How old the registry gets while it can be read.
const REGISTRY_INTERVAL: Duration = Duration::from_secs(1);
/// Wrong entries that wait to be taken out; of more, somebody else finds them again.
const FORGOTTEN_MAX: usize = 1 << 14;
/// Of these at once.
const FORGOTTEN_AT_ONCE: usize = 256;

/// A node of the fleet, as its operator numbered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u16);

/// A node that is thought to hold a block, in one life of its disks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub node: NodeId,
    /// Raised when its disks were lost: what it published before then does not count.
    pub epoch: u16,
    /// Where its peers reach it, as it says itself: `HOST:PORT`.
    pub address: String,
}

/// Blocks `first..first + count` of the chain that was asked for, which `owner` is thought to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub owner: Owner,
    pub first: usize,
    pub count: usize,
}

/// What the directory knows of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Located {
    /// By where they begin, of equals the longest first; runs of several owners overlap. Of this node
    /// there is none.
    pub runs: Vec<Run>,
    /// Blocks of which nothing is known, as whoever knows could not be reached in time: they may be
    /// anywhere. They end no run whose owner holds blocks on both sides of them.
    pub unknown: Vec<Range<usize>>,
}

/// Why a node is not forgotten.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ForgetError {
    #[error("the fleet has no node {node}")]
    Unknown { node: u16 },
    #[error("node {node} is in the fleet: stop it, and wait until its lease has lapsed")]
    Alive { node: u16 },
    #[error("the directory does not answer")]
    Unreached,
}

/// Why there is no way to a directory.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DirectoryError {
    #[error("directory server {address:?} is not HOST:PORT")]
    Address { address: String },
    #[error("use directory server {address:?}")]
    Settings { address: String, source: RedisError },
}

/// This node's way to the fleet's directory. Clones share it; with the last one its tasks end.
#[derive(Clone, Debug)]
pub struct Directory {
    shared: Arc<Shared>,
    _tasks: Arc<Tasks>,
}

#[derive(Debug)]
struct Shared {
    cluster: Cluster,
    counts: Arc<Counts>,
    registry: Mutex<Arc<Registry>>,
    /// This node, where it has joined.
    own: Mutex<Option<NodeId>>,
    forgotten: Mutex<VecDeque<(BlockKey, Claim)>>,
    forgotten_some: Notify,
}

#[derive(Debug)]
struct Tasks(Vec<AbortHandle>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl Directory {
    /// Begins to look for the directory, within a runtime; waits for nothing.
    pub fn connect(settings: Settings) -> Result<Self, DirectoryError> {
        let counts = Arc::new(Counts::default());
        let shared = Arc::new(Shared {
            cluster: Cluster::new(settings, Arc::clone(&counts))?,
            counts,
            registry: Mutex::default(),
            own: Mutex::default(),
            forgotten: Mutex::default(),
            forgotten_some: Notify::new(),
        });
        let (watching, reading, forgetting) = (shared.clone(), shared.clone(), shared.clone());
        let tasks = vec![
            tokio::spawn(async move { watching.cluster.watch().await }).abort_handle(),
            tokio::spawn(async move { reading.read_registry().await }).abort_handle(),
            tokio::spawn(async move { forgetting.forget_all().await }).abort_handle(),
        ];
        Ok(Self { shared, _tasks: Arc::new(Tasks(tasks)) })
    }

    /// Who is thought to hold which of a chain's blocks. `hashes` may be any stretch of a chain, in
    /// its order; the answer counts from its first. Comes at `deadline` at the latest, and what is
    /// not known by then is `unknown`: never an error.
    pub async fn locate(&self, shard: u32, hashes: &[SequenceHash], deadline: Instant) -> Located {
        let shared = &self.shared;
        counts::add(&shared.counts.locates, 1);
        let registry = shared.registry();
        let mut probes = vec![Probe::Unknown; hashes.len()];
        let first = gallop::first_round(hashes.len());
        shared.probe(&registry, (shard, hashes), &first, &mut probes, deadline).await;
        if hashes.len() > gallop::AT_ONCE {
            let second = gallop::second_round(&mut probes, &first);
            shared.probe(&registry, (shard, hashes), &second, &mut probes, deadline).await;
        }
        let (runs, unknown) = gallop::runs(&probes);
        let named = |(claim, run): &(Claim, Range<usize>)| {
            let member = registry.owner(*claim)?;
            let Claim { node, epoch } = *claim;
            let owner = Owner { node, epoch, address: member.address.clone() };
            Some(gallop::named(owner, run))
        };
        Located { runs: runs.iter().filter_map(named).collect(), unknown }
    }

    /// An owner answered that it does not hold a block: its entry goes, some time soon, unless the
    /// owner has published it in another epoch meanwhile. Waits for nothing.
    pub fn forget(&self, key: BlockKey, owner: &Owner) {
        self.shared.forget(key, Claim { node: owner.node, epoch: owner.epoch });
    }

    /// All nodes that ever joined and were not forgotten, as the registry was read last: a second ago,
    /// while it can be.
    pub fn members(&self) -> Vec<Member> {
        self.shared.registry().members.values().cloned().collect()
    }

    /// Strikes a node that has left for good from the registry. What it published is void, and goes.
    pub async fn forget_node(&self, node: NodeId, deadline: Instant) -> Result<(), ForgetError> {
        let (cluster, number) = (&self.shared.cluster, node.0);
        match registry::forget(cluster, node, deadline).await {
            Some(1) => Ok(()),
            Some(0) => Err(ForgetError::Alive { node: number }),
            Some(_) => Err(ForgetError::Unknown { node: number }),
            None => Err(ForgetError::Unreached),
        }
    }

    /// Whether the registry has been read at all.
    pub fn is_known(&self) -> bool {
        self.shared.registry().bucket_bits.is_some()
    }

    pub fn counts(&self) -> &Arc<Counts> {
        &self.shared.counts
    }
}

impl Shared {
    fn registry(&self) -> Arc<Registry> {
        Arc::clone(&locked(&self.registry))
    }

    /// Asks for some of a chain's blocks, and notes who counts.
    async fn probe(
        &self,
        registry: &Registry,
        (shard, hashes): (u32, &[SequenceHash]),
        blocks: &[usize],
        probes: &mut [Probe],
        deadline: Instant,
    ) {
        counts::add(&self.counts.probes, blocks.len());
        let Some(bits) = registry.bucket_bits else {
            counts::add(&self.counts.unknown_probes, blocks.len());
            return;
        };
        let key = |block: &usize| BlockKey { sequence: hashes[*block], shard };
        let ops: Vec<_> = blocks.iter().map(|block| get(key(block), bits)).collect();
        let answers = self.cluster.run(&ops, From::Any, deadline).await;
        let own = *locked(&self.own);
        let counts_for =
            |claim: &Claim| registry.owner(*claim).is_some() && Some(claim.node) != own;
        for (block, answer) in blocks.iter().zip(answers) {
            let Some(answer) = answer else {
                counts::add(&self.counts.unknown_probes, 1);
                continue;
            };
            let mut claims = self.claims(&answer);
            for void in claims.iter().filter(|claim| registry.is_void(**claim)) {
                self.forget(key(block), *void);
            }
            claims.retain(counts_for);
            claims.sort_unstable();
            probes[*block] = Probe::Owners(claims);
        }
    }

    /// What an entry says; nothing, where nobody of the fleet can have written it.
    fn claims(&self, value: &Value) -> Vec<Claim> {
        if *value == Value::Nil {
            return Vec::new();
        }
        let claims = answer::bytes(value).and_then(owners::decode);
        if claims.is_none() {
            counts::add(&self.counts.foreign_values, 1);
        }
        claims.unwrap_or_default()
    }

    fn forget(&self, key: BlockKey, claim: Claim) {
        let mut forgotten = locked(&self.forgotten);
        if forgotten.len() < FORGOTTEN_MAX {
            forgotten.push_back((key, claim));
            self.forgotten_some.notify_one();
        }
    }

    /// Takes wrong entries out, as they are found.
    async fn forget_all(&self) {
        loop {
            let some: Vec<_> = {
                let mut forgotten = locked(&self.forgotten);
                let count = forgotten.len().min(FORGOTTEN_AT_ONCE);
                forgotten.drain(..count).collect()
            };
            if some.is_empty() {
                self.forgotten_some.notified().await;
                continue;
            }
            self.take_out(&some).await;
        }
    }

    async fn read_registry(&self) {
        loop {
            let deadline = Instant::now() + 2 * REGISTRY_INTERVAL;
            let read = registry::read(&self.cluster, deadline).await;
            let pause = if read.is_some() || self.registry().bucket_bits.is_some() {
                REGISTRY_INTERVAL
            } else {
                REGISTRY_INTERVAL / 10
            };
            if let Some(read) = read {
                *locked(&self.registry) = Arc::new(read);
            }
            tokio::time::sleep(pause).await;
        }
    }
}

fn get(key: BlockKey, bits: u8) -> Op {
    let spot = Spot::of(key, bits);
    let command = cmd("HGET").arg(spot.bucket_key(bits)).arg(&spot.field[..]).to_owned();
    Op { slot: spot.slot, command }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one of these.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
