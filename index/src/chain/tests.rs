//! Proves the two invariants, and the answers, against a plain map.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn key(id: u8) -> BlockKey {
    BlockKey { sequence: SequenceHash(*blake3::hash(&[id]).as_bytes()), shard: 0 }
}

#[test]
fn a_node_with_its_table_entry_takes_at_most_150_bytes() {
    // Place: segment 4, generation 8, offset in pages 4, length in pages 4. A table that has just
    // doubled is 7/16 full and spends (4 + 1) x 16/7 < 12 bytes an entry; the free list, 4.
    let node = size_of::<Option<Node<[u32; 5]>>>();
    assert!(node + 12 + 4 <= 150, "{node}");
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
    assert_eq!(chain.touched(key(1)), Some(5));
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
                prop_assert_eq!(chain.match_prefix(0, &hashes, 0), path);
            }
        }
    }
}
