//! Drives that are asked for nothing: one that hangs, or whose reads fail, costs its own blocks only.
//!
//! A drive is withdrawn by what it does, and comes back by what it does. One that hangs is back as
//! soon as the operation that hung has ended; one whose reads fail is asked for one block now and
//! then, until a read goes well. Its blocks stay in the index meanwhile: lookups end before them,
//! unless memory holds them, and who has made them anew may save them again, elsewhere.

use crate::disks::Disk;
use crate::node::Node;
use crate::place::{BlockPlace, DriveId, Group};
use refrain_index::chain::BlockKey;
use refrain_store::drive::{Drive, Withdrawn};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// Between two looks at a drive that has work, or is withdrawn. An idle drive is not looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// The drives that are withdrawn now.
#[derive(Clone, Debug, Default)]
pub(crate) struct WithdrawnDrives(Vec<DriveId>);

impl WithdrawnDrives {
    pub(crate) fn has(&self, drive: DriveId) -> bool {
        self.0.contains(&drive)
    }

    pub(crate) fn holds(&self, place: &BlockPlace) -> bool {
        !self.0.is_empty() && self.has(place.group.drive())
    }
}

impl Disk {
    pub(crate) fn takes_writes(&self) -> bool {
        let stats = self.drive.stats();
        stats.writable && stats.withdrawn.is_none()
    }
}

impl Node {
    pub(crate) fn withdrawn(&self) -> WithdrawnDrives {
        let drives = self.disks.numbered();
        let is = |(id, disk): (DriveId, &Disk)| disk.drive.withdrawn().map(|_| id);
        WithdrawnDrives(drives.filter_map(is).collect())
    }

    /// Tells of a drive's withdrawals and returns, and tries one whose reads fail, for as long as the
    /// node runs.
    pub async fn attend(self: Arc<Self>, id: DriveId) {
        let disk = self.disk(id);
        let mut was = None;
        loop {
            let is = disk.drive.withdrawn();
            if is != was {
                tell(&disk.drive, is);
                was = is;
            }
            if is == Some(Withdrawn::Fails)
                && let Some((key, place)) = self.any_block_on(id)
                && let Some((_frame, outcome)) = self.try_record(key, place)
            {
                // How it went, the drive counts.
                let _ = outcome.await;
            }
            if is.is_none() && disk.drive.is_idle() {
                disk.asked.notified().await;
            }
            self.clock.sleep(INTERVAL).await;
        }
    }

    fn any_block_on(&self, id: DriveId) -> Option<(BlockKey, BlockPlace)> {
        let segments = self.disk(id).drive.segments();
        let state = self.state();
        let groups = segments.iter().filter_map(|segment| Group::new(id, segment.id));
        groups
            .filter_map(|group| state.chain.group(group.number()).next())
            .map(|(key, place, _)| (key, place))
            .next()
    }
}

fn tell(drive: &Drive, is: Option<Withdrawn>) {
    let path = drive.path().display();
    if let Some(why) = is {
        warn!(drive = %path, %why, "drive withdrawn: its blocks are misses");
    } else {
        info!(drive = %path, "drive is back");
    }
}
