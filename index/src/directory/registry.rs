//! Who is in the fleet, and in which epoch: records that stay, and leases that lapse.
//!
//! An owner counts only where its node's lease says the same epoch. So all entries of a node that
//! dies are void, at every reader and without one write, and count again when it comes back. Of one that
//! has left for good an operator has the registry forget all but its last epoch.

use super::NodeId;
use super::answer::{integer, items, text};
use super::cluster::{Cluster, From, Op};
use super::owners::Claim;
use super::slots::{BUCKET_BITS_MAX, slot_of};
use redis::{Value, cmd};
use std::collections::BTreeMap;
use std::time::Instant;

pub(super) const RECORDS: &[u8] = b"{nodes}:r";
pub(super) const LAYOUT: &[u8] = b"{nodes}:layout";

pub(super) fn lease_key(node: NodeId) -> Vec<u8> {
    format!("{{nodes}}:l:{}", node.0).into_bytes()
}

pub(super) fn registry_slot() -> u16 {
    slot_of(RECORDS)
}

/// What a lease says of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    Live,
    /// It finishes what runs and takes no more.
    Draining,
    /// Its lease has lapsed: its entries do not count, until it is back.
    Away,
}

/// A node that ever joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub node: NodeId,
    pub epoch: u16,
    pub state: NodeState,
    /// Where its peers reach it.
    pub address: String,
    /// When its epoch began, in milliseconds of the Unix epoch.
    pub since_ms: u64,
}

/// The registry, as it was read last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Registry {
    pub(super) members: BTreeMap<NodeId, Member>,
    /// The last epochs of nodes that were forgotten.
    pub(super) gone: BTreeMap<NodeId, u16>,
    /// Bits of a bucket's number; `None` where nobody ever joined.
    pub(super) bucket_bits: Option<u8>,
}

impl Registry {
    /// The node that a claim counts for.
    pub(super) fn owner(&self, claim: Claim) -> Option<&Member> {
        let member = self.members.get(&claim.node)?;
        (member.epoch == claim.epoch && member.state == NodeState::Live).then_some(member)
    }

    /// Whether a claim will never count again.
    pub(super) fn is_void(&self, claim: Claim) -> bool {
        let is_past =
            self.members.get(&claim.node).is_some_and(|member| member.epoch > claim.epoch);
        is_past || self.is_forgotten(claim)
    }

    pub(super) fn is_forgotten(&self, claim: Claim) -> bool {
        self.gone.get(&claim.node).is_some_and(|last| claim.epoch <= *last)
    }
}

/// Asks for the registry; `None` where nobody answers: the last one goes on.
pub(super) async fn read(cluster: &Cluster, deadline: Instant) -> Option<Registry> {
    let slot = registry_slot();
    let layout = Op { slot, command: cmd("GET").arg(LAYOUT).to_owned() };
    let records = Op { slot, command: cmd("HGETALL").arg(RECORDS).to_owned() };
    let answers = cluster.run(&[layout, records], From::Any, deadline).await;
    let [Some(layout), Some(records)] = &answers[..] else { return None };
    let (mut members, gone) = parse_records(records)?;
    let bucket_bits = parse_layout(layout);
    let mut registry = Registry { gone, bucket_bits, ..Registry::default() };
    if !members.is_empty() {
        let keys: Vec<_> = members.keys().map(|node| lease_key(*node)).collect();
        let leases = [Op { slot, command: cmd("MGET").arg(keys).to_owned() }];
        let answers = cluster.run(&leases, From::Any, deadline).await;
        let leases = items(answers.first()?.as_ref()?)?;
        for (member, lease) in members.values_mut().zip(leases) {
            if let Some((epoch, state)) = text(lease).and_then(parse_lease) {
                (member.epoch, member.state) = (epoch, state);
            }
        }
    }
    registry.members = members;
    Some(registry)
}

fn parse_layout(value: &Value) -> Option<u8> {
    let bits = text(value)?.strip_prefix("1 ")?.parse().ok()?;
    (bits <= BUCKET_BITS_MAX).then_some(bits)
}

/// Has a node that has left for good forgotten; `None` where nobody answers.
pub(super) async fn forget(cluster: &Cluster, node: NodeId, deadline: Instant) -> Option<i64> {
    let mut command = cmd("FCALL");
    command.arg("refrain1_forget").arg(2).arg(RECORDS).arg(lease_key(node)).arg(node.0);
    let op = Op { slot: registry_slot(), command };
    integer(cluster.run(&[op], From::Master, deadline).await.first()?.as_ref()?)
}

type Records = (BTreeMap<NodeId, Member>, BTreeMap<NodeId, u16>);

/// Nodes, and those that are gone. What is no record is passed over.
fn parse_records(value: &Value) -> Option<Records> {
    let (pairs, _) = items(value)?.as_chunks::<2>();
    let parse_gone = |[node, record]: &[Value; 2]| {
        let last = text(record)?.strip_prefix("gone ")?.parse().ok()?;
        Some((NodeId(text(node)?.parse().ok()?), last))
    };
    let parse = |[node, record]: &[Value; 2]| {
        let node = NodeId(text(node)?.parse().ok()?);
        let mut words = text(record)?.splitn(5, ' ');
        let (Some("1"), Some(epoch), Some(_), Some(since), Some(address)) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            return None;
        };
        let (epoch, since_ms) = (epoch.parse().ok()?, since.parse().ok()?);
        let address = address.to_owned();
        Some((node, Member { node, epoch, state: NodeState::Away, address, since_ms }))
    };
    let members = pairs.iter().filter_map(parse).collect();
    Some((members, pairs.iter().filter_map(parse_gone).collect()))
}

fn parse_lease(lease: &str) -> Option<(u16, NodeState)> {
    let (epoch, state) = lease.split_once(' ')?;
    let state = match state {
        "live" => NodeState::Live,
        "draining" => NodeState::Draining,
        _ => return None,
    };
    Some((epoch.parse().ok()?, state))
}
