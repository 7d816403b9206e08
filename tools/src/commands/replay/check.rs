//! What of a load has been announced and compared, block by block.
//!
//! Whether a block counts is known only at the end of its load, so what was found is kept apart for
//! each; and a block that counts must have been announced whole, or bytes of it were never seen.

/// Stripes of one block at most, by the format of a record.
const STRIPES_MAX: usize = 128;

#[derive(Debug)]
pub(super) struct Check {
    /// A bit for each stripe of a block.
    whole: u128,
    blocks: Vec<Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    stripes: u128,
    wrong_bytes: u64,
}

impl Check {
    pub(super) fn new(blocks: u32, stripes: usize) -> Self {
        assert!((1..=STRIPES_MAX).contains(&stripes), "a block has 1 to 128 stripes");
        let blocks = usize::try_from(blocks).expect("addresses have 64 bits");
        Self { whole: u128::MAX >> (STRIPES_MAX - stripes), blocks: vec![Seen::default(); blocks] }
    }

    /// Stripe `stripe` of `block` was announced and compared.
    pub(super) fn note(&mut self, block: u32, stripe: usize, wrong_bytes: u64) {
        let seen = &mut self.blocks[usize::try_from(block).expect("addresses have 64 bits")];
        seen.stripes |= 1 << stripe;
        seen.wrong_bytes += wrong_bytes;
    }

    /// Wrong bytes in the first `blocks`; or the first of them that was not announced whole.
    pub(super) fn wrong_bytes(&self, blocks: u32) -> Result<u64, u32> {
        let mut sum = 0;
        for (block, seen) in (0..blocks).zip(&self.blocks) {
            if seen.stripes != self.whole {
                return Err(block);
            }
            sum += seen.wrong_bytes;
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    //! Proves that wrong bytes count only in blocks that count, and that none of those is unseen.

    use super::*;

    #[test]
    fn wrong_bytes_of_blocks_that_were_not_loaded_are_void() {
        let mut check = Check::new(3, 2);
        for (block, wrong) in [(0, 1), (1, 20), (2, 300)] {
            check.note(block, 0, 0);
            check.note(block, 1, wrong);
        }
        let sums: Vec<_> = (0..4).map(|blocks| check.wrong_bytes(blocks)).collect();
        assert_eq!(sums, [Ok(0), Ok(1), Ok(21), Ok(321)]);
    }

    #[test]
    fn block_with_a_stripe_that_was_never_announced_is_named() {
        let mut check = Check::new(2, STRIPES_MAX);
        for stripe in 0..STRIPES_MAX {
            check.note(0, stripe, 0);
        }
        // Twice the same is not two.
        (0..STRIPES_MAX).for_each(|_| check.note(1, 5, 0));
        assert_eq!(check.wrong_bytes(1), Ok(0));
        assert_eq!(check.wrong_bytes(2), Err(1));
    }
}
