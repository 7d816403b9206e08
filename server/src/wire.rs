//! From the wire to what it means, refused by name where it means nothing.

use crate::save::Refusal;
use refrain_index::namespace::{
    AttentionGroup, KvLayout, Namespace, NamespaceError, ParallelShape,
};
use refrain_proto::v1::{self, attention_group::Kind};
use thiserror::Error;

/// A message that means nothing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    #[error("field `{field}` is missing")]
    Missing { field: &'static str },
    #[error("field `{field}` has the unknown value {value}")]
    Unknown { field: &'static str, value: i32 },
    #[error("window_tokens of attention group {group} is missing, as it is a sliding window")]
    Window { group: usize },
    #[error("tokens have {bytes} bytes, not a multiple of 4")]
    Tokens { bytes: usize },
    #[error("{field} has {found} bytes, not {expected}")]
    Length { field: &'static str, found: usize, expected: usize },
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

pub fn namespace(wire: Option<v1::Namespace>) -> Result<Namespace, WireError> {
    let wire = wire.ok_or(WireError::Missing { field: "namespace" })?;
    let layout = match v1::KvLayout::try_from(wire.layout) {
        Ok(v1::KvLayout::KeyValue) => KvLayout::KeyValue,
        Ok(v1::KvLayout::Latent) => KvLayout::Latent,
        Ok(v1::KvLayout::Unspecified) => {
            return Err(WireError::Missing { field: "namespace.layout" });
        }
        Err(_) => {
            return Err(WireError::Unknown { field: "namespace.layout", value: wire.layout });
        }
    };
    let groups = wire.groups.iter().enumerate().map(|(index, group)| attention(index, group));
    Ok(Namespace {
        groups: groups.collect::<Result<_, _>>()?,
        tenant: wire.tenant,
        model: wire.model,
        weights: wire.weights,
        config_digest: wire.config_digest,
        kv_dtype: wire.kv_dtype,
        block_tokens: wire.block_tokens,
        layers: wire.layers,
        layer_bytes: wire.layer_bytes,
        layout,
        parallel: ParallelShape {
            tensor: wire.tensor_parallel,
            pipeline: wire.pipeline_parallel,
            context: wire.context_parallel,
        },
        adapter_digest: wire.adapter_digest,
        salt: wire.salt,
    })
}

/// As another sidecar is told of it.
pub(crate) fn of_namespace(namespace: &Namespace) -> v1::Namespace {
    let Namespace { layout, groups, parallel, .. } = namespace.clone();
    let layout = match layout {
        KvLayout::KeyValue => v1::KvLayout::KeyValue,
        KvLayout::Latent => v1::KvLayout::Latent,
    };
    let group = |group: AttentionGroup| {
        let (kind, layers, window_tokens) = match group {
            AttentionGroup::Full { layers } => (Kind::Full, layers, 0),
            AttentionGroup::Recurrent { layers } => (Kind::Recurrent, layers, 0),
            AttentionGroup::SlidingWindow { layers, window_tokens } => {
                (Kind::SlidingWindow, layers, window_tokens)
            }
        };
        v1::AttentionGroup { kind: kind.into(), layers, window_tokens }
    };
    v1::Namespace {
        tenant: namespace.tenant.clone(),
        model: namespace.model.clone(),
        weights: namespace.weights.clone(),
        config_digest: namespace.config_digest.clone(),
        kv_dtype: namespace.kv_dtype.clone(),
        block_tokens: namespace.block_tokens,
        layers: namespace.layers,
        layer_bytes: namespace.layer_bytes,
        layout: layout.into(),
        groups: groups.into_iter().map(group).collect(),
        tensor_parallel: parallel.tensor,
        pipeline_parallel: parallel.pipeline,
        context_parallel: parallel.context,
        adapter_digest: namespace.adapter_digest.clone(),
        salt: namespace.salt.clone(),
    }
}

fn attention(index: usize, group: &v1::AttentionGroup) -> Result<AttentionGroup, WireError> {
    let layers = group.layers;
    match Kind::try_from(group.kind) {
        Ok(Kind::Full) => Ok(AttentionGroup::Full { layers }),
        Ok(Kind::Recurrent) => Ok(AttentionGroup::Recurrent { layers }),
        Ok(Kind::SlidingWindow) if group.window_tokens == 0 => {
            Err(WireError::Window { group: index })
        }
        Ok(Kind::SlidingWindow) => {
            Ok(AttentionGroup::SlidingWindow { layers, window_tokens: group.window_tokens })
        }
        Ok(Kind::Unspecified) => Err(WireError::Missing { field: "namespace.groups.kind" }),
        Err(_) => Err(WireError::Unknown { field: "namespace.groups.kind", value: group.kind }),
    }
}

/// Token ids as they travel: little-endian, back to back.
pub fn tokens(bytes: &[u8]) -> Result<Vec<u32>, WireError> {
    let (tokens, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(WireError::Tokens { bytes: bytes.len() });
    }
    Ok(tokens.iter().map(|token| u32::from_le_bytes(*token)).collect())
}

pub(crate) fn refusal(refusal: Option<Refusal>) -> v1::Refusal {
    match refusal {
        None => v1::Refusal::None,
        Some(Refusal::Busy) => v1::Refusal::Busy,
        Some(Refusal::NoSpace) => v1::Refusal::NoSpace,
        Some(Refusal::ReadOnly) => v1::Refusal::ReadOnly,
        Some(Refusal::Draining) => v1::Refusal::Draining,
        Some(Refusal::NoParent) => v1::Refusal::NoParent,
    }
}

pub fn array<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], WireError> {
    let length = WireError::Length { field, found: bytes.len(), expected: N };
    bytes.try_into().map_err(|_| length)
}

#[cfg(test)]
mod tests {
    //! Proves that each field that is missing or unknown is refused by its name.

    use super::*;

    fn whole() -> v1::Namespace {
        v1::Namespace {
            tenant: "tenant".into(),
            model: "model".into(),
            weights: "revision".into(),
            config_digest: vec![1],
            kv_dtype: "bf16".into(),
            block_tokens: 64,
            layers: 4,
            layer_bytes: 4096,
            layout: v1::KvLayout::Latent.into(),
            groups: vec![v1::AttentionGroup {
                kind: Kind::Full.into(),
                layers: 4,
                window_tokens: 0,
            }],
            tensor_parallel: 1,
            pipeline_parallel: 1,
            context_parallel: 1,
            adapter_digest: Vec::new(),
            salt: Vec::new(),
        }
    }

    fn check(change: impl FnOnce(&mut v1::Namespace), expected: &str) {
        let mut changed = whole();
        change(&mut changed);
        let refused = namespace(Some(changed)).and_then(|it| Ok(it.digest()?)).unwrap_err();
        assert!(refused.to_string().contains(expected), "{refused}");
    }

    #[test]
    fn a_whole_namespace_has_a_digest() {
        namespace(Some(whole())).unwrap().digest().unwrap();
    }

    #[test]
    fn another_sidecar_is_told_of_all_of_it() {
        let mut wire = whole();
        let kind = Kind::SlidingWindow.into();
        wire.groups[0].layers = 1;
        wire.groups.push(v1::AttentionGroup { kind, layers: 3, window_tokens: 128 });
        (wire.tensor_parallel, wire.pipeline_parallel, wire.context_parallel) = (2, 3, 4);
        (wire.adapter_digest, wire.salt) = (vec![5], vec![6, 7]);
        assert_eq!(of_namespace(&namespace(Some(wire.clone())).unwrap()), wire);
    }

    #[test]
    fn a_missing_field_is_named() {
        assert_eq!(namespace(None), Err(WireError::Missing { field: "namespace" }));
        check(|it| it.tenant.clear(), "`tenant`");
        check(|it| it.weights.clear(), "`weights`");
        check(|it| it.config_digest.clear(), "`config_digest`");
        check(|it| it.block_tokens = 0, "`block_tokens`");
        check(|it| it.layout = 0, "`namespace.layout`");
        check(|it| it.groups.clear(), "`groups`");
        check(|it| it.groups[0].kind = 0, "`namespace.groups.kind`");
        check(|it| it.tensor_parallel = 0, "`parallel.tensor`");
    }

    #[test]
    fn an_unknown_or_contradicting_value_is_named() {
        check(|it| it.layout = 9, "unknown value 9");
        check(|it| it.groups[0].kind = Kind::SlidingWindow.into(), "window_tokens");
        check(|it| it.groups[0].layers = 3, "cover 3 layers");
    }

    #[test]
    fn half_a_token_is_refused() {
        assert_eq!(tokens(&[1, 0, 0, 0, 2, 0, 0, 0]), Ok(vec![1, 2]));
        assert_eq!(tokens(&[1, 0, 0]), Err(WireError::Tokens { bytes: 3 }));
    }
}
