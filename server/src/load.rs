//! Loads: leased blocks into frames, announced as they arrive and are checked.
//!
//! A [`Load`] is one caller's view: which stripes have come, and where the prefix breaks off. A
//! `BlockRead` is one block on its way from a drive, shared by all loads that want it. Whoever
//! goes away, the read runs out, and the block stays in the host tier.

use crate::clock::Clock;
use crate::fates::{Eviction, Removal};
use crate::leases::LeaseId;
use crate::node::Node;
use crate::place::{BlockPlace, DriveId};
use crate::state::State;
use refrain_index::chain::BlockKey;
use refrain_store::arena::Frame;
use refrain_store::check::{ReadError, Shape};
use refrain_store::engine::RecordRead;
use refrain_store::geometry::{HEADER_SIZE, Layout};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tracing::warn;

mod block_read;

pub(crate) use block_read::BlockRead;

/// Why a matched block was not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    Deadline,
    Damaged,
    /// No frame in the load arena could be freed.
    NoMemory,
    Drive,
}

/// Stripe `stripe` of `blocks` blocks from `first_block` on is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    pub stripe: u32,
    pub first_block: u32,
    pub blocks: u32,
}

/// How a load ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Blocks from this one on are misses.
    pub loaded: u32,
    pub reason: Option<Miss>,
    pub host: u32,
    pub ssd: u32,
}

/// One caller's blocks.
#[derive(Debug)]
pub struct Load {
    /// Of each block that was placed.
    pub frames: Vec<Arc<Frame>>,
    pub layout: Layout,
    pub deadline: Instant,
    /// Blocks wanted; those behind the placed ones are misses.
    asked: u32,
    /// Blocks that were in the host tier.
    from_host: Vec<bool>,
    progress: Mutex<Progress>,
    changed: Notify,
    clock: Clock,
}

#[derive(Debug)]
struct Progress {
    /// Not announced yet.
    arrived: Vec<(u32, u32)>,
    /// Stripes that each block lacks.
    lacking: Vec<u32>,
    /// Blocks from this one on are misses.
    end: u32,
    reason: Option<Miss>,
    /// Blocks before it are complete.
    complete: u32,
}

/// What may be loaded under a lease, or why nothing may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadRefusal {
    NoLease,
    OutOfRange { matched: u32 },
}

impl Load {
    fn new(
        (asked, frames): (u32, Vec<Arc<Frame>>),
        from_host: Vec<bool>,
        layout: Layout,
        deadline: Instant,
        reason: Option<Miss>,
        clock: Clock,
    ) -> Self {
        let stripes = count(layout.stripes.len());
        let lacking = vec![stripes; frames.len()];
        let end = count(frames.len());
        let progress = Progress { arrived: Vec::new(), lacking, end, reason, complete: 0 };
        let (progress, changed) = (Mutex::new(progress), Notify::new());
        Self { frames, layout, deadline, asked, from_host, progress, changed, clock }
    }

    /// Where each block's payload lies in the load arena.
    pub fn payload_offsets(&self) -> Vec<u64> {
        self.frames.iter().map(|frame| frame.region().offset() + HEADER_SIZE).collect()
    }

    /// What has arrived since the last call, in layer order; `None` when no more will. After the
    /// deadline nothing more does.
    pub async fn next(&self) -> Option<Vec<Ready>> {
        loop {
            let changed = self.changed.notified();
            match self.take_arrived() {
                Some(arrived) if arrived.is_empty() => {}
                Some(arrived) => return Some(runs(arrived)),
                None => return None,
            }
            if self.clock.until(self.deadline, changed).await.is_none() {
                self.cut(0, Miss::Deadline);
            }
        }
    }

    /// Stripes not announced yet; `None` when there are none, and none will come.
    fn take_arrived(&self) -> Option<Vec<(u32, u32)>> {
        let mut progress = self.progress();
        let arrived = std::mem::take(&mut progress.arrived);
        let is_over = arrived.is_empty() && progress.complete >= progress.end;
        (!is_over).then_some(arrived)
    }

    /// How it ended, once it has.
    pub fn ended(&self) -> Ended {
        let progress = self.progress();
        let loaded = progress.complete;
        let placed = usize::try_from(loaded).expect("32 bits fit");
        let host = count(self.from_host[..placed].iter().filter(|host| **host).count());
        Ended { loaded, reason: progress.reason, host, ssd: loaded - host }
    }

    fn arrive(&self, block: u32, stripe: u32) {
        let mut progress = self.progress();
        progress.arrived.push((stripe, block));
        progress.lacking[index(block)] -= 1;
        while progress.lacking.get(index(progress.complete)) == Some(&0) {
            progress.complete += 1;
        }
        drop(progress);
        self.changed.notify_one();
    }

    /// Blocks from `block` on, or from the first that is not complete, are misses.
    fn cut(&self, block: u32, reason: Miss) {
        let mut progress = self.progress();
        let end = block.max(progress.complete);
        if end < progress.end {
            (progress.end, progress.reason) = (end, Some(reason));
        }
        drop(progress);
        self.changed.notify_one();
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Nothing panics while holding it.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Joins what has arrived into runs of blocks, stripe by stripe.
fn runs(mut arrived: Vec<(u32, u32)>) -> Vec<Ready> {
    arrived.sort_unstable();
    let mut runs: Vec<Ready> = Vec::new();
    for (stripe, block) in arrived {
        match runs.last_mut() {
            Some(run) if run.stripe == stripe && run.first_block + run.blocks == block => {
                run.blocks += 1;
            }
            Some(_) | None => runs.push(Ready { stripe, first_block: block, blocks: 1 }),
        }
    }
    runs
}

/// Who delivers a block to a load.
enum Source {
    Host,
    /// Somebody reads it already.
    Shared(Arc<BlockRead>),
    Ssd(Arc<BlockRead>),
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
        let matched = count(held.places.len());
        let end = first.checked_add(blocks).filter(|end| *end <= matched);
        let end = end.ok_or(LoadRefusal::OutOfRange { matched })?;
        let range = index(first)..index(end);
        let registration = Arc::clone(&held.registration);
        let wanted: Vec<_> = held.hashes[range.clone()]
            .iter()
            .map(|&sequence| BlockKey { sequence, shard: registration.shard })
            .zip(held.places[range].iter().copied())
            .collect();
        let loaded = held.loaded[index(first)..index(end)].to_vec();
        let withdrawn = self.withdrawn();
        let (mut frames, mut sources, mut reason) = (Vec::new(), Vec::new(), None);
        for (&(key, place), loaded) in wanted.iter().zip(loaded) {
            let source = match loaded {
                Some(frame) => Some((frame, Source::Host)),
                None if withdrawn.holds(&place) && !state.host.contains(key) => {
                    reason = Some(Miss::Drive);
                    break;
                }
                None => self.source(state, key, place),
            };
            let Some((frame, source)) = source else {
                reason = Some(Miss::NoMemory);
                break;
            };
            frames.push(frame);
            sources.push(source);
        }
        let host: Vec<_> = sources.iter().map(|source| matches!(source, Source::Host)).collect();
        let of = |in_host_tier: bool| {
            let both = wanted.iter().zip(&host);
            both.filter_map(move |((_, place), host)| (*host == in_host_tier).then_some(place))
        };
        let work = self.work(of(true), of(false));
        if let Some(held) = state.leases.get_mut(lease) {
            held.frames.extend(frames.iter().cloned());
            held.work = (blocks == matched && reason.is_none()).then_some(work);
        }
        let renewed = self.clock.now() + self.config.lease_default;
        state.leases.renew(lease, renewed);
        let reads = requests(state, &sources, &registration.layout, deadline);
        drop(guard);
        if reason.is_some() {
            self.say_if_beyond_arena(u64::from(blocks) * registration.layout.stored_length());
        }
        let layout = registration.layout.clone();
        let clock = self.clock.clone();
        let load = Load::new((blocks, frames), host, layout, deadline, reason, clock);
        let load = Arc::new(load);
        for (block, source) in (0..).zip(&sources) {
            match source {
                Source::Host => {
                    (0..count(load.layout.stripes.len())).for_each(|s| load.arrive(block, s));
                }
                Source::Shared(read) | Source::Ssd(read) => read.join(&load, block),
            }
        }
        self.submit(reads);
        Ok(load)
    }

    fn source(
        self: &Arc<Self>,
        state: &mut State,
        key: BlockKey,
        place: BlockPlace,
    ) -> Option<(Arc<Frame>, Source)> {
        if let Some(frame) = state.host.get(key) {
            return Some((frame, Source::Host));
        }
        // One of where the block lay before may never end: its drive was withdrawn since.
        if let Some(read) = state.reading.get(&key).filter(|read| read.place == place) {
            self.metrics.shared_reads.inc();
            return Some((Arc::clone(&read.frame), Source::Shared(Arc::clone(read))));
        }
        let frame = Arc::new(self.take_frame(state, place.stored_length())?);
        let read = Arc::new(BlockRead {
            node: Arc::downgrade(self),
            key,
            place,
            frame: Arc::clone(&frame),
            waiting: Mutex::default(),
        });
        state.reading.insert(key, Arc::clone(&read));
        Some((frame, Source::Ssd(read)))
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
        let mut freed = false;
        for group in std::mem::take(&mut lease.held) {
            freed |= state.segments.let_go(group);
        }
        drop(guard);
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
        self.metrics.loaded(u64::from(ended.host), u64::from(ended.ssd), bytes, elapsed);
        if let Some(reason) = ended.reason {
            let missed = load.asked - ended.loaded;
            self.metrics.missed(reason, u64::from(missed));
        }
    }

    /// A read has ended: its frame is kept, or its block withdrawn.
    fn finish_read(&self, read: &BlockRead, outcome: &Result<(), ReadError>) {
        let mut state = self.state();
        if state.reading.get(&read.key).is_some_and(|known| known.place == read.place) {
            state.reading.remove(&read.key);
        }
        match outcome {
            Ok(()) => {
                if state.chain.get(read.key).is_some() {
                    state.host.insert(read.key, Arc::clone(&read.frame));
                }
            }
            Err(error) if error.is_damage() => {
                self.withdraw(&mut state, read.key, read.place, error);
            }
            Err(error) => {
                drop(state);
                if !matches!(error, ReadError::Deadline) {
                    warn!(block = %read.key.sequence, error = %error, "block not read");
                }
            }
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

/// What the drives are asked for, each in the order of the prompt.
fn requests(
    state: &State,
    sources: &[Source],
    layout: &Layout,
    deadline: Instant,
) -> BTreeMap<DriveId, Vec<RecordRead>> {
    let mut reads: BTreeMap<DriveId, Vec<RecordRead>> = BTreeMap::new();
    for source in sources {
        let Source::Ssd(read) = source else { continue };
        let record = RecordRead {
            address: state.segments.address(&read.place),
            sequence_hash: read.key.sequence.0,
            shard: read.key.shard,
            namespace: state.namespaces.get(read.place.namespace).digest.0,
            shape: Shape::Layout(layout.clone()),
            frame: Arc::clone(&read.frame),
            by_stripe: true,
            deadline: Some(deadline),
            sink: Arc::<BlockRead>::clone(read),
        };
        reads.entry(read.place.group.drive()).or_default().push(record);
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

#[cfg(test)]
mod tests;
