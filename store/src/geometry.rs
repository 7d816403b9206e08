//! Sizes and addresses: every offset on disk is computed here and nowhere else.

use std::sync::Arc;
use thiserror::Error;

/// What O_DIRECT asks of offsets and lengths, and the unit in which a device may tear a write.
pub const PAGE_SIZE: u64 = 4096;

/// Size of a record header.
pub const HEADER_SIZE: u64 = PAGE_SIZE;

/// Where the records of a segment begin: behind the two copies of its head.
pub const RECORDS_START: u64 = 2 * PAGE_SIZE;

/// Size of the page at the end of a sealed segment that says where its footer lies.
pub const TRAILER_SIZE: u64 = PAGE_SIZE;

/// A segment file of one drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u32);

impl SegmentId {
    /// Its place among all of a drive's segments.
    pub fn index(self) -> usize {
        usize::try_from(self.0).expect("32 bits fit")
    }
}

/// Count of a segment's reuses; an address of an older one is a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// Where a record's header starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordAddress {
    pub segment: SegmentId,
    pub generation: Generation,
    /// Bytes from the start of the segment file, a multiple of [`PAGE_SIZE`].
    pub offset: u64,
}

/// The least multiple of [`PAGE_SIZE`] that is at least `bytes`; `None` on overflow.
pub fn page_aligned(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(PAGE_SIZE)
}

/// Bytes that a record of a payload takes on disk, header and padding included; for a length that
/// no record has, as many as lie in no segment.
pub fn stored_length(payload_length: u64) -> u64 {
    let pages = payload_length.checked_next_multiple_of(PAGE_SIZE);
    pages
        .and_then(|pages| pages.checked_add(HEADER_SIZE))
        .unwrap_or(u64::MAX - u64::MAX % PAGE_SIZE)
}

/// Least bytes of a stripe, but for the last of a block.
pub const STRIPE_MIN: u64 = 256 << 10;

/// Stripes of one block at most: what a record header has room for.
pub const STRIPES_MAX: usize = 128;

/// Payloads above this are refused: no model's block comes near, and sums cannot overflow.
pub const PAYLOAD_MAX: u64 = 4 << 30;

/// Where one stripe lies in its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeRange {
    /// A multiple of [`PAGE_SIZE`].
    pub offset: u64,
    pub length: u64,
}

/// How a block's layers are cut into stripes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub stripes: Arc<[StripeRange]>,
    pub layers_per_stripe: u32,
    /// End of the last stripe; the padding between stripes counts.
    pub payload_length: u64,
}

/// A block that cannot be laid out.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutError {
    #[error("a block has {layers} layers of {layer_bytes} bytes: both must be at least 1")]
    Empty { layers: u32, layer_bytes: u64 },
    #[error("a block of {layers} layers of {layer_bytes} bytes is larger than {PAYLOAD_MAX} bytes")]
    TooLarge { layers: u32, layer_bytes: u64 },
}

impl Layout {
    /// Stripes of as few whole layers as reach [`STRIPE_MIN`], more where a header would overflow.
    pub fn new(layers: u32, layer_bytes: u64) -> Result<Self, LayoutError> {
        if layers == 0 || layer_bytes == 0 {
            return Err(LayoutError::Empty { layers, layer_bytes });
        }
        let total = u64::from(layers).checked_mul(layer_bytes);
        if total.is_none_or(|total| total > PAYLOAD_MAX) {
            return Err(LayoutError::TooLarge { layers, layer_bytes });
        }
        let stripes_max = u32::try_from(STRIPES_MAX).expect("128 fits");
        let wanted = u32::try_from(STRIPE_MIN.div_ceil(layer_bytes)).unwrap_or(u32::MAX);
        let layers_per_stripe = wanted.max(layers.div_ceil(stripes_max)).min(layers);
        let (mut stripes, mut offset, mut first) = (Vec::new(), 0, 0);
        while first < layers {
            let count = layers_per_stripe.min(layers - first);
            let length = u64::from(count) * layer_bytes;
            stripes.push(StripeRange { offset, length });
            offset = (offset + length).next_multiple_of(PAGE_SIZE);
            first += count;
        }
        let last = stripes[stripes.len() - 1];
        let payload_length = last.offset + last.length;
        Ok(Self { stripes: stripes.into(), layers_per_stripe, payload_length })
    }

    /// Bytes of a record of such a block, and of the frame that it is read into.
    pub fn stored_length(&self) -> u64 {
        stored_length(self.payload_length)
    }
}

#[cfg(test)]
mod tests {
    //! Proves that stripes are whole layers, page by page, as many as fit, for any block.

    use super::*;

    #[test]
    fn a_block_of_deepseek_v3_has_sixteen_stripes_of_four_layers() {
        let layout = Layout::new(61, 73_728).unwrap();
        assert_eq!((layout.stripes.len(), layout.layers_per_stripe), (16, 4));
        assert_eq!(layout.payload_length, 4_497_408);
        assert_eq!(layout.stored_length(), 4_501_504);
    }

    #[test]
    fn stripes_hold_all_layers_in_order_for_any_shape() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..2000 {
            let (layers, bytes) = (random.u32(1..300), random.u64(1..400_000));
            let layout = Layout::new(layers, bytes).unwrap();
            assert!(layout.stripes.len() <= STRIPES_MAX);
            let held: u64 = layout.stripes.iter().map(|stripe| stripe.length).sum();
            assert_eq!(held, u64::from(layers) * bytes);
            for pair in layout.stripes.windows(2) {
                assert!(pair[0].length >= STRIPE_MIN && pair[0].length.is_multiple_of(bytes));
                assert_eq!(pair[1].offset, page_aligned(pair[0].offset + pair[0].length).unwrap());
            }
        }
    }

    #[test]
    fn empty_and_oversized_blocks_are_refused() {
        assert!(matches!(Layout::new(0, 1), Err(LayoutError::Empty { .. })));
        assert!(matches!(Layout::new(1, 0), Err(LayoutError::Empty { .. })));
        assert!(matches!(Layout::new(u32::MAX, u64::MAX), Err(LayoutError::TooLarge { .. })));
    }
}
