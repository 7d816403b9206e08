//! What a drive has answered while it is opened: whoever waits for that sees whether it still answers.

use crate::device::Medium;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts the operations of an opening that the drive has ended.
#[derive(Clone, Debug, Default)]
pub struct Answers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    count: AtomicU64,
    is_given_up: AtomicBool,
}

impl Answers {
    /// The drive has answered.
    pub fn note(&self) {
        self.0.count.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Nobody waits any more. What is on the drive may still be opened; a store that is not there is
    /// not made, as the drive that answers after all may be another one.
    pub fn give_up(&self) {
        self.0.is_given_up.store(true, Ordering::Release);
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.0.is_given_up.load(Ordering::Acquire)
    }
}

/// A medium that tells of its answers, errors too.
#[derive(Debug)]
pub(crate) struct Heard<M> {
    pub(crate) medium: M,
    pub(crate) answers: Answers,
}

impl<M> Heard<M> {
    fn noted<T>(&self, answer: T) -> T {
        self.answers.note();
        answer
    }
}

impl<M: Medium> Medium for Heard<M> {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.noted(self.medium.read_exact_at(bytes, offset))
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.noted(self.medium.write_all_at(bytes, offset))
    }

    fn sync(&self) -> io::Result<()> {
        self.noted(self.medium.sync())
    }
}
