//! A stopped store, read from its disks: what headers say is so.

use crate::rows::{Block, Namespace, Row, Segment};
use refrain_store::drive::Opening;
use refrain_store::geometry::RECORDS_START;
use refrain_store::recover::{Examined, ScanError};
use refrain_store::segment::{Entry, SegmentHead};
use std::collections::BTreeMap;

/// One segment of one drive, looked through.
#[derive(Debug)]
pub struct Found {
    pub drive: u32,
    pub head: SegmentHead,
    pub examined: Examined,
    /// Why it could not be looked through: it counts as empty.
    pub unreadable: Option<ScanError>,
}

/// Looks every segment of every drive through, in the order of their numbers.
pub fn examine(drives: &[Opening]) -> Vec<Found> {
    let heads = (0..).zip(drives).flat_map(|(drive, opening)| {
        opening.segments().iter().map(move |&head| Found::new(drive, opening, head))
    });
    heads.collect()
}

impl Found {
    pub fn new(drive: u32, opening: &Opening, head: SegmentHead) -> Self {
        match opening.examine(head.id) {
            Ok(examined) => Self { drive, head, examined, unreadable: None },
            Err(error) => {
                Self { drive, head, examined: Examined::default(), unreadable: Some(error) }
            }
        }
    }

    /// The opening of its drive, among those that were looked through.
    pub fn opening<'d>(&self, drives: &'d [Opening]) -> &'d Opening {
        &drives[usize::try_from(self.drive).expect("32 bits fit")]
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.examined.scan.entries.iter()
    }

    /// Parts of it that are damaged, its records not counted.
    pub fn damage_count(&self) -> u64 {
        self.examined.damage.len() as u64 + u64::from(self.unreadable.is_some())
    }

    pub fn live_bytes(&self) -> u64 {
        self.entries().map(Entry::stored_length).sum()
    }

    /// What a sidecar would start with, as far as the disk tells.
    pub fn state(&self, opening: &Opening) -> &'static str {
        let problems = opening.problems().iter();
        let lost = { problems }.any(|problem| problem.segment() == self.head.id);
        if self.unreadable.is_some() || lost && self.examined.scan.entries.is_empty() {
            "lost"
        } else if self.examined.scan.sealed {
            "sealed"
        } else if self.examined.scan.end > RECORDS_START {
            "open"
        } else {
            "free"
        }
    }

    pub fn row(&self, opening: &Opening) -> Segment {
        Segment {
            drive: self.drive,
            segment: self.head.id.0,
            generation: self.head.generation.0,
            state: self.state(opening).to_owned(),
            live_blocks: self.entries().count() as u64,
            live_bytes: self.live_bytes(),
            end: self.examined.scan.end,
        }
    }

    pub fn blocks(&self) -> impl Iterator<Item = Block> {
        self.entries().map(|entry| Block::stopped(self.drive, self.head, entry))
    }
}

/// What each namespace takes, in the order of their digests.
pub fn namespaces(found: &[Found]) -> Vec<Row> {
    let mut sums: BTreeMap<[u8; 32], (u64, u64)> = BTreeMap::new();
    for entry in found.iter().flat_map(Found::entries) {
        let (blocks, bytes) = sums.entry(entry.namespace).or_default();
        *blocks += 1;
        *bytes += entry.stored_length();
    }
    let row = |(digest, (blocks, bytes)): ([u8; 32], (u64, u64))| {
        let digest = crate::hex::hex(&digest);
        Row::Namespace(Namespace {
            digest,
            blocks,
            bytes,
            tenant: String::new(),
            model: String::new(),
            epoch: None,
        })
    };
    sums.into_iter().map(row).collect()
}
