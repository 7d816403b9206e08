//! A paged KV cache in memory, and the copies between it and an arena.

use crate::arena::{Access, ArenaError};
use crate::copier::Pinned;
use crate::layout::{KvLayout, LayoutError, Pages};
use crate::memory::{Memory, Place};
use crate::plan::{Copy, Plan};
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From an arena into the cache.
    Load,
    /// From the cache into an arena.
    Save,
}

/// A paged KV cache whose pages are memory for as long as this lives.
#[derive(Debug)]
pub struct PagedCache {
    layout: KvLayout,
    memory: Owned,
}

/// Whose memory the pages are.
#[derive(Debug)]
enum Owned {
    ByCache(Memory),
    /// Given back when the cache, and all copies of it, have ended.
    ByCaller(#[expect(dead_code, reason = "kept for its drop")] Box<dyn Any + Send + Sync>),
}

impl PagedCache {
    /// A cache in memory of the caller's, which `keeper` keeps: it is dropped behind the last copy.
    ///
    /// # Safety
    ///
    /// For as long as the keeper lives, every page of the layout is memory: of the device that the
    /// copier in use with it was opened for, or of this process, readable and writable, for one
    /// that copies on the host. Nobody else uses a page while a load or save of it is under way.
    #[expect(unsafe_code, reason = "only the caller knows what lies at an address")]
    pub unsafe fn at_addresses(
        layout: KvLayout,
        keeper: Box<dyn Any + Send + Sync>,
    ) -> Result<Arc<Self>, LayoutError> {
        layout.check()?;
        Ok(Arc::new(Self { layout, memory: Owned::ByCaller(keeper) }))
    }

    /// A cache in memory of its own. The layout's addresses are the memory's.
    pub fn within(memory: Memory, layout: KvLayout) -> Result<Arc<Self>, LayoutError> {
        layout.check()?;
        layout.fits(&memory.addresses())?;
        Ok(Arc::new(Self { layout, memory: Owned::ByCache(memory) }))
    }

    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Its own memory, unless the caller keeps it.
    pub fn memory(&self) -> Option<&Memory> {
        match &self.memory {
            Owned::ByCache(memory) => Some(memory),
            Owned::ByCaller(_) => None,
        }
    }
}

/// Copies between one arena and one cache, all in one direction.
#[derive(Clone, Debug)]
pub struct Batch {
    direction: Direction,
    cache: Arc<PagedCache>,
    arena: Arc<Pinned>,
    /// Sources are bytes of the arena, targets addresses of the cache.
    plan: Plan,
}

/// Why copies are not made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BatchError {
    #[error("describe the pages of a cache")]
    Layout(#[from] LayoutError),
    #[error("find a payload in an arena")]
    Arena(#[from] ArenaError),
    #[error("an arena that is mapped for reading alone takes no saves")]
    ReadOnly,
}

impl Batch {
    pub fn new(
        direction: Direction,
        cache: &Arc<PagedCache>,
        arena: &Arc<Pinned>,
    ) -> Result<Self, BatchError> {
        if direction == Direction::Save && arena.mapping().access() == Access::ReadOnly {
            return Err(BatchError::ReadOnly);
        }
        let (cache, arena, plan) = (Arc::clone(cache), Arc::clone(arena), Plan::default());
        Ok(Self { direction, cache, arena, plan })
    }

    /// Adds layers `layers` of block `block` of a run whose pages are `pages`; in the arena the
    /// first of these layers begins at `offset`.
    pub fn add(
        &mut self,
        layers: Range<usize>,
        pages: &Pages,
        block: u32,
        offset: u64,
    ) -> Result<(), BatchError> {
        let count = u64::try_from(layers.len()).expect("usize fits");
        let layout = &self.cache.layout;
        self.arena.mapping().region(offset, layout.layer_bytes().saturating_mul(count))?;
        Ok(layout.scatter(layers, pages, block, offset, &mut self.plan)?)
    }

    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Where the copies are made; `None` where arena and cache do not fit together.
    pub(crate) fn place(&self) -> Option<Place> {
        let place = self.arena.place();
        let theirs = self.cache.memory().map(Memory::place);
        theirs.is_none_or(|theirs| theirs == place).then_some(place)
    }

    pub fn is_empty(&self) -> bool {
        self.plan.copies().is_empty()
    }

    pub(crate) fn arena_address(&self) -> u64 {
        self.arena.address()
    }

    /// The copies between addresses of this process and the cache.
    pub(crate) fn copies(&self) -> impl Iterator<Item = Copy> + '_ {
        let base = self.arena.address();
        self.plan.copies().iter().map(move |&Copy { source, target, length }| {
            let arena = base + source;
            match self.direction {
                Direction::Load => Copy { source: arena, target, length },
                Direction::Save => Copy { source: target, target: arena, length },
            }
        })
    }
}
