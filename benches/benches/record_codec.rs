//! What do a record's header and its checksums cost?

use refrain_benches::{BLOCK_BYTES, Digest, Samples, gigabytes_per_second, is_smoke, tell};
use refrain_store::format::{RecordHeader, Stripe, checksum};
use refrain_store::geometry::{Generation, HEADER_SIZE, Layout, RecordAddress, SegmentId};

fn main() {
    let headers = if is_smoke() { 100 } else { 100_000 };
    let layout = Layout::new(61, BLOCK_BYTES / 61).expect("a block of DeepSeek-V3");
    let mut digest = Digest::default();
    let (mut encode, mut decode) = (Samples::default(), Samples::default());
    for block in 0..headers {
        let header = header(&layout, block);
        let bytes = encode.time(|| header.encode().expect("a right header"));
        let found = decode.time(|| RecordHeader::decode(&bytes).expect("the same header"));
        assert_eq!(found, header);
        digest.add(RecordHeader::checksum_of(&bytes));
    }
    tell([format!("{headers} headers of {} stripes", layout.stripes.len())]);
    for (what, samples) in [("encode", &encode), ("decode", &decode)] {
        let rate = gigabytes_per_second(HEADER_SIZE, samples.median());
        tell([format!("{what}: {rate:.2} GB/s, {samples}")]);
    }
    for (what, length) in [("stripe", layout.stripes[0].length), ("block", BLOCK_BYTES)] {
        let samples = checksums(length, &mut digest);
        let rate = gigabytes_per_second(length, samples.median());
        let cost = 1.0 / rate;
        tell([format!(
            "checksum of a {what} from memory: {rate:.2} GB/s, {cost:.3} core-seconds a GB, {samples}"
        )]);
    }
    tell([format!("hash {digest}")]);
}

/// Over more memory than a processor's cache holds.
fn checksums(length: u64, digest: &mut Digest) -> Samples {
    let bytes = if is_smoke() { 16 << 20 } else { 512 << 20 };
    let mut memory = vec![0u8; bytes];
    fastrand::Rng::with_seed(1).fill(&mut memory);
    let mut samples = Samples::default();
    for piece in memory.chunks_exact(usize::try_from(length).expect("it fits memory")) {
        digest.add(samples.time(|| checksum(piece)));
    }
    samples
}

fn header(layout: &Layout, block: u64) -> RecordHeader {
    let stripe = |range: &refrain_store::geometry::StripeRange| Stripe {
        offset: range.offset,
        length: range.length,
        checksum: block.wrapping_mul(range.offset | 1),
    };
    RecordHeader {
        store_id: [1; 16],
        address: RecordAddress {
            segment: SegmentId(1),
            generation: Generation(1),
            offset: block * HEADER_SIZE,
        },
        key_scheme: 1,
        sequence_hash: [2; 32],
        shard: 0,
        parent: [3; 32],
        namespace: [4; 32],
        epoch: 0,
        position: 0,
        payload_length: layout.payload_length,
        withdrawn: false,
        stripes: layout.stripes.iter().map(stripe).collect(),
    }
}
