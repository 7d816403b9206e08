//! Epochs of namespaces: what was saved before the current one no longer counts.
//!
//! They cannot be derived from anything, and no catalogue may take them along when it is lost: each
//! store directory holds all of them in a file of its own, replaced whole and synced. Of several
//! drives the highest epoch counts.

use crate::private_file;
use refrain_index::namespace::NamespaceDigest;
use refrain_store::format::checksum;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Its name within a store directory.
const EPOCHS_FILE: &str = "epochs";
const MAGIC: [u8; 8] = *b"REFRAINE";
const ENTRY: usize = 40;

/// Why epochs are not known, or not kept.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EpochsError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{} is damaged: blocks of dropped namespaces could come back; restore it, or delete the store",
        path.display()
    )]
    Damaged { path: PathBuf },
}

/// Why an epoch stays as it is.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RaiseError {
    #[error(
        "namespace is in epoch {current}, which cannot become {asked}: blocks that were dropped would count again"
    )]
    Lower { asked: u64, current: u64 },
    #[error("namespace is in the last epoch there is: register its weights under another revision")]
    Last,
}

/// The epochs that were ever raised; all others are 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Epochs {
    by_namespace: BTreeMap<NamespaceDigest, u64>,
}

impl Epochs {
    pub(crate) fn get(&self, namespace: NamespaceDigest) -> u64 {
        self.by_namespace.get(&namespace).copied().unwrap_or(0)
    }

    /// Raises an epoch by one.
    pub(crate) fn raise(&mut self, namespace: NamespaceDigest) -> Result<(), RaiseError> {
        let next = self.get(namespace).checked_add(1).ok_or(RaiseError::Last)?;
        self.raise_to(namespace, next)
    }

    /// Raises an epoch to `epoch`, where it may be already.
    pub(crate) fn raise_to(
        &mut self,
        namespace: NamespaceDigest,
        epoch: u64,
    ) -> Result<(), RaiseError> {
        let current = self.get(namespace);
        if epoch < current {
            return Err(RaiseError::Lower { asked: epoch, current });
        }
        if epoch > 0 {
            self.by_namespace.insert(namespace, epoch);
        }
        Ok(())
    }

    /// Takes in what a store directory says.
    pub(crate) fn read(&mut self, directory: &Path) -> Result<(), EpochsError> {
        let path = directory.join(EPOCHS_FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(EpochsError::Read { path, source }),
        };
        for (namespace, epoch) in decode(&bytes).ok_or(EpochsError::Damaged { path })? {
            let known = self.by_namespace.entry(namespace).or_insert(0);
            *known = epoch.max(*known);
        }
        Ok(())
    }

    /// Takes in what another store directory says.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (namespace, epoch) in &other.by_namespace {
            let known = self.by_namespace.entry(*namespace).or_insert(0);
            *known = (*epoch).max(*known);
        }
    }

    /// Those that are higher than the `other`'s.
    pub(crate) fn beyond(&self, other: &Self) -> impl Iterator<Item = (NamespaceDigest, u64)> {
        let epochs = self.by_namespace.iter().map(|(namespace, epoch)| (*namespace, *epoch));
        epochs.filter(|(namespace, epoch)| *epoch > other.get(*namespace))
    }

    /// Has a store directory say the same.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), EpochsError> {
        let path = directory.join(EPOCHS_FILE);
        private_file::replace(&path, &self.encode())
            .map_err(|source| EpochsError::Write { path, source })
    }

    /// The same of a directory that does not say so already.
    pub(crate) fn write_if_behind(&self, directory: &Path) -> Result<(), EpochsError> {
        let mut there = Self::default();
        there.read(directory)?;
        if there == *self { Ok(()) } else { self.write(directory) }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for (namespace, epoch) in &self.by_namespace {
            bytes.extend(namespace.0);
            bytes.extend(epoch.to_le_bytes());
        }
        let sum = checksum(&bytes);
        bytes.extend(sum.to_le_bytes());
        bytes
    }
}

/// `None` for anything but a whole file.
fn decode(bytes: &[u8]) -> Option<Vec<(NamespaceDigest, u64)>> {
    let (body, sum) = bytes.split_last_chunk()?;
    let entries = body.strip_prefix(&MAGIC)?;
    if checksum(body) != u64::from_le_bytes(*sum) || !entries.len().is_multiple_of(ENTRY) {
        return None;
    }
    let decode = |entry: &[u8]| {
        let (namespace, epoch) = entry.split_first_chunk()?;
        Some((NamespaceDigest(*namespace), u64::from_le_bytes(epoch.try_into().ok()?)))
    };
    entries.chunks_exact(ENTRY).map(decode).collect()
}

#[cfg(test)]
mod tests {
    //! Proves that epochs survive, that the highest counts, and that no damage passes for them.

    use super::*;

    const ONE: NamespaceDigest = NamespaceDigest([1; 32]);
    const TWO: NamespaceDigest = NamespaceDigest([2; 32]);

    #[test]
    fn the_highest_epoch_of_all_drives_counts() {
        let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut epochs = Epochs::default();
        epochs.read(left.path()).unwrap();
        assert_eq!(epochs.get(ONE), 0);
        epochs.raise(ONE).unwrap();
        epochs.raise(TWO).unwrap();
        epochs.write(left.path()).unwrap();
        epochs.raise(ONE).unwrap();
        epochs.write(right.path()).unwrap();
        for order in [[&left, &right], [&right, &left]] {
            let mut found = Epochs::default();
            for directory in order {
                found.read(directory.path()).unwrap();
            }
            assert_eq!((found.get(ONE), found.get(TWO)), (2, 1));
        }
    }

    #[test]
    fn an_epoch_never_falls_and_the_last_one_is_not_passed() {
        let mut epochs = Epochs::default();
        assert_eq!(epochs.raise_to(ONE, 0), Ok(()));
        assert_eq!(epochs, Epochs::default(), "0 is every namespace's: nothing is kept of it");
        assert_eq!(epochs.raise_to(ONE, 7), Ok(()));
        assert_eq!(epochs.raise_to(ONE, 7), Ok(()));
        assert_eq!(epochs.raise_to(ONE, 6), Err(RaiseError::Lower { asked: 6, current: 7 }));
        assert_eq!(epochs.raise_to(ONE, u64::MAX), Ok(()));
        assert_eq!(epochs.raise(ONE), Err(RaiseError::Last));
        assert_eq!((epochs.get(ONE), epochs.get(TWO)), (u64::MAX, 0));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let mut epochs = Epochs::default();
        epochs.raise(ONE).unwrap();
        let good = epochs.encode();
        let damaged = |bytes: &[u8]| {
            std::fs::write(directory.path().join(EPOCHS_FILE), bytes).unwrap();
            let read = Epochs::default().read(directory.path());
            assert!(matches!(read, Err(EpochsError::Damaged { .. })), "{read:?}");
        };
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            damaged(&bytes);
        }
        for length in 0..good.len() {
            damaged(&good[..length]);
        }
    }
}
