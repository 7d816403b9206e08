//! Proves that a cache described by strides is filled as one that is filled byte by byte, whatever
//! the strides, and that what describes no memory is refused.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

/// Planes of one layer, at places that no other layer has.
fn planes(layer: u64, (rows, row_bytes, gap, is_split): (u32, u64, u64, bool)) -> Vec<Plane> {
    let base = layer << 32;
    let row_stride = row_bytes + gap;
    let page = u64::from(rows) * row_stride;
    let plane = |base| Plane { base, page_stride: page + gap, rows, row_bytes, row_stride };
    if is_split {
        vec![plane(base), plane(base + (1 << 31))]
    } else {
        // As many bytes as two planes of the split kind.
        vec![Plane { rows: 2 * rows, page_stride: 2 * page + gap, ..plane(base) }]
    }
}

prop_compose! {
    fn layouts()(
        pages_per_block in 1..4_u32,
        (rows, row_bytes) in (1..4_u32, 1..40_u64),
        layers in prop::collection::vec((0..8_u64, any::<bool>(), 0..2_usize), 1..6),
    ) -> KvLayout {
        let layers = (0..).zip(layers).map(|(layer, (gap, is_split, group))| {
            let shape = (rows, row_bytes, gap, is_split);
            Layer { group, planes: planes(layer, shape) }
        });
        KvLayout { layers: layers.collect(), pages: 64, pages_per_block }
    }
}

/// The address of every payload byte of a block, found one by one.
fn addresses(layout: &KvLayout, pages: &[Vec<u32>], block: usize) -> Vec<Option<u64>> {
    let mut addresses = Vec::new();
    for Layer { group, planes } in &layout.layers {
        for plane in planes {
            let count = usize::try_from(layout.pages_per_block).unwrap();
            for page in &pages[*group][block * count..][..count] {
                for row in 0..u64::from(plane.rows) {
                    for byte in 0..plane.row_bytes {
                        let start = plane.base + u64::from(*page) * plane.page_stride;
                        let address = start + row * plane.row_stride + byte;
                        addresses.push((*page != NO_PAGE).then_some(address));
                    }
                }
            }
        }
    }
    addresses
}

proptest! {
    #[test]
    fn every_byte_of_a_payload_goes_where_the_strides_say(
        layout in layouts(),
        seed in any::<u64>(),
    ) {
        layout.check().unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let blocks = 3;
        let mut numbers: Vec<u32> = (0..64).collect();
        let lists: Vec<Vec<u32>> = (0..2).map(|_| {
            random.shuffle(&mut numbers);
            let list = numbers.iter().take(usize::try_from(blocks * layout.pages_per_block).unwrap());
            list.map(|page| if random.u8(0..8) == 0 { NO_PAGE } else { *page }).collect()
        }).collect();
        let pages = Pages::new(blocks, lists.clone());
        layout.check_pages(&pages).unwrap();

        let layers = layout.layers.len();
        for block in 0..blocks {
            let cut = random.usize(0..=layers);
            let mut plan = Plan::default();
            let start = 1_000_000;
            layout.scatter(0..cut, &pages, block, start, &mut plan).unwrap();
            let half = start + layout.layer_bytes() * u64::try_from(cut).unwrap();
            layout.scatter(cut..layers, &pages, block, half, &mut plan).unwrap();
            let mut copied = HashMap::new();
            for copy in plan.copies() {
                for byte in 0..copy.length {
                    prop_assert!(copied.insert(copy.source + byte, copy.target + byte).is_none());
                }
            }
            let expected = addresses(&layout, &lists, usize::try_from(block).unwrap());
            let bytes = layout.layer_bytes() * u64::try_from(layers).unwrap();
            prop_assert_eq!(u64::try_from(expected.len()).unwrap(), bytes);
            for (at, address) in (start..).zip(expected) {
                prop_assert_eq!(copied.remove(&at), address);
            }
            prop_assert!(copied.is_empty());
        }
    }
}

fn latent(pages: u32, layers: u64) -> KvLayout {
    let layer = |layer| Layer {
        group: 0,
        planes: vec![Plane::contiguous(0x1000 + layer * 0x10_0000, 4096, 4096)],
    };
    KvLayout { layers: (0..layers).map(layer).collect(), pages, pages_per_block: 2 }
}

#[test]
fn pages_side_by_side_are_one_copy() {
    let layout = latent(16, 1);
    let mut plan = Plan::default();
    layout.scatter(0..1, &Pages::new(1, vec![vec![4, 5]]), 0, 0, &mut plan).unwrap();
    assert_eq!(plan.copies(), [Copy { source: 0, target: 0x1000 + 4 * 4096, length: 8192 }]);
}

#[test]
fn what_describes_no_cache_is_refused() {
    assert!(matches!(latent(0, 1).check(), Err(LayoutError::Empty { .. })));
    assert!(matches!(latent(1, 0).check(), Err(LayoutError::Empty { .. })));
    let mut uneven = latent(4, 3);
    uneven.layers[2].planes[0].row_bytes = 100;
    let expected = LayoutError::Uneven { layer: 2, found: 200, expected: 8192 };
    assert_eq!(uneven.check(), Err(expected));
    let mut far = latent(4, 3);
    far.layers[1].planes[0].base = u64::MAX - 8192;
    assert_eq!(far.check(), Err(LayoutError::Plane { layer: 1, plane: 0 }));
    let mut hollow = latent(4, 3);
    hollow.layers[1].planes.clear();
    assert_eq!(hollow.check(), Err(LayoutError::Plane { layer: 1, plane: 0 }));
}

#[test]
fn pages_that_the_cache_has_not_are_refused() {
    let layout = latent(16, 2);
    let check = |groups, expected| {
        let pages = Pages::new(2, groups);
        assert_eq!(layout.check_pages(&pages), Err(expected));
    };
    check(vec![], LayoutError::NoGroup { layer: 0, group: 0 });
    let (pages_per_block, blocks) = (2, 2);
    let few = LayoutError::PageCount { group: 0, found: 3, pages_per_block, blocks };
    check(vec![vec![0, 1, 2]], few);
    let outside = LayoutError::PageOutOfRange { group: 0, page: 16, pages: 16 };
    check(vec![vec![0, 16, 1, 2]], outside);
    // Nor does anything else make a copy of one.
    let mut plan = Plan::default();
    let pages = Pages::new(2, vec![vec![0, 16, 1, 2]]);
    assert_eq!(layout.scatter(0..2, &pages, 0, 0, &mut plan), Err(outside));
    let kept = Pages::new(1, vec![vec![3, NO_PAGE]]);
    assert_eq!(kept.gap(), Some(LayoutError::PageNotKept { group: 0, index: 1 }));
}
