//! The catalogue: what is on one drive, in RocksDB, so that a restart reads little.
//!
//! It is derived from the disk. Whatever is wrong with it, it is emptied and filled again from
//! there. A row is a run of records, as a drive promises them, not a block: a million blocks are a
//! few thousand values, read in one scan.

use crate::catalog::rocks::Rocks;
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

mod logs;
mod rocks;
mod run;

pub use run::{Row, Run};

/// What became of the catalogue that was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenState {
    /// There was none.
    Fresh,
    Kept,
    /// It could not be opened, and was emptied.
    Damaged,
    /// It described another store, and was emptied.
    OtherStore,
}

/// Why the catalogue cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CatalogError {
    #[error("open catalogue {}", path.display())]
    Open { path: PathBuf, source: rocksdb::Error },
    #[error("empty catalogue {}", path.display())]
    Empty { path: PathBuf, source: io::Error },
    #[error("write catalogue")]
    Write(#[source] rocksdb::Error),
    #[error("read catalogue")]
    Read(#[source] rocksdb::Error),
    #[error("catalogue has a damaged row")]
    Damaged,
}

/// What the catalogue knows of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRows {
    pub segment: u32,
    pub generation: u64,
    /// Everything before it is known; 0 where nothing is.
    pub end: u64,
    pub sealed: bool,
    pub rows: Vec<Row>,
}

/// Records that no longer count: segment, generation and offset of each.
#[derive(Clone, Debug, Default)]
pub struct Withdrawn(HashSet<(u32, u64, u64)>);

impl Withdrawn {
    /// The record at `offset` no longer counts.
    pub fn add(&mut self, segment: u32, generation: u64, offset: u64) {
        self.0.insert((segment, generation, offset));
    }

    /// Whether a record of this use of a segment was withdrawn that lay at `end` or behind it.
    pub fn reaches(&self, segment: u32, generation: u64, end: u64) -> bool {
        self.0.iter().any(|&(of, in_use, at)| (of, in_use) == (segment, generation) && at >= end)
    }

    /// Whether the record at `offset` was withdrawn.
    pub fn holds(&self, segment: u32, generation: u64, offset: u64) -> bool {
        self.0.contains(&(segment, generation, offset))
    }
}

/// A part of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    /// All keys from the first on, before the second.
    Remove {
        from: Vec<u8>,
        to: Vec<u8>,
    },
}

/// Takes a key and its value.
pub type Take<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), CatalogError> + 'a;

/// What keeps the rows: pairs in the order of their keys. RocksDB, unless it is simulated.
pub trait Pairs: Send {
    /// All of a batch or nothing. After a power loss, those before some batch are left.
    fn write(&self, batch: Vec<Change>) -> Result<(), CatalogError>;

    /// Hands out the pairs of a range of keys, in order.
    fn scan(&self, from: &[u8], to: &[u8], take: &mut Take<'_>) -> Result<(), CatalogError>;

    /// Begins anew with nothing, whatever is wrong with what was there.
    fn emptied(self: Box<Self>) -> Result<Box<dyn Pairs>, CatalogError>;

    /// Writes out what is in memory, so that the next start replays no log.
    fn flush(&self) -> Result<(), CatalogError>;
}

/// An open catalogue.
pub struct Catalog {
    pairs: Box<dyn Pairs>,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}

const STORE: u8 = b'S';
const RUN: u8 = b'R';
const WITHDRAWN: u8 = b'W';

impl Catalog {
    /// Opens the catalogue of store `store_id`, or makes it. One that is damaged, or another
    /// store's, is emptied.
    pub fn open(path: &Path, store_id: [u8; 16]) -> Result<(Self, OpenState), CatalogError> {
        let (rocks, state) = Rocks::open(path)?;
        Self::over(Box::new(rocks), state, store_id)
    }

    /// As `open`, over whatever keeps the rows; `state` is what became of these by now.
    pub fn over(
        pairs: Box<dyn Pairs>,
        state: OpenState,
        store_id: [u8; 16],
    ) -> Result<(Self, OpenState), CatalogError> {
        let catalog = Self { pairs };
        match state {
            OpenState::Kept => {}
            OpenState::Fresh | OpenState::Damaged | OpenState::OtherStore => {
                return Ok((catalog.named(store_id)?, state));
            }
        }
        let mut found = None;
        let read = catalog.scan(STORE, |_, value| {
            found = Some(value.to_vec());
            Ok(())
        });
        let state = match (read, found) {
            (Ok(()), Some(found)) if found == store_id => return Ok((catalog, OpenState::Kept)),
            (Ok(()), Some(_)) => OpenState::OtherStore,
            (Ok(()), None) | (Err(_), _) => OpenState::Damaged,
        };
        Ok((catalog.emptied(store_id)?, state))
    }

    /// Throws everything away.
    pub fn emptied(self, store_id: [u8; 16]) -> Result<Self, CatalogError> {
        Self { pairs: self.pairs.emptied()? }.named(store_id)
    }

    fn named(self, store_id: [u8; 16]) -> Result<Self, CatalogError> {
        self.pairs.write(vec![put(vec![STORE], store_id.to_vec())])?;
        Ok(self)
    }

    /// Adds a run of records. One batch; the log is written and not synced, as a lost tail costs a
    /// scan of what it described.
    pub fn commit(&self, run: &Run) -> Result<(), CatalogError> {
        self.pairs.write(vec![put(place_key(RUN, run.segment, run.start), run.encode())])
    }

    /// The record at `offset` no longer counts.
    pub fn withdraw(&self, segment: u32, generation: u64, offset: u64) -> Result<(), CatalogError> {
        let key = place_key(WITHDRAWN, segment, offset);
        self.pairs.write(vec![put(key, generation.to_le_bytes().to_vec())])
    }

    /// Nothing of the segment counts any more.
    pub fn forget_segment(&self, segment: u32) -> Result<(), CatalogError> {
        self.pairs.write(forgotten(segment))
    }

    /// Nothing of the uses of a segment before `generation` counts any more, nor any run of this
    /// one; what was withdrawn of this one stays withdrawn.
    pub fn forget_runs(
        &self,
        segment: u32,
        generation: u64,
        withdrawn: &Withdrawn,
    ) -> Result<(), CatalogError> {
        let mut batch = forgotten(segment);
        let of_this_use = |mark: &&(u32, u64, u64)| (mark.0, mark.1) == (segment, generation);
        for (_, generation, offset) in withdrawn.0.iter().filter(of_this_use) {
            let key = place_key(WITHDRAWN, segment, *offset);
            batch.push(put(key, generation.to_le_bytes().to_vec()));
        }
        self.pairs.write(batch)
    }

    /// All that was withdrawn, whether or not a run with it has been added.
    pub fn withdrawn(&self) -> Result<Withdrawn, CatalogError> {
        let mut withdrawn = HashSet::new();
        self.scan(WITHDRAWN, |key, value| {
            let (segment, offset) = decode_place(key).ok_or(CatalogError::Damaged)?;
            let generation = value.try_into().map_err(|_| CatalogError::Damaged)?;
            withdrawn.insert((segment, u64::from_le_bytes(generation), offset));
            Ok(())
        })?;
        Ok(Withdrawn(withdrawn))
    }

    /// What is known of each segment: its latest generation, from `records_start` to the first gap.
    pub fn load(&self, records_start: u64) -> Result<Vec<SegmentRows>, CatalogError> {
        let mut runs: Vec<Run> = Vec::new();
        let mut segments = Vec::new();
        self.scan(RUN, |key, value| {
            let (segment, start) = decode_place(key).ok_or(CatalogError::Damaged)?;
            let run = Run::decode(segment, start, value).ok_or(CatalogError::Damaged)?;
            if runs.last().is_some_and(|last| last.segment != segment) {
                segments.push(join(std::mem::take(&mut runs), records_start));
            }
            runs.push(run);
            Ok(())
        })?;
        if !runs.is_empty() {
            segments.push(join(runs, records_start));
        }
        let withdrawn = self.withdrawn()?;
        for SegmentRows { segment, generation, rows, .. } in &mut segments {
            rows.retain(|row| !withdrawn.holds(*segment, *generation, row.offset));
        }
        Ok(segments)
    }

    /// Writes out what is in memory, so that the next start replays no log.
    pub fn close(self) -> Result<(), CatalogError> {
        self.pairs.flush()
    }

    /// All pairs of a kind, in order, the kind taken off the keys.
    fn scan(
        &self,
        kind: u8,
        mut take: impl FnMut(&[u8], &[u8]) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        self.pairs.scan(&[kind], &[kind + 1], &mut |key, value| take(&key[1..], value))
    }
}

/// Takes all rows of a segment away.
fn forgotten(segment: u32) -> Vec<Change> {
    let of_kind = |kind| Change::Remove {
        from: place_key(kind, segment, 0),
        to: match segment.checked_add(1) {
            Some(next) => place_key(kind, next, 0),
            None => vec![kind + 1],
        },
    };
    [RUN, WITHDRAWN].map(of_kind).into()
}

fn put(key: Vec<u8>, value: Vec<u8>) -> Change {
    Change::Put { key, value }
}

/// Runs of one segment, in the order of their starts.
fn join(mut runs: Vec<Run>, records_start: u64) -> SegmentRows {
    let segment = runs[0].segment;
    let generation = runs.iter().map(|run| run.generation).max().unwrap_or(0);
    runs.retain(|run| run.generation == generation);
    let mut joined = SegmentRows { segment, generation, end: 0, sealed: false, rows: Vec::new() };
    let mut expected = records_start;
    for run in runs {
        if run.start != expected {
            break;
        }
        expected = run.end;
        joined.end = run.end;
        joined.sealed |= run.sealed;
        joined.rows.extend(run.rows);
    }
    joined
}

fn place_key(kind: u8, segment: u32, offset: u64) -> Vec<u8> {
    [&[kind][..], &segment.to_be_bytes(), &offset.to_be_bytes()].concat()
}

fn decode_place(key: &[u8]) -> Option<(u32, u64)> {
    let (segment, offset) = key.split_first_chunk()?;
    Some((u32::from_be_bytes(*segment), u64::from_be_bytes(offset.try_into().ok()?)))
}

#[cfg(test)]
mod tests;
