//! Proves that frames never overlap, that all of them come back, that no size wedges the arena, and
//! that memory which could be pulled away is refused.

use super::*;

fn arena(bytes: u64) -> Arc<Arena> {
    Arena::new(Mapping::create("test", bytes).unwrap())
}

#[test]
fn frames_of_mixed_sizes_never_overlap_and_all_come_back() {
    let arena = arena(64 << 20);
    let mut random = fastrand::Rng::with_seed(7);
    let mut held: Vec<Frame> = Vec::new();
    for _ in 0..20_000 {
        if random.u8(0..3) > 0 {
            let bytes = [4096, 20_480, 300_000, 4_501_504][random.usize(0..4)];
            if let Some(frame) = arena.allocate(bytes) {
                let (start, end) = span(&frame);
                let overlaps = held.iter().map(span).any(|(s, e)| s < end && start < e);
                assert!(!overlaps && frame.region().length() >= bytes);
                held.push(frame);
            }
        } else if !held.is_empty() {
            held.swap_remove(random.usize(0..held.len()));
        }
    }
    held.clear();
    assert_eq!(arena.allocated_bytes(), 0);
    // Every slab is free again: one size can take all of them.
    let largest: Vec<_> = std::iter::from_fn(|| arena.allocate(arena.frame_bytes_max())).collect();
    assert_eq!(largest.len() as u64, (64 << 20) / arena.frame_bytes_max());
}

fn span(frame: &Frame) -> (u64, u64) {
    (frame.region().offset(), frame.region().offset() + frame.region().length())
}

#[test]
fn a_frame_larger_than_a_slab_is_refused() {
    let arena = arena(32 << 20);
    assert!(arena.allocate(arena.frame_bytes_max() + 1).is_none());
}

#[test]
fn a_shared_mapping_shows_what_is_written() {
    let ours = Mapping::create("test", 8192).unwrap();
    let fd = ours.share_read_only().unwrap();
    let theirs = Mapping::open(fd, 8192, Access::ReadOnly).unwrap();
    ours.region(4096, 4).unwrap().copy_from(1, b"ab");
    assert_eq!(theirs.region(4096, 4).unwrap().bytes(), b"\0ab\0");
}

#[test]
fn a_read_only_share_cannot_be_mapped_for_writing() {
    let ours = Mapping::create("test", 4096).unwrap();
    let opened = Mapping::open(ours.share_read_only().unwrap(), 4096, Access::ReadWrite);
    assert!(matches!(opened, Err(ArenaError::Map { .. })), "{opened:?}");
}

#[test]
fn memory_that_could_shrink_or_is_too_short_is_refused() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let unsealed = rustix::fs::memfd_create("test", flags).unwrap();
    rustix::fs::ftruncate(&unsealed, 4096).unwrap();
    let opened = Mapping::open(unsealed, 4096, Access::ReadOnly);
    assert!(matches!(opened, Err(ArenaError::Unsealed)), "{opened:?}");
    let short = Mapping::create("test", 4096).unwrap();
    let opened = Mapping::open(short.share().unwrap(), 8192, Access::ReadOnly);
    assert!(matches!(opened, Err(ArenaError::Short { found: 4096, declared: 8192 })), "{opened:?}");
}

#[test]
fn a_region_outside_is_refused() {
    let mapping = Mapping::create("test", 8192).unwrap();
    for (offset, length) in [(0, 8193), (8192, 1), (u64::MAX, 2)] {
        assert!(matches!(mapping.region(offset, length), Err(ArenaError::OutOfRange { .. })));
    }
}

#[test]
fn populated_memory_is_resident_and_keeps_its_contents() {
    // Begins and ends within a huge page, and holds two whole ones.
    let mapping = Mapping::create("test", 10 << 20).unwrap();
    let region = mapping.region(1 << 20, 7 << 20).unwrap();
    region.copy_from(0, b"first");
    region.copy_from((7 << 20) - 4, b"last");
    region.populate().unwrap();
    assert_eq!(&region.bytes()[..5], b"first");
    assert_eq!(&region.bytes()[(7 << 20) - 4..], b"last");
    assert!(region.bytes()[5..(7 << 20) - 4].iter().all(|byte| *byte == 0));
    let resident = rustix::fs::fstat(mapping.fd()).unwrap().st_blocks * 512;
    assert!((7 << 20..=10 << 20).contains(&resident), "{resident} bytes are resident");
}

#[test]
fn mappings_with_room_for_a_huge_page_begin_on_one() {
    for bytes in [2 << 20, (2 << 20) + 4096] {
        let mapping = Mapping::create("test", bytes).unwrap();
        assert!(mapping.base_pointer().addr().is_multiple_of(2 << 20), "{bytes} bytes");
    }
}
