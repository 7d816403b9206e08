//! Who a node is to its fleet, as its disks keep it: a file in each store directory, replaced whole.
//!
//! It names the stores that it was written beside. Where one of them is missing at a start, blocks
//! that were published are gone: the node begins another epoch, and all it published before is void.

use crate::private_file;
use refrain_index::directory::{GROUPS, Life, NodeId};
use refrain_store::format::checksum;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;
use tracing::{info, warn};

/// Its name within a store directory.
const LIFE_FILE: &str = "fleet";
const MAGIC: [u8; 8] = *b"REFRAINF";
type StoreId = [u8; 16];

/// Why it is not known who a node is.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LifeError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// What the drives of a node say.
#[derive(Debug)]
pub(super) struct Lives {
    stores: Vec<StoreId>,
    found: Vec<(Life, Vec<StoreId>)>,
}

impl Lives {
    pub(super) fn read<'a>(
        drives: impl Iterator<Item = (&'a Path, StoreId)>,
    ) -> Result<Self, LifeError> {
        let mut lives = Self { stores: Vec::new(), found: Vec::new() };
        for (directory, store) in drives {
            lives.stores.push(store);
            let path = directory.join(LIFE_FILE);
            match std::fs::read(&path) {
                Ok(bytes) => {
                    let found = decode(&bytes);
                    if found.is_none() {
                        // As good as a lost disk: what was published does not count any more.
                        warn!(path = %path.display(), "damaged: the node begins another epoch");
                    }
                    lives.found.extend(found);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(LifeError::Read { path, source }),
            }
        }
        Ok(lives)
    }

    pub(super) fn stores(&self) -> Vec<StoreId> {
        self.stores.clone()
    }

    /// The life that goes on as `node`, or begins.
    pub(super) fn life(&self, node: NodeId) -> Life {
        let of_node = self.found.iter().filter(|(life, _)| life.node == node);
        // A crash may leave an earlier one on some drives.
        let Some((life, stores)) = of_node.max_by_key(|(life, _)| life.epoch) else {
            return Life::begin(node);
        };
        if stores.iter().all(|store| self.stores.contains(store)) {
            return life.clone();
        }
        info!(
            node = node.0,
            epoch = life.epoch,
            "a disk was lost: what this node published is void"
        );
        life.renewed().unwrap_or_else(|| Life::begin(node))
    }
}

/// Has all drives say the same.
pub(super) fn write<'a>(
    drives: impl Iterator<Item = &'a Path>,
    life: &Life,
    stores: &[StoreId],
) -> io::Result<()> {
    let bytes = encode(life, stores);
    let mut drives = drives.map(|drive| private_file::replace(&drive.join(LIFE_FILE), &bytes));
    // One that keeps it is enough; those that fail have failed otherwise too.
    let first = drives.next().unwrap_or(Ok(()));
    drives.fold(first, |outcome, next| if outcome.is_ok() { outcome } else { next })
}

fn encode(life: &Life, stores: &[StoreId]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(life.identity.to_le_bytes());
    bytes.extend(life.node.0.to_le_bytes());
    bytes.extend(life.epoch.to_le_bytes());
    bytes.extend(life.announced.iter().flat_map(|marker| marker.to_le_bytes()));
    bytes.extend(stores.iter().flatten());
    let sum = checksum(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// `None` for anything but a whole file.
fn decode(bytes: &[u8]) -> Option<(Life, Vec<StoreId>)> {
    let (body, sum) = bytes.split_last_chunk()?;
    if checksum(body) != u64::from_le_bytes(*sum) {
        return None;
    }
    let body = body.strip_prefix(&MAGIC)?;
    let (identity, body) = body.split_first_chunk()?;
    let (node, body) = body.split_first_chunk()?;
    let (epoch, body) = body.split_first_chunk()?;
    let (announced, stores) = body.split_at_checked(8 * GROUPS)?;
    let (markers, _) = announced.as_chunks();
    let (stores, rest) = stores.as_chunks();
    let mut life = Life::begin(NodeId(u16::from_le_bytes(*node)));
    life.identity = u128::from_le_bytes(*identity);
    life.epoch = u16::from_le_bytes(*epoch);
    for (known, marker) in life.announced.iter_mut().zip(markers) {
        *known = u64::from_le_bytes(*marker);
    }
    rest.is_empty().then(|| (life, stores.to_vec()))
}

#[cfg(test)]
mod tests {
    //! Proves that a node is who it was while its disks are those they were, and another otherwise.

    use super::*;
    use tempfile::TempDir;

    const NODE: NodeId = NodeId(7);

    struct Disks(Vec<(TempDir, StoreId)>);

    impl Disks {
        fn new(count: u8) -> Self {
            Self((0..count).map(|store| (TempDir::new().unwrap(), [store; 16])).collect())
        }

        fn life(&self, node: NodeId) -> Life {
            let drives = self.0.iter().map(|(directory, store)| (directory.path(), *store));
            Lives::read(drives).unwrap().life(node)
        }

        fn write(&self, life: &Life) {
            let stores: Vec<_> = self.0.iter().map(|(_, store)| *store).collect();
            write(self.0.iter().map(|(directory, _)| directory.path()), life, &stores).unwrap();
        }
    }

    fn some_life() -> Life {
        let mut life = Life::begin(NODE);
        life.epoch = 3;
        life.announced[200] = 17;
        life
    }

    #[test]
    fn a_node_with_its_disks_is_who_it_was_and_as_another_number_begins_anew() {
        let (disks, life) = (Disks::new(2), some_life());
        assert_eq!(disks.life(NODE).epoch, 0);
        disks.write(&life);
        assert_eq!(disks.life(NODE), life);
        let other = disks.life(NodeId(8));
        assert_eq!((other.epoch, other.announced), (0, [0; GROUPS]));
        assert_ne!(other.identity, life.identity);
    }

    #[test]
    fn a_lost_disk_is_another_epoch_and_an_added_one_is_not() {
        let (mut disks, life) = (Disks::new(2), some_life());
        disks.write(&life);
        disks.0.push((TempDir::new().unwrap(), [9; 16]));
        assert_eq!(disks.life(NODE), life);
        disks.write(&life);
        for lost in 0..3 {
            let store = std::mem::replace(&mut disks.0[lost].1, [99; 16]);
            assert_eq!(Some(disks.life(NODE)), life.renewed());
            disks.0[lost].1 = store;
        }
        let last = Life { epoch: u16::MAX, ..life };
        disks.write(&last);
        disks.0[0].1 = [99; 16];
        assert_ne!(disks.life(NODE).identity, last.identity, "no epoch comes again");
    }

    #[test]
    fn the_latest_epoch_of_all_drives_counts() {
        let (disks, life) = (Disks::new(2), some_life());
        disks.write(&life);
        let later = life.renewed().unwrap();
        let stores: Vec<_> = disks.0.iter().map(|(_, store)| *store).collect();
        write(std::iter::once(disks.0[1].0.path()), &later, &stores).unwrap();
        assert_eq!(disks.life(NODE), later);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_damage() {
        let good = encode(&some_life(), &[[1; 16]]);
        assert!(decode(&good).is_some());
        for bit in (0..good.len() * 8).step_by(5) {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes).is_none(), "{bit}");
        }
        assert!((0..good.len()).all(|length| decode(&good[..length]).is_none()));
    }
}
