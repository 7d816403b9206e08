"""Names of blocks: vLLM's own hashes, and what these leave out.

vLLM's hash of a block covers all tokens up to its end, the cache salt, images by their digest,
embeddings, and an adapter by name and path. What lies under that path may change, so that the files
enter too. The hashes are wrapped once more by the sidecar, with the namespace and the tenant's key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from .weights import fingerprint


class Adapters:
    """The adapters of an engine, as they were when they were first asked for."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], str | None] = {}

    def key(self, request: Any) -> bytes | None:
        """What parts this request's hashes from those without its adapter; empty without one. None
        where that cannot be known: such a request is not cached."""
        lora = request.lora_request
        if lora is None:
            return b""
        name = (lora.lora_name, lora.lora_path)
        now = None if lora.load_inplace else fingerprint(lora.lora_path)
        # Which of two versions the engine computes with, it does not tell.
        if self._seen.setdefault(name, now) != now:
            self._seen[name] = now = None
        return None if now is None else hashlib.sha256(repr((name, now)).encode()).digest()


class Names:
    """A request's blocks by name, as long as it gets tokens."""

    def __init__(self, request: Any, key: bytes) -> None:
        self._request = request
        self._key = key
        self._known: list[bytes] = []

    def first(self, blocks: int) -> list[bytes]:
        """Those of the first blocks, as far as their tokens are known."""
        hashes: Sequence[bytes] = self._request.block_hashes
        if not self._key:
            return [bytes(it) for it in hashes[:blocks]]
        for engine_hash in hashes[len(self._known) : blocks]:
            self._known.append(hashlib.sha256(self._key + engine_hash).digest())
        return self._known[:blocks]

    def __len__(self) -> int:
        return len(self._request.block_hashes)
