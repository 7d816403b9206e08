//! Proves, in every order in which threads may meet and with every value that a processor may show
//! them, that a drive's thread never sleeps on work: of the waker, over a bell as an eventfd is one.

use super::{Interrupt, Waker};
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};
use std::sync::Arc;

/// Rung, it ends the next sleep, once.
struct Bell {
    rung: Mutex<bool>,
    came: Condvar,
}

impl Bell {
    fn sleep(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.came.wait(rung).unwrap();
        }
        *rung = false;
    }
}

impl Interrupt for Bell {
    fn interrupt(&self) {
        *self.rung.lock().unwrap() = true;
        self.came.notify_one();
    }
}

/// So many threads ask for something each; the worker sleeps until it has seen all of it.
fn check(senders: usize, asks: usize) {
    loom::model(move || {
        let bell = Arc::new(Bell { rung: Mutex::new(false), came: Condvar::new() });
        let waker = Waker::new(Arc::<Bell>::clone(&bell));
        // What was asked for is known by the waker alone: it orders nothing by itself.
        let asked = Arc::new(AtomicUsize::new(0));
        for _ in 0..senders {
            let (waker, asked) = (waker.clone(), Arc::clone(&asked));
            loom::thread::spawn(move || {
                for _ in 0..asks {
                    asked.fetch_add(1, Ordering::Relaxed);
                    waker.wake();
                }
            });
        }
        // As `drive::Worker` goes round; a sleep that nobody ends is a deadlock, which fails.
        loop {
            waker.lower();
            if asked.load(Ordering::Relaxed) == senders * asks {
                return;
            }
            bell.sleep();
        }
    });
}

#[test]
fn handshake_of_one_sender_that_asks_twice_and_a_worker_loses_no_wake() {
    check(1, 2);
}

#[test]
fn handshake_of_two_senders_and_a_worker_loses_no_wake() {
    check(2, 1);
}
