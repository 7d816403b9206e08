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
}

#[test]
fn groups_that_do_not_cover_the_layers_are_refused() {
    let expected = NamespaceError::GroupLayers { groups: 61, layers: 60 };
    assert_eq!(with(|n| n.layers = 60).digest(), Err(expected));
}
