//! Whether what a peer sends is what it was asked for: nothing of it is believed.
//!
//! A header must be that of the block, in its namespace, epoch and place in the prompt; a stripe must
//! have the length of the layout and the checksum of the header. The first piece that is not ends it:
//! what had arrived whole by then stays, the rest are misses.

use crate::load::{BlockRead, Miss};
use refrain_index::hash::{KEY_SCHEME, SequenceHash};
use refrain_proto::data::{EndReason, Piece};
use refrain_store::arena::Region;
use refrain_store::check::{self, ReadError, Shape};
use refrain_store::format::{HeaderError, RecordHeader};
use refrain_store::geometry::{HEADER_SIZE, Layout, PAGE_SIZE};
use std::sync::Arc;
use thiserror::Error;

/// What the blocks of a prompt must be.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(super) namespace: [u8; 32],
    pub(super) epoch: u64,
    pub(super) shard: u32,
    /// What stands before the first block.
    pub(super) root: SequenceHash,
    pub(super) hashes: Arc<[SequenceHash]>,
    pub(super) layout: Layout,
}

/// What a peer sent that is not what it was asked for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum Lie {
    #[error("block {block} is none of the {blocks} that were asked for")]
    Block { block: u32, blocks: usize },
    #[error("a second header of block {block}")]
    SecondHeader { block: u32 },
    #[error("header of block {block}")]
    Header { block: u32, source: HeaderError },
    #[error("header of block {block} is of another one")]
    OtherBlock { block: u32 },
    #[error("block {block} has other stripes than its namespace's layout")]
    Layout { block: u32 },
    #[error("stripe {stripe} of block {block} was not to come now")]
    Stripe { block: u32, stripe: u32 },
    #[error("stripe {stripe} of block {block} has {found} bytes, not {expected}")]
    Length { block: u32, stripe: u32, found: u64, expected: u64 },
    #[error("block {block}")]
    Content { block: u32, source: ReadError },
    #[error("an end before block {block} has come, and no reason")]
    End { block: u32 },
}

/// Blocks on their way over one connection. Dropped, those that lack anything are misses.
#[derive(Debug)]
pub(crate) struct Arrivals {
    asked: Arc<Asked>,
    /// Of the prompt.
    first: u32,
    blocks: Vec<Arriving>,
    /// What those are that never come.
    pub(super) miss: Miss,
}

#[derive(Debug)]
struct Arriving {
    read: Arc<BlockRead>,
    header: Option<RecordHeader>,
    /// By stripe.
    arrived: Vec<bool>,
    lacking: usize,
}

/// What is to be done with the bytes behind a piece.
#[derive(Debug)]
pub(crate) enum Next {
    /// They go here; then [`Arrivals::filled`].
    Fill(Region),
    /// There are none, and nothing more comes.
    Over,
}

impl Arrivals {
    /// Blocks `first` and those behind it, each to where it is awaited.
    pub(super) fn new(asked: Arc<Asked>, first: u32, reads: Vec<Arc<BlockRead>>) -> Self {
        let stripes = asked.layout.stripes.len();
        let arriving = |read| {
            let arrived = vec![false; stripes];
            Arriving { read, header: None, arrived, lacking: stripes }
        };
        let blocks = reads.into_iter().map(arriving).collect();
        Self { asked, first, blocks, miss: Miss::Peer }
    }

    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn first(&self) -> u32 {
        self.first
    }

    /// Blocks that have come whole.
    pub(super) fn whole(&self) -> usize {
        self.blocks.iter().filter(|block| block.lacking == 0).count()
    }

    /// Where the bytes behind `piece` belong.
    pub(super) fn next(&mut self, piece: Piece) -> Result<Next, Lie> {
        match piece {
            Piece::Header { block } => {
                let arriving = self.block(block)?;
                if arriving.header.is_some() {
                    return Err(Lie::SecondHeader { block });
                }
                Ok(Next::Fill(arriving.read.frame.region().slice(0, HEADER_SIZE)))
            }
            Piece::Stripe { block, stripe, length } => {
                let range = self.asked.layout.stripes.get(index(stripe)).copied();
                let arriving = self.block(block)?;
                let is_due = arriving.header.is_some()
                    && arriving.arrived.get(index(stripe)) == Some(&false);
                let range = range.filter(|_| is_due).ok_or(Lie::Stripe { block, stripe })?;
                if length != range.length {
                    let (found, expected) = (length, range.length);
                    return Err(Lie::Length { block, stripe, found, expected });
                }
                let region = arriving.read.frame.region();
                Ok(Next::Fill(region.slice(HEADER_SIZE + range.offset, range.length)))
            }
            Piece::End { loaded, reason } => {
                self.miss = miss(reason);
                let lacking = self.blocks.iter().position(|block| block.lacking > 0);
                match lacking {
                    // It may end early, but not say that it has not.
                    Some(first) if reason == EndReason::Complete || first < index(loaded) => {
                        self.miss = Miss::Peer;
                        Err(Lie::End { block: u32::try_from(first).unwrap_or(u32::MAX) })
                    }
                    Some(_) | None => Ok(Next::Over),
                }
            }
        }
    }

    /// The bytes behind `piece` are where they belong: whoever waits for them hears of it, if they are
    /// right.
    pub(super) fn filled(&mut self, piece: Piece) -> Result<(), Lie> {
        match piece {
            Piece::Header { block } => self.header(block),
            Piece::Stripe { block, stripe, .. } => self.stripe(block, stripe),
            Piece::End { .. } => Ok(()),
        }
    }

    fn header(&mut self, block: u32) -> Result<(), Lie> {
        let asked = Arc::clone(&self.asked);
        let position = self.first.saturating_add(block);
        let arriving = self.block(block)?;
        let page = arriving.read.frame.region().slice(0, HEADER_SIZE);
        let page = page.bytes().first_chunk().expect("a header has a page");
        let header = RecordHeader::decode(page).map_err(|source| Lie::Header { block, source })?;
        let at = index(position);
        let parent = at.checked_sub(1).map_or(asked.root, |before| asked.hashes[before]);
        let found = (header.sequence_hash, header.shard, header.namespace, header.parent);
        let is_it = found == (asked.hashes[at].0, asked.shard, asked.namespace, parent.0)
            && (header.key_scheme, header.position) == (KEY_SCHEME, position)
            && header.epoch >= asked.epoch
            && !header.withdrawn;
        if !is_it {
            return Err(Lie::OtherBlock { block });
        }
        let shape = Shape::Layout(asked.layout.clone());
        check::shape(&header, &shape).map_err(|_| Lie::Layout { block })?;
        arriving.header = Some(header);
        Ok(())
    }

    fn stripe(&mut self, block: u32, stripe: u32) -> Result<(), Lie> {
        let range = self.asked.layout.stripes[index(stripe)];
        let arriving = self.block(block)?;
        let header = arriving.header.as_ref().ok_or(Lie::Stripe { block, stripe })?;
        let payload = arriving.read.frame.region();
        let bytes = payload.slice(HEADER_SIZE + range.offset, range.length);
        check::stripe(header, index(stripe), bytes.bytes())
            .map_err(|source| Lie::Content { block, source })?;
        // What lay in the frame before is nobody's padding.
        let end = range.offset + range.length;
        let padding = payload.slice(HEADER_SIZE + end, end.next_multiple_of(PAGE_SIZE) - end);
        padding.fill_with(|bytes| bytes.fill(0));
        arriving.arrived[index(stripe)] = true;
        arriving.lacking -= 1;
        if arriving.lacking == 0 {
            arriving.read.arrive_last(index(stripe));
        } else {
            arriving.read.arrive(index(stripe));
        }
        Ok(())
    }

    fn block(&mut self, block: u32) -> Result<&mut Arriving, Lie> {
        let blocks = self.blocks.len();
        self.blocks.get_mut(index(block)).ok_or(Lie::Block { block, blocks })
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        for block in self.blocks.iter().filter(|block| block.lacking > 0) {
            block.read.give_up(self.miss);
        }
    }
}

fn miss(reason: EndReason) -> Miss {
    match reason {
        EndReason::Deadline => Miss::Deadline,
        EndReason::Complete
        | EndReason::Damaged
        | EndReason::NoMemory
        | EndReason::Drive
        | EndReason::Lease => Miss::Peer,
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("32 bits fit")
}

#[cfg(test)]
mod tests;
