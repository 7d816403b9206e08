//! Proves what a drive is started from, and what its handle says of it.

use super::*;
use crate::device::Medium;

#[test]
fn a_segment_that_was_made_ready_and_never_used_is_free_after_a_restart() {
    let fixture = Fixture::new(IoEngine::Auto, 2, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    let states = |drive: &Drive| drive.segments().iter().map(|it| it.state).collect::<Vec<_>>();
    let mut stored = fixture.append(&drive, 0).unwrap();
    for block in 1.. {
        if states(&drive) == [SegmentState::Open; 2] {
            break;
        }
        stored = fixture.append(&drive, block).unwrap();
    }
    drop(drive);
    let (drive, _) = fixture.start();
    assert_eq!(states(&drive)[0], SegmentState::Open);
    let next = fixture.append(&drive, 1000).unwrap().address;
    let offset = stored.address.offset + stored.stored_length;
    assert_eq!(next, RecordAddress { offset, ..stored.address });
}

#[test]
fn a_drive_is_withdrawn_when_an_operation_hangs_or_reads_fail_one_after_the_other() {
    let fixture = Fixture::new(IoEngine::Auto, 2, Layout::new(8, 131_072).unwrap());
    let (running, _) = fixture.start();
    let begun = Instant::now();
    let time = Arc::new(Mutex::new(begun));
    let clock = Arc::clone(&time);
    let now: Now = Arc::new(move || *locked(&clock));
    let waker = running.shared.waker.clone();
    running.stop();
    drop(running);
    let scratch = Mapping::create("test", 1 << 20).unwrap();
    let (drive, _worker) = fixture.open().detached((waker, now), scratch, vec![], Box::new(|_| {}));
    let counters = &drive.shared.counters;
    assert!(drive.is_idle() && drive.stats().writable);
    assert_eq!(drive.withdrawn(), None);
    // Begun 7 ms after the drive.
    counters.oldest_operation_ms.set(8);
    let patience = Limits::default().hang_patience;
    for (age, expected) in [(0, None), (1, Some(Withdrawn::Hangs))] {
        *locked(&time) = begun + patience + Duration::from_millis(7 + age);
        assert_eq!((drive.is_idle(), drive.withdrawn()), (false, expected));
    }
    counters.oldest_operation_ms.set(0);
    assert_eq!((drive.is_idle(), drive.withdrawn()), (true, None));
    for (failed, expected) in
        [(READ_ERRORS_MAX - 1, None), (READ_ERRORS_MAX, Some(Withdrawn::Fails))]
    {
        counters.read_errors_in_row.set(failed);
        assert_eq!(drive.withdrawn(), expected);
    }
}

#[test]
fn a_segment_that_is_known_without_a_head_or_without_a_record_is_free() {
    let fixture = Fixture::new(IoEngine::Auto, 3, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    fixture.append(&drive, 0).unwrap();
    drop(drive);
    let known = |id, end| KnownSegment { id: SegmentId(id), end, sealed: true, entries: vec![] };
    for (end, state) in [(RECORDS_START, SegmentState::Free), (SEGMENT, SegmentState::Sealed)] {
        // The second segment has never been used.
        let known = vec![known(0, end), known(1, end)];
        let drive = fixture.open().start(&[], known, Box::new(|_| {})).unwrap();
        let states = drive.segments().iter().map(|it| it.state).collect::<Vec<_>>();
        assert_eq!(states, [state, SegmentState::Free, SegmentState::Free]);
    }
}

#[test]
fn what_a_scan_has_found_is_made_durable_by_a_sync_of_its_segment() {
    #[derive(Debug)]
    struct Noted(Sender<()>);
    impl Medium for Noted {
        fn read_exact_at(&self, bytes: &mut [u8], _: u64) -> io::Result<()> {
            bytes.fill(0);
            Ok(())
        }
        fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            unreachable!("nothing is written before a drive starts")
        }
        fn sync(&self) -> io::Result<()> {
            self.0.send(()).map_err(io::Error::other)
        }
    }
    let fixture = Fixture::new(IoEngine::Auto, 2, Layout::new(8, 131_072).unwrap());
    let superblock = *fixture.open().directory.unwrap().superblock();
    let (media, syncs): (Vec<_>, Vec<_>) =
        (0..2).map(|_| channel()).map(|(sender, synced)| (Noted(sender), synced)).unzip();
    let opening = Opening::over(superblock, "over".into(), media, Durability::Group).unwrap();
    assert_eq!(opening.store_id(), superblock.store_id);
    opening.sync(SegmentId(1)).unwrap();
    assert_eq!(syncs.iter().map(|it| it.try_iter().count()).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn pieces_of_memory_cover_all_of_it_once() {
    let bytes = 2 * ADOPTED_AT_ONCE + (1 << 20);
    let pieces: Vec<_> = pieces(&Mapping::create("test", bytes).unwrap()).collect();
    let ranges: Vec<_> = pieces.iter().map(|it| (it.offset(), it.length())).collect();
    let expected =
        [(0, ADOPTED_AT_ONCE), (ADOPTED_AT_ONCE, ADOPTED_AT_ONCE), (2 * ADOPTED_AT_ONCE, 1 << 20)];
    assert_eq!(ranges, expected);
}
