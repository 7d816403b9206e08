//! What became of one request.

use super::queue::Numbered;
use serde::Serialize;

/// Written as it is to the hit log. Counts of blocks are of full blocks; times are of the attempt
/// that counted, where a sidecar was lost on the way.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Outcome {
    /// Of the request in its file, from 0.
    pub(super) index: u64,
    pub(super) timestamp_ms: u64,
    /// When it was finished, from the start of the replay.
    pub(super) served_ms: u64,
    /// Of a fleet, who served it, from 0.
    pub(super) node: usize,
    pub(super) input_tokens: u64,
    /// Blocks that the prompt fills.
    pub(super) blocks: u32,
    /// Blocks that a cache that forgets nothing would have had.
    pub(super) ideal_hit: u64,
    /// Blocks that the lookup found.
    pub(super) matched: u32,
    /// Blocks that were loaded, compared, and still leased at the end; by where they came from.
    pub(super) hit_host: u32,
    pub(super) hit_ssd: u32,
    pub(super) hit_peer: u32,
    pub(super) saved: u32,
    pub(super) refused: u32,
    pub(super) wrong_bytes: u64,
    pub(super) lookup_us: u64,
    /// From the request to the last stripe announced; 0 where there was nothing to load.
    pub(super) load_us: u64,
    /// As the sidecar foretold it at the lookup.
    pub(super) expected_load_us: u64,
    pub(super) save_us: u64,
    /// Why not all that was found was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) miss: Option<&'static str>,
    /// Why not all of the rest was saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refusal: Option<&'static str>,
    /// Saves that were refused as the drives were behind, and tried again.
    pub(super) busy: u32,
    /// How often the sidecar went away meanwhile.
    pub(super) sidecar_losses: u32,
    /// How long there was none to ask.
    pub(super) waited_ms: u64,
    /// How often a lease ran out before what was loaded under it was compared.
    pub(super) leases_lost: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

impl Outcome {
    pub(super) fn of(numbered: &Numbered) -> Self {
        let request = &numbered.request;
        Self {
            index: numbered.index,
            timestamp_ms: request.timestamp_ms,
            input_tokens: request.input_tokens,
            blocks: u32::try_from(request.blocks.len()).unwrap_or(u32::MAX),
            ideal_hit: numbered.ideal_hit,
            ..Self::default()
        }
    }

    /// Forgets what an attempt before this one ended with; what that saved is saved all the same.
    pub(super) fn begin_attempt(&mut self) {
        *self = Self {
            matched: 0,
            refused: 0,
            load_us: 0,
            expected_load_us: 0,
            save_us: 0,
            miss: None,
            refusal: None,
            ..std::mem::take(self)
        };
    }

    pub(super) fn hit(&self) -> u32 {
        self.hit_own() + self.hit_peer
    }

    /// Of them, those that the node had itself.
    pub(super) fn hit_own(&self) -> u32 {
        self.hit_host + self.hit_ssd
    }
}
