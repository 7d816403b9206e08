//! One simulated drive: what is left of it when nobody has it open, and who runs it when it is.

use crate::catalogue::Catalogue;
use crate::device::{SharedDisk, SimulatedDevice, SimulatedMedium};
use crate::disk::{Cut, Disk};
use crate::faults::Faults;
use crate::plan::Plan;
use crate::time::VirtualTime;
use fastrand::Rng;
use refrain_index::catalog::Catalog;
use refrain_server::assembly::Runner;
use refrain_server::clock::Time;
use refrain_server::journal::{Journal, OnGroup, Recovered, Writer};
use refrain_store::arena::Mapping;
use refrain_store::device::{Device, Interrupt, Waker};
use refrain_store::drive::{Drive, KnownSegment, OpenError, Opening, Round, Worker};
use refrain_store::engine::{Durability, Limits};
use refrain_store::superblock::Superblock;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Memory for headers, segment heads and footers; as a real drive has it, and as little touched.
const SCRATCH_BYTES: u64 = 64 << 20;

/// The parts that a power loss leaves.
#[derive(Debug)]
pub struct SimulatedDrive {
    pub disk: SharedDisk,
    pub catalogue: Catalogue,
    superblock: Superblock,
}

impl SimulatedDrive {
    pub fn new(number: u8, segments: usize, segment_bytes: u64) -> Self {
        Self::of(number, Disk::new(segments, segment_bytes))
    }

    /// With what is on the disk, and no catalogue.
    pub fn of(number: u8, disk: Disk) -> Self {
        let segment_bytes = disk.segment_bytes();
        let count = u64::try_from(disk.segment_count()).expect("usize fits");
        let superblock = Superblock {
            store_id: [number + 1; 16],
            segment_bytes,
            capacity_bytes: count * segment_bytes,
            sequence: 1,
        };
        let disk = SharedDisk::new(disk);
        Self { disk, catalogue: Catalogue::default(), superblock }
    }

    /// As a start finds it.
    pub fn open(
        &self,
        path: &Path,
        durability: Durability,
        unreadable: u32,
        random: &mut Rng,
    ) -> Result<Opening<SimulatedMedium>, OpenError> {
        let medium = |segment| SimulatedMedium {
            disk: self.disk.clone(),
            segment,
            unreadable,
            random: Mutex::new(random.fork()),
        };
        let count = self.disk.lock().segment_count();
        let media = (0..count).map(medium).collect();
        Opening::over(self.superblock, path.into(), media, durability)
    }
}

/// What an open drive's two threads would have.
#[derive(Debug)]
pub struct Running {
    worker: Worker,
    pub device: SimulatedDevice,
    waker: Waker,
    bell: Arc<Bell>,
    /// When the worker wants to be called again.
    wakes: Option<Instant>,
    pub writer: Writer,
    /// Whether there may be something to write.
    pub notes: bool,
    pub is_over: bool,
}

#[derive(Debug, Default)]
struct Bell(AtomicBool);

impl Interrupt for Bell {
    fn interrupt(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Running {
    /// When there is something to do; now or earlier where there is already.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        if self.is_over {
            return None;
        }
        let rung = self.bell.0.load(Ordering::Relaxed).then_some(now);
        [rung, self.wakes, self.device.next_completion()].into_iter().flatten().min()
    }

    /// One round of the worker.
    pub fn turn(&mut self, time: &VirtualTime) {
        self.bell.0.store(false, Ordering::Relaxed);
        let mut done = Vec::new();
        self.device.wait(None, &mut done).expect("a simulated device waits");
        self.worker.end_round(&mut self.device, &mut done, || time.now());
        match self.worker.begin_round(&mut self.device, &self.waker, || time.now()) {
            Round::Wait(timeout) => self.wakes = timeout.map(|timeout| time.now() + timeout),
            Round::Over => self.is_over = true,
        }
        self.notes = true;
    }

    /// The drive has stopped, and its journal is written.
    pub fn stop(self) {
        self.writer.close();
    }

    /// The process or the power has gone.
    pub fn abandon(mut self, cut: Cut) {
        // Whoever waited for an answer of the worker is gone too.
        drop(self.worker);
        self.device.abandon(cut);
    }
}

/// Takes what threads would be given.
#[derive(Debug)]
pub struct Bench<'a> {
    pub plan: &'a Plan,
    pub time: &'a VirtualTime,
    pub disk: SharedDisk,
    pub random: Rng,
    pub writer: Option<Writer>,
    pub running: Option<Running>,
}

impl Runner<SimulatedMedium> for Bench<'_> {
    fn journal(
        &mut self,
        catalog: Catalog,
        recovered: &[Recovered],
        durability: Durability,
    ) -> io::Result<(Journal, OnGroup)> {
        let (journal, on_group, writer) = Journal::detached(catalog, recovered, durability);
        self.writer = Some(writer);
        Ok((journal, on_group))
    }

    fn drive(
        &mut self,
        opening: Opening<SimulatedMedium>,
        _: &[Arc<Mapping>],
        known: Vec<KnownSegment>,
        on_group: OnGroup,
    ) -> Result<Drive, OpenError> {
        let bell = Arc::new(Bell(AtomicBool::new(true)));
        let waker = Waker::new(Arc::<Bell>::clone(&bell));
        let scratch = Mapping::create("simulated-scratch", SCRATCH_BYTES)?;
        let limits: Limits = self.plan.limits;
        let opening = opening.with_limits(limits);
        let time = self.time.clone();
        let now = Arc::new(move || time.now());
        let (drive, worker) = opening.detached((waker.clone(), now), scratch, known, on_group);
        let disk = self.disk.clone();
        let faults = Faults::default();
        let device = SimulatedDevice::new(disk, self.time.clone(), faults, self.random.fork());
        self.running = Some(Running {
            worker,
            device,
            waker,
            bell,
            wakes: None,
            writer: self.writer.take().expect("a journal comes before its drive"),
            notes: true,
            is_over: false,
        });
        Ok(drive)
    }
}
