//! The device over io_uring: one ring, fixed files, the arenas as fixed buffers.
//!
//! The thread that owns the ring sleeps in one system call. A read of an eventfd is kept armed, so
//! that new work ends the sleep; nothing spins and nothing polls.
#![expect(unsafe_code, reason = "hands memory to the kernel for as long as an operation runs")]

use crate::arena::Region;
use crate::device::{Completion, Device, DeviceOp, Interrupt, OpId};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Submissions between two system calls; what exceeds it waits its turn.
const ENTRIES: u32 = 256;
/// Pieces of memory that can be registered: a terabyte in those that a drive makes.
const BUFFERS: u32 = 4096;
/// Marks the completion of the armed eventfd read; operations count from 0.
const WAKE: u64 = u64::MAX;

pub struct UringDevice {
    ring: IoUring,
    /// Operations that the kernel works on, with their memory, by [`OpId`].
    running: Vec<Option<DeviceOp>>,
    waiting: VecDeque<(OpId, DeviceOp)>,
    /// Registered memory, by the number that the kernel knows it by.
    buffers: Vec<Region>,
    takes_buffers: bool,
    event: Arc<Event>,
    event_count: Box<[u8; 8]>,
    armed: bool,
    // Dropped after the ring: the kernel knows them by number until then.
    _files: Vec<File>,
}

struct Event(OwnedFd);

impl Interrupt for Event {
    fn interrupt(&self) {
        // It fails only when the counter is full, and then the sleeper is awake already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl std::fmt::Debug for UringDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringDevice").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

impl UringDevice {
    /// A ring over `files`; the calling thread is the one that drives it.
    pub fn new(files: Vec<File>) -> io::Result<Self> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        let ring = build()?;
        let fds: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&fds)?;
        // Without it, the kernel maps the pages of every operation: slower, and no worse.
        let takes_buffers = ring.submitter().register_buffers_sparse(BUFFERS).is_ok();
        Ok(Self {
            ring,
            running: Vec::new(),
            waiting: VecDeque::new(),
            buffers: Vec::new(),
            takes_buffers,
            event: Arc::new(Event(event)),
            event_count: Box::new([0; 8]),
            armed: false,
            _files: files,
        })
    }

    pub fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::<Event>::clone(&self.event)
    }

    fn fill(&mut self) {
        if !self.armed {
            let fd = types::Fd(self.event.0.as_fd().as_raw_fd());
            let read = opcode::Read::new(fd, self.event_count.as_mut_ptr(), 8);
            // SAFETY: the counter is boxed and outlives the ring's use of it: the field is dropped
            // only with the device, and `Drop` waits for what runs.
            let pushed = unsafe { self.ring.submission().push(&read.build().user_data(WAKE)) };
            self.armed = pushed.is_ok();
        }
        while let Some((op, operation)) = self.waiting.pop_front() {
            let entry = self.entry(&operation).user_data(u64::from(op.0));
            // SAFETY: the operation, and with it the memory, is kept in `running` until its
            // completion has been seen; the files are kept as long as the ring.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.waiting.push_front((op, operation));
                return;
            }
            let slot = usize::try_from(op.0).expect("32 bits fit");
            if self.running.len() <= slot {
                self.running.resize_with(slot + 1, || None);
            }
            debug_assert!(self.running[slot].is_none(), "an id names one operation at a time");
            self.running[slot] = Some(operation);
        }
    }

    fn entry(&self, operation: &DeviceOp) -> squeue::Entry {
        let length = |region: &Region| u32::try_from(region.length()).expect("below 4 GiB");
        match operation {
            DeviceOp::Read { file, offset, region } => {
                let (file, pointer) = (types::Fixed(*file), region.pointer());
                match self.fixed(region) {
                    Some(index) => opcode::ReadFixed::new(file, pointer, length(region), index)
                        .offset(*offset)
                        .build(),
                    None => {
                        opcode::Read::new(file, pointer, length(region)).offset(*offset).build()
                    }
                }
            }
            DeviceOp::Write { file, offset, region } => {
                let (file, pointer) = (types::Fixed(*file), region.pointer());
                match self.fixed(region) {
                    Some(index) => opcode::WriteFixed::new(file, pointer, length(region), index)
                        .offset(*offset)
                        .build(),
                    None => {
                        opcode::Write::new(file, pointer, length(region)).offset(*offset).build()
                    }
                }
            }
            DeviceOp::Sync { file } => {
                opcode::Fsync::new(types::Fixed(*file)).flags(types::FsyncFlags::DATASYNC).build()
            }
        }
    }

    fn fixed(&self, region: &Region) -> Option<u16> {
        let end = region.offset() + region.length();
        let index = self.buffers.iter().position(|buffer| {
            Arc::ptr_eq(buffer.mapping(), region.mapping())
                && buffer.offset() <= region.offset()
                && end <= buffer.offset() + buffer.length()
        })?;
        u16::try_from(index).ok()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        let (running, armed) = (&mut self.running, &mut self.armed);
        for entry in self.ring.completion() {
            if entry.user_data() == WAKE {
                *armed = false;
                continue;
            }
            let op = OpId(u32::try_from(entry.user_data()).expect("ids have 32 bits"));
            running[usize::try_from(op.0).expect("32 bits fit")] = None;
            let result = match u64::try_from(entry.result()) {
                Ok(bytes) => Ok(bytes),
                Err(_) => Err(Errno::from_raw_os_error(-entry.result())),
            };
            done.push(Completion { op, result });
        }
    }
}

impl Device for UringDevice {
    fn start(&mut self, op: OpId, operation: DeviceOp) {
        self.waiting.push_back((op, operation));
    }

    fn flush(&mut self) {
        self.fill();
        // What is not taken now is at the next wait, which says what is wrong.
        let _ = self.ring.submitter().submit();
    }

    fn adopt(&mut self, memory: &Region) {
        let index = u32::try_from(self.buffers.len()).expect("no more than the table has");
        if !self.takes_buffers || index >= BUFFERS {
            return;
        }
        let length = usize::try_from(memory.length()).expect("addresses have 64 bits");
        let vector = libc::iovec { iov_base: memory.pointer().cast(), iov_len: length };
        // SAFETY: the memory stays mapped as long as its region in `buffers`, which the device
        // drops after its ring.
        let registered =
            unsafe { self.ring.submitter().register_buffers_update(index, &[vector], None) };
        match registered {
            Ok(()) => self.buffers.push(memory.clone()),
            // The limit on locked memory, mostly: more of it would be refused too.
            Err(_) => self.takes_buffers = false,
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Completion>) -> io::Result<()> {
        self.fill();
        let submitted = match timeout {
            None => self.ring.submitter().submit_and_wait(1),
            Some(timeout) => {
                let timespec = types::Timespec::from(timeout);
                let arguments = types::SubmitArgs::new().timespec(&timespec);
                self.ring.submitter().submit_with_args(1, &arguments)
            }
        };
        match submitted {
            Ok(_) => {}
            // Time passed, a signal came, or completions must be taken first.
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN)
                ) => {}
            Err(error) => return Err(error),
        }
        self.reap(done);
        Ok(())
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        // What the kernel still works on keeps its memory until it is done.
        self.waiting.clear();
        let mut done = Vec::new();
        while self.running.iter().any(Option::is_some) {
            if self.wait(Some(Duration::from_secs(1)), &mut done).is_err() {
                // A ring that cannot be waited for may write later: its memory is given up.
                Box::leak(Box::new(std::mem::take(&mut self.running)));
                Box::leak(std::mem::take(&mut self.event_count));
                return;
            }
        }
    }
}

/// How well a ring can be set up here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// With all that the device asks for.
    Full,
    /// By an older kernel, with reduced flags: a little slower.
    Reduced,
}

/// Sets a ring up and takes it down again.
pub fn support() -> io::Result<Support> {
    match build_full() {
        Ok(_) => Ok(Support::Full),
        Err(_) => build().map(|_| Support::Reduced),
    }
}

fn build_full() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    builder.build(ENTRIES)
}

fn build() -> io::Result<IoUring> {
    build_full().or_else(|error| match Errno::from_io_error(&error) {
        // Older kernels know neither flag.
        Some(Errno::INVAL) => IoUring::new(ENTRIES),
        _ => Err(error),
    })
}
