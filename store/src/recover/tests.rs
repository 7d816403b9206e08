//! Proves, on segments in memory that note what is read of them, where recovery ends, what it
//! believes, and how little it reads.

use super::*;
use crate::format::Stripe;
use crate::segment::{encode_footer, record_max};
use std::sync::Mutex;

mod examine;
mod heads;

const SEGMENT: u64 = 4 << 20;
const STORE: [u8; 16] = [7; 16];
const HEAD: SegmentHead = SegmentHead { id: SegmentId(3), generation: Generation(5), birth: 9 };

/// A segment's bytes. `broken` ones cannot be read.
#[derive(Debug)]
struct Memory {
    bytes: Vec<u8>,
    broken: Range<u64>,
    reads: Mutex<Vec<Range<u64>>>,
}

impl Medium for Memory {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let range = offset..offset + bytes.len() as u64;
        self.reads.lock().unwrap().push(range.clone());
        if range.start < self.broken.end && self.broken.start < range.end {
            return Err(Errno::NODATA.into());
        }
        let source = self.bytes.get(as_index(range.start)..as_index(range.end));
        bytes.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        unreachable!("recovery writes nothing")
    }

    fn sync(&self) -> io::Result<()> {
        unreachable!("recovery writes nothing")
    }
}

fn as_index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// A header without its stripe, which recovery does not look at.
fn header(offset: u64, payload_length: u64) -> RecordHeader {
    let mut sequence_hash = [0; 32];
    sequence_hash[..8].copy_from_slice(&offset.to_le_bytes());
    RecordHeader {
        store_id: STORE,
        address: RecordAddress { segment: HEAD.id, generation: HEAD.generation, offset },
        key_scheme: 1,
        sequence_hash,
        shard: 0,
        parent: [1; 32],
        namespace: [2; 32],
        epoch: 0,
        position: 0,
        payload_length,
        withdrawn: false,
        stripes: vec![Stripe { offset: 0, length: payload_length, checksum: 0 }],
    }
}

impl Memory {
    fn new(bytes: u64) -> Self {
        Self { bytes: vec![0; as_index(bytes)], broken: 0..0, reads: Mutex::default() }
    }

    /// With records of so many bytes each, headers alone.
    fn with_records(bytes: u64, payload_length: u64, count: usize) -> (Self, Vec<Entry>) {
        let (mut memory, mut entries, mut offset) = (Self::new(bytes), Vec::new(), RECORDS_START);
        for _ in 0..count {
            entries.push(memory.put_header(&header(offset, payload_length)));
            offset += crate::geometry::stored_length(payload_length);
        }
        (memory, entries)
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes[as_index(offset)..][..bytes.len()].copy_from_slice(bytes);
    }

    fn put_header(&mut self, header: &RecordHeader) -> Entry {
        let bytes = header.encode().unwrap();
        self.put(header.address.offset, &bytes[..]);
        entry_of(header, RecordHeader::checksum_of(&bytes))
    }

    /// Seals it with a footer of `entries` at `footer_offset`.
    fn seal(&mut self, footer_offset: u64, entries: &[Entry]) -> Trailer {
        let mut footer = vec![0; as_index(footer_length(entries.len()))];
        let footer_checksum = encode_footer(entries, &mut footer);
        self.put(footer_offset, &footer);
        let trailer = Trailer {
            id: HEAD.id,
            generation: HEAD.generation,
            footer_offset,
            entries: entries.len() as u64,
            footer_checksum,
        };
        self.put_trailer(&trailer);
        trailer
    }

    fn put_trailer(&mut self, trailer: &Trailer) {
        self.put(self.bytes.len() as u64 - TRAILER_SIZE, &trailer.encode(STORE)[..]);
    }

    fn segment(&self) -> SegmentFile<'_> {
        let bytes = self.bytes.len() as u64;
        let (segment_bytes, available) = (bytes, bytes);
        SegmentFile { file: self, head: HEAD, store_id: STORE, segment_bytes, available }
    }

    fn reads(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.reads.lock().unwrap())
    }
}

fn end_of(entries: &[Entry]) -> u64 {
    entries.last().map_or(RECORDS_START, |last| last.offset + last.stored_length())
}

#[test]
fn a_segment_that_was_never_used_is_not_read() {
    let (memory, _) = Memory::with_records(SEGMENT, 4096, 2);
    let unused = SegmentHead { generation: Generation(0), ..HEAD };
    let segment = SegmentFile { head: unused, ..memory.segment() };
    let nothing = Scan { entries: vec![], end: RECORDS_START, sealed: false };
    assert_eq!(scan(&segment, RECORDS_START).unwrap(), nothing);
    assert_eq!(memory.reads(), []);
}

#[test]
fn records_end_before_the_first_header_that_is_not_the_segments_own() {
    let change = |change: fn(&mut RecordHeader)| {
        let (mut memory, entries) = Memory::with_records(SEGMENT, 5000, 2);
        let mut third = header(end_of(&entries), 5000);
        change(&mut third);
        third.stripes[0].length = third.payload_length;
        memory.put(end_of(&entries), &third.encode().unwrap()[..]);
        let found = walk(&memory.segment(), RECORDS_START).unwrap();
        assert_eq!(&found.entries[..2], entries);
        (found.entries.len(), found.end - end_of(&entries))
    };
    assert_eq!(change(|_| {}), (3, 12_288));
    assert_eq!(change(|header| header.withdrawn = true), (2, 12_288));
    assert_eq!(change(|header| header.store_id[0] += 1), (2, 0));
    assert_eq!(change(|header| header.address.segment.0 += 1), (2, 0));
    assert_eq!(change(|header| header.address.generation.0 -= 1), (2, 0));
    assert_eq!(change(|header| header.address.offset += PAGE_SIZE), (2, 0));
    // Two records of 12 KiB behind the head, and a header of its own: up to the end, and no further.
    let rest = SEGMENT - RECORDS_START - 2 * 12_288;
    let (mut memory, entries) = Memory::with_records(SEGMENT, 5000, 2);
    for (payload, count) in [
        (rest - HEADER_SIZE, 3),
        (rest - HEADER_SIZE + 1, 2),
        (u64::MAX / PAGE_SIZE * PAGE_SIZE, 2),
    ] {
        memory.put_header(&header(end_of(&entries), payload));
        let found = walk(&memory.segment(), RECORDS_START).unwrap();
        assert_eq!((found.entries.len(), found.end == SEGMENT), (count, count == 3), "{payload}");
    }
}

#[test]
fn small_records_are_read_along_and_large_ones_skipped_over() {
    let (start, small) = (RECORDS_START, SMALL_RECORD - HEADER_SIZE);
    let window = |first: u64| first..SEGMENT.min(first + WINDOW);
    let page = |index: u64| start + index * SMALL_RECORD..start + index * SMALL_RECORD + PAGE_SIZE;
    // Four of these fill a window; behind the first one, each header is read alone.
    let mut skipped = vec![window(start)];
    skipped.extend((4..=10).map(page));
    // 16 records of one page less take four windows, of which the last one ends with the segment.
    let each = SMALL_RECORD - PAGE_SIZE;
    let along = [0, 5, 10, 15].map(|index| window(start + index * each)).to_vec();
    for (payload, count, reads) in [(small, 10, skipped), (small - PAGE_SIZE, 16, along)] {
        let (memory, entries) = Memory::with_records(SEGMENT, payload, count);
        let found = walk(&memory.segment(), RECORDS_START).unwrap();
        assert_eq!((&found.entries, found.end), (&entries, end_of(&entries)));
        assert_eq!(memory.reads(), reads);
    }
}

#[test]
fn no_page_behind_the_end_of_a_segment_is_looked_at_though_its_file_goes_on() {
    let memory = Memory::new(SEGMENT);
    let available = 4 * PAGE_SIZE;
    let segment = SegmentFile { available, ..memory.segment() };
    let mut window = Window::new(&segment).unwrap();
    for ahead in [true, false] {
        assert!(window.page(3 * PAGE_SIZE, ahead).unwrap().is_some());
        assert!(window.page(available, ahead).unwrap().is_none());
        assert!(window.page(u64::MAX - PAGE_SIZE + 1, ahead).unwrap().is_none());
    }
    let once = 3 * PAGE_SIZE..available;
    assert_eq!(memory.reads(), [once]);
}

#[test]
fn a_page_is_what_stands_at_its_offset_whatever_was_read_before() {
    let mut memory = Memory::new(SEGMENT);
    for page in 0..SEGMENT / PAGE_SIZE {
        memory.put(page * PAGE_SIZE, &page.to_le_bytes());
    }
    let segment = memory.segment();
    let mut window = Window::new(&segment).unwrap();
    for page in [3, 4, 258, 259, 1023, 3, 2] {
        let bytes = window.page(page * PAGE_SIZE, true).unwrap().unwrap();
        assert_eq!(bytes.first_chunk(), Some(&page.to_le_bytes()), "page {page}");
    }
    let mebibyte = |page: u64| page * PAGE_SIZE..page * PAGE_SIZE + WINDOW;
    let last = SEGMENT - PAGE_SIZE..SEGMENT;
    assert_eq!(memory.reads(), [mebibyte(3), mebibyte(259), last, mebibyte(3), mebibyte(2)]);
}

#[test]
fn a_bad_page_in_a_payload_costs_no_record_and_is_come_upon_once() {
    // 64 of them to a window.
    let (mut memory, entries) = Memory::with_records(SEGMENT, 3 * PAGE_SIZE, 200);
    let bad = entries[20].offset + HEADER_SIZE;
    memory.broken = bad..bad + PAGE_SIZE;
    let found = walk(&memory.segment(), RECORDS_START).unwrap();
    assert_eq!(found.entries, entries);
    let reads = memory.reads();
    assert_eq!(reads.iter().filter(|read| read.contains(&bad)).count(), 1);
    // A window fails, its headers are read one by one, and what is behind it in windows again.
    assert_eq!(reads.len(), 1 + 64 + 3);
}

#[test]
fn a_segment_that_cannot_be_read_is_an_error_of_its_own() {
    let (mut memory, _) = Memory::with_records(SEGMENT, 4096, 2);
    memory.broken = RECORDS_START..RECORDS_START + 1;
    let error = walk(&memory.segment(), RECORDS_START).unwrap_err();
    assert!(matches!(error, ScanError::Read { segment, .. } if segment == HEAD.id), "{error}");
}

#[test]
fn a_sealed_segment_is_recovered_from_its_footer_alone() {
    let (mut memory, entries) = Memory::with_records(SEGMENT, 4096, 30);
    let end = end_of(&entries);
    memory.seal(end, &entries);
    let found = scan(&memory.segment(), RECORDS_START).unwrap();
    assert_eq!(found, Scan { entries: entries.clone(), end, sealed: true });
    let trailer = SEGMENT - TRAILER_SIZE..SEGMENT;
    assert_eq!(memory.reads(), [trailer, end..end + footer_length(30)]);
    // From some record on, itself included.
    let found = scan(&memory.segment(), entries[12].offset).unwrap();
    assert_eq!(found.entries, entries[12..]);
    // Also one whose records were all withdrawn.
    memory.seal(end, &[]);
    let nothing = Scan { entries: vec![], end, sealed: true };
    assert_eq!(scan(&memory.segment(), RECORDS_START).unwrap(), nothing);
}

fn kind(memory: &Memory) -> &'static str {
    match footer(&memory.segment()) {
        Footer::Absent => "absent",
        Footer::Whole(_) => "whole",
        Footer::Damaged => "damaged",
    }
}

#[test]
fn a_footer_is_believed_if_it_is_of_this_use_whole_and_in_its_place() {
    let (mut memory, entries) = Memory::with_records(SEGMENT, 4096, 3);
    assert_eq!(kind(&memory), "absent");
    let whole = memory.seal(end_of(&entries), &entries);
    assert_eq!(kind(&memory), "whole");
    let mut with = |change: fn(&mut Trailer)| {
        let mut trailer = whole;
        change(&mut trailer);
        memory.put_trailer(&trailer);
        kind(&memory)
    };
    assert_eq!(with(|trailer| trailer.generation.0 -= 1), "absent");
    assert_eq!(with(|trailer| trailer.id.0 += 1), "absent");
    assert_eq!(with(|trailer| trailer.footer_checksum ^= 1), "damaged");
    assert_eq!(with(|trailer| trailer.entries = u64::MAX), "damaged");
    assert_eq!(with(|trailer| trailer.footer_offset = u64::MAX / PAGE_SIZE * PAGE_SIZE), "damaged");
    // A footer of no records takes no bytes: only its place can be wrong.
    assert_eq!(with(|trailer| trailer.entries = 0), "whole");
    let empty_at = |memory: &mut Memory, offset| {
        memory.put_trailer(&Trailer { entries: 0, footer_offset: offset, ..whole });
        kind(memory)
    };
    let last = SEGMENT - TRAILER_SIZE;
    assert_eq!(empty_at(&mut memory, last), "whole");
    assert_eq!(empty_at(&mut memory, SEGMENT), "damaged", "that is behind the trailer");
    assert_eq!(empty_at(&mut memory, RECORDS_START + 1), "damaged", "no record ends there");

    memory.put_trailer(&whole);
    memory.bytes[as_index(last) + 100] ^= 1;
    assert_eq!(kind(&memory), "damaged");
    memory.put_trailer(&whole);
    memory.broken = last..SEGMENT;
    assert_eq!(kind(&memory), "damaged");
    // What was cut off is told of the segment as a whole.
    let cut = SegmentFile { available: last, ..memory.segment() };
    assert!(matches!(footer(&cut), Footer::Absent));
}

#[test]
fn a_footer_has_as_many_entries_as_fit_a_frame_and_no_more() {
    let entry = entry_of(&header(RECORDS_START, 4096), 0);
    let mut memory = Memory::new(32 << 20);
    memory.seal(RECORDS_START, &vec![entry.clone(); ENTRIES_MAX]);
    assert_eq!(kind(&memory), "whole");
    memory.seal(RECORDS_START, &vec![entry; ENTRIES_MAX + 1]);
    assert_eq!(kind(&memory), "damaged");
}

fn wanted(entry: &Entry) -> Wanted {
    Wanted {
        store_id: STORE,
        address: RecordAddress {
            segment: HEAD.id,
            generation: HEAD.generation,
            offset: entry.offset,
        },
        sequence_hash: entry.sequence_hash,
        shard: entry.shard,
        namespace: entry.namespace,
    }
}

#[test]
fn a_record_is_read_whole_or_not_at_all() {
    let mut memory = Memory::new(SEGMENT);
    // The longest one that a segment holds, of two stripes.
    let payload_length = record_max(SEGMENT) - HEADER_SIZE;
    let mut header = header(RECORDS_START, payload_length);
    let half = payload_length / 2 / PAGE_SIZE * PAGE_SIZE;
    header.stripes = [(0, half), (half, payload_length - half)]
        .map(|(offset, length)| Stripe { offset, length, checksum: 0 })
        .into();
    for (stripe, fill) in header.stripes.iter_mut().zip(1..) {
        let bytes = vec![fill; as_index(stripe.length)];
        stripe.checksum = checksum(&bytes);
        memory.put(RECORDS_START + HEADER_SIZE + stripe.offset, &bytes);
    }
    let entry = memory.put_header(&header);
    let end = end_of(std::slice::from_ref(&entry));
    let of = |available: u64, memory: &Memory| {
        let segment = SegmentFile { available, ..memory.segment() };
        read_record(&segment, &wanted(&entry), &entry)
    };
    assert_eq!(of(end, &memory), Ok(header.clone()));
    let whole = RECORDS_START..end;
    assert_eq!(memory.reads(), [whole]);
    // Though the file may go on, what is not all in it is no record.
    assert_eq!(of(end - PAGE_SIZE, &memory), Err(ReadError::Truncated));
    assert_eq!(memory.reads(), []);

    // The index tells another length than the header: the header is shown all the same.
    let shorter = Entry { payload_length: payload_length - 1, ..entry.clone() };
    let inspected = inspect_record(&memory.segment(), &wanted(&entry), &shorter);
    assert_eq!(inspected.verdict, Err(ReadError::Layout));
    assert_eq!((inspected.header, inspected.stripes), (Some(header.clone()), vec![]));

    memory.bytes[as_index(RECORDS_START + HEADER_SIZE + half)] ^= 1;
    let inspected = inspect_record(&memory.segment(), &wanted(&entry), &entry);
    assert_eq!((inspected.header, inspected.stripes), (Some(header), vec![true, false]));
    assert!(matches!(inspected.verdict, Err(ReadError::Checksum { stripe: 1, .. })));

    memory.broken = end - 1..end;
    assert_eq!(of(end, &memory), Err(ReadError::Io(Errno::NODATA)));
}
