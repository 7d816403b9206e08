//! The catalogue: what is on one drive, in RocksDB, so that a restart reads little.
//!
//! It is derived from the disk. Whatever is wrong with it, it is emptied and filled again from
//! there. A row is a run of records, as a drive promises them, not a block: a million blocks are a
//! few thousand values, read in one scan.

use rocksdb::{DB, IteratorMode, Options, ReadOptions, WriteBatch};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

mod manifest;
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
    /// Keeps those of a segment's rows that still count.
    pub fn leave_out(&self, segment: u32, generation: u64, rows: &mut Vec<Row>) {
        if !self.0.is_empty() {
            rows.retain(|row| !self.0.contains(&(segment, generation, row.offset)));
        }
    }
}

/// An open catalogue.
pub struct Catalog {
    db: DB,
    path: PathBuf,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("path", &self.path).finish_non_exhaustive()
    }
}

const STORE: &[u8] = b"S";
const RUN: u8 = b'R';
const WITHDRAWN: u8 = b'W';

impl Catalog {
    /// Opens the catalogue of store `store_id`, or makes it. One that is damaged, or another
    /// store's, is emptied.
    pub fn open(path: &Path, store_id: [u8; 16]) -> Result<(Self, OpenState), CatalogError> {
        let there = path.join("CURRENT").exists();
        if there && !manifest::is_whole(path) {
            return Self::begin(path, emptied(path, None)?, store_id, OpenState::Damaged);
        }
        let (db, state) = match DB::open(&options(), path) {
            Ok(db) if !there => (db, OpenState::Fresh),
            Ok(db) => match db.get(STORE) {
                Ok(Some(found)) if found == store_id => {
                    return Ok((Self { db, path: path.into() }, OpenState::Kept));
                }
                Ok(Some(_)) => (emptied(path, Some(db))?, OpenState::OtherStore),
                Ok(None) | Err(_) => (emptied(path, Some(db))?, OpenState::Damaged),
            },
            Err(_) if path.exists() => (emptied(path, None)?, OpenState::Damaged),
            Err(source) => return Err(CatalogError::Open { path: path.into(), source }),
        };
        Self::begin(path, db, store_id, state)
    }

    fn begin(
        path: &Path,
        db: DB,
        store_id: [u8; 16],
        state: OpenState,
    ) -> Result<(Self, OpenState), CatalogError> {
        db.put(STORE, store_id).map_err(CatalogError::Write)?;
        Ok((Self { db, path: path.into() }, state))
    }

    /// Throws everything away.
    pub fn emptied(self, store_id: [u8; 16]) -> Result<Self, CatalogError> {
        let Self { db, path } = self;
        let db = emptied(&path, Some(db))?;
        db.put(STORE, store_id).map_err(CatalogError::Write)?;
        Ok(Self { db, path })
    }

    /// Adds a run of records. One batch; the log is written and not synced, as a lost tail costs a
    /// scan of what it described.
    pub fn commit(&self, run: &Run) -> Result<(), CatalogError> {
        let mut batch = WriteBatch::default();
        batch.put(place_key(RUN, run.segment, run.start), run.encode());
        self.db.write(batch).map_err(CatalogError::Write)
    }

    /// The record at `offset` no longer counts.
    pub fn withdraw(&self, segment: u32, generation: u64, offset: u64) -> Result<(), CatalogError> {
        let key = place_key(WITHDRAWN, segment, offset);
        self.db.put(key, generation.to_le_bytes()).map_err(CatalogError::Write)
    }

    /// Nothing of the segment counts any more.
    pub fn forget_segment(&self, segment: u32) -> Result<(), CatalogError> {
        self.db.write(forgotten(segment)).map_err(CatalogError::Write)
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
            batch.put(place_key(WITHDRAWN, segment, *offset), generation.to_le_bytes());
        }
        self.db.write(batch).map_err(CatalogError::Write)
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
            withdrawn.leave_out(*segment, *generation, rows);
        }
        Ok(segments)
    }

    /// Writes out what is in memory, so that the next start replays no log.
    pub fn close(self) -> Result<(), CatalogError> {
        self.db.flush().map_err(CatalogError::Write)
    }

    /// All pairs of a kind, in order, the kind taken off the keys.
    fn scan(
        &self,
        kind: u8,
        mut take: impl FnMut(&[u8], &[u8]) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        let mut options = ReadOptions::default();
        options.set_iterate_range([kind].to_vec()..[kind + 1].to_vec());
        options.set_readahead_size(4 << 20);
        options.fill_cache(false);
        for pair in self.db.iterator_opt(IteratorMode::Start, options) {
            let (key, value) = pair.map_err(CatalogError::Read)?;
            take(&key[1..], &value)?;
        }
        Ok(())
    }
}

/// Takes all rows of a segment away.
fn forgotten(segment: u32) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for kind in [RUN, WITHDRAWN] {
        let from = place_key(kind, segment, 0);
        match segment.checked_add(1) {
            Some(next) => batch.delete_range(from, place_key(kind, next, 0)),
            None => batch.delete_range(from, [kind + 1].to_vec()),
        }
    }
    batch
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

fn emptied(path: &Path, open: Option<DB>) -> Result<DB, CatalogError> {
    drop(open);
    let remove = if path.is_dir() { std::fs::remove_dir_all } else { std::fs::remove_file };
    remove(path).map_err(|source| CatalogError::Empty { path: path.into(), source })?;
    DB::open(&options(), path).map_err(|source| CatalogError::Open { path: path.into(), source })
}

/// Few large values, written once, read at start.
fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_write_buffer_size(16 << 20);
    options.set_max_write_buffer_number(3);
    options.set_max_background_jobs(2);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(2);
    options.set_log_level(rocksdb::LogLevel::Error);
    options
}

#[cfg(test)]
mod tests;
