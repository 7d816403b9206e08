//! What one sidecar has, others find: byte for byte, as blocks of tier `peer`, and never at the cost of
//! more than a miss. All are real sidecars on loopback addresses of their own.
#![expect(clippy::unwrap_used, reason = "a claim that meets an error has failed")]

#[path = "../fixture/mod.rs"]
#[expect(dead_code, reason = "other claims use more of it")]
mod fixture;

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{MIB, Node, Setup};
use crate::fixture::worker::{Outcome, Worker};
use crate::fixture::{PATIENCE, eventually};
use refrain_client::v1::{MissReason, Tier};
use std::net::TcpListener;
use std::path::PathBuf;
use tempfile::TempDir;

mod failures;
mod hostile;
mod promises;
mod remote;
mod security;
mod transfers;

/// One layer of odd bytes; a block of DeepSeek-V3; four pages.
const SHAPES: [Shape; 3] = [Shape::new(1, 5003), Shape::new(61, 73_728), Shape::new(4, 4096)];
const SMALL: Shape = Shape::new(4, 20_000);

/// Nodes with one secret that ask each other.
struct Fleet {
    nodes: Vec<Node>,
    setups: Vec<Setup>,
    _home: TempDir,
}

/// An address of node `number`, at a port that was free just now.
fn address(number: usize) -> String {
    let ip = format!("127.0.0.{}", number + 2);
    let port = TcpListener::bind((ip.as_str(), 0)).unwrap().local_addr().unwrap().port();
    format!("{ip}:{port}")
}

/// A file that holds a secret which all who are given it share.
fn secret(home: &TempDir, name: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = home.path().join(name);
    let digit = u8::try_from(name.len()).unwrap();
    std::fs::write(&path, [digit; 32]).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// A node that is reached at `address` and asks `others`. Lookups wait long: the machine is slow.
fn setup(base: &Setup, secret: &std::path::Path, address: &str, others: &[&String]) -> Setup {
    base.clone()
        .with(&format!("secret_file = \"{}\"", secret.display()))
        .with(&format!("peers.listen = \"{address}\""))
        .with(&format!("peers.ask = {others:?}"))
        .with("peers.lookup_deadline = \"10s\"")
}

impl Fleet {
    /// Of as many nodes; each asks all others.
    fn of(count: usize, base: &Setup) -> Self {
        let home = tempfile::tempdir().unwrap();
        let secret = secret(&home, "secret");
        let addresses: Vec<_> = (0..count).map(address).collect();
        let own = |number: usize| {
            let others = addresses.iter().enumerate().filter(|(other, _)| *other != number);
            let others: Vec<_> = others.map(|(_, address)| address).collect();
            setup(base, &secret, &addresses[number], &others)
        };
        let setups: Vec<_> = (0..count).map(own).collect();
        let nodes = setups.iter().map(Node::start).collect();
        Self { nodes, setups, _home: home }
    }

    fn two() -> Self {
        Self::of(2, &Setup::default())
    }

    /// Waits until each node has a connection to each other.
    async fn is_connected(&self) {
        for node in &self.nodes {
            connected(node).await;
        }
    }
}

/// Waits until a node has a connection to each of its peers, which lookups make it ask.
async fn connected(node: &Node) {
    let worker = Worker::new(node, SMALL).await;
    eventually("peers are up", PATIENCE, async || {
        worker.matched(&prompt(9999, 1)).await;
        node.stats().await.peers.iter().all(|peer| peer.state == "up").then_some(())
    })
    .await;
}

/// Blocks of each tier that a lookup tells of.
async fn tiers(worker: &Worker, ids: &[u64]) -> [u32; 3] {
    let lookup = worker.lookup(ids).await.unwrap();
    let of = |tier: Tier| {
        lookup.tiers.iter().filter(|run| run.tier() == tier).map(|run| run.blocks).sum()
    };
    let tiers = [of(Tier::Host), of(Tier::Ssd), of(Tier::Peer)];
    lookup.release().await.unwrap();
    tiers
}

/// Nothing of peers is left on a node: no lease, no frame that is on its way.
async fn nothing_is_left(node: &Node) {
    eventually("no lease is held", PATIENCE, async || {
        (node.stats().await.leases == 0).then_some(())
    })
    .await;
}
