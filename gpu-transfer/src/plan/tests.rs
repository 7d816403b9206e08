//! Proves that a plan merges exactly what is adjacent on both sides.

use super::*;

fn check(copies: &[(u64, u64, u64)], expected: &[(u64, u64, u64)]) {
    let copy = |&(source, target, length): &(u64, u64, u64)| Copy { source, target, length };
    let plan: Plan = copies.iter().map(copy).collect();
    let expected: Vec<_> = expected.iter().map(copy).collect();
    assert_eq!(plan.copies(), expected, "{copies:?}");
}

#[test]
fn copies_that_are_adjacent_on_both_sides_are_one() {
    check(&[(0, 100, 8), (8, 108, 8), (16, 116, 4)], &[(0, 100, 20)]);
}

#[test]
fn copies_that_are_adjacent_on_one_side_stay_apart() {
    check(&[(0, 100, 8), (8, 200, 8)], &[(0, 100, 8), (8, 200, 8)]);
    check(&[(0, 100, 8), (50, 108, 8)], &[(0, 100, 8), (50, 108, 8)]);
}

#[test]
fn order_is_kept_and_what_comes_before_is_not_merged() {
    check(&[(8, 108, 8), (0, 100, 8)], &[(8, 108, 8), (0, 100, 8)]);
}

#[test]
fn empty_copies_vanish() {
    check(&[(3, 4, 0), (0, 0, 8), (9, 9, 0), (8, 8, 8)], &[(0, 0, 16)]);
}

#[test]
fn copies_at_the_end_of_the_number_range_do_not_wrap() {
    check(&[(u64::MAX, 0, 2), (1, 2, 2)], &[(u64::MAX, 0, 2), (1, 2, 2)]);
}
