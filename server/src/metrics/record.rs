//! What the core reports, in one call each.

use super::{Eviction, Metrics, Miss, Refusal, Source};
use std::time::Duration;

impl Metrics {
    pub(crate) fn looked_up(&self, blocks: u64, matched: u64, elapsed: Duration) {
        self.lookups.inc();
        self.lookup_blocks.inc_by(blocks);
        self.matched_blocks.inc_by(matched);
        self.lookup_seconds.observe(elapsed.as_secs_f64());
    }

    pub(crate) fn loaded(&self, from: [(Source, u64); 3], block_bytes: u64, elapsed: Duration) {
        self.loads.inc();
        for (source, blocks) in from {
            self.loaded_blocks.of(source).inc_by(blocks);
            self.loaded_bytes.of(source).inc_by(blocks * block_bytes);
        }
        self.load_seconds.observe(elapsed.as_secs_f64());
    }

    pub(crate) fn missed(&self, reason: Miss, blocks: u64) {
        self.missed_blocks.of(reason).inc_by(blocks);
    }

    pub(crate) fn saved(&self, blocks: u64, bytes: u64, elapsed: Duration) {
        self.saves.inc();
        self.saved_blocks.inc_by(blocks);
        self.saved_bytes.inc_by(bytes);
        self.save_seconds.observe(elapsed.as_secs_f64());
    }

    pub(crate) fn refused(&self, reason: Refusal, blocks: u64) {
        self.refused_blocks.of(reason).inc_by(blocks);
    }

    pub(crate) fn evicted(&self, reason: Eviction, blocks: u64) {
        self.evicted_blocks.of(reason).inc_by(blocks);
    }

    pub(crate) fn moved(&self, blocks: u64, bytes: u64) {
        self.moved_blocks.inc_by(blocks);
        self.moved_bytes.inc_by(bytes);
    }
}
