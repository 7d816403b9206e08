//! The store's own write and read path, over the device that the raw probe measures.
//!
//! It does what [`Probe`](super::Probe) does, in the same order and with as much in flight, through
//! a drive: appended, synced in groups and sealed; read, checked and announced.

use super::{Memory, Probe, Rate, StoreProbeError, Watch};
use crate::arena::{Arena, Frame, Mapping};
use crate::check::{ReadError, Shape};
use crate::drive::{Drive, DriveConfig, IoEngine, KnownSegment, Opening};
use crate::engine::{
    Append, AppendError, Durability, Limits, NewRecord, Payload, ReadSink, RecordRead,
    SegmentState, Stored,
};
use crate::format::RecordHeader;
use crate::geometry::{HEADER_SIZE, Layout, RecordAddress};
use crate::recover::Scan;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// A store on the device under test; removed with the probe.
pub struct StoreProbe {
    config: DriveConfig,
    layout: Layout,
    blocks: u64,
    depth: usize,
    arena: Arc<Arena>,
    /// What blocks are written from: block `n` from number `n` modulo their count. Twice as many as
    /// the device works on: the drive has its next ones queued, as those of any prefix are.
    sources: Vec<Arc<Frame>>,
    /// What blocks are read into; as many.
    frames: Vec<Arc<Frame>>,
    /// Where `write` put each block.
    stored: Vec<RecordAddress>,
    drive: Option<Drive>,
    watch: Option<Watch>,
}

impl std::fmt::Debug for StoreProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreProbe").field("path", &self.config.path).finish_non_exhaustive()
    }
}

/// What one pass over the store reached.
#[derive(Clone, Debug)]
pub struct Pass {
    pub rate: Rate,
    /// Of each block, from the request to the answer, in the order of the answers.
    pub latencies: Vec<Duration>,
    /// Over the checksums of all that was read: the same for the same contents.
    pub hash: u64,
}

/// The end of one operation of a slot.
struct Answer<T> {
    slot: usize,
    block: u64,
    latency: Duration,
    outcome: T,
}

struct Sink {
    slot: usize,
    block: u64,
    begin: Instant,
    answers: Sender<Answer<Result<(), ReadError>>>,
}

impl ReadSink for Sink {
    fn stripe(&self, _: usize) {}

    fn done(&self, outcome: Result<(), ReadError>) {
        let (slot, block, latency) = (self.slot, self.block, self.begin.elapsed());
        // Whoever gave up on the pass does not listen.
        let _ = self.answers.send(Answer { slot, block, latency, outcome });
    }
}

const NAMESPACE: [u8; 32] = [0x5a; 32];

impl StoreProbe {
    /// A store of `blocks` of `layout` at `path`, with as much again for writes beside reads.
    pub fn new(
        path: &Path,
        layout: Layout,
        depth: u32,
        blocks: u64,
        io_engine: IoEngine,
    ) -> Result<Self, StoreProbeError> {
        let capacity_bytes = 2 * blocks * layout.stored_length() + (128 << 20);
        let config = DriveConfig {
            path: path.to_path_buf(),
            capacity_bytes,
            segment_bytes: None,
            io_engine,
            durability: Durability::Group,
        };
        let depth = usize::try_from(depth).expect("32 bits fit");
        let (arena, mut sources) = frames(&layout, 4 * depth)?;
        let frames = sources.split_off(2 * depth);
        let stored = Vec::new();
        let (drive, watch) = (None, None);
        Ok(Self { config, layout, blocks, depth, arena, sources, frames, stored, drive, watch })
    }

    /// Lets `watch` follow the passes, and end them.
    #[must_use]
    pub fn watched(mut self, watch: Watch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// The raw device beside this store: a file in `directory`, with the same memory, as much in
    /// flight and blocks of the same size.
    pub fn raw(&self, directory: &Path) -> Probe {
        let pages = self.layout.stored_length() - HEADER_SIZE;
        let payload = |frame: &Arc<Frame>| frame.region().slice(HEADER_SIZE, pages);
        let payloads = |frames: &[Arc<Frame>]| frames.iter().map(payload).collect();
        let memory = Memory {
            mapping: Arc::clone(self.arena.mapping()),
            sources: payloads(&self.sources),
            targets: payloads(&self.frames),
            depth: self.depth,
        };
        Probe::over(memory, directory, pages, self.blocks, self.config.io_engine)
    }

    /// Appends every block and syncs; the first time into a new store, and then over what it holds.
    pub fn write(&mut self) -> Result<Pass, StoreProbeError> {
        self.drive = None;
        self.stored.clear();
        // A segment that nobody knows of is free.
        let drive = self.start(Vec::new())?;
        let begin = Instant::now();
        let (stored, latencies) = self.append_all(&drive)?;
        // Stopping syncs at once what a group would wait a little longer for.
        drive.stop();
        let elapsed = begin.elapsed();
        drop(drive);
        self.stored = stored;
        let known = self.known()?;
        self.drive = Some(self.start(known)?);
        let bytes = self.blocks * self.layout.payload_length;
        Ok(Pass { rate: Rate { bytes, elapsed }, latencies, hash: 0 })
    }

    /// Reads blocks `order` of those that `write` left, `depth` at once.
    pub fn read(&self, order: &[u64], by_stripe: bool) -> Result<Pass, StoreProbeError> {
        self.read_into(&self.frames, order, by_stripe)
    }

    /// Reads blocks `order` one at a time.
    pub fn read_alone(&self, order: &[u64]) -> Result<Pass, StoreProbeError> {
        self.read_into(&self.frames[..1], order, false)
    }

    /// As `read_alone`, while the drive is given all the writes that it takes. The second part is
    /// what they reached.
    pub fn read_beside_writes(&self, order: &[u64]) -> Result<(Pass, Rate), StoreProbeError> {
        let drive = self.drive.as_ref().ok_or(StoreProbeError::Unwritten)?;
        let enough = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| self.write_until(drive, &enough));
            let read = self.read_alone(order);
            enough.store(true, Ordering::Relaxed);
            let written = writer.join().map_err(|_| StoreProbeError::Ended)?;
            Ok((read?, written?))
        })
    }

    fn known(&self) -> Result<Vec<KnownSegment>, StoreProbeError> {
        let opening = Opening::open(&self.config)?;
        let known = opening.segments().iter().map(|head| {
            let Scan { entries, end, sealed } = opening.scan(head.id, 0)?;
            Ok(KnownSegment { id: head.id, end, sealed, entries })
        });
        known.collect()
    }

    fn start(&self, known: Vec<KnownSegment>) -> Result<Drive, StoreProbeError> {
        let opening = Opening::open(&self.config)?;
        let arenas = [Arc::clone(self.arena.mapping())];
        let in_flight =
            u64::try_from(self.depth).expect("usize fits") * self.layout.stored_length();
        let usual = Limits::default();
        let limits = Limits { read_bytes: in_flight, write_bytes: in_flight, ..usual };
        Ok(opening.with_limits(limits).start(&arenas, known, Box::new(|_| {}))?)
    }

    fn append_all(
        &self,
        drive: &Drive,
    ) -> Result<(Vec<RecordAddress>, Vec<Duration>), StoreProbeError> {
        let (answers, answered) = channel();
        let depth = self.sources.len();
        let mut free: Vec<usize> = (0..depth).collect();
        let mut left = 0..self.blocks;
        let mut found = Vec::new();
        let mut latencies = Vec::new();
        loop {
            while !free.is_empty()
                && let Some(block) = left.next()
            {
                let slot = free.pop().expect("not empty");
                drive.append(self.new_append(slot, block, &answers)?)?;
            }
            if free.len() == depth {
                break;
            }
            let Answer { slot, block, latency, outcome } = receive(&answered)?;
            let stored = outcome.map_err(|source| StoreProbeError::Append { block, source })?;
            self.tell()?;
            found.push((block, stored.address));
            latencies.push(latency);
            free.push(slot);
        }
        found.sort_unstable_by_key(|&(block, _)| block);
        Ok((found.into_iter().map(|(_, address)| address).collect(), latencies))
    }

    /// Appends until told that it is enough, into segments that nobody reads.
    fn write_until(&self, drive: &Drive, enough: &AtomicBool) -> Result<Rate, StoreProbeError> {
        let (answers, answered) = channel();
        let depth = self.sources.len();
        let mut free: Vec<usize> = (0..depth).collect();
        let mut rate = Rate { bytes: 0, elapsed: Duration::ZERO };
        let begin = Instant::now();
        for block in self.blocks.. {
            if free.is_empty() {
                let Answer { slot, block, outcome, .. } = receive(&answered)?;
                match outcome {
                    Ok(_) => rate.bytes += self.layout.payload_length,
                    Err(AppendError::NoSpace) => {}
                    Err(source) => return Err(StoreProbeError::Append { block, source }),
                }
                free.push(slot);
                self.release_written(drive)?;
            }
            if enough.load(Ordering::Relaxed) {
                break;
            }
            let slot = free.pop().expect("one was given back above");
            drive.append(self.new_append(slot, block, &answers)?)?;
        }
        while free.len() < depth {
            free.push(receive(&answered)?.slot);
        }
        rate.elapsed = begin.elapsed();
        Ok(rate)
    }

    /// Gives back full segments that hold none of the blocks that `write` left.
    fn release_written(&self, drive: &Drive) -> Result<(), StoreProbeError> {
        if drive.stats().segments_free > 2 {
            return Ok(());
        }
        for status in drive.segments() {
            let read = self.stored.iter().any(|address| address.segment == status.id);
            if !read && status.state == SegmentState::Sealed {
                drive.release(status.id)?;
            }
        }
        Ok(())
    }

    fn new_append(
        &self,
        slot: usize,
        block: u64,
        answers: &Sender<Answer<Result<Stored, AppendError>>>,
    ) -> Result<Append, StoreProbeError> {
        let pages = self.layout.stored_length() - HEADER_SIZE;
        let count = u64::try_from(self.sources.len()).expect("usize fits");
        let source = usize::try_from(block % count).expect("less than their count");
        let (answers, begin) = (answers.clone(), Instant::now());
        let region = self.sources[source].region().slice(HEADER_SIZE, pages);
        let payload = Payload::new(&self.layout, region)
            .map_err(|source| StoreProbeError::Append { block, source })?;
        Ok(Append {
            header: NewRecord {
                key_scheme: 1,
                sequence_hash: name(block),
                shard: 0,
                parent: name(block.wrapping_sub(1)),
                namespace: NAMESPACE,
                epoch: 0,
                position: 0,
            },
            payload,
            keep: None,
            reply: Box::new(move |outcome| {
                let _ = answers.send(Answer { slot, block, latency: begin.elapsed(), outcome });
            }),
        })
    }

    fn read_into(
        &self,
        frames: &[Arc<Frame>],
        order: &[u64],
        by_stripe: bool,
    ) -> Result<Pass, StoreProbeError> {
        let drive = self.drive.as_ref().ok_or(StoreProbeError::Unwritten)?;
        let (answers, answered) = channel();
        let mut free: Vec<usize> = (0..frames.len()).collect();
        let mut left = order.iter();
        let mut latencies = Vec::with_capacity(order.len());
        let mut hash = 0u64;
        let begin = Instant::now();
        loop {
            while !free.is_empty()
                && let Some(&block) = left.next()
            {
                let slot = free.pop().expect("not empty");
                let sink = Sink { slot, block, begin: Instant::now(), answers: answers.clone() };
                drive.read(vec![self.record(&frames[slot], block, by_stripe, sink)])?;
            }
            if free.len() == frames.len() {
                break;
            }
            let Answer { slot, block, latency, outcome } = receive(&answered)?;
            outcome.map_err(|source| StoreProbeError::Read { block, source })?;
            self.tell()?;
            hash = hash.wrapping_add(hash_of(&frames[slot], block));
            latencies.push(latency);
            free.push(slot);
        }
        let bytes = order.len() as u64 * self.layout.payload_length;
        Ok(Pass { rate: Rate { bytes, elapsed: begin.elapsed() }, latencies, hash })
    }

    fn record(&self, frame: &Arc<Frame>, block: u64, by_stripe: bool, sink: Sink) -> RecordRead {
        RecordRead {
            address: self.stored[usize::try_from(block).expect("a block that was written")],
            sequence_hash: name(block),
            shard: 0,
            namespace: NAMESPACE,
            shape: Shape::Layout(self.layout.clone()),
            frame: Arc::clone(frame),
            by_stripe,
            deadline: None,
            sink: Arc::new(sink),
        }
    }

    fn tell(&self) -> Result<(), StoreProbeError> {
        let goes_on = |watch: &Watch| watch(self.layout.payload_length);
        if self.watch.as_ref().is_none_or(goes_on) {
            Ok(())
        } else {
            Err(StoreProbeError::Interrupted)
        }
    }
}

impl Drop for StoreProbe {
    fn drop(&mut self) {
        // Stopped before its files go.
        self.drive = None;
        let _ = std::fs::remove_dir_all(&self.config.path);
    }
}

/// Frames with contents, in memory as an arena's is.
fn frames(layout: &Layout, count: usize) -> Result<(Arc<Arena>, Vec<Arc<Frame>>), StoreProbeError> {
    let mut bytes = 64 << 20;
    loop {
        let arena = Arena::new(Mapping::create("refrain-probe-store", bytes)?);
        let frames = (0..count).map(|_| arena.allocate(layout.stored_length()).map(Arc::new));
        let Some(frames) = frames.collect::<Option<Vec<_>>>() else {
            bytes *= 2;
            continue;
        };
        // As a drive does with its arenas.
        arena.mapping().region(0, bytes)?.populate().map_err(StoreProbeError::Populate)?;
        for (seed, frame) in (1u8..=250).cycle().zip(&frames) {
            frame.region().fill_with(|bytes| {
                for (index, byte) in (seed..=250).cycle().zip(bytes) {
                    *byte = index;
                }
            });
        }
        return Ok((arena, frames));
    }
}

fn receive<T>(answered: &Receiver<Answer<T>>) -> Result<Answer<T>, StoreProbeError> {
    answered.recv().map_err(|_| StoreProbeError::Ended)
}

fn name(block: u64) -> [u8; 32] {
    let mut name = [0; 32];
    name[..8].copy_from_slice(&block.to_le_bytes());
    name
}

/// Of what a header says of its stripes, which the drive has held against them.
fn hash_of(frame: &Frame, block: u64) -> u64 {
    let header = frame.region().bytes().first_chunk().map(RecordHeader::decode);
    let Some(Ok(header)) = header else { return 0 };
    let sum = |hash: u64, stripe: &crate::format::Stripe| hash.rotate_left(7) ^ stripe.checksum;
    header.stripes.iter().fold(block, sum)
}
