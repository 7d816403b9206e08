//! What a repair may do to a stopped store. Each step leaves a store that opens.

use super::{Entry, Mapping, Opening, SegmentHead, SegmentId, SegmentProblem, files, recover};
use crate::device::Medium;
use crate::format::{RecordHeader, Stripe};
use crate::geometry::{
    Generation, HEADER_SIZE, PAGE_SIZE, RECORDS_START, RecordAddress, TRAILER_SIZE,
};
use crate::segment::{Trailer, encode_footer, footer_length};
use rustix::fs::RenameFlags;
use std::io;

impl Opening {
    /// Puts files that were swapped back in their places, and gives a head to every segment whose
    /// own is damaged: that of its last use where that can be told, else that of an empty segment.
    pub fn repair_segments(&mut self) -> io::Result<()> {
        self.exchange_swapped()?;
        self.repair_heads()
    }

    fn exchange_swapped(&mut self) -> io::Result<()> {
        loop {
            let swapped = |id: SegmentId| {
                let found = self.problems.iter().find_map(|problem| {
                    let SegmentProblem::Swapped { id: at, found } = *problem else { return None };
                    (at == id).then_some(found)
                });
                found.filter(|found| self.segment_count() > found.0)
            };
            // A whole one without a generation has never been used.
            let is_blank = |id: SegmentId| {
                self.heads[id.index()].generation.0 == 0
                    && self.problems.iter().all(|problem| problem.segment() != id)
            };
            // Only against a file that is in a wrong place too, or has never been used: else there
            // are two of one segment.
            let exchange = (0..self.segment_count()).map(SegmentId).find_map(|id| {
                let found = swapped(id)?;
                (swapped(found).is_some() || is_blank(found)).then_some((id, found))
            });
            let Some((id, found)) = exchange else { return Ok(()) };
            let directory = self.directory.as_ref().expect("files lie in a directory");
            let handle = directory.handle();
            let (one, other) = (files::name(id), files::name(found));
            rustix::fs::renameat_with(handle, one, handle, other, RenameFlags::EXCHANGE)?;
            rustix::fs::fsync(handle)?;
            self.media.swap(id.index(), found.index());
            self.available.swap(id.index(), found.index());
            self.look_at_heads();
        }
    }
}

impl<M: Medium> Opening<M> {
    /// Gives a head to every segment whose own is damaged.
    pub fn repair_heads(&mut self) -> io::Result<()> {
        let mut birth = self.heads.iter().map(|head| head.birth).max().unwrap_or(0);
        for index in 0..self.heads.len() {
            let head = self.heads[index];
            let untrusted =
                self.problems.iter().any(|it| it.is_of_head() && it.segment() == head.id);
            let damaged = recover::has_damaged_head(&self.media[index], head.id, self.store_id());
            if !untrusted && !damaged {
                continue;
            }
            let known = recover::last_generation(&self.segment(head.id));
            let known = known.filter(|&known| untrusted || known > head.generation);
            if untrusted || known.is_some() {
                birth += 1;
                self.heads[index].birth = birth;
                self.heads[index].generation = known.unwrap_or(head.generation);
            }
            write_head(&self.media[index], self.heads[index], self.store_id())?;
        }
        self.look_at_heads();
        Ok(())
    }

    /// Makes a record count no more, for good. Its place in the segment stays taken.
    pub fn withdraw_record(&self, segment: SegmentId, entry: &Entry) -> io::Result<()> {
        let segment = self.segment(segment);
        let header = withdrawn(segment.store_id, segment.address(entry.offset), entry);
        write_page(segment.file, &header.encode().map_err(io::Error::other)?[..], entry.offset)
    }

    /// Lets what lies behind a damaged header be found again, at `next`; where nothing does, the
    /// segment ends before it.
    pub fn close_gap(&self, segment: SegmentId, offset: u64, next: Option<u64>) -> io::Result<()> {
        let segment = self.segment(segment);
        let Some(next) = next else {
            return write_page(segment.file, &[0; 4096], offset);
        };
        let nobody = Entry {
            offset,
            payload_length: next - offset - HEADER_SIZE,
            sequence_hash: [0; 32],
            shard: 0,
            position: 0,
            parent: [0; 32],
            namespace: [0; 32],
            epoch: 0,
            key_scheme: 0,
            header_checksum: 0,
        };
        let header = withdrawn(segment.store_id, segment.address(offset), &nobody);
        write_page(segment.file, &header.encode().map_err(io::Error::other)?[..], offset)
    }

    /// Writes the footer anew, from the headers, unless these do not lead to the end any more. A
    /// segment without room for one is left without.
    pub fn reseal(&self, segment: SegmentId) -> io::Result<()> {
        let segment = self.segment(segment);
        let scan = recover::walk(&segment, RECORDS_START).map_err(io::Error::other)?;
        let known = recover::examine(&segment).map_err(io::Error::other)?.scan;
        if known.end != scan.end {
            return Err(io::Error::other("a record header before the footer is damaged"));
        }
        let length = footer_length(scan.entries.len());
        let trailer_offset = segment.segment_bytes - TRAILER_SIZE;
        if scan.end + length > trailer_offset {
            return write_page(segment.file, &[0; 4096], trailer_offset);
        }
        let mut bytes = vec![0; usize::try_from(length).expect("at most 16 MiB")];
        let footer_checksum = encode_footer(&scan.entries, &mut bytes);
        if length > 0 {
            write_pages(segment.file, &bytes, scan.end)?;
        }
        let trailer = Trailer {
            id: segment.head.id,
            generation: segment.head.generation,
            footer_offset: scan.end,
            entries: scan.entries.len() as u64,
            footer_checksum,
        };
        write_page(segment.file, &trailer.encode(segment.store_id)[..], trailer_offset)
    }
}

fn withdrawn(store_id: [u8; 16], address: RecordAddress, entry: &Entry) -> RecordHeader {
    RecordHeader {
        store_id,
        address,
        key_scheme: entry.key_scheme,
        sequence_hash: entry.sequence_hash,
        shard: entry.shard,
        parent: entry.parent,
        namespace: entry.namespace,
        epoch: entry.epoch,
        position: entry.position,
        payload_length: entry.payload_length,
        withdrawn: true,
        stripes: vec![Stripe { offset: 0, length: entry.payload_length, checksum: 0 }],
    }
}

/// Both copies alike: a bump that is torn leaves the other.
fn write_head(file: &dyn Medium, head: SegmentHead, store_id: [u8; 16]) -> io::Result<()> {
    let page = head.encode(store_id);
    for parity in [0, 1].map(Generation) {
        write_page(file, &page[..], SegmentHead::offset(parity))?;
    }
    Ok(())
}

fn write_page(file: &dyn Medium, page: &[u8], offset: u64) -> io::Result<()> {
    assert_eq!(page.len() as u64, PAGE_SIZE, "one page");
    write_pages(file, page, offset)
}

/// Past the page cache, hence from memory of our own; durable when it returns.
fn write_pages(file: &dyn Medium, bytes: &[u8], offset: u64) -> io::Result<()> {
    let length = bytes.len() as u64;
    let memory = Mapping::create("refrain-repair", length).map_err(io::Error::other)?;
    let region = memory.region(0, length).map_err(io::Error::other)?;
    region.copy_from(0, bytes);
    file.write_all_at(region.bytes(), offset)?;
    file.sync()
}
