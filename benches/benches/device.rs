//! What share of the raw device do the store's writes and reads reach, at block and stripe size?

use refrain_benches::{BLOCK_BYTES, Samples, is_smoke, scratch, tell};
use refrain_store::drive::IoEngine;
use refrain_store::geometry::Layout;
use refrain_store::probe::{Pass, Probe, StoreProbe};

const DEPTH: u32 = 8;

fn main() {
    let directory = scratch();
    let (blocks, rounds) = if is_smoke() { (24, 1) } else { (478, 5) };
    let layout = Layout::new(61, BLOCK_BYTES / 61).expect("a block of DeepSeek-V3");
    for (name, io_engine) in [("uring", IoEngine::Auto), ("blocking", IoEngine::Blocking)] {
        let path = directory.path().join("store");
        let store = StoreProbe::new(&path, layout.clone(), DEPTH, blocks, io_engine);
        let mut store = store.expect("memory for the store");
        let raw = store.raw(directory.path());
        tell([format!("{name}: {blocks} blocks of {BLOCK_BYTES} bytes, {DEPTH} in flight")]);
        measure(&layout, (blocks, rounds), &raw, &mut store);
    }
}

fn measure(layout: &Layout, (blocks, rounds): (u64, u64), raw: &Probe, store: &mut StoreProbe) {
    let mut order: Vec<u64> = (0..blocks).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut order);
    let stripe = layout.stripes[0].length;
    // As the store reads them: block by block at random, stripes in order within each.
    let count = u64::try_from(layout.stripes.len()).expect("at most 128");
    let pieces: Vec<u64> = order
        .iter()
        .flat_map(|block| block * count..(block + 1) * count)
        .filter(|piece| (piece + 1) * stripe <= blocks * BLOCK_BYTES)
        .collect();
    // The first time takes new space; what counts is written over what is there.
    raw.write().expect("raw write");
    // Twice: the store has room for all blocks two times, and takes turns.
    store.write().expect("store write");
    store.write().expect("store write");
    let mut ratios = [const { Vec::new() }; 3];
    let mut hash = 0;
    for _ in 0..rounds {
        let raw_write = raw.write().expect("raw write").gigabytes_per_second();
        let write = store.write().expect("store write");
        let raw_read = raw.read(&order).expect("raw read").gigabytes_per_second();
        let read = store.read(&order, false).expect("store read");
        let raw_stripe = raw.read_pieces(stripe, &pieces).expect("raw read").gigabytes_per_second();
        let by_stripe = store.read(&order, true).expect("store read");
        assert_eq!(read.hash, by_stripe.hash, "both ways read the same bytes");
        hash = read.hash;
        let passes = [
            ("write", raw_write, write),
            ("read", raw_read, read),
            ("stripe", raw_stripe, by_stripe),
        ];
        for ((what, raw, pass), ratios) in passes.into_iter().zip(&mut ratios) {
            let Pass { rate, latencies, .. } = pass;
            let found = rate.gigabytes_per_second();
            ratios.push(found / raw);
            let latency = Samples::from(latencies);
            tell([format!("  {what:7} raw {raw:.3} GB/s, store {found:.3} GB/s, {latency}")]);
        }
    }
    let [write, read, by_stripe] = ratios.map(|mut ratios| {
        ratios.sort_unstable_by(f64::total_cmp);
        ratios[ratios.len() / 2]
    });
    tell([
        format!("  median share: write {write:.3}, read {read:.3}, by stripe {by_stripe:.3}"),
        format!("  hash {hash:016x}"),
    ]);
}
