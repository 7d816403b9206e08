//! From probes of some blocks of a chain to runs of all: which to probe, and what follows.
//!
//! A node evicts leaves first, so that what it holds of a chain is a run from the chain's beginning,
//! or from where it began to keep it. Of a long chain one block a stride is probed, and then every
//! block of those strides whose ends differ. A hole within a stride is found by its owner.

use super::Run;
use super::owners::Claim;
use std::collections::BTreeSet;
use std::ops::Range;

/// Chains up to here are probed block by block, in one round trip.
pub(super) const AT_ONCE: usize = 256;

/// What is known of one block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Probe {
    /// Nobody could answer.
    #[default]
    Unknown,
    /// Who holds it, in order of their numbers; nobody, perhaps.
    Owners(Vec<Claim>),
}

/// Consecutive blocks of one owner.
pub(super) type OwnersRun = (Claim, Range<usize>);

/// The blocks of the first round.
pub(super) fn first_round(blocks: usize) -> Vec<usize> {
    if blocks <= AT_ONCE {
        return (0..blocks).collect();
    }
    let stride = blocks.isqrt();
    std::iter::once(0).chain((stride - 1..blocks - 1).step_by(stride)).chain([blocks - 1]).collect()
}

/// The blocks of the second: all between neighbours of the first that are not alike. Those between
/// equal ones are taken to be as they are.
pub(super) fn second_round(probes: &mut [Probe], first: &[usize]) -> Vec<usize> {
    let is_known = |block: &&usize| probes[**block] != Probe::Unknown;
    let known: Vec<usize> = first.iter().filter(is_known).copied().collect();
    let mut wanted = Vec::new();
    for pair in known.windows(2) {
        let (left, right) = (pair[0], pair[1]);
        if probes[left] == probes[right] {
            let like = probes[left].clone();
            probes[left + 1..right].fill(like);
        } else {
            wanted.extend(left + 1..right);
        }
    }
    let (begin, end) = match (known.first(), known.last()) {
        (Some(begin), Some(end)) => (*begin, *end),
        // Whoever could answer is away: a second question is as idle as the first.
        _ => return Vec::new(),
    };
    wanted.extend((0..begin).chain(end + 1..probes.len()));
    wanted
}

/// Each owner's runs, and the blocks of which nothing is known. An unknown block between two of one
/// owner is taken for one of its.
pub(super) fn runs(probes: &[Probe]) -> (Vec<OwnersRun>, Vec<Range<usize>>) {
    let owners: BTreeSet<Claim> = probes
        .iter()
        .filter_map(|probe| if let Probe::Owners(owners) = probe { Some(owners) } else { None })
        .flatten()
        .copied()
        .collect();
    let mut runs = Vec::new();
    for owner in owners {
        let mut run: Option<Range<usize>> = None;
        for (block, probe) in probes.iter().enumerate() {
            match probe {
                Probe::Unknown => {}
                Probe::Owners(owners) if owners.contains(&owner) => match &mut run {
                    Some(run) => run.end = block + 1,
                    None => run = Some(block..block + 1),
                },
                Probe::Owners(_) => runs.extend(run.take().map(|run| (owner, run))),
            }
        }
        runs.extend(run.map(|run| (owner, run)));
    }
    runs.sort_by_key(|(owner, run)| (run.start, usize::MAX - run.end, owner.node));
    (runs, unknown(probes))
}

fn unknown(probes: &[Probe]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (block, _) in probes.iter().enumerate().filter(|(_, probe)| **probe == Probe::Unknown) {
        match ranges.last_mut() {
            Some(range) if range.end == block => range.end += 1,
            _ => ranges.push(block..block + 1),
        }
    }
    ranges
}

/// A claim's run, under the address of its node.
pub(super) fn named(owner: super::Owner, run: &Range<usize>) -> Run {
    Run { owner, first: run.start, count: run.len() }
}

#[cfg(test)]
mod tests {
    //! Proves that galloping finds what a full probe finds, in two rounds, also where some of those
    //! who know do not answer.

    use super::*;
    use crate::directory::NodeId;
    use proptest::prelude::*;

    fn claim(node: u16) -> Claim {
        Claim { node: NodeId(node), epoch: 1 }
    }

    /// Each node holds one range of a chain.
    fn truth(blocks: usize, held: &[(usize, usize)]) -> Vec<Probe> {
        let owners = |block: usize| {
            let holders =
                (0_u16..).zip(held).filter(|(_, (first, end))| (*first..*end).contains(&block));
            Probe::Owners(holders.map(|(node, _)| claim(node)).collect())
        };
        (0..blocks).map(owners).collect()
    }

    fn gallop(truth: &[Probe], is_away: impl Fn(usize) -> bool) -> (Vec<Probe>, usize) {
        let answer =
            |block: usize| if is_away(block) { Probe::Unknown } else { truth[block].clone() };
        let mut probes = vec![Probe::Unknown; truth.len()];
        let first = first_round(truth.len());
        for &block in &first {
            probes[block] = answer(block);
        }
        let second = second_round(&mut probes, &first);
        for &block in &second {
            probes[block] = answer(block);
        }
        (probes, first.len() + second.len())
    }

    proptest! {
        #[test]
        fn prefixes_are_found_as_by_a_full_probe(
            blocks in 1_usize..3000, ends in prop::collection::vec(0_usize..3000, 0..4),
        ) {
            let held: Vec<_> = ends.iter().map(|end| (0, *end)).collect();
            let truth = truth(blocks, &held);
            let (probes, asked) = gallop(&truth, |_| false);
            prop_assert_eq!(runs(&probes), runs(&truth));
            prop_assert_eq!(probes, truth);
            let stride = blocks.isqrt();
            prop_assert!(blocks <= AT_ONCE || asked <= (ends.len() + 1) * stride + stride + 3);
        }

        #[test]
        fn runs_longer_than_a_stride_are_found_wherever_they_begin(
            blocks in 300_usize..3000, first in 0_usize..2000, more in 0_usize..2000,
        ) {
            let end = first + blocks.isqrt() + 1 + more;
            prop_assume!(end <= blocks);
            let truth = truth(blocks, &[(first, end)]);
            let (probes, _) = gallop(&truth, |_| false);
            prop_assert_eq!(runs(&probes), (vec![(claim(0), first..end)], vec![]));
        }

        #[test]
        fn who_does_not_answer_ends_no_run(
            blocks in 1_usize..3000, end in 0_usize..3000, away in 2_usize..13, turn in 0_usize..13,
        ) {
            let truth = truth(blocks, &[(0, end)]);
            let end = end.min(blocks);
            let (probes, _) = gallop(&truth, |block| (block + turn) % away == 0);
            let (found, unknown) = runs(&probes);
            let is_unknown = |block: &usize| unknown.iter().any(|range| range.contains(block));
            // But for unknown blocks at either end, it is whole.
            let known = (0..end).filter(|block| !is_unknown(block));
            let expected = known.clone().min().zip(known.max());
            let one: Vec<_> = expected.iter().map(|(first, last)| (claim(0), *first..last + 1)).collect();
            prop_assert_eq!(found, one);
        }

        #[test]
        fn no_answer_at_all_is_no_owner_and_no_second_question(blocks in 1_usize..3000) {
            let truth = truth(blocks, &[(0, blocks)]);
            let (probes, asked) = gallop(&truth, |_| true);
            prop_assert_eq!(asked, first_round(blocks).len());
            prop_assert_eq!(runs(&probes), (vec![], std::iter::once(0..blocks).collect()));
        }
    }
}
