//! Proves that no copy of a batch crosses from one registration into the next.

use super::*;

fn check(arena: Arena, copies: &[(u64, u64, u64)], expected: &[(u64, u64, usize)]) {
    let copy = |&(source, target, length): &(u64, u64, u64)| Copy { source, target, length };
    let copies: Vec<_> = copies.iter().map(copy).collect();
    let mut arguments = Arguments::default();
    arguments.fill(&copies, arena);
    let Arguments { sources, targets, sizes } = &arguments;
    let filled = sources.iter().zip(targets).zip(sizes).map(|((s, t), n)| (*s, *t, *n));
    assert_eq!(filled.collect::<Vec<_>>(), expected);
}

#[test]
fn a_copy_over_the_seam_of_two_registrations_is_two() {
    let base = 0x7000_0000_0000;
    let seam = base + PIECE_BYTES;
    let inside = (seam - 10, 500, 10);
    check(Arena::Source(base), &[inside], &[(seam - 10, 500, 10)]);
    check(Arena::Source(base), &[(seam - 10, 500, 30)], &[(seam - 10, 500, 10), (seam, 510, 20)]);
    check(Arena::Target(base), &[(500, seam - 10, 30)], &[(500, seam - 10, 10), (510, seam, 20)]);
    check(Arena::Target(base), &[(500, base, 0)], &[]);
}
