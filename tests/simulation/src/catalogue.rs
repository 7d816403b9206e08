//! The catalogue's rows in memory, as RocksDB keeps them: batches in order, of which a power loss
//! leaves those before some moment since the last flush.
//!
//! RocksDB itself is not simulated: it has threads, files and a clock of its own. What it promises
//! is, and what is above it (the rows, their checksums, what counts of them) is production code.

use crate::disk::Cut;
use fastrand::Rng;
use refrain_index::catalog::{CatalogError, Change, OpenState, Pairs, Take};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// What is left of a catalogue when nobody has it open.
#[derive(Clone, Debug, Default)]
pub struct Catalogue(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    exists: bool,
    rows: Rows,
    /// As flushed last, and what came since.
    flushed: Rows,
    log: Vec<Vec<Change>>,
    /// Whether what is there can be read.
    damaged: bool,
}

impl Catalogue {
    /// As `Catalog::open` finds it.
    pub fn open(&self) -> (Box<dyn Pairs>, OpenState) {
        let mut kept = self.kept();
        let state = match (kept.exists, kept.damaged) {
            (false, _) => OpenState::Fresh,
            (true, false) => OpenState::Kept,
            (true, true) => OpenState::Damaged,
        };
        if state != OpenState::Kept {
            *kept = Kept { exists: true, ..Kept::default() };
        }
        (Box::new(Open(self.clone())), state)
    }

    /// Cuts the log short, where the power went.
    pub fn cut(&self, cut: Cut, random: &mut Rng) {
        let mut kept = self.kept();
        if cut == Cut::PowerLoss {
            let left = random.usize(0..=kept.log.len());
            kept.log.truncate(left);
        }
        let log = std::mem::take(&mut kept.log);
        let mut rows = std::mem::take(&mut kept.flushed);
        for batch in &log {
            apply(&mut rows, batch);
        }
        (kept.rows, kept.flushed) = (rows.clone(), rows);
    }

    /// It is deleted.
    pub fn remove(&self) {
        *self.kept() = Kept::default();
    }

    /// It cannot be opened any more, or a row of it has rotted.
    pub fn damage(&self, random: &mut Rng) {
        let mut kept = self.kept();
        if random.bool() {
            kept.damaged = true;
        } else if !kept.rows.is_empty() {
            let nth = random.usize(0..kept.rows.len());
            let value = kept.rows.values_mut().nth(nth).expect("counted above");
            let at = random.usize(0..value.len());
            value[at] ^= 1 << random.u8(0..8);
            kept.flushed = kept.rows.clone();
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn apply(rows: &mut Rows, batch: &[Change]) {
    for change in batch {
        match change {
            Change::Put { key, value } => {
                rows.insert(key.clone(), value.clone());
            }
            Change::Remove { from, to } => {
                let gone: Vec<_> =
                    rows.range(from.clone()..to.clone()).map(|(key, _)| key.clone()).collect();
                for key in gone {
                    rows.remove(&key);
                }
            }
        }
    }
}

struct Open(Catalogue);

impl Pairs for Open {
    fn write(&self, batch: Vec<Change>) -> Result<(), CatalogError> {
        let mut kept = self.0.kept();
        apply(&mut kept.rows, &batch);
        kept.log.push(batch);
        Ok(())
    }

    fn scan(&self, from: &[u8], to: &[u8], take: &mut Take<'_>) -> Result<(), CatalogError> {
        let kept = self.0.kept();
        for (key, value) in kept.rows.range(from.to_vec()..to.to_vec()) {
            take(key, value)?;
        }
        Ok(())
    }

    fn emptied(self: Box<Self>) -> Result<Box<dyn Pairs>, CatalogError> {
        *self.0.kept() = Kept { exists: true, ..Kept::default() };
        Ok(self)
    }

    fn flush(&self) -> Result<(), CatalogError> {
        let mut kept = self.0.kept();
        kept.flushed = kept.rows.clone();
        kept.log.clear();
        Ok(())
    }
}
