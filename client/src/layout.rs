//! How the blocks of a registration lie in memory.

use refrain_proto::v1::RegisterResponse;
use std::ops::Range;

pub(crate) const PAGE_SIZE: u64 = 4096;

/// A whole number of layers of one block: what is announced at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stripe {
    /// From the start of the payload.
    pub offset: u64,
    pub length: u64,
}

/// The payload of every block of a registration: stripes, and padding between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub stripes: Vec<Stripe>,
    /// The last stripe may have fewer.
    pub layers_per_stripe: u32,
    pub payload_bytes: u64,
}

impl Layout {
    /// `None` for an answer by which nothing could be found in memory.
    pub(crate) fn from_answer(answer: &RegisterResponse) -> Option<Self> {
        let mut end = 0;
        for stripe in &answer.stripes {
            let placed = stripe.offset >= end && stripe.offset.is_multiple_of(PAGE_SIZE);
            if !placed || stripe.length == 0 {
                return None;
            }
            end = stripe.offset.checked_add(stripe.length)?;
        }
        // Offsets of bytes in memory must be ones.
        usize::try_from(end).ok()?;
        if end == 0 || end != answer.payload_bytes || answer.layers_per_stripe == 0 {
            return None;
        }
        let stripes =
            answer.stripes.iter().map(|s| Stripe { offset: s.offset, length: s.length }).collect();
        let layers_per_stripe = answer.layers_per_stripe;
        Some(Self { stripes, layers_per_stripe, payload_bytes: answer.payload_bytes })
    }

    /// The bytes of a stripe within a payload.
    pub fn range(&self, stripe: usize) -> Range<usize> {
        let Stripe { offset, length } = self.stripes[stripe];
        index(offset)..index(offset + length)
    }

    /// Between the stripes: not data of the block, but stored with it.
    pub(crate) fn padding(&self) -> impl Iterator<Item = Range<usize>> {
        let starts = self.stripes.iter().map(|stripe| index(stripe.offset));
        let ends = self.stripes.iter().map(|stripe| index(stripe.offset + stripe.length));
        std::iter::once(0).chain(ends).zip(starts).map(|(end, start)| end..start)
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("checked when the layout was made")
}

#[cfg(test)]
mod tests {
    //! Proves that a layout names bytes within a payload, or is none.

    use super::*;
    use refrain_proto::v1;

    fn layout(stripes: &[(u64, u64)], payload_bytes: u64) -> Option<Layout> {
        let stripe = |&(offset, length): &(u64, u64)| v1::Stripe { offset, length };
        Layout::from_answer(&RegisterResponse {
            registration: 1,
            stripes: stripes.iter().map(stripe).collect(),
            layers_per_stripe: 4,
            payload_bytes,
            namespace_digest: Vec::new(),
        })
    }

    #[test]
    fn stripes_in_order_are_a_layout_and_padding_is_what_they_leave() {
        let layout = layout(&[(0, 5000), (8192, 4096), (12288, 10)], 12298).unwrap();
        assert_eq!(layout.range(1), 8192..12288);
        let padding: Vec<_> = layout.padding().filter(|range| !range.is_empty()).collect();
        assert_eq!(padding, [Range { start: 5000, end: 8192 }]);
    }

    #[test]
    fn stripes_that_overlap_or_leave_the_payload_are_none() {
        assert_eq!(layout(&[], 0), None);
        assert_eq!(layout(&[(0, 5000), (4096, 10)], 5000), None);
        assert_eq!(layout(&[(0, 10), (100, 10)], 110), None);
        assert_eq!(layout(&[(0, 10)], 9), None);
        assert_eq!(layout(&[(0, 0)], 0), None);
        assert_eq!(layout(&[(1 << 63, 1 << 63)], 0), None);
    }
}
