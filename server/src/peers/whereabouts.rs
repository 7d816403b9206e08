//! Who may hold what stands behind a local prefix: the peers of the config, and those that the fleet's
//! directory names.

use super::link::{Common, Link};
use crate::config::PeerAddress;
use crate::node::Node;
use refrain_index::chain::BlockKey;
use refrain_index::directory::{Directory, Located, Owner};
use refrain_index::hash::SequenceHash;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Owners that one lookup asks: the next best are there for what the best has lost.
const OWNERS_ASKED: usize = 3;
/// Nodes leave, and come back at other addresses: one that was not named for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_mins(10);

#[derive(Debug)]
pub(super) struct Whereabouts {
    common: Arc<Common>,
    /// Asked at every lookup.
    listed: Vec<Arc<Link>>,
    /// Others that the directory has named, by where they are reached.
    named: Mutex<BTreeMap<PeerAddress, Named>>,
}

#[derive(Debug)]
struct Named {
    link: Arc<Link>,
    /// When it was named last.
    last: Instant,
}

/// A peer that may hold blocks.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) link: Arc<Link>,
    /// As the directory has it, with the end of what it is thought to hold, in blocks of the prompt.
    owner: Option<(Owner, usize)>,
}

impl Whereabouts {
    pub(super) fn new(listed: &[PeerAddress], common: Arc<Common>) -> Self {
        let listed = listed.iter().map(|address| Link::new(address.clone(), &common)).collect();
        Self { common, listed, named: Mutex::default() }
    }

    /// Those to ask at every lookup.
    pub(super) fn listed(&self) -> impl Iterator<Item = Candidate> {
        self.listed.iter().map(|link| Candidate { link: Arc::clone(link), owner: None })
    }

    /// Those that the directory names for blocks of a prompt from `first` on. Comes by the deadline.
    pub(super) async fn named(
        &self,
        node: &Node,
        (shard, hashes, first): (u32, &[SequenceHash], usize),
        deadline: Instant,
    ) -> Vec<Candidate> {
        let Some(directory) = directory(node) else { return Vec::new() };
        let located = directory.locate(shard, &hashes[first..], deadline).await;
        let mut candidates = Vec::new();
        for (owner, reach) in furthest(located) {
            // Of an address that nobody could reach, whoever published it is told at its start.
            let Ok(address) = owner.address.parse::<PeerAddress>() else { continue };
            let is_listed = self.listed.iter().any(|link| link.address == address);
            if is_listed {
                continue;
            }
            let link = self.link(&address, node.clock.now());
            if !link.is_resting() {
                candidates.push(Candidate { link, owner: Some((owner, first + reach)) });
            }
            if candidates.len() == OWNERS_ASKED {
                break;
            }
        }
        candidates
    }

    fn link(&self, address: &PeerAddress, now: Instant) -> Arc<Link> {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if !named.contains_key(address) {
            // What is in use would be there twice.
            named.retain(|_, Named { link, last }| {
                Arc::strong_count(link) > 1 || now.saturating_duration_since(*last) < FORGOTTEN
            });
        }
        let begun = || Named { link: Link::new(address.clone(), &self.common), last: now };
        let named = named.entry(address.clone()).or_insert_with(begun);
        named.last = now;
        Arc::clone(&named.link)
    }

    /// All that are asked, or were lately.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        self.listed.iter().chain(named.values().map(|named| &named.link)).cloned().collect()
    }
}

impl Candidate {
    /// The owner has less than it was thought to: blocks of the prompt from `end` on.
    pub(super) fn holds(&self, node: &Node, (shard, hashes): (u32, &[SequenceHash]), end: usize) {
        if let (Some((owner, reach)), Some(directory)) = (&self.owner, directory(node)) {
            for &sequence in hashes.get(end..*reach).unwrap_or_default() {
                directory.forget(BlockKey { sequence, shard }, owner);
            }
        }
    }
}

fn directory(node: &Node) -> Option<&Directory> {
    node.fleet.get().map(|fleet| fleet.membership.directory())
}

/// The owners of a chain's blocks, each with the end of its last run, the furthest first: a node that
/// holds a block holds all before it.
fn furthest(located: Located) -> Vec<(Owner, usize)> {
    let mut runs = located.runs;
    runs.sort_by_key(|run| std::cmp::Reverse(run.first + run.count));
    let mut known = BTreeSet::new();
    let runs = runs.into_iter().filter(|run| known.insert(run.owner.node));
    runs.map(|run| (run.owner, run.first + run.count)).collect()
}

#[cfg(test)]
mod tests {
    //! Proves who is forgotten.

    use super::super::link::tests::common;
    use super::*;

    #[tokio::test]
    async fn peers_that_nobody_names_any_more_are_forgotten_unless_they_are_in_use() {
        let whereabouts = Whereabouts::new(&["10.0.0.1:1".parse().unwrap()], common());
        let start = Instant::now();
        let named = |host: u8, after: Duration| {
            let address = format!("10.0.0.{host}:1").parse().unwrap();
            whereabouts.link(&address, start + after)
        };
        let known = || -> Vec<_> {
            let links = whereabouts.links();
            links.iter().map(|link| link.address.host().to_owned()).collect()
        };
        let in_use = named(2, Duration::ZERO);
        drop((named(3, Duration::ZERO), named(4, Duration::ZERO)));
        drop(named(4, FORGOTTEN / 2));
        drop(named(5, FORGOTTEN));
        assert_eq!(known(), ["10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.5"]);
        assert!(Arc::ptr_eq(&in_use, &named(2, FORGOTTEN)));
        drop(in_use);
        drop(named(6, FORGOTTEN * 3));
        assert_eq!(known(), ["10.0.0.1", "10.0.0.6"]);
    }
}
