//! Pins as each store directory keeps them: one file, replaced whole and synced.
//!
//! Of several drives the file that was written last counts. One that is damaged costs its pins and
//! nothing else: they hold no block, they only keep it.

use super::Until;
use crate::private_file;
use refrain_index::chain::BlockKey;
use refrain_index::hash::SequenceHash;
use refrain_store::format::checksum;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Its name within a store directory.
const PINS_FILE: &str = "pins";
const MAGIC: [u8; 8] = *b"REFRAINP";
const ENTRY: usize = 44;
/// Stands for a pin that never ends by itself.
const NEVER: u64 = u64::MAX;

/// Why pins are not known, or would not outlive a start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum PinsFileError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is damaged: its pins are lost", path.display())]
    Damaged { path: PathBuf },
}

/// All pins as they were kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Counts writes.
    pub(crate) sequence: u64,
    pub(crate) pins: Vec<(BlockKey, Until)>,
}

impl Kept {
    /// What a store directory says; of a new one, nothing.
    pub(crate) fn read(directory: &Path) -> Result<Self, PinsFileError> {
        let path = directory.join(PINS_FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(PinsFileError::Read { path, source }),
        };
        Self::decode(&bytes).ok_or(PinsFileError::Damaged { path })
    }

    /// Has a store directory say this.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), PinsFileError> {
        let path = directory.join(PINS_FILE);
        private_file::replace(&path, &self.encode())
            .map_err(|source| PinsFileError::Write { path, source })
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.sequence.to_le_bytes());
        for (BlockKey { sequence, shard }, until) in &self.pins {
            bytes.extend(sequence.0);
            bytes.extend(shard.to_le_bytes());
            bytes.extend(until.unwrap_or(NEVER).to_le_bytes());
        }
        let sum = checksum(&bytes);
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    /// `None` for anything but a whole file.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk()?;
        if checksum(body) != u64::from_le_bytes(*sum) {
            return None;
        }
        let (sequence, entries) = body.strip_prefix(&MAGIC)?.split_first_chunk()?;
        if !entries.len().is_multiple_of(ENTRY) {
            return None;
        }
        let pins = entries.chunks_exact(ENTRY).map(entry).collect::<Option<_>>()?;
        Some(Self { sequence: u64::from_le_bytes(*sequence), pins })
    }
}

fn entry(bytes: &[u8]) -> Option<(BlockKey, Until)> {
    let (sequence, rest) = bytes.split_first_chunk()?;
    let (shard, until) = rest.split_first_chunk()?;
    let until = u64::from_le_bytes(until.try_into().ok()?);
    let key = BlockKey { sequence: SequenceHash(*sequence), shard: u32::from_le_bytes(*shard) };
    Some((key, (until != NEVER).then_some(until)))
}

#[cfg(test)]
mod tests {
    //! Proves that pins come back as they were kept, and that no damage passes for them.

    use super::*;

    fn kept() -> Kept {
        let key = |id, shard| BlockKey { sequence: SequenceHash([id; 32]), shard };
        Kept { sequence: 7, pins: vec![(key(1, 0), Some(1_790_000_000_000)), (key(2, 3), None)] }
    }

    #[test]
    fn pins_are_read_as_they_were_written() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Kept::read(directory.path()).unwrap(), Kept::default());
        kept().write(directory.path()).unwrap();
        assert_eq!(Kept::read(directory.path()).unwrap(), kept());
        Kept::default().write(directory.path()).unwrap();
        assert_eq!(Kept::read(directory.path()).unwrap(), Kept::default());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_damage() {
        let good = kept().encode();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Kept::decode(&bytes), None, "bit {bit}");
        }
        for length in 0..good.len() {
            assert_eq!(Kept::decode(&good[..length]), None, "{length} bytes");
        }
    }
}
