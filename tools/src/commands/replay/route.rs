//! Which node of a fleet serves a request.

use super::args::RouteBy;
use crate::trace::Request;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Shared by all workers.
#[derive(Debug)]
pub(super) struct Route {
    nodes: usize,
    by: RouteBy,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    random: fastrand::Rng,
    /// Of each prefix, who served it last; named by its last block, which in a trace names all
    /// before it.
    served: HashMap<u64, usize>,
}

impl Route {
    pub(super) fn new(nodes: usize, by: RouteBy, seed: u64) -> Self {
        let state = State { random: fastrand::Rng::with_seed(seed), served: HashMap::new() };
        Self { nodes, by, state: Mutex::new(state) }
    }

    /// The node that serves a request, from 0.
    pub(super) fn node(&self, request: &Request) -> usize {
        // Nothing panics while holding it.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let any = state.random.usize(..self.nodes);
        if self.by == RouteBy::Random {
            return any;
        }
        // What is shared by all, a system prompt say, draws nobody: it would draw everybody.
        let most = request.blocks.iter().skip((request.blocks.len() / 2).saturating_sub(1));
        let known = most.rev().find_map(|block| state.served.get(block));
        let node = known.copied().unwrap_or(any);
        state.served.extend(request.blocks.iter().map(|block| (*block, node)));
        node
    }
}

#[cfg(test)]
mod tests {
    //! Proves that requests are spread, or stay with those that they go on from.

    use super::*;

    fn request(blocks: &[u64]) -> Request {
        let line = format!(
            "{{\"timestamp\":0,\"input_length\":{},\"output_length\":1,\"hash_ids\":{blocks:?}}}",
            512 * blocks.len()
        );
        crate::trace::parse(std::io::Cursor::new(line), 512).next().unwrap().unwrap()
    }

    #[test]
    fn by_chance_every_node_has_its_share() {
        let route = Route::new(4, RouteBy::Random, 1);
        let mut shares = [0; 4];
        (0..4000).for_each(|_| shares[route.node(&request(&[1]))] += 1);
        assert!(shares.iter().all(|share| (800..1200).contains(share)), "{shares:?}");
    }

    #[test]
    fn by_affinity_a_request_goes_where_most_of_it_was() {
        let route = Route::new(64, RouteBy::Affinity, 1);
        let first = route.node(&request(&[1, 2, 3]));
        let other = (0..).find_map(|id| {
            let node = route.node(&request(&[1000 + id]));
            (node != first).then_some((1000 + id, node))
        });
        let (id, other) = other.unwrap();
        assert_eq!(route.node(&request(&[1, 2, 3, 4])), first);
        assert_eq!(route.node(&request(&[id, 7])), other);
        let from_one = |id: u64| route.node(&request(&[1, 10 * id, 10 * id + 1, 10 * id + 2]));
        let mut others: Vec<_> = (10..20).map(from_one).collect();
        others.dedup();
        assert!(others.len() > 1, "a beginning that all share draws nobody");
    }
}
