//! Who a node is to its fleet, as its disks keep it: a file in each store directory, replaced whole.
//!
//! It names the stores that it was written beside. Where one of them is missing at a start, blocks
//! that were published are gone: the node begins another epoch, and all it published before is void.

use crate::private_file;
use refrain_index::directory::{GROUPS, Life, NodeId};
use refrain_store::format::checksum;
use std::io;
use std::path::Path;
use tracing::{info, warn};

/// Its name within a store directory.
const LIFE_FILE: &str = "fleet";
const MAGIC: [u8; 8] = *b"REFRAINF";
type StoreId = [u8; 16];

/// What the drives of a node say.
#[derive(Debug)]
pub(super) struct Lives {
    stores: Vec<StoreId>,
    /// Drives that are not there, and may come back.
    missing: usize,
    found: Vec<(Life, Vec<StoreId>)>,
}

impl Lives {
    pub(super) fn read<'a>(
        drives: impl Iterator<Item = (&'a Path, StoreId)>,
        missing: usize,
    ) -> Self {
        let mut lives = Self { stores: Vec::new(), missing, found: Vec::new() };
        for (directory, store) in drives {
            lives.stores.push(store);
            let path = directory.join(LIFE_FILE);
            let found = match std::fs::read(&path) {
                Ok(bytes) => decode(&bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) => None,
            };
            if found.is_none() {
                // As good as a lost disk, unless another drive tells it.
                warn!(path = %path.display(), "not readable: this node may begin another epoch");
            }
            lives.found.extend(found);
        }
        lives
    }

    /// The life that goes on as `node`, or begins; and the stores that it is of.
    pub(super) fn life(&self, node: NodeId) -> (Life, Vec<StoreId>) {
        let mut stores = self.stores.clone();
        let of_node = self.found.iter().filter(|(life, _)| life.node == node);
        // A crash may leave an earlier one on some drives.
        let Some((life, known)) = of_node.max_by_key(|(life, _)| life.epoch) else {
            return (Life::begin(node), stores);
        };
        let away: Vec<_> = known.iter().filter(|store| !stores.contains(store)).copied().collect();
        if away.len() <= self.missing {
            stores.extend(away);
            return (life.clone(), stores);
        }
        info!(
            node = node.0,
            epoch = life.epoch,
            "a disk was lost: what this node published is void"
        );
        (life.renewed().unwrap_or_else(|| Life::begin(node)), stores)
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
            Lives::read(drives, 0).life(node).0
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
    fn a_drive_that_is_missing_is_not_lost_and_is_still_known_when_it_is_back() {
        let (mut disks, life) = (Disks::new(2), some_life());
        disks.write(&life);
        let away = disks.0.pop().unwrap();
        let drives = || disks.0.iter().map(|(directory, store)| (directory.path(), *store));
        let (found, stores) = Lives::read(drives(), 1).life(NODE);
        assert_eq!((found, &stores[..]), (life.clone(), &[[0; 16], away.1][..]));
        write(drives().map(|(path, _)| path), &life, &stores).unwrap();
        disks.0.push((TempDir::new().unwrap(), [99; 16]));
        assert_eq!(Some(disks.life(NODE)), life.renewed(), "another disk in its place");
        disks.0.pop();
        disks.0.push(away);
        assert_eq!(disks.life(NODE), life);
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
