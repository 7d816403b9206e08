//! Writes: what order they keep, what a sync promises, and what a failure ends.

use super::*;
use crate::segment::record_max;

/// Where the footer of a segment full of records lies.
const FOOTER: u64 = RECORDS_START + RECORDS * RECORD;
const TRAILER: u64 = SEGMENT - PAGE_SIZE;

fn durable(groups: &Receiver<GroupEvent>) -> Option<(u64, u64, bool)> {
    match groups.try_recv().ok()? {
        GroupEvent::Durable { start, end, sealed, .. } => Some((start, end, sealed)),
        lost @ GroupEvent::Lost { .. } => panic!("{lost:?}"),
    }
}

fn is_waiting(stored: &Stores) -> bool {
    matches!(stored.try_recv(), Err(TryRecvError::Empty))
}

#[test]
fn no_record_is_written_before_its_segments_head_is_durable() {
    let mut drive = Drive::new(2, Durability::Group, limits());
    let stored = drive.append(RECORD);
    let head = drive.advance();
    assert_eq!((head.len(), writes_at(&head, PAGE_SIZE)), (1, 1));
    assert!(drive.advance().is_empty());
    drive.finish(&head[0]);
    let sync = drive.advance();
    assert_eq!((sync.len(), syncs(&sync)), (1, 1));
    assert!(drive.advance().is_empty());
    drive.finish(&sync[0]);
    let record = drive.advance();
    assert_eq!((record.len(), writes_at(&record, RECORDS_START)), (2, 1));
    assert!(is_waiting(&stored));
    drive.finish(&record[0]);
    assert!(is_waiting(&stored));
    drive.finish(&record[1]);
    let stored = stored.try_recv().unwrap().unwrap();
    assert_eq!((stored.address.offset, stored.stored_length), (RECORDS_START, RECORD));
}

#[test]
fn a_group_is_synced_when_its_oldest_record_has_waited_long_enough() {
    let mut drive = Drive::new(2, Durability::Group, limits());
    let interval = limits().group_interval;
    let stored = drive.append(RECORD);
    drive.settle();
    assert!(stored.try_recv().unwrap().is_ok());
    assert_eq!(durable(&drive.groups), None);
    assert_eq!(drive.engine.deadline(), Some(drive.now + interval));
    assert!(!drive.engine.is_idle());
    drive.pass_most_of(interval);
    assert!(drive.advance().is_empty());
    drive.pass(MILLISECOND);
    let sync = drive.advance();
    assert_eq!((sync.len(), syncs(&sync)), (1, 1));
    // Written while the sync runs: of the next group.
    let _stored = drive.append(RECORD);
    let started = drive.advance();
    drive.finish_all(&started);
    drive.finish(&sync[0]);
    assert_eq!(durable(&drive.groups), Some((RECORDS_START, RECORDS_START + RECORD, false)));
    assert_eq!(durable(&drive.groups), None);
    drive.pass(interval);
    assert_eq!(syncs(&drive.settle()), 1);
    let end = RECORDS_START + 2 * RECORD;
    assert_eq!(durable(&drive.groups), Some((RECORDS_START + RECORD, end, false)));
    assert!(drive.engine.is_idle());
    assert_eq!(drive.counters.syncs.get(), 2);
}

#[test]
fn a_group_waits_from_its_own_first_record_on_and_not_while_another_is_synced() {
    let mut drive = Drive::new(2, Durability::Group, limits());
    drive.filled(1);
    drive.pass(Duration::from_secs(1));
    let _stored = drive.append(RECORD);
    assert_eq!(syncs(&drive.settle()), 0);
    assert_eq!(drive.engine.deadline(), Some(drive.now + limits().group_interval));

    let mut drive = Drive::new(2, Durability::Group, Limits { group_bytes: 1, ..limits() });
    drive.filled(1);
    let _stored = drive.append(RECORD);
    let writes = drive.advance();
    drive.finish_all(&writes);
    assert_eq!(syncs(&drive.advance()), 1);
    assert_eq!(drive.engine.deadline(), None);
}

#[test]
fn a_sync_that_is_due_and_finds_no_room_waits_for_an_end_and_not_for_a_time() {
    let mut drive = Drive::new(2, Durability::Group, Limits { operations: 2, ..limits() });
    let stored = drive.filled(1)[0];
    let _stored = drive.append(RECORD);
    drive.settle();
    let _reads = [drive.read(stored, None), drive.read(stored, None)];
    let reads = drive.advance();
    assert_eq!(reads.len(), 2);
    drive.pass(limits().group_interval);
    assert!(drive.advance().is_empty());
    assert_eq!(drive.engine.deadline(), None);
    drive.finish(&reads[0]);
    assert_eq!(syncs(&drive.advance()), 1);
}

#[test]
fn a_short_write_goes_on_at_a_whole_page() {
    let mut drive = Drive::new(2, Durability::Group, limits());
    drive.filled(1);
    let stored = drive.append(RECORD);
    let writes = drive.advance();
    drive.finish(&writes[0]);
    drive.transfer(&writes[1], 3 * PAGE_SIZE + 100);
    assert!(is_waiting(&stored));
    let rest = drive.advance();
    assert_eq!(rest[0].1.bytes(), RECORD - HEADER_SIZE - 3 * PAGE_SIZE);
    drive.finish(&rest[0]);
    let stored = stored.try_recv().unwrap().unwrap();
    assert_eq!(writes_at(&rest, stored.address.offset + HEADER_SIZE + 3 * PAGE_SIZE), 1);
    let sink = drive.read(stored, None);
    drive.settle();
    assert_eq!(sink.outcome(), Some(Ok(())));
}

#[test]
fn a_group_is_synced_when_it_has_bytes_enough() {
    let mut drive =
        Drive::new(2, Durability::Group, Limits { group_bytes: 2 * RECORD, ..limits() });
    let _first = drive.append(RECORD);
    drive.settle();
    assert_eq!(durable(&drive.groups), None);
    let _second = drive.append(RECORD);
    drive.settle();
    assert_eq!(durable(&drive.groups), Some((RECORDS_START, RECORDS_START + 2 * RECORD, false)));
}

#[test]
fn what_lies_behind_an_unwritten_record_is_not_promised() {
    let mut drive = Drive::new(2, Durability::Group, limits());
    drive.filled(1);
    assert!(durable(&drive.groups).is_some());
    let stores = [drive.append(RECORD), drive.append(RECORD)];
    let writes = drive.advance();
    assert_eq!(writes.len(), 4);
    drive.finish_all(&writes[2..]);
    assert!(is_waiting(&stores[0]) && stores[1].try_recv().unwrap().is_ok());
    // Nothing that could be synced waits for a time.
    assert_eq!(drive.engine.deadline(), None);
    drive.pass(limits().group_interval);
    assert!(drive.advance().is_empty());
    drive.finish_all(&writes[..2]);
    assert_eq!(syncs(&drive.settle()), 1);
    let (start, end) = (RECORDS_START + RECORD, RECORDS_START + 3 * RECORD);
    assert_eq!(durable(&drive.groups), Some((start, end, false)));
}

#[test]
fn where_every_save_is_synced_nobody_hears_of_a_record_before() {
    let mut drive = Drive::new(2, Durability::Sync, limits());
    drive.filled(1);
    let stored = drive.append(RECORD);
    let started = drive.advance();
    drive.finish_all(&started);
    assert!(is_waiting(&stored));
    let sync = drive.advance();
    assert_eq!(syncs(&sync), 1);
    assert!(is_waiting(&stored));
    drive.finish(&sync[0]);
    assert!(stored.try_recv().unwrap().is_ok());
}

#[test]
fn where_nothing_is_synced_groups_count_when_they_are_due() {
    let mut drive = Drive::new(2, Durability::None, limits());
    let stored = drive.append(RECORD);
    // The head alone.
    assert_eq!(syncs(&drive.settle()), 1);
    assert!(stored.try_recv().unwrap().is_ok());
    assert_eq!(durable(&drive.groups), None);
    drive.pass(limits().group_interval);
    assert!(drive.advance().is_empty());
    assert_eq!(durable(&drive.groups), Some((RECORDS_START, RECORDS_START + RECORD, false)));
    assert!(drive.engine.is_idle());
    // A stop asks for all that is left, which is nothing.
    drive.engine.stop();
    assert!(drive.advance().is_empty());
    assert_eq!(durable(&drive.groups), None);
}

#[test]
fn the_next_segment_is_made_ready_when_three_quarters_are_full() {
    let mut drive = Drive::new(2, Durability::Group, limits());
    drive.filled(11);
    assert_eq!([drive.state(0), drive.state(1)], [SegmentState::Open, SegmentState::Free]);
    drive.filled(1);
    assert_eq!(drive.state(1), SegmentState::Open);
    assert_eq!(drive.counters.segments_free.get(), 0);
}

#[test]
fn a_segment_without_room_for_the_next_record_is_followed_at_once() {
    let mut drive = Drive::new(2, Durability::Group, limits());
    drive.filled(1);
    let large = drive.append(SEGMENT - RECORD - 3 * PAGE_SIZE);
    drive.settle();
    drive.pass(limits().group_interval);
    drive.settle();
    assert_eq!(large.try_recv().unwrap().unwrap().address.segment, SegmentId(1));
    assert_eq!(drive.state(0), SegmentState::Sealed);
}

#[test]
fn a_full_segment_gets_its_footer_when_all_of_it_is_promised_and_then_a_sync() {
    let mut drive = Drive::new(2, Durability::Group, limits());
    let _stores: Vec<_> = (0..=RECORDS).map(|_| drive.append(RECORD)).collect();
    let mut held = Vec::new();
    // All but the syncs of the first segment's records.
    loop {
        let started = drive.advance();
        if started.is_empty() {
            break;
        }
        for operation in started {
            let is_full = drive.engine.segments()[0].end == FOOTER;
            if is_full && syncs(std::slice::from_ref(&operation)) == 1 && file_of(&operation.1) == 0
            {
                held.push(operation);
            } else {
                assert_eq!(writes_at(std::slice::from_ref(&operation), FOOTER), 0);
                drive.finish(&operation);
            }
        }
    }
    assert_eq!(held.len(), 1);
    drive.finish(&held[0]);
    let seal = drive.advance();
    assert_eq!((writes_at(&seal, FOOTER), writes_at(&seal, TRAILER)), (1, 1));
    assert_eq!(syncs(&seal), 0);
    // The memory of neither is given away before both are written.
    let held = drive.arena.allocated_bytes();
    drive.finish(&seal[0]);
    assert_eq!(drive.arena.allocated_bytes(), held);
    assert!(drive.advance().is_empty());
    drive.finish(&seal[1]);
    assert!(drive.arena.allocated_bytes() < held);
    assert_eq!(drive.state(0), SegmentState::Open);
    let sync = drive.advance();
    assert_eq!((sync.len(), syncs(&sync)), (1, 1));
    drive.finish(&sync[0]);
    assert_eq!(drive.state(0), SegmentState::Sealed);
    let events: Vec<_> = std::iter::from_fn(|| durable(&drive.groups)).collect();
    assert_eq!(events, [(RECORDS_START, FOOTER, false), (FOOTER, FOOTER, true)]);
}

#[test]
fn segments_changed_is_told_once() {
    let mut drive = Drive::new(2, Durability::Group, limits());
    assert!(drive.engine.take_segments_changed());
    assert!(!drive.engine.take_segments_changed());
    drive.filled(1);
    assert!(drive.engine.take_segments_changed());
    assert!(!drive.engine.take_segments_changed());
}

#[test]
fn the_largest_record_fits_and_one_page_more_is_refused() {
    let mut drive = Drive::new(2, Durability::Group, limits());
    let limit = record_max(SEGMENT);
    let stored = drive.append(limit);
    let refused = drive.append(limit + PAGE_SIZE);
    let length = limit + PAGE_SIZE;
    assert_eq!(refused.try_recv().unwrap(), Err(AppendError::TooLarge { length, limit }));
    drive.settle();
    assert_eq!(stored.try_recv().unwrap().unwrap().stored_length, limit);
}

#[test]
fn a_record_without_a_segment_is_refused_when_its_patience_ends_and_taken_when_one_is_freed() {
    let mut drive = Drive::new(1, Durability::Group, limits());
    let patience = limits().space_patience;
    drive.filled(RECORDS);
    let refused = drive.append(RECORD);
    assert!(drive.advance().is_empty());
    assert_eq!(drive.engine.deadline(), Some(drive.now + patience));
    drive.pass_most_of(patience);
    drive.settle();
    assert!(is_waiting(&refused));
    drive.pass(MILLISECOND);
    drive.settle();
    assert_eq!(refused.try_recv().unwrap(), Err(AppendError::NoSpace));
    assert_eq!(drive.counters.queued_write_bytes.get(), 0);
}

#[test]
fn a_record_that_waits_for_the_device_alone_keeps_waiting() {
    let mut drive = Drive::new(1, Durability::Group, Limits { write_bytes: 1, ..limits() });
    drive.filled(1);
    let stores = [drive.append(RECORD), drive.append(RECORD)];
    let header = drive.advance();
    assert_eq!(header.len(), 1);
    drive.pass(limits().space_patience);
    assert!(drive.advance().is_empty());
    drive.finish(&header[0]);
    drive.settle();
    for stored in stores {
        assert!(stored.try_recv().unwrap().is_ok());
    }
}

#[test]
fn only_what_is_sealed_can_be_freed_and_the_oldest_free_segment_is_used_first() {
    let mut drive = Drive::new(3, Durability::Group, limits());
    drive.filled(2 * RECORDS + 1);
    assert_eq!([0, 1, 2].map(|id| drive.state(id)), {
        use SegmentState::{Open, Sealed};
        [Sealed, Sealed, Open]
    });
    drive.engine.take_segments_changed();
    drive.engine.release(SegmentId(2));
    assert_eq!(drive.state(2), SegmentState::Open);
    assert!(!drive.engine.take_segments_changed());
    drive.engine.release(SegmentId(1));
    drive.engine.release(SegmentId(0));
    assert_eq!(drive.counters.segments_free.get(), 2);
    assert!(drive.engine.take_segments_changed());
    let stored = drive.filled(RECORDS);
    let last = stored.last().unwrap().address;
    assert_eq!((last.segment, last.generation), (SegmentId(0), Generation(2)));
    let birth = drive.engine.segments()[0].birth;
    assert!(drive.engine.segments()[1..].iter().all(|segment| segment.birth < birth));
}

#[test]
fn after_a_failed_write_or_sync_nothing_is_written_and_reads_go_on() {
    for of_sync in [false, true] {
        let mut drive = Drive::new(2, Durability::Sync, limits());
        let before = drive.filled(1)[0];
        assert!(durable(&drive.groups).is_some());
        let stores = [drive.append(RECORD), drive.append(RECORD)];
        let mut started = drive.advance();
        if of_sync {
            drive.finish_all(&started);
            started = drive.advance();
            assert_eq!(syncs(&started), 1);
        }
        let waiting = drive.append(RECORD);
        drive.end(started[0].0, Err(Errno::IO));
        for stored in stores {
            assert_eq!(stored.try_recv().unwrap(), Err(AppendError::Io(Errno::IO)));
        }
        assert_eq!(waiting.try_recv().unwrap(), Err(AppendError::ReadOnly));
        let lost = drive.groups.try_recv().unwrap();
        assert!(matches!(lost, GroupEvent::Lost { segment: SegmentId(0) }), "{lost:?}");
        assert_eq!((drive.state(0), drive.counters.read_only.get()), (SegmentState::Lost, 1));
        assert_eq!(drive.counters.write_errors.get(), 1);
        // What was in flight ends, and nothing follows it.
        drive.finish_all(&started[1..]);
        let refused = drive.append(RECORD);
        assert_eq!(refused.try_recv().unwrap(), Err(AppendError::ReadOnly));
        drive.pass(Duration::from_secs(1));
        assert!(drive.advance().is_empty());
        let sink = drive.read(before, None);
        drive.settle();
        assert_eq!(sink.outcome(), Some(Ok(())));
        assert!(drive.engine.is_idle());
    }
}

#[test]
fn a_stop_refuses_what_waits_and_syncs_what_was_written() {
    let mut drive = Drive::new(2, Durability::Group, Limits { operations: 2, ..limits() });
    drive.filled(1);
    assert!(durable(&drive.groups).is_some());
    let (running, waiting) = (drive.append(RECORD), drive.append(RECORD));
    let started = drive.advance();
    drive.engine.stop();
    assert_eq!(waiting.try_recv().unwrap(), Err(AppendError::Stopped));
    assert_eq!(drive.append(RECORD).try_recv().unwrap(), Err(AppendError::Stopped));
    drive.finish_all(&started);
    assert!(running.try_recv().unwrap().is_ok() && !drive.engine.is_idle());
    let sync = drive.advance();
    assert_eq!((sync.len(), syncs(&sync)), (1, 1));
    assert!(!drive.engine.is_idle());
    drive.finish(&sync[0]);
    assert!(drive.engine.is_idle() && durable(&drive.groups).is_some());
}

#[test]
fn a_segment_that_is_open_at_the_start_is_written_on_and_an_older_one_is_full() {
    let mut before = Drive::new(3, Durability::Group, limits());
    before.filled(2);
    let status = before.engine.segments()[0];
    let older = SegmentStatus { id: SegmentId(1), birth: 0, generation: Generation(5), ..status };
    let (sender, _groups) = channel();
    let engine = Engine::new(Setup {
        store_id: [3; 16],
        segment_bytes: SEGMENT,
        durability: Durability::Group,
        limits: limits(),
        segments: [status, older].map(|status| SegmentSetup { status, entries: vec![] }).to_vec(),
        scratch: Arc::clone(&before.arena),
        counters: Arc::clone(&before.counters),
        on_group: Box::new(move |event| sender.send(event).unwrap()),
    });
    let mut drive = Drive { engine, ..before };
    assert_eq!([drive.state(0), drive.state(1)], [SegmentState::Open, SegmentState::Sealed]);
    let stored = drive.append(RECORD);
    drive.settle();
    let address = stored.try_recv().unwrap().unwrap().address;
    assert_eq!((address.segment, address.offset), (SegmentId(0), status.end));
}
