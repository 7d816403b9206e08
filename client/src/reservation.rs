//! Blocks that a sidecar awaits.

use crate::call::{Deadline, Failure};
use crate::connection::Connection;
use crate::lease::Lease;
use crate::line::Line;
use refrain_proto::v1::{self, Refusal};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Those that never come are called off at the end.
pub(crate) struct Reservation<L: Line = Connection> {
    pub(crate) lease: Arc<Lease<L>>,
    pub(crate) id: u64,
    pub(crate) blocks: Vec<u32>,
    complete: AtomicBool,
}

impl<L: Line> Reservation<L> {
    /// Asks which of these blocks should be saved, and why not more.
    pub(crate) async fn request(
        lease: &Arc<Lease<L>>,
        blocks: Range<u32>,
    ) -> Result<(Arc<Self>, Refusal), Failure> {
        let deadline = Deadline::after(lease.limit);
        let request = v1::ReserveRequest {
            lease: lease.id,
            first_block: blocks.start,
            blocks: blocks.end - blocks.start,
        };
        let user = Arc::clone(lease);
        // A task of its own: where nobody waits for the answer any more, it is dropped and called off.
        let asking = lease.connection.runtime().spawn(async move {
            let mut cache = user.connection.cache();
            let answer = deadline.answer(cache.reserve(deadline.request(request))).await;
            let answer = answer.map_err(|failure| user.connection.noted(failure))?;
            let refusal = answer.refusal();
            let complete = AtomicBool::new(answer.blocks.is_empty());
            let (id, blocks) = (answer.reservation, answer.blocks);
            Ok((Arc::new(Self { lease: user, id, blocks, complete }), refusal))
        });
        asking.await.unwrap_or(Err(Failure::Late(lease.limit)))
    }

    /// Whether all of them have come: nothing is to be called off.
    pub(crate) fn set_complete(&self, complete: bool) {
        self.complete.store(complete, Ordering::Relaxed);
    }
}

impl<L: Line> Drop for Reservation<L> {
    fn drop(&mut self) {
        if *self.complete.get_mut() {
            return;
        }
        let (lease, reservation) = (Arc::clone(&self.lease), self.id);
        let runtime = lease.connection.runtime().clone();
        runtime.spawn(async move {
            let deadline = Deadline::after(lease.limit);
            let request = deadline.request(v1::AbortRequest { reservation });
            // A reservation that could not be called off ends with its lease.
            let _ = deadline.answer(lease.connection.cache().abort(request)).await;
        });
    }
}
