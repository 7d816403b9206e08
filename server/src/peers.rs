//! Other sidecars: what is not here may be theirs.
//!
//! A lookup asks them for what stands behind the prefix that is here, and waits for no longer than its
//! own deadline. What one of them promises is part of the lookup's lease, as blocks of tier `peer`. A
//! load brings them like any others: into frames, checked, announced in layer order, misses where they
//! do not come. So a peer can cost a lookup some milliseconds and a load its deadline, and nothing else.
//!
//! Who asks: [`link`] (a peer and its connection), [`remote`] (what it promised), [`receiving`],
//! [`arrival`]. Who is asked: [`door`] (listeners), [`service`], [`sending`]. [`edge`] is what both need.

use crate::config::PeersConfig;
use crate::lookup::Match;
use crate::namespaces::Registration;
use crate::node::Node;
use crate::wire;
use refrain_proto::Bytes;
use refrain_proto::v1::{self, OfferRefusal};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tonic::Code;
use tracing::warn;

mod arrival;
pub(crate) mod door;
pub(crate) mod edge;
mod link;
mod receiving;
mod remote;
mod sending;
pub(crate) mod service;
mod stream;
mod tls;
mod whereabouts;

use arrival::Asked as AskedBlocks;
pub(crate) use link::Report;
use link::{Common, Link, LinkError, Up};
pub(crate) use receiving::Fetched;
pub(crate) use remote::Remote;
use tls::Tls;
use whereabouts::{Candidate, Whereabouts};

/// How long after a lookup's deadline an answer may come that is given back at once.
const AFTERTHOUGHT: Duration = Duration::from_secs(2);
/// Bytes of a question: a prompt of a million tokens has 500,000.
const QUESTION_BYTES_MAX: usize = 64 << 20;

/// How a question to a peer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Offered,
    Nothing,
    Refused,
    /// It came after the lookup's deadline, or not at all.
    Late,
    Failed,
}

/// The peers that this node asks.
#[derive(Debug)]
pub(crate) struct Peers {
    whereabouts: Whereabouts,
    lookup_deadline: Duration,
}

impl Peers {
    /// Those of a config, each connected to as soon as it is there.
    pub(crate) fn start(
        config: &PeersConfig,
        node: &Node,
        tls: Option<&Tls>,
        data: &Handle,
    ) -> Arc<Self> {
        let common = Arc::new(Common {
            tls: tls.cloned(),
            config: config.clone(),
            secret: node.secret,
            clock: node.clock.clone(),
            runtime: Handle::current(),
            data: data.clone(),
            fetches: node.metrics.fetches.clone(),
        });
        let whereabouts = Whereabouts::new(&config.ask, common);
        whereabouts.links().iter().for_each(Link::connect_if_apart);
        Arc::new(Self { whereabouts, lookup_deadline: config.lookup_deadline })
    }

    /// Extends a lookup by what a peer has behind it: of several, the one with most, of equals the
    /// fastest. Returns by the deadline, and as soon as one has all of it.
    pub(crate) async fn extend(
        &self,
        node: &Arc<Node>,
        registration: &Arc<Registration>,
        found: &mut Match,
    ) {
        let Some(question) = Question::new(node, registration, found) else { return };
        let now = node.clock.now();
        let deadline = now + self.lookup_deadline;
        let question = Arc::new(question);
        let mut asking = JoinSet::new();
        let mut ask_also = |candidate: Candidate| {
            let (node, question) = (Arc::clone(node), Arc::clone(&question));
            asking.spawn(async move { ask(&node, &candidate, question, deadline).await });
        };
        self.whereabouts.listed().for_each(&mut ask_also);
        let blocks = &question.blocks;
        let missing = (blocks.shard, &*blocks.hashes, found.tiers.len());
        // Whom a slow directory left no time to answer would be thought slow.
        let located = now + self.lookup_deadline / 2;
        let named = self.whereabouts.named(node, missing, located).await;
        named.into_iter().for_each(ask_also);
        let mut best: Option<Remote> = None;
        while let Some(answer) = asking.join_next().await {
            let Ok(Some(remote)) = answer else { continue };
            let is_better = best
                .as_ref()
                .is_none_or(|best| (remote.blocks, best.expected) > (best.blocks, remote.expected));
            if is_better {
                best = Some(remote);
            }
            if best.as_ref().is_some_and(|best| best.blocks == question.wanted) {
                break;
            }
        }
        // Whoever answers later is given back what it offers.
        asking.detach_all();
        if let Some(best) = best {
            node.extend(found, Arc::new(best));
        }
    }

    pub(crate) fn report(&self) -> Vec<Report> {
        self.whereabouts.links().iter().map(|link| link.report()).collect()
    }
}

/// What peers are asked.
struct Question {
    request: v1::OfferRequest,
    /// Blocks behind the local prefix.
    wanted: u32,
    blocks: Arc<AskedBlocks>,
}

impl Question {
    /// `None` where nothing is missing.
    fn new(node: &Node, registration: &Registration, found: &Match) -> Option<Self> {
        let first = u32::try_from(found.tiers.len()).expect("32 bits fit");
        let wanted = found.prompt_blocks.checked_sub(first).filter(|wanted| *wanted > 0)?;
        let mut state = node.state();
        let names = &state.leases.get_mut(found.lease)?.names;
        if names.are_separate() {
            // Peers find chains, by the blocks before them.
            return None;
        }
        let hashes = Arc::clone(names.hashes());
        let namespace = state.namespaces.get(registration.namespace).described.clone()?;
        let epoch = state.epoch(registration.namespace);
        drop(state);
        let names: Bytes = hashes.iter().flat_map(|hash| hash.0).collect();
        let blocks = AskedBlocks {
            namespace: registration.digest.0,
            epoch,
            shard: registration.shard,
            root: registration.root(),
            hashes,
            layout: registration.layout.clone(),
        };
        let request = v1::OfferRequest {
            namespace: Some(wire::of_namespace(&namespace)),
            shard: registration.shard,
            epoch,
            sequence_hashes: names,
            first_block: first,
            lease_ms: u32::try_from(found.lease_time.as_millis()).unwrap_or(u32::MAX),
        };
        Some(Self { request, wanted, blocks: Arc::new(blocks) })
    }
}

/// Asks one peer. By the deadline there is an answer, or none.
async fn ask(
    node: &Node,
    candidate: &Candidate,
    question: Arc<Question>,
    deadline: Instant,
) -> Option<Remote> {
    let (link, until) = (&candidate.link, deadline.into());
    let (first, blocks) = (question.request.first_block, Arc::clone(&question.blocks));
    let Ok(reached) = tokio::time::timeout_at(until, link.reach()).await else {
        // Those behind this one do not wait as well until it connects.
        link.rest(&LinkError::Late);
        return None;
    };
    let up = reached?;
    let asking = {
        let (link, up) = (Arc::clone(link), Arc::clone(&up));
        let late = until + AFTERTHOUGHT;
        // A task of its own: the answer is a lease, which is given back where nobody waits for it.
        tokio::spawn(async move {
            let offered = offer(&link, &up, &question);
            tokio::time::timeout_at(late, offered).await.unwrap_or(Err(LinkError::Late))
        })
    };
    let answer = match tokio::time::timeout_at(until, asking).await {
        Ok(answer) => answer.unwrap_or(Err(LinkError::Answer)),
        Err(_) => Err(LinkError::Late),
    };
    let (end, remote) = match answer {
        Ok(Offered::Blocks(remote)) => (Asked::Offered, Some(remote)),
        Ok(Offered::Nothing) => (Asked::Nothing, None),
        Ok(Offered::Refused) => (Asked::Refused, None),
        Err(LinkError::Late) => {
            link.rest(&LinkError::Late);
            (Asked::Late, None)
        }
        Err(LinkError::Draining) => {
            link.rest(&LinkError::Draining);
            (Asked::Refused, None)
        }
        Err(error) => {
            link.lose(&up, &error);
            (Asked::Failed, None)
        }
    };
    node.metrics.offers.of(end).inc();
    let holds = |more: u32| usize::try_from(first.saturating_add(more)).expect("32 bits fit");
    let chain = (blocks.shard, &*blocks.hashes);
    match (end, &remote) {
        (Asked::Offered, Some(remote)) => candidate.holds(node, chain, holds(remote.blocks)),
        (Asked::Nothing, _) => candidate.holds(node, chain, holds(0)),
        (Asked::Offered | Asked::Refused | Asked::Late | Asked::Failed, _) => {}
    }
    remote
}

enum Offered {
    Blocks(Remote),
    Nothing,
    Refused,
}

async fn offer(link: &Arc<Link>, up: &Arc<Up>, question: &Question) -> Result<Offered, LinkError> {
    let begun = link.common.clock.now();
    let mut peer = up.peer().max_encoding_message_size(QUESTION_BYTES_MAX);
    let answer = match peer.offer(question.request.clone()).await {
        Ok(answer) => answer.into_inner(),
        // It knows its own bounds.
        Err(status) if status.code() == Code::InvalidArgument => return Ok(Offered::Refused),
        Err(status) => return Err(LinkError::Call { status }),
    };
    match answer.refusal() {
        OfferRefusal::None if answer.lease == 0 => return Ok(Offered::Nothing),
        OfferRefusal::None => {}
        OfferRefusal::Draining => return Err(LinkError::Draining),
        OfferRefusal::Epoch => {
            if !link.said_epoch.swap(true, Ordering::Relaxed) {
                let (peer, here) = (&link.address, question.request.epoch);
                warn!(
                    %peer, here,
                    "a namespace is in another epoch there: set both to the higher one (refrain set-epoch)"
                );
            }
            return Ok(Offered::Refused);
        }
        OfferRefusal::Size | OfferRefusal::Unspecified => return Ok(Offered::Refused),
    }
    let blocks = answer.blocks.min(question.wanted);
    let mut offered = Remote {
        link: Arc::clone(link),
        up: Arc::clone(up),
        lease: answer.lease,
        blocks,
        expected: Duration::ZERO,
        asked: Arc::clone(&question.blocks),
    };
    if blocks == 0 {
        return Ok(Offered::Nothing);
    }
    let bytes = question.blocks.layout.stored_length() * u64::from(blocks);
    let at_peer = Duration::from_micros(answer.expected_us);
    let answered = link.common.clock.now().saturating_duration_since(begun);
    offered.expected = answered + link.expected(bytes, answer.queued_bytes, at_peer);
    Ok(Offered::Blocks(offered))
}
