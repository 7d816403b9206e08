//! Blocks to save, copied out of a paged KV cache.

use crate::cache::{Arenas, KvCache, transfer};
use crate::error::ClientError;
use crate::layout::Layout;
use crate::save::Source;
use crate::slots::Slot;
use refrain_gpu_transfer::copier::{CopyError, CopySink, Fence, Stream};
use refrain_gpu_transfer::layout::Pages;
use refrain_gpu_transfer::paged::{Batch, BatchError, Direction};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::oneshot;

/// A run of blocks in a paged KV cache.
pub(crate) struct Gather {
    pub(crate) cache: KvCache,
    pub(crate) arenas: Arc<Arenas>,
    pub(crate) layout: Arc<Layout>,
    /// Of the prompt's block `first` and those behind it.
    pub(crate) pages: Pages,
    pub(crate) first: u32,
    /// What writes the pages.
    pub(crate) after: Option<Stream>,
}

impl Source for Gather {
    async fn fill(&mut self, blocks: &[u32], slots: Vec<Slot>) -> Result<Vec<Slot>, ClientError> {
        let batch = self.batch(blocks, &slots).map_err(|error| ClientError::from_batch(&error))?;
        let (sender, gathered) = oneshot::channel();
        let sink = Arc::new(Sink(Mutex::new(Some((slots, sender)))));
        let copier = self.cache.copier();
        // Only once: what comes later on the stream is none of these blocks'.
        let after = self.after.take();
        let copying = copier.begin(Direction::Save, Instant::now(), after, sink);
        let copying = copying.map_err(transfer)?;
        copying.push(Some(batch), None);
        copying.close();
        // Where nobody waits any more, `copying` is dropped, and with it what is not copied yet.
        let slots = gathered.await.unwrap_or(Err(CopyError::Stopped));
        slots.map_err(transfer)
    }
}

impl Gather {
    fn batch(&self, blocks: &[u32], slots: &[Slot]) -> Result<Batch, BatchError> {
        let Self { cache, arenas, layout, pages, .. } = self;
        let layers = cache.paged().layout().layers.len();
        let mut batch = Batch::new(Direction::Save, cache.paged(), &arenas.session)?;
        for (block, slot) in blocks.iter().zip(slots) {
            for (stripe, place) in layout.stripes.iter().enumerate() {
                let offset = slot.region().offset() + place.offset;
                batch.add(layout.layers(stripe, layers), pages, block - self.first, offset)?;
            }
        }
        Ok(batch)
    }
}

type Gathered = oneshot::Sender<Result<Vec<Slot>, CopyError>>;

/// Has the slots while they are written.
struct Sink(Mutex<Option<(Vec<Slot>, Gathered)>>);

impl CopySink for Sink {
    fn marked(&self, _: usize, _: Fence) {}

    fn ended(&self, outcome: Result<(), CopyError>) {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((slots, gathered)) = held {
            // Whoever waited may have gone; the slots are free then.
            let _ = gathered.send(outcome.map(|()| slots));
        }
    }
}
