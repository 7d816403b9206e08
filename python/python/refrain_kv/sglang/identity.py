"""What must be equal before one engine may read what another has computed, as SGLang tells it.

SGLang's storage config has the ranks and a model's name; the rest is the server's arguments, or
what the extra config says in their place. What neither knows is refused by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refrain_kv import Namespace

from ..named import of_pages

#: Data types of bytes that tensors hold for another type, which the pool does not tell.
OPAQUE_DTYPES = {"uint8", "int8"}


class UnknownFieldError(ValueError):
    """A field of the namespace cannot be known; the message says how to give it."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(
            f'namespace field `{field}` is not known: {why}; give "{field}" in the extra config'
        )
        self.field = field


@dataclass(frozen=True)
class Deployment:
    """What all pools of a worker share."""

    tenant: str
    model: str
    weights: str
    config: str
    kv_dtype: str | None
    salt: bytes

    @classmethod
    def of(cls, model_name: str | None, extra: Mapping[str, Any]) -> Deployment:
        server = _server_args()
        model = extra.get("model") or model_name or getattr(server, "model_path", None)
        if not model:
            raise UnknownFieldError("model", "no model name was given to the storage backend")
        return cls(
            tenant=str(extra.get("tenant", "default")),
            model=str(model),
            weights=str(extra.get("weights") or _weights(server)),
            config=str(extra.get("config") or _config(server)),
            kv_dtype=extra.get("kv_dtype") or _kv_dtype(server),
            salt=str(extra.get("salt", "")).encode(),
        )

    def namespace(
        self,
        *,
        pool_name: str,
        pool: Any,
        page_bytes: int,
        form: object,
        block_tokens: int,
        is_latent: bool,
        parallel: tuple[int, int, int],
    ) -> Namespace:
        """Of one pool's pages. `form` tells what their bytes are in order."""
        digest = {
            "config": self.config,
            "pool": pool_name,
            "kind": type(pool).__name__,
            "layout": getattr(pool, "layout", None),
            "format": getattr(pool, "storage_format_tag", None),
            "layers": [getattr(pool, name, None) for name in ("start_layer", "end_layer")],
            "form": form,
        }
        return of_pages(
            tenant=self.tenant,
            model=self.model,
            weights=self.weights,
            digest=digest,
            kv_dtype=self._dtype(pool),
            block_tokens=block_tokens,
            page_bytes=page_bytes,
            layout="latent" if is_latent else "key_value",
            parallel=parallel,
            salt=self.salt,
        )

    def _dtype(self, pool: Any) -> str:
        dtype = getattr(pool, "dtype", None)
        if dtype is None:
            raise UnknownFieldError("kv_dtype", f"{type(pool).__name__} tells none")
        name = str(dtype).removeprefix("torch.")
        if name not in OPAQUE_DTYPES:
            return name
        if self.kv_dtype is None:
            raise UnknownFieldError("kv_dtype", f"the pool holds {name} for another type")
        return f"{name} for {self.kv_dtype}"


def _server_args() -> Any:
    from sglang.srt.runtime_context import get_server_args

    try:
        return get_server_args()
    except ValueError:
        # Not inside of a server.
        return None


def _weights(server: Any) -> str:
    """A commit, which weights have where they were downloaded by one."""
    for text in (getattr(server, "revision", None), getattr(server, "model_path", None)):
        found = re.search(r"(?:^|/snapshots/)([0-9a-f]{40})(?:/|$)", text or "")
        if found:
            return found[1]
    raise UnknownFieldError(
        "weights", "neither --revision nor the model's path names a commit of the weights"
    )


def _config(server: Any) -> str:
    """The model's config as it is in effect, rotary embedding and overrides included."""
    if server is None:
        raise UnknownFieldError("config", "there are no server arguments to take it from")
    from sglang.srt.configs.model_config import ModelConfig

    model = ModelConfig.from_server_args(server).hf_config.to_dict()
    # Not of the model: how it was loaded, and by what.
    for name in ("_name_or_path", "transformers_version"):
        model.pop(name, None)
    names = (
        "quantization",
        "quantization_param_path",
        "kv_cache_dtype",
        "dtype",
        "attention_backend",
    )
    rest = {name: str(getattr(server, name, None)) for name in names}
    return json.dumps({"model": model, **rest}, sort_keys=True, default=str)


def _kv_dtype(server: Any) -> str | None:
    named = getattr(server, "kv_cache_dtype", None)
    # `auto` may be another type for another model, or version.
    return None if named in (None, "auto") else str(named)
