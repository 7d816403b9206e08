//! Proves in which order pieces are taken, that none is lost or made twice, and that whoever began
//! a transfer is told its end once, when nothing of it is under way.

use super::*;
use crate::arena::Mapping;
use crate::copier::{Copier, Fence};
use crate::layout::{KvLayout, Layer, Pages, Plane};
use crate::memory::Memory;
use crate::paged::PagedCache;
use std::time::Duration;

struct Silent;

impl CopySink for Silent {
    fn marked(&self, _: usize, _: Fence) {}
    fn ended(&self, _: Result<(), CopyError>) {}
}

const PAGE: u64 = 4096;
const SMALL: PieceSize = PieceSize { bytes: 3 * PAGE, copies: 8 };

/// Copies of single pages, none next to another.
fn batch(pages: u32) -> Batch {
    let memory = Memory::host(64 * PAGE).unwrap();
    let base = memory.addresses().start;
    let planes = vec![Plane::contiguous(base, 2 * PAGE, PAGE)];
    let layers = vec![Layer { group: 0, planes }];
    let layout = KvLayout { layers, pages: 32, pages_per_block: 1 };
    let cache = PagedCache::within(memory, layout).unwrap();
    let arena = Mapping::create("test", 64 * PAGE).unwrap();
    let arena = Copier::host().unwrap().register(&arena).unwrap();
    let mut batch = Batch::new(Direction::Load, &cache, &arena).unwrap();
    let numbers = Pages::new(pages, vec![(0..pages).collect()]);
    for block in 0..pages {
        batch.add(0..1, &numbers, block, u64::from(block) * PAGE).unwrap();
    }
    batch
}

struct Clock(Instant);

impl Clock {
    fn begin(&self, queue: &mut Queue, seconds: u64) -> TransferId {
        let deadline = self.0 + Duration::from_secs(seconds);
        queue.begin(Direction::Load, deadline, None, Arc::new(Silent))
    }
}

fn taken(queue: &mut Queue) -> Option<(TransferId, usize, Option<usize>)> {
    let piece = queue.take(SMALL)?;
    Some((piece.transfer, piece.copies().len(), piece.mark))
}

#[test]
fn the_earliest_deadline_goes_first_and_overtakes_between_pieces() {
    let (mut queue, clock) = (Queue::default(), Clock(Instant::now()));
    let late = clock.begin(&mut queue, 9);
    queue.push(late, Some(batch(5)), Some(7));
    assert_eq!(taken(&mut queue), Some((late, 3, None)));
    let early = clock.begin(&mut queue, 1);
    queue.push(early, Some(batch(2)), Some(0));
    queue.push(early, None, Some(1));
    assert_eq!(taken(&mut queue), Some((early, 2, Some(0))));
    assert_eq!(taken(&mut queue), Some((early, 0, Some(1))));
    assert_eq!(taken(&mut queue), Some((late, 2, Some(7))));
    assert_eq!(taken(&mut queue), None);
}

#[test]
fn pieces_of_any_size_make_each_copy_once() {
    for bytes in [1, 100, PAGE, 3 * PAGE + 5, 1 << 30] {
        let (mut queue, clock) = (Queue::default(), Clock(Instant::now()));
        let id = clock.begin(&mut queue, 1);
        let batch = batch(3);
        queue.push(id, Some(batch.clone()), None);
        let mut made: Vec<Copy> = Vec::new();
        while let Some(piece) = queue.take(PieceSize { bytes, copies: 2 }) {
            assert!(piece.copies().iter().map(|copy| copy.length).sum::<u64>() <= bytes);
            for copy in piece.copies() {
                match made.last_mut() {
                    Some(last) if last.target + last.length == copy.target => {
                        assert_eq!(last.source + last.length, copy.source);
                        last.length += copy.length;
                    }
                    Some(_) | None => made.push(*copy),
                }
            }
        }
        assert_eq!(made, batch.copies().collect::<Vec<_>>(), "{bytes}");
    }
}

#[test]
fn a_transfer_ends_once_when_it_is_closed_and_nothing_is_under_way() {
    let (mut queue, clock) = (Queue::default(), Clock(Instant::now()));
    let id = clock.begin(&mut queue, 1);
    queue.push(id, Some(batch(4)), None);
    taken(&mut queue).unwrap();
    assert!(queue.finish(id, Ok(())).is_none());
    assert!(queue.close(id).is_none());
    taken(&mut queue).unwrap();
    assert!(matches!(queue.finish(id, Ok(())), Some((_, Ok(())))));
    assert!(!queue.contains(id));
    assert!(queue.close(id).is_none() && queue.fail(id, CopyError::Cancelled).is_none());
}

#[test]
fn a_cancelled_transfer_makes_no_more_and_ends_when_the_last_piece_has() {
    let (mut queue, clock) = (Queue::default(), Clock(Instant::now()));
    let id = clock.begin(&mut queue, 1);
    queue.push(id, Some(batch(7)), None);
    taken(&mut queue).unwrap();
    taken(&mut queue).unwrap();
    assert!(queue.fail(id, CopyError::Cancelled).is_none());
    queue.push(id, Some(batch(1)), Some(0));
    assert_eq!(taken(&mut queue), None);
    assert!(queue.finish(id, Ok(())).is_none() && queue.contains(id));
    assert!(matches!(queue.finish(id, Ok(())), Some((_, Err(CopyError::Cancelled)))));
}

#[test]
fn a_failed_piece_fails_its_transfer_alone() {
    let (mut queue, clock) = (Queue::default(), Clock(Instant::now()));
    let (bad, good) = (clock.begin(&mut queue, 1), clock.begin(&mut queue, 2));
    queue.push(bad, Some(batch(7)), None);
    queue.push(good, Some(batch(1)), None);
    taken(&mut queue).unwrap();
    let failed = queue.finish(bad, Err(CopyError::Stopped));
    assert!(matches!(failed, Some((_, Err(CopyError::Stopped)))));
    assert_eq!(taken(&mut queue).map(|(id, ..)| id), Some(good));
}

#[test]
fn what_begins_after_the_end_of_the_lane_is_told_so() {
    let (mut queue, clock) = (Queue { stopped: true, ..Queue::default() }, Clock(Instant::now()));
    let id = clock.begin(&mut queue, 1);
    queue.push(id, Some(batch(1)), None);
    assert_eq!(taken(&mut queue), None);
    assert!(matches!(queue.close(id), Some((_, Err(CopyError::Stopped)))));
}
