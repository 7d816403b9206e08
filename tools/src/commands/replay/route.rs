//! Which node of a fleet serves a request.

use super::args::RouteBy;
use crate::trace::Request;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    left_out: Option<usize>,
    /// Of each prefix, who served it last; named by its last block, which in a trace names all
    /// before it.
    served: HashMap<u64, usize>,
}

impl Route {
    pub(super) fn new(nodes: usize, by: RouteBy, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        let state = State { random, left_out: None, served: HashMap::new() };
        Self { nodes, by, state: Mutex::new(state) }
    }

    /// From now on this one of several nodes is sent nothing, as by a router that gets no answer.
    pub(super) fn leave_out(&self, node: Option<usize>) {
        self.state().left_out = node;
    }

    /// The node that serves a request, from 0.
    pub(super) fn node(&self, request: &Request) -> usize {
        let mut state = self.state();
        let left_out = state.left_out;
        let serves = |node: &usize| Some(*node) != left_out;
        let mut draws = std::iter::repeat_with(|| state.random.usize(..self.nodes));
        let any = draws.find(serves).expect("it is drawn until one serves");
        if self.by == RouteBy::Random {
            return any;
        }
        // What is shared by all, a system prompt say, draws nobody: it would draw everybody.
        let most = request.blocks.iter().skip((request.blocks.len() / 2).saturating_sub(1));
        let known = most.rev().find_map(|block| state.served.get(block));
        let node = known.copied().filter(serves).unwrap_or(any);
        state.served.extend(request.blocks.iter().map(|block| (*block, node)));
        node
    }

    /// Nothing panics while holding it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn node_that_is_left_out_is_sent_nothing_until_it_is_back() {
        for by in [RouteBy::Random, RouteBy::Affinity] {
            let route = Route::new(2, by, 1);
            let asked = |node| (0..100).map(|id| route.node(&request(&[id]))).any(|it| it == node);
            assert!(asked(0) && asked(1));
            route.leave_out(Some(0));
            assert!(!asked(0));
            route.leave_out(None);
            assert_eq!(asked(0), by == RouteBy::Random, "affinity goes on where it was last");
        }
    }
}
