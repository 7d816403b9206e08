//! What a node owes after a restart: what was promised, and what a drive that stopped had finished.

use crate::client::{Context, add, watch};
use crate::world::{End, World};
use refrain_index::chain::BlockKey;
use refrain_server::clock::Time;
use refrain_server::lookup::Prompt;
use refrain_server::place::DriveId;
use refrain_store::geometry::RecordAddress;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// A block that must be there after a restart, with the segments that it and those before it lie
/// in: damage to one of them excuses its absence.
#[derive(Debug)]
pub(crate) struct Owed {
    pub(crate) key: BlockKey,
    /// Whether it must be whole too, not only known.
    pub(crate) promised: bool,
    pub(crate) segments: Vec<(usize, usize)>,
}

impl World {
    /// Whether what is owed is among what a restart has found.
    pub(crate) fn check_owed(&self, resident: &BTreeSet<BlockKey>) {
        for owed in &self.owed {
            let is_there = resident.contains(&owed.key) || self.is_excused(owed);
            assert!(is_there, "a promised block is gone after a restart: {owed:?}");
        }
    }

    fn is_excused(&self, owed: &Owed) -> bool {
        owed.segments.iter().any(|place| self.is_damaged(*place))
    }

    fn is_damaged(&self, (drive, segment): (usize, usize)) -> bool {
        self.drives[drive].disk.lock().is_damaged(segment)
    }

    /// Reads everything that is owed, from drives that do nothing wrong meanwhile.
    pub(crate) fn audit(&mut self, context: &Rc<Context>) {
        self.faulty = false;
        let owed = std::mem::take(&mut self.owed);
        let places = places(context);
        let model = self.model.borrow();
        // Of two copies a start may have taken the one that rotted: nobody can tell them apart
        // without reading both.
        let lies_well = |key: BlockKey| {
            let mut path = model.path(key);
            path.all(|key| places.get(&key).is_none_or(|place| !self.is_damaged(*place)))
        };
        let owed = owed.iter().filter(|owed| owed.promised && !self.is_excused(owed));
        let sound: Vec<_> = owed.filter(|owed| lies_well(owed.key)).collect();
        // Whoever is read with a longer prompt needs no reading of its own.
        let inner: BTreeSet<_> =
            sound.iter().flat_map(|owed| model.path(owed.key).skip(1)).collect();
        let leaves: Vec<_> =
            sound.iter().map(|owed| owed.key).filter(|key| !inner.contains(key)).collect();
        drop(model);
        if leaves.is_empty() {
            return;
        }
        context.at_work.set(1);
        self.tasks.spawn(read_all(Rc::clone(context), leaves));
        while context.at_work.get() > 0 {
            assert!(self.step(context), "a load waits, and nothing will ever happen");
        }
    }
}

/// What must be found again.
pub(crate) fn owed_after(context: &Context, end: End, has_holes: bool) -> Vec<Owed> {
    let model = context.model();
    let places = places(context);
    // What a drive finished and synced is there again, promised or not.
    let is_whole = context.node.drives().all(|drive| drive.stats().writable);
    let is_owed = |key: &BlockKey| match end {
        End::Stop if is_whole && !has_holes => true,
        End::Stop | End::Cut(_) => model.is_promised(*key),
    };
    let owed = places.keys().copied().filter(is_owed).map(|key| Owed {
        key,
        promised: model.is_promised(key),
        segments: model.path(key).map(|key| places[&key]).collect(),
    });
    owed.collect()
}

/// Drive and segment of every block that is there.
fn places(context: &Context) -> BTreeMap<BlockKey, (usize, usize)> {
    let place = |(drive, address): (DriveId, RecordAddress)| {
        let segment = usize::try_from(address.segment.0).expect("32 bits fit");
        (usize::from(drive.0), segment)
    };
    let views = context.node.views(&context.node.keys(usize::MAX));
    views.iter().map(|view| (view.key(), place(view.address()))).collect()
}

/// Loads whole prompts, each of which must be there.
async fn read_all(context: Rc<Context>, leaves: Vec<BlockKey>) {
    for leaf in leaves {
        let block = context.model().block(leaf).clone();
        let family = &context.families[block.family];
        let bytes = u64::from(family.namespace.layers) * family.namespace.layer_bytes;
        let registered = context.node.register(&family.namespace, leaf.shard, bytes, None);
        let registered = registered.expect("the plan has room for its blocks");
        let registration = context.node.registration(registered.id).expect("registered above");
        let keys = family.keys(leaf.shard, &block.tokens);
        // One by one: a small arena does not hold a long prompt.
        for (index, key) in keys.iter().enumerate() {
            let prompt = Prompt::Tokens { tokens: &block.tokens, extra_keys: &[] };
            let found = context.node.lookup(&registration, prompt, None);
            assert_eq!(found.tiers.len(), keys.len(), "a promised block is not found");
            let deadline = context.time.now() + Duration::from_mins(1);
            let number = u32::try_from(index).expect("a few blocks");
            let load = context.node.load(found.lease, number, 1, deadline).expect("just leased");
            let ended = watch(&context, &load, &[*key], deadline).await;
            assert_eq!(ended.loaded, 1, "a promised block is not read: {ended:?}");
            add(&context.counts.loaded, 1);
            context.node.release(found.lease, None);
        }
    }
    context.at_work.set(0);
}
