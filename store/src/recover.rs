//! What a directory holds, read from the disk alone: heads, footers, and where a segment has no
//! footer, its records one after the other.

use crate::arena::{ArenaError, Mapping, Region};
use crate::check::{self, ReadError, Wanted};
use crate::device::Medium;
use crate::engine::entry_of;
use crate::format::{HeaderBytes, RecordHeader, checksum};
use crate::geometry::{
    Generation, HEADER_SIZE, PAGE_SIZE, RECORDS_START, RecordAddress, SegmentId, TRAILER_SIZE,
};
use crate::segment::{
    ENTRIES_MAX, Entry, HeadPage, SegmentHead, Trailer, decode_footer, footer_length,
};
use rustix::io::Errno;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

mod examine;

pub use examine::{Damage, Examined};
pub(crate) use examine::{examine, has_damaged_head, last_generation};

/// Read at once while records are small.
const WINDOW: u64 = 1 << 20;
/// Records of this size and above are skipped over rather than read along.
const SMALL_RECORD: u64 = 256 << 10;

/// What recovery found in a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    pub entries: Vec<Entry>,
    /// End of the last record.
    pub end: u64,
    pub sealed: bool,
}

/// A segment that could not be looked through. Its blocks are misses.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ScanError {
    #[error("read segment {}", segment.0)]
    Read { segment: SegmentId, source: io::Error },
    #[error("take memory to read segment {}", segment.0)]
    Memory { segment: SegmentId, source: ArenaError },
}

/// What is wrong with a segment as a whole.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SegmentProblem {
    #[error("segment {} was cut to {found} bytes: what lay behind is lost", id.0)]
    Truncated { id: SegmentId, found: u64 },
    #[error("file of segment {} holds segment {}: the files were swapped, its blocks are lost", id.0, found.0)]
    Swapped { id: SegmentId, found: SegmentId },
    #[error("file of segment {} belongs to another store: its blocks are lost", id.0)]
    OtherStore { id: SegmentId },
    #[error("segment {} has a damaged head: its blocks are lost", id.0)]
    DamagedHead { id: SegmentId },
    #[error("segment {} has format version {version}, newer than this build reads", id.0)]
    NewerVersion { id: SegmentId, version: u32 },
    #[error("segment {} cannot be read: its blocks are lost", id.0)]
    Unreadable { id: SegmentId },
}

impl SegmentProblem {
    /// The kind of a file that was cut; it is made whole when it is opened for writing.
    pub const TRUNCATED: &str = "segment cut short";

    pub fn segment(&self) -> SegmentId {
        match *self {
            Self::Truncated { id, .. }
            | Self::Swapped { id, .. }
            | Self::OtherStore { id }
            | Self::DamagedHead { id }
            | Self::NewerVersion { id, .. }
            | Self::Unreadable { id } => id,
        }
    }

    /// Whether neither copy of the head can be believed.
    pub(crate) fn is_of_head(&self) -> bool {
        matches!(self, Self::Swapped { .. } | Self::OtherStore { .. } | Self::DamagedHead { .. })
    }

    /// What reports count it as.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Truncated { .. } => Self::TRUNCATED,
            Self::Swapped { .. } => "segment swapped",
            Self::OtherStore { .. } => "segment of another store",
            Self::DamagedHead { .. } => "head",
            Self::NewerVersion { .. } => "newer version",
            Self::Unreadable { .. } => "unreadable segment",
        }
    }
}

/// A segment as it is looked through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentFile<'a> {
    pub(crate) file: &'a dyn Medium,
    pub(crate) head: SegmentHead,
    pub(crate) store_id: [u8; 16],
    pub(crate) segment_bytes: u64,
    /// Whole pages that the file has: fewer than `segment_bytes` where it was cut.
    pub(crate) available: u64,
}

impl SegmentFile<'_> {
    pub(crate) fn address(&self, offset: u64) -> RecordAddress {
        RecordAddress { segment: self.head.id, generation: self.head.generation, offset }
    }

    /// Whether `header` was written for byte `offset` of this segment, in its present use.
    pub(crate) fn owns(&self, header: &RecordHeader, offset: u64) -> bool {
        header.store_id == self.store_id && header.address == self.address(offset)
    }
}

/// The head of a segment; where there is none to trust, an unused one and the reason.
pub(crate) fn head(
    file: &dyn Medium,
    id: SegmentId,
    store_id: [u8; 16],
) -> (SegmentHead, Option<SegmentProblem>) {
    let unused = SegmentHead { id, generation: Generation(0), birth: 0 };
    let Ok(region) = read_pages(file, 0, RECORDS_START) else {
        return (unused, Some(SegmentProblem::Unreadable { id }));
    };
    let (pages, _) = region.bytes().as_chunks::<4096>();
    let (mut heads, mut problem) = (Vec::new(), None);
    for page in pages {
        match SegmentHead::decode(page, store_id) {
            HeadPage::Empty => {}
            HeadPage::Head(head) if head.id == id => heads.push(head),
            HeadPage::Head(head) => {
                problem = Some(SegmentProblem::Swapped { id, found: head.id });
            }
            HeadPage::OtherStore => problem = Some(SegmentProblem::OtherStore { id }),
            // Whatever the other copy is: the newer build has begun to change the segment.
            HeadPage::NewerVersion(version) => {
                return (unused, Some(SegmentProblem::NewerVersion { id, version }));
            }
            HeadPage::Damaged => {
                problem = problem.or(Some(SegmentProblem::DamagedHead { id }));
            }
        }
    }
    // A torn bump leaves the copy before, and so does another segment's head that was written
    // here: it stands. Of a file in a wrong place neither copy is this segment's.
    let newest = heads.into_iter().max_by_key(|head| head.generation);
    newest.map_or((unused, problem), |head| (head, None))
}

/// The records of a segment from byte `from` on.
pub(crate) fn scan(segment: &SegmentFile<'_>, from: u64) -> Result<Scan, ScanError> {
    if segment.head.generation.0 == 0 {
        return Ok(Scan { end: RECORDS_START, ..Scan::default() });
    }
    match footer(segment) {
        Footer::Whole(mut sealed) => {
            sealed.entries.retain(|entry| entry.offset >= from);
            Ok(sealed)
        }
        Footer::Absent | Footer::Damaged => walk(segment, from),
    }
}

/// The records of a segment from byte `from` on, from header to header.
pub(crate) fn walk(segment: &SegmentFile<'_>, from: u64) -> Result<Scan, ScanError> {
    let mut window = Window::new(segment)?;
    let mut scan = Scan { entries: Vec::new(), end: from, sealed: false };
    let mut last_length = 0;
    while let Some(page) = window.page(scan.end, last_length < SMALL_RECORD)? {
        let Ok(header) = RecordHeader::decode(page) else { break };
        let length = header.stored_length();
        let end = end_within(scan.end, length, segment.segment_bytes);
        let Some(end) = end.filter(|_| segment.owns(&header, scan.end)) else { break };
        if !header.withdrawn {
            scan.entries.push(entry_of(&header, RecordHeader::checksum_of(page)));
        }
        (scan.end, last_length) = (end, length);
    }
    Ok(scan)
}

/// Where `length` bytes at `offset` end, unless that is behind `limit`.
fn end_within(offset: u64, length: u64, limit: u64) -> Option<u64> {
    offset.checked_add(length).filter(|&end| end <= limit)
}

/// What stands at the end of a segment.
pub(crate) enum Footer {
    /// None of the present use: the segment is not sealed.
    Absent,
    /// The records, and where they end.
    Whole(Scan),
    /// One was written and is not what was written any more.
    Damaged,
}

pub(crate) fn footer(segment: &SegmentFile<'_>) -> Footer {
    let SegmentFile { file, head, store_id, segment_bytes, available } = *segment;
    if available < segment_bytes {
        return Footer::Absent;
    }
    let Ok(page) = read_pages(file, segment_bytes - TRAILER_SIZE, TRAILER_SIZE) else {
        return Footer::Damaged;
    };
    let page = page.bytes().first_chunk().expect("a page was read");
    match Trailer::decode(page, store_id) {
        Some(trailer) if (trailer.id, trailer.generation) == (head.id, head.generation) => {
            sealed(segment, &trailer).map_or(Footer::Damaged, Footer::Whole)
        }
        None if Trailer::is_damaged(page) => Footer::Damaged,
        Some(_) | None => Footer::Absent,
    }
}

fn sealed(segment: &SegmentFile<'_>, trailer: &Trailer) -> Option<Scan> {
    let count = usize::try_from(trailer.entries).ok().filter(|&count| count <= ENTRIES_MAX)?;
    let length = footer_length(count);
    end_within(trailer.footer_offset, length, segment.segment_bytes - TRAILER_SIZE)?;
    if !trailer.footer_offset.is_multiple_of(PAGE_SIZE) {
        return None;
    }
    if length == 0 {
        return Some(Scan { end: trailer.footer_offset, sealed: true, ..Scan::default() });
    }
    let footer = read_pages(segment.file, trailer.footer_offset, length).ok()?;
    if checksum(footer.bytes()) != trailer.footer_checksum {
        return None;
    }
    let entries = decode_footer(footer.bytes(), count);
    Some(Scan { entries, end: trailer.footer_offset, sealed: true })
}

/// What a record says of itself, and where it is wrong.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// `None` where there is none to trust.
    pub header: Option<RecordHeader>,
    /// Of each stripe of the header, whether its bytes are those that were written.
    pub stripes: Vec<bool>,
    /// What a read of it says.
    pub verdict: Result<(), ReadError>,
}

/// Reads a whole record and checks all of it, whatever it meets.
pub(crate) fn inspect_record(
    segment: &SegmentFile<'_>,
    wanted: &Wanted,
    entry: &Entry,
) -> Inspected {
    let none = |error| Inspected { header: None, stripes: Vec::new(), verdict: Err(error) };
    let region = match record_pages(segment, entry) {
        Ok(region) => region,
        Err(error) => return none(error),
    };
    let header = match check::header(region.bytes(), wanted) {
        Ok(header) => header,
        Err(error) => return none(error),
    };
    if header.payload_length != entry.payload_length {
        return Inspected { header: Some(header), ..none(ReadError::Layout) };
    }
    let checks = header.stripes.iter().enumerate().map(|(index, stripe)| {
        let bytes = region.slice(HEADER_SIZE + stripe.offset, stripe.length);
        check::stripe(&header, index, bytes.bytes())
    });
    let checks: Vec<_> = checks.collect();
    let stripes = checks.iter().map(Result::is_ok).collect();
    Inspected { header: Some(header), stripes, verdict: checks.into_iter().collect() }
}

/// Reads and checks a whole record; `Ok` is its header.
pub(crate) fn read_record(
    segment: &SegmentFile<'_>,
    wanted: &Wanted,
    entry: &Entry,
) -> Result<RecordHeader, ReadError> {
    let Inspected { header, verdict, .. } = inspect_record(segment, wanted, entry);
    verdict.map(|()| header.expect("a record without a header is no good"))
}

fn record_pages(segment: &SegmentFile<'_>, entry: &Entry) -> Result<Region, ReadError> {
    let length = entry.stored_length();
    end_within(entry.offset, length, segment.available).ok_or(ReadError::Truncated)?;
    read_pages(segment.file, entry.offset, length)
        .map_err(|error| ReadError::Io(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

pub(crate) fn read_pages(file: &dyn Medium, offset: u64, length: u64) -> io::Result<Region> {
    let memory = Mapping::create("refrain-scan", length).map_err(io::Error::other)?;
    let region = memory.region(0, length).expect("the whole mapping");
    region.fill_with(|bytes| file.read_exact_at(bytes, offset))?;
    Ok(region)
}

/// Pages of a segment, read in large pieces where records are small.
pub(crate) struct Window<'a> {
    segment: &'a SegmentFile<'a>,
    memory: Arc<Mapping>,
    /// Bytes of the segment that are in memory: whole pages.
    held: Range<u64>,
    /// What could not be read in one piece.
    broken: Range<u64>,
    page: Box<HeaderBytes>,
}

impl<'a> Window<'a> {
    pub(crate) fn new(segment: &'a SegmentFile<'a>) -> Result<Self, ScanError> {
        let memory = Mapping::create("refrain-scan", WINDOW)
            .map_err(|source| ScanError::Memory { segment: segment.head.id, source })?;
        Ok(Self { segment, memory, held: 0..0, broken: 0..0, page: Box::new([0; 4096]) })
    }

    /// The page at `offset`, with `ahead` what follows is read along; `None` where the file ends.
    pub(crate) fn page(
        &mut self,
        offset: u64,
        ahead: bool,
    ) -> Result<Option<&HeaderBytes>, ScanError> {
        let SegmentFile { head, available, .. } = *self.segment;
        if end_within(offset, PAGE_SIZE, available).is_none() {
            return Ok(None);
        }
        if !self.held.contains(&offset) && ahead && !self.broken.contains(&offset) {
            let window = offset..offset + WINDOW.min(available - offset);
            if self.hold(window.clone()).is_err() {
                // One bad page among those that are read along is no matter to the others.
                self.broken = window;
            }
        }
        if !self.held.contains(&offset) {
            self.hold(offset..offset + PAGE_SIZE)
                .map_err(|source| ScanError::Read { segment: head.id, source })?;
        }
        let region = self.memory.region(offset - self.held.start, PAGE_SIZE);
        self.page.copy_from_slice(region.expect("within a window").bytes());
        Ok(Some(&self.page))
    }

    fn hold(&mut self, wanted: Range<u64>) -> io::Result<()> {
        self.held = 0..0;
        let region = self.memory.region(0, wanted.end - wanted.start);
        let read = |bytes: &mut [u8]| self.segment.file.read_exact_at(bytes, wanted.start);
        region.expect("at most a window").fill_with(read)?;
        self.held = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
