//! The drives of a node by their number, in the order of the config: those that are there, and those
//! that a start did not find. A drive that comes later takes its place; none leaves it.

use crate::attempt::Attempt;
use crate::journal::Journal;
use crate::place::DriveId;
use crate::said::said;
use refrain_store::drive::{Drive, DriveStats};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::Notify;

/// One drive and its journal.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) drive: Drive,
    /// Another one where it was made anew.
    pub(crate) store_id: [u8; 16],
    pub(crate) journal: Journal,
    /// Told when free segments may run low, or a segment is held no more.
    pub(crate) reclaim: Arc<Notify>,
    /// Told when the drive is given work.
    pub(crate) asked: Notify,
    /// Written again by reclaim.
    pub(crate) moved_bytes: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct Disks(Vec<Slot>);

#[derive(Debug)]
struct Slot {
    disk: OnceLock<Disk>,
    missing: Missing,
}

/// A drive that is not there.
#[derive(Debug)]
pub(crate) struct Missing {
    pub(crate) path: PathBuf,
    pub(crate) capacity_bytes: u64,
    why: Mutex<String>,
    /// Of one that hung at the start.
    late: Mutex<Option<Attempt>>,
}

impl Disks {
    pub(crate) fn push(&mut self, disk: Disk) {
        let (path, capacity_bytes) = (disk.drive.path().into(), disk.drive.stats().capacity_bytes);
        let (why, late) = Default::default();
        let missing = Missing { path, capacity_bytes, why, late };
        self.0.push(Slot { disk: disk.into(), missing });
    }

    /// A drive that is not there, and the attempt at it that has not ended.
    pub(crate) fn push_missing(
        &mut self,
        (path, capacity_bytes): (&Path, u64),
        why: &dyn Error,
        late: Option<Attempt>,
    ) {
        let (why, late) = (said(why).into(), late.into());
        let missing = Missing { path: path.into(), capacity_bytes, why, late };
        self.0.push(Slot { disk: OnceLock::new(), missing });
    }

    /// A drive that was missing is there.
    pub(crate) fn put(&self, id: DriveId, disk: Disk) {
        let put = self.0[usize::from(id.0)].disk.set(disk);
        assert!(put.is_ok(), "a drive comes once");
    }

    /// How many there should be.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn get(&self, id: DriveId) -> Option<&Disk> {
        self.0[usize::from(id.0)].disk.get()
    }

    /// Those that are there.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (DriveId, &Disk)> {
        self.all().filter_map(|(id, disk)| Some((id, disk.ok()?)))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Disk> {
        self.numbered().map(|(_, disk)| disk)
    }

    pub(crate) fn missing(&self) -> impl Iterator<Item = (DriveId, &Missing)> {
        self.all().filter_map(|(id, disk)| Some((id, disk.err()?)))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (DriveId, Result<&Disk, &Missing>)> {
        (0..=u8::MAX)
            .map(DriveId)
            .zip(&self.0)
            .map(|(id, slot)| (id, slot.disk.get().ok_or(&slot.missing)))
    }

    pub(crate) fn stats(&self) -> Vec<(PathBuf, DriveStats)> {
        let stats = |(_, disk): (DriveId, Result<&Disk, &Missing>)| match disk {
            Ok(disk) => (disk.drive.path().into(), disk.drive.stats()),
            Err(missing) => (missing.path.clone(), DriveStats::missing(missing.capacity_bytes)),
        };
        self.all().map(stats).collect()
    }
}

impl Missing {
    pub(crate) fn why(&self) -> String {
        self.locked().clone()
    }

    /// The attempt at it that had not ended at the start; once.
    pub(crate) fn take_late(&self) -> Option<Attempt> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether this is another reason than the last.
    pub(crate) fn now_because(&self, why: &dyn Error) -> bool {
        let (mut known, why) = (self.locked(), said(why));
        let is_new = *known != why;
        *known = why;
        is_new
    }

    fn locked(&self) -> MutexGuard<'_, String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
