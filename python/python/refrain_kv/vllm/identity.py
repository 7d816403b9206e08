"""The namespace of an engine: everything that its KV depends on, but for the tokens."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .. import AttentionGroup, Namespace
from .kinds import Kind
from .layout import Shape
from .settings import Settings
from .weights import UnknownField, weights_of


@dataclass(frozen=True)
class Identity:
    """As it is sent to workers."""

    tenant: str
    model: str
    weights: str
    config_digest: bytes
    kv_dtype: str
    block_tokens: int
    layers: int
    layer_bytes: int
    latent: bool
    tensor_parallel: int
    #: How many tokens back its layers look at most.
    window: int | None = None
    #: Other after each reset, so that nothing from before it counts.
    salt: bytes = b""

    def namespace(self) -> Namespace:
        group = (
            AttentionGroup.full(self.layers)
            if self.window is None
            else AttentionGroup.sliding_window(self.layers, self.window)
        )
        return Namespace(
            tenant=self.tenant,
            model=self.model,
            weights=self.weights,
            config_digest=self.config_digest,
            kv_dtype=self.kv_dtype,
            block_tokens=self.block_tokens,
            layers=self.layers,
            layer_bytes=self.layer_bytes,
            layout="latent" if self.latent else "key_value",
            groups=[group],
            tensor_parallel=self.tensor_parallel,
            pipeline_parallel=1,
            context_parallel=1,
            # Adapters and salts are in the names of blocks.
            adapter_digest=b"",
            salt=self.salt,
        )

    def after_reset(self) -> Identity:
        return dataclasses.replace(self, salt=os.urandom(16))


class Engine:
    """What the configuration says. Made at start, so that what cannot be known is refused then."""

    def __init__(self, vllm_config: Any, settings: Settings, version: str) -> None:
        model, cache = vllm_config.model_config, vllm_config.cache_config
        algorithm = cache.prefix_caching_hash_algo
        if not algorithm.startswith("sha256"):
            raise UnknownField(
                "block hashes",
                f"prefix_caching_hash_algo is {algorithm}, which is per process and not collision "
                "resistant: use sha256 or sha256_cbor",
            )
        weights, load = settings.weights, vllm_config.load_config
        self._tenant = settings.tenant
        # The name that it is served under says nothing: the digests do.
        self._model = "/".join(_known("architectures", lambda: model.architectures))
        self._weights = weights or _known("weights", lambda: weights_of(model, load))
        self._config = {
            "vllm": version,
            "hash": (algorithm, os.environ.get("PYTHONHASHSEED")),
            **_known("config_digest", lambda: _effective(vllm_config)),
        }
        draft = getattr(vllm_config.speculative_config, "draft_model_config", None)
        if draft is not None:
            # Its layers may be among those that are cached.
            self._config["draft"] = (
                _plain(draft.hf_config.to_dict()),
                _known("weights", lambda: "" if weights else weights_of(draft, load)),
            )
        self._tensor_parallel = vllm_config.parallel_config.tensor_parallel_size

    def identity(self, kind: Kind, shape: Shape) -> Identity:
        """Of layers of one kind, with what its workers have found."""
        config = json.dumps([self._config, shape.digest.hex()], sort_keys=True)
        return Identity(
            tenant=self._tenant,
            model=self._model,
            weights=self._weights,
            config_digest=hashlib.sha256(config.encode()).digest(),
            kv_dtype=shape.kv_dtype,
            block_tokens=kind.block_tokens,
            layers=shape.layers,
            layer_bytes=shape.layer_bytes,
            latent=kind.latent,
            tensor_parallel=self._tensor_parallel,
            window=kind.window,
        )


def _effective(vllm_config: Any) -> dict[str, Any]:
    """What of the configuration changes the KV of given weights and tokens."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    hf = _plain(model.hf_config.to_dict())
    # Where the model came from, and who wrote its file, is none of it.
    hf = {
        key: value for key, value in hf.items() if key[0] != "_" and key != "transformers_version"
    }
    return {
        "hf": hf,
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        # Some ways to stretch RoPE ask for it.
        "max_model_len": model.max_model_len if _stretched(hf) else None,
        "sliding_window_off": model.disable_sliding_window,
        "code": str(model.code_revision),
        "implementation": str(model.model_impl),
        "mm_processor": _plain(getattr(model.multimodal_config, "mm_processor_kwargs", None)),
        "kv_dtype": str(cache.cache_dtype),
        "kv_scales": getattr(cache, "calculate_kv_scales", None),
        "custom_ops": sorted(vllm_config.compilation_config.custom_ops),
    }


def _stretched(hf: Any) -> bool:
    if isinstance(hf, Mapping):
        kind = hf.get("rope_type", hf.get("type"))
        return kind in ("dynamic", "longrope") or any(map(_stretched, hf.values()))
    return False


def _plain(value: Any) -> Any:
    """As JSON has it, so that the same value always reads the same."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(it) for key, it in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(it) for it in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, torch.dtype):
        return str(value)
    raise TypeError(f"{type(value).__name__} in the model's config")


def _known(field: str, find: Callable[[], Any]) -> Any:
    try:
        return find()
    except UnknownField:
        raise
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise UnknownField(field, str(error)) from error
