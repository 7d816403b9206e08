//! What a peer has promised: blocks behind a local prefix, until a load brings them.

use super::arrival::Asked;
use super::link::{Link, Up};
use super::receiving;
use crate::load::BlockRead;
use refrain_proto::v1;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Of data connections for one load, at most.
const SHARES: u64 = 4;
/// Less than this is not worth another connection.
const SHARE_BYTES: u64 = 8 << 20;
/// For a call that nobody waits for.
const CALL_LIMIT: Duration = Duration::from_secs(2);

/// Blocks of a prompt that a peer holds under a lease; dropped, the lease is given back.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(super) link: Arc<Link>,
    pub(super) up: Arc<Up>,
    /// The peer's.
    pub(super) lease: u64,
    /// As many are promised.
    pub(crate) blocks: u32,
    /// Until all of them are here, as the peer stands.
    pub(crate) expected: Duration,
    pub(super) asked: Arc<Asked>,
}

impl Remote {
    /// Begins to bring blocks, each by its number in the prompt. Whatever happens, each hears how it
    /// ended, by the deadline.
    pub(crate) fn fetch(self: &Arc<Self>, wanted: &[(u32, Arc<BlockRead>)], deadline: Instant) {
        let stored = self.asked.layout.stored_length();
        for run in wanted.chunk_by(|(left, _), (right, _)| left + 1 == *right) {
            let bytes = stored * u64::try_from(run.len()).expect("usize fits");
            let each = run.len().div_ceil(usize::try_from(shares(bytes)).expect("it is small"));
            for share in run.chunks(each) {
                let reads = share.iter().map(|(_, read)| Arc::clone(read)).collect();
                let (remote, first) = (Arc::clone(self), share[0].0);
                let receiving = receiving::receive(remote, first, reads, deadline);
                self.link.common.data.spawn(receiving);
            }
        }
    }

    /// Prolongs the peer's lease with the one that this is held under.
    pub(crate) fn renew(&self, time: Duration) {
        let (lease, mut cache) = (self.lease, self.up.cache());
        let lease_ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        self.link.common.runtime.spawn(async move {
            let renewed = cache.renew(v1::RenewRequest { lease, lease_ms });
            // A lease that is over makes misses.
            let _ = tokio::time::timeout(CALL_LIMIT, renewed).await;
        });
    }
}

/// Data connections that a load of so many bytes is spread over.
pub(super) fn shares(bytes: u64) -> u64 {
    bytes.div_ceil(SHARE_BYTES).clamp(1, SHARES)
}

impl Drop for Remote {
    fn drop(&mut self) {
        let (lease, mut cache) = (self.lease, self.up.cache());
        self.link.common.runtime.spawn(async move {
            let released = cache.release(v1::ReleaseRequest { lease, load_us: 0 });
            // One that could not be given back runs out, or ends with the connection.
            let _ = tokio::time::timeout(CALL_LIMIT, released).await;
        });
    }
}
