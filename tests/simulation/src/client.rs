//! What workers ask of a node, and what they hold it to.

use crate::model::Model;
use crate::names::{Family, fill, is_filled};
use crate::plan::Plan;
use crate::time::VirtualTime;
use fastrand::Rng;
use refrain_index::chain::BlockKey;
use refrain_server::clock::Time;
use refrain_server::events::Change;
use refrain_server::load::{Ended, Load, LoadRefusal, Miss};
use refrain_server::lookup::{Match, Prompt};
use refrain_server::node::Node;
use refrain_server::save::{Committed, Placed, Refusal, SaveError};
use refrain_store::arena::Mapping;
use refrain_store::engine::Durability;
use refrain_store::geometry::HEADER_SIZE;
use std::cell::{Cell, RefCell, RefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::broadcast;

/// What all clients of one node share.
#[derive(Debug)]
pub struct Context {
    pub node: Arc<Node>,
    pub time: VirtualTime,
    pub plan: Plan,
    pub families: Rc<Vec<Family>>,
    pub model: Rc<RefCell<Model>>,
    pub changes: RefCell<broadcast::Receiver<Change>>,
    /// Clients that have not finished.
    pub at_work: Cell<usize>,
    pub counts: Rc<Counts>,
}

/// What a run came to, so that a run which does nothing is seen.
#[derive(Debug, Default)]
pub struct Counts {
    pub loaded: Cell<u64>,
    pub missed: Cell<u64>,
    pub saved: Cell<u64>,
    pub promised: Cell<u64>,
    pub refused: Cell<u64>,
}

pub fn add(count: &Cell<u64>, more: u64) {
    count.set(count.get() + more);
}

impl Context {
    /// The model, which has heard of everything by now.
    pub fn model(&self) -> RefMut<'_, Model> {
        let mut model = self.model.borrow_mut();
        let mut changes = self.changes.borrow_mut();
        while let Ok(change) = changes.try_recv() {
            model.changed(&change);
        }
        model
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// One worker: its registration's session, and where its saves lie.
pub struct Client {
    context: Rc<Context>,
    random: Rng,
    session: Option<([u8; 16], Arc<Mapping>)>,
}

impl Client {
    pub fn new(context: Rc<Context>, mut random: Rng) -> Self {
        // One in four sends its blocks without shared memory.
        let session = (random.u8(0..4) > 0).then(|| {
            let plan = &context.plan;
            let pages = plan.families.iter().map(|family| family.layout.stored_length());
            let block = pages.max().expect("there is one at least");
            let bytes = block * u64::try_from(plan.depth).expect("usize fits");
            let arena = Mapping::create("simulated-session", bytes).expect("memory");
            let session = context.node.add_session(Arc::clone(&arena));
            (session.expect("there is room for a session"), arena)
        });
        Self { context, random, session }
    }

    pub async fn run(mut self) {
        for _ in 0..self.context.plan.rounds {
            let pause = Duration::from_micros(self.random.u64(0..30_000));
            self.context.time.sleep(pause).await;
            if self.random.u32(0..self.context.plan.drops) == 0 {
                self.drop_namespace();
            } else {
                self.converse().await;
            }
        }
        if let Some((session, _)) = self.session {
            self.context.node.end_session(session);
        }
        self.context.at_work.set(self.context.at_work.get() - 1);
    }

    fn drop_namespace(&mut self) {
        let family = self.random.usize(0..self.context.families.len());
        let digest = self.context.families[family].digest;
        self.context.node.drop_namespace(digest).expect("epochs can be written");
        self.context.model().dropped(family);
    }

    /// Looks a prompt up, loads what there is of it and saves the rest.
    async fn converse(&mut self) {
        let context = Rc::clone(&self.context);
        let family = self.random.usize(0..context.families.len());
        let Family { namespace, shards, layout, .. } = &context.families[family];
        let shard = self.random.u32(0..*shards);
        let bytes = u64::from(namespace.layers) * namespace.layer_bytes;
        let session = self.session.as_ref().map(|(id, _)| *id);
        let registered = context.node.register(namespace, shard, bytes, session);
        let registered = registered.expect("the plan has room for its blocks");
        assert_eq!(registered.layout, *layout);
        let tokens = self.prompt();
        let registration = context.node.registration(registered.id).expect("registered above");
        let lease_time = Duration::from_millis(self.random.u64(1..3000));
        let prompt = Prompt::Tokens { tokens: &tokens, extra_keys: &[] };
        let found = context.node.lookup(&registration, prompt, Some(lease_time));
        let keys = context.families[family].keys(shard, &tokens);
        let matched = found.tiers.len();
        context.model().matched(&keys[..matched]);
        if matched > 0 && self.random.u8(0..8) > 0 {
            self.load(&found, &keys).await;
        }
        if matched < keys.len() && self.random.u8(0..8) > 0 {
            self.save(&found, (family, shard), &tokens, &keys).await;
        }
        match self.random.u8(0..8) {
            0 => {}
            1 => drop(context.node.renew(found.lease, None)),
            _ => drop(context.node.release(found.lease, None)),
        }
    }

    fn prompt(&mut self) -> Vec<u32> {
        let Plan { depth, tokens, .. } = self.context.plan;
        let length = self.random.usize(1..=depth);
        (0..length).map(|_| self.random.u32(0..tokens)).collect()
    }

    async fn load(&mut self, found: &Match, keys: &[BlockKey]) {
        let context = &self.context;
        let matched = found.tiers.len();
        let first = if self.random.bool() { 0 } else { self.random.usize(0..matched) };
        let blocks = self.random.usize(1..=matched - first);
        let wait = Duration::from_micros(self.random.u64(1..300_000));
        let deadline = context.time.now() + wait;
        let (number, count) = (as_number(first), as_number(blocks));
        let load = match context.node.load(found.lease, number, count, deadline) {
            Ok(load) => load,
            // It took its time, and the lease was short.
            Err(LoadRefusal::NoLease) => return,
            Err(refusal) => panic!("{blocks} of {matched} matched blocks: {refusal:?}"),
        };
        let ended = watch(context, &load, &keys[first..first + blocks], deadline).await;
        context.node.settle_load(found.lease, number, &load, ended);
        add(&context.counts.loaded, ended.loaded.into());
        if let Some(reason) = ended.reason {
            add(&context.counts.missed, u64::from(count - ended.loaded));
            check_reason(context, reason);
        }
    }

    async fn save(
        &mut self,
        found: &Match,
        (family, shard): (usize, u32),
        tokens: &[u32],
        keys: &[BlockKey],
    ) {
        let context = Rc::clone(&self.context);
        let first = found.tiers.len();
        let rest = as_number(keys.len() - first);
        let reserved = match context.node.reserve(found.lease, as_number(first), rest) {
            Ok(reserved) => reserved,
            Err(SaveError::NoLease) => return,
            Err(error) => panic!("reserve {rest} blocks from {first}: {error}"),
        };
        if reserved.blocks.is_empty() {
            return;
        }
        if self.random.u8(0..12) == 0 {
            // An abort, or a client that has forgotten: the reservation ends with its lease.
            if self.random.bool() {
                context.node.abort(reserved.reservation).expect("reserved above");
            }
            return;
        }
        let length = context.families[family].layout.payload_length;
        let saved = &reserved.blocks[..self.random.usize(1..=reserved.blocks.len())];
        let durable = self.random.bool();
        let batch = if let Some((_, arena)) = &self.session {
            let placed = place(&context.families[family], arena, saved, keys);
            let batch = context.node.batch(reserved.reservation, &placed);
            batch.expect("blocks are sent as they were reserved")
        } else {
            let mut frames = Vec::new();
            for &block in saved {
                let frame = context.node.write_frame(reserved.reservation);
                let (Some(frame), bytes) = frame.expect("reserved above") else { return };
                assert_eq!(bytes, length);
                let payload = frame.region().slice(HEADER_SIZE, length);
                payload.fill_with(|bytes| fill(keys[as_index(block)], 0, bytes));
                frames.push(frame);
            }
            let batch = context.node.batch_of_frames(reserved.reservation, frames);
            batch.expect("blocks are sent as they were reserved")
        };
        let end = as_index(saved[saved.len() - 1]) + 1;
        let stored = context.model().sent(family, shard, &tokens[..end]);
        let committed = context.node.commit(batch, durable).await;
        let first = as_index(saved[0]);
        let named = &keys[first..first + as_index(committed.saved)];
        let is_kept = context.model().is_kept(&keys[..end], &stored);
        check_commit(&context, committed, (durable, is_kept), saved.len());
        let mut model = context.model();
        if committed.durable {
            model.promised(named, &stored[first..]);
        }
    }
}

/// Lays blocks into a session's arena, and says where.
fn place(family: &Family, arena: &Arc<Mapping>, blocks: &[u32], keys: &[BlockKey]) -> Vec<Placed> {
    let length = family.layout.payload_length;
    let pages = family.layout.stored_length() - HEADER_SIZE;
    let placed = (0..).zip(blocks).map(|(slot, &block)| {
        let offset = slot * pages;
        let region = arena.region(offset, pages).expect("an arena of as many blocks");
        region.fill_with(|bytes| fill(keys[as_index(block)], 0, bytes));
        Placed { block, offset, length }
    });
    placed.collect()
}

/// Follows a load to its end. Each stripe is looked at when it is announced.
pub async fn watch(context: &Context, load: &Load, keys: &[BlockKey], deadline: Instant) -> Ended {
    let mut announced = vec![0; keys.len()];
    while let Some(arrived) = load.next().await {
        assert!(!arrived.is_empty(), "an announcement of nothing");
        for ready in arrived {
            let stripe = load.layout.stripes[as_index(ready.stripe)];
            for block in ready.first_block..ready.first_block + ready.blocks {
                let block = as_index(block);
                announced[block] += 1;
                let part = load.frames[block].region();
                let part = part.slice(HEADER_SIZE + stripe.offset, stripe.length);
                let right = is_filled(keys[block], stripe.offset, part.bytes());
                assert!(right, "wrong bytes: stripe {} of block {block}", ready.stripe);
            }
        }
    }
    let late = context.time.now().saturating_duration_since(deadline);
    assert!(late.is_zero(), "a load ended {late:?} after its deadline");
    let ended = load.ended();
    let whole = announced[..as_index(ended.loaded)].iter();
    assert!(
        whole.eq(vec![load.layout.stripes.len(); as_index(ended.loaded)].iter()),
        "{announced:?}"
    );
    for (frame, key) in load.frames.iter().zip(keys).take(as_index(ended.loaded)) {
        for stripe in load.layout.stripes.iter() {
            let part = frame.region().slice(HEADER_SIZE + stripe.offset, stripe.length);
            assert!(is_filled(*key, stripe.offset, part.bytes()), "wrong bytes in a loaded block");
        }
    }
    let count = as_number(keys.len());
    assert_eq!(ended.reason.is_none(), ended.loaded == count, "{ended:?} of {count}");
    ended
}

/// A leased block is a miss only for a reason that the drives have given.
fn check_reason(context: &Context, reason: Miss) {
    let faults = context.plan.faults;
    let writes_fail = faults.write_error + faults.sync_error + faults.no_space > 0;
    let accounted = match reason {
        // Nobody's fault: a deadline may be too short, an arena too small.
        Miss::Deadline | Miss::NoMemory => true,
        // What was written and not synced may also be gone after a failed sync, or a power loss.
        Miss::Damaged => faults.damage() || writes_fail || context.plan.lives > 1,
        Miss::Drive => faults.read_error + faults.never > 0,
        // A node of a simulation has none.
        Miss::Peer => false,
    };
    assert!(accounted, "a leased block is a miss for no reason: {reason:?}");
}

fn check_commit(
    context: &Context,
    committed: Committed,
    (durable, is_kept): (bool, bool),
    sent: usize,
) {
    let Committed { saved, refusal, durable: promised } = committed;
    add(&context.counts.saved, saved.into());
    add(&context.counts.promised, if promised { saved.into() } else { 0 });
    add(&context.counts.refused, u64::from(as_number(sent) - saved));
    assert!(durable || !promised, "promised what nobody asked for");
    assert_eq!(refusal.is_none(), saved == as_number(sent), "{committed:?} of {sent}");
    let faults = context.plan.faults;
    let fails = faults.write_error + faults.sync_error + faults.no_space + faults.never > 0;
    if !fails {
        assert_ne!(refusal, Some(Refusal::ReadOnly), "nothing failed");
        let may_promise = is_kept && context.plan.durability != Durability::None;
        assert!(promised || !durable || saved == 0 || !may_promise, "no promise: {committed:?}");
    }
}

fn as_number(count: usize) -> u32 {
    u32::try_from(count).expect("a few blocks")
}

fn as_index(number: u32) -> usize {
    usize::try_from(number).expect("32 bits fit")
}
