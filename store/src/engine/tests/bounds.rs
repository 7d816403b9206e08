//! What may be in flight at once, and what that is measured by.

use super::*;

#[test]
fn no_more_operations_run_than_the_limit_and_the_rest_follow() {
    let mut drive = Drive::new(4, Durability::Group, Limits { operations: 4, ..limits() });
    let stored = drive.filled(10);
    let sinks: Vec<_> = stored.into_iter().map(|stored| drive.read(stored, None)).collect();
    let started = drive.advance();
    assert_eq!(started.len(), 4);
    assert!(drive.advance().is_empty());
    drive.finish(&started[2]);
    assert_eq!(drive.advance().len(), 1);
    drive.finish_all(&started[..2]);
    drive.finish(&started[3]);
    assert_eq!(sinks.iter().filter(|sink| sink.outcome() == Some(Ok(()))).count(), 4);
}

#[test]
fn writes_run_up_to_the_limit_of_operations_too() {
    let mut drive = Drive::new(4, Durability::Group, Limits { operations: 3, ..limits() });
    drive.filled(1);
    let _stores: Vec<_> = (0..4).map(|_| drive.append(RECORD)).collect();
    assert_eq!(drive.advance().len(), 3);
}

#[test]
fn reads_begin_while_fewer_bytes_than_the_limit_are_in_flight() {
    // One may go beyond it.
    for (read_bytes, begun) in [(2 * RECORD, 2), (2 * RECORD + 1, 3)] {
        let mut drive = Drive::new(4, Durability::Group, Limits { read_bytes, ..limits() });
        let stored = drive.filled(8);
        for stored in stored {
            drive.read(stored, None);
        }
        let started = drive.advance();
        assert_eq!(started.len(), begun);
        assert_eq!(drive.counters.queued_read_bytes.get(), 8 * RECORD);
        drive.finish(&started[0]);
        assert_eq!(drive.advance().len(), 1);
        assert_eq!(drive.counters.queued_read_bytes.get(), 7 * RECORD);
    }
}

#[test]
fn writes_begin_while_fewer_bytes_than_the_limit_are_in_flight() {
    let limits = Limits { write_bytes: RECORD + 1, ..limits() };
    let mut drive = Drive::new(4, Durability::Group, limits);
    drive.filled(1);
    let _stores: Vec<_> = (0..4).map(|_| drive.append(RECORD)).collect();
    assert_eq!(drive.counters.queued_write_bytes.get(), 0);
    // A record, and the header of the next goes beyond it.
    let started = drive.advance();
    assert_eq!(started.len(), 3);
    assert_eq!(drive.counters.queued_write_bytes.get(), 3 * RECORD + HEADER_SIZE);
    drive.finish(&started[0]);
    drive.finish(&started[1]);
    assert_eq!(drive.advance().len(), 2);
    assert_eq!(drive.counters.queued_write_bytes.get(), 2 * RECORD + HEADER_SIZE);
}

#[test]
fn writes_leave_room_for_reads_while_one_runs_waits_or_just_ended() {
    let beside = HEADER_SIZE + 1;
    let limits = Limits { write_bytes_beside_reads: beside, read_bytes: 1, ..limits() };
    let mut drive = Drive::new(4, Durability::Group, limits);
    let stored = drive.filled(2);
    drive.pass(Duration::from_secs(1));
    drive.read(stored[0], None);
    let read = drive.advance();
    assert_eq!(read.len(), 1);
    // One runs; then another waits behind it, too.
    let _stores: Vec<_> = (0..4).map(|_| drive.append(RECORD)).collect();
    let written = drive.advance();
    assert_eq!(written.len(), 2);
    drive.read(stored[1], None);
    assert!(drive.advance().is_empty());
    drive.finish(&read[0]);
    let read = drive.advance();
    assert_eq!(read.len(), 1);
    drive.finish(&read[0]);
    // It ended a moment ago, and then some moments ago.
    drive.pass(19 * MILLISECOND);
    assert!(drive.advance().is_empty());
    drive.pass(MILLISECOND);
    assert_eq!(drive.advance().len(), 6);
    drive.finish_all(&written);
}

#[test]
fn a_waiting_read_alone_has_writes_leave_room() {
    let limits = Limits { write_bytes_beside_reads: 1, read_bytes: 1, operations: 2, ..limits() };
    let mut drive = Drive::new(4, Durability::Group, limits);
    let stored = drive.filled(1)[0];
    drive.pass(Duration::from_secs(1));
    // Writes were first, and take up all operations.
    let _stores = [drive.append(RECORD), drive.append(RECORD)];
    let written = drive.advance();
    assert_eq!(written.len(), 2);
    drive.read(stored, None);
    assert!(drive.advance().is_empty());
    drive.finish(&written[0]);
    let started = drive.advance();
    assert!(matches!(started[..], [(_, DeviceOp::Read { .. })]), "{started:?}");
}

#[test]
fn the_oldest_operation_is_told_until_it_ends() {
    let mut drive = Drive::new(4, Durability::Group, limits());
    let stored = drive.filled(2);
    assert_eq!(drive.engine.oldest_operation(), None);
    let begun = drive.now;
    drive.read(stored[0], None);
    let first = drive.advance();
    drive.pass(MILLISECOND);
    drive.read(stored[1], None);
    let second = drive.advance();
    assert_eq!(drive.engine.oldest_operation(), Some(begun));
    drive.finish(&first[0]);
    assert_eq!(drive.engine.oldest_operation(), Some(begun + MILLISECOND));
    drive.finish(&second[0]);
    assert_eq!(drive.engine.oldest_operation(), None);
}

#[test]
fn a_drives_rate_is_over_all_the_time_in_which_anything_runs() {
    let mut drive = Drive::new(4, Durability::Group, limits());
    let stored = drive.filled(2);
    let rate = RECORD * 50;
    drive.read(stored[0], None);
    drive.read(stored[1], None);
    let reads = drive.advance();
    for (operation, time) in reads.iter().zip([20, 40]) {
        drive.pass(time * MILLISECOND);
        drive.finish(operation);
    }
    let counters = Arc::clone(&drive.counters);
    let read = (3 * rate + rate / 2) / 4;
    assert_eq!(counters.read_bytes_per_second.get(), read);
    // Nothing runs for a while, which is no time of the next one.
    drive.pass(Duration::from_secs(1));
    drive.read(stored[0], None);
    let reads = drive.advance();
    drive.pass(20 * MILLISECOND);
    drive.finish(&reads[0]);
    assert_eq!(counters.read_bytes_per_second.get(), (3 * read + rate) / 4);
    drive.pass(Duration::from_secs(1));
    let _stored = drive.append(RECORD);
    let writes = drive.advance();
    drive.finish(&writes[0]);
    drive.pass(20 * MILLISECOND);
    drive.finish(&writes[1]);
    let before = counters.write_bytes_per_second.get();
    assert!(before > 0);
    drive.pass(20 * MILLISECOND);
    let _stores = [drive.append(RECORD), drive.append(RECORD)];
    let writes = drive.advance();
    // Headers, and then what they are of.
    let [one, first, other, second] = &writes[..] else { panic!("{writes:?}") };
    for (operation, time) in [(one, 0), (first, 20), (other, 0), (second, 40)] {
        drive.pass(time * MILLISECOND);
        drive.finish(operation);
    }
    let first = (3 * before + rate) / 4;
    assert_eq!(counters.write_bytes_per_second.get(), (3 * first + rate / 2) / 4);
}
