//! One caller's view of a load: which stripes have come, and where the prefix breaks off.

use super::{Miss, count, index};
use crate::clock::Clock;
use crate::metrics::Source as Tier;
use refrain_store::arena::Frame;
use refrain_store::geometry::{HEADER_SIZE, Layout};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Stripe `stripe` of `blocks` blocks from `first_block` on is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    pub stripe: u32,
    pub first_block: u32,
    pub blocks: u32,
}

/// How a load ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Blocks from this one on are misses.
    pub loaded: u32,
    pub reason: Option<Miss>,
    pub host: u32,
    pub ssd: u32,
    pub peer: u32,
}

/// One caller's blocks.
#[derive(Debug)]
pub struct Load {
    /// Of each block that was placed.
    pub frames: Vec<Arc<Frame>>,
    pub layout: Layout,
    pub deadline: Instant,
    /// Blocks wanted; those behind the placed ones are misses.
    pub(super) asked: u32,
    /// Where each placed block was.
    tiers: Vec<Tier>,
    progress: Mutex<Progress>,
    changed: Notify,
    clock: Clock,
}

#[derive(Debug)]
struct Progress {
    /// Not announced yet.
    arrived: Vec<(u32, u32)>,
    /// Stripes that each block lacks.
    lacking: Vec<u32>,
    /// Blocks from this one on are misses.
    end: u32,
    reason: Option<Miss>,
    /// Blocks before it are complete.
    complete: u32,
}

impl Load {
    pub(super) fn new(
        (asked, frames): (u32, Vec<Arc<Frame>>),
        tiers: Vec<Tier>,
        layout: Layout,
        deadline: Instant,
        reason: Option<Miss>,
        clock: Clock,
    ) -> Self {
        let stripes = count(layout.stripes.len());
        let lacking = vec![stripes; frames.len()];
        let end = count(frames.len());
        let progress = Progress { arrived: Vec::new(), lacking, end, reason, complete: 0 };
        let (progress, changed) = (Mutex::new(progress), Notify::new());
        Self { frames, layout, deadline, asked, tiers, progress, changed, clock }
    }

    /// Where each block's payload lies in the load arena.
    pub fn payload_offsets(&self) -> Vec<u64> {
        self.frames.iter().map(|frame| frame.region().offset() + HEADER_SIZE).collect()
    }

    /// What has arrived since the last call, in layer order; `None` when no more will. After the
    /// deadline nothing more does.
    pub async fn next(&self) -> Option<Vec<Ready>> {
        loop {
            let changed = self.changed.notified();
            match self.take_arrived() {
                Some(arrived) if arrived.is_empty() => {}
                Some(arrived) => return Some(runs(arrived)),
                None => return None,
            }
            if self.clock.until(self.deadline, changed).await.is_none() {
                self.cut(0, Miss::Deadline);
            }
        }
    }

    /// Stripes not announced yet; `None` when there are none, and none will come.
    fn take_arrived(&self) -> Option<Vec<(u32, u32)>> {
        let mut progress = self.progress();
        let arrived = std::mem::take(&mut progress.arrived);
        let is_over = arrived.is_empty() && progress.complete >= progress.end;
        (!is_over).then_some(arrived)
    }

    /// How it ended, once it has.
    pub fn ended(&self) -> Ended {
        let progress = self.progress();
        let loaded = progress.complete;
        let placed = usize::try_from(loaded).expect("32 bits fit");
        let of = |tier: Tier| count(self.tiers[..placed].iter().filter(|it| **it == tier).count());
        let (host, ssd, peer) = (of(Tier::Host), of(Tier::Ssd), of(Tier::Peer));
        Ended { loaded, reason: progress.reason, host, ssd, peer }
    }

    pub(super) fn arrive(&self, block: u32, stripe: u32) {
        let mut progress = self.progress();
        progress.arrived.push((stripe, block));
        progress.lacking[index(block)] -= 1;
        while progress.lacking.get(index(progress.complete)) == Some(&0) {
            progress.complete += 1;
        }
        drop(progress);
        self.changed.notify_one();
    }

    /// Blocks from `block` on, or from the first that is not complete, are misses.
    pub(super) fn cut(&self, block: u32, reason: Miss) {
        let mut progress = self.progress();
        let end = block.max(progress.complete);
        if end < progress.end {
            (progress.end, progress.reason) = (end, Some(reason));
        }
        drop(progress);
        self.changed.notify_one();
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Nothing panics while holding it.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Joins what has arrived into runs of blocks, stripe by stripe.
fn runs(mut arrived: Vec<(u32, u32)>) -> Vec<Ready> {
    arrived.sort_unstable();
    let mut runs: Vec<Ready> = Vec::new();
    for (stripe, block) in arrived {
        match runs.last_mut() {
            Some(run) if run.stripe == stripe && run.first_block + run.blocks == block => {
                run.blocks += 1;
            }
            Some(_) | None => runs.push(Ready { stripe, first_block: block, blocks: 1 }),
        }
    }
    runs
}

#[cfg(test)]
mod tests;
