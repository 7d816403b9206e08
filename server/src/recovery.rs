//! What a drive holds, from its catalogue as far as that goes and from the disk for the rest.
//!
//! A sealed segment that the catalogue knows to its end is not read at all. An open one is read
//! from its start, record by record: the drive must know every record of it to seal it later. What
//! the disk says counts; the catalogue is corrected.
//!
//! Nobody has promised the records of an open segment that the catalogue does not know: a power
//! loss may have left a header and taken the payload. Each is read whole before it counts, as it
//! would stand in the way of an older copy that was promised.

use crate::journal::{self, Group, run_of};
use refrain_index::catalog::{Catalog, CatalogError, OpenState, Row, SegmentRows, Withdrawn};
use refrain_index::chain::BlockKey;
use refrain_index::hash::SequenceHash;
use refrain_store::device::Medium;
use refrain_store::drive::{KnownSegment, Opening};
use refrain_store::geometry::{Generation, RECORDS_START, SegmentId};
use refrain_store::recover::Scan;
use refrain_store::segment::{Entry, SegmentHead};
use std::collections::HashMap;
use tracing::warn;

/// One record that counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) segment: SegmentId,
    pub(crate) generation: Generation,
    pub(crate) row: Row,
}

impl Found {
    pub(crate) fn key(&self) -> BlockKey {
        BlockKey { sequence: SequenceHash(self.row.sequence), shard: self.row.shard }
    }
}

/// What a drive begins with.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) catalog: Catalog,
    pub(crate) records: Records,
    catalog_state: OpenState,
}

#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) known: Vec<KnownSegment>,
    /// Records in the order in which their segments were begun.
    pub(crate) found: Vec<Found>,
    /// Segments that the catalogue did not know, or not to their end.
    pub(crate) scanned: u32,
    withdrawn: Withdrawn,
    /// Segments whose records may be lost again.
    unsynced: Vec<SegmentId>,
}

/// Fails only where the catalogue can be neither used nor begun anew.
pub(crate) fn recover<M: Medium>(
    opening: &Opening<M>,
    (catalog, state): (Catalog, OpenState),
) -> Result<Recovered, CatalogError> {
    let store_id = opening.store_id();
    match Records::find(opening, &catalog) {
        Ok(records) => Ok(Recovered { catalog, records, catalog_state: state }),
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "catalogue emptied");
            let catalog = catalog.emptied(store_id)?;
            let records = Records::find(opening, &catalog)?;
            Ok(Recovered { catalog, records, catalog_state: OpenState::Damaged })
        }
    }
}

impl Recovered {
    /// Whether there was a catalogue to begin with.
    pub(crate) fn is_from_catalog(&self) -> bool {
        self.catalog_state == OpenState::Kept
    }
}

impl Records {
    /// How far each segment would survive a power loss.
    pub(crate) fn durable<M: Medium>(&self, opening: &Opening<M>) -> Vec<journal::Recovered> {
        let extent = |known: &KnownSegment| {
            let index = usize::try_from(known.id.0).expect("32 bits fit");
            let generation = opening.segments()[index].generation;
            journal::Recovered { segment: known.id, generation, end: known.end }
        };
        let durable = self.known.iter().filter(|known| !self.unsynced.contains(&known.id));
        durable.map(extent).collect()
    }

    fn find<M: Medium>(opening: &Opening<M>, catalog: &Catalog) -> Result<Self, CatalogError> {
        let rows = catalog.load(RECORDS_START)?;
        let mut records = Self { withdrawn: catalog.withdrawn()?, ..Self::default() };
        records.found.reserve(rows.iter().map(|rows| rows.rows.len()).sum());
        let mut rows: HashMap<u32, SegmentRows> =
            rows.into_iter().map(|rows| (rows.segment, rows)).collect();
        let heads = opening.segments().iter().copied();
        let mut heads: Vec<_> = heads.filter(|head| head.generation.0 > 0).collect();
        heads.sort_unstable_by_key(|head| head.birth);
        for head in heads {
            let rows = rows.remove(&head.id.0).filter(|rows| rows.generation == head.generation.0);
            records.segment((opening, catalog), head, rows)?;
        }
        // A head that never reached the disk: the use that these are of will be numbered again.
        for segment in rows.into_keys() {
            catalog.forget_segment(segment)?;
        }
        Ok(records)
    }

    fn segment<M: Medium>(
        &mut self,
        (opening, catalog): (&Opening<M>, &Catalog),
        head: SegmentHead,
        rows: Option<SegmentRows>,
    ) -> Result<(), CatalogError> {
        if let Some(rows) = rows.as_ref().filter(|rows| rows.sealed) {
            self.take(head, rows.end, true, Vec::new());
            self.add(head, rows.rows.iter().copied());
            return Ok(());
        }
        self.scanned += 1;
        let scan = match opening.scan(head.id, RECORDS_START) {
            Ok(scan) => scan,
            Err(error) => {
                // Its blocks are misses; it is written again when its turn comes.
                warn!(error = &error as &dyn std::error::Error, "segment not read");
                return Ok(());
            }
        };
        match rows {
            Some(rows) if rows.end > scan.end => {
                // A damaged header in the middle hides what stands behind it. The catalogue knows
                // that, and nothing may be written over it.
                self.take(head, rows.end, true, Vec::new());
                self.add(head, rows.rows.into_iter());
                Ok(())
            }
            rows => self.scanned_segment((opening, catalog), head, scan, rows.as_ref()),
        }
    }

    fn scanned_segment<M: Medium>(
        &mut self,
        (opening, catalog): (&Opening<M>, &Catalog),
        head: SegmentHead,
        scan: Scan,
        rows: Option<&SegmentRows>,
    ) -> Result<(), CatalogError> {
        let known_end = rows.map_or(0, |rows| rows.end).max(RECORDS_START);
        let Scan { mut entries, end, sealed } = scan;
        let tail = entries.partition_point(|entry| entry.offset < known_end);
        let group = Group { start: known_end, end, sealed, entries: &entries[tail..] };
        let run = run_of(head.id.0, head.generation.0, &group);
        // What cannot be made durable is read, and neither vouched for nor written on.
        let is_durable = sealed || self.look_through((opening, catalog), head, group.entries)?;
        if is_durable && (sealed || !run.rows.is_empty()) {
            if known_end == RECORDS_START {
                // What an earlier use of the segment left must not stand beside it.
                catalog.forget_runs(head.id.0, head.generation.0, &self.withdrawn)?;
            }
            catalog.commit(&run)?;
        }
        // What was withdrawn is not among the catalogue's rows, and may have been withdrawn before
        // its run came there: it stays away.
        let holds = |offset| self.withdrawn.holds(head.id.0, head.generation.0, offset);
        let mut new = run.rows;
        new.retain(|row| !holds(row.offset));
        // Nor is it vouched for by the footer that this segment gets: the catalogue may be lost.
        entries.retain(|entry| !holds(entry.offset));
        let known = rows.map_or(&[][..], |rows| &rows.rows);
        self.add(head, known.iter().copied().chain(new));
        // A record that was withdrawn and then lost: another in its place would be taken for it.
        let is_spent = self.withdrawn.reaches(head.id.0, head.generation.0, end);
        if is_durable {
            let is_full = sealed || is_spent;
            self.take(head, end, is_full, if is_full { Vec::new() } else { entries });
        } else {
            self.unsynced.push(head.id);
            self.take(head, end, true, Vec::new());
        }
        Ok(())
    }

    /// Withdraws those records of a segment that are not whole; whether the others are durable.
    fn look_through<M: Medium>(
        &mut self,
        (opening, catalog): (&Opening<M>, &Catalog),
        head: SegmentHead,
        entries: &[Entry],
    ) -> Result<bool, CatalogError> {
        for entry in entries {
            let read = opening.read_record(head.id, entry);
            if read.is_err_and(|error| error.is_damage()) {
                // Before its run comes there, which would vouch for it.
                catalog.withdraw(head.id.0, head.generation.0, entry.offset)?;
                self.withdrawn.add(head.id.0, head.generation.0, entry.offset);
            }
        }
        // Records that a killed process had written may still be in the device's memory alone.
        let synced = if entries.is_empty() { Ok(()) } else { opening.sync(head.id) };
        if let Err(error) = &synced {
            warn!(segment = head.id.0, %error, "segment not synced");
        }
        Ok(synced.is_ok())
    }

    fn take(&mut self, head: SegmentHead, end: u64, sealed: bool, entries: Vec<Entry>) {
        self.known.push(KnownSegment { id: head.id, end, sealed, entries });
    }

    fn add(&mut self, head: SegmentHead, rows: impl Iterator<Item = Row>) {
        self.found.extend(rows.map(|row| Found {
            segment: head.id,
            generation: head.generation,
            row,
        }));
    }
}
