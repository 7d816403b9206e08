//! How fast do scattered chunks go from the host tier into a paged KV cache and back, each way?
//!
//! Blocks of about 4.5 MB lie in an arena as a sidecar leaves them, and their chunks in pages of a
//! cache in random order. On the first GPU; `--smoke` runs on the host.

use refrain_benches::paged::{
    FRAME_BYTES, HostTier, bytes, cache, copier_or_exit, copy, layers_of, pages, whole,
};
use refrain_benches::{BLOCK_BYTES, Samples, gigabytes_per_second, is_smoke, tell};
use refrain_gpu_transfer::arena::Mapping;
use refrain_gpu_transfer::copier::{Copier, Pinned};
use refrain_gpu_transfer::cuda::Way;
use refrain_gpu_transfer::layout::Pages;
use refrain_gpu_transfer::paged::Direction;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() {
    let (blocks, rounds) = if is_smoke() { (4, 1) } else { (400, 9) };
    let host = HostTier::new(blocks);
    let ways: &[_] = if is_smoke() {
        &[("host", Way::Measured)]
    } else {
        &[("measured", Way::Measured), ("batched", Way::Batched), ("kernel", Way::Kernel)]
    };
    for &(name, way) in ways {
        let begin = Instant::now();
        let copier = copier_or_exit(way);
        run((name, begin.elapsed()), &copier, &host, rounds);
    }
}

fn run((name, opened): (&str, Duration), copier: &Copier, host: &HostTier, rounds: usize) {
    let load = copier.register(&host.theirs).expect("it is registered for reading");
    let save = Mapping::create("bench-save", host.ours.bytes_len()).expect("memory");
    whole(&save).fill_with(|bytes| bytes.fill(1));
    let save = copier.register(&save).expect("it is registered");
    let gpu = copier.gpu().map_or("host", |gpu| gpu.name());
    let mib = host.ours.bytes_len() >> 20;
    let (reading, writing) = (load.elapsed(), save.elapsed());
    tell([
        format!("{name} on {gpu}: opened in {opened:?}"),
        format!("  {mib} MiB registered for reading in {reading:?}, for writing in {writing:?}"),
    ]);
    if let Some(gpu) = copier.gpu() {
        let calibration = gpu.calibration();
        tell(calibration.trials.iter().map(|trial| {
            let (direction, kib) = (trial.direction, trial.bytes >> 10);
            let (batched, kernel) = (trial.batched, trial.kernel);
            format!("  {direction:?} {kib:>4} KiB: batched {batched:.1}, kernel {kernel:.1} GB/s")
        }));
        tell([format!("  calibrated in {:?}", calibration.elapsed)]);
    }
    for chunk in [16 << 10, 72 << 10, 288 << 10, BLOCK_BYTES] {
        measure(copier, host, (&load, &save), (chunk, rounds));
    }
}

fn measure(
    copier: &Copier,
    host: &HostTier,
    (load, save): (&Arc<Pinned>, &Arc<Pinned>),
    (chunk, rounds): (u64, usize),
) {
    let layers = layers_of(chunk);
    let cache = cache(copier, layers, chunk, host.blocks);
    let pages = pages(host.blocks, chunk);
    let moved = u64::from(layers) * chunk * u64::from(host.blocks);
    let mut times = [Samples::default(), Samples::default()];
    for _ in 0..rounds {
        times[0].time(|| copy(copier, &cache, load, &pages, Direction::Load));
    }
    let loaded = bytes(&cache);
    for _ in 0..rounds {
        times[1].time(|| copy(copier, &cache, save, &pages, Direction::Save));
    }
    compare(host, &loaded, save, (layers, chunk), &pages);
    let [into, back] = times.map(|times| {
        let [best, median] = [0.0, 0.5].map(|at| gigabytes_per_second(moved, times.quantile(at)));
        format!("{median:5.1} GB/s (best {best:.1})")
    });
    tell([format!("  {:4} KiB: into the cache {into}, back {back}", chunk >> 10)]);
}

/// Holds the cache, and what came back of it, against the arena.
fn compare(
    host: &HostTier,
    loaded: &[u8],
    save: &Arc<Pinned>,
    (layers, chunk): (u32, u64),
    pages: &Pages,
) {
    let index = |bytes: u64| usize::try_from(bytes).expect("it fits");
    let (ours, back) = (whole(&host.ours), whole(save.mapping()));
    for block in 0..host.blocks {
        let page = pages.page(0, block).expect("every block has one");
        for layer in 0..layers {
            let frame = index(u64::from(block) * FRAME_BYTES + u64::from(layer) * chunk);
            let at = index((u64::from(layer * host.blocks) + u64::from(page)) * chunk);
            let expected = &ours.bytes()[frame..][..index(chunk)];
            assert!(loaded[at..][..index(chunk)] == *expected, "block {block} layer {layer}");
            assert!(back.bytes()[frame..][..index(chunk)] == *expected, "block {block} back");
        }
    }
}
