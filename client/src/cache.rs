//! A worker's paged KV cache, and what copies into and out of it.

use crate::connection::Connection;
use crate::error::ClientError;
use crate::layout::Layout;
use refrain_gpu_transfer::arena::Mapping;
use refrain_gpu_transfer::copier::{Copier, CopyError, Pinned};
use refrain_gpu_transfer::layout::LayoutError;
use refrain_gpu_transfer::paged::PagedCache;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// A paged KV cache that loads go into and saves come from.
///
/// The arenas of a session are made known to the GPU once, by the first load or save after the
/// session was opened.
#[derive(Clone, Debug)]
pub struct KvCache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    copier: Copier,
    cache: Arc<PagedCache>,
    arenas: Mutex<Option<Arc<Arenas>>>,
}

/// Both arenas of one session, as the GPU knows them.
#[derive(Debug)]
pub(crate) struct Arenas {
    generation: u64,
    pub(crate) load: Arc<Pinned>,
    pub(crate) session: Arc<Pinned>,
}

impl KvCache {
    pub fn new(copier: Copier, cache: Arc<PagedCache>) -> Self {
        let arenas = Mutex::new(None);
        Self { shared: Arc::new(Shared { copier, cache, arenas }) }
    }

    pub fn copier(&self) -> &Copier {
        &self.shared.copier
    }

    pub fn paged(&self) -> &Arc<PagedCache> {
        &self.shared.cache
    }

    /// What it took to make the arenas of the last session known to the GPU.
    pub async fn registering(&self) -> Option<Duration> {
        let arenas = self.shared.arenas.lock().await;
        let arenas = arenas.as_ref()?;
        Some(arenas.load.elapsed() + arenas.session.elapsed())
    }

    /// Whether stripes of this layout hold what layers of this cache do.
    pub(crate) fn check(&self, layout: &Layout) -> Result<(), LayoutError> {
        let cache = self.paged().layout();
        let (layers, found) = (cache.layers.len(), cache.layer_bytes());
        let mut held = 0;
        for (stripe, place) in layout.stripes.iter().enumerate() {
            let layers = layout.layers(stripe, layers);
            let count = u64::try_from(layers.len()).expect("usize fits");
            held += count;
            if Some(place.length) != count.checked_mul(found) {
                let layer_bytes = place.length / count.max(1);
                let (stripes, layers) = (held, cache.layers.len());
                return Err(LayoutError::OtherBlocks { stripes, layer_bytes, layers, found });
            }
        }
        if held == u64::try_from(layers).expect("usize fits") {
            return Ok(());
        }
        Err(LayoutError::OtherBlocks { stripes: held, layer_bytes: found, layers, found })
    }

    /// The arenas of a session, made known to the GPU if they are not yet.
    pub(crate) async fn arenas(
        &self,
        connection: &Arc<Connection>,
    ) -> Result<Arc<Arenas>, ClientError> {
        let generation = connection.generation();
        let mut arenas = self.shared.arenas.lock().await;
        if let Some(known) = arenas.as_ref().filter(|known| known.generation == generation) {
            return Ok(Arc::clone(known));
        }
        let copier = self.shared.copier.clone();
        let (load, session) =
            (Arc::clone(connection.load_arena()), Arc::clone(connection.slots().mapping()));
        // It takes a while, during which the runtime has other things to do.
        let registering = tokio::task::spawn_blocking(move || {
            let register = |arena: &Arc<Mapping>| copier.register(arena).map_err(CopyError::from);
            let (load, session) = (register(&load)?, register(&session)?);
            Ok(Arc::new(Arenas { generation, load, session }))
        });
        let fresh = registering.await.unwrap_or(Err(CopyError::Stopped)).map_err(transfer)?;
        *arenas = Some(Arc::clone(&fresh));
        Ok(fresh)
    }
}

impl Layout {
    /// The layers of a stripe, of `layers` in all.
    pub(crate) fn layers(&self, stripe: usize, layers: usize) -> Range<usize> {
        let each = usize::try_from(self.layers_per_stripe).expect("addresses have 64 bits");
        let first = stripe.saturating_mul(each);
        first.min(layers)..first.saturating_add(each).min(layers)
    }

    /// The stripe that holds a layer.
    pub(crate) fn stripe_of(&self, layer: u32) -> usize {
        usize::try_from(layer / self.layers_per_stripe).expect("addresses have 64 bits")
    }
}

pub(crate) fn transfer(source: CopyError) -> ClientError {
    ClientError::Transfer { source }
}
