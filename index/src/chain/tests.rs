//! Proves the two invariants, and the answers, against a plain map.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn key(id: u8) -> BlockKey {
    BlockKey { sequence: SequenceHash(*blake3::hash(&[id]).as_bytes()), shard: 0 }
}

impl Place for u8 {
    fn group(&self) -> u32 {
        u32::from(*self % 3)
    }
}

#[derive(Clone, Copy)]
struct Wide([u32; 6]);

impl Place for Wide {
    fn group(&self) -> u32 {
        self.0[0]
    }
}

#[test]
fn a_block_takes_at_most_150_bytes_at_any_size() {
    let mut chain = Chain::default();
    let mut parent = None;
    for id in 0..300_000u32 {
        let sequence = SequenceHash(*blake3::hash(&id.to_le_bytes()).as_bytes());
        let key = BlockKey { sequence, shard: 0 };
        chain.insert(key, parent, Wide([id / 1000, id, 0, 0, 0, 0]), 0).unwrap();
        parent = (id % 100 != 99).then_some(sequence);
        if id > 20_000 && id % 977 == 0 {
            let each = chain.bytes() / u64::from(id + 1);
            assert!(each <= 150, "{each} bytes a block at {id}");
        }
    }
}

#[test]
fn every_block_is_on_one_page() {
    let mut chain = Chain::default();
    assert_eq!(chain.pages(), 0);
    let mut count = 0;
    while chain.pages() < 3 {
        let sequence = SequenceHash(*blake3::hash(&u32::to_le_bytes(count)).as_bytes());
        let place = Wide([count % 7, count, 0, 0, 0, 0]);
        chain.insert(BlockKey { sequence, shard: 0 }, None, place, 0).unwrap();
        count += 1;
    }
    let pages = (0..chain.pages()).map(|page| chain.page(page).map(|(_, place)| place.0[1]));
    let pages: Vec<Vec<_>> = pages.map(Iterator::collect).collect();
    assert!(pages.iter().all(|page| !page.is_empty()));
    let mut found = pages.concat();
    found.sort_unstable();
    assert!(found.into_iter().eq(0..count));
    assert_eq!(chain.page(3).count(), 0);
}

#[test]
fn blocks_and_groups_are_counted_in_bytes() {
    let sized = |blocks: u32, groups: u32| {
        let mut chain = Chain::default();
        assert!(chain.is_empty());
        for id in 0..blocks {
            let sequence = SequenceHash(*blake3::hash(&id.to_le_bytes()).as_bytes());
            let key = BlockKey { sequence, shard: 0 };
            chain.insert(key, None, Wide([id % groups, id, 0, 0, 0, 0]), 0).unwrap();
            assert!(!chain.is_empty());
        }
        chain.bytes()
    };
    let key_and_place = 36 + 24;
    assert!(sized(20_000, 1) > 20_000 * key_and_place);
    assert!(sized(5000, 5000) > sized(5000, 1) + 5000 * 8);
}

#[test]
fn what_a_block_leaves_behind_for_the_next_one_is_counted_in_bytes() {
    let mut chain = Chain::default();
    let keys = (0..5000u32).map(|id| BlockKey { shard: id, ..key(0) });
    for key in keys.clone() {
        chain.insert(key, None, 0, 0).unwrap();
    }
    let full = chain.bytes();
    for key in keys.clone() {
        chain.remove(key);
    }
    // Its node, and that this is free: four bytes.
    let emptied = chain.bytes();
    assert!(emptied >= full + 4 * 5000, "{full} bytes, then {emptied}");
    for key in keys {
        chain.insert(key, None, 0, 0).unwrap();
    }
    assert_eq!(chain.bytes(), emptied);
}

#[test]
fn every_bit_of_a_hash_counts_in_the_buckets_of_any_shard() {
    for shard in [0, 1, 7] {
        let whole = BlockKey { shard, ..key(1) };
        for bit in 0..64 {
            let mut other = whole;
            other.sequence.0[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(bucket(other), bucket(whole), "bit {bit}, shard {shard}");
        }
    }
}

#[test]
fn restoring_in_any_order_gives_what_inserting_in_order_gives() {
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..200 {
        let mut blocks: Vec<(BlockKey, Option<SequenceHash>, u8)> = Vec::new();
        for id in 0..40 {
            let parent = (id > 3).then(|| key(random.u8(0..id)).sequence);
            blocks.push((key(id), parent, id));
        }
        let lost = random.u8(0..40);
        blocks.retain(|(_, _, id)| *id != lost);
        let mut expected = Chain::default();
        for &(key, parent, place) in &blocks {
            // Behind the lost one nothing can be inserted.
            let _ = expected.insert(key, parent, place, 0);
        }
        let mut shuffled = blocks.clone();
        random.shuffle(&mut shuffled);
        shuffled.push((shuffled[0].0, shuffled[0].1, shuffled[0].2));
        let mut found = Chain::default();
        let restored = found.restore(shuffled, 0);
        let all = |chain: &Chain<u8>| {
            let mut all: Vec<_> =
                chain.iter().map(|(key, place, _)| (key, place, chain.parent(key))).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(all(&found), all(&expected));
        assert_eq!(all(&found).len(), found.len());
        for (key, place, parent) in all(&found) {
            assert_eq!(found.get(key), Some(place));
            assert!(blocks.contains(&(key, parent.unwrap(), place)));
        }
        assert_eq!(restored.inserted, expected.len());
        assert_eq!((restored.duplicates, restored.inserted + restored.orphans), (1, blocks.len()));
    }
}

#[test]
fn a_group_lists_its_blocks_also_after_moves_and_removals() {
    let mut chain = Chain::default();
    for id in 0..9 {
        chain.insert(key(id), None, id, 0).unwrap();
    }
    chain.remove(key(3));
    assert_eq!(chain.replace(key(6), 7), Some(6));
    let group = |chain: &Chain<u8>, group| {
        let mut keys: Vec<_> = chain.group(group).map(|(key, ..)| key).collect();
        keys.sort_unstable();
        keys
    };
    let sorted = |ids: &[u8]| {
        let mut keys: Vec<_> = ids.iter().map(|&id| key(id)).collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(group(&chain, 0), sorted(&[0]));
    assert_eq!(group(&chain, 1), sorted(&[1, 4, 6, 7]));
    assert_eq!(group(&chain, 2), sorted(&[2, 5, 8]));
}

#[test]
fn shards_do_not_meet() {
    let mut chain = Chain::default();
    chain.insert(key(1), None, 1, 0).unwrap();
    let other = BlockKey { shard: 1, ..key(2) };
    let expected = InsertError::ParentAbsent { parent: key(1).sequence, shard: 1 };
    assert_eq!(chain.insert(other, Some(key(1).sequence), 2, 0), Err(expected));
}

#[test]
fn resident_blocks_in_a_wrong_order_are_no_prefix() {
    let mut chain = Chain::default();
    chain.insert(key(1), None, 1, 0).unwrap();
    chain.insert(key(2), Some(key(1).sequence), 2, 0).unwrap();
    let (one, two) = (key(1).sequence, key(2).sequence);
    assert_eq!(chain.match_prefix(0, &[one, two], 5), [1, 2]);
    assert_eq!(chain.match_prefix(0, &[two, one], 9), [0; 0]);
    assert_eq!((chain.matched(0, &[one, two, one]), chain.matched(0, &[two, one])), (2, 0));
    assert_eq!(chain.touched(key(1)), Some(5));
}

#[test]
fn blocks_are_found_one_by_one_whatever_they_are_behind() {
    let mut chain = Chain::default();
    chain.insert(key(1), None, 1, 0).unwrap();
    chain.insert(key(2), Some(key(1).sequence), 2, 0).unwrap();
    let hashes = [2, 3, 1].map(|id| key(id).sequence);
    assert_eq!(chain.match_each(0, &hashes, 5), [Some(2), None, Some(1)]);
    assert_eq!(chain.match_each(1, &hashes, 7), [None; 3]);
    // Each is touched alone, not those before it.
    assert_eq!(chain.match_each(0, &hashes[..1], 9), [Some(2)]);
    assert_eq!((chain.touched(key(1)), chain.touched(key(2))), (Some(5), Some(9)));
    assert_eq!((chain.get(key(2)), chain.get(key(3))), (Some(2), None));
}

proptest! {
    #[test]
    fn chain_answers_as_a_map_of_parents_does(steps in prop::collection::vec((0u8..24, 0u8..24, 0u8..4), 1..300)) {
        let mut chain = Chain::default();
        let mut model = BTreeMap::<u8, Option<u8>>::new();
        for (id, other, action) in steps {
            if action == 0 {
                let removed = chain.remove(key(id));
                let mut gone = Vec::from_iter(model.remove(&id).map(|_| id));
                while let Some(&child) = model.iter().find(|(_, p)| p.is_some_and(|p| gone.contains(&p))).map(|(c, _)| c) {
                    model.remove(&child);
                    gone.push(child);
                }
                gone.sort_unstable();
                let mut found: Vec<u8> = removed.iter().map(|(_, place)| *place).collect();
                found.sort_unstable();
                prop_assert_eq!(found, gone);
            } else {
                let parent = (action > 1).then_some(other);
                let allowed = !model.contains_key(&id) && parent.is_none_or(|p| model.contains_key(&p));
                let found = chain.insert(key(id), parent.map(|p| key(p).sequence), id, 0);
                prop_assert_eq!(found.is_ok(), allowed);
                if allowed {
                    model.insert(id, parent);
                }
            }
            prop_assert_eq!(chain.len(), model.len());
            for (&id, &parent) in &model {
                let mut path = vec![id];
                let mut up = parent;
                while let Some(p) = up {
                    path.push(p);
                    up = model[&p];
                }
                path.reverse();
                let hashes: Vec<_> = path.iter().map(|&id| key(id).sequence).collect();
                prop_assert_eq!(chain.matched(0, &hashes), path.len());
                prop_assert_eq!(chain.match_prefix(0, &hashes, 0), path);
            }
        }
    }
}
