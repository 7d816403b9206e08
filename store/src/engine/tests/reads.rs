//! Reads: what they end with, and when.

use super::*;
use crate::check;

#[test]
fn a_record_is_read_whole_and_told_of_once() {
    let mut drive = Drive::new(4, Durability::Group, limits());
    let stored = drive.filled(1)[0];
    let sink = drive.read(stored, None);
    let started = drive.advance();
    assert_eq!(started[0].1.bytes(), RECORD);
    assert_eq!(sink.outcome(), None);
    drive.finish(&started[0]);
    assert_eq!(*sink.0.lock().unwrap(), Heard { stripes: vec![0], outcome: Some(Ok(())) });
    assert!(drive.advance().is_empty() && !drive.engine.has_arrived());
}

#[test]
fn what_is_left_of_a_short_transfer_goes_on_at_a_whole_page() {
    let mut drive = Drive::new(4, Durability::Group, limits());
    let stored = drive.filled(1)[0];
    let sink = drive.read(stored, None);
    let whole = drive.advance();
    drive.transfer(&whole[0], 3 * PAGE_SIZE + 100);
    let rest = drive.advance();
    let DeviceOp::Read { offset, region, .. } = &rest[0].1 else { panic!("{rest:?}") };
    assert_eq!(*offset, stored.address.offset + 3 * PAGE_SIZE);
    assert_eq!(region.length(), RECORD - 3 * PAGE_SIZE);
    // Less than a page is nothing.
    drive.transfer(&rest[0], 100);
    let again = drive.advance();
    assert_eq!(again[0].1.bytes(), RECORD - 3 * PAGE_SIZE);
    drive.finish(&again[0]);
    assert_eq!(sink.outcome(), Some(Ok(())));
    assert_eq!(drive.counters.read_bytes.get(), RECORD);
}

#[test]
fn an_interrupted_read_is_begun_again() {
    for errno in [Errno::INTR, Errno::AGAIN] {
        let mut drive = Drive::new(4, Durability::Group, limits());
        let stored = drive.filled(1)[0];
        let sink = drive.read(stored, None);
        let started = drive.advance();
        drive.end(started[0].0, Err(errno));
        let again = drive.advance();
        assert_eq!(again[0].1.bytes(), RECORD);
        drive.finish(&again[0]);
        assert_eq!(sink.outcome(), Some(Ok(())));
    }
}

#[test]
fn a_file_that_ends_inside_a_record_ends_its_read() {
    let mut drive = Drive::new(4, Durability::Group, limits());
    let stored = drive.filled(1)[0];
    let sink = drive.read(stored, None);
    let started = drive.advance();
    drive.end(started[0].0, Ok(0));
    assert!(drive.advance().is_empty());
    assert_eq!(sink.outcome(), Some(Err(ReadError::Truncated)));
}

#[test]
fn an_error_is_told_and_counted_until_a_read_goes_well() {
    let mut drive = Drive::new(4, Durability::Group, limits());
    let stored = drive.filled(1)[0];
    for failed in 1..=2 {
        let sink = drive.read(stored, None);
        let started = drive.advance();
        drive.end(started[0].0, Err(Errno::IO));
        assert_eq!(sink.outcome(), Some(Err(ReadError::Io(Errno::IO))));
        assert_eq!(drive.counters.read_errors_in_row.get(), failed);
    }
    let sink = drive.read(stored, None);
    drive.settle();
    assert_eq!(sink.outcome(), Some(Ok(())));
    assert_eq!(drive.counters.read_errors_in_row.get(), 0);
    assert_eq!(drive.counters.read_errors.get(), 2);
}

#[test]
fn a_changed_byte_is_an_error_that_is_counted_and_no_stripe() {
    let mut drive = Drive::new(4, Durability::Group, limits());
    let stored = drive.filled(1)[0];
    let at = usize::try_from(stored.address.offset + RECORD - 1).unwrap();
    drive.file(stored.address.segment.0)[at] ^= 1;
    let sink = drive.read(stored, None);
    drive.settle();
    let Heard { stripes, outcome } = sink.0.lock().unwrap().clone();
    assert!(stripes.is_empty());
    assert!(matches!(outcome, Some(Err(ReadError::Checksum { stripe: 0, .. }))), "{outcome:?}");
    assert_eq!(drive.counters.checksum_failures.get(), 1);
}

#[test]
fn what_waits_beyond_its_deadline_is_let_go_though_nothing_ends() {
    let mut drive = Drive::new(4, Durability::Group, Limits { operations: 1, ..limits() });
    let stored = drive.filled(1)[0];
    let running = drive.read(stored, Some(10 * MILLISECOND));
    let hanging = drive.advance();
    // A read that may come at any time stands before those that may not.
    let patient = drive.read(stored, None);
    let first = drive.read(stored, Some(20 * MILLISECOND));
    let second = drive.read(stored, Some(30 * MILLISECOND));
    let last = drive.read(stored, Some(20 * MILLISECOND));
    assert!(drive.advance().is_empty());
    assert_eq!(drive.engine.deadline(), Some(drive.now + 20 * MILLISECOND));
    drive.pass_most_of(20 * MILLISECOND);
    assert!(drive.advance().is_empty());
    assert_eq!(first.outcome(), None);
    drive.pass(MILLISECOND);
    assert!(drive.advance().is_empty());
    for late in [&first, &last] {
        assert_eq!(late.outcome(), Some(Err(ReadError::Deadline)));
    }
    for waits in [&running, &patient, &second] {
        assert_eq!(waits.outcome(), None);
    }
    assert_eq!(drive.counters.queued_read_bytes.get(), 3 * RECORD);
    assert_eq!(drive.engine.deadline(), Some(drive.now + 10 * MILLISECOND));
    // What began in time is not late.
    drive.finish(&hanging[0]);
    drive.settle();
    for done in [&running, &patient, &second] {
        assert_eq!(done.outcome(), Some(Ok(())));
    }
    assert_eq!(drive.counters.queued_read_bytes.get(), 0);
}

#[test]
fn what_is_found_late_long_after_its_deadline_is_let_go_too() {
    let mut drive = Drive::new(4, Durability::Group, Limits { operations: 1, ..limits() });
    let stored = drive.filled(1)[0];
    let _running = drive.read(stored, None);
    let _hanging = drive.advance();
    let late = drive.read(stored, Some(20 * MILLISECOND));
    assert!(drive.advance().is_empty());
    drive.pass(30 * MILLISECOND);
    assert!(drive.advance().is_empty());
    assert_eq!(late.outcome(), Some(Err(ReadError::Deadline)));
}

#[test]
fn a_late_read_is_not_begun() {
    let mut drive = Drive::new(4, Durability::Group, limits());
    let stored = drive.filled(1)[0];
    let late = drive.read(stored, Some(Duration::ZERO));
    let in_time = drive.read(stored, Some(Duration::from_nanos(1)));
    assert_eq!(drive.advance().len(), 1);
    assert_eq!(late.outcome(), Some(Err(ReadError::Deadline)));
    assert_eq!(in_time.outcome(), None);
}

#[test]
fn stripes_of_several_records_are_read_in_their_order() {
    let mut drive = Drive::new(4, Durability::Group, limits());
    let layout = Layout::new(3, 256 << 10).unwrap();
    let addresses = [2, 1, 0].map(|block: u32| crate::geometry::RecordAddress {
        segment: SegmentId(block),
        generation: Generation(1),
        offset: RECORDS_START,
    });
    let sink = Arc::<Sink>::default();
    let requests = addresses.map(|address| {
        let stored = Stored { address, stored_length: layout.stored_length() };
        let shape = Shape::Layout(layout.clone());
        RecordRead { shape, by_stripe: true, ..drive.request(stored, &Arc::default(), None) }
    });
    let whole = RecordRead {
        frame: Arc::new(drive.frame(RECORD)),
        ..drive.request(Stored { address: addresses[0], stored_length: 2 * RECORD }, &sink, None)
    };
    drive.engine.read(requests.into_iter().chain([whole]).collect());
    // A frame that is too small is refused at once.
    assert_eq!(sink.outcome(), Some(Err(ReadError::Layout)));
    let started = drive.advance();
    let order = started.iter().map(|(_, operation)| match operation {
        DeviceOp::Read { file, offset, region } => (*file, *offset, region.length()),
        DeviceOp::Write { .. } | DeviceOp::Sync { .. } => panic!("{operation:?}"),
    });
    let (first, stripe) = (RECORDS_START, 256 << 10);
    let behind = first + HEADER_SIZE + stripe;
    let expected = [(first, HEADER_SIZE + stripe), (behind, stripe), (behind + stripe, stripe)]
        .map(|(offset, length)| [2, 1, 0].map(|file| (file, offset, length)));
    assert_eq!(order.collect::<Vec<_>>(), expected.as_flattened());
}

#[test]
fn a_record_in_one_piece_is_read_once_beside_one_by_stripes() {
    let mut drive = Drive::new(4, Durability::Group, limits());
    // Smaller stripes are read together.
    let layout = Layout::new(3, 256 << 10).unwrap();
    let stored = drive.filled(1)[0];
    let striped = Stored { stored_length: layout.stored_length(), ..stored };
    let by_stripe = RecordRead {
        shape: Shape::Layout(layout),
        by_stripe: true,
        ..drive.request(striped, &Arc::default(), None)
    };
    let whole = drive.request(stored, &Arc::default(), None);
    drive.engine.read(vec![whole, by_stripe]);
    let lengths: Vec<_> = drive.advance().iter().map(|(_, it)| it.bytes()).collect();
    assert_eq!(lengths, [RECORD, HEADER_SIZE + (256 << 10), 256 << 10, 256 << 10]);
}

#[test]
fn a_stop_answers_what_waits_and_lets_run_what_runs() {
    let mut drive = Drive::new(4, Durability::Group, Limits { operations: 1, ..limits() });
    let stored = drive.filled(1)[0];
    let running = drive.read(stored, None);
    let started = drive.advance();
    let waiting = drive.read(stored, None);
    assert!(drive.advance().is_empty());
    drive.engine.stop();
    assert_eq!(waiting.outcome(), Some(Err(ReadError::Stopped)));
    assert!(!drive.engine.is_idle());
    assert!(drive.advance().is_empty());
    assert_eq!(drive.counters.queued_read_bytes.get(), RECORD);
    drive.finish(&started[0]);
    assert_eq!(running.outcome(), Some(Ok(())));
    assert!(drive.engine.is_idle());
}

#[test]
fn a_record_that_was_read_is_a_payload_with_its_own_checksums() {
    let mut drive = Drive::new(4, Durability::Group, limits());
    let stored = drive.filled(1)[0];
    let sink = Arc::default();
    let request = drive.request(stored, &sink, None);
    let record = request.frame.region().clone();
    let wanted = check::Wanted {
        store_id: [3; 16],
        address: stored.address,
        sequence_hash: [1; 32],
        shard: 0,
        namespace: [9; 32],
    };
    drive.engine.read(vec![request]);
    drive.settle();
    let header = check::header(record.bytes(), &wanted).unwrap();
    let payload = Payload::of_record(&header, &record).unwrap();
    assert_eq!(payload.stripes, header.stripes);
    assert_eq!(payload.region.bytes(), &record.bytes()[usize::try_from(HEADER_SIZE).unwrap()..]);
    let found = RECORD - PAGE_SIZE;
    assert_eq!(
        Payload::of_record(&header, &record.slice(0, found)).unwrap_err(),
        AppendError::Payload { found, expected: RECORD }
    );
}
