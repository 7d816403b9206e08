//! Proves that every field parts namespaces, and that a missing one is refused by its name.

use super::*;
use std::collections::BTreeSet;

fn namespace() -> Namespace {
    Namespace {
        tenant: "acme".into(),
        model: "deepseek-v3".into(),
        weights: "rev-1".into(),
        config_digest: vec![1],
        kv_dtype: "bf16".into(),
        block_tokens: 64,
        layers: 61,
        layer_bytes: 73_728,
        layout: KvLayout::Latent,
        groups: vec![AttentionGroup::Full { layers: 61 }],
        parallel: ParallelShape { tensor: 1, pipeline: 1, context: 1 },
        adapter_digest: vec![],
        salt: vec![],
    }
}

fn with(change: impl FnOnce(&mut Namespace)) -> Namespace {
    let mut changed = namespace();
    change(&mut changed);
    changed
}

#[test]
fn every_field_changes_the_digest() {
    let variants = [
        namespace(),
        with(|n| n.tenant = "other".into()),
        with(|n| n.model = "other".into()),
        with(|n| n.weights = "rev-2".into()),
        with(|n| n.config_digest = vec![2]),
        with(|n| n.kv_dtype = "fp8".into()),
        with(|n| n.block_tokens = 32),
        with(|n| {
            n.layers = 60;
            n.groups = vec![AttentionGroup::Full { layers: 60 }];
        }),
        with(|n| n.layer_bytes = 1),
        with(|n| n.layout = KvLayout::KeyValue),
        with(|n| n.groups = vec![AttentionGroup::Recurrent { layers: 61 }]),
        with(|n| n.groups = vec![AttentionGroup::SlidingWindow { layers: 61, window_tokens: 1 }]),
        with(|n| n.groups = vec![AttentionGroup::SlidingWindow { layers: 61, window_tokens: 2 }]),
        with(|n| n.parallel.tensor = 2),
        with(|n| n.parallel.pipeline = 2),
        with(|n| n.parallel.context = 2),
        with(|n| n.adapter_digest = vec![1]),
        with(|n| n.salt = vec![1]),
    ];
    let digests: BTreeSet<_> = variants.iter().map(|n| n.digest().unwrap()).collect();
    assert_eq!(digests.len(), variants.len());
}

#[test]
fn a_difference_names_its_field_and_shows_both_sides_but_no_salt() {
    let check = |field, here: &str, there: &str, change: fn(&mut Namespace)| {
        let expected = Difference { field, here: here.into(), there: there.into() };
        assert_eq!(namespace().differences(&with(change)), [expected]);
    };
    assert_eq!(namespace().differences(&namespace()), []);
    check("tenant", "acme", "other", |n| n.tenant = "other".into());
    check("model", "deepseek-v3", "v2", |n| n.model = "v2".into());
    check("weights", "rev-1", "rev-2", |n| n.weights = "rev-2".into());
    check("config_digest", "01", "02ff", |n| n.config_digest = vec![2, 255]);
    check("kv_dtype", "bf16", "fp8", |n| n.kv_dtype = "fp8".into());
    check("block_tokens", "64", "32", |n| n.block_tokens = 32);
    check("layers", "61", "60", |n| n.layers = 60);
    check("layer_bytes", "73728", "1", |n| n.layer_bytes = 1);
    check("layout", "Latent", "KeyValue", |n| n.layout = KvLayout::KeyValue);
    check("groups", "Full { layers: 61 }", "Recurrent { layers: 61 }", |n| {
        n.groups = vec![AttentionGroup::Recurrent { layers: 61 }];
    });
    check("tensor_parallel", "1", "2", |n| n.parallel.tensor = 2);
    check("pipeline_parallel", "1", "2", |n| n.parallel.pipeline = 2);
    check("context_parallel", "1", "2", |n| n.parallel.context = 2);
    check("adapter_digest", "", "01", |n| n.adapter_digest = vec![1]);
    let salted = namespace().differences(&with(|n| n.salt = b"secret".to_vec()));
    assert_eq!(salted.len(), 1);
    assert!(salted[0].there.starts_with("blake3 ") && !format!("{salted:?}").contains("secret"));
}

#[test]
fn a_missing_field_is_refused_by_its_name() {
    let check = |field, change: fn(&mut Namespace)| {
        assert_eq!(with(change).digest(), Err(NamespaceError::Missing { field }));
    };
    check("tenant", |n| n.tenant.clear());
    check("model", |n| n.model.clear());
    check("weights", |n| n.weights.clear());
    check("config_digest", |n| n.config_digest.clear());
    check("kv_dtype", |n| n.kv_dtype.clear());
    check("block_tokens", |n| n.block_tokens = 0);
    check("layers", |n| n.layers = 0);
    check("layer_bytes", |n| n.layer_bytes = 0);
    check("groups", |n| n.groups.clear());
    check("parallel.tensor", |n| n.parallel.tensor = 0);
    check("parallel.pipeline", |n| n.parallel.pipeline = 0);
    check("parallel.context", |n| n.parallel.context = 0);
}

#[test]
fn a_block_is_cut_into_a_shard_for_each_rank() {
    let shards = |tensor, pipeline, context| ParallelShape { tensor, pipeline, context }.shards();
    assert_eq!((shards(1, 1, 1), shards(2, 3, 5)), (1, 30));
    assert_eq!(shards(u32::MAX, u32::MAX, u32::MAX), u64::MAX, "more than any engine has");
}

#[test]
fn groups_that_do_not_cover_the_layers_are_refused() {
    let expected = NamespaceError::GroupLayers { groups: 61, layers: 60 };
    assert_eq!(with(|n| n.layers = 60).digest(), Err(expected));
}
