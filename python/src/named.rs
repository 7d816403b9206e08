//! Blocks of an engine's own names, loaded or saved in one call that nobody need attend to: an
//! engine that looks in now and then, between its steps, should not add its pauses up.

use crate::asked::Asked;
use crate::cache::KvCache;
use crate::numbers;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use refrain_client::gpu_transfer::copier::Stream;
use refrain_client::gpu_transfer::layout::Pages;
use refrain_client::v1::{MissReason, Refusal};
use refrain_client::{ClientError, Done, Registration, Saved};
use std::time::{Duration, Instant};

/// Before a save is tried again that its sidecar was too busy for, or whose parents another worker
/// is about to save.
const PAUSE: Duration = Duration::from_millis(20);

/// Where blocks `first` and those behind it, of a prompt, lie in a cache.
pub(crate) struct Named {
    asked: Asked,
    cache: refrain_client::KvCache,
    pages_per_block: usize,
    /// Of each attention group.
    pages: Vec<Vec<u32>>,
    first: u32,
    blocks: u32,
    limit: Duration,
    after: Option<Stream>,
}

impl Named {
    pub(crate) fn new(
        asked: Asked,
        cache: &KvCache,
        pages: &Bound<'_, PyAny>,
        first: u32,
        deadline: f64,
        after: Option<u64>,
    ) -> PyResult<Self> {
        let (pages, pages_per_block) = (numbers::groups(pages)?, cache.pages_per_block());
        let pages_per_block = usize::try_from(pages_per_block)?;
        let available = asked.blocks(0).saturating_sub(first);
        let found = pages.first().map_or(0, Vec::len);
        let blocks = u32::try_from(found / pages_per_block)?;
        if found % pages_per_block > 0 || blocks > available {
            return Err(PyValueError::new_err(format!("{found} pages for {available} blocks")));
        }
        if pages.iter().any(|group| group.len() != found) {
            return Err(PyValueError::new_err("groups of pages for different blocks"));
        }
        Ok(Self {
            asked,
            cache: cache.get()?,
            pages_per_block,
            pages,
            first,
            blocks,
            limit: numbers::duration(deadline)?,
            after: after.map(Stream),
        })
    }

    /// Those of blocks `from..to`, counted as the prompt's.
    fn pages(&self, from: u32, to: u32) -> Pages {
        let place = |block: u32| {
            let index = usize::try_from(block - self.first).unwrap_or(usize::MAX);
            index.saturating_mul(self.pages_per_block)
        };
        let part = |group: &Vec<u32>| group[place(from)..place(to)].to_vec();
        Pages::new(to - from, self.pages.iter().map(part).collect())
    }

    /// Blocks that were not there, or not in time, are misses, whatever the reason.
    pub(crate) async fn load(self, registration: &Registration) -> Result<Done, ClientError> {
        match tokio::time::timeout(self.limit, self.load_at_last(registration)).await {
            Ok(Err(error)) if error.retry() => Ok(missed(MissReason::Unspecified)),
            Ok(outcome) => outcome,
            Err(_) => Ok(missed(MissReason::Deadline)),
        }
    }

    async fn load_at_last(&self, registration: &Registration) -> Result<Done, ClientError> {
        let prompt = self.asked.prompt();
        let lookup = registration.lookup_within(prompt, Some(self.limit)).await?;
        let end = lookup.matched_blocks.min(self.first + self.blocks);
        if end <= self.first {
            return Ok(missed(MissReason::None));
        }
        let pages = self.pages(self.first, end);
        let limit = Some(self.limit);
        let load = lookup.load_into(&self.cache, self.first, pages, limit, self.after).await?;
        let done = load.finish().await?;
        drop(load);
        // What was evicted meanwhile may have been overwritten before it was copied.
        if lookup.release().await? { Ok(done) } else { Ok(missed(MissReason::Lease)) }
    }

    /// Goes on until all are stored, the sidecar has no use for the rest, or time is up.
    pub(crate) async fn save(self, registration: &Registration) -> Result<Saved, ClientError> {
        let end = Instant::now() + self.limit;
        let mut saved =
            Saved { offered: 0, saved: 0, refusal: Refusal::Unspecified, durable: false };
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let once = tokio::time::timeout(left, self.save_once(registration, left));
            let answer = match once.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) if error.retry() => return Ok(saved),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(saved),
            };
            saved = Saved {
                offered: saved.offered.max(saved.saved + answer.offered),
                saved: saved.saved + answer.saved,
                ..answer
            };
            if left <= PAUSE || !matches!(saved.refusal, Refusal::Busy | Refusal::NoParent) {
                return Ok(saved);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn save_once(
        &self,
        registration: &Registration,
        left: Duration,
    ) -> Result<Saved, ClientError> {
        let lookup = registration.lookup_within(self.asked.prompt(), Some(left)).await?;
        let (matched, end) = (lookup.matched_blocks, self.first + self.blocks);
        // What stands behind no other needs none before it.
        let first = if self.asked.is_separate() { matched.max(self.first) } else { matched };
        let nothing = |refusal| Saved { offered: 0, saved: 0, refusal, durable: false };
        if first >= end {
            return Ok(nothing(Refusal::None));
        }
        if first < self.first {
            return Ok(nothing(Refusal::NoParent));
        }
        lookup.save_from(&self.cache, first, self.pages(first, end), self.after, false).await
    }
}

fn missed(reason: MissReason) -> Done {
    Done { loaded_blocks: 0, reason, host_blocks: 0, ssd_blocks: 0, peer_blocks: 0 }
}
