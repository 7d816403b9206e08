//! Seeded synthetic traces: conversations behind shared system prompts, and one-shot documents.
//!
//! A closed loop holds the trace at the asked hit rate: while an unlimited cache would stand below
//! it, a conversation goes on (its history is a hit); while above, somebody brings a document that
//! nobody has sent before. Everything follows from the seed.

use crate::trace::Line;
use std::collections::HashSet;
use std::io::{self, Write};

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub requests: u64,
    pub seed: u64,
    pub block_tokens: u64,
    pub users: u64,
    pub system_prompts: u64,
    /// Share of the input tokens that an unlimited cache would serve, 0 to 1.
    pub hit_rate: f64,
}

#[derive(Clone, Default)]
struct Conversation {
    tokens: u64,
    blocks: Vec<u64>,
}

impl Workload {
    /// Writes the trace as JSON Lines.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut next_id = 0;
        let system: Vec<_> = (0..self.system_prompts.max(1))
            .map(|_| self.extend(&Conversation::default(), random.u64(512..4096), &mut next_id))
            .collect();
        let mut open: Vec<Option<Conversation>> = vec![None; as_index(self.users.max(1))];
        let (mut input, mut hits, mut timestamp) = (0u64, 0u64, 0u64);
        let mut seen = HashSet::new();
        for _ in 0..self.requests {
            timestamp += random.u64(0..600);
            let user = random.usize(0..open.len());
            let below = precise(hits) < self.hit_rate * precise(input);
            let prompt = if below {
                let history = open[user].take();
                let history =
                    history.unwrap_or_else(|| system[random.usize(0..system.len())].clone());
                self.extend(&history, random.u64(50..2000), &mut next_id)
            } else {
                self.extend(&Conversation::default(), random.u64(1000..16_000), &mut next_id)
            };
            let output_length = random.u64(20..800);
            let hit = prompt.blocks.iter().take_while(|id| seen.contains(*id)).count();
            hits += hit as u64 * self.block_tokens;
            input += prompt.tokens;
            seen.extend(prompt.blocks.iter().copied());
            let line = Line {
                timestamp,
                input_length: prompt.tokens,
                output_length,
                hash_ids: Some(prompt.blocks.clone()),
                hash_runs: None,
            };
            serde_json::to_writer(&mut *out, &line)?;
            out.write_all(b"\n")?;
            // A conversation ends by itself now and then, and before it outgrows any context.
            let over = prompt.tokens > 64_000 || random.u64(0..12) == 0;
            open[user] = (!over).then_some(prompt);
        }
        out.flush()
    }

    /// `history` with `tokens` more; its partial last block is not carried over, as it has no id.
    fn extend(&self, history: &Conversation, tokens: u64, next_id: &mut u64) -> Conversation {
        let mut longer = history.clone();
        longer.tokens += tokens;
        while (longer.blocks.len() as u64 + 1) * self.block_tokens <= longer.tokens {
            longer.blocks.push(*next_id);
            *next_id += 1;
        }
        longer
    }
}

fn as_index(count: u64) -> usize {
    usize::try_from(count).expect("users fit into memory")
}

#[expect(clippy::cast_precision_loss, reason = "a share; tokens stay below 2^53")]
fn precise(tokens: u64) -> f64 {
    tokens as f64
}

#[cfg(test)]
mod tests {
    //! Proves that a trace reaches the rate it was asked for, and follows from its seed alone.

    use super::*;
    use crate::trace::{ideal, parse};

    fn trace(seed: u64, hit_rate: f64) -> Vec<u8> {
        let mut out = Vec::new();
        let workload = Workload {
            requests: 3000,
            seed,
            block_tokens: 64,
            users: 40,
            system_prompts: 4,
            hit_rate,
        };
        workload.write(&mut out).unwrap();
        out
    }

    #[test]
    fn the_asked_hit_rate_is_reached() {
        for rate in [0.2, 0.563, 0.8] {
            let found = ideal(parse(&trace(1, rate)[..], 64), 64).unwrap().token_hit_rate();
            assert!((found - rate).abs() < 0.01, "asked {rate}, found {found}");
        }
    }

    #[test]
    fn a_seed_is_a_trace() {
        assert_eq!(trace(5, 0.5), trace(5, 0.5));
        assert_ne!(trace(5, 0.5), trace(6, 0.5));
    }
}
