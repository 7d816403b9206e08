//! Proves that what is copied into a cache and out of it again is the same bytes, that a cancelled
//! transfer leaves the memory alone once it has been dropped, and that the wrong memory is refused.
//! On the host; with `REFRAIN_TEST_GPU=0` on the GPU of that number.

use super::*;
use crate::layout::{KvLayout, Layer, Pages, Plane};
use crate::memory::Memory;
use crate::paged::{Batch, BatchError, PagedCache};
use std::sync::mpsc;

const PAGE: u64 = 4096;
const PAGES: u32 = 512;

fn copiers() -> Vec<Copier> {
    let mut copiers = vec![Copier::host().unwrap()];
    if let Ok(ordinal) = std::env::var("REFRAIN_TEST_GPU") {
        let ordinal = ordinal.parse().unwrap();
        let ways = [Way::Measured, Way::Batched, Way::Kernel];
        copiers.extend(ways.map(|way| Copier::cuda(ordinal, way).unwrap()));
    }
    copiers
}

enum Told {
    Marked(usize, Fence),
    Ended(Result<(), CopyError>),
}

struct Teller(mpsc::Sender<Told>);

impl CopySink for Teller {
    fn marked(&self, mark: usize, fence: Fence) {
        let _ = self.0.send(Told::Marked(mark, fence));
    }

    fn ended(&self, outcome: Result<(), CopyError>) {
        let _ = self.0.send(Told::Ended(outcome));
    }
}

/// A cache of two layers and an arena with room for as many bytes.
struct Pair {
    copier: Copier,
    cache: Arc<PagedCache>,
    arena: Arc<Pinned>,
}

impl Pair {
    fn new(copier: Copier, page_bytes: u64) -> Self {
        let bytes = 2 * u64::from(PAGES) * page_bytes;
        let bytes = bytes.next_multiple_of(PAGE);
        let memory = match copier.gpu() {
            Some(gpu) => Memory::device(gpu, bytes).unwrap(),
            None => Memory::host(bytes).unwrap(),
        };
        let base = memory.addresses().start;
        let layer = |layer: u64| {
            let base = base + layer * u64::from(PAGES) * page_bytes;
            Layer { group: 0, planes: vec![Plane::contiguous(base, page_bytes, page_bytes)] }
        };
        let layout =
            KvLayout { layers: vec![layer(0), layer(1)], pages: PAGES, pages_per_block: 1 };
        let cache = PagedCache::within(memory, layout).unwrap();
        let arena = copier.register(&Mapping::create("test", bytes).unwrap()).unwrap();
        Self { copier, cache, arena }
    }

    /// All pages in a mixed order, block after block in the arena, in batches of some blocks.
    fn batches(&self, direction: Direction, seed: u64) -> Vec<Batch> {
        let mut numbers: Vec<u32> = (0..PAGES).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut numbers);
        let pages = Pages::new(PAGES, vec![numbers]);
        let block_bytes = 2 * self.cache.layout().layer_bytes();
        let batch = |blocks: std::ops::Range<u32>| {
            let mut batch = Batch::new(direction, &self.cache, &self.arena).unwrap();
            for block in blocks {
                batch.add(0..2, &pages, block, u64::from(block) * block_bytes).unwrap();
            }
            batch
        };
        (0..PAGES).step_by(128).map(|first| batch(first..first + 128)).collect()
    }

    fn begin(&self, direction: Direction) -> (Transfer, mpsc::Receiver<Told>) {
        let (told, telling) = mpsc::channel();
        let deadline = Instant::now() + Duration::from_secs(9);
        let sink = Arc::new(Teller(told));
        let after = Some(Stream(0));
        (self.copier.begin(direction, deadline, after, sink).unwrap(), telling)
    }

    fn copy(&self, direction: Direction, seed: u64) {
        let (transfer, telling) = self.begin(direction);
        for (mark, batch) in self.batches(direction, seed).into_iter().enumerate() {
            transfer.push(Some(batch), Some(mark));
        }
        transfer.close();
        for expected in 0..4 {
            match telling.recv().unwrap() {
                Told::Marked(mark, fence) => {
                    assert_eq!(mark, expected);
                    fence.hold_back(Stream(0)).unwrap();
                }
                Told::Ended(outcome) => panic!("{outcome:?}"),
            }
        }
        assert!(matches!(telling.recv().unwrap(), Told::Ended(Ok(()))));
    }

    fn arena_bytes(&self) -> crate::arena::Region {
        let mapping = self.arena.mapping();
        mapping.region(0, mapping.bytes_len()).unwrap()
    }
}

#[test]
fn what_goes_into_a_cache_comes_out_the_same() {
    // 16-byte vectors, single bytes, and copies that the engine of a GPU takes by itself.
    for page_bytes in [16_384, 1001, 262_144] {
        for copier in copiers() {
            let pair = Pair::new(copier, page_bytes);
            let mut random = fastrand::Rng::with_seed(page_bytes);
            pair.arena_bytes().fill_with(|bytes| random.fill(bytes));
            let loaded = pair.arena_bytes().bytes().to_vec();
            pair.copy(Direction::Load, 1);
            pair.arena_bytes().fill_with(|bytes| bytes.fill(0));
            pair.copy(Direction::Save, 1);
            let bytes = usize::try_from(2 * u64::from(PAGES) * page_bytes).unwrap();
            assert!(pair.arena_bytes().bytes()[..bytes] == loaded[..bytes], "{page_bytes}");
            // The pages do differ in place, not only in name.
            pair.copy(Direction::Save, 2);
            assert!(pair.arena_bytes().bytes()[..bytes] != loaded[..bytes], "{page_bytes}");
        }
    }
}

#[test]
fn memory_of_a_cancelled_load_is_the_callers_once_it_is_dropped() {
    for copier in copiers() {
        let pair = Pair::new(copier, 65_536);
        pair.arena_bytes().fill_with(|bytes| bytes.fill(1));
        let memory = pair.cache.memory().unwrap();
        let zeros = vec![0_u8; 2 * 512 * 65_536];
        for step in 0..20 {
            let (transfer, telling) = pair.begin(Direction::Load);
            for batch in pair.batches(Direction::Load, step) {
                transfer.push(Some(batch), None);
            }
            // A different moment each time.
            for _ in 0..step * 500 {
                std::hint::spin_loop();
            }
            drop(transfer);
            assert!(matches!(telling.recv().unwrap(), Told::Ended(Err(CopyError::Cancelled))));
            memory.write(0, &zeros).unwrap();
            // Would be overtaken by what still runs; nothing does.
            let mut found = vec![9_u8; zeros.len()];
            memory.read(0, &mut found).unwrap();
            assert!(found == zeros, "step {step}");
        }
    }
}

#[test]
fn a_lane_that_is_dropped_ends_what_was_begun() {
    let pair = Pair::new(Copier::host().unwrap(), 1024);
    let (transfer, telling) = pair.begin(Direction::Load);
    for batch in pair.batches(Direction::Load, 1) {
        transfer.push(Some(batch), None);
    }
    drop(pair);
    transfer.close();
    assert!(matches!(telling.recv().unwrap(), Told::Ended(Ok(()))));
}

#[test]
fn an_arena_for_reading_takes_no_save_and_none_beyond_its_end() {
    let pair = Pair::new(Copier::host().unwrap(), PAGE);
    let ours = Mapping::create("test", PAGE).unwrap();
    let theirs = Mapping::open(ours.share_read_only().unwrap(), PAGE, Access::ReadOnly).unwrap();
    let arena = pair.copier.register(&theirs).unwrap();
    let refused = Batch::new(Direction::Save, &pair.cache, &arena).unwrap_err();
    assert!(matches!(refused, BatchError::ReadOnly), "{refused:?}");
    let mut batch = Batch::new(Direction::Load, &pair.cache, &arena).unwrap();
    let pages = Pages::new(1, vec![vec![3]]);
    batch.add(0..1, &pages, 0, 0).unwrap();
    let refused = batch.add(0..2, &pages, 0, 0).unwrap_err();
    assert!(matches!(refused, BatchError::Arena(_)), "{refused:?}");
}

#[test]
fn several_copiers_share_an_arena_and_one_keeps_it_when_another_lets_it_go() {
    for (first, second) in copiers().into_iter().zip(copiers()) {
        let first = Pair::new(first, PAGE);
        let mut second = Pair::new(second, PAGE);
        second.arena = second.copier.register(first.arena.mapping()).unwrap();
        drop(first);
        second.copy(Direction::Save, 1);
        second.copy(Direction::Load, 2);
        // Nobody has it so any more, and it can be had again.
        let mapping = Arc::clone(second.arena.mapping());
        drop(second);
        for copier in copiers() {
            copier.register(&mapping).unwrap();
        }
    }
}

#[test]
fn a_gpu_that_is_not_there_is_a_typed_error() {
    let refused = Copier::cuda(u32::MAX, Way::Measured).unwrap_err();
    let expected = matches!(
        refused,
        CopyError::Cuda(CudaError::NoDriver | CudaError::NoGpu { ordinal: u32::MAX, .. })
    );
    assert!(expected, "{refused:?}");
}
