//! A cluster for one claim, and nodes that hold names of blocks.

use crate::fixture::node::home;
use crate::fixture::{PATIENCE, eventually};
use refrain::cluster::{Cluster, TlsFiles};
use refrain_index::chain::BlockKey;
use refrain_index::directory::{
    Directory, Holdings, Life, Located, Membership, NodeId, Settings, Tls, User,
};
use refrain_index::hash::SequenceHash;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::AbortHandle;

/// A directory that was lost is announced again within this time: markers are looked at every 10 s.
pub(crate) const WHOLE_AGAIN: Duration = Duration::from_mins(1);

/// Few, so that a test's blocks share some.
pub(crate) const BUCKET_BITS: u8 = 2;

pub(crate) struct Rig {
    pub(crate) cluster: Cluster,
    _home: TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let home = home();
        let cluster = Cluster::start(home.path(), None).unwrap();
        Self { cluster, _home: home }
    }

    pub(crate) fn with_tls(files: TlsFiles) -> Self {
        let home = home();
        let cluster = Cluster::start(home.path(), Some(files)).unwrap();
        Self { cluster, _home: home }
    }

    pub(crate) fn alone() -> Self {
        let home = home();
        let cluster = Cluster::start_alone(home.path()).unwrap();
        Self { cluster, _home: home }
    }

    pub(crate) fn settings(&self) -> Settings {
        let name = "refrain".into();
        let user = Some(User { name, password: self.cluster.password().into() });
        Settings { seeds: self.cluster.addresses(), user, tls: None }
    }

    pub(crate) fn with(&self, tls: Tls) -> Settings {
        Settings { tls: Some(tls), ..self.settings() }
    }

    /// Writes of entries, by whichever command, by all servers together.
    pub(crate) fn entry_writes(&self) -> u64 {
        ["hset", "hsetnx", "hdel"].map(|command| self.calls(command)).iter().sum()
    }

    /// Calls of a command, by all servers together.
    fn calls(&self, command: &str) -> u64 {
        let servers = 0..self.cluster.len();
        let calls = |server| {
            let info = self.cluster.command(server, ["INFO", "commandstats"]).unwrap();
            let name = format!("cmdstat_{command}:calls=");
            let of = |line: &str| line.strip_prefix(&name)?.split(',').next()?.parse::<u64>().ok();
            info.lines().find_map(of).unwrap_or(0)
        };
        servers.map(calls).sum()
    }
}

/// Names of blocks, and the life that a disk would keep.
#[derive(Debug)]
pub(crate) struct Shelf {
    held: Mutex<BTreeSet<BlockKey>>,
    pub(crate) life: Mutex<Life>,
}

impl Holdings for Shelf {
    fn keep(&self, life: &Life) -> io::Result<()> {
        *self.life.lock().unwrap() = life.clone();
        Ok(())
    }

    fn holds(&self, key: BlockKey) -> bool {
        self.held.lock().unwrap().contains(&key)
    }

    fn pages(&self) -> usize {
        2
    }

    fn page(&self, page: usize) -> Vec<BlockKey> {
        let held = self.held.lock().unwrap();
        let half = held.len().div_ceil(2);
        held.iter().skip(page * half).take(half).copied().collect()
    }
}

/// A node that is in the fleet until it is dropped.
pub(crate) struct Node {
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) membership: Membership,
    running: AbortHandle,
}

impl Node {
    pub(crate) fn join(settings: Settings, life: Life) -> Self {
        let (held, life) = (Mutex::default(), Mutex::new(life));
        Self::with(settings, Arc::new(Shelf { held, life }))
    }

    /// With the disk of a node before it.
    pub(crate) fn with(settings: Settings, shelf: Arc<Shelf>) -> Self {
        let directory = Directory::connect(settings).unwrap();
        let life = shelf.life.lock().unwrap().clone();
        let address = format!("127.0.0.1:{}", 9000 + life.node.0);
        let held: Arc<dyn Holdings> = Arc::<Shelf>::clone(&shelf);
        let membership = Membership::new(directory, address, BUCKET_BITS, life, held);
        let run = membership.clone();
        let running = tokio::spawn(async move { run.run().await }).abort_handle();
        Self { shelf, membership, running }
    }

    pub(crate) async fn new(rig: &Rig, node: u16) -> Self {
        let node = Self::join(rig.settings(), Life::begin(NodeId(node)));
        node.joined().await;
        node
    }

    pub(crate) async fn joined(&self) {
        eventually("it joins", PATIENCE, async || self.membership.is_joined().then_some(())).await;
    }

    pub(crate) fn add(&self, keys: &[BlockKey]) {
        self.shelf.held.lock().unwrap().extend(keys);
        self.membership.changed(keys);
    }

    pub(crate) fn remove(&self, keys: &[BlockKey]) {
        self.lose(keys);
        self.membership.changed(keys);
    }

    /// Without a word.
    pub(crate) fn lose(&self, keys: &[BlockKey]) {
        let mut held = self.shelf.held.lock().unwrap();
        for key in keys {
            assert!(held.remove(key));
        }
    }

    /// In good order; its disk is what is left.
    pub(crate) async fn leave(self) -> Arc<Shelf> {
        self.membership.leave().await;
        Arc::clone(&self.shelf)
    }

    pub(crate) fn directory(&self) -> &Directory {
        self.membership.directory()
    }

    pub(crate) async fn locate(&self, chain: &[BlockKey]) -> Located {
        self.locate_within(chain, Duration::from_secs(2)).await
    }

    pub(crate) async fn locate_within(&self, chain: &[BlockKey], time: Duration) -> Located {
        let hashes: Vec<SequenceHash> = chain.iter().map(|key| key.sequence).collect();
        let shard = chain.first().map_or(0, |key| key.shard);
        self.directory().locate(shard, &hashes, Instant::now() + time).await
    }

    /// Waits until runs of a chain are these: node, first, count.
    pub(crate) async fn finds(&self, chain: &[BlockKey], runs: &[(u16, usize, usize)]) {
        self.finds_within(PATIENCE, chain, runs).await;
    }

    pub(crate) async fn finds_within(
        &self,
        limit: Duration,
        chain: &[BlockKey],
        expected: &[(u16, usize, usize)],
    ) {
        eventually(&format!("runs {expected:?}"), limit, async || {
            let located = self.locate(chain).await;
            (located.unknown.is_empty() && runs(&located) == expected).then_some(())
        })
        .await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.running.abort();
    }
}

pub(crate) fn runs(located: &Located) -> Vec<(u16, usize, usize)> {
    located.runs.iter().map(|run| (run.owner.node.0, run.first, run.count)).collect()
}

/// A chain of blocks that no other `seed` has.
pub(crate) fn chain(seed: u64, blocks: usize) -> Vec<BlockKey> {
    let mut random = fastrand::Rng::with_seed(seed);
    let hash = |_| SequenceHash(std::array::from_fn(|_| random.u8(..)));
    (0..blocks).map(hash).map(|sequence| BlockKey { sequence, shard: 0 }).collect()
}
