//! A paged KV cache and an arena to copy between, on a GPU or, at smoke size, on the host.

use crate::{BLOCK_BYTES, is_smoke};
use refrain_gpu_transfer::arena::{Access, Mapping, Region};
use refrain_gpu_transfer::copier::{Copier, CopyError, CopySink, Fence, Pinned};
use refrain_gpu_transfer::cuda::Way;
use refrain_gpu_transfer::layout::{KvLayout, Layer, Pages, Plane};
use refrain_gpu_transfer::memory::Memory;
use refrain_gpu_transfer::paged::{Batch, Direction, PagedCache};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// What a block takes of an arena.
pub const FRAME_BYTES: u64 = 4_505_600;
/// About what is announced at once.
const STRIPE_BYTES: u64 = 288 << 10;

/// A copier on the first GPU, or one on the host at smoke size.
pub fn copier(way: Way) -> Result<Copier, CopyError> {
    if is_smoke() { Copier::host() } else { Copier::cuda(0, way) }
}

/// A copier, or the end of this process with what it lacks.
pub fn copier_or_exit(way: Way) -> Copier {
    copier(way).unwrap_or_else(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        crate::tell([format!("{error}: {}", source.unwrap_or_default())]);
        std::process::exit(1);
    })
}

/// What blocks are loaded from: memory with random bytes, as a sidecar and as a worker have it.
#[derive(Debug)]
pub struct HostTier {
    pub ours: Arc<Mapping>,
    pub theirs: Arc<Mapping>,
    pub blocks: u32,
}

impl HostTier {
    pub fn new(blocks: u32) -> Self {
        let size = (u64::from(blocks) * FRAME_BYTES).next_multiple_of(2 << 20);
        let ours = Mapping::create("bench-load", size).expect("memory for an arena");
        whole(&ours).fill_with(|bytes| fastrand::Rng::with_seed(1).fill(bytes));
        let fd = ours.share_read_only().expect("a descriptor");
        let theirs = Mapping::open(fd, size, Access::ReadOnly).expect("the same memory");
        Self { ours, theirs, blocks }
    }
}

pub fn whole(mapping: &Arc<Mapping>) -> Region {
    mapping.region(0, mapping.bytes_len()).expect("it is whole")
}

/// Whole layers of `chunk` bytes that make about a block of DeepSeek-V3.
pub fn layers_of(chunk: u64) -> u32 {
    u32::try_from((BLOCK_BYTES / chunk).max(1)).expect("a few hundred")
}

/// A cache with a latent vector a token: one page of `chunk` bytes a layer and block.
pub fn cache(copier: &Copier, layers: u32, chunk: u64, blocks: u32) -> Arc<PagedCache> {
    let layer_bytes = u64::from(blocks) * chunk;
    let bytes = u64::from(layers) * layer_bytes;
    let memory = match copier.gpu() {
        Some(gpu) => Memory::device(gpu, bytes),
        None => Memory::host(bytes.next_multiple_of(4096)),
    };
    let memory = memory.expect("memory for the cache");
    let base = memory.addresses().start;
    let layer = |layer: u32| {
        let base = base + u64::from(layer) * layer_bytes;
        Layer { group: 0, planes: vec![Plane::contiguous(base, chunk, chunk)] }
    };
    let layers = (0..layers).map(layer).collect();
    let layout = KvLayout { layers, pages: blocks, pages_per_block: 1 };
    PagedCache::within(memory, layout).expect("a cache in its own memory")
}

/// Every page once, in an order that `seed` makes.
pub fn pages(blocks: u32, seed: u64) -> Pages {
    let mut numbers: Vec<u32> = (0..blocks).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut numbers);
    Pages::new(blocks, vec![numbers])
}

/// All bytes of a cache.
pub fn bytes(cache: &PagedCache) -> Vec<u8> {
    let memory = cache.memory().expect("it has memory of its own");
    let range = memory.addresses();
    let mut found = vec![0; usize::try_from(range.end - range.start).expect("it fits")];
    memory.read(0, &mut found).expect("the cache is read");
    found
}

struct Ended(mpsc::Sender<Result<(), CopyError>>);

impl CopySink for Ended {
    fn marked(&self, _: usize, _: Fence) {}

    fn ended(&self, outcome: Result<(), CopyError>) {
        self.0.send(outcome).expect("somebody waits for it");
    }
}

/// Copies all blocks of `pages` once: a load layer group by layer group over all blocks, a save
/// block by block. Returns when all is copied.
pub fn copy(
    copier: &Copier,
    cache: &Arc<PagedCache>,
    arena: &Arc<Pinned>,
    pages: &Pages,
    direction: Direction,
) {
    let chunk = cache.layout().layer_bytes();
    let layers = cache.layout().layers.len();
    let (told, ended) = mpsc::channel();
    let deadline = Instant::now() + Duration::from_mins(1);
    let transfer = copier.begin(direction, deadline, None, Arc::new(Ended(told)));
    let transfer = transfer.expect("it begins");
    let place = |block: u32, layer: usize| {
        u64::from(block) * FRAME_BYTES + u64::try_from(layer).expect("a few hundred") * chunk
    };
    let group = match direction {
        Direction::Load => usize::try_from((STRIPE_BYTES / chunk).max(1)).expect("a few"),
        Direction::Save => layers,
    };
    for (mark, first) in (0..layers).step_by(group).enumerate() {
        let layers = first..(first + group).min(layers);
        let mut batch = Batch::new(direction, cache, arena).expect("the arena fits");
        for block in 0..pages.blocks() {
            let offset = place(block, first);
            batch.add(layers.clone(), pages, block, offset).expect("it lies inside");
        }
        transfer.push(Some(batch), Some(mark));
    }
    transfer.close();
    ended.recv().expect("it ends").expect("all is copied");
}
