//! Proves that a plan run as merged copies leaves the bytes that copying byte by byte would.

use super::*;

fn copies(random: &mut fastrand::Rng, bytes: u64) -> Vec<Copy> {
    let mut copies = Vec::<Copy>::new();
    for _ in 0..random.usize(0..20) {
        let length = random.u64(0..bytes / 8);
        // Half of them continue the one before, where that is possible.
        let next = copies.last().map(|last| (last.source + last.length, last.target + last.length));
        let fits = |&(source, target): &(u64, u64)| source.max(target) + length <= bytes;
        let (source, target) = next
            .filter(fits)
            .filter(|_| random.bool())
            .unwrap_or_else(|| (random.u64(0..bytes - length), random.u64(0..bytes - length)));
        copies.push(Copy { source, target, length });
    }
    copies
}

#[test]
fn merged_copies_leave_what_single_bytes_would() {
    for seed in 0..1000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let source: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(4096).collect();
        let copies = copies(&mut random, 4096);
        let mut expected = vec![0; 4096];
        for copy in &copies {
            for byte in 0..copy.length {
                let [from, to] = [copy.source + byte, copy.target + byte];
                expected[usize::try_from(to).unwrap()] = source[usize::try_from(from).unwrap()];
            }
        }
        let plan: Plan = copies.iter().copied().collect();
        let mut target = vec![0; 4096];
        run(&plan, &source, &mut target).unwrap();
        assert!(target == expected, "seed {seed}");
        let moved = |copies: &[Copy]| copies.iter().map(|copy| copy.length).sum::<u64>();
        assert_eq!(moved(plan.copies()), moved(&copies), "seed {seed}");
    }
}

#[test]
fn plan_with_one_copy_outside_moves_no_byte() {
    let good = Copy { source: 0, target: 0, length: 4 };
    for bad in [
        Copy { source: 13, target: 0, length: 4 },
        Copy { source: 0, target: 5, length: 4 },
        Copy { source: u64::MAX, target: 0, length: 4 },
    ] {
        let plan: Plan = [good, bad].into_iter().collect();
        let mut target = [0; 8];
        let outcome = run(&plan, &[7; 16], &mut target);
        let expected = TransferError::OutOfRange { copy: bad, source_bytes: 16, target_bytes: 8 };
        assert_eq!(outcome, Err(expected));
        assert_eq!(target, [0; 8]);
    }
}
