"""What is kept of a worker's pools: of each, a namespace, and pages that are named by SGLang's
hashes."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from sglang.srt.mem_cache.hicache_storage import (
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

from refrain_kv import Client, KvCache

from ..named import NamedBlocks
from .identity import Deployment

log = logging.getLogger("refrain_kv")

DEADLINE = 2.0
SESSION_ARENA = 256 << 20


@dataclass(frozen=True)
class Ranks:
    """How a page is cut, and which cut is this worker's."""

    tensor: int
    tensor_rank: int
    pipeline: int
    pipeline_rank: int
    context: int
    context_rank: int
    #: All tensor-parallel ranks have the same bytes, as of a latent.
    replicated: bool

    def of(self, pool: str) -> tuple[tuple[int, int, int], int]:
        """Tensor-, pipeline- and context-parallel, and the shard."""
        # States of Mamba layers are cut by rank even where the KV is not.
        is_whole = self.replicated and pool != PoolName.MAMBA
        tensor, rank = (1, 0) if is_whole else (self.tensor, self.tensor_rank)
        shard = (self.pipeline_rank * tensor + rank) * self.context + self.context_rank
        return (tensor, self.pipeline, self.context), shard


class Pages(Protocol):
    """Pages of a pool that is read and written itself."""

    #: What the bytes of a page are, in order.
    form: object
    page_bytes: int
    cache: KvCache

    def numbers(self, indices: torch.Tensor) -> list[int]: ...

    def close(self) -> None: ...


class KeptPools:
    """`extra` is SGLang's extra config: `address`, `deadline` in seconds, `session_arena_bytes`,
    and the fields of the namespace that SGLang does not know."""

    def __init__(self, model_name: str | None, ranks: Ranks, extra: Mapping[str, Any]) -> None:
        self._deployment = Deployment.of(model_name, extra)
        self._ranks = ranks
        self._deadline = float(extra.get("deadline", DEADLINE))
        self._client = Client(
            extra.get("address"),
            session_arena_bytes=int(extra.get("session_arena_bytes", SESSION_ARENA)),
            deadline=self._deadline,
        )
        self._pools: dict[str, tuple[Pages, NamedBlocks]] = {}

    def __contains__(self, name: str) -> bool:
        return str(name) in self._pools

    def add(self, name: str, pool: Any, pages: Pages, block_tokens: int) -> None:
        """A pool that is read and written itself."""
        blocks = self.blocks(name, pool, pages.page_bytes, pages.form, pages.cache, block_tokens)
        self._pools[str(name)] = (pages, blocks)

    def blocks(
        self,
        name: str,
        pool: Any,
        page_bytes: int,
        form: object,
        cache: KvCache,
        block_tokens: int,
    ) -> NamedBlocks:
        """Pages of a pool in any cache. `form` tells what their bytes are in order."""
        parallel, shard = self._ranks.of(name)
        namespace = self._deployment.namespace(
            pool_name=str(name),
            pool=pool,
            page_bytes=page_bytes,
            form=form,
            block_tokens=block_tokens,
            is_latent=self._ranks.replicated,
            parallel=parallel,
        )
        return NamedBlocks(self._client, namespace, shard, cache, self._deadline)

    def find(self, name: str, keys: Sequence[str], end: float = math.inf) -> list[bool]:
        if name not in self:
            return [False] * len(keys)
        return self._pools[str(name)][1].find(names(keys), end)

    def restorable(
        self,
        keys: Sequence[str],
        kv_pages: int,
        transfers: Iterable[PoolTransfer],
        end: float = math.inf,
    ) -> PoolTransferResult:
        """Of a prompt whose first `kv_pages` pages are kept, the lengths that all pools have."""
        hits = {PoolName.KV: kv_pages} if kv_pages else {}
        lengths = list(range(1, kv_pages + 1))
        for transfer in transfers:
            if transfer.hit_policy == PoolHitPolicy.BLOCK_GROUPS:
                # A second form of pages that are found by themselves: none of it is kept here.
                continue
            of_pool = _lengths(self.find(transfer.name, keys[:kv_pages], end), transfer)
            lengths = [length for length in lengths if length in of_pool]
            if of_pool:
                hits[transfer.name] = max(of_pool)
        return PoolTransferResult(lengths[-1] if lengths else 0, hits, lengths)

    def get(self, name: str, keys: Sequence[str], indices: torch.Tensor | None) -> list[bool]:
        """Pages into the pool's slots `indices`, a page's worth for each key."""
        known = self._known(name, keys, indices)
        if known is None:
            return [False] * len(keys)
        blocks, numbers = known
        loaded = blocks.load(names(keys), numbers)
        return [index < loaded for index in range(len(keys))]

    def set(self, name: str, keys: Sequence[str], indices: torch.Tensor | None) -> list[bool]:
        known = self._known(name, keys, indices)
        if known is None:
            return [False] * len(keys)
        blocks, numbers = known
        return blocks.save(names(keys), numbers)

    def close(self) -> None:
        """Ends all calls under way: then no page is read or written any more."""
        self._client.close()
        for pages, _ in self._pools.values():
            pages.close()

    def _known(
        self, name: str, keys: Sequence[str], indices: torch.Tensor | None
    ) -> tuple[NamedBlocks, list[int]] | None:
        if name not in self or indices is None:
            return None
        pages, blocks = self._pools[str(name)]
        numbers = pages.numbers(indices)
        if len(numbers) != len(keys):
            log.error("%s: %d keys for %d pages", name, len(keys), len(numbers))
            return None
        return blocks, numbers


def names(keys: Iterable[str]) -> list[bytes]:
    """32 bytes each: SGLang's SHA-256 of a page, or one of whatever else a key is."""
    return [
        bytes.fromhex(key)
        if re.fullmatch("[0-9a-f]{64}", key)
        else hashlib.sha256(key.encode()).digest()
        for key in keys
    ]


def _lengths(found: list[bool], transfer: PoolTransfer) -> set[int]:
    """Of which lengths in pages a prefix may be, by what one pool has of it."""
    if transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
        window = max(1, len(transfer.keys or ()))
        ends = range(1, len(found) + 1)
        return {end for end in ends if all(found[max(0, end - window) : end])}
    run = found.index(False) if False in found else len(found)
    return set(range(1, run + 1))
