//! The rows in RocksDB.

use super::{CatalogError, Change, OpenState, Pairs, Take, logs};
use rocksdb::{DB, IteratorMode, Options, ReadOptions, WriteBatch};
use std::path::{Path, PathBuf};

pub(super) struct Rocks {
    db: DB,
    path: PathBuf,
}

impl Rocks {
    /// Opens what is at `path`, or makes it; what cannot be opened is emptied.
    pub(super) fn open(path: &Path) -> Result<(Self, OpenState), CatalogError> {
        let there = path.join("CURRENT").exists();
        // What cannot be looked at, cannot be opened.
        if there && !logs::end(path).unwrap_or(false) {
            let db = emptied(path, None)?;
            return Ok((Self { db, path: path.into() }, OpenState::Damaged));
        }
        let (db, state) = match DB::open(&options(), path) {
            Ok(db) => (db, if there { OpenState::Kept } else { OpenState::Fresh }),
            Err(_) if path.exists() => (emptied(path, None)?, OpenState::Damaged),
            Err(source) => return Err(CatalogError::Open { path: path.into(), source }),
        };
        Ok((Self { db, path: path.into() }, state))
    }
}

impl Pairs for Rocks {
    fn write(&self, changes: Vec<Change>) -> Result<(), CatalogError> {
        let mut batch = WriteBatch::default();
        for change in changes {
            match change {
                Change::Put { key, value } => batch.put(key, value),
                Change::Remove { from, to } => batch.delete_range(from, to),
            }
        }
        self.db.write(batch).map_err(CatalogError::Write)
    }

    fn scan(&self, from: &[u8], to: &[u8], take: &mut Take<'_>) -> Result<(), CatalogError> {
        let mut options = ReadOptions::default();
        options.set_iterate_range(from.to_vec()..to.to_vec());
        options.set_readahead_size(4 << 20);
        options.fill_cache(false);
        for pair in self.db.iterator_opt(IteratorMode::Start, options) {
            let (key, value) = pair.map_err(CatalogError::Read)?;
            take(&key, &value)?;
        }
        Ok(())
    }

    fn emptied(self: Box<Self>) -> Result<Box<dyn Pairs>, CatalogError> {
        let Self { db, path } = *self;
        let db = emptied(&path, Some(db))?;
        Ok(Box::new(Self { db, path }))
    }

    fn flush(&self) -> Result<(), CatalogError> {
        self.db.flush().map_err(CatalogError::Write)
    }
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
