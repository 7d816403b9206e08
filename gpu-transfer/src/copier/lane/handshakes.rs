//! Proves, in every order in which threads may meet, that a lane's thread and those that give it
//! work never wait for each other in vain, and that the end of a transfer is told exactly once.
//!
//! Marks alone travel: copies are the queue's matter, and proven there.

use super::*;
use loom::model::Builder;

/// Hears of one transfer.
#[derive(Default)]
struct Ear {
    heard: Mutex<Heard>,
    came: Condvar,
}

#[derive(Clone, Debug, Default)]
struct Heard {
    marks: Vec<usize>,
    ended: Vec<bool>,
}

impl CopySink for Ear {
    fn marked(&self, mark: usize, _: Fence) {
        let mut heard = self.heard.lock().unwrap();
        assert!(heard.ended.is_empty(), "marked behind its end");
        heard.marks.push(mark);
    }

    fn ended(&self, outcome: Result<(), CopyError>) {
        self.heard.lock().unwrap().ended.push(outcome.is_ok());
        self.came.notify_one();
    }
}

impl Ear {
    /// Sleeps until the transfer has ended: for ever, which fails, where nobody says so.
    fn end(&self) -> Heard {
        let mut heard = self.heard.lock().unwrap();
        while heard.ended.is_empty() {
            heard = self.came.wait(heard).unwrap();
        }
        heard.clone()
    }
}

fn begin(lane: &Lane) -> (Transfer, Arc<Ear>) {
    let ear = Arc::new(Ear::default());
    let sink = Arc::<Ear>::clone(&ear);
    (lane.begin(Place::Host, Direction::Load, Instant::now(), None, sink), ear)
}

fn check(model: impl Fn(Arc<Lane>) + Send + Sync + 'static) {
    // What three changes of threads that nobody asked for do not bring up, more hardly do.
    let mut orders = Builder::new();
    orders.preemption_bound = Some(3);
    orders.check(move || model(Lane::start("lane", Maker::Host).unwrap()));
}

#[test]
fn handshake_of_a_transfer_that_is_closed_and_a_lane_tells_its_mark_and_then_its_end() {
    check(|lane| {
        let (transfer, ear) = begin(&lane);
        transfer.push(None, Some(7));
        transfer.close();
        let Heard { marks, ended } = ear.end();
        assert_eq!((marks, ended), (vec![7], vec![true]));
        drop(transfer);
        assert_eq!(ear.end().ended.len(), 1, "told once");
    });
}

#[test]
fn handshake_of_a_transfer_that_is_dropped_half_way_returns_and_tells_of_it_once() {
    check(|lane| {
        let (transfer, ear) = begin(&lane);
        transfer.push(None, Some(7));
        drop(transfer);
        let Heard { marks, ended } = ear.end();
        assert!(marks.is_empty() || marks == [7]);
        assert_eq!(ended, [false]);
    });
}

#[test]
fn handshake_of_a_lane_that_is_dropped_first_makes_what_was_begun() {
    check(|lane| {
        let (transfer, ear) = begin(&lane);
        drop(lane);
        transfer.push(None, Some(7));
        transfer.close();
        let Heard { marks, ended } = ear.end();
        assert_eq!((marks, ended), (vec![7], vec![true]));
    });
}

#[test]
fn handshake_of_two_threads_with_a_transfer_each_ends_both() {
    check(|lane| {
        let other = {
            let lane = Arc::clone(&lane);
            thread::spawn(move || {
                let (transfer, ear) = begin(&lane);
                transfer.close();
                assert_eq!(ear.end().ended, [true]);
            })
        };
        let (transfer, ear) = begin(&lane);
        transfer.push(None, Some(1));
        drop(transfer);
        assert_eq!(ear.end().ended, [false]);
        other.join().unwrap();
    });
}
