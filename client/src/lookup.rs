//! A lookup's answer, and the lease that comes with it.

use crate::cache::{Arenas, KvCache};
use crate::error::ClientError;
use crate::gather::Gather;
use crate::layered::{LayeredLoad, Target};
use crate::layout::Layout;
use crate::lease::{Lease, check_range};
use crate::load::Load;
use crate::save::{self, ByCall, Saved};
use refrain_gpu_transfer::copier::Stream;
use refrain_gpu_transfer::layout::Pages;
use refrain_proto::v1;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The blocks of a prompt and those of them that are resident, leased; dropping it releases them.
#[derive(Debug)]
pub struct Lookup {
    lease: Arc<Lease>,
    layout: Arc<Layout>,
    /// Full blocks of the prompt, resident or not.
    pub prompt_blocks: u32,
    /// How many of them are resident, from the first one on.
    pub matched_blocks: u32,
    /// Where the matched blocks lie, in order; of separate names, where all that were asked for do,
    /// and `Unspecified` where they are not resident.
    pub tiers: Vec<v1::TierRun>,
    /// Of all matched blocks, as drives and peers stand now.
    pub expected_load: Duration,
    /// Of the blocks of tier `peer` alone, which stand behind all others: where they are computed
    /// faster than that, load those before them only.
    pub expected_peer: Duration,
}

impl Lookup {
    pub(crate) fn new(lease: Arc<Lease>, layout: Arc<Layout>, answer: v1::LookupResponse) -> Self {
        Self {
            lease,
            layout,
            prompt_blocks: answer.prompt_blocks,
            matched_blocks: answer.matched_blocks,
            tiers: answer.tiers,
            expected_load: Duration::from_micros(answer.expected_load_us),
            expected_peer: Duration::from_micros(answer.expected_peer_us),
        }
    }

    /// How these blocks lie in memory.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Brings leased blocks into memory; see [`Load`]. Blocks that are not there by the deadline
    /// (the client's own if there is none) are misses.
    pub async fn load(
        &self,
        first: u32,
        blocks: u32,
        deadline: Option<Duration>,
    ) -> Result<Load, ClientError> {
        check_range(first, blocks, self.matched_blocks)?;
        let deadline = deadline.unwrap_or(self.lease.limit);
        let (lease, layout) = (Arc::clone(&self.lease), Arc::clone(&self.layout));
        let is_whole = blocks == self.matched_blocks;
        Load::request(lease, layout, (first, blocks, is_whole), deadline).await
    }

    /// Saves blocks of the prompt that are not resident yet, as far as the sidecar takes them.
    ///
    /// `fill` is called, on the caller's task, with a block of the prompt and its payload to write,
    /// stripes at the offsets of the layout. A refusal is an answer; what was saved before stays.
    /// With `durable`, the answer waits until the blocks would survive a power loss.
    pub async fn save(
        &self,
        first: u32,
        blocks: u32,
        fill: impl FnMut(u32, &mut [u8]) + Send,
        durable: bool,
    ) -> Result<Saved, ClientError> {
        check_range(first, blocks, self.prompt_blocks)?;
        let source = ByCall(fill);
        save::save(&self.lease, &self.layout, first..first + blocks, source, durable).await
    }

    /// Brings leased blocks into a paged KV cache; see [`LayeredLoad`]. `pages` are of block `first`
    /// and those behind it. Copies begin after what is on the stream `after` by now, where whoever
    /// had these pages before may still use them there.
    ///
    /// Of several loads, copies of the one with the earliest deadline are made first.
    pub async fn load_into(
        &self,
        cache: &KvCache,
        first: u32,
        pages: Pages,
        deadline: Option<Duration>,
        after: Option<Stream>,
    ) -> Result<LayeredLoad, ClientError> {
        let arenas = self.arenas(cache, &pages).await?;
        let limit = deadline.unwrap_or(self.lease.limit);
        let begun = Instant::now();
        let load = self.load(first, pages.blocks(), Some(limit)).await?;
        let target = Target { cache: cache.clone(), arenas, pages, begun, limit, after };
        LayeredLoad::start(load, Arc::clone(&self.lease), &self.layout, target)
    }

    /// Saves blocks of the prompt out of a paged KV cache, as [`Lookup::save`] does. `pages` are of
    /// block `first` and those behind it; they are read after what is on the stream `after` by now,
    /// and must keep their bytes until this returns.
    pub async fn save_from(
        &self,
        cache: &KvCache,
        first: u32,
        pages: Pages,
        after: Option<Stream>,
        durable: bool,
    ) -> Result<Saved, ClientError> {
        check_range(first, pages.blocks(), self.prompt_blocks)?;
        if let Some(source) = pages.gap() {
            return Err(ClientError::Cache { source });
        }
        let arenas = self.arenas(cache, &pages).await?;
        let blocks = first..first + pages.blocks();
        let (cache, layout) = (cache.clone(), Arc::clone(&self.layout));
        let source = Gather { cache, arenas, layout, pages, first, after };
        save::save(&self.lease, &self.layout, blocks, source, durable).await
    }

    async fn arenas(&self, cache: &KvCache, pages: &Pages) -> Result<Arc<Arenas>, ClientError> {
        let fits = cache.check(&self.layout);
        let fits = fits.and_then(|()| cache.paged().layout().check_pages(pages));
        fits.map_err(|source| ClientError::Cache { source })?;
        cache.arenas(&self.lease.connection).await
    }

    /// Prolongs the lease by `lease` from now; 0 takes the sidecar's default. `false`: it was over.
    pub async fn renew(&self, lease: Duration) -> Result<bool, ClientError> {
        self.lease.renew(lease).await
    }

    /// Ends the lease, after all that was loaded has been copied out. `true`: it held all the
    /// while, and the copies count. `false`: discard them; so it is once the lease was released.
    pub async fn release(&self) -> Result<bool, ClientError> {
        self.lease.release().await
    }
}
