//! All that must be equal before two sequence hashes may be compared.
//!
//! A namespace is a typed, length-prefixed record; its digest seeds the hash chain. A missing
//! field is a refusal, not a default: wrong KV under the right name is the worst fault there is.

use thiserror::Error;

/// Digest of a [`Namespace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceDigest(pub [u8; 32]);

/// How keys and values of one token lie in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvLayout {
    /// Keys and values apart (MHA, GQA, MQA).
    KeyValue,
    /// One latent vector (MLA).
    Latent,
}

/// One group of layers that cache alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionGroup {
    Full { layers: u32 },
    SlidingWindow { layers: u32, window_tokens: u32 },
    Recurrent { layers: u32 },
}

/// Ranks that share a block between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParallelShape {
    pub tensor: u32,
    pub pipeline: u32,
    pub context: u32,
}

impl ParallelShape {
    /// Into how many each block is cut.
    pub fn shards(self) -> u64 {
        let Self { tensor, pipeline, context } = self;
        [tensor, pipeline, context].into_iter().map(u64::from).fold(1, u64::saturating_mul)
    }
}

/// The record. Fields that a deployment does not use are said to be unused (an empty adapter,
/// say), never left out: an empty string is refused where a value must exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub tenant: String,
    pub model: String,
    /// Revision of the weights, or a digest of the weight files.
    pub weights: String,
    /// Digest of the effective model config, RoPE included.
    pub config_digest: Vec<u8>,
    /// Data type of KV, and of its scales where it has any: `bf16`, `fp8_e4m3/f32`.
    pub kv_dtype: String,
    pub block_tokens: u32,
    pub layers: u32,
    /// Bytes of one layer of one block, one shard.
    pub layer_bytes: u64,
    pub layout: KvLayout,
    pub groups: Vec<AttentionGroup>,
    pub parallel: ParallelShape,
    /// Digest of the adapter; empty for the bare model.
    pub adapter_digest: Vec<u8>,
    /// Empty where the deployment uses none.
    pub salt: Vec<u8>,
}

/// A namespace that names nothing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NamespaceError {
    #[error("namespace field `{field}` is missing; give it, as there is no safe default")]
    Missing { field: &'static str },
    #[error("attention groups cover {groups} layers, the model has {layers}")]
    GroupLayers { groups: u64, layers: u32 },
}

impl Namespace {
    /// The digest of the record, or the first field that is missing.
    pub fn digest(&self) -> Result<NamespaceDigest, NamespaceError> {
        self.check()?;
        let mut record = Record(blake3::Hasher::new_derive_key("refrain.v1 2026-11 namespace"));
        record.bytes(b"tenant", self.tenant.as_bytes());
        record.bytes(b"model", self.model.as_bytes());
        record.bytes(b"weights", self.weights.as_bytes());
        record.bytes(b"config", &self.config_digest);
        record.bytes(b"kv_dtype", self.kv_dtype.as_bytes());
        record.number(b"block_tokens", self.block_tokens.into());
        record.number(b"layers", self.layers.into());
        record.number(b"layer_bytes", self.layer_bytes);
        record.number(
            b"layout",
            match self.layout {
                KvLayout::KeyValue => 0,
                KvLayout::Latent => 1,
            },
        );
        record.number(b"groups", self.groups.len() as u64);
        for group in &self.groups {
            let (kind, layers, window) = match *group {
                AttentionGroup::Full { layers } => (0, layers, 0),
                AttentionGroup::SlidingWindow { layers, window_tokens } => {
                    (1, layers, window_tokens)
                }
                AttentionGroup::Recurrent { layers } => (2, layers, 0),
            };
            record.number(b"kind", kind);
            record.number(b"layers", layers.into());
            record.number(b"window", window.into());
        }
        record.number(b"tensor", self.parallel.tensor.into());
        record.number(b"pipeline", self.parallel.pipeline.into());
        record.number(b"context", self.parallel.context.into());
        record.bytes(b"adapter", &self.adapter_digest);
        record.bytes(b"salt", &self.salt);
        Ok(NamespaceDigest(*record.0.finalize().as_bytes()))
    }

    fn check(&self) -> Result<(), NamespaceError> {
        let required = [
            ("tenant", self.tenant.is_empty()),
            ("model", self.model.is_empty()),
            ("weights", self.weights.is_empty()),
            ("config_digest", self.config_digest.is_empty()),
            ("kv_dtype", self.kv_dtype.is_empty()),
            ("block_tokens", self.block_tokens == 0),
            ("layers", self.layers == 0),
            ("layer_bytes", self.layer_bytes == 0),
            ("groups", self.groups.is_empty()),
            ("parallel.tensor", self.parallel.tensor == 0),
            ("parallel.pipeline", self.parallel.pipeline == 0),
            ("parallel.context", self.parallel.context == 0),
        ];
        if let Some((field, _)) = required.into_iter().find(|(_, missing)| *missing) {
            return Err(NamespaceError::Missing { field });
        }
        let groups = self.groups.iter().map(|group| match *group {
            AttentionGroup::Full { layers }
            | AttentionGroup::SlidingWindow { layers, .. }
            | AttentionGroup::Recurrent { layers } => u64::from(layers),
        });
        let groups = groups.sum();
        if groups != u64::from(self.layers) {
            return Err(NamespaceError::GroupLayers { groups, layers: self.layers });
        }
        Ok(())
    }
}

/// One field in which two namespaces differ, as people read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub field: &'static str,
    pub here: String,
    pub there: String,
}

impl Namespace {
    /// Every field in which `other` is another namespace.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let (ours, theirs) = (self.fields(), other.fields());
        let pairs = ours.into_iter().zip(theirs);
        let difference = |((field, here), (_, there)): ((&'static str, String), _)| {
            (here != there).then_some(Difference { field, here, there })
        };
        pairs.filter_map(difference).collect()
    }

    fn fields(&self) -> [(&'static str, String); 15] {
        let digits = |byte: &u8| format!("{byte:02x}");
        let hex = |bytes: &[u8]| bytes.iter().map(digits).collect::<Vec<_>>().concat();
        // It may be what keeps one deployment from another's blocks: only a digest is shown.
        let salt = |salt: &[u8]| format!("blake3 {:.16}", blake3::hash(salt).to_hex().as_str());
        let groups: Vec<_> = self.groups.iter().map(|group| format!("{group:?}")).collect();
        [
            ("tenant", self.tenant.clone()),
            ("model", self.model.clone()),
            ("weights", self.weights.clone()),
            ("config_digest", hex(&self.config_digest)),
            ("kv_dtype", self.kv_dtype.clone()),
            ("block_tokens", self.block_tokens.to_string()),
            ("layers", self.layers.to_string()),
            ("layer_bytes", self.layer_bytes.to_string()),
            ("layout", format!("{:?}", self.layout)),
            ("groups", groups.join(", ")),
            ("tensor_parallel", self.parallel.tensor.to_string()),
            ("pipeline_parallel", self.parallel.pipeline.to_string()),
            ("context_parallel", self.parallel.context.to_string()),
            ("adapter_digest", hex(&self.adapter_digest)),
            ("salt", salt(&self.salt)),
        ]
    }
}

/// Name, length, value: no two different records give the same bytes.
struct Record(blake3::Hasher);

impl Record {
    fn bytes(&mut self, name: &[u8], value: &[u8]) {
        for part in [name, value] {
            self.0.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
    }

    fn number(&mut self, name: &[u8], value: u64) {
        self.bytes(name, &value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
