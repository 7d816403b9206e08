//! Looking at blocks: one by its name, those of a segment, all of them against their checksums.

use crate::node::Node;
use crate::place::{BlockPlace, DriveId, Group};
use crate::state::State;
use refrain_index::chain::BlockKey;
use refrain_index::namespace::NamespaceDigest;
use refrain_proto::v1;
use refrain_store::check::{self, ReadError};
use refrain_store::format::RecordHeader;
use refrain_store::geometry::{Generation, HEADER_SIZE, RecordAddress};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Blocks on their way while all are read.
const VERIFIED_AT_ONCE: usize = 16;
/// Between two reports of progress.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// A resident block as it stands.
#[derive(Clone, Copy, Debug)]
pub struct BlockView {
    key: BlockKey,
    place: BlockPlace,
    generation: u64,
    namespace: NamespaceDigest,
    in_host: bool,
    pinned: bool,
    idle_seconds: u64,
}

impl BlockView {
    pub fn key(&self) -> BlockKey {
        self.key
    }

    pub fn namespace(&self) -> NamespaceDigest {
        self.namespace
    }

    /// Where its record starts, on which drive.
    pub fn address(&self) -> (DriveId, RecordAddress) {
        let segment = self.place.group.segment();
        let (generation, offset) = (Generation(self.generation), self.place.offset());
        (self.place.group.drive(), RecordAddress { segment, generation, offset })
    }

    pub fn stored_length(&self) -> u64 {
        self.place.stored_length()
    }

    pub(crate) fn info(self) -> v1::BlockInfo {
        v1::BlockInfo {
            sequence_hash: self.key.sequence.0.to_vec(),
            shard: self.key.shard,
            namespace_digest: self.namespace.0.to_vec(),
            drive: self.place.group.drive().0.into(),
            segment: self.place.group.segment().0,
            generation: self.generation,
            offset: self.place.offset(),
            stored_bytes: self.place.stored_length(),
            in_host: self.in_host,
            pinned: self.pinned,
            idle_seconds: self.idle_seconds,
        }
    }
}

impl Node {
    fn view(&self, state: &State, key: BlockKey, place: BlockPlace, touched: u32) -> BlockView {
        BlockView {
            key,
            place,
            generation: state.segments.address(&place).generation.0,
            namespace: state.namespaces.get(place.namespace).digest,
            in_host: state.host.contains(key),
            pinned: state.pins.is_pinned(key),
            idle_seconds: self.clock.since(touched).as_secs(),
        }
    }

    /// Up to `limit` of the resident blocks, in no particular order.
    pub fn keys(&self, limit: usize) -> Vec<BlockKey> {
        self.state().chain.iter().take(limit).map(|(key, ..)| key).collect()
    }

    /// Those of `keys` that are resident still.
    pub fn views(&self, keys: &[BlockKey]) -> Vec<BlockView> {
        let state = self.state();
        let view = |&key: &BlockKey| {
            let (place, touched) = (state.chain.get(key)?, state.chain.touched(key)?);
            Some(self.view(&state, key, place, touched))
        };
        keys.iter().filter_map(view).collect()
    }

    /// Blocks whose hash begins with the first `digits` hexadecimal digits of `prefix`, no more than
    /// `limit` of them.
    pub(crate) fn blocks_named(
        &self,
        prefix: &[u8],
        digits: usize,
        limit: usize,
    ) -> Vec<BlockView> {
        let state = self.state();
        let blocks = state.chain.iter().filter(|(key, ..)| begins(&key.sequence.0, prefix, digits));
        blocks.take(limit).map(|(key, place, at)| self.view(&state, key, place, at)).collect()
    }

    /// Blocks of one segment, by their place.
    pub(crate) fn blocks_of(&self, group: Group) -> Vec<BlockView> {
        let state = self.state();
        let blocks = state.chain.group(group.number());
        let mut views: Vec<_> =
            blocks.map(|(key, place, at)| self.view(&state, key, place, at)).collect();
        drop(state);
        views.sort_unstable_by_key(|view| view.place.offset());
        views
    }

    /// Reads a block's record and says what is wrong with it, if anything is.
    pub(crate) async fn inspect_record(&self, view: BlockView) -> v1::RecordInfo {
        let mut info = v1::RecordInfo { block: Some(view.info()), ..Default::default() };
        let Some((frame, outcome)) = self.read_record(view.key, view.place) else {
            info.verdict = "not read: no memory, or the drive is busy".into();
            return info;
        };
        let outcome = outcome.await.unwrap_or(Err(ReadError::Stopped));
        info.verdict = match &outcome {
            Ok(()) => "good".into(),
            Err(error) => error.to_string(),
        };
        // The header may be readable where a stripe is damaged.
        let bytes = frame.region().bytes();
        let header = bytes.first_chunk().map(RecordHeader::decode);
        if let Some(Ok(header)) = header {
            info.parent = header.parent.to_vec();
            info.position = header.position;
            let good = |index: usize, stripe: &refrain_store::format::Stripe| {
                let fits = HEADER_SIZE + header.payload_length <= frame.region().length();
                let part =
                    fits.then(|| frame.region().slice(HEADER_SIZE + stripe.offset, stripe.length));
                part.is_some_and(|part| check::stripe(&header, index, part.bytes()).is_ok())
            };
            let stripes = header.stripes.iter().enumerate();
            let stripes = stripes.map(|(index, stripe)| v1::StripeInfo {
                offset: stripe.offset,
                length: stripe.length,
                checksum: stripe.checksum,
                good: good(index, stripe),
            });
            info.stripes = stripes.collect();
        }
        info
    }

    /// Reads and checks every block; damaged ones are withdrawn. Reports until nobody listens.
    pub(crate) async fn verify(
        self: &Arc<Self>,
        rate: u64,
        send: &mpsc::Sender<v1::VerifyProgress>,
    ) {
        let keys = self.keys(usize::MAX);
        let total = u64::try_from(keys.len()).expect("usize fits");
        let mut progress = v1::VerifyProgress { total_blocks: total, ..Default::default() };
        let (begin, mut reported) = (self.clock.now(), self.clock.now());
        for some in keys.chunks(VERIFIED_AT_ONCE) {
            self.verify_some(some, &mut progress).await;
            let now = self.clock.now();
            if now - reported >= REPORT_INTERVAL {
                reported = now;
                let next = v1::VerifyProgress { withdrawn: Vec::new(), ..progress };
                if send.send(std::mem::replace(&mut progress, next)).await.is_err() {
                    return;
                }
            }
            if let Some(due) = (progress.bytes * 1000).checked_div(rate) {
                let due = begin + Duration::from_millis(due);
                tokio::time::sleep_until(due.into()).await;
            }
        }
        self.removed_for_good().await;
        let _ = send.send(progress).await;
    }

    async fn verify_some(&self, keys: &[BlockKey], progress: &mut v1::VerifyProgress) {
        let mut reading = Vec::with_capacity(keys.len());
        for view in self.views(keys) {
            reading.push((view, self.read_record(view.key, view.place)));
        }
        progress.blocks += u64::try_from(keys.len()).expect("usize fits");
        for (view, read) in reading {
            let Some((_frame, outcome)) = read else { continue };
            progress.bytes += view.place.stored_length();
            let Ok(Err(error)) = outcome.await else { continue };
            if !error.is_damage() {
                continue;
            }
            let mut state = self.state();
            if self.withdraw(&mut state, view.key, view.place, &error) {
                progress.damaged += 1;
                progress.withdrawn.push(view.info());
            }
        }
    }
}

/// Whether a hash begins with the first `digits` hexadecimal digits of `prefix`.
fn begins(hash: &[u8], prefix: &[u8], digits: usize) -> bool {
    let digit = |bytes: &[u8], at: usize| {
        let byte = *bytes.get(at / 2)?;
        Some(if at.is_multiple_of(2) { byte >> 4 } else { byte & 0xf })
    };
    (0..digits).all(|at| digit(hash, at).is_some() && digit(hash, at) == digit(prefix, at))
}

#[cfg(test)]
mod tests {
    //! Proves that a prefix counts digit by digit.

    use super::*;

    #[test]
    fn an_odd_digit_counts_and_what_lies_behind_it_does_not() {
        let hash = [0xab, 0xcd, 0xef];
        for (prefix, digits, expected) in [
            (&[0xab, 0xc0][..], 3, true),
            (&[0xab, 0xcf], 3, true),
            (&[0xab, 0xd0], 3, false),
            (&[0xac, 0xc0], 3, false),
            (&[0xab, 0xcd], 4, true),
            (&[0xab, 0xce], 4, false),
            (&[0xa0], 1, true),
            (&[0xb0], 1, false),
            (&[], 0, true),
            (&[0xab], 3, false),
            (&[0xab], 4, false),
            (&[0xab, 0xcd, 0xef, 0], 7, false),
        ] {
            assert_eq!(begins(&hash, prefix, digits), expected, "{prefix:?}, {digits}");
        }
    }
}
