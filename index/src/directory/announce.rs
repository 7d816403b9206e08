//! What makes a directory whole that has lost something.
//!
//! Each group of slots has a marker, which is lost with them; whoever misses one sets a new one, and
//! every node that had announced its blocks under another announces them again. What is lost without
//! its marker is found by an audit: some blocks are looked for, every minute.

use super::answer::text;
use super::cluster::{From, Op};
use super::membership::{Inner, Life, keep};
use super::slots::{GROUPS, first_slot, group, marker_key};
use super::{counts, get, locked};
use crate::chain::BlockKey;
use redis::{Value, cmd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::info;

/// Between two looks at the markers.
const MARKERS_INTERVAL: Duration = Duration::from_secs(10);
const MARKERS_PATIENCE: Duration = Duration::from_secs(2);
/// Blocks announced in one batch, and the least time it takes: 20,000 a second.
const ANNOUNCED_AT_ONCE: usize = 512;
const ANNOUNCED_IN: Duration = Duration::from_micros(25_600);

const AUDIT_INTERVAL: Duration = Duration::from_mins(1);
const AUDIT_PATIENCE: Duration = Duration::from_secs(5);
/// Blocks looked for at a time, and of one page.
const AUDITED: usize = 1024;
const AUDITED_OF_PAGE: usize = 64;
/// Missing ones of a group that are no accident, if they are half of those looked for.
const MISSING_MIN: usize = 2;

impl Inner {
    /// Announces groups whose marker is another than the last time.
    pub(super) async fn announce(&self) {
        loop {
            let joined = self.joined_now.notified();
            if self.is_joined() {
                let markers = self.markers().await;
                let due: Vec<(usize, u64)> = {
                    let life = locked(&self.life);
                    let markers = markers.into_iter().enumerate();
                    let markers = markers.filter_map(|(group, marker)| Some((group, marker?)));
                    markers.filter(|(group, marker)| life.announced[*group] != *marker).collect()
                };
                if !due.is_empty() {
                    self.announce_groups(due).await;
                }
            }
            // Whichever comes first.
            let _ = tokio::time::timeout(MARKERS_INTERVAL, joined).await;
        }
    }

    /// Of each group its marker; a missing one is set.
    async fn markers(&self) -> Vec<Option<u64>> {
        let read = |group| {
            let command = cmd("GET").arg(marker_key(group)).to_owned();
            Op { slot: first_slot(group), command }
        };
        let cluster = &self.directory.shared.cluster;
        let reads: Vec<_> = (0..GROUPS).map(read).collect();
        // Of the masters: a replica may lack what was just set.
        let deadline = Instant::now() + MARKERS_PATIENCE;
        let mut answers = cluster.run(&reads, From::Master, deadline).await;
        let is_marker = |value: &Value| parse(value).is_some();
        let missing: Vec<usize> = (0..GROUPS)
            .filter(|group| answers[*group].as_ref().is_some_and(|value| !is_marker(value)))
            .collect();
        if !missing.is_empty() {
            let set = |&group: &usize| {
                let marker = format!("{:016x}", fastrand::u64(1..));
                let mut command = cmd("SET").arg(marker_key(group)).arg(marker).to_owned();
                // What is there and is no marker is nobody's.
                if answers[group] == Some(Value::Nil) {
                    command.arg("NX");
                }
                Op { slot: first_slot(group), command }
            };
            let sets: Vec<_> = missing.iter().map(set).collect();
            cluster.run(&sets, From::Master, deadline).await;
            let again: Vec<_> = missing.iter().map(|group| read(*group)).collect();
            let read = cluster.run(&again, From::Master, deadline).await;
            missing.iter().zip(read).for_each(|(group, answer)| answers[*group] = answer);
        }
        answers.iter().map(|answer| parse(answer.as_ref()?)).collect()
    }

    async fn announce_groups(&self, mut due: Vec<(usize, u64)>) {
        let begun = Instant::now();
        let epoch = self.claim().epoch;
        let mut wanted = [false; GROUPS];
        for (group, _) in &due {
            wanted[*group] = true;
        }
        let mut blocks = 0;
        for page in 0..self.holdings.pages() {
            let mut keys = self.holdings.page(page);
            keys.retain(|key| wanted[group(*key)]);
            for some in keys.chunks(ANNOUNCED_AT_ONCE) {
                let begun = Instant::now();
                let failed = self.write(some).await;
                blocks += some.len() - failed.len();
                for key in failed {
                    wanted[group(key)] = false;
                }
                tokio::time::sleep(ANNOUNCED_IN.saturating_sub(begun.elapsed())).await;
            }
            if !wanted.contains(&true) {
                return;
            }
        }
        due.retain(|(group, _)| wanted[*group]);
        let Some(life) = self.announced(epoch, &due) else { return };
        let holdings = Arc::clone(&self.holdings);
        // Whether or not it is kept: a restart that does not know announces once more.
        let _ = tokio::task::spawn_blocking(move || keep(&*holdings, &life)).await;
        let groups = due.len();
        counts::add(&self.directory.shared.counts.announced_groups, groups);
        info!(groups, blocks, elapsed = ?begun.elapsed(), "announced blocks to the fleet");
    }

    /// Notes the markers that groups were announced under; `None` where that was in another epoch.
    fn announced(&self, epoch: u16, groups: &[(usize, u64)]) -> Option<Life> {
        let mut life = locked(&self.life);
        let is_same = life.epoch == epoch;
        for &(group, marker) in groups.iter().filter(|_| is_same) {
            life.announced[group] = marker;
        }
        is_same.then(|| life.clone())
    }

    /// Looks for some own blocks, and writes those that are missing.
    pub(super) async fn audit(&self) {
        loop {
            tokio::time::sleep(AUDIT_INTERVAL).await;
            let keys = self.sample();
            let bits = self.directory.shared.registry().bucket_bits;
            let Some(bits) = bits.filter(|_| self.is_joined() && !keys.is_empty()) else {
                continue;
            };
            let shared = &self.directory.shared;
            let ops: Vec<_> = keys.iter().map(|key| get(*key, bits)).collect();
            let deadline = Instant::now() + AUDIT_PATIENCE;
            let answers = shared.cluster.run(&ops, From::Master, deadline).await;
            let claim = self.claim();
            let (mut looked, mut missing) = ([0; GROUPS], [0; GROUPS]);
            let mut lost = Vec::new();
            for (key, answer) in keys.iter().zip(answers) {
                let Some(answer) = answer else { continue };
                looked[group(*key)] += 1;
                // Others may have taken its place: four hold it, and that is enough.
                let claims = shared.claims(&answer);
                let is_full = claims.len() >= super::owners::OWNERS_MAX;
                if !is_full && !claims.contains(&claim) && self.holdings.holds(*key) {
                    missing[group(*key)] += 1;
                    lost.push(*key);
                }
            }
            counts::add(&shared.counts.audited, looked.iter().sum());
            counts::add(&shared.counts.audited_missing, lost.len());
            self.write(&lost).await;
            let is_lost = |&group: &usize| {
                missing[group] >= MISSING_MIN && missing[group] * 2 >= looked[group]
            };
            let groups: Vec<usize> = (0..GROUPS).filter(is_lost).collect();
            if !groups.is_empty() {
                let life = locked(&self.life).clone();
                let due: Vec<_> =
                    groups.iter().map(|&group| (group, life.announced[group])).collect();
                info!(groups = due.len(), "entries are missing in the directory");
                self.announce_groups(due).await;
            }
        }
    }

    fn sample(&self) -> Vec<BlockKey> {
        let pages = self.holdings.pages();
        let mut sample = Vec::with_capacity(AUDITED);
        for _ in 0..AUDITED / AUDITED_OF_PAGE {
            if pages == 0 {
                break;
            }
            let mut page = self.holdings.page(fastrand::usize(..pages));
            fastrand::shuffle(&mut page);
            page.truncate(AUDITED_OF_PAGE);
            sample.extend(page);
        }
        sample.sort_unstable();
        sample.dedup();
        sample
    }
}

fn parse(value: &Value) -> Option<u64> {
    u64::from_str_radix(text(value)?, 16).ok().filter(|marker| *marker != 0)
}
