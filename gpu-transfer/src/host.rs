//! Copies made with memcpy, where there is no GPU.
#![expect(unsafe_code, reason = "copies to and from addresses that the worker gave")]

use crate::copier::Piece;
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

/// Makes all copies of a piece.
pub(crate) fn run(piece: &Piece) {
    for copy in piece.copies() {
        let source = with_exposed_provenance::<u8>(address(copy.source));
        let target = with_exposed_provenance_mut::<u8>(address(copy.target));
        // SAFETY: one side lies in an arena, checked when it was added to the batch; the other in a
        // page of the cache, memory by the promise of whoever made the `PagedCache`. The piece
        // keeps both. They may overlap, should somebody keep a cache within an arena.
        unsafe { std::ptr::copy(source, target, address(copy.length)) };
    }
}

fn address(value: u64) -> usize {
    usize::try_from(value).expect("addresses have 64 bits")
}
