//! What a drive holds, from its catalogue as far as that goes and from the disk for the rest.
//!
//! A sealed segment that the catalogue knows to its end is not read at all. An open one is read
//! from its start, record by record: the drive must know every record of it to seal it later. What
//! the disk says counts; the catalogue is corrected.

use crate::journal::{Group, run_of};
use refrain_index::catalog::{Catalog, CatalogError, OpenState, Row, SegmentRows, Withdrawn};
use refrain_store::drive::{KnownSegment, Opening};
use refrain_store::geometry::{RECORDS_START, SegmentId};
use refrain_store::recover::Scan;
use refrain_store::segment::{Entry, SegmentHead};
use std::collections::HashMap;
use tracing::warn;

/// One record that counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) segment: SegmentId,
    pub(crate) row: Row,
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
}

/// Fails only where the catalogue can be neither used nor begun anew.
pub(crate) fn recover(opening: &Opening) -> Result<Recovered, CatalogError> {
    let store_id = opening.store_id();
    let path = opening.path().join("catalog");
    let (catalog, state) = Catalog::open(&path, store_id)?;
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
    fn find(opening: &Opening, catalog: &Catalog) -> Result<Self, CatalogError> {
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
        Ok(records)
    }

    fn segment(
        &mut self,
        (opening, catalog): (&Opening, &Catalog),
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
            rows => self.scanned_segment(catalog, head, scan, rows.as_ref()),
        }
    }

    fn scanned_segment(
        &mut self,
        catalog: &Catalog,
        head: SegmentHead,
        scan: Scan,
        rows: Option<&SegmentRows>,
    ) -> Result<(), CatalogError> {
        let known_end = rows.map_or(0, |rows| rows.end).max(RECORDS_START);
        let Scan { entries, end, sealed } = scan;
        let tail = entries.partition_point(|entry| entry.offset < known_end);
        let group = Group { start: known_end, end, sealed, entries: &entries[tail..] };
        let run = run_of(head.id.0, head.generation.0, &group);
        if sealed || !run.rows.is_empty() {
            if known_end == RECORDS_START {
                // What an earlier use of the segment left must not stand beside it.
                catalog.forget_runs(head.id.0, head.generation.0, &self.withdrawn)?;
            }
            catalog.commit(&run)?;
        }
        // What was withdrawn is not among the catalogue's rows, and may have been withdrawn before
        // its run came there: it stays away.
        let mut new = run.rows;
        self.withdrawn.leave_out(head.id.0, head.generation.0, &mut new);
        let known = rows.map_or(&[][..], |rows| &rows.rows);
        self.add(head, known.iter().copied().chain(new));
        self.take(head, end, sealed, if sealed { Vec::new() } else { entries });
        Ok(())
    }

    fn take(&mut self, head: SegmentHead, end: u64, sealed: bool, entries: Vec<Entry>) {
        self.known.push(KnownSegment { id: head.id, end, sealed, entries });
    }

    fn add(&mut self, head: SegmentHead, rows: impl Iterator<Item = Row>) {
        self.found.extend(rows.map(|row| Found { segment: head.id, row }));
    }
}
