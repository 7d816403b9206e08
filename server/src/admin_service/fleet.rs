//! What operators ask of a node about its fleet.

use crate::clock::unix_ms;
use crate::fleet::Fleet;
use crate::node::Node;
use crate::status;
use refrain_index::chain::BlockKey;
use refrain_index::directory::{NodeId, NodeState, Run};
use refrain_index::hash::SequenceHash;
use refrain_proto::v1;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tonic::Status;

/// An operator waits for longer than a lookup does.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn stats(node: &Node) -> Option<v1::DirectoryStats> {
    let membership = &node.fleet.get()?.membership;
    let counts = membership.directory().counts();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let members = membership.directory().members();
    let live = members.iter().filter(|member| member.state == NodeState::Live).count();
    Some(v1::DirectoryStats {
        node: membership.node().0.into(),
        epoch: membership.epoch().into(),
        reached: counts.is_reached(),
        joined: membership.is_joined(),
        live_nodes: u32::try_from(live).expect("node ids have 16 bits"),
        pending: u64::try_from(membership.pending()).expect("usize fits"),
        published: count(&counts.published),
        unpublished: count(&counts.unpublished),
        locates: count(&counts.locates),
        probes: count(&counts.probes),
        unknown_probes: count(&counts.unknown_probes),
        audited: count(&counts.audited),
        audited_missing: count(&counts.audited_missing),
    })
}

pub(super) fn nodes(node: &Node) -> Result<v1::NodesResponse, Status> {
    let membership = &fleet(node)?.membership;
    let now = unix_ms();
    let info = |member: refrain_index::directory::Member| v1::NodeInfo {
        node: member.node.0.into(),
        epoch: member.epoch.into(),
        state: match member.state {
            NodeState::Live => "live",
            NodeState::Draining => "draining",
            NodeState::Away => "away",
        }
        .into(),
        address: member.address,
        epoch_age_ms: now.saturating_sub(member.since_ms),
        here: member.node == membership.node(),
    };
    let directory = membership.directory();
    let nodes = directory.members().into_iter().map(info).collect();
    Ok(v1::NodesResponse { reached: directory.counts().is_reached(), nodes })
}

/// Has the fleet forget a node that has left for good.
pub(super) async fn forget(node: &Node, number: u32) -> Result<(), Status> {
    let directory = fleet(node)?.membership.directory();
    let number = u16::try_from(number)
        .map_err(|_| Status::invalid_argument("nodes have numbers from 0 to 65,535"))?;
    let forgotten = directory.forget_node(NodeId(number), Instant::now() + PATIENCE);
    forgotten.await.map_err(status::of_forget)
}

/// Where blocks are, on this node too: of that it knows by itself.
pub(super) async fn locate(
    node: &Node,
    shard: u32,
    hashes: &[SequenceHash],
) -> Result<v1::WhereResponse, Status> {
    let membership = &fleet(node)?.membership;
    let deadline = Instant::now() + PATIENCE;
    let located = membership.directory().locate(shard, hashes, deadline).await;
    let mut runs: Vec<_> = located.runs.into_iter().map(there).collect();
    runs.extend(here(node, shard, hashes));
    runs.sort_by_key(|run| (run.first_block, u32::MAX - run.blocks, run.node));
    let unknown = located.unknown.iter().map(std::iter::ExactSizeIterator::len).sum();
    Ok(v1::WhereResponse {
        prompt_blocks: count(hashes.len()),
        runs,
        unknown_blocks: count(unknown),
    })
}

fn there(run: Run) -> v1::WhereRun {
    v1::WhereRun {
        node: run.owner.node.0.into(),
        epoch: run.owner.epoch.into(),
        address: run.owner.address,
        first_block: count(run.first),
        blocks: count(run.count),
        here: false,
    }
}

fn here(node: &Node, shard: u32, hashes: &[SequenceHash]) -> Vec<v1::WhereRun> {
    let Some(Fleet { membership }) = node.fleet.get() else { return Vec::new() };
    let address = node.config.directory.as_ref().map(|directory| directory.address.clone());
    let state = node.state();
    let is_here =
        |&sequence: &SequenceHash| state.chain.get(BlockKey { sequence, shard }).is_some();
    let resident: Vec<bool> = hashes.iter().map(is_here).collect();
    let mut runs = Vec::new();
    let mut first = 0;
    for alike in resident.chunk_by(|left, right| left == right) {
        if alike[0] {
            runs.push(v1::WhereRun {
                node: membership.node().0.into(),
                epoch: membership.epoch().into(),
                address: address.clone().unwrap_or_default(),
                first_block: count(first),
                blocks: count(alike.len()),
                here: true,
            });
        }
        first += alike.len();
    }
    runs
}

fn fleet(node: &Node) -> Result<&Fleet, Status> {
    let missing = "this node is in no fleet: its config names no directory";
    node.fleet.get().ok_or_else(|| Status::failed_precondition(missing))
}

fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).expect("a prompt has fewer than 2^32 blocks")
}
