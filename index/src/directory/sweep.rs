//! Entries of epochs that will never come back: their room is won back, slowly. Nothing depends on it.

use super::answer::{bytes, items};
use super::cluster::{From, Op};
use super::membership::{Inner, unix_ms};
use super::owners::{Claim, decode};
use super::slots::{GROUPS, SLOTS, bucket_key, first_slot};
use super::{Member, NodeId, NodeState, counts};
use redis::cmd;
use std::time::{Duration, Instant};

/// All of the directory is looked through in this time, by all nodes together.
const ROUND: Duration = Duration::from_hours(24);
const GROUP_ROUND: Duration = Duration::from_secs(ROUND.as_secs() / GROUPS as u64);
/// Buckets looked at in one go.
const AT_ONCE: u32 = 16;
const PATIENCE: Duration = Duration::from_secs(5);
/// An epoch may be raised by mistake, and be missed: what it left is kept for two days. That a node is
/// forgotten is somebody's word.
const AGE_MIN: Duration = Duration::from_hours(48);

impl Inner {
    pub(super) async fn sweep(&self) {
        loop {
            for group in 0..GROUPS {
                if !self.is_joined() || !self.sweeps(group) {
                    // In one sleep: whoever sweeps nothing does not wake up for each bucket.
                    tokio::time::sleep(GROUP_ROUND).await;
                    continue;
                }
                let buckets = self.buckets();
                let pause = ROUND / u32::from(SLOTS) / buckets.div_ceil(AT_ONCE);
                for slot in (first_slot(group)..).take(usize::from(SLOTS) / GROUPS) {
                    for from in 0..buckets.div_ceil(AT_ONCE) {
                        let from = from * AT_ONCE;
                        tokio::time::sleep(pause).await;
                        if self.is_joined() && self.sweeps(group) {
                            self.sweep_buckets(slot, from..(from + AT_ONCE).min(buckets)).await;
                        }
                    }
                }
            }
        }
    }

    fn buckets(&self) -> u32 {
        1 << self.directory.shared.registry().bucket_bits.unwrap_or(0)
    }

    /// Each group is one live node's, as all of them agree without a word.
    fn sweeps(&self, group: usize) -> bool {
        let registry = self.directory.shared.registry();
        let live = registry.members.values().filter(|member| member.state == NodeState::Live);
        let weight = |node: NodeId| {
            let mixed = (u64::from(node.0) << 16 | group as u64).wrapping_add(1);
            mixed
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(31)
                .wrapping_mul(0xbf58_476d_1ce4_e5b9)
        };
        live.map(|member| member.node).max_by_key(|node| weight(*node)) == Some(self.claim().node)
    }

    async fn sweep_buckets(&self, slot: u16, buckets: std::ops::Range<u32>) {
        let shared = &self.directory.shared;
        let registry = shared.registry();
        let Some(bits) = registry.bucket_bits else { return };
        let keys: Vec<_> = buckets.map(|bucket| bucket_key(slot, bucket, bits)).collect();
        let read = |key: &Vec<u8>| Op { slot, command: cmd("HGETALL").arg(key).to_owned() };
        let reads: Vec<_> = keys.iter().map(read).collect();
        let answers = shared.cluster.run(&reads, From::Any, Instant::now() + PATIENCE).await;
        let oldest =
            unix_ms().saturating_sub(u64::try_from(AGE_MIN.as_millis()).unwrap_or(u64::MAX));
        let is_dead = |claim: &Claim| {
            let member = registry.members.get(&claim.node);
            let is_old = |member: &Member| member.epoch > claim.epoch && member.since_ms < oldest;
            member.is_some_and(is_old) || registry.is_forgotten(*claim)
        };
        let mut removals = Vec::new();
        for (key, answer) in keys.iter().zip(answers) {
            let (entries, _) = answer.as_ref().and_then(items).unwrap_or_default().as_chunks::<2>();
            for [field, value] in entries {
                let (Some(field), Some(value)) = (bytes(field), bytes(value)) else { continue };
                for claim in decode(value).unwrap_or_default().iter().filter(|claim| is_dead(claim))
                {
                    let mut command = cmd("FCALL");
                    command.arg("refrain1_del").arg(1).arg(key).arg(&claim.encode()[..]).arg(field);
                    removals.push(Op { slot, command });
                }
            }
        }
        if !removals.is_empty() {
            let done = shared.cluster.run(&removals, From::Master, Instant::now() + PATIENCE).await;
            counts::add(&shared.counts.swept, done.iter().flatten().count());
        }
    }
}
