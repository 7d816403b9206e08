//! What a lookup at a sidecar of another machine found: read into the caller's memory, and written
//! behind.

use super::wire::Wire;
use crate::call::{Deadline, Failure};
use crate::error::ClientError;
use crate::layout::Layout;
use crate::lease::{Lease, check_range};
use crate::line::Line;
use crate::load::Done;
use crate::reservation::Reservation;
use crate::save::Saved;
use refrain_proto::Bytes;
use refrain_proto::v1::{self, MissReason, Refusal, read_chunk, write_chunk};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// Of one message.
const CHUNK: usize = 1 << 20;
/// Blocks are written in batches of about so many bytes: the sidecar has each whole in its memory.
const BATCH_BYTES: u64 = 16 << 20;
/// Messages ahead of the transport.
const AHEAD: usize = 2;

/// The blocks of a prompt and those of them that are resident, leased; dropping it releases them.
#[derive(Debug)]
pub struct Lookup {
    lease: Arc<Lease<Wire>>,
    layout: Arc<Layout>,
    /// Full blocks of the prompt, resident or not.
    pub prompt_blocks: u32,
    /// How many of them are resident, from the first one on.
    pub matched_blocks: u32,
    /// Where the matched blocks lie, as in [`crate::Lookup::tiers`].
    pub tiers: Vec<v1::TierRun>,
    /// Until the sidecar has all matched blocks in its memory: the way to here is not counted in.
    pub expected_load: Duration,
    /// Of the blocks of tier `peer` alone, which stand behind all others.
    pub expected_peer: Duration,
}

impl Lookup {
    pub(super) fn new(
        lease: Arc<Lease<Wire>>,
        layout: Arc<Layout>,
        answer: v1::LookupResponse,
    ) -> Self {
        Self {
            lease,
            layout,
            prompt_blocks: answer.prompt_blocks,
            matched_blocks: answer.matched_blocks,
            tiers: answer.tiers,
            expected_load: Duration::from_micros(answer.expected_load_us),
            expected_peer: Duration::from_micros(answer.expected_peer_us),
        }
    }

    /// How these blocks lie in memory.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Reads leased blocks into memory, payload behind payload, of [`Layout::payload_bytes`] each.
    ///
    /// Those that the sidecar has not read and checked by half of the deadline (the client's own if
    /// there is none) are misses: the other half is for the way. Bytes behind `loaded_blocks` are
    /// anything. What was read stays good whatever becomes of the lease.
    pub async fn read(
        &self,
        first: u32,
        blocks: u32,
        into: &mut [u8],
        deadline: Option<Duration>,
    ) -> Result<Done, ClientError> {
        check_range(first, blocks, self.matched_blocks)?;
        let (found, expected) = (count(into.len()), self.bytes(blocks));
        if found != expected {
            return Err(ClientError::Buffer { found, expected });
        }
        if blocks == 0 {
            return Ok(Done::with(MissReason::None));
        }
        let Lease { connection, id, limit, .. } = &*self.lease;
        let limit = deadline.unwrap_or(*limit);
        // 0 would be the sidecar's default.
        let deadline_ms = u32::try_from(limit.as_millis() / 2).unwrap_or(u32::MAX).max(1);
        let request = v1::ReadRequest { lease: *id, first_block: first, blocks, deadline_ms };
        match receive(connection, request, into, Deadline::after(limit)).await {
            Ok((done, bytes))
                if done.loaded_blocks > blocks || bytes != self.bytes(done.loaded_blocks) =>
            {
                self.answered("other bytes than it counts")
            }
            Ok((done, _)) => Ok(Done::of(&done)),
            Err(Broken::Overfull) => self.answered("more bytes than were asked for"),
            Err(Broken::Failure(failure)) => {
                let failure = connection.noted(failure);
                let missed = Done::missed(&failure);
                missed.ok_or_else(|| connection.error("read", failure))
            }
        }
    }

    /// Saves blocks of the prompt that are not resident yet, as far as the sidecar takes them.
    ///
    /// `fill` is called, on the caller's task, with a block of the prompt and its payload to write,
    /// stripes at the offsets of the layout. A refusal is an answer; what was saved before stays.
    /// With `durable`, the answer waits until the blocks would survive a power loss.
    pub async fn write(
        &self,
        first: u32,
        blocks: u32,
        mut fill: impl FnMut(u32, &mut [u8]) + Send,
        durable: bool,
    ) -> Result<Saved, ClientError> {
        check_range(first, blocks, self.prompt_blocks)?;
        let mut saved = Saved::none();
        if blocks == 0 {
            return Ok(saved.ended(Refusal::None));
        }
        let (reservation, refusal) =
            match Reservation::request(&self.lease, first..first + blocks).await {
                Ok(answer) => answer,
                Err(failure) => return self.refused(saved, "reserve", failure),
            };
        saved.offered = u32::try_from(reservation.blocks.len()).unwrap_or(u32::MAX);
        let batch_blocks =
            usize::try_from(BATCH_BYTES / self.layout.payload_bytes).unwrap_or(1).max(1);
        for batch in reservation.blocks.chunks(batch_blocks) {
            let answer = match self.send(&reservation, batch, &mut fill, durable).await {
                Ok(answer) => answer,
                Err(failure) => return self.refused(saved, "write", failure),
            };
            if !saved.add(&answer, u32::try_from(batch.len()).unwrap_or(u32::MAX)) {
                return Ok(saved.ended(answer.refusal()));
            }
        }
        reservation.set_complete(true);
        Ok(saved.ended(refusal))
    }

    /// Prolongs the lease by `lease` from now; 0 takes the sidecar's default. `false`: it was over.
    pub async fn renew(&self, lease: Duration) -> Result<bool, ClientError> {
        self.lease.renew(lease).await
    }

    /// Ends the lease; whether it held until now.
    pub async fn release(&self) -> Result<bool, ClientError> {
        self.lease.release().await
    }

    /// Has the caller fill one batch while what is filled is on its way.
    async fn send(
        &self,
        reservation: &Reservation<Wire>,
        batch: &[u32],
        fill: &mut (impl FnMut(u32, &mut [u8]) + Send),
        durable: bool,
    ) -> Result<v1::CommitResponse, Failure> {
        let Lease { connection, limit, .. } = &*self.lease;
        let deadline = Deadline::after(*limit);
        let (chunks, sent) = mpsc::channel(AHEAD);
        let start = write_chunk::Start { reservation: reservation.id, durable };
        let mut cache = connection.cache();
        let answering = deadline.answer(cache.write(deadline.request(ReceiverStream::new(sent))));
        let filling = self.fill(start, batch, fill, chunks);
        let answer = tokio::select! {
            answer = answering => answer,
            never = filling => match never {},
        };
        answer.map_err(|failure| connection.noted(failure))
    }

    /// Says all there is to say; never returns.
    async fn fill(
        &self,
        start: write_chunk::Start,
        batch: &[u32],
        fill: &mut (impl FnMut(u32, &mut [u8]) + Send),
        chunks: mpsc::Sender<v1::WriteChunk>,
    ) -> Infallible {
        let message = |chunk| v1::WriteChunk { chunk: Some(chunk) };
        let mut goes_on = chunks.send(message(write_chunk::Chunk::Start(start))).await.is_ok();
        let bytes = usize::try_from(self.layout.payload_bytes).expect("checked when it was made");
        let mut payload = vec![0; bytes];
        for block in batch {
            fill(*block, &mut payload);
            // What lies between stripes is nobody's.
            self.layout.padding().for_each(|range| payload[range].fill(0));
            for chunk in payload.chunks(CHUNK) {
                let chunk = write_chunk::Chunk::Data(Bytes::copy_from_slice(chunk));
                goes_on = goes_on && chunks.send(message(chunk)).await.is_ok();
            }
            if !goes_on {
                // The answer says why.
                break;
            }
        }
        drop(chunks);
        std::future::pending().await
    }

    /// What a failure makes of a save.
    fn refused(
        &self,
        saved: Saved,
        call: &'static str,
        failure: Failure,
    ) -> Result<Saved, ClientError> {
        match failure {
            Failure::Lost(_) | Failure::Unknown(_) => Ok(saved.ended(Refusal::Unspecified)),
            Failure::Late(_) => Ok(saved.ended(Refusal::Busy)),
            // No memory for a block just now.
            Failure::Refused(status) if status.code() == Code::ResourceExhausted => {
                Ok(saved.ended(Refusal::Busy))
            }
            Failure::Refused(_) => Err(self.lease.connection.error(call, failure)),
        }
    }

    /// One that answers so is not asked again.
    fn answered(&self, what: &'static str) -> Result<Done, ClientError> {
        self.lease.connection.lose();
        Err(ClientError::Answer { call: "read", what })
    }

    fn bytes(&self, blocks: u32) -> u64 {
        self.layout.payload_bytes.saturating_mul(blocks.into())
    }
}

/// Why a read has no end that counts.
enum Broken {
    Failure(Failure),
    Overfull,
}

/// How it ended, and how many bytes came before that.
async fn receive(
    wire: &Wire,
    request: v1::ReadRequest,
    into: &mut [u8],
    deadline: Deadline,
) -> Result<(v1::load_event::Done, u64), Broken> {
    let asked = deadline.answer(wire.cache().read(deadline.request(request))).await;
    let mut chunks = asked.map_err(Broken::Failure)?;
    let mut filled = 0;
    loop {
        let failure = match deadline.bound(chunks.message()).await {
            Some(Ok(Some(v1::ReadChunk { chunk: Some(read_chunk::Chunk::Data(data)) }))) => {
                let room = into.get_mut(filled..).and_then(|rest| rest.get_mut(..data.len()));
                room.ok_or(Broken::Overfull)?.copy_from_slice(&data);
                filled += data.len();
                continue;
            }
            Some(Ok(Some(v1::ReadChunk { chunk: Some(read_chunk::Chunk::Done(done)) }))) => {
                return Ok((done, count(filled)));
            }
            Some(Ok(Some(v1::ReadChunk { chunk: None }) | None)) => {
                Failure::Lost(Status::unavailable("read broken off"))
            }
            Some(Err(status)) => Failure::from_status(status, deadline.limit()),
            None => Failure::Late(deadline.limit()),
        };
        return Err(Broken::Failure(failure));
    }
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("usize fits")
}
