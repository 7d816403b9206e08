//! Where a worker's paged KV cache keeps its bytes, as data.
//!
//! A page holds some consecutive tokens of one layer; a layer has one plane of pages where keys and
//! values lie together or are a latent vector, and two where they lie apart. What an engine calls
//! its layout comes down to addresses and strides, so no engine is named here.
//!
//! The payload of a block holds, layer after layer, each plane's pages in the order of the tokens.

use crate::plan::{Copy, Plan};
use std::ops::Range;
use thiserror::Error;

/// One array of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// The address of page 0.
    pub base: u64,
    /// From a page to the next.
    pub page_stride: u64,
    /// A page is so many rows of bytes; one, where it is contiguous.
    pub rows: u32,
    pub row_bytes: u64,
    pub row_stride: u64,
}

/// The planes of one layer, in the order in which the payload has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The attention group: layers of one group share their page numbers.
    pub group: usize,
    pub planes: Vec<Plane>,
}

/// A paged KV cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    pub layers: Vec<Layer>,
    /// Pages of every plane.
    pub pages: u32,
    /// Pages of a plane that one block fills.
    pub pages_per_block: u32,
}

/// Stands for a page that the worker does not keep, as of tokens that left a sliding window.
pub const NO_PAGE: u32 = u32::MAX;

/// The pages of a run of blocks: for each attention group, the blocks' pages one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    groups: Vec<Vec<u32>>,
    blocks: u32,
}

/// Why addresses describe no cache, or no pages of it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutError {
    #[error("a cache of {layers} layers, {pages} pages and {pages_per_block} pages a block")]
    Empty { layers: usize, pages: u32, pages_per_block: u32 },
    #[error("plane {plane} of layer {layer} has no bytes, or leaves the addresses there are")]
    Plane { layer: usize, plane: usize },
    #[error("layer {layer} has {found} bytes a block, the first one {expected}")]
    Uneven { layer: usize, found: u64, expected: u64 },
    #[error("layer {layer} is of attention group {group}, of which no pages are given")]
    NoGroup { layer: usize, group: usize },
    #[error("{found} pages of group {group} are not {pages_per_block} for each of {blocks} blocks")]
    PageCount { group: usize, found: usize, pages_per_block: u32, blocks: u32 },
    #[error("page {page} of group {group} is not among {pages}")]
    PageOutOfRange { group: usize, page: u32, pages: u32 },
    #[error("page {index} of group {group} is not kept, so its block cannot be saved")]
    PageNotKept { group: usize, index: usize },
    #[error("memory ends at {end:#x}, layer {layer} at {needed:#x}")]
    MemoryTooSmall { layer: usize, end: u64, needed: u64 },
    #[error("stripes hold {stripes} layers of {layer_bytes} bytes, the cache {layers} of {found}")]
    OtherBlocks { stripes: u64, layer_bytes: u64, layers: usize, found: u64 },
}

impl Plane {
    /// Pages that are contiguous within.
    pub fn contiguous(base: u64, page_stride: u64, page_bytes: u64) -> Self {
        Self { base, page_stride, rows: 1, row_bytes: page_bytes, row_stride: page_bytes }
    }

    fn page_bytes(&self) -> Option<u64> {
        u64::from(self.rows).checked_mul(self.row_bytes).filter(|bytes| *bytes > 0)
    }

    /// Behind the last byte of the last page.
    fn end(&self, pages: u32) -> Option<u64> {
        let pages = u64::from(pages).checked_sub(1)?.checked_mul(self.page_stride)?;
        let rows = u64::from(self.rows).checked_sub(1)?.checked_mul(self.row_stride)?;
        self.base.checked_add(pages)?.checked_add(rows)?.checked_add(self.row_bytes)
    }

    fn rows_of(self, page: u32) -> impl Iterator<Item = u64> {
        let start = self.base + u64::from(page) * self.page_stride;
        (0..u64::from(self.rows)).map(move |row| start + row * self.row_stride)
    }
}

impl Layer {
    fn block_bytes(&self, pages_per_block: u32) -> Option<u64> {
        self.planes.iter().try_fold(0_u64, |sum, plane| {
            let bytes = plane.page_bytes()?.checked_mul(u64::from(pages_per_block))?;
            sum.checked_add(bytes)
        })
    }
}

impl KvLayout {
    /// Whether every page of it has an address, and every layer as many bytes as the others.
    pub fn check(&self) -> Result<(), LayoutError> {
        let Self { layers, pages, pages_per_block } = self;
        if layers.is_empty() || *pages == 0 || *pages_per_block == 0 {
            let (layers, pages, pages_per_block) = (layers.len(), *pages, *pages_per_block);
            return Err(LayoutError::Empty { layers, pages, pages_per_block });
        }
        let mut expected = None;
        for (layer, planes) in layers.iter().enumerate() {
            for (plane, place) in planes.planes.iter().enumerate() {
                if place.page_bytes().is_none() || place.end(*pages).is_none() {
                    return Err(LayoutError::Plane { layer, plane });
                }
            }
            let found = planes.block_bytes(*pages_per_block).filter(|bytes| *bytes > 0);
            let found = found.ok_or(LayoutError::Plane { layer, plane: 0 })?;
            let expected = *expected.get_or_insert(found);
            if found != expected {
                return Err(LayoutError::Uneven { layer, found, expected });
            }
        }
        Ok(())
    }

    /// Bytes of one layer of one block.
    pub fn layer_bytes(&self) -> u64 {
        let first = self.layers.first().and_then(|layer| layer.block_bytes(self.pages_per_block));
        first.unwrap_or(0)
    }

    /// Whether all of it lies in `memory`.
    pub(crate) fn fits(&self, memory: &Range<u64>) -> Result<(), LayoutError> {
        for (layer, planes) in self.layers.iter().enumerate() {
            for plane in &planes.planes {
                let needed = plane.end(self.pages).unwrap_or(u64::MAX);
                if plane.base < memory.start || needed > memory.end {
                    return Err(LayoutError::MemoryTooSmall { layer, end: memory.end, needed });
                }
            }
        }
        Ok(())
    }

    /// Whether each layer's group has its pages, all of them in the cache.
    pub fn check_pages(&self, pages: &Pages) -> Result<(), LayoutError> {
        for (layer, Layer { group, .. }) in self.layers.iter().enumerate() {
            if *group >= pages.groups.len() {
                return Err(LayoutError::NoGroup { layer, group: *group });
            }
        }
        let (pages_per_block, blocks) = (self.pages_per_block, pages.blocks);
        for (group, listed) in pages.groups.iter().enumerate() {
            let found = listed.len();
            if u64::try_from(found) != Ok(u64::from(blocks) * u64::from(pages_per_block)) {
                return Err(LayoutError::PageCount { group, found, pages_per_block, blocks });
            }
            let outside = |page: &&u32| **page >= self.pages && **page != NO_PAGE;
            if let Some(&page) = listed.iter().find(outside) {
                return Err(LayoutError::PageOutOfRange { group, page, pages: self.pages });
            }
        }
        Ok(())
    }

    /// Adds what brings `layers` of block `block` of a run from its payload into its pages.
    ///
    /// `source` is where the first of these layers begins in the payload.
    pub(crate) fn scatter(
        &self,
        layers: Range<usize>,
        pages: &Pages,
        block: u32,
        mut source: u64,
        plan: &mut Plan,
    ) -> Result<(), LayoutError> {
        for (layer, Layer { group, planes }) in self.layers.iter().enumerate().take(layers.end) {
            if layer < layers.start {
                continue;
            }
            let pages = pages.of(*group, block, self.pages_per_block);
            let pages = pages.ok_or(LayoutError::NoGroup { layer, group: *group })?;
            for plane in planes {
                for &page in pages {
                    if page == NO_PAGE {
                        source += u64::from(plane.rows) * plane.row_bytes;
                        continue;
                    }
                    if page >= self.pages {
                        let (group, pages) = (*group, self.pages);
                        return Err(LayoutError::PageOutOfRange { group, page, pages });
                    }
                    for target in plane.rows_of(page) {
                        plan.push(Copy { source, target, length: plane.row_bytes });
                        source += plane.row_bytes;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Pages {
    /// Of `blocks` blocks; one list of page numbers for each attention group.
    pub fn new(blocks: u32, groups: Vec<Vec<u32>>) -> Self {
        Self { groups, blocks }
    }

    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Page `index` of a group's.
    pub fn page(&self, group: usize, index: u32) -> Option<u32> {
        self.groups.get(group)?.get(self::index(index)).copied()
    }

    fn of(&self, group: usize, block: u32, pages_per_block: u32) -> Option<&[u32]> {
        let count = index(pages_per_block);
        let first = index(block).checked_mul(count)?;
        self.groups.get(group)?.get(first..)?.get(..count)
    }

    /// The first page that is not kept.
    pub fn gap(&self) -> Option<LayoutError> {
        let gap = |(group, pages): (usize, &Vec<u32>)| {
            let index = pages.iter().position(|page| *page == NO_PAGE)?;
            Some(LayoutError::PageNotKept { group, index })
        };
        self.groups.iter().enumerate().find_map(gap)
    }
}

fn index(count: u32) -> usize {
    usize::try_from(count).expect("addresses have 64 bits")
}

#[cfg(test)]
mod tests;
