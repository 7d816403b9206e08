//! What a replay measured: summed up request by request, and divided once at the end.

use super::outcome::Outcome;
use crate::trace::Ideal;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Sums over requests.
#[derive(Debug, Default)]
pub(super) struct Totals {
    requests: u64,
    input_tokens: u64,
    blocks_asked: u64,
    hit_host: u64,
    hit_ssd: u64,
    hit_peer: u64,
    saved: u64,
    refused: u64,
    busy: u64,
    wrong_bytes: u64,
    errors: u64,
    first_error: Option<String>,
    nodes: BTreeMap<usize, NodeTotals>,
    sidecar_losses: u64,
    waited_ms: u64,
    leases_lost: u64,
    misses: BTreeMap<&'static str, u64>,
    refusals: BTreeMap<&'static str, u64>,
    lookup_us: Vec<u64>,
    load_us: Vec<u64>,
    /// |expected - actual| / actual, of loads from SSD.
    expected_load_errors: Vec<f64>,
}

/// Sums over the requests of one node.
#[derive(Clone, Copy, Debug, Default)]
struct NodeTotals {
    requests: u64,
    input_tokens: u64,
    hit_blocks: u64,
    saved: u64,
}

/// What is known of a replay beside its requests.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) block_bytes: u64,
    pub(super) block_tokens: u64,
    pub(super) workers: u32,
    pub(super) concurrency: u32,
    pub(super) nodes: u16,
    pub(super) capacity_bytes: Option<u64>,
    pub(super) elapsed: Duration,
    pub(super) late_max: Duration,
    pub(super) ideal: Ideal,
    pub(super) interrupted: bool,
    pub(super) restarts: Restarts,
    pub(super) spoiled: Option<u64>,
}

/// What was done to our own sidecars on the way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Restarts {
    pub(super) count: u64,
    /// Whether it was killed; otherwise it was asked to stop.
    pub(super) killed: bool,
    /// From the start of the process until it accepted; of several, the longest.
    pub(super) start_time: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50: u64,
    pub(super) p99: u64,
    pub(super) max: u64,
}

/// One node of a fleet.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct NodeReport {
    pub(super) requests: u64,
    pub(super) input_tokens: u64,
    pub(super) hit_tokens: u64,
    pub(super) token_hit_rate: f64,
    pub(super) blocks_saved: u64,
}

/// The report as `--json` prints it. A GB is 10^9 bytes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) requests: u64,
    pub(super) input_tokens: u64,
    pub(super) hit_tokens: u64,
    pub(super) token_hit_rate: f64,
    pub(super) ideal_token_hit_rate: f64,
    pub(super) block_bytes: u64,
    pub(super) block_tokens: u64,
    pub(super) workers: u32,
    pub(super) concurrency: u32,
    pub(super) capacity_bytes: Option<u64>,
    pub(super) blocks_asked: u64,
    pub(super) blocks_hit_host: u64,
    pub(super) blocks_hit_ssd: u64,
    pub(super) blocks_hit_peer: u64,
    pub(super) blocks_saved: u64,
    pub(super) blocks_refused: u64,
    /// Requests by why not all that was found was loaded.
    pub(super) misses: BTreeMap<&'static str, u64>,
    /// Requests by why not all of the rest was saved.
    pub(super) refusals: BTreeMap<&'static str, u64>,
    pub(super) busy_saves: u64,
    pub(super) loaded_bytes: u64,
    pub(super) saved_bytes: u64,
    pub(super) wrong_bytes: u64,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
    pub(super) elapsed_s: f64,
    /// Bytes loaded in the time that loads took, each on its own.
    pub(super) load_gbps: f64,
    /// Bytes loaded and saved in the time of the replay.
    pub(super) read_gbps: f64,
    pub(super) write_gbps: f64,
    pub(super) lookup_us: Percentiles,
    pub(super) load_us: Percentiles,
    pub(super) expected_load_error_p90: Option<f64>,
    pub(super) sidecar_losses: u64,
    pub(super) waited_ms: u64,
    pub(super) leases_lost: u64,
    pub(super) restarts: u64,
    pub(super) restart_ms: Option<f64>,
    pub(super) killed: bool,
    pub(super) late_ms_max: u64,
    pub(super) interrupted: bool,
    /// Places where what a node sent was changed or cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) spoiled: Option<u64>,
    /// Of a fleet, every node, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) nodes: Vec<NodeReport>,
}

impl Totals {
    pub(super) fn add(&mut self, outcome: &Outcome) {
        self.requests += 1;
        self.input_tokens += outcome.input_tokens;
        self.blocks_asked += u64::from(outcome.blocks);
        self.hit_host += u64::from(outcome.hit_host);
        self.hit_ssd += u64::from(outcome.hit_ssd);
        self.hit_peer += u64::from(outcome.hit_peer);
        self.saved += u64::from(outcome.saved);
        self.refused += u64::from(outcome.refused);
        self.busy += u64::from(outcome.busy);
        self.wrong_bytes += outcome.wrong_bytes;
        self.sidecar_losses += u64::from(outcome.sidecar_losses);
        self.waited_ms += outcome.waited_ms;
        self.leases_lost += u64::from(outcome.leases_lost);
        let node = self.nodes.entry(outcome.node).or_default();
        node.requests += 1;
        node.input_tokens += outcome.input_tokens;
        node.hit_blocks += u64::from(outcome.hit());
        node.saved += u64::from(outcome.saved);
        if let Some(reason) = outcome.miss {
            *self.misses.entry(reason).or_default() += 1;
        }
        if let Some(refusal) = outcome.refusal {
            *self.refusals.entry(refusal).or_default() += 1;
        }
        if let Some(error) = &outcome.error {
            self.errors += 1;
            self.first_error.get_or_insert_with(|| format!("request {}: {error}", outcome.index));
            return;
        }
        self.lookup_us.push(outcome.lookup_us);
        if outcome.hit() > 0 {
            self.load_us.push(outcome.load_us);
        }
        // What was foretold was foretold for all that was found.
        if outcome.hit_ssd > 0 && outcome.hit() == outcome.matched {
            let (expected, actual) = (outcome.expected_load_us, outcome.load_us.max(1));
            self.expected_load_errors.push(ratio(expected.abs_diff(actual), actual));
        }
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    fn hit(&self) -> u64 {
        self.hit_host + self.hit_ssd + self.hit_peer
    }

    pub(super) fn token_hit_rate(&self, block_tokens: u64) -> f64 {
        ratio(self.hit() * block_tokens, self.input_tokens)
    }

    pub(super) fn report(mut self, frame: &Frame) -> Report {
        let loaded_bytes = self.hit() * frame.block_bytes;
        let saved_bytes = self.saved * frame.block_bytes;
        let load_time = Duration::from_micros(self.load_us.iter().sum());
        self.expected_load_errors.sort_unstable_by(f64::total_cmp);
        let Restarts { count, killed, start_time } = frame.restarts;
        let is_fleet = frame.nodes > 1;
        let of_node = |node: &NodeTotals| {
            let hit_tokens = node.hit_blocks * frame.block_tokens;
            NodeReport {
                requests: node.requests,
                input_tokens: node.input_tokens,
                hit_tokens,
                token_hit_rate: ratio(hit_tokens, node.input_tokens),
                blocks_saved: node.saved,
            }
        };
        Report {
            requests: self.requests,
            input_tokens: self.input_tokens,
            hit_tokens: self.hit() * frame.block_tokens,
            token_hit_rate: self.token_hit_rate(frame.block_tokens),
            ideal_token_hit_rate: frame.ideal.token_hit_rate(),
            block_bytes: frame.block_bytes,
            block_tokens: frame.block_tokens,
            workers: frame.workers,
            concurrency: frame.concurrency,
            capacity_bytes: frame.capacity_bytes,
            blocks_asked: self.blocks_asked,
            blocks_hit_host: self.hit_host,
            blocks_hit_ssd: self.hit_ssd,
            blocks_hit_peer: self.hit_peer,
            blocks_saved: self.saved,
            blocks_refused: self.refused,
            misses: self.misses,
            refusals: self.refusals,
            busy_saves: self.busy,
            loaded_bytes,
            saved_bytes,
            wrong_bytes: self.wrong_bytes,
            errors: self.errors,
            first_error: self.first_error,
            elapsed_s: frame.elapsed.as_secs_f64(),
            load_gbps: gbps(loaded_bytes, load_time),
            read_gbps: gbps(loaded_bytes, frame.elapsed),
            write_gbps: gbps(saved_bytes, frame.elapsed),
            lookup_us: percentiles(&mut self.lookup_us),
            load_us: percentiles(&mut self.load_us),
            expected_load_error_p90: at_rank(&self.expected_load_errors, 90),
            sidecar_losses: self.sidecar_losses,
            waited_ms: self.waited_ms,
            leases_lost: self.leases_lost,
            restarts: count,
            restart_ms: (count > 0).then_some(start_time.as_secs_f64() * 1e3),
            killed,
            late_ms_max: u64::try_from(frame.late_max.as_millis()).unwrap_or(u64::MAX),
            interrupted: frame.interrupted,
            spoiled: frame.spoiled,
            nodes: self.nodes.values().filter(|_| is_fleet).map(of_node).collect(),
        }
    }
}

impl Report {
    /// What a replay must not show; `None` when all is well.
    pub(super) fn verdict(&self) -> Option<String> {
        if self.wrong_bytes > 0 {
            return Some(format!("{} bytes came back wrong", self.wrong_bytes));
        }
        let first = self.first_error.as_deref().unwrap_or("unknown");
        (self.errors > 0).then(|| format!("{} requests failed; the first: {first}", self.errors))
    }
}

fn percentiles(values: &mut [u64]) -> Percentiles {
    values.sort_unstable();
    let at = |percent| at_rank(values, percent).unwrap_or_default();
    Percentiles { p50: at(50), p99: at(99), max: at(100) }
}

/// The least of these sorted values that `percent` of them do not exceed.
fn at_rank<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

fn gbps(bytes: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { ratio(bytes, 1_000_000_000) / time.as_secs_f64() }
}

#[expect(clippy::cast_precision_loss, reason = "ratios for people; all stays below 2^53")]
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests;
