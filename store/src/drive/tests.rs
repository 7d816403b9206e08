//! Proves on a real directory, over both I/O engines, that what was appended is read back byte for
//! byte, also after a restart, also from the disk alone; and that nothing else is ever read.

use super::*;
use crate::arena::{Arena, Mapping};
use crate::check::{ReadError, Shape};
use crate::engine::{AppendError, NewRecord, Payload, ReadSink, Stored};
use crate::geometry::{HEADER_SIZE, Layout, RecordAddress};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

mod examine;
mod handle;
mod repair;

const SEGMENT: u64 = 16 << 20;
const NAMESPACE: [u8; 32] = [9; 32];

struct Fixture {
    parent: tempfile::TempDir,
    arena: Arc<Arena>,
    io_engine: IoEngine,
    segments: u64,
    layout: Layout,
}

struct Sink(Sender<Result<(), ReadError>>);

impl ReadSink for Sink {
    fn stripe(&self, _: usize) {}
    fn done(&self, outcome: Result<(), ReadError>) {
        self.0.send(outcome).unwrap();
    }
}

fn hash(block: u64) -> [u8; 32] {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&block.to_le_bytes());
    hash
}

impl Fixture {
    fn new(io_engine: IoEngine, segments: u64, layout: Layout) -> Self {
        let parent = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/..").unwrap();
        let arena = Arena::new(Mapping::create("test", 64 << 20).unwrap());
        Self { parent, arena, io_engine, segments, layout }
    }

    fn open(&self) -> Opening {
        let config = DriveConfig {
            path: self.parent.path().join("store"),
            capacity_bytes: self.segments * SEGMENT,
            segment_bytes: Some(SEGMENT),
            io_engine: self.io_engine,
            durability: Durability::Group,
        };
        Opening::open(&config).unwrap()
    }

    /// Starts from what the disk says.
    fn start(&self) -> (Drive, Vec<(SegmentHead, Entry)>) {
        let opening = self.open();
        let (mut known, mut found) = (Vec::new(), Vec::new());
        for &head in opening.segments() {
            let scan = opening.scan(head.id, 0).unwrap();
            found.extend(scan.entries.iter().map(|entry| (head, entry.clone())));
            let Scan { entries, end, sealed } = scan;
            known.push(KnownSegment { id: head.id, end, sealed, entries });
        }
        let arenas = [Arc::clone(self.arena.mapping())];
        (opening.start(&arenas, known, Box::new(|_| {})).unwrap(), found)
    }

    fn content(&self, block: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(block);
        let mut bytes = vec![0; usize::try_from(self.layout.payload_length).unwrap()];
        random.fill(&mut bytes);
        bytes
    }

    /// Overwrites bytes of a segment's file.
    fn spoil(&self, segment: SegmentId, bytes: &[u8], offset: u64) {
        let file = File::options().write(true).open(self.segment_file(segment.0)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    fn append(&self, drive: &Drive, block: u64) -> Result<Stored, AppendError> {
        self.send(drive, block).recv().unwrap()
    }

    /// Queues a block, and does not wait for it.
    fn send(&self, drive: &Drive, block: u64) -> Receiver<Result<Stored, AppendError>> {
        let frame = self.arena.allocate(self.layout.stored_length()).unwrap();
        let pages = self.layout.stored_length() - HEADER_SIZE;
        let region = frame.region().slice(0, pages);
        region.copy_from(0, &self.content(block));
        let (sender, receiver) = channel();
        let append = Append {
            header: NewRecord {
                key_scheme: 1,
                sequence_hash: hash(block),
                shard: 0,
                parent: hash(block.wrapping_sub(1)),
                namespace: NAMESPACE,
                epoch: 0,
                position: 0,
            },
            payload: Payload::new(&self.layout, region).unwrap(),
            keep: Some(Box::new(frame)),
            reply: Box::new(move |outcome| sender.send(outcome).unwrap()),
        };
        drive.append(append).unwrap();
        receiver
    }

    fn read(&self, drive: &Drive, block: u64, address: RecordAddress) -> Result<(), ReadError> {
        let layout = Shape::Layout(self.layout.clone());
        let stored = Shape::Stored(self.layout.stored_length());
        for (shape, by_stripe) in [(layout.clone(), true), (layout, false), (stored, false)] {
            let frame = Arc::new(self.arena.allocate(self.layout.stored_length()).unwrap());
            let (sender, receiver) = channel();
            let record = RecordRead {
                address,
                sequence_hash: hash(block),
                shard: 0,
                namespace: NAMESPACE,
                shape,
                frame: Arc::clone(&frame),
                by_stripe,
                deadline: None,
                sink: Arc::new(Sink(sender)),
            };
            drive.read(vec![record]).unwrap();
            receiver.recv().unwrap()?;
            let payload = frame.region().slice(HEADER_SIZE, self.layout.payload_length);
            let (found, expected) = (payload.bytes(), self.content(block));
            for stripe in self.layout.stripes.iter() {
                let start = usize::try_from(stripe.offset).unwrap();
                let range = start..start + usize::try_from(stripe.length).unwrap();
                assert_eq!(found[range.clone()], expected[range]);
            }
        }
        Ok(())
    }

    fn segment_file(&self, id: u32) -> PathBuf {
        self.parent.path().join("store").join(files::name(SegmentId(id)))
    }
}

fn address(head: SegmentHead, entry: &Entry) -> RecordAddress {
    RecordAddress { segment: head.id, generation: head.generation, offset: entry.offset }
}

fn block_of(entry: &Entry) -> u64 {
    u64::from_le_bytes(*entry.sequence_hash.first_chunk().unwrap())
}

#[test]
fn records_of_any_size_come_back_also_after_a_restart() {
    for (io_engine, name) in [(IoEngine::Uring, "uring"), (IoEngine::Blocking, "blocking")] {
        for layout in [(1, 1000), (4, 4096), (61, 12_345), (8, 300_000)] {
            let layout = Layout::new(layout.0, layout.1).unwrap();
            let fixture = Fixture::new(io_engine, 4, layout);
            let (drive, found) = fixture.start();
            assert!(found.is_empty());
            assert_eq!(drive.stats().io_engine, name);
            let stored: Vec<_> =
                (0..12).map(|block| fixture.append(&drive, block).unwrap()).collect();
            for (block, stored) in (0..).zip(&stored) {
                fixture.read(&drive, block, stored.address).unwrap();
            }
            drive.stop();
            drop(drive);
            let (drive, found) = fixture.start();
            assert_eq!(found.len(), stored.len());
            for (head, entry) in found {
                fixture.read(&drive, block_of(&entry), address(head, &entry)).unwrap();
            }
            // The open segment goes on where it ended.
            let next = fixture.append(&drive, 12).unwrap();
            fixture.read(&drive, 12, next.address).unwrap();
            assert!(stored.iter().all(|before| before.address != next.address));
        }
    }
}

#[test]
fn full_segments_are_sealed_and_recovered_from_their_footers() {
    let fixture = Fixture::new(IoEngine::Auto, 4, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    let blocks = 40;
    for block in 0..blocks {
        fixture.append(&drive, block).unwrap();
    }
    drive.stop();
    drop(drive);
    let opening = fixture.open();
    let sealed = |head: &&SegmentHead| opening.scan(head.id, 0).unwrap().sealed;
    assert_eq!(opening.segments().iter().filter(sealed).count(), 2);
    // Without its trailer a segment says the same, record by record.
    let before = opening.scan(SegmentId(0), 0).unwrap();
    drop(opening);
    let file = File::options().write(true).open(fixture.segment_file(0)).unwrap();
    file.write_all_at(&[0xff; 4096], SEGMENT - 4096).unwrap();
    let after = fixture.open().scan(SegmentId(0), 0).unwrap();
    assert!(before.sealed && !after.sealed);
    assert_eq!((after.entries, after.end), (before.entries, before.end));
}

#[test]
fn records_queued_across_the_end_of_a_segment_all_arrive() {
    for io_engine in [IoEngine::Uring, IoEngine::Blocking] {
        // 33 records and a footer fill a segment, and the queue goes on behind it.
        let fixture = Fixture::new(io_engine, 4, Layout::new(1, 500_000).unwrap());
        let (drive, _) = fixture.start();
        let sent: Vec<_> = (0..100).map(|block| fixture.send(&drive, block)).collect();
        for (block, answer) in (0..).zip(sent) {
            let stored = answer.recv_timeout(Duration::from_mins(1)).unwrap().unwrap();
            fixture.read(&drive, block, stored.address).unwrap();
        }
        drive.stop();
    }
}

#[test]
fn a_store_without_a_free_segment_refuses_and_goes_on_after_a_release() {
    let fixture = Fixture::new(IoEngine::Auto, 2, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    let mut stored = Vec::new();
    let refused = loop {
        match fixture.append(&drive, stored.len() as u64) {
            Ok(place) => stored.push(place),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, AppendError::NoSpace);
    let first = stored[0].address;
    assert_eq!(drive.segments()[0].state, SegmentState::Sealed);
    drive.release(first.segment).unwrap();
    let again = fixture.append(&drive, 1000).unwrap();
    assert_eq!(again.address.segment, first.segment);
    assert!(again.address.generation > first.generation);
    fixture.read(&drive, 1000, again.address).unwrap();
    // What was there before is not served under its old address.
    assert!(fixture.read(&drive, 0, first).unwrap_err().is_damage());
}

#[test]
fn flipped_bits_other_blocks_and_swapped_files_are_never_served() {
    let fixture = Fixture::new(IoEngine::Auto, 4, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    let stored: Vec<_> = (0..20).map(|block| fixture.append(&drive, block).unwrap()).collect();
    let mut other = stored[3].address;
    other.offset = stored[4].address.offset;
    assert_eq!(fixture.read(&drive, 3, other), Err(ReadError::OtherBlock));
    drive.stop();
    drop(drive);
    let file = File::options().read(true).write(true).open(fixture.segment_file(0)).unwrap();
    let mut byte = [0];
    let inside = stored[5].address.offset + HEADER_SIZE + 700_001;
    file.read_exact_at(&mut byte, inside).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], inside).unwrap();
    let (drive, _) = fixture.start();
    let damaged = fixture.read(&drive, 5, stored[5].address);
    assert!(matches!(damaged, Err(ReadError::Checksum { stripe: 2, .. })), "{damaged:?}");
    fixture.read(&drive, 6, stored[6].address).unwrap();
    drive.stop();
    drop(drive);
    let (one, two) = (fixture.segment_file(0), fixture.segment_file(1));
    let aside = fixture.parent.path().join("aside");
    std::fs::rename(&one, &aside).unwrap();
    std::fs::rename(&two, &one).unwrap();
    std::fs::rename(&aside, &two).unwrap();
    let opening = fixture.open();
    let swapped = |problem: &&SegmentProblem| matches!(problem, SegmentProblem::Swapped { .. });
    assert_eq!(opening.problems().iter().filter(swapped).count(), 2);
    drop(opening);
    let (drive, found) = fixture.start();
    assert!(found.is_empty());
    assert!(fixture.read(&drive, 6, stored[6].address).unwrap_err().is_damage());
    let again = fixture.append(&drive, 7).unwrap();
    fixture.read(&drive, 7, again.address).unwrap();
}

#[test]
fn a_truncated_segment_is_named_and_loses_what_lay_behind_alone() {
    let fixture = Fixture::new(IoEngine::Auto, 4, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    let stored: Vec<_> = (0..10).map(|block| fixture.append(&drive, block).unwrap()).collect();
    drive.stop();
    drop(drive);
    let cut = stored[6].address.offset + 8192;
    File::options().write(true).open(fixture.segment_file(0)).unwrap().set_len(cut).unwrap();
    let opening = fixture.open();
    let expected = SegmentProblem::Truncated { id: SegmentId(0), found: cut };
    assert_eq!(opening.problems(), [expected]);
    drop(opening);
    let (drive, _) = fixture.start();
    fixture.read(&drive, 5, stored[5].address).unwrap();
    assert!(fixture.read(&drive, 6, stored[6].address).unwrap_err().is_damage());
    assert!(fixture.read(&drive, 9, stored[9].address).unwrap_err().is_damage());
}

#[test]
fn a_withdrawn_record_counts_no_more_and_hides_nothing() {
    let fixture = Fixture::new(IoEngine::Auto, 4, Layout::new(8, 131_072).unwrap());
    let (drive, _) = fixture.start();
    let stored: Vec<_> = (0..5).map(|block| fixture.append(&drive, block).unwrap()).collect();
    drive.stop();
    drop(drive);
    let opening = fixture.open();
    let scan = opening.scan(SegmentId(0), 0).unwrap();
    opening.read_record(SegmentId(0), &scan.entries[2]).unwrap();
    opening.withdraw_record(SegmentId(0), &scan.entries[2]).unwrap();
    let read = opening.read_record(SegmentId(0), &scan.entries[2]);
    assert_eq!(read, Err(ReadError::Withdrawn));
    let blocks: Vec<_> =
        opening.scan(SegmentId(0), 0).unwrap().entries.iter().map(block_of).collect();
    assert_eq!(blocks, [0, 1, 3, 4]);
    drop(opening);
    let (drive, _) = fixture.start();
    assert_eq!(fixture.read(&drive, 2, stored[2].address), Err(ReadError::Withdrawn));
}

#[test]
fn a_restart_writes_on_where_the_last_life_ended() {
    let fixture = Fixture::new(IoEngine::Auto, 3, Layout::new(8, 131_072).unwrap());
    assert_eq!(fixture.open().capacity_bytes(), 3 * SEGMENT);
    let (drive, _) = fixture.start();
    let mut last = fixture.append(&drive, 0).unwrap();
    for block in 1.. {
        last = fixture.append(&drive, block).unwrap();
        if last.address.segment == SegmentId(1) {
            break;
        }
    }
    drive.stop();
    let before = drive.segments();
    assert_eq!(before.iter().map(|it| it.state).collect::<Vec<_>>(), {
        use SegmentState::{Free, Open, Sealed};
        [Sealed, Open, Free]
    });
    drop(drive);
    let (drive, _) = fixture.start();
    assert_eq!(drive.segments(), before);
    let next = fixture.append(&drive, 1000).unwrap();
    let offset = last.address.offset + last.stored_length;
    assert_eq!(next.address, RecordAddress { offset, ..last.address });
}

#[test]
fn what_a_drive_may_come_back_from_is_told_from_what_it_is_asked_for_wrongly() {
    let path = || PathBuf::from("store");
    let errors = |errno: Errno| {
        let source = || io::Error::from(errno);
        [
            DirectoryError::Create { path: path(), source: source() }.into(),
            DirectoryError::Open { path: path(), source: source() }.into(),
            DirectoryError::Write { path: path(), source: source() }.into(),
            DirectoryError::Read { path: path(), source: source() }.into(),
            FilesError::Reserve { path: path(), bytes: 1, source: source() }.into(),
            OpenError::from(FilesError::Open { path: path(), source: source() }),
        ]
    };
    assert!(errors(Errno::IO).iter().all(OpenError::is_of_drive));
    assert!(!errors(Errno::MFILE).iter().any(OpenError::is_of_drive));
    let superblock = |source| OpenError::from(DirectoryError::Superblock { path: path(), source });
    assert!(superblock(SuperblockError::Damaged).is_of_drive());
    assert!(OpenError::from(DirectoryError::NoStore { path: path() }).is_of_drive());
    assert!(OpenError::Unreadable { path: path() }.is_of_drive());
    for error in [
        DirectoryError::InUse { path: path(), holder: "another".into() }.into(),
        DirectoryError::Capacity { capacity: 1, segment: 2 }.into(),
        FilesError::DiskTooSmall { path: path(), capacity: 2, available: 1 }.into(),
        FilesError::NoDirect { path: path() }.into(),
        SegmentProblem::DamagedHead { id: SegmentId(0) }.into(),
        OpenError::Uring(Errno::IO.into()),
        OpenError::Thread(Errno::IO.into()),
    ] {
        assert!(!OpenError::is_of_drive(&error), "{error}");
    }
}

#[test]
fn a_capacity_larger_than_the_disk_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let config = DriveConfig {
        path: parent.path().join("store"),
        capacity_bytes: 1 << 56,
        segment_bytes: Some(1 << 40),
        io_engine: IoEngine::Auto,
        durability: Durability::Group,
    };
    let refused = Opening::open(&config).unwrap_err();
    assert!(matches!(refused, OpenError::Files(FilesError::DiskTooSmall { .. })), "{refused}");
}

#[test]
fn a_new_store_has_sixteen_segments_or_more_of_a_usual_size() {
    let (mib, gib) = (1 << 20, 1 << 30);
    for (capacity, segment) in [
        (1, 16 * mib),
        (256 * mib, 16 * mib),
        (gib, 64 * mib),
        (2 * gib - 1, 64 * mib),
        (16 * gib, gib),
        (1000 * gib, gib),
    ] {
        assert_eq!(opening::usual_segment_bytes(capacity), segment, "of {capacity} bytes");
    }
}
