//! Registrations and lookups: from a prompt to its longest resident prefix, leased.

use crate::leases::{Lease, LeaseId};
use crate::namespaces::{Registration, SessionId};
use crate::node::Node;
use crate::place::BlockPlace;
use crate::state::State;
use refrain_index::chain::BlockKey;
use refrain_index::hash::{SequenceHash, TenantKey};
use refrain_index::namespace::{Namespace, NamespaceDigest, NamespaceError};
use refrain_store::geometry::{Layout, LayoutError};
use refrain_store::segment::record_max;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Registrations of all sessions together.
const REGISTRATIONS_MAX: usize = 1 << 16;

/// Why a worker is not registered.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegisterError {
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(
        "block of {found} bytes does not fit the namespace: {layers} layers of {layer_bytes} bytes are {expected}"
    )]
    BlockBytes { found: u64, layers: u32, layer_bytes: u64, expected: u64 },
    #[error("shard {shard} is not among the {shards} of the parallel shape")]
    Shard { shard: u32, shards: u64 },
    #[error(
        "block takes {stored} bytes on disk, segments hold records of at most {limit}: give larger segments or a larger capacity"
    )]
    Segment { stored: u64, limit: u64 },
    #[error(
        "block takes {stored} bytes of memory, frames have at most {limit}: give a larger load arena"
    )]
    Frame { stored: u64, limit: u64 },
    #[error("session is not known: it has ended")]
    Session,
    #[error("{limit} registrations are all that a sidecar takes")]
    TooMany { limit: usize },
}

/// What a worker learns of its registration.
#[derive(Clone, Debug)]
pub struct Registered {
    pub id: u64,
    pub layout: Layout,
    pub digest: NamespaceDigest,
}

/// What a lookup found.
#[derive(Clone, Debug)]
pub struct Match {
    pub lease: LeaseId,
    pub prompt_blocks: u32,
    /// Of the matched blocks, in order: whether the host tier has each.
    pub in_host: Vec<bool>,
    pub expected_load: Duration,
    pub lease_time: Duration,
}

/// A prompt, as it is named.
#[derive(Clone, Copy, Debug)]
pub enum Prompt<'a> {
    Tokens { tokens: &'a [u32], extra_keys: &'a [Vec<u8>] },
    Engine(&'a [Vec<u8>]),
}

impl Node {
    /// Registers a worker's shard of a namespace.
    pub fn register(
        &self,
        namespace: &Namespace,
        shard: u32,
        block_bytes: u64,
        session: Option<SessionId>,
    ) -> Result<Registered, RegisterError> {
        let digest = namespace.digest()?;
        let layout = Layout::new(namespace.layers, namespace.layer_bytes)?;
        let Namespace { layers, layer_bytes, parallel, .. } = *namespace;
        let expected = u64::from(layers) * layer_bytes;
        if block_bytes != expected {
            let found = block_bytes;
            return Err(RegisterError::BlockBytes { found, layers, layer_bytes, expected });
        }
        let shards = [parallel.tensor, parallel.pipeline, parallel.context];
        let shards = shards.into_iter().map(u64::from).fold(1, u64::saturating_mul);
        if u64::from(shard) >= shards {
            return Err(RegisterError::Shard { shard, shards });
        }
        self.check_room(layout.stored_length())?;
        let mut state = self.state();
        if session.is_some_and(|session| !state.sessions.contains_key(&session)) {
            return Err(RegisterError::Session);
        }
        if state.registrations.len() >= REGISTRATIONS_MAX {
            return Err(RegisterError::TooMany { limit: REGISTRATIONS_MAX });
        }
        let id = state.namespaces.meet(digest);
        state.namespaces.describe(id, namespace);
        let key = TenantKey::derive(&self.secret, &namespace.tenant);
        let registration = Registration::new((id, digest), namespace, key, shard, session)?;
        let id = state.registrations.add(fastrand::u64(1..), registration);
        Ok(Registered { id, layout, digest })
    }

    fn check_room(&self, stored: u64) -> Result<(), RegisterError> {
        let segments = self.drives().map(|drive| drive.stats().segment_bytes);
        let limit = record_max(segments.min().unwrap_or(0));
        if stored > limit {
            return Err(RegisterError::Segment { stored, limit });
        }
        let limit = self.arena.frame_bytes_max();
        if stored > limit {
            return Err(RegisterError::Frame { stored, limit });
        }
        Ok(())
    }

    pub fn registration(&self, id: u64) -> Option<Arc<Registration>> {
        self.state().registrations.get(id)
    }

    /// The longest resident prefix of a prompt, promised for `lease_time`.
    pub fn lookup(
        &self,
        registration: &Arc<Registration>,
        prompt: Prompt<'_>,
        lease_time: Option<Duration>,
    ) -> Match {
        let begin = self.clock.now();
        let hashes: Arc<[SequenceHash]> = hashes(registration, prompt).into();
        let lease_time = lease_time.unwrap_or(self.config.lease_default).min(self.config.lease_max);
        let tick = self.clock.tick();
        let mut state = self.state();
        let withdrawn = self.withdrawn();
        let mut places = state.chain.match_prefix(registration.shard, &hashes, tick);
        let reach = places.iter().zip(hashes.iter()).take_while(|(place, sequence)| {
            let key = BlockKey { sequence: **sequence, shard: registration.shard };
            !withdrawn.holds(place) || state.host.contains(key)
        });
        places.truncate(reach.count());
        let in_host = in_host(&state, registration.shard, &hashes, &places);
        let expected_load = self.expected_load(&state, &places, &in_host);
        let prompt_blocks = count(hashes.len());
        let deadline = self.clock.now() + lease_time;
        let lease = Lease::new(Arc::clone(registration), hashes, places, (deadline, expected_load));
        lease.held.iter().for_each(|&group| state.segments.hold(group));
        let is_first = state.leases.next_end().is_none_or(|next| deadline < next);
        let lease = state.leases.add(lease);
        drop(state);
        if is_first {
            self.leases_changed.notify_one();
        }
        self.metrics.looked_up(
            u64::from(prompt_blocks),
            u64::from(count(in_host.len())),
            self.clock.now() - begin,
        );
        Match { lease, prompt_blocks, in_host, expected_load, lease_time }
    }

    /// Of all matched blocks, as the drives stand now.
    fn expected_load(&self, state: &State, places: &[BlockPlace], in_host: &[bool]) -> Duration {
        if places.is_empty() {
            return Duration::ZERO;
        }
        let of = |in_host_tier: bool| {
            let both = places.iter().zip(in_host);
            both.filter_map(move |(place, host)| (*host == in_host_tier).then_some(place))
        };
        state.forecast.expected(self.work(of(true), of(false)))
    }

    /// Prolongs a lease; for how long, or `None` when it is over.
    pub fn renew(&self, lease: LeaseId, time: Option<Duration>) -> Option<Duration> {
        let time = time.unwrap_or(self.config.lease_default).min(self.config.lease_max);
        self.state().leases.renew(lease, self.clock.now() + time).then_some(time)
    }

    /// Ends a lease; whether it held until now. `load_time` is what a load of all that matched took
    /// whoever asked for it.
    pub fn release(&self, lease: LeaseId, load_time: Option<Duration>) -> bool {
        let mut state = self.state();
        let ended = state.leases.end(lease);
        let work = ended.as_ref().and_then(|lease| Some((lease.expected_load, lease.work?)));
        if let (Some((expected, work)), Some(took)) = (work, load_time) {
            self.metrics.expected_load_error_seconds.observe(took.abs_diff(expected).as_secs_f64());
            state.forecast.learn(work, took);
        }
        let freed = ended.as_ref().is_some_and(|lease| state.let_go(lease));
        drop(state);
        self.leases_ended(freed);
        ended.is_some()
    }
}

/// The names of a prompt's full blocks.
pub(crate) fn hashes(registration: &Registration, prompt: Prompt<'_>) -> Vec<SequenceHash> {
    let Registration { key, digest, block_tokens, .. } = registration;
    match prompt {
        Prompt::Tokens { tokens, extra_keys } => {
            let mut parent = key.root(*digest);
            let blocks = tokens.chunks_exact(*block_tokens).enumerate();
            // What stands in the first block parts all that follow.
            let extra: Vec<&[u8]> = extra_keys.iter().map(Vec::as_slice).collect();
            let extra_of = |block| if block == 0 { &extra[..] } else { &[] };
            let named = blocks.map(|(block, tokens)| {
                parent = key.next(parent, tokens, extra_of(block));
                parent
            });
            named.collect()
        }
        Prompt::Engine(hashes) => hashes.iter().map(|hash| key.wrap(*digest, hash)).collect(),
    }
}

fn in_host(state: &State, shard: u32, hashes: &[SequenceHash], places: &[BlockPlace]) -> Vec<bool> {
    let matched = hashes.iter().take(places.len());
    matched.map(|&sequence| state.host.contains(BlockKey { sequence, shard })).collect()
}

fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).expect("a prompt has fewer than 2^32 blocks")
}
