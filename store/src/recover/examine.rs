//! Looks a segment through for damage that a start passes over: it would cost blocks, or time.
//!
//! A page is the unit in which a write may be torn, so that a page with the right fields and a
//! wrong checksum is no trace of a crash: it has rotted.

use super::{Footer, Scan, ScanError, SegmentFile, Window, footer, read_pages, walk};
use crate::device::Medium;
use crate::format::{HeaderBytes, MAGIC, RecordHeader};
use crate::geometry::{Generation, PAGE_SIZE, RECORDS_START, SegmentId, TRAILER_SIZE};
use crate::segment::{HeadPage, SegmentHead, Trailer};
use thiserror::Error;

/// What is damaged in a segment, apart from the records that a scan finds.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    #[error("segment {} has a damaged copy of its head: a start may miss its blocks", segment.0)]
    Head { segment: SegmentId },
    #[error("segment {} has a damaged footer: a start reads its records one by one", segment.0)]
    Footer { segment: SegmentId },
    #[error(
        "segment {} has a damaged record header at byte {offset}: a start misses what lies behind",
        segment.0
    )]
    Header {
        segment: SegmentId,
        offset: u64,
        /// Where the next whole header stands.
        next: Option<u64>,
    },
}

impl Damage {
    /// What reports count it as.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Head { .. } => "head",
            Self::Footer { .. } => "footer",
            Self::Header { .. } => "header",
        }
    }
}

/// A segment, looked through.
#[derive(Clone, Debug, Default)]
pub struct Examined {
    /// Its records; with those behind damaged headers, which a start does not find.
    pub scan: Scan,
    pub damage: Vec<Damage>,
}

pub(crate) fn examine(segment: &SegmentFile<'_>) -> Result<Examined, ScanError> {
    let id = segment.head.id;
    let mut found = Examined::default();
    if has_damaged_head(segment.file, id, segment.store_id) {
        found.damage.push(Damage::Head { segment: id });
    }
    found.scan.end = RECORDS_START;
    if segment.head.generation.0 == 0 {
        return Ok(found);
    }
    match footer(segment) {
        Footer::Whole(scan) => {
            found.scan = scan;
            return Ok(found);
        }
        Footer::Damaged => found.damage.push(Damage::Footer { segment: id }),
        Footer::Absent => {}
    }
    let mut from = RECORDS_START;
    loop {
        let scan = walk(segment, from)?;
        found.scan.entries.extend(scan.entries);
        found.scan.end = scan.end;
        let offset = scan.end;
        if !is_damaged_header(segment, offset)? {
            return Ok(found);
        }
        let next = next_header(segment, offset)?;
        found.damage.push(Damage::Header { segment: id, offset, next });
        match next {
            Some(next) => from = next,
            None => return Ok(found),
        }
    }
}

/// Whether one of the two copies of the head is neither this segment's nor unwritten.
pub(crate) fn has_damaged_head(file: &dyn Medium, id: SegmentId, store_id: [u8; 16]) -> bool {
    // What cannot be read is told of the segment as a whole.
    let Ok(region) = read_pages(file, 0, RECORDS_START) else { return false };
    let (pages, _) = region.bytes().as_chunks::<4096>();
    pages.iter().any(|page| match SegmentHead::decode(page, store_id) {
        HeadPage::Head(head) => head.id != id,
        HeadPage::Damaged | HeadPage::OtherStore => true,
        HeadPage::Empty | HeadPage::NewerVersion(_) => false,
    })
}

/// The last use of a segment that its first record and its trailer tell of: either may be a page of
/// an earlier one.
pub(crate) fn last_generation(segment: &SegmentFile<'_>) -> Option<Generation> {
    first_record_generation(segment).max(trailer_generation(segment))
}

fn first_record_generation(segment: &SegmentFile<'_>) -> Option<Generation> {
    let region = read_pages(segment.file, RECORDS_START, PAGE_SIZE).ok()?;
    let header = RecordHeader::decode(region.bytes().first_chunk()?).ok()?;
    let SegmentFile { mut head, .. } = *segment;
    head.generation = header.address.generation;
    SegmentFile { head, ..*segment }.owns(&header, RECORDS_START).then_some(head.generation)
}

fn trailer_generation(segment: &SegmentFile<'_>) -> Option<Generation> {
    let offset = segment.segment_bytes - TRAILER_SIZE;
    let region = read_pages(segment.file, offset, TRAILER_SIZE).ok()?;
    let trailer = Trailer::decode(region.bytes().first_chunk()?, segment.store_id)?;
    (trailer.id == segment.head.id).then_some(trailer.generation)
}

/// Whether the page at `offset` was a record header of this segment once.
fn is_damaged_header(segment: &SegmentFile<'_>, offset: u64) -> Result<bool, ScanError> {
    let mut window = Window::new(segment)?;
    let Some(page) = window.page(offset, false)? else { return Ok(false) };
    Ok(RecordHeader::decode(page).is_err() && resembles(page, segment, offset))
}

/// Whether most of what tells a header's place stands in `page`.
fn resembles(page: &HeaderBytes, segment: &SegmentFile<'_>, offset: u64) -> bool {
    let SegmentFile { head, store_id, .. } = *segment;
    let fields = [
        page[..8] == MAGIC,
        page[16..32] == store_id,
        page[32..40] == head.generation.0.to_le_bytes(),
        page[40..48] == offset.to_le_bytes(),
        // A segment number of zero says nothing beside a page of zeros.
        page[48..52] == head.id.0.to_le_bytes() && page[..8] != [0; 8],
    ];
    fields.into_iter().filter(|same| *same).count() >= 3
}

/// Where the first whole header of this segment stands from byte `from` on.
fn next_header(segment: &SegmentFile<'_>, from: u64) -> Result<Option<u64>, ScanError> {
    let mut window = Window::new(segment)?;
    let mut offset = from;
    while let Some(page) = window.page(offset, true)? {
        let header = RecordHeader::decode(page);
        if header.is_ok_and(|header| segment.owns(&header, offset)) {
            return Ok(Some(offset));
        }
        offset += PAGE_SIZE;
    }
    Ok(None)
}
