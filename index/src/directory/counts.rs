//! What the directory's client counts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use tracing::{info, warn};

/// Counters, and what is the case now; all from the start of the process.
#[derive(Debug, Default)]
pub struct Counts {
    /// Blocks that the directory was asked for.
    pub probes: AtomicU64,
    /// Of these, those that nobody could answer for in time.
    pub unknown_probes: AtomicU64,
    pub locates: AtomicU64,
    /// Entries of this node that a server acknowledged: again each time that it is told of them, as
    /// when they are announced anew.
    pub published: AtomicU64,
    /// Entries that were taken out.
    pub unpublished: AtomicU64,
    /// Writes that no server took; they are tried again.
    pub failed_writes: AtomicU64,
    /// Blocks whose change was not written in time; their group is announced anew.
    pub dropped_changes: AtomicU64,
    /// Entries of others that proved wrong, and were taken out.
    pub forgotten: AtomicU64,
    /// Values that nobody of the fleet writes.
    pub foreign_values: AtomicU64,
    /// Commands that a server refused.
    pub refused_commands: AtomicU64,
    /// Own blocks whose entry was looked for, and those that had none.
    pub audited: AtomicU64,
    pub audited_missing: AtomicU64,
    /// Groups of slots, of 256, announced since the start.
    pub announced_groups: AtomicU64,
    /// Entries of dead epochs that were swept.
    pub swept: AtomicU64,
    is_reached: AtomicBool,
    said: Mutex<Said>,
}

/// What was logged last, so that it is not said over and over.
#[derive(Debug, Default)]
struct Said {
    reached: Option<bool>,
    refusal: String,
}

impl Counts {
    /// Whether some server of the directory answers.
    pub fn is_reached(&self) -> bool {
        self.is_reached.load(Relaxed)
    }

    pub(super) fn reached(&self, is_reached: bool) {
        self.is_reached.store(is_reached, Relaxed);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.reached.replace(is_reached) == Some(is_reached) {
            return;
        }
        if is_reached {
            info!("the directory answers");
        } else {
            warn!("the directory is not reached: this node serves its own disks alone");
        }
    }

    pub(super) fn refused(&self, address: &str, code: &str, detail: &str) {
        add(&self.refused_commands, 1);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.refusal != code {
            code.clone_into(&mut said.refusal);
            warn!(address, code, detail, "a server of the directory refuses a command");
        }
    }
}

pub(super) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(u64::try_from(count).expect("usize fits"), Relaxed);
}
