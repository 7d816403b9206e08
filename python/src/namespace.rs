//! All that must be equal before the KV of equal tokens is.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use refrain_client::v1;
use refrain_client::v1::attention_group::Kind;

/// Layers that cache alike.
#[pyclass(frozen, module = "refrain_kv", from_py_object)]
#[derive(Clone, Debug)]
pub(crate) struct AttentionGroup(v1::AttentionGroup);

#[pymethods]
impl AttentionGroup {
    #[staticmethod]
    fn full(layers: u32) -> Self {
        Self::of(Kind::Full, layers, 0)
    }

    #[staticmethod]
    fn sliding_window(layers: u32, window_tokens: u32) -> Self {
        Self::of(Kind::SlidingWindow, layers, window_tokens)
    }

    #[staticmethod]
    fn recurrent(layers: u32) -> Self {
        Self::of(Kind::Recurrent, layers, 0)
    }
}

impl AttentionGroup {
    fn of(kind: Kind, layers: u32, window_tokens: u32) -> Self {
        Self(v1::AttentionGroup { kind: kind.into(), layers, window_tokens })
    }
}

/// The record that names what may be compared.
#[pyclass(frozen, module = "refrain_kv", from_py_object)]
#[derive(Clone, Debug)]
pub(crate) struct Namespace(pub(crate) v1::Namespace);

#[pymethods]
impl Namespace {
    #[new]
    #[pyo3(signature = (*, tenant, model, weights, config_digest, kv_dtype, block_tokens, layers,
        layer_bytes, layout, groups, tensor_parallel, pipeline_parallel, context_parallel,
        adapter_digest, salt))]
    #[expect(clippy::too_many_arguments, reason = "a record: Python names each of them")]
    fn new(
        tenant: String,
        model: String,
        weights: String,
        config_digest: Vec<u8>,
        kv_dtype: String,
        block_tokens: u32,
        layers: u32,
        layer_bytes: u64,
        layout: &str,
        groups: Vec<AttentionGroup>,
        tensor_parallel: u32,
        pipeline_parallel: u32,
        context_parallel: u32,
        adapter_digest: Vec<u8>,
        salt: Vec<u8>,
    ) -> PyResult<Self> {
        let layout = match layout {
            "key_value" => v1::KvLayout::KeyValue,
            "latent" => v1::KvLayout::Latent,
            other => {
                let message = format!("layout {other:?} is neither \"key_value\" nor \"latent\"");
                return Err(PyValueError::new_err(message));
            }
        };
        let layout = layout.into();
        let groups = groups.into_iter().map(|group| group.0).collect();
        Ok(Self(v1::Namespace {
            tenant,
            model,
            weights,
            config_digest,
            kv_dtype,
            block_tokens,
            layers,
            layer_bytes,
            layout,
            groups,
            tensor_parallel,
            pipeline_parallel,
            context_parallel,
            adapter_digest,
            salt,
        }))
    }

    #[getter]
    fn block_tokens(&self) -> u32 {
        self.0.block_tokens
    }

    /// Of one shard.
    #[getter]
    fn block_bytes(&self) -> u64 {
        self.0.layer_bytes.saturating_mul(self.0.layers.into())
    }
}
