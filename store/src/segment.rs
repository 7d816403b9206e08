//! What a segment file says of itself: its head, and the footer and trailer that seal it.
//!
//! The layout is specified in `docs/on-disk-format.md`. The head stands in two copies that take
//! turns, so that a torn bump of the generation leaves the one before. The footer repeats what the
//! record headers say, so that a sealed segment is recovered in two reads.

use crate::format::checksum;
use crate::geometry::{
    Generation, PAGE_SIZE, RECORDS_START, SegmentId, TRAILER_SIZE, page_aligned, stored_length,
};

/// First bytes of each copy of a segment's head.
pub const HEAD_MAGIC: [u8; 8] = *b"REFRAING";
/// First bytes of a sealed segment's last page.
pub const TRAILER_MAGIC: [u8; 8] = *b"REFRAINT";
/// The version written; every version up to it is read.
pub const VERSION: u32 = 1;
/// Bytes of one entry of the footer.
pub const ENTRY_SIZE: u64 = 144;
/// A segment is sealed when it holds this many records, so that its footer fits one frame.
pub const ENTRIES_MAX: usize = (16 << 20) / 144;

const PAGE: usize = 4096;
const CHECKSUM: usize = PAGE - 8;
const _: () = assert!(PAGE as u64 == PAGE_SIZE && TRAILER_SIZE == PAGE_SIZE);

/// One page as it stands on disk.
pub type Page = [u8; PAGE];

/// Which use of which segment a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    pub id: SegmentId,
    /// 0 has never been used.
    pub generation: Generation,
    /// Orders the segments of a drive by the time they were begun.
    pub birth: u64,
}

/// What the footer repeats of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub offset: u64,
    pub payload_length: u64,
    pub sequence_hash: [u8; 32],
    pub shard: u32,
    pub position: u32,
    pub parent: [u8; 32],
    pub namespace: [u8; 32],
    pub epoch: u64,
    pub key_scheme: u32,
    pub header_checksum: u64,
}

/// Where the footer of a sealed segment lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    pub id: SegmentId,
    pub generation: Generation,
    pub footer_offset: u64,
    pub entries: u64,
    pub footer_checksum: u64,
}

/// What a head page turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadPage {
    /// All zero: never written.
    Empty,
    Damaged,
    NewerVersion(u32),
    OtherStore,
    Head(SegmentHead),
}

impl SegmentHead {
    /// Where the copy of a generation is written: the copies take turns.
    pub fn offset(generation: Generation) -> u64 {
        (generation.0 % 2) * PAGE_SIZE
    }

    pub fn encode(&self, store_id: [u8; 16]) -> Box<Page> {
        let mut page = Box::new([0; PAGE]);
        page[..8].copy_from_slice(&HEAD_MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[12..16].copy_from_slice(&self.id.0.to_le_bytes());
        page[16..32].copy_from_slice(&store_id);
        page[32..40].copy_from_slice(&self.generation.0.to_le_bytes());
        page[40..48].copy_from_slice(&self.birth.to_le_bytes());
        seal(&mut page);
        page
    }

    pub fn decode(page: &Page, store_id: [u8; 16]) -> HeadPage {
        if page.iter().all(|&byte| byte == 0) {
            return HeadPage::Empty;
        }
        if page[..8] != HEAD_MAGIC || !is_sealed(page) {
            return HeadPage::Damaged;
        }
        let version = u32::from_le_bytes(field(page, 8));
        if version > VERSION {
            return HeadPage::NewerVersion(version);
        }
        if field::<16>(page, 16) != store_id {
            return HeadPage::OtherStore;
        }
        HeadPage::Head(Self {
            id: SegmentId(u32::from_le_bytes(field(page, 12))),
            generation: Generation(u64::from_le_bytes(field(page, 32))),
            birth: u64::from_le_bytes(field(page, 40)),
        })
    }
}

impl Trailer {
    pub fn encode(&self, store_id: [u8; 16]) -> Box<Page> {
        let mut page = Box::new([0; PAGE]);
        page[..8].copy_from_slice(&TRAILER_MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[12..16].copy_from_slice(&self.id.0.to_le_bytes());
        page[16..32].copy_from_slice(&store_id);
        page[32..40].copy_from_slice(&self.generation.0.to_le_bytes());
        page[40..48].copy_from_slice(&self.footer_offset.to_le_bytes());
        page[48..56].copy_from_slice(&self.entries.to_le_bytes());
        page[56..64].copy_from_slice(&self.footer_checksum.to_le_bytes());
        seal(&mut page);
        page
    }

    /// Whether something else than a whole trailer, of whatever store and use, stands in its place.
    pub fn is_damaged(page: &Page) -> bool {
        page.iter().any(|&byte| byte != 0) && !is_sealed(page)
    }

    /// `None` for anything but a whole trailer of this store in a version that this build reads.
    pub fn decode(page: &Page, store_id: [u8; 16]) -> Option<Self> {
        let known = u32::from_le_bytes(field(page, 8)) <= VERSION;
        let ours = page[..8] == TRAILER_MAGIC && is_sealed(page) && known;
        (ours && field::<16>(page, 16) == store_id).then(|| Self {
            id: SegmentId(u32::from_le_bytes(field(page, 12))),
            generation: Generation(u64::from_le_bytes(field(page, 32))),
            footer_offset: u64::from_le_bytes(field(page, 40)),
            entries: u64::from_le_bytes(field(page, 48)),
            footer_checksum: u64::from_le_bytes(field(page, 56)),
        })
    }
}

impl Entry {
    pub fn stored_length(&self) -> u64 {
        stored_length(self.payload_length)
    }

    fn put(&self, out: &mut [u8]) {
        let mut at = 0;
        let mut put = |field: &[u8]| {
            out[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.offset.to_le_bytes());
        put(&self.payload_length.to_le_bytes());
        put(&self.sequence_hash);
        put(&self.shard.to_le_bytes());
        put(&self.position.to_le_bytes());
        put(&self.parent);
        put(&self.namespace);
        put(&self.epoch.to_le_bytes());
        put(&self.key_scheme.to_le_bytes());
        put(&[0; 4]);
        put(&self.header_checksum.to_le_bytes());
    }

    fn take(bytes: &[u8]) -> Self {
        Self {
            offset: u64::from_le_bytes(field(bytes, 0)),
            payload_length: u64::from_le_bytes(field(bytes, 8)),
            sequence_hash: field(bytes, 16),
            shard: u32::from_le_bytes(field(bytes, 48)),
            position: u32::from_le_bytes(field(bytes, 52)),
            parent: field(bytes, 56),
            namespace: field(bytes, 88),
            epoch: u64::from_le_bytes(field(bytes, 120)),
            key_scheme: u32::from_le_bytes(field(bytes, 128)),
            header_checksum: u64::from_le_bytes(field(bytes, 136)),
        }
    }
}

/// Bytes of a footer of `entries`, padding included.
pub fn footer_length(entries: usize) -> u64 {
    let bytes = u64::try_from(entries).expect("usize fits") * ENTRY_SIZE;
    page_aligned(bytes).expect("far below 2^64")
}

/// Whether a record of `length` bytes at `cursor` leaves room to seal, as entry number `entries`.
pub fn has_room(segment_bytes: u64, cursor: u64, length: u64, entries: usize) -> bool {
    entries < ENTRIES_MAX
        && cursor
            .checked_add(length)
            .and_then(|end| end.checked_add(footer_length(entries + 1) + TRAILER_SIZE))
            .is_some_and(|end| end <= segment_bytes)
}

/// The longest record that a segment holds.
pub fn record_max(segment_bytes: u64) -> u64 {
    segment_bytes.saturating_sub(RECORDS_START + footer_length(1) + TRAILER_SIZE)
}

/// Writes the footer into `out`, which has [`footer_length`] bytes, and returns its checksum.
pub fn encode_footer(entries: &[Entry], out: &mut [u8]) -> u64 {
    let size = usize::try_from(ENTRY_SIZE).expect("144 fits");
    let (used, padding) = out.split_at_mut(entries.len() * size);
    for (entry, bytes) in entries.iter().zip(used.chunks_exact_mut(size)) {
        entry.put(bytes);
    }
    padding.fill(0);
    checksum(out)
}

/// The entries of a footer whose checksum was found right.
pub fn decode_footer(bytes: &[u8], entries: usize) -> Vec<Entry> {
    let size = usize::try_from(ENTRY_SIZE).expect("144 fits");
    bytes.chunks_exact(size).take(entries).map(Entry::take).collect()
}

fn seal(page: &mut Page) {
    let sum = checksum(&page[..CHECKSUM]);
    page[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
}

fn is_sealed(page: &Page) -> bool {
    u64::from_le_bytes(field(page, CHECKSUM)) == checksum(&page[..CHECKSUM])
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests;
