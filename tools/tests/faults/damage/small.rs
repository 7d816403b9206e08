//! A store of small segments, made by a drive itself: all of it is read in a millisecond.

use super::{Stores, quick_home};
use crate::image::Image;
use refrain_store::arena::{Arena, Mapping};
use refrain_store::drive::{Drive, DriveConfig, IoEngine, KnownSegment, Opening};
use refrain_store::engine::{Append, Durability, NewRecord, Payload, SegmentState};
use refrain_store::geometry::{HEADER_SIZE, Layout, RECORDS_START, StripeRange};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

const SEGMENT: u64 = 128 << 10;
const SEGMENTS: u64 = 6;
const CLOSINGS: u64 = 6;
/// Saved between two closings: more than a segment, less than the store.
const RECORDS: u64 = 13;
const PATIENCE: Duration = Duration::from_mins(1);

/// A block of up to three stripes, none of whole pages.
fn layout(block: u64) -> Layout {
    let stripes: Vec<_> = (0..=block % 3)
        .map(|index| StripeRange { offset: index * 8192, length: 4096 + block * 97 % 4000 })
        .collect();
    let last = stripes[stripes.len() - 1];
    let payload_length = last.offset + last.length;
    Layout { stripes: stripes.into(), layers_per_stripe: 1, payload_length }
}

pub(super) fn make() -> Stores {
    let home = quick_home();
    let path = home.path().join("store");
    let arena = Arena::new(Mapping::create("faults", 16 << 20).unwrap());
    let history = (0..CLOSINGS).map(|closing| {
        let drive = start(&path, &arena);
        for block in closing * RECORDS..(closing + 1) * RECORDS {
            append(&drive, &arena, block);
        }
        drive.stop();
        Image::of(&path)
    });
    Stores { history: history.collect() }
}

fn start(path: &Path, arena: &Arc<Arena>) -> Drive {
    let config = DriveConfig {
        path: path.into(),
        capacity_bytes: SEGMENTS * SEGMENT,
        segment_bytes: Some(SEGMENT),
        io_engine: IoEngine::Auto,
        durability: Durability::Sync,
    };
    let opening = Opening::open(&config).unwrap();
    let known = opening.segments().iter().map(|head| {
        let scan = opening.scan(head.id, RECORDS_START).unwrap();
        KnownSegment { id: head.id, end: scan.end, sealed: scan.sealed, entries: scan.entries }
    });
    let known = known.collect();
    opening.start(&[Arc::clone(arena.mapping())], known, Box::new(|_| {})).unwrap()
}

fn append(drive: &Drive, arena: &Arc<Arena>, block: u64) {
    let layout = layout(block);
    let mut segments = drive.segments();
    segments.sort_by_key(|segment| segment.birth);
    let free = segments.iter().filter(|segment| segment.state == SegmentState::Free).count();
    if let Some(oldest) = segments.iter().find(|s| s.state == SegmentState::Sealed)
        && free < 2
    {
        drive.release(oldest.id).unwrap();
    }
    let frame = arena.allocate(layout.stored_length()).unwrap();
    let payload = frame.region().slice(0, layout.stored_length() - HEADER_SIZE);
    payload.fill_with(|bytes| fastrand::Rng::with_seed(block).fill(bytes));
    let (answer, stored) = channel();
    let append = Append {
        header: NewRecord {
            key_scheme: 1,
            sequence_hash: hash(block + 1),
            shard: u32::try_from(block % 2).unwrap(),
            parent: hash(block),
            namespace: [9; 32],
            epoch: 0,
            position: u32::try_from(block).unwrap(),
        },
        payload: Payload::new(&layout, payload).unwrap(),
        keep: Some(Box::new(frame)),
        reply: Box::new(move |outcome| answer.send(outcome).unwrap()),
    };
    drive.append(append).unwrap();
    stored.recv_timeout(PATIENCE).unwrap().unwrap();
}

fn hash(block: u64) -> [u8; 32] {
    std::array::from_fn(|at| block.to_le_bytes()[at % 8])
}
