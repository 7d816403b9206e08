//! Proves which head a segment has, and that reports tell every problem from the others.

use super::*;
use std::collections::BTreeSet;

#[test]
fn of_two_heads_the_newer_use_counts_on_either_side() {
    for generations in [[4, 5], [6, 5]] {
        let mut memory = Memory::new(SEGMENT);
        for (generation, offset) in generations.into_iter().zip([0, PAGE_SIZE]) {
            let head = SegmentHead { generation: Generation(generation), ..HEAD };
            memory.put(offset, &head.encode(STORE)[..]);
        }
        let newer = Generation(generations[0].max(generations[1]));
        let expected = SegmentHead { generation: newer, ..HEAD };
        assert_eq!(head(&memory, HEAD.id, STORE), (expected, None));
    }
}

#[test]
fn one_whole_copy_of_its_own_is_a_segments_head_whatever_the_other_is() {
    let id = HEAD.id;
    let ours = HEAD.encode(STORE);
    let (empty, damaged) = (Box::new([0; 4096]), Box::new([1; 4096]));
    let swapped = SegmentHead { id: SegmentId(4), ..HEAD }.encode(STORE);
    let others = HEAD.encode([8; 16]);
    let mut newer = ours.clone();
    newer[8] += 1;
    let sum = checksum(&newer[..4088]);
    newer[4088..].copy_from_slice(&sum.to_le_bytes());
    let problem_of = |one: &[u8; 4096], two: &[u8; 4096]| {
        let found = [[one, two], [two, one]].map(|[first, second]| {
            let mut memory = Memory::new(RECORDS_START);
            memory.put(0, first);
            memory.put(PAGE_SIZE, second);
            head(&memory, id, STORE)
        });
        assert_eq!(found[0], found[1], "the copies take turns");
        let is_used = found[0].0 == HEAD;
        assert!(is_used || found[0].0 == SegmentHead { id, generation: Generation(0), birth: 0 });
        (is_used, found[0].1)
    };
    let newer_problem = Some(SegmentProblem::NewerVersion { id, version: 2 });
    for other in [&empty, &damaged, &swapped, &others] {
        assert_eq!(problem_of(&ours, other), (true, None));
        assert_eq!(problem_of(&newer, other), (false, newer_problem));
    }
    assert_eq!(problem_of(&ours, &newer), (false, newer_problem));
    let elsewhere = Some(SegmentProblem::Swapped { id, found: SegmentId(4) });
    for (other, problem) in [
        (&empty, None),
        (&damaged, Some(SegmentProblem::DamagedHead { id })),
        (&swapped, elsewhere),
        (&others, Some(SegmentProblem::OtherStore { id })),
    ] {
        assert_eq!(problem_of(other, &empty), (false, problem));
        assert_eq!(
            problem_of(other, &damaged),
            (false, problem.or(Some(SegmentProblem::DamagedHead { id })))
        );
    }
}

#[test]
fn a_head_that_cannot_be_read_is_told_from_one_that_is_damaged() {
    let mut memory = Memory::new(RECORDS_START);
    memory.put(PAGE_SIZE, &HEAD.encode(STORE)[..]);
    memory.broken = 0..1;
    let unreadable = SegmentProblem::Unreadable { id: HEAD.id };
    assert_eq!(head(&memory, HEAD.id, STORE).1, Some(unreadable));
}

#[test]
fn each_problem_is_of_a_kind_of_its_own_and_of_its_segment() {
    let (id, found) = (SegmentId(3), SegmentId(4));
    let problems = [
        SegmentProblem::Truncated { id, found: 1 },
        SegmentProblem::Swapped { id, found },
        SegmentProblem::OtherStore { id },
        SegmentProblem::DamagedHead { id },
        SegmentProblem::NewerVersion { id, version: 2 },
        SegmentProblem::Unreadable { id },
    ];
    let kinds: BTreeSet<_> = problems.iter().map(SegmentProblem::kind).collect();
    assert_eq!(kinds.len(), problems.len());
    assert_eq!(problems[0].kind(), SegmentProblem::TRUNCATED);
    assert!(problems.iter().all(|problem| problem.segment() == id));
    let of_head: Vec<_> = problems.iter().filter(|problem| problem.is_of_head()).collect();
    assert_eq!(of_head, problems[1..4].iter().collect::<Vec<_>>());
}
