//! Loads: leased blocks into frames, announced as they arrive and are checked.
//!
//! A [`Load`] is one caller's view. A `BlockRead` is one block on its way from a drive, shared by all loads that want it. Whoever
//! goes away, the read runs out, and the block stays in the host tier.

use crate::fates::{Eviction, Removal};
use crate::forecast::Work;
use crate::leases::LeaseId;
use crate::metrics::Source as Tier;
use crate::node::Node;
use crate::place::{BlockPlace, DriveId};
use crate::state::State;
use refrain_index::chain::BlockKey;
use refrain_store::arena::Frame;
use refrain_store::check::{ReadError, Shape};
use refrain_store::engine::RecordRead;
use refrain_store::geometry::Layout;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tracing::warn;

mod block_read;
mod in_memory;
mod view;

pub(crate) use block_read::{BlockRead, Origin};
use in_memory::InMemory;
pub use view::{Ended, Load, Ready};

/// Why a matched block was not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    Deadline,
    Damaged,
    /// No frame in the load arena could be freed.
    NoMemory,
    Drive,
    /// Gone, late, or not what was asked for.
    Peer,
}

/// What may be loaded under a lease, or why nothing may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadRefusal {
    NoLease,
    OutOfRange { matched: u32 },
}

/// Who delivers a block to a load.
enum Source {
    Host,
    /// Somebody reads it already.
    Shared(Arc<BlockRead>),
    Read(Arc<BlockRead>),
}

impl Source {
    fn read(&self) -> Option<&Arc<BlockRead>> {
        match self {
            Self::Host => None,
            Self::Shared(read) | Self::Read(read) => Some(read),
        }
    }

    fn tier(&self) -> Tier {
        match self.read().map(|read| read.origin) {
            None => Tier::Host,
            Some(Origin::Drive(_)) => Tier::Ssd,
            Some(Origin::Peer(..)) => Tier::Peer,
        }
    }
}

impl Node {
    /// Begins to bring blocks `first..first + blocks` of a lease's prompt into memory.
    pub fn load(
        self: &Arc<Self>,
        lease: LeaseId,
        first: u32,
        blocks: u32,
        deadline: Instant,
    ) -> Result<Arc<Load>, LoadRefusal> {
        let mut guard = self.state();
        let state = &mut *guard;
        let held = state.leases.get_mut(lease).ok_or(LoadRefusal::NoLease)?;
        let matched = count(held.matched());
        let end = first.checked_add(blocks).filter(|end| *end <= matched);
        let end = end.ok_or(LoadRefusal::OutOfRange { matched })?;
        let (registration, remote) = (Arc::clone(&held.registration), held.remote.clone());
        let wanted: Vec<_> = (index(first)..index(end))
            .map(|block| {
                let key = BlockKey { sequence: held.names[block], shard: registration.shard };
                (key, held.places.get(block).copied(), held.loaded[block].clone())
            })
            .collect();
        let frames = wanted.iter().map(|(key, _, loaded)| (*key, loaded.clone()));
        let mut in_memory = InMemory::hold(frames, &mut state.host);
        let peer = Origin::Peer(registration.namespace, state.epoch(registration.namespace));
        let stored = registration.layout.stored_length();
        let withdrawn = self.withdrawn();
        let (mut frames, mut sources, mut reason) = (Vec::new(), Vec::new(), None);
        for (block, (key, place, _)) in wanted.into_iter().enumerate() {
            let source = match (in_memory.take(block), place) {
                (Some(frame), _) => Some((frame, Source::Host)),
                (None, Some(place)) if withdrawn.holds(&place) => {
                    reason = Some(Miss::Drive);
                    break;
                }
                (None, place) => {
                    let from = place.map_or((peer, stored), |place| {
                        (Origin::Drive(place), place.stored_length())
                    });
                    self.source(state, key, from, (&mut in_memory, block))
                }
            };
            let Some((frame, source)) = source else {
                reason = Some(Miss::NoMemory);
                break;
            };
            frames.push(frame);
            sources.push(source);
        }
        let tiers: Vec<_> = sources.iter().map(Source::tier).collect();
        let work = self.load_work(&sources, stored);
        if let Some(held) = state.leases.get_mut(lease) {
            held.frames.extend(frames.iter().cloned());
            // How long peers take is no matter of these drives.
            let is_own = !tiers.contains(&Tier::Peer);
            held.work = (blocks == matched && reason.is_none() && is_own).then_some(work);
        }
        let renewed = self.clock.now() + self.config.lease_default;
        state.leases.renew(lease, renewed);
        let reads = requests(state, &sources, &registration.layout, deadline);
        drop(guard);
        if reason.is_some() {
            self.say_if_beyond_arena(u64::from(blocks) * stored);
        }
        let layout = registration.layout.clone();
        let clock = self.clock.clone();
        let load = Load::new((blocks, frames), tiers, layout, deadline, reason, clock);
        let load = Arc::new(load);
        for (block, source) in (0..).zip(&sources) {
            match source.read() {
                None => (0..count(load.layout.stripes.len())).for_each(|s| load.arrive(block, s)),
                Some(read) => read.join(&load, block),
            }
        }
        self.submit(reads);
        if let Some(remote) = remote {
            remote.fetch(&fetches(first, &sources), deadline);
        }
        Ok(load)
    }

    /// The work of a load of blocks that take `stored` bytes each, by this node alone.
    fn load_work(&self, sources: &[Source], stored: u64) -> Work {
        let places = sources.iter().filter_map(|source| match source.read()?.origin {
            Origin::Drive(ref place) => Some(place),
            Origin::Peer(..) => None,
        });
        let in_host = sources.iter().filter(|source| source.tier() == Tier::Host);
        self.work(in_host.map(|_| stored), places)
    }

    fn source(
        self: &Arc<Self>,
        state: &mut State,
        key: BlockKey,
        (origin, stored_length): (Origin, u64),
        (in_memory, block): (&mut InMemory, usize),
    ) -> Option<(Arc<Frame>, Source)> {
        // One of where the block lay before may never end: its drive was withdrawn since.
        if let Some(read) = state.reading.get(&key).filter(|read| read.origin == origin) {
            self.metrics.shared_reads.inc();
            return Some((Arc::clone(&read.frame), Source::Shared(Arc::clone(read))));
        }
        let frame = loop {
            match self.take_frame(state, stored_length) {
                Some(frame) => break Arc::new(frame),
                None if in_memory.give_up(block, &mut state.host) => {}
                None => return None,
            }
        };
        let read = Arc::new(BlockRead::new(Arc::downgrade(self), key, origin, Arc::clone(&frame)));
        state.reading.insert(key, Arc::clone(&read));
        Some((frame, Source::Read(read)))
    }

    fn submit(&self, reads: BTreeMap<DriveId, Vec<RecordRead>>) {
        for (drive, records) in reads {
            self.disk(drive).asked.notify_one();
            let sinks: Vec<_> = records.iter().map(|record| Arc::clone(&record.sink)).collect();
            if self.disk(drive).drive.read(records).is_err() {
                for sink in sinks {
                    sink.done(Err(ReadError::Stopped));
                }
            }
        }
    }

    /// Notes what a load brought. When a lease has all of its blocks in memory, it needs the drives
    /// no more: so a worker may hold it while it saves, and reclaim does not wait for it.
    pub fn settle_load(&self, lease: LeaseId, first: u32, load: &Load, ended: Ended) {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(lease) = state.leases.get_mut(lease) else { return };
        let loaded = lease.loaded[index(first)..].iter_mut().zip(&load.frames);
        for (slot, frame) in loaded.take(index(ended.loaded)) {
            *slot = Some(Arc::clone(frame));
        }
        if lease.loaded.iter().any(Option::is_none) {
            return;
        }
        let remote = lease.remote.take();
        let mut freed = false;
        for group in std::mem::take(&mut lease.held) {
            freed |= state.segments.let_go(group);
        }
        drop(guard);
        drop(remote);
        self.leases_ended(freed);
    }

    /// Says, once, of a load whose blocks have no place that it never can have one.
    fn say_if_beyond_arena(&self, wanted: u64) {
        let load_arena = self.arena.mapping().bytes_len();
        if wanted > load_arena && !self.said_beyond_arena.swap(true, Ordering::Relaxed) {
            warn!(
                wanted,
                load_arena,
                "a load is larger than the load arena, what does not fit is a miss: give a larger \
                 load_arena, or load fewer blocks at a time"
            );
        }
    }

    /// Counts a load that has ended.
    pub fn count_load(&self, load: &Load, ended: Ended, elapsed: Duration) {
        let bytes = load.layout.payload_length;
        let Ended { host, ssd, peer, .. } = ended;
        let from = [(Tier::Host, host), (Tier::Ssd, ssd), (Tier::Peer, peer)];
        self.metrics.loaded(from.map(|(tier, blocks)| (tier, blocks.into())), bytes, elapsed);
        if let Some(reason) = ended.reason {
            let missed = load.asked - ended.loaded;
            self.metrics.missed(reason, u64::from(missed));
        }
    }

    /// A read has ended: its frame is kept, or its block withdrawn.
    fn finish_read(&self, read: &BlockRead, outcome: &Result<(), ReadError>) {
        let Origin::Drive(place) = read.origin else { return };
        let mut state = self.state();
        state.no_more_reading(read);
        match outcome {
            Ok(()) => {
                if state.chain.get(read.key).is_some() {
                    state.host.insert(read.key, Arc::clone(&read.frame));
                }
            }
            Err(error) if error.is_damage() => {
                self.withdraw(&mut state, read.key, place, error);
            }
            Err(error) => {
                drop(state);
                if !matches!(error, ReadError::Deadline) {
                    warn!(block = %read.key.sequence, error = %error, "block not read");
                }
            }
        }
    }

    /// A block of a peer has come, or does not: its frame is kept.
    fn finish_fetch(&self, read: &BlockRead, outcome: Result<(), Miss>) {
        let Origin::Peer(namespace, epoch) = read.origin else { return };
        let mut state = self.state();
        state.no_more_reading(read);
        // What was dropped meanwhile is nobody's guest.
        if outcome.is_err() || state.epoch(namespace) != epoch {
            return;
        }
        let frame = Arc::clone(&read.frame);
        if state.chain.get(read.key).is_some() {
            state.host.insert(read.key, frame);
        } else {
            state.host.insert_guest(read.key, frame, namespace);
        }
    }

    /// Takes a damaged block out, and all behind it, unless it lies elsewhere by now.
    pub(crate) fn withdraw(
        &self,
        state: &mut State,
        key: BlockKey,
        place: BlockPlace,
        error: &ReadError,
    ) -> bool {
        if state.chain.get(key) != Some(place) {
            return false;
        }
        let address = state.segments.address(&place);
        warn!(
            block = %key.sequence,
            shard = key.shard,
            drive = place.group.drive().0,
            segment = address.segment.0,
            offset = address.offset,
            error = %error,
            "damaged block withdrawn"
        );
        self.disk(place.group.drive()).journal.withdraw(address);
        let why = Eviction::Damage;
        let removed = state.remove(key, Removal { why, at: self.clock.tick(), for_whom: None });
        self.metrics.damaged_blocks.inc();
        self.metrics.evicted(Eviction::Damage, count64(removed.len()));
        true
    }
}

impl State {
    fn no_more_reading(&mut self, read: &BlockRead) {
        if self.reading.get(&read.key).is_some_and(|known| known.origin == read.origin) {
            self.reading.remove(&read.key);
        }
    }
}

/// What a peer is asked for, by the blocks of the prompt.
fn fetches(first: u32, sources: &[Source]) -> Vec<(u32, Arc<BlockRead>)> {
    let numbered = (first..).zip(sources);
    let wanted = numbered.filter_map(|(block, source)| match source {
        Source::Read(read) if matches!(read.origin, Origin::Peer(..)) => {
            Some((block, Arc::clone(read)))
        }
        Source::Host | Source::Shared(_) | Source::Read(_) => None,
    });
    wanted.collect()
}

/// What the drives are asked for, each in the order of the prompt.
fn requests(
    state: &State,
    sources: &[Source],
    layout: &Layout,
    deadline: Instant,
) -> BTreeMap<DriveId, Vec<RecordRead>> {
    let mut reads: BTreeMap<DriveId, Vec<RecordRead>> = BTreeMap::new();
    for source in sources {
        let Source::Read(read) = source else { continue };
        let Origin::Drive(place) = read.origin else { continue };
        let record = RecordRead {
            address: state.segments.address(&place),
            sequence_hash: read.key.sequence.0,
            shard: read.key.shard,
            namespace: state.namespaces.get(place.namespace).digest.0,
            shape: Shape::Layout(layout.clone()),
            frame: Arc::clone(&read.frame),
            by_stripe: true,
            deadline: Some(deadline),
            sink: Arc::<BlockRead>::clone(read),
        };
        reads.entry(place.group.drive()).or_default().push(record);
    }
    reads
}

fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).expect("a prompt has fewer than 2^32 blocks")
}

fn count64(blocks: usize) -> u64 {
    u64::try_from(blocks).expect("usize fits")
}

fn index(block: u32) -> usize {
    usize::try_from(block).expect("32 bits fit")
}
