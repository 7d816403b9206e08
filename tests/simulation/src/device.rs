//! The simulated disk behind the seams that production code knows: `Device` and `Medium`.

use crate::disk::{Cut, Disk, PAGE};
use crate::faults::{Faults, strikes};
use crate::time::VirtualTime;
use fastrand::Rng;
use refrain_server::clock::Time;
use refrain_store::device::{Completion, Device, DeviceOp, Medium, OpId};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A disk that several hold. One thread has all of them; the lock is never contended.
#[derive(Clone, Debug)]
pub struct SharedDisk(Arc<Mutex<Disk>>);

impl SharedDisk {
    pub fn new(disk: Disk) -> Self {
        Self(Arc::new(Mutex::new(disk)))
    }

    pub fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an operation will end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Of the first bytes.
    Part(u64),
    Failed(Errno),
    Lost,
    /// Done to another place.
    Misdirected {
        file: u32,
        offset: u64,
    },
}

#[derive(Debug)]
struct Running {
    op: OpId,
    operation: DeviceOp,
    outcome: Outcome,
    /// Of a sync: what it covers.
    covered: u64,
}

/// One drive's device under virtual time.
#[derive(Debug)]
pub struct SimulatedDevice {
    disk: SharedDisk,
    time: VirtualTime,
    faults: Faults,
    random: Rng,
    running: BTreeMap<(Instant, u64), Running>,
    /// They never complete.
    hung: Vec<Running>,
    started: u64,
}

impl SimulatedDevice {
    pub fn new(disk: SharedDisk, time: VirtualTime, faults: Faults, random: Rng) -> Self {
        let (running, hung) = (BTreeMap::new(), Vec::new());
        Self { disk, time, faults, random, running, hung, started: 0 }
    }

    /// When the next operation completes.
    pub fn next_completion(&self) -> Option<Instant> {
        self.running.first_key_value().map(|((at, _), _)| *at)
    }

    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    pub fn is_hung(&self) -> bool {
        !self.hung.is_empty()
    }

    /// The process or the power has gone: of writes in flight, some pages were done.
    pub fn abandon(&mut self, cut: Cut) {
        let in_flight = std::mem::take(&mut self.running).into_values();
        for running in in_flight.chain(std::mem::take(&mut self.hung)) {
            if let DeviceOp::Write { file, offset, region } = &running.operation
                && matches!(running.outcome, Outcome::Done | Outcome::Part(_) | Outcome::Failed(_))
            {
                let share = self.random.u8(0..=4);
                let random = &mut self.random;
                let keep = |_| random.u8(0..4) < share;
                self.disk.lock().write(index(*file), *offset, region.bytes(), keep);
            }
        }
        self.disk.lock().cut(cut, &mut self.random);
    }

    fn outcome_of(&mut self, operation: &DeviceOp) -> Outcome {
        let (faults, random) = (self.faults, &mut self.random);
        let bytes = operation.bytes();
        if strikes(random, faults.interrupted) {
            return Outcome::Failed(if random.bool() { Errno::INTR } else { Errno::AGAIN });
        }
        if bytes > 0 && strikes(random, faults.short) {
            return Outcome::Part(random.u64(1..=bytes));
        }
        let place = |random: &mut Rng, disk: &Disk| {
            let pages = (disk.segment_bytes() - bytes) / PAGE_BYTES;
            let file = u32::try_from(random.usize(0..disk.segment_count())).expect("few segments");
            Outcome::Misdirected { file, offset: random.u64(0..=pages) * PAGE_BYTES }
        };
        match operation {
            DeviceOp::Read { .. } if strikes(random, faults.read_error) => {
                Outcome::Failed(Errno::IO)
            }
            DeviceOp::Read { .. } if strikes(random, faults.misdirected_read) => {
                place(random, &self.disk.lock())
            }
            DeviceOp::Write { .. } if strikes(random, faults.write_error) => {
                Outcome::Failed(Errno::IO)
            }
            DeviceOp::Write { .. } if strikes(random, faults.no_space) => {
                Outcome::Failed(Errno::NOSPC)
            }
            DeviceOp::Write { .. } if strikes(random, faults.lost_write) => Outcome::Lost,
            DeviceOp::Write { .. } if strikes(random, faults.misdirected_write) => {
                place(random, &self.disk.lock())
            }
            DeviceOp::Sync { .. } if strikes(random, faults.sync_error) => {
                Outcome::Failed(Errno::IO)
            }
            DeviceOp::Read { .. } | DeviceOp::Write { .. } | DeviceOp::Sync { .. } => Outcome::Done,
        }
    }

    fn complete(&mut self, running: &Running) -> Result<u64, Errno> {
        let mut disk = self.disk.lock();
        let bytes = match running.outcome {
            Outcome::Part(bytes) => bytes,
            Outcome::Failed(_) => running.operation.bytes() / 2,
            Outcome::Done | Outcome::Lost | Outcome::Misdirected { .. } => {
                running.operation.bytes()
            }
        };
        // A page that was begun is not done.
        let pages = index_of(bytes / PAGE_BYTES);
        match &running.operation {
            DeviceOp::Read { file, offset, region } => {
                let (file, offset) = match running.outcome {
                    Outcome::Misdirected { file, offset } => (file, offset),
                    Outcome::Done | Outcome::Part(_) | Outcome::Failed(_) | Outcome::Lost => {
                        (*file, *offset)
                    }
                };
                region.fill_with(|into| {
                    disk.read(index(file), offset, &mut into[..pages * PAGE]);
                });
            }
            DeviceOp::Write { file, offset, region } => match running.outcome {
                Outcome::Done | Outcome::Part(_) => {
                    disk.write(index(*file), *offset, region.bytes(), |page| page < pages);
                }
                Outcome::Failed(Errno::INTR | Errno::AGAIN) => {}
                Outcome::Failed(_) => {
                    let random = &mut self.random;
                    disk.write(index(*file), *offset, region.bytes(), |_| random.bool());
                }
                Outcome::Lost => {
                    disk.write(index(*file), *offset, region.bytes(), |_| false);
                    disk.note_damage(index(*file));
                }
                Outcome::Misdirected { file: other, offset: at } => {
                    disk.write(index(other), at, region.bytes(), |_| true);
                    disk.note_damage(index(*file));
                    disk.note_damage(index(other));
                }
            },
            DeviceOp::Sync { file } => match running.outcome {
                Outcome::Failed(Errno::INTR | Errno::AGAIN) => {}
                Outcome::Failed(_) => {
                    disk.sync_failed(index(*file), running.covered, &mut self.random);
                }
                Outcome::Done | Outcome::Part(_) | Outcome::Lost | Outcome::Misdirected { .. } => {
                    disk.synced(index(*file), running.covered);
                }
            },
        }
        match running.outcome {
            Outcome::Failed(errno) => Err(errno),
            Outcome::Done | Outcome::Part(_) | Outcome::Lost | Outcome::Misdirected { .. } => {
                Ok(bytes)
            }
        }
    }
}

impl Device for SimulatedDevice {
    fn start(&mut self, op: OpId, operation: DeviceOp) {
        let outcome = self.outcome_of(&operation);
        let covered = self.disk.lock().written();
        let running = Running { op, operation, outcome, covered };
        let mut latency = Duration::from_micros(self.random.u64(10..400));
        if strikes(&mut self.random, self.faults.never) {
            // Half of them do in the end, when nobody waits any more.
            if self.random.bool() {
                self.hung.push(running);
                return;
            }
            latency += Duration::from_secs(self.random.u64(1..30));
        }
        if strikes(&mut self.random, self.faults.spike) {
            let most = u64::try_from(self.faults.spike_max.as_micros()).unwrap_or(u64::MAX);
            latency += Duration::from_micros(self.random.u64(0..=most));
        }
        self.started += 1;
        self.running.insert((self.time.now() + latency, self.started), running);
    }

    /// What has completed by now; time passes elsewhere.
    fn wait(&mut self, _: Option<Duration>, done: &mut Vec<Completion>) -> io::Result<()> {
        let later = self.running.split_off(&(self.time.now(), u64::MAX));
        let due = std::mem::replace(&mut self.running, later);
        for running in due.into_values() {
            let result = self.complete(&running);
            done.push(Completion { op: running.op, result });
        }
        self.random.shuffle(done);
        Ok(())
    }
}

/// One segment of a disk, as recovery sees it.
#[derive(Debug)]
pub struct SimulatedMedium {
    pub disk: SharedDisk,
    pub segment: usize,
    /// Chances in a million that it cannot be read.
    pub unreadable: u32,
    pub random: Mutex<Rng>,
}

impl Medium for SimulatedMedium {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        if strikes(&mut random, self.unreadable) {
            self.disk.lock().note_damage(self.segment);
            return Err(Errno::IO.into());
        }
        self.disk.lock().read(self.segment, offset, bytes);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.lock().write(self.segment, offset, bytes, |_| true);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let covered = disk.written();
        disk.synced(self.segment, covered);
        Ok(())
    }
}

const PAGE_BYTES: u64 = 4096;

fn index(file: u32) -> usize {
    usize::try_from(file).expect("32 bits fit")
}

fn index_of(number: u64) -> usize {
    usize::try_from(number).expect("usize has 64 bits")
}
