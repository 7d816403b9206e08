//! What a directory holds, read from the disk alone: heads, footers, and where a segment has no
//! footer, its records one after the other.

use crate::arena::{ArenaError, Mapping, Region};
use crate::check::{self, ReadError, Wanted};
use crate::engine::entry_of;
use crate::format::{HeaderBytes, RecordHeader, checksum};
use crate::geometry::{
    Generation, HEADER_SIZE, PAGE_SIZE, RECORDS_START, RecordAddress, SegmentId, TRAILER_SIZE,
};
use crate::segment::{Entry, HeadPage, SegmentHead, Trailer, decode_footer, footer_length};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use thiserror::Error;

/// Read at once while records are small.
const WINDOW: u64 = 1 << 20;
/// Records above this are skipped over rather than read along.
const SMALL_RECORD: u64 = 256 << 10;

const HEADER_BYTES: usize = size_of::<HeaderBytes>();

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

/// The head of a segment; where there is none to trust, an unused one and the reason.
pub(crate) fn head(
    file: &File,
    id: SegmentId,
    store_id: [u8; 16],
) -> (SegmentHead, Option<SegmentProblem>) {
    let unused = SegmentHead { id, generation: Generation(0), birth: 0 };
    let Ok(region) = read_pages(file, 0, RECORDS_START) else {
        return (unused, Some(SegmentProblem::Unreadable { id }));
    };
    let (pages, _) = region.bytes().as_chunks::<4096>();
    let copies: Vec<_> = pages.iter().map(|page| SegmentHead::decode(page, store_id)).collect();
    let mut best: Option<SegmentHead> = None;
    let mut problem = None;
    for copy in copies {
        match copy {
            HeadPage::Empty => {}
            HeadPage::Head(head) if head.id == id => {
                if best.is_none_or(|best| head.generation > best.generation) {
                    best = Some(head);
                }
            }
            HeadPage::Head(head) => {
                problem = Some(SegmentProblem::Swapped { id, found: head.id });
            }
            HeadPage::OtherStore => problem = Some(SegmentProblem::OtherStore { id }),
            HeadPage::NewerVersion(version) => {
                problem = Some(SegmentProblem::NewerVersion { id, version });
            }
            HeadPage::Damaged => {
                problem = problem.or(Some(SegmentProblem::DamagedHead { id }));
            }
        }
    }
    match (best, problem) {
        // A torn bump leaves the copy before, which stands.
        (Some(head), None | Some(SegmentProblem::DamagedHead { .. })) => (head, None),
        (_, problem) => (unused, problem),
    }
}

/// The records of a segment from byte `from` on.
pub(crate) fn scan(
    file: &File,
    head: SegmentHead,
    store_id: [u8; 16],
    segment_bytes: u64,
    from: u64,
) -> Result<Scan, ScanError> {
    if head.generation.0 == 0 {
        return Ok(Scan { end: RECORDS_START, ..Scan::default() });
    }
    if let Some(mut sealed) = from_footer(file, head, store_id, segment_bytes) {
        sealed.entries.retain(|entry| entry.offset >= from);
        return Ok(sealed);
    }
    let mut window = Window::new(file, head.id, segment_bytes)?;
    let mut scan = Scan { entries: Vec::new(), end: from, sealed: false };
    let mut last_length = 0;
    while scan.end + HEADER_SIZE <= segment_bytes {
        let Some(page) = window.page(scan.end, last_length)? else { break };
        let Ok(header) = RecordHeader::decode(page) else { break };
        let address =
            RecordAddress { segment: head.id, generation: head.generation, offset: scan.end };
        let length = header.stored_length();
        let ours = header.store_id == store_id && header.address == address;
        if !ours || scan.end + length > segment_bytes {
            break;
        }
        if !header.withdrawn {
            scan.entries.push(entry_of(&header, RecordHeader::checksum_of(page)));
        }
        scan.end += length;
        last_length = length;
    }
    Ok(scan)
}

fn from_footer(
    file: &File,
    head: SegmentHead,
    store_id: [u8; 16],
    segment_bytes: u64,
) -> Option<Scan> {
    let page = read_pages(file, segment_bytes - TRAILER_SIZE, TRAILER_SIZE).ok()?;
    let trailer = Trailer::decode(page.bytes().first_chunk()?, store_id)?;
    if (trailer.id, trailer.generation) != (head.id, head.generation) {
        return None;
    }
    let count = usize::try_from(trailer.entries).ok()?;
    if count > crate::segment::ENTRIES_MAX {
        return None;
    }
    let length = footer_length(count);
    let inside = trailer.footer_offset.checked_add(length)? <= segment_bytes - TRAILER_SIZE;
    if !inside || !trailer.footer_offset.is_multiple_of(PAGE_SIZE) {
        return None;
    }
    let footer = if length == 0 {
        return Some(Scan { end: trailer.footer_offset, sealed: true, ..Scan::default() });
    } else {
        read_pages(file, trailer.footer_offset, length).ok()?
    };
    if checksum(footer.bytes()) != trailer.footer_checksum {
        return None;
    }
    let entries = decode_footer(footer.bytes(), count);
    Some(Scan { entries, end: trailer.footer_offset, sealed: true })
}

/// Reads and checks a whole record; `Ok` is its header.
pub(crate) fn read_record(
    file: &File,
    wanted: &Wanted,
    entry: &Entry,
) -> Result<RecordHeader, ReadError> {
    let region = read_pages(file, entry.offset, entry.stored_length())
        .map_err(|error| read_error(&error))?;
    let header = check::header(region.bytes(), wanted)?;
    if header.payload_length != entry.payload_length {
        return Err(ReadError::Layout);
    }
    for (index, stripe) in header.stripes.iter().enumerate() {
        let bytes = region.slice(HEADER_SIZE + stripe.offset, stripe.length);
        check::stripe(&header, index, bytes.bytes())?;
    }
    Ok(header)
}

fn read_error(error: &io::Error) -> ReadError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return ReadError::Truncated;
    }
    ReadError::Io(rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO))
}

fn read_pages(file: &File, offset: u64, length: u64) -> io::Result<Region> {
    let memory = Mapping::create("refrain-scan", length).map_err(io::Error::other)?;
    let region = memory.region(0, length).expect("the whole mapping");
    region.fill_with(|bytes| file.read_exact_at(bytes, offset))?;
    Ok(region)
}

/// Pages of a segment in growing order, read in large pieces where records are small.
struct Window<'a> {
    file: &'a File,
    segment: SegmentId,
    segment_bytes: u64,
    memory: Arc<Mapping>,
    offset: u64,
    length: u64,
    page: Box<HeaderBytes>,
}

impl<'a> Window<'a> {
    fn new(file: &'a File, segment: SegmentId, segment_bytes: u64) -> Result<Self, ScanError> {
        let memory = Mapping::create("refrain-scan", WINDOW)
            .map_err(|source| ScanError::Memory { segment, source })?;
        Ok(Self {
            file,
            segment,
            segment_bytes,
            memory,
            offset: 0,
            length: 0,
            page: Box::new([0; 4096]),
        })
    }

    /// The page at `offset`; `None` where the file ends.
    fn page(&mut self, offset: u64, last_length: u64) -> Result<Option<&HeaderBytes>, ScanError> {
        if offset < self.offset || offset + PAGE_SIZE > self.offset + self.length {
            let wanted = if last_length < SMALL_RECORD { WINDOW } else { PAGE_SIZE };
            let length = wanted.min(self.segment_bytes - offset);
            let region = self.memory.region(0, length).expect("at most a window");
            match region.fill_with(|bytes| self.file.read_exact_at(bytes, offset)) {
                Ok(()) => (self.offset, self.length) = (offset, length),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(source) => return Err(ScanError::Read { segment: self.segment, source }),
            }
        }
        let at = usize::try_from(offset - self.offset).expect("within a window");
        let region = self.memory.region(0, self.length).expect("at most a window");
        self.page.copy_from_slice(&region.bytes()[at..at + HEADER_BYTES]);
        Ok(Some(&self.page))
    }
}
