//! Registrations and lookups: from a prompt to its longest resident prefix, leased.

use crate::leases::{Lease, LeaseId};
use crate::metrics::Source;
use crate::names::Names;
use crate::namespaces::{Registration, SessionId};
use crate::node::Node;
use crate::peers::Remote;
use crate::place::BlockPlace;
use crate::state::State;
use refrain_index::chain::BlockKey;
use refrain_index::hash::{EngineNames, TenantKey};
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
    /// Of the matched blocks, in order: where each is.
    pub tiers: Vec<Source>,
    /// Of separate names, where those behind them are; `None` where they are not resident.
    pub beyond: Vec<Option<Source>>,
    pub expected_load: Duration,
    /// Of the blocks of peers alone.
    pub expected_peer: Duration,
    pub lease_time: Duration,
}

/// A prompt, as it is named.
#[derive(Clone, Copy, Debug)]
pub enum Prompt<'a> {
    Tokens {
        tokens: &'a [u32],
        extra_keys: &'a [Vec<u8>],
    },
    Engine(&'a [Vec<u8>]),
    /// Blocks that are behind none of the others.
    Separate(&'a [Vec<u8>]),
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
        let shards = parallel.shards();
        if u64::from(shard) >= shards {
            return Err(RegisterError::Shard { shard, shards });
        }
        self.check_room(layout.stored_length())?;
        let mut state = self.state();
        let is_known =
            |session| state.sessions.contains_key(&session) || state.links.contains(&session);
        if session.is_some_and(|session| !is_known(session)) {
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
        let are_told = tells_names(prompt);
        let names = names(registration, prompt);
        if are_told {
            self.state().tell_engine_names(registration);
        }
        let found = self.lookup_names(registration, names, lease_time);
        let beyond = found.beyond.iter().flatten().count();
        let (prompt_blocks, matched) =
            (found.prompt_blocks.into(), count(found.tiers.len() + beyond).into());
        self.metrics.looked_up(prompt_blocks, matched, self.clock.now() - begin);
        found
    }

    /// As `lookup`, of blocks by their names.
    pub(crate) fn lookup_names(
        &self,
        registration: &Arc<Registration>,
        names: Names,
        lease_time: Option<Duration>,
    ) -> Match {
        let lease_time = lease_time.unwrap_or(self.config.lease_default).min(self.config.lease_max);
        let tick = self.clock.tick();
        let mut state = self.state();
        let (places, mut tiers, beyond) =
            self.match_names(&mut state, registration.shard, &names, tick);
        let guests = if names.are_separate() {
            // What only memory holds is behind what is on drives: of a chain.
            Vec::new()
        } else {
            state.host.run(registration.shard, &names[places.len()..])
        };
        tiers.extend(guests.iter().map(|_| Source::Host));
        let stored = registration.layout.stored_length();
        let expected_load = self.expected_load(&state, (&places, &tiers), stored);
        let prompt_blocks = count(names.len());
        let deadline = self.clock.now() + lease_time;
        let resident = (places, guests);
        let lease =
            Lease::new(Arc::clone(registration), names, resident, (deadline, expected_load));
        lease.held.iter().for_each(|&group| state.segments.hold(group));
        let is_first = state.leases.next_end().is_none_or(|next| deadline < next);
        let lease = state.leases.add(lease);
        drop(state);
        if is_first {
            self.leases_changed.notify_one();
        }
        let expected_peer = Duration::ZERO;
        Match { lease, prompt_blocks, tiers, beyond, expected_load, expected_peer, lease_time }
    }

    /// Where the longest run of resident blocks lies, and of separate names where the others do.
    fn match_names(
        &self,
        state: &mut State,
        shard: u32,
        names: &Names,
        tick: u32,
    ) -> (Vec<BlockPlace>, Vec<Source>, Vec<Option<Source>>) {
        let withdrawn = self.withdrawn();
        let mut places = if names.are_separate() {
            state.chain.match_each(shard, names, tick)
        } else {
            state.chain.match_prefix(shard, names, tick).into_iter().map(Some).collect()
        };
        let tier = |(place, &sequence): (&Option<BlockPlace>, _)| {
            let place = place.as_ref()?;
            if state.host.contains(BlockKey { sequence, shard }) {
                return Some(Source::Host);
            }
            (!withdrawn.holds(place)).then_some(Source::Ssd)
        };
        let mut beyond: Vec<_> = places.iter().zip(names.iter()).map(tier).collect();
        let reach = beyond.iter().take_while(|at| at.is_some()).count();
        let tiers = beyond.drain(..reach).flatten().collect();
        if !names.are_separate() {
            beyond.clear();
        }
        places.truncate(reach);
        (places.into_iter().flatten().collect(), tiers, beyond)
    }

    /// Blocks behind those that matched, which a peer has promised. Without effect where the lease has
    /// ended; the promise is then given back.
    pub(crate) fn extend(&self, found: &mut Match, remote: Arc<Remote>) {
        let mut state = self.state();
        let Some(lease) = state.leases.get_mut(found.lease) else { return };
        let behind = usize::try_from(remote.blocks).expect("32 bits fit");
        found.expected_peer = remote.expected;
        // Drives and peers work side by side.
        found.expected_load = found.expected_load.max(remote.expected);
        found.tiers.extend(std::iter::repeat_n(Source::Peer, behind));
        lease.loaded.extend(std::iter::repeat_n(None, behind));
        lease.expected_load = found.expected_load;
        lease.remote = Some(remote);
        self.metrics.matched_blocks.inc_by(u64::try_from(behind).expect("usize fits"));
    }

    /// Of all matched blocks, which take `stored` bytes each, as the drives stand now.
    fn expected_load(
        &self,
        state: &State,
        (places, tiers): (&[BlockPlace], &[Source]),
        stored: u64,
    ) -> Duration {
        if tiers.is_empty() {
            return Duration::ZERO;
        }
        let on_ssd = places.iter().zip(tiers).filter(|(_, tier)| **tier == Source::Ssd);
        let in_host = tiers.iter().filter(|tier| **tier == Source::Host);
        let work = self.work(in_host.map(|_| stored), on_ssd.map(|(place, _)| place));
        state.forecast.expected(work)
    }

    /// Prolongs a lease; for how long, or `None` when it is over.
    pub fn renew(&self, lease: LeaseId, time: Option<Duration>) -> Option<Duration> {
        let time = time.unwrap_or(self.config.lease_default).min(self.config.lease_max);
        let mut state = self.state();
        if !state.leases.renew(lease, self.clock.now() + time) {
            return None;
        }
        let remote = state.leases.get_mut(lease).and_then(|lease| lease.remote.clone());
        drop(state);
        if let Some(remote) = remote {
            remote.renew(time);
        }
        Some(time)
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
pub(crate) fn names(registration: &Registration, prompt: Prompt<'_>) -> Names {
    let Registration { key, engine_names, digest, block_tokens, .. } = registration;
    let wrapped = |hashes: &[Vec<u8>]| hashes.iter().map(|hash| engine_names.wrap(hash)).collect();
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
            Names::new(named.collect(), false)
        }
        Prompt::Engine(hashes) => Names::new(wrapped(hashes), false),
        Prompt::Separate(hashes) => Names::new(wrapped(hashes), true),
    }
}

/// Whether all of its names can be told to routers.
fn tells_names(prompt: Prompt<'_>) -> bool {
    match prompt {
        Prompt::Tokens { .. } => false,
        Prompt::Engine(hashes) | Prompt::Separate(hashes) => {
            !hashes.is_empty() && hashes.iter().all(|hash| EngineNames::tells(hash))
        }
    }
}

fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).expect("a prompt has fewer than 2^32 blocks")
}
