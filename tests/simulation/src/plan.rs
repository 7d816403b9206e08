//! What a run is made of, all of it drawn from its seed.

use crate::faults::Faults;
use crate::names::Family;
use fastrand::Rng;
use refrain_store::engine::{Durability, Limits};
use refrain_store::segment::record_max;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Plan {
    pub drives: usize,
    pub segments: usize,
    pub segment_bytes: u64,
    pub families: Vec<Family>,
    pub durability: Durability,
    pub limits: Limits,
    pub load_arena: u64,
    pub save_queue: u64,
    pub lease_default: Duration,
    pub lease_max: Duration,
    pub clients: usize,
    /// What each client does, in prompts.
    pub rounds: u32,
    /// Blocks of the longest prompt.
    pub depth: usize,
    /// Different tokens: prompts meet often.
    pub tokens: u32,
    /// A namespace is dropped about once in this many rounds of a client.
    pub drops: u32,
    /// How often the node is started.
    pub lives: u32,
    pub faults: Faults,
}

impl Plan {
    pub fn draw(random: &mut Rng) -> Self {
        // One in eight has blocks of several stripes, which take as much longer.
        let striped = random.u8(0..8) == 0;
        let families = (0..random.usize(1..=3)).map(|number| {
            let (layers, layer_bytes) = if striped {
                (random.u32(2..=3), random.u64(200_000..300_000))
            } else {
                (random.u32(1..=4), random.u64(1..=5000))
            };
            Family::new(number, layers, layer_bytes, random.u32(1..=2))
        });
        let families: Vec<_> = families.collect();
        let largest = families.iter().map(|family| family.layout.stored_length()).max();
        let largest = largest.expect("there is one at least");
        let mut segment_bytes = 32_768 * random.u64(1..=10);
        while record_max(segment_bytes) < 2 * largest {
            segment_bytes *= 2;
        }
        Self {
            drives: if random.u8(0..3) == 0 { 2 } else { 1 },
            segments: random.usize(2..=if striped { 4 } else { 9 }),
            segment_bytes,
            families,
            durability: [Durability::Group, Durability::Group, Durability::Sync, Durability::None]
                [random.usize(0..4)],
            limits: limits(random, largest),
            load_arena: (largest * random.u64(2..40)).next_multiple_of(4096).max(1 << 16),
            save_queue: largest * random.u64(1..60),
            lease_default: Duration::from_millis(random.u64(5..2000)),
            lease_max: Duration::from_millis(random.u64(2000..4000)),
            clients: random.usize(1..=4),
            rounds: random.u32(3..if striped { 8 } else { 24 }),
            depth: random.usize(1..=10),
            tokens: random.u32(1..=4),
            drops: if random.bool() { random.u32(5..60) } else { u32::MAX },
            lives: random.u32(1..=4),
            faults: Faults::draw(random),
        }
    }
}

fn limits(random: &mut Rng, largest: u64) -> Limits {
    Limits {
        read_bytes: largest * random.u64(1..8),
        write_bytes: largest * random.u64(1..16),
        write_bytes_beside_reads: largest * random.u64(1..4),
        operations: random.usize(1..64),
        group_bytes: largest * random.u64(1..32),
        group_interval: Duration::from_millis(random.u64(1..60)),
        space_patience: Duration::from_millis(random.u64(1..1000)),
        // Of a copy: what follows is drawn as it was before.
        hang_patience: Duration::from_millis(random.clone().u64(500..5000)),
    }
}
