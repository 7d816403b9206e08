//! What an inference worker does with a request: look up, load, save the rest, release.
//!
//! Unlike one, it waits for a sidecar that went away and then asks again from the lookup on: what
//! is measured here is the cache, not how well a worker does without. What an attempt saved before
//! the sidecar was lost may be found by the next one; it is no hit, so no attempt counts more hits
//! than the first one found.

use super::check::Check;
use super::content::{Contents, Identity};
use super::outcome::Outcome;
use super::prompt;
use super::queue::{Numbered, Queue};
use super::route::Route;
use super::{Event, Failed};
use refrain_client::v1::{MissReason, Refusal};
use refrain_client::{ClientError, Done, Layout, Lookup, Prompt, Registration};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Between two questions to a sidecar that is not there, or that is behind.
const PAUSE: Duration = Duration::from_millis(20);
/// A lease that ran out may have been the sidecar's end, which release does not tell apart.
const LEASES_LOST_MAX: u32 = 2;

#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// How long a request waits for a sidecar that went away.
    pub(super) wait: Duration,
    pub(super) save_patience: Duration,
    pub(super) deadline: Duration,
    pub(super) durable: bool,
}

/// One of those that serve requests; clones serve side by side in one session.
#[derive(Clone, Debug)]
pub(super) struct Worker {
    /// With every node.
    pub(super) registrations: Vec<Registration>,
    pub(super) route: Arc<Route>,
    pub(super) contents: Contents,
    pub(super) options: Options,
}

/// What a request cannot be served for; the cache makes no such errors while it keeps its promise.
#[derive(Debug, Error)]
enum RequestError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("prompt has {expected} blocks, the sidecar counts {found}")]
    PromptBlocks { expected: u32, found: u32 },
    #[error("block {block} counts as loaded but was not announced whole")]
    Unannounced { block: u32 },
}

/// How an attempt ended.
enum End {
    Counted,
    LeaseOver,
    SidecarLost,
}

struct Asked {
    tokens: Vec<u32>,
    blocks: Vec<Identity>,
}

/// Since when there is no sidecar.
#[derive(Default)]
struct Absence {
    first: Option<Instant>,
    since: Option<Instant>,
}

impl Worker {
    /// Serves requests until there are no more.
    pub(super) async fn run(self, begun: Instant, queue: Arc<Queue>, events: Sender<Event>) {
        while let Some(next) = queue.next().await {
            let event = match next {
                Ok(numbered) => match self.serve(&numbered).await {
                    Ok(outcome) => {
                        let served_ms = milliseconds(begun.elapsed());
                        Event::Served(Box::new(Outcome { served_ms, ..outcome }))
                    }
                    Err(failed) => Event::Failed(failed),
                },
                Err(error) => Event::Failed(Failed::Trace(error)),
            };
            if events.send(event).is_err() {
                break;
            }
        }
        let _ = events.send(Event::Finished);
    }

    /// Serves one request; fails when there is no sidecar for too long.
    pub(super) async fn serve(&self, numbered: &Numbered) -> Result<Outcome, Failed> {
        let ids = &numbered.request.blocks;
        let asked = Asked { tokens: prompt::tokens(ids), blocks: self.contents.identities(ids) };
        let mut outcome = Outcome::of(numbered);
        let node = self.route.node(&numbered.request);
        outcome.node = node;
        let (mut absence, mut found_first) = (Absence::default(), None);
        loop {
            let first = &mut found_first;
            let end = self.attempt((node, &asked), &mut outcome, &mut absence, first).await;
            match end {
                Ok(End::Counted) => return Ok(outcome),
                Ok(End::LeaseOver) => {
                    outcome.leases_lost += 1;
                    if outcome.leases_lost >= LEASES_LOST_MAX {
                        return Ok(outcome);
                    }
                }
                Ok(End::SidecarLost) => absence.begin(&mut outcome, self.options.wait, None)?,
                Err(RequestError::Client(gone @ ClientError::Absent { .. })) => {
                    absence.begin(&mut outcome, self.options.wait, Some(gone))?;
                }
                Err(error) => {
                    outcome.error = Some(format!("{:#}", anyhow::Error::new(error)));
                    return Ok(outcome);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn attempt(
        &self,
        (node, asked): (usize, &Asked),
        outcome: &mut Outcome,
        absence: &mut Absence,
        found_first: &mut Option<u32>,
    ) -> Result<End, RequestError> {
        outcome.begin_attempt();
        let begun = Instant::now();
        let lookup = self.registrations[node].lookup(Prompt::Tokens(&asked.tokens)).await?;
        outcome.lookup_us = microseconds(begun.elapsed());
        absence.end(outcome);
        let (expected, found) = (outcome.blocks, lookup.prompt_blocks.max(lookup.matched_blocks));
        if lookup.prompt_blocks != expected || found > expected {
            return Err(RequestError::PromptBlocks { expected, found });
        }
        outcome.matched = lookup.matched_blocks;
        outcome.expected_load_us = microseconds(lookup.expected_load);
        let hits_max = *found_first.get_or_insert(lookup.matched_blocks);

        let (done, check) = self.load(&lookup, asked, outcome).await?;
        outcome.miss = miss(done.reason);
        match done.reason {
            MissReason::Unspecified => return Ok(End::SidecarLost),
            MissReason::Lease => return Ok(End::LeaseOver),
            MissReason::None
            | MissReason::Deadline
            | MissReason::Damaged
            | MissReason::NoMemory
            | MissReason::Drive
            | MissReason::Peer => {}
        }
        if let End::SidecarLost = self.save(&lookup, done.loaded_blocks, asked, outcome).await? {
            return Ok(End::SidecarLost);
        }
        if !lookup.release().await? {
            return Ok(End::LeaseOver);
        }
        // Only now is it known that nothing was overwritten while it was compared.
        let wrong = check.wrong_bytes(done.loaded_blocks);
        outcome.wrong_bytes = wrong.map_err(|block| RequestError::Unannounced { block })?;
        let hits = done.loaded_blocks.min(hits_max);
        outcome.hit_ssd = done.ssd_blocks.min(hits);
        outcome.hit_peer = done.peer_blocks.min(hits - outcome.hit_ssd);
        outcome.hit_host = hits - outcome.hit_ssd - outcome.hit_peer;
        Ok(End::Counted)
    }

    /// Loads what was found, and then compares every byte of it: what is timed is the cache.
    async fn load(
        &self,
        lookup: &Lookup,
        asked: &Asked,
        outcome: &mut Outcome,
    ) -> Result<(Done, Check), ClientError> {
        let layout = lookup.layout();
        let mut check = Check::new(lookup.matched_blocks, layout.stripes.len());
        let begun = Instant::now();
        let mut load = lookup.load(0, lookup.matched_blocks, Some(self.options.deadline)).await?;
        let mut announced = Vec::new();
        while let Some(ready) = load.next().await? {
            announced.push(ready);
        }
        outcome.load_us = match lookup.matched_blocks {
            0 => 0,
            _ => microseconds(begun.elapsed()),
        };
        for ready in announced {
            let first_layer = first_layer(layout, ready.stripe);
            let blocks = ready.first_block..ready.first_block + ready.blocks;
            for (block, &identity) in blocks.clone().zip(&asked.blocks[range(blocks)]) {
                let found = load.stripe(block, ready.stripe);
                let wrong_bytes = self.contents.wrong_bytes(identity, first_layer, found);
                check.note(block, ready.stripe, wrong_bytes);
            }
        }
        Ok((load.done().expect("it has ended"), check))
    }

    /// Saves from block `first` on, again and again while the drives are behind.
    async fn save(
        &self,
        lookup: &Lookup,
        first: u32,
        asked: &Asked,
        outcome: &mut Outcome,
    ) -> Result<End, ClientError> {
        let blocks = outcome.blocks - first;
        if blocks == 0 {
            return Ok(End::Counted);
        }
        let begun = Instant::now();
        let mut saved = 0;
        let end = loop {
            let fill = |block: u32, payload: &mut [u8]| {
                let identity = asked.blocks[index(block)];
                let layout = lookup.layout();
                for stripe in 0..layout.stripes.len() {
                    let stripe_bytes = &mut payload[layout.range(stripe)];
                    self.contents.fill(identity, first_layer(layout, stripe), stripe_bytes);
                }
            };
            // What is saved already is not offered again.
            let answer = lookup.save(first, blocks, fill, self.options.durable).await?;
            saved += answer.saved;
            outcome.saved += answer.saved;
            match answer.refusal {
                Refusal::None => break End::Counted,
                // One that drains is as good as gone.
                Refusal::Unspecified | Refusal::Draining => break End::SidecarLost,
                Refusal::Busy if begun.elapsed() < self.options.save_patience => {
                    outcome.busy += 1;
                    tokio::time::sleep(PAUSE).await;
                    // One that is over is found out by the release.
                    lookup.renew(Duration::ZERO).await?;
                }
                refusal @ (Refusal::Busy
                | Refusal::NoSpace
                | Refusal::ReadOnly
                | Refusal::NoParent) => {
                    outcome.refused = blocks - saved.min(blocks);
                    outcome.refusal = Some(crate::commands::refusal(refusal));
                    break End::Counted;
                }
            }
        };
        outcome.save_us = microseconds(begun.elapsed());
        Ok(end)
    }
}

impl Absence {
    /// There is no sidecar. Fails when a request has waited for `wait` in all.
    fn begin(
        &mut self,
        outcome: &mut Outcome,
        wait: Duration,
        source: Option<ClientError>,
    ) -> Result<(), Failed> {
        let now = Instant::now();
        if self.since.is_none() {
            self.since = Some(now);
            outcome.sidecar_losses += 1;
        }
        if now - *self.first.get_or_insert(now) >= wait {
            return Err(Failed::Gone { index: outcome.index, wait, source });
        }
        Ok(())
    }

    /// One has answered.
    fn end(&mut self, outcome: &mut Outcome) {
        if let Some(since) = self.since.take() {
            outcome.waited_ms += milliseconds(since.elapsed());
        }
    }
}

fn first_layer(layout: &Layout, stripe: usize) -> u32 {
    u32::try_from(stripe).expect("a block has at most 128 stripes") * layout.layers_per_stripe
}

fn range(blocks: std::ops::Range<u32>) -> std::ops::Range<usize> {
    index(blocks.start)..index(blocks.end)
}

fn index(block: u32) -> usize {
    usize::try_from(block).expect("addresses have 64 bits")
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn miss(reason: MissReason) -> Option<&'static str> {
    match reason {
        MissReason::None => None,
        MissReason::Deadline => Some("deadline"),
        MissReason::Damaged => Some("damaged"),
        MissReason::NoMemory => Some("no_memory"),
        MissReason::Drive => Some("drive"),
        MissReason::Peer => Some("peer"),
        MissReason::Lease => Some("lease"),
        MissReason::Unspecified => Some("sidecar_lost"),
    }
}
