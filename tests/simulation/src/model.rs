//! What must be true of a node, whatever happens to its drives.
//!
//! The model hears what clients send and are told, and which blocks the node says come and go. It
//! knows no segment and no address: of a block it knows whether it may be found at all, whether it
//! is there, and whether it was promised.

use crate::names::Family;
use refrain_index::chain::BlockKey;
use refrain_server::events::{Change, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// A block that some client has sent.
#[derive(Clone, Debug)]
pub struct Block {
    pub family: usize,
    /// Its prompt, up to it.
    pub tokens: Vec<u32>,
    parent: Option<BlockKey>,
    /// The epochs of its namespace that it was sent in.
    sent_in: BTreeSet<u64>,
    resident: bool,
    /// How often the node said that it came.
    stored: u64,
    promised: bool,
}

#[derive(Clone, Debug)]
pub struct Model {
    families: Rc<Vec<Family>>,
    epochs: Vec<u64>,
    blocks: BTreeMap<BlockKey, Block>,
    marks: Vec<Mark>,
}

/// A block that is owed from now on, or no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Promised(BlockKey),
    Gone(BlockKey),
    /// A family's namespace was dropped.
    Dropped(usize),
}

impl Model {
    pub fn new(families: Rc<Vec<Family>>) -> Self {
        let epochs = vec![0; families.len()];
        Self { families, epochs, blocks: BTreeMap::new(), marks: Vec::new() }
    }

    /// What became owed, and what did not stay so, since the last call.
    pub fn take_marks(&mut self) -> Vec<Mark> {
        std::mem::take(&mut self.marks)
    }

    pub fn block(&self, key: BlockKey) -> &Block {
        &self.blocks[&key]
    }

    /// A client is about to send blocks; how often each came before.
    pub fn sent(&mut self, family: usize, shard: u32, tokens: &[u32]) -> Vec<u64> {
        let keys = self.families[family].keys(shard, tokens);
        let mut parent = None;
        let mut stored = Vec::with_capacity(keys.len());
        for (index, &key) in keys.iter().enumerate() {
            let tokens = tokens[..=index].to_vec();
            let (epoch, new) = (
                self.epochs[family],
                Block {
                    family,
                    tokens,
                    parent,
                    sent_in: BTreeSet::new(),
                    resident: false,
                    stored: 0,
                    promised: false,
                },
            );
            let block = self.blocks.entry(key).or_insert(new);
            block.sent_in.insert(epoch);
            stored.push(block.stored);
            parent = Some(key);
        }
        stored
    }

    /// The node says that these would survive a power loss. `stored` is what `sent` gave of them.
    pub fn promised(&mut self, keys: &[BlockKey], stored: &[u64]) {
        for (key, before) in keys.iter().zip(stored) {
            let block = self.blocks.get_mut(key).expect("promised blocks were sent");
            // Where it went and came again meanwhile, the promise is of a record that went.
            if block.resident && block.stored <= before + 1 {
                block.promised = true;
                self.marks.push(Mark::Promised(*key));
            }
        }
    }

    /// Whether none of these went since `sent` said how often each came.
    pub fn is_kept(&self, keys: &[BlockKey], stored: &[u64]) -> bool {
        keys.iter().zip(stored).all(|(key, before)| {
            let block = &self.blocks[key];
            block.resident && block.stored <= before + 1
        })
    }

    /// A lookup has matched these.
    pub fn matched(&self, keys: &[BlockKey]) {
        for key in keys {
            let block = self.blocks.get(key).expect("a block was matched that nobody ever sent");
            assert!(
                block.sent_in.contains(&self.epochs[block.family]),
                "a block of a dropped namespace was matched"
            );
            assert!(block.resident, "a block was matched that the node says is gone");
        }
    }

    /// A namespace was dropped, for good.
    pub fn dropped(&mut self, family: usize) {
        self.epochs[family] += 1;
        self.marks.push(Mark::Dropped(family));
        let resident = |block: &Block| block.family == family && block.resident;
        // Those that a save lets in right now are of the epoch before, and refused.
        assert!(!self.blocks.values().any(resident), "a block outlived its dropped namespace");
    }

    /// As it was when its families had been dropped so often.
    pub fn back_in(&mut self, epochs: &[u64]) {
        self.epochs = epochs.to_vec();
    }

    /// The node says that blocks came or went.
    pub fn changed(&mut self, change: &Change) {
        for key in &change.keys {
            let block = self.blocks.get_mut(key).expect("only blocks that were sent come or go");
            let arrives = change.kind == Kind::Stored;
            if !arrives {
                self.marks.push(Mark::Gone(*key));
            }
            assert_ne!(block.resident, arrives, "a block came or went twice");
            block.resident = arrives;
            block.promised = false;
            block.stored += u64::from(arrives);
            let parent = block.parent;
            if arrives && let Some(parent) = parent {
                assert!(self.blocks[&parent].resident, "a block came without its parent");
            }
        }
        // A removal names whoever goes along.
        if change.kind == Kind::Removed {
            self.check_parents();
        }
    }

    fn check_parents(&self) {
        for block in self.blocks.values().filter(|block| block.resident) {
            let parent = block.parent.map(|parent| &self.blocks[&parent]);
            assert!(parent.is_none_or(|parent| parent.resident), "a child outlived its parent");
        }
    }

    /// A node has come up with these.
    pub fn restarted(&mut self, resident: &[BlockKey]) {
        for block in self.blocks.values_mut() {
            block.resident = false;
        }
        for key in resident {
            let block = self.blocks.get_mut(key).expect("a restart found what nobody ever sent");
            let current = self.epochs[block.family];
            assert!(
                block.sent_in.contains(&current),
                "a restart found blocks of a dropped namespace"
            );
            block.resident = true;
        }
        for block in self.blocks.values_mut() {
            block.promised &= block.resident;
        }
        self.check_parents();
    }

    /// Whether the node holds what it says it holds.
    pub fn check_resident(&self, resident: &[BlockKey]) {
        let known = self.blocks.iter().filter(|(_, block)| block.resident);
        let known: Vec<_> = known.map(|(key, _)| *key).collect();
        let mut resident = resident.to_vec();
        resident.sort_unstable();
        assert_eq!(resident, known, "what came and went is not what is there");
    }

    pub fn is_promised(&self, key: BlockKey) -> bool {
        self.blocks[&key].promised
    }

    /// A block and all before it.
    pub fn path(&self, key: BlockKey) -> impl Iterator<Item = BlockKey> {
        let mut next = Some(key);
        std::iter::from_fn(move || {
            let key = next?;
            next = self.blocks[&key].parent;
            Some(key)
        })
    }
}
