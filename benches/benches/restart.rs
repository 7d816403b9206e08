//! How soon does a restarted node know what it holds: a million blocks from the catalogue, and a
//! terabyte from the disk alone?
//!
//! The catalogue was not closed: its log is read again. The disk holds heads, footers and headers
//! over reserved space; recovery reads nothing else. Seconds a terabyte are those of the sealed
//! segments, scaled, and those of one open segment, which a drive has one or two of.

use refrain_benches::{BLOCK_BYTES, Block, Digest, Prompts, is_smoke, scratch, tell};
use refrain_index::catalog::{Catalog, Row, Run};
use refrain_index::chain::{BlockKey, Chain, Place};
use refrain_index::hash::SequenceHash;
use refrain_store::drive::{DriveConfig, IoEngine, Opening};
use refrain_store::engine::Durability;
use refrain_store::geometry::{RECORDS_START, SegmentId, stored_length};
use refrain_store::segment::Entry;
use std::path::Path;
use std::time::Instant;

const STORE_ID: [u8; 16] = [1; 16];
/// What a drive promises at once.
const GROUP: u64 = 64 << 20;

/// As large as what a sidecar keeps of a block.
#[derive(Clone, Copy)]
struct At {
    segment: u32,
    offset: u64,
    _namespace: u32,
}

impl Place for At {
    fn group(&self) -> u32 {
        self.segment
    }
}

fn main() {
    let directory = scratch();
    let (blocks, segment_bytes, segments) =
        if is_smoke() { (5_000, 64 << 20, 3) } else { (1_000_000, 1 << 30, 16) };
    let mut digest = Digest::default();
    from_catalog(&directory.path().join("catalog"), blocks, segment_bytes, &mut digest);
    for payload in [BLOCK_BYTES, 256 << 10] {
        let path = directory.path().join("store");
        from_disk(&path, payload, (segment_bytes, segments), &mut digest);
        std::fs::remove_dir_all(&path).expect("the store goes");
    }
    tell([format!("hash {digest}")]);
}

fn from_catalog(path: &Path, blocks: usize, segment_bytes: u64, digest: &mut Digest) {
    let (catalog, _) = Catalog::open(path, STORE_ID).expect("a new catalogue");
    let runs = runs(&Prompts::new(blocks).saved(), segment_bytes);
    for run in &runs {
        catalog.commit(run).expect("a row");
    }
    let count = runs.len();
    drop((catalog, runs));

    let begin = Instant::now();
    let (catalog, _) = Catalog::open(path, STORE_ID).expect("the same catalogue");
    let opened = begin.elapsed();
    let rows = catalog.load(RECORDS_START).expect("its rows");
    let loaded = begin.elapsed();
    let found: Vec<_> = rows
        .iter()
        .flat_map(|rows| rows.rows.iter().map(|row| block_of(rows.segment, row)))
        .collect();
    let mut chain = Chain::default();
    let restored = chain.restore(found, 0);
    let all = begin.elapsed();
    assert_eq!((restored.inserted, restored.orphans), (blocks, 0));
    digest.add(sum(&chain));
    let restore = all.saturating_sub(loaded);
    tell([
        format!("{blocks} blocks in {count} rows of the catalogue"),
        format!(
            "all {all:?} (target: <= 1s): open {opened:?}, load {:?}, restore {restore:?}",
            loaded.saturating_sub(opened)
        ),
    ]);
}

/// Blocks as groups of a drive, segment by segment.
fn runs(blocks: &[Block], segment_bytes: u64) -> Vec<Run> {
    let stored = stored_length(BLOCK_BYTES);
    let per_segment = usize::try_from((segment_bytes - GROUP / 16) / stored).expect("it fits");
    let per_group = usize::try_from(GROUP.div_ceil(stored)).expect("it fits");
    let mut runs = Vec::new();
    for (segment, blocks) in (0u32..).zip(blocks.chunks(per_segment)) {
        let mut start = RECORDS_START;
        for group in blocks.chunks(per_group) {
            let offsets = (start..).step_by(usize::try_from(stored).expect("it fits"));
            let rows = group.iter().zip(offsets).map(|(block, offset)| row(block, offset));
            let rows: Vec<_> = rows.collect();
            let end = start + u64::try_from(rows.len()).expect("usize fits") * stored;
            runs.push(Run { segment, generation: 1, start, end, sealed: false, rows });
            start = end;
        }
        if let Some(last) = runs.last_mut() {
            last.sealed = true;
        }
    }
    runs
}

fn row(block: &Block, offset: u64) -> Row {
    let record = block.record();
    Row {
        offset,
        length: BLOCK_BYTES,
        sequence: record.sequence_hash,
        shard: record.shard,
        position: record.position,
        parent: record.parent,
        namespace: record.namespace,
        epoch: record.epoch,
    }
}

fn block_of(segment: u32, row: &Row) -> (BlockKey, Option<SequenceHash>, At) {
    let key = BlockKey { sequence: SequenceHash(row.sequence), shard: row.shard };
    let parent = (row.position > 0).then_some(SequenceHash(row.parent));
    (key, parent, At { segment, offset: row.offset, _namespace: 0 })
}

fn from_disk(path: &Path, payload: u64, (bytes, count): (u64, u32), digest: &mut Digest) {
    let per_segment = usize::try_from(bytes / stored_length(payload)).expect("it fits");
    let blocks = usize::try_from(count).expect("32 bits fit") * per_segment;
    let config = DriveConfig {
        path: path.to_path_buf(),
        capacity_bytes: u64::from(count) * bytes,
        segment_bytes: Some(bytes),
        io_engine: IoEngine::Auto,
        durability: Durability::Group,
    };
    let mut opening = Opening::open(&config).expect("a new store");
    let saved = Prompts::new(blocks).saved();
    let mut records = saved.iter().map(Block::record);
    for id in 0..count {
        // The last one is open, and full.
        let sealed = id + 1 < count;
        opening.outline(SegmentId(id), payload, &mut records, sealed).expect("a segment");
    }
    drop(opening);

    let begin = Instant::now();
    let opening = Opening::open(&config).expect("the same store");
    let mut found = Vec::new();
    for id in 0..count - 1 {
        found.extend(scan(&opening, SegmentId(id)));
    }
    let sealed = begin.elapsed();
    found.extend(scan(&opening, SegmentId(count - 1)));
    let open = begin.elapsed().saturating_sub(sealed);
    let blocks = found.len();
    let mut chain = Chain::default();
    chain.restore(found, 0);
    let restore = begin.elapsed().saturating_sub(sealed + open);
    assert_eq!(chain.len(), blocks, "every block that was found has its parent");
    digest.add(sum(&chain));
    let scale = 1e12 / seconds_base(u64::from(count - 1) * bytes);
    let a_terabyte = (sealed + restore).mul_f64(scale) + open;
    tell([
        format!(
            "{blocks} blocks of {payload} bytes in {count} segments of {bytes}, the last one open"
        ),
        format!(
            "{a_terabyte:?} a TB (target: <= 5s); here: sealed {sealed:?}, open {open:?}, restore {restore:?}"
        ),
    ]);
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn seconds_base(bytes: u64) -> f64 {
    bytes as f64
}

fn scan(opening: &Opening, segment: SegmentId) -> Vec<(BlockKey, Option<SequenceHash>, At)> {
    let scan = opening.scan(segment, 0).expect("a readable segment");
    scan.entries.iter().map(|entry| entry_of(segment, entry)).collect()
}

fn entry_of(segment: SegmentId, entry: &Entry) -> (BlockKey, Option<SequenceHash>, At) {
    let key = BlockKey { sequence: SequenceHash(entry.sequence_hash), shard: entry.shard };
    let parent = (entry.position > 0).then_some(SequenceHash(entry.parent));
    (key, parent, At { segment: segment.0, offset: entry.offset, _namespace: 0 })
}

/// The same for the same blocks, in whatever order.
fn sum(chain: &Chain<At>) -> u64 {
    let one = |(key, place, _): (BlockKey, At, u32)| {
        let head = u64::from_le_bytes(*key.sequence.0.first_chunk().expect("32 bytes hold 8"));
        head ^ place.offset.rotate_left(32) ^ u64::from(place.segment)
    };
    chain.iter().fold(0u64, |sum, block| sum.wrapping_add(one(block)))
}
