//! A load into a paged KV cache, of which each layer can be waited for by itself.
//!
//! A task turns announcements into copies as they come. A layer is *on its way* when its copies, and
//! all those before them, are on the copier's stream. The caller's own stream can then be told to
//! wait for them, and whoever enqueues the layer's attention behind that waits for no copy. A block
//! that fails its check never completes its layer: the caller learns that the prefix is shorter
//! before it has enqueued anything that would read the block.

use crate::cache::{Arenas, KvCache, transfer};
use crate::error::ClientError;
use crate::layout::Layout;
use crate::lease::Lease;
use crate::line::Line;
use crate::load::{Done, Load, Ready};
use refrain_gpu_transfer::copier::{CopyError, CopySink, Fence, Stream, Transfer};
use refrain_gpu_transfer::layout::Pages;
use refrain_gpu_transfer::paged::{Batch, Direction};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A load under way.
///
/// Dropping it cancels it, and returns when no copy runs any more, within milliseconds: the pages
/// are then the caller's. Those of blocks that became misses hold anything.
#[derive(Debug)]
pub struct LayeredLoad {
    progress: watch::Receiver<Progress>,
    layout: Arc<Layout>,
    layers: u32,
    transfer: Arc<Transfer>,
    feeding: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Of each stripe that is on its way.
    fences: Vec<Option<Fence>>,
    /// Blocks from this one on are misses, as far as is known.
    usable: u32,
    /// Why the load came to nothing.
    error: Option<ClientError>,
    done: Option<Done>,
    copied: bool,
}

/// Where a load goes, and when it should be there.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) cache: KvCache,
    pub(crate) arenas: Arc<Arenas>,
    pub(crate) pages: Pages,
    /// When the load was asked for.
    pub(crate) begun: Instant,
    pub(crate) limit: Duration,
    pub(crate) after: Option<Stream>,
}

impl LayeredLoad {
    pub(crate) fn start(
        load: Load,
        lease: Arc<Lease>,
        layout: &Arc<Layout>,
        target: Target,
    ) -> Result<Self, ClientError> {
        let usable = target.pages.blocks();
        let fences = vec![None; layout.stripes.len()];
        let progress = Progress { fences, usable, ..Progress::default() };
        let (sender, receiver) = watch::channel(progress);
        let runtime = lease.connection.runtime().clone();
        let sink = Arc::new(Sink { progress: sender, lease, begun: target.begun });
        let copier = target.cache.copier();
        let deadline = Instant::now() + target.limit.min(LIMIT_MAX);
        let begun =
            copier.begin(Direction::Load, deadline, target.after, Arc::<Sink>::clone(&sink));
        let transfer = Arc::new(begun.map_err(transfer)?);
        let layers = count(target.cache.paged().layout().layers.len());
        let lacking = vec![usable; layout.stripes.len()];
        let feed = Feed { load, target, sink, lacking, transfer: Arc::clone(&transfer) };
        let feeding = runtime.spawn(feed.run(Arc::clone(layout)));
        Ok(Self { progress: receiver, layout: Arc::clone(layout), layers, transfer, feeding })
    }

    /// Waits until a layer is on its way, then has what is put on `stream` from now on wait for it.
    ///
    /// Returns how many blocks may be read. That is fewer than were asked for as soon as a block is
    /// known to be a miss, and may become fewer from one layer to the next; what was computed with
    /// more is to be thrown away. What waits here is the caller of the GPU, and only for the drives.
    pub async fn layer(&self, layer: u32, stream: Stream) -> Result<u32, ClientError> {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        let stripe = self.layout.stripe_of(layer);
        let mut progress = self.progress.clone();
        let there = |it: &Progress| it.error.is_some() || it.fences[stripe].is_some();
        let progress = progress.wait_for(there).await.map_err(|_| transfer(CopyError::Stopped))?;
        if let Some(error) = &progress.error {
            return Err(error.clone());
        }
        let (fence, usable) = (progress.fences[stripe].clone(), progress.usable);
        drop(progress);
        fence.map_or(Ok(()), |fence| fence.hold_back(stream)).map_err(transfer)?;
        Ok(usable)
    }

    /// Ends it, as dropping it does, for whoever else still waits.
    pub fn cancel(&self) {
        self.feeding.abort();
        self.transfer.abandon();
    }

    /// Layers of the cache that it goes into.
    pub fn layers(&self) -> u32 {
        self.layers
    }

    /// How many layers, from the first one on, are on their way: for these, [`LayeredLoad::layer`]
    /// does not wait at all.
    pub fn layers_on_their_way(&self) -> u32 {
        let stripes = self.progress.borrow().fences.iter().take_while(|it| it.is_some()).count();
        self.layers.min(count(stripes).saturating_mul(self.layout.layers_per_stripe))
    }

    /// Waits until all is copied, and says how it ended. The blocks count when
    /// [`crate::Lookup::release`] afterwards says that the lease held.
    pub async fn finish(&self) -> Result<Done, ClientError> {
        let mut progress = self.progress.clone();
        let over = |it: &Progress| it.error.is_some() || (it.copied && it.done.is_some());
        let progress = progress.wait_for(over).await.map_err(|_| transfer(CopyError::Stopped))?;
        match (&progress.error, progress.done) {
            (None, Some(done)) => Ok(done),
            (Some(error), _) => Err(error.clone()),
            (None, None) => Err(transfer(CopyError::Stopped)),
        }
    }
}

impl Drop for LayeredLoad {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// What the copier tells.
struct Sink {
    progress: watch::Sender<Progress>,
    /// Until nothing is copied any more, the frames must stay.
    lease: Arc<Lease>,
    begun: Instant,
}

impl CopySink for Sink {
    fn marked(&self, stripe: usize, fence: Fence) {
        self.progress.send_modify(|it| it.fences[stripe] = Some(fence));
    }

    fn ended(&self, outcome: Result<(), CopyError>) {
        // A load that counts has been timed when all was announced; to its worker it lasts longer.
        if outcome.is_ok() && self.lease.load_us.load(Ordering::Relaxed) > 0 {
            let load_us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.lease.load_us.store(load_us, Ordering::Relaxed);
        }
        self.progress.send_modify(|it| {
            it.copied = true;
            if let Err(error) = outcome {
                it.error.get_or_insert(transfer(error));
            }
        });
    }
}

/// Turns announcements into copies.
struct Feed {
    load: Load,
    target: Target,
    sink: Arc<Sink>,
    /// Blocks of each stripe that were not announced yet.
    lacking: Vec<u32>,
    transfer: Arc<Transfer>,
}

impl Feed {
    async fn run(mut self, layout: Arc<Layout>) {
        loop {
            let outcome = match self.load.next().await {
                Ok(Some(ready)) => self.copy(&layout, ready),
                Ok(None) => return self.end(),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                self.sink.progress.send_modify(|it| it.error = Some(error));
                return self.transfer.cancel();
            }
        }
    }

    fn copy(&mut self, layout: &Layout, ready: Ready) -> Result<(), ClientError> {
        let Ready { stripe, first_block, blocks } = ready;
        let Target { cache, arenas, pages, .. } = &self.target;
        let layers = layout.layers(stripe, cache.paged().layout().layers.len());
        let batch = || {
            let mut batch = Batch::new(Direction::Load, cache.paged(), &arenas.load)?;
            for block in first_block..first_block + blocks {
                let offset = self.load.payload_offset(block) + layout.stripes[stripe].offset;
                batch.add(layers.clone(), pages, block, offset)?;
            }
            Ok(batch)
        };
        let batch = batch().map_err(|error| ClientError::from_batch(&error))?;
        let lacking = self.lacking[stripe].checked_sub(blocks);
        let twice = ClientError::Answer { call: "load", what: "stripes that it had announced" };
        self.lacking[stripe] = lacking.ok_or(twice)?;
        self.transfer.push(Some(batch), (self.lacking[stripe] == 0).then_some(stripe));
        Ok(())
    }

    /// Nothing more will come: what blocks are left have all of their layers.
    fn end(&self) {
        let done = self.load.done().expect("a load without further messages has ended");
        self.sink.progress.send_modify(|it| {
            it.usable = it.usable.min(done.loaded_blocks);
            it.done = Some(done);
        });
        for stripe in (0..self.lacking.len()).filter(|stripe| self.lacking[*stripe] > 0) {
            self.transfer.push(None, Some(stripe));
        }
        self.transfer.close();
    }
}

/// A clock can count this far.
const LIMIT_MAX: Duration = Duration::from_hours(24);

fn count(layers: usize) -> u32 {
    u32::try_from(layers).expect("a model has fewer than 2^32 layers")
}
