//! Proves that what comes in the right order and is right arrives, that the first piece which is not
//! is refused by its name, and that no sequence of pieces does anything else.

use super::*;
use crate::load::Origin;
use crate::place::NamespaceId;
use refrain_index::chain::BlockKey;
use refrain_store::arena::{Arena, Mapping};
use refrain_store::format::{Stripe, checksum};
use refrain_store::geometry::{Generation, RecordAddress, SegmentId};
use std::sync::Weak;

const BLOCKS: u32 = 3;
/// Of the prompt.
const FIRST: u32 = 2;

struct Scene {
    asked: Arc<Asked>,
    reads: Vec<Arc<BlockRead>>,
}

impl Scene {
    /// Blocks of two stripes, the second of no whole page.
    fn new() -> Self {
        let layout = Layout::new(3, 140_001).unwrap();
        assert_eq!(layout.stripes.len(), 2);
        let hashes: Arc<[_]> = (0..8).map(|name| SequenceHash([name; 32])).collect();
        let arena = Arena::new(Mapping::create("test", 16 << 20).unwrap());
        let read = |block| {
            let sequence = hashes[index(FIRST + block)];
            let frame = Arc::new(arena.allocate(layout.stored_length()).unwrap());
            frame.region().fill_with(|bytes| bytes.fill(0xee));
            let origin = Origin::Peer(NamespaceId(0), 4);
            Arc::new(BlockRead::new(Weak::new(), BlockKey { sequence, shard: 1 }, origin, frame))
        };
        let reads = (0..BLOCKS).map(read).collect();
        let root = SequenceHash([99; 32]);
        let asked = Asked { namespace: [7; 32], epoch: 4, shard: 1, root, hashes, layout };
        Self { asked: Arc::new(asked), reads }
    }

    fn arrivals(&self) -> Arrivals {
        Arrivals::new(Arc::clone(&self.asked), FIRST, self.reads.clone())
    }

    fn stripe(&self, block: u32, stripe: u32) -> (Piece, Vec<u8>) {
        let length = self.asked.layout.stripes[index(stripe)].length;
        let byte = u8::try_from(block * 16 + stripe).unwrap();
        (Piece::Stripe { block, stripe, length }, vec![byte; usize::try_from(length).unwrap()])
    }

    fn header(&self, block: u32) -> RecordHeader {
        let stripes = (0..).zip(self.asked.layout.stripes.iter()).map(|(number, range)| Stripe {
            offset: range.offset,
            length: range.length,
            checksum: checksum(&self.stripe(block, number).1),
        });
        let at = index(FIRST + block);
        RecordHeader {
            store_id: [5; 16],
            address: RecordAddress {
                segment: SegmentId(1),
                generation: Generation(1),
                offset: 8192,
            },
            key_scheme: KEY_SCHEME,
            sequence_hash: self.asked.hashes[at].0,
            shard: 1,
            parent: self.asked.hashes[at - 1].0,
            namespace: [7; 32],
            epoch: 4,
            position: FIRST + block,
            payload_length: self.asked.layout.payload_length,
            withdrawn: false,
            stripes: stripes.collect(),
        }
    }

    fn header_piece(&self, block: u32) -> (Piece, Vec<u8>) {
        (Piece::Header { block }, self.header(block).encode().unwrap().to_vec())
    }

    /// All that a peer would send, stripe by stripe over all blocks.
    fn all(&self) -> Vec<(Piece, Vec<u8>)> {
        let headers = (0..BLOCKS).map(|block| self.header_piece(block));
        let both = [0, 1].into_iter();
        let stripes = both.flat_map(|stripe| (0..BLOCKS).map(move |block| (block, stripe)));
        headers.chain(stripes.map(|(block, stripe)| self.stripe(block, stripe))).collect()
    }
}

/// What becomes of a piece and its bytes.
fn give(arrivals: &mut Arrivals, (piece, bytes): (Piece, &[u8])) -> Result<(), Lie> {
    match arrivals.next(piece)? {
        Next::Fill(region) => {
            region.copy_from(0, bytes);
            arrivals.filled(piece)
        }
        Next::Over => Ok(()),
    }
}

#[test]
fn what_is_right_arrives_and_its_padding_is_nobodys() {
    let scene = Scene::new();
    let mut arrivals = scene.arrivals();
    for (piece, bytes) in scene.all() {
        give(&mut arrivals, (piece, &bytes)).unwrap();
    }
    let complete = Piece::End { loaded: BLOCKS, reason: EndReason::Complete };
    give(&mut arrivals, (complete, &[])).unwrap();
    assert_eq!(arrivals.whole(), 3);
    drop(arrivals);
    for read in &scene.reads {
        assert_eq!(read.outcome(), Some(Ok(())));
        let end = scene.asked.layout.payload_length;
        let padding =
            read.frame.region().slice(HEADER_SIZE + end, end.next_multiple_of(4096) - end);
        assert!(padding.length() > 0 && padding.bytes().iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_header_of_anything_else_is_refused() {
    let changes: [fn(&mut RecordHeader); 8] = [
        |header| header.sequence_hash[3] ^= 1,
        |header| header.shard = 0,
        |header| header.namespace[0] = 0,
        |header| header.parent[31] ^= 1,
        |header| header.epoch = 3,
        |header| header.position += 1,
        |header| header.key_scheme += 1,
        |header| header.withdrawn = true,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let scene = Scene::new();
        let mut header = scene.header(1);
        change(&mut header);
        let page = header.encode().unwrap();
        let piece = Piece::Header { block: 1 };
        let refused = give(&mut scene.arrivals(), (piece, &page[..]));
        assert_eq!(refused, Err(Lie::OtherBlock { block: 1 }), "change {number}");
    }
    let scene = Scene::new();
    let mut header = scene.header(1);
    header.stripes[1].length -= 1;
    header.payload_length -= 1;
    let refused =
        give(&mut scene.arrivals(), (Piece::Header { block: 1 }, &header.encode().unwrap()[..]));
    assert_eq!(refused, Err(Lie::Layout { block: 1 }));
}

#[test]
fn what_comes_out_of_turn_or_is_wrong_is_refused_and_the_rest_are_misses() {
    let scene = Scene::new();
    let mut arrivals = scene.arrivals();
    let (piece, bytes) = scene.stripe(0, 0);
    let early = Lie::Stripe { block: 0, stripe: 0 };
    assert_eq!(give(&mut arrivals, (piece, &bytes)), Err(early.clone()));
    let (header, page) = scene.header_piece(0);
    give(&mut arrivals, (header, &page)).unwrap();
    assert_eq!(give(&mut arrivals, (header, &page)), Err(Lie::SecondHeader { block: 0 }));
    give(&mut arrivals, (piece, &bytes)).unwrap();
    assert_eq!(give(&mut arrivals, (piece, &bytes)), Err(early), "a second time");
    let (piece, mut bytes) = scene.stripe(0, 1);
    bytes[7] ^= 1;
    let wrong = give(&mut arrivals, (piece, &bytes));
    assert!(matches!(wrong, Err(Lie::Content { block: 0, .. })), "{wrong:?}");
    let beyond = Piece::Header { block: BLOCKS };
    assert_eq!(give(&mut arrivals, (beyond, &page)), Err(Lie::Block { block: 3, blocks: 3 }));
    let long = Piece::Stripe { block: 0, stripe: 1, length: u64::MAX };
    assert!(matches!(give(&mut arrivals, (long, &[])), Err(Lie::Length { .. })));
    let end = Piece::End { loaded: 1, reason: EndReason::Deadline };
    assert_eq!(give(&mut arrivals, (end, &[])), Err(Lie::End { block: 0 }));
    drop(arrivals);
    assert!(scene.reads.iter().all(|read| read.outcome() == Some(Err(Miss::Peer))));
}

#[test]
fn an_end_that_says_why_makes_misses_of_that_kind() {
    let scene = Scene::new();
    let mut arrivals = scene.arrivals();
    let end = Piece::End { loaded: 0, reason: EndReason::Deadline };
    give(&mut arrivals, (end, &[])).unwrap();
    drop(arrivals);
    assert!(scene.reads.iter().all(|read| read.outcome() == Some(Err(Miss::Deadline))));
}

#[test]
fn any_sequence_of_pieces_is_taken_or_refused_and_only_whole_blocks_arrive() {
    let mut random = fastrand::Rng::with_seed(8);
    for _ in 0..500 {
        let scene = Scene::new();
        let mut arrivals = scene.arrivals();
        let mut pieces = scene.all();
        for _ in 0..random.usize(0..4) {
            let (one, other) = (random.usize(..pieces.len()), random.usize(..pieces.len()));
            match random.u8(0..5) {
                0 => pieces.swap(one, other),
                1 => pieces.truncate(one.max(1)),
                2 => pieces[one] = pieces[other].clone(),
                3 => {
                    let at = random.usize(..pieces[one].1.len());
                    pieces[one].1[at] ^= 1 << random.u8(0..8);
                }
                _ => {
                    let (block, stripe) = (random.u32(0..5), random.u32(0..4));
                    let length = random.u64(0..300_000);
                    pieces[one].0 = Piece::Stripe { block, stripe, length };
                }
            }
        }
        let refused = pieces.iter().any(|(piece, bytes)| match arrivals.next(*piece) {
            Ok(Next::Fill(region)) => {
                let bytes = &bytes[..bytes.len().min(usize::try_from(region.length()).unwrap())];
                region.copy_from(0, bytes);
                arrivals.filled(*piece).is_err()
            }
            Ok(Next::Over) => false,
            Err(_) => true,
        });
        let whole = arrivals.whole();
        assert!(refused || whole == 3 || pieces.len() < 9);
        drop(arrivals);
        for (number, read) in (0..).zip(&scene.reads) {
            let arrived = read.outcome() == Some(Ok(()));
            let right = [0, 1].into_iter().all(|stripe| {
                let (offset, (_, bytes)) = (
                    scene.asked.layout.stripes[index(stripe)].offset,
                    scene.stripe(number, stripe),
                );
                let length = u64::try_from(bytes.len()).unwrap();
                read.frame.region().slice(HEADER_SIZE + offset, length).bytes() == bytes
            });
            assert!(!arrived || right, "a block that has arrived holds what it must");
        }
        assert_eq!(whole, scene.reads.iter().filter(|it| it.outcome() == Some(Ok(()))).count());
    }
}
