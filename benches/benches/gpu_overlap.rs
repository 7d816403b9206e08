//! What does a load cost a matrix product beside it, and how much longer do both take than one?
//!
//! bf16 products of 8192 x 8192 by cuBLAS, loads of 400 blocks of 4.5 MB from the host tier into
//! scattered pages, both ways, and saves back. On the first GPU, with a libcublas that the
//! loader finds. `--smoke` runs loads and saves on the host alone.

use refrain_benches::cublas::Products;
use refrain_benches::paged::{HostTier, cache, copier_or_exit, copy, layers_of, pages, whole};
use refrain_benches::{Samples, gigabytes_per_second, is_smoke, tell};
use refrain_gpu_transfer::arena::Mapping;
use refrain_gpu_transfer::copier::Copier;
use refrain_gpu_transfer::cuda::Way;
use refrain_gpu_transfer::paged::Direction;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CHUNKS: [u64; 2] = [16 << 10, 72 << 10];
const SIDE: u32 = 8192;
/// Beside these, many loads run.
const PRODUCTS: u32 = 300;

fn main() {
    let blocks = if is_smoke() { 4 } else { 400 };
    let host = HostTier::new(blocks);
    for (name, way) in [("batched", Way::Batched), ("kernel", Way::Kernel)] {
        let copier = copier_or_exit(way);
        for chunk in CHUNKS {
            for direction in [Direction::Load, Direction::Save] {
                run((name, direction), &copier, &host, chunk);
            }
        }
    }
}

fn run((name, direction): (&str, Direction), copier: &Copier, host: &HostTier, chunk: u64) {
    let layers = layers_of(chunk);
    let cache = cache(copier, layers, chunk, host.blocks);
    let pages = pages(host.blocks, 1);
    let moved = u64::from(layers) * chunk * u64::from(host.blocks);
    let arena = match direction {
        Direction::Load => copier.register(&host.theirs),
        Direction::Save => {
            let arena = Mapping::create("bench-save", host.ours.bytes_len()).expect("memory");
            whole(&arena).fill_with(|bytes| bytes.fill(1));
            copier.register(&arena)
        }
    };
    let arena = arena.expect("it is registered");
    let copy = || copy(copier, &cache, &arena, &pages, direction);
    let alone = median(&copy);
    let rate = gigabytes_per_second(moved, alone);
    let kib = chunk >> 10;
    tell([format!("{name} {direction:?} {kib} KiB: alone {alone:?}, {rate:.1} GB/s")]);
    let Some(products) = Products::new(copier, SIDE) else {
        tell(["  no libcublas: no product beside it".to_owned()]);
        return;
    };
    let compute = |count: u32| {
        products.enqueue(copier, count);
        products.wait();
    };
    compute(20);
    let before = median(|| compute(PRODUCTS));
    let (beside, copies) = beside(|| compute(PRODUCTS), copy);
    let after = median(|| compute(PRODUCTS));
    let each = before.min(after) / PRODUCTS;
    let teraflops = products.operations() / each.as_secs_f64() / 1e12;
    let slower = beside.as_secs_f64() / before.min(after).as_secs_f64() - 1.0;
    let rate = gigabytes_per_second(moved * copies, beside);
    tell([
        format!(
            "  {PRODUCTS} products: alone {before:?} before and {after:?} after ({teraflops:.0} \
             TFLOP/s), beside copies {beside:?}: {:.1} % slower; copies {rate:.1} GB/s meanwhile",
            100.0 * slower
        ),
        format!("  {}", together(alone, each, &compute, &copy)),
    ]);
}

/// One copy of all blocks beside products that take about as long, and twice as long.
fn together(
    alone: Duration,
    each: Duration,
    compute: &impl Fn(u32),
    copy: &(impl Fn() + Sync),
) -> String {
    let mut told = Vec::new();
    for share in [1.0, 2.0] {
        let count =
            (1..10_000_u32).find(|count| each * *count >= alone.mul_f64(share)).unwrap_or(1);
        let computed = median(|| compute(count));
        let both = median(|| {
            std::thread::scope(|scope| {
                scope.spawn(copy);
                compute(count);
            });
        });
        let ratio = both.as_secs_f64() / computed.max(alone).as_secs_f64();
        told.push(format!(
            "{count} products {computed:?} and one copy: {both:?}, {ratio:.3} of the larger"
        ));
    }
    told.join("; ")
}

fn median(mut act: impl FnMut()) -> Duration {
    let mut samples = Samples::default();
    for _ in 0..if is_smoke() { 1 } else { 7 } {
        samples.time(&mut act);
    }
    samples.median()
}

/// How long `act` takes while `other` is done over and over, and how often it was.
fn beside(act: impl Fn(), other: impl Fn() + Sync) -> (Duration, u64) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                other();
                count += 1;
            }
            count
        });
        let begin = Instant::now();
        act();
        let elapsed = begin.elapsed();
        is_over.store(true, Ordering::Relaxed);
        (elapsed, others.join().expect("copies are made"))
    })
}
