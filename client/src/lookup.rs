//! A lookup's answer, and the lease that comes with it.

use crate::cache::{Arenas, KvCache};
use crate::call::{Deadline, Failure};
use crate::connection::Connection;
use crate::error::ClientError;
use crate::gather::Gather;
use crate::layered::{LayeredLoad, Target};
use crate::layout::Layout;
use crate::load::Load;
use crate::registration::session_failure;
use crate::save::{self, ByCall, Saved};
use refrain_gpu_transfer::copier::Stream;
use refrain_gpu_transfer::layout::Pages;
use refrain_proto::v1;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

/// A lease, given back when nobody holds it any more.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) connection: Arc<Connection>,
    pub(crate) id: u64,
    /// Of calls under this lease.
    pub(crate) limit: Duration,
    /// What a load of all that matched took, in microseconds; 0 until there was one.
    pub(crate) load_us: AtomicU64,
    released: AtomicBool,
}

impl Lookup {
    pub(crate) async fn request(
        connection: Arc<Connection>,
        layout: Arc<Layout>,
        limit: Duration,
        request: v1::LookupRequest,
        deadline: Deadline,
    ) -> Result<Self, ClientError> {
        let user = Arc::clone(&connection);
        // A task of its own, because the answer is a lease: where nobody waits for it any more, it
        // is dropped there, and thereby released.
        let asking = connection.runtime().spawn(async move {
            let request = deadline.request(request);
            let answer = deadline.answer(user.cache().lookup(request)).await;
            let answer = answer.map_err(|failure| session_failure(&user, "look up", failure))?;
            let (load_us, released) = (AtomicU64::new(0), AtomicBool::new(false));
            let lease = Lease { connection: user, id: answer.lease, limit, load_us, released };
            Ok(Self {
                lease: Arc::new(lease),
                layout,
                prompt_blocks: answer.prompt_blocks,
                matched_blocks: answer.matched_blocks,
                tiers: answer.tiers,
                expected_load: Duration::from_micros(answer.expected_load_us),
                expected_peer: Duration::from_micros(answer.expected_peer_us),
            })
        });
        let stopped = |_| connection.error("look up", Failure::Late(limit));
        asking.await.unwrap_or_else(|error| Err(stopped(error)))
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
        let Lease { connection, id, limit, .. } = &*self.lease;
        let deadline = Deadline::after(*limit);
        let lease_ms = u32::try_from(lease.as_millis()).unwrap_or(u32::MAX);
        let request = deadline.request(v1::RenewRequest { lease: *id, lease_ms });
        let answer = deadline.answer(connection.cache().renew(request)).await;
        match answer.map_err(|failure| connection.noted(failure)) {
            Ok(answer) => Ok(answer.held),
            Err(Failure::Unknown(_) | Failure::Lost(_)) => Ok(false),
            Err(failure @ (Failure::Late(_) | Failure::Refused(_))) => {
                Err(connection.error("renew", failure))
            }
        }
    }

    /// Ends the lease, after all that was loaded has been copied out. `true`: it held all the
    /// while, and the copies count. `false`: discard them; so it is once the lease was released.
    pub async fn release(&self) -> Result<bool, ClientError> {
        let connection = Arc::clone(&self.lease.connection);
        if self.lease.released.swap(true, Ordering::Relaxed) {
            return Ok(false);
        }
        let lease = Arc::clone(&self.lease);
        // Whoever stops waiting has released it all the same.
        let releasing = connection.runtime().spawn(async move { lease.release().await });
        match releasing.await {
            Ok(Ok(held)) => Ok(held),
            Ok(Err(failure @ Failure::Refused(_))) => Err(connection.error("release", failure)),
            Ok(Err(Failure::Lost(_) | Failure::Late(_) | Failure::Unknown(_))) | Err(_) => {
                Ok(false)
            }
        }
    }
}

impl Lease {
    async fn release(&self) -> Result<bool, Failure> {
        let deadline = Deadline::after(self.limit);
        let request = deadline.request(v1::ReleaseRequest {
            lease: self.id,
            load_us: self.load_us.load(Ordering::Relaxed),
        });
        let answer = deadline.answer(self.connection.cache().release(request)).await;
        answer.map(|answer| answer.held).map_err(|failure| self.connection.noted(failure))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if *self.released.get_mut() {
            return;
        }
        let connection = Arc::clone(&self.connection);
        let released = AtomicBool::new(true);
        let load_us = AtomicU64::new(*self.load_us.get_mut());
        let lease = Self { connection, id: self.id, limit: self.limit, load_us, released };
        self.connection.runtime().spawn(async move {
            // A lease that could not be given back runs out.
            let _ = lease.release().await;
        });
    }
}

fn check_range(first: u32, blocks: u32, available: u32) -> Result<(), ClientError> {
    match first.checked_add(blocks) {
        Some(end) if end <= available => Ok(()),
        _ => Err(ClientError::BlocksOutOfRange { first, blocks, available }),
    }
}
