//! Proves what one caller is told of stripes that come in any order, or not at all.

use super::*;
use refrain_store::arena::{Arena, Mapping};
use std::time::Duration;

const LONG: Duration = Duration::from_mins(1);

fn load(blocks: u32, deadline: Duration) -> Load {
    let layout = Layout::new(4, 131_072).unwrap();
    assert_eq!(layout.stripes.len(), 2);
    let arena = Arena::new(Mapping::create("test", 16 << 20).unwrap());
    let frames = (0..blocks).map(|_| Arc::new(arena.allocate(layout.stored_length()).unwrap()));
    let tiers = (0..blocks).map(|block| if block == 0 { Tier::Host } else { Tier::Ssd }).collect();
    let deadline = Instant::now() + deadline;
    let clock = Clock::system();
    Load::new((blocks, frames.collect()), tiers, layout, deadline, None, clock)
}

fn ready(stripe: u32, first_block: u32, blocks: u32) -> Ready {
    Ready { stripe, first_block, blocks }
}

#[tokio::test]
async fn stripes_are_announced_in_layer_order_over_runs_of_blocks() {
    let load = load(3, LONG);
    for (block, stripe) in [(2, 1), (0, 0), (1, 0), (2, 0), (0, 1)] {
        load.arrive(block, stripe);
    }
    let expected = [ready(0, 0, 3), ready(1, 0, 1), ready(1, 2, 1)];
    assert_eq!(load.next().await.unwrap(), expected);
    load.arrive(1, 1);
    assert_eq!(load.next().await.unwrap(), [ready(1, 1, 1)]);
    assert_eq!(load.next().await, None);
    assert_eq!(load.ended(), Ended { loaded: 3, reason: None, host: 1, ssd: 2, peer: 0 });
}

#[tokio::test]
async fn a_damaged_block_makes_all_behind_it_misses() {
    let load = load(3, LONG);
    for block in [0, 2] {
        load.arrive(block, 0);
        load.arrive(block, 1);
    }
    load.cut(1, Miss::Damaged);
    while load.next().await.is_some() {}
    let ended = Ended { loaded: 1, reason: Some(Miss::Damaged), host: 1, ssd: 0, peer: 0 };
    assert_eq!(load.ended(), ended);
}

#[tokio::test]
async fn what_is_not_there_by_the_deadline_is_a_miss() {
    let load = load(2, Duration::ZERO);
    load.arrive(0, 0);
    load.arrive(0, 1);
    load.arrive(1, 0);
    assert!(load.next().await.is_some());
    assert_eq!(load.next().await, None);
    let ended = Ended { loaded: 1, reason: Some(Miss::Deadline), host: 1, ssd: 0, peer: 0 };
    assert_eq!(load.ended(), ended);
}

#[tokio::test]
async fn a_load_without_blocks_has_ended() {
    let load = load(0, LONG);
    assert_eq!(load.next().await, None);
    assert_eq!(load.ended().loaded, 0);
}
