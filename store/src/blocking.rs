//! The device over a pool of threads in `pread` and `pwrite`: for where io_uring is refused.

use crate::device::{Completion, Device, DeviceOp, Interrupt, OpId};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Operations that run at once. Enough to keep an SSD busy at a block's size.
const THREADS: usize = 16;

#[derive(Debug)]
pub struct BlockingDevice {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    files: Vec<File>,
    work: Mutex<Work>,
    work_came: Condvar,
    done: Mutex<Done>,
    done_came: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    queue: VecDeque<(OpId, DeviceOp)>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Done {
    completions: Vec<Completion>,
    interrupted: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding either lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlockingDevice {
    pub fn new(files: Vec<File>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            files,
            work: Mutex::default(),
            work_came: Condvar::new(),
            done: Mutex::default(),
            done_came: Condvar::new(),
        });
        let threads = (0..THREADS).map(|index| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("refrain-io-{index}")).spawn(move || {
                while let Some((op, operation)) = shared.next() {
                    let result = shared.run(&operation);
                    lock(&shared.done).completions.push(Completion { op, result });
                    shared.done_came.notify_one();
                }
            })
        });
        let threads = threads.collect::<io::Result<_>>()?;
        Ok(Self { shared, threads })
    }

    pub fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::<Shared>::clone(&self.shared)
    }
}

impl Interrupt for Shared {
    fn interrupt(&self) {
        lock(&self.done).interrupted = true;
        self.done_came.notify_one();
    }
}

impl Shared {
    fn next(&self) -> Option<(OpId, DeviceOp)> {
        let mut work = lock(&self.work);
        loop {
            if let Some(next) = work.queue.pop_front() {
                return Some(next);
            }
            if work.closed {
                return None;
            }
            work = self.work_came.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, operation: &DeviceOp) -> Result<u64, Errno> {
        let file = |index: u32| self.files[usize::try_from(index).expect("32 bits fit")].as_fd();
        let transferred = match operation {
            DeviceOp::Read { file: index, offset, region } => {
                region.fill_with(|bytes| rustix::io::pread(file(*index), bytes, *offset))?
            }
            DeviceOp::Write { file: index, offset, region } => {
                rustix::io::pwrite(file(*index), region.bytes(), *offset)?
            }
            DeviceOp::Sync { file: index } => {
                rustix::fs::fdatasync(file(*index))?;
                0
            }
        };
        Ok(u64::try_from(transferred).expect("usize fits"))
    }
}

impl Device for BlockingDevice {
    fn start(&mut self, op: OpId, operation: DeviceOp) {
        lock(&self.shared.work).queue.push_back((op, operation));
        self.shared.work_came.notify_one();
    }

    fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        let idle = |done: &mut Done| done.completions.is_empty() && !done.interrupted;
        let done = lock(&self.shared.done);
        let mut done = match timeout {
            None => self.shared.done_came.wait_while(done, idle),
            Some(timeout) => self
                .shared
                .done_came
                .wait_timeout_while(done, timeout, idle)
                .map(|(done, _)| done)
                .map_err(|error| PoisonError::new(error.into_inner().0)),
        }
        .unwrap_or_else(PoisonError::into_inner);
        done.interrupted = false;
        out.append(&mut done.completions);
        Ok(())
    }
}

impl Drop for BlockingDevice {
    fn drop(&mut self) {
        lock(&self.shared.work).closed = true;
        self.shared.work_came.notify_all();
        for thread in self.threads.drain(..) {
            // A panicked pool thread has been reported by the panic itself.
            let _ = thread.join();
        }
    }
}
