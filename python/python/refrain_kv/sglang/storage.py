"""`RefrainStorage`: SGLang's host pool and disk in between, a `HiCacheStorage`.

Pages are named by SGLang's page hashes, which name whole prefixes, with cache salt and adapter;
each pool (KV, states of Mamba layers, indexers) has a namespace of its own. `batch_get_v1` and
`batch_set_v1` have the client read and write the pool itself; the older calls go through a buffer.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import (
    STORAGE_BATCH_SIZE,
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

from refrain_kv import Client

from ..named import NamedBlocks
from . import version
from .identity import Deployment
from .pages import HostPages, Staging

version.check()
log = logging.getLogger("refrain_kv")

#: Keys of the extra config that are ours; `backend_name` and the like are SGLang's.
DEADLINE = 2.0
SESSION_ARENA = 256 << 20


class RefrainStorage(HiCacheStorage):
    """Made by SGLang, as backend `dynamic`. Extra config: `address`, `deadline` in seconds,
    `session_arena_bytes`, and the fields of the namespace that SGLang does not know."""

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: dict[str, Any]) -> None:
        self._config = storage_config
        extra = storage_config.extra_config or {}
        self._deployment = Deployment.of(storage_config.model_name, extra)
        self._deadline = float(extra.get("deadline", DEADLINE))
        self._zero_copy = bool(extra.get("interface_v1", 0))
        self._client = Client(
            extra.get("address"),
            session_arena_bytes=int(extra.get("session_arena_bytes", SESSION_ARENA)),
            deadline=self._deadline,
        )
        self._pools: dict[str, tuple[HostPages, NamedBlocks]] = {}
        self._flat: Flat | None = None

    # --- what SGLang tells of its pools ---

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        super().register_mem_pool_host(mem_pool_host)
        if self._zero_copy:
            self._add(PoolName.KV, mem_pool_host)
        else:
            page_bytes = _bytes(mem_pool_host.get_dummy_flat_data_page()).numel()
            self._flat = Flat(
                page_bytes,
                lambda cache: self._blocks(PoolName.KV, mem_pool_host, page_bytes, "flat", cache),
            )

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: str) -> None:
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        # The one that was registered as the first; without memory, it is a name alone.
        if (
            str(host_pool_name) not in self._pools
            and getattr(host_pool, "kv_buffer", None) is not None
        ):
            self._add(host_pool_name, host_pool)

    def _add(self, name: str, pool: Any) -> None:
        pages = HostPages(pool)
        blocks = self._blocks(name, pool, pages.page_bytes, pages.pieces, pages.cache)
        self._pools[str(name)] = (pages, blocks)

    def _blocks(
        self, name: str, pool: Any, page_bytes: int, form: object, cache: Any
    ) -> NamedBlocks:
        config = self._config
        # States of Mamba layers are cut by rank even where the KV is not.
        is_latent = config.is_mla_model and name != PoolName.MAMBA
        tensor, rank = (1, 0) if is_latent else (config.tp_size, config.tp_rank)
        parallel = (tensor, config.pp_size, config.attn_cp_size)
        shard = (config.pp_rank * tensor + rank) * config.attn_cp_size + config.attn_cp_rank
        namespace = self._deployment.namespace(
            pool_name=str(name),
            pool=pool,
            page_bytes=page_bytes,
            form=form,
            block_tokens=int(config.logical_page_size or self.mem_pool_host.page_size),
            is_latent=is_latent,
            parallel=parallel,
        )
        return NamedBlocks(self._client, namespace, shard, cache, self._deadline)

    # --- pages of the pool itself ---

    def batch_exists(
        self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> int:
        found = self._kv().find(_names(keys))
        return found.index(False) if False in found else len(found)

    def batch_get_v1(
        self,
        keys: list[str],
        host_indices: torch.Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        return self._get(PoolName.KV, keys, host_indices)

    def batch_set_v1(
        self,
        keys: list[str],
        host_indices: torch.Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        return self._set(PoolName.KV, keys, host_indices)

    # --- pages of several pools ---

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        kv_pages = self.batch_exists(keys, extra_info)
        hits = {PoolName.KV: kv_pages} if kv_pages else {}
        restorable = list(range(1, kv_pages + 1))
        for transfer in pool_transfers or []:
            if transfer.hit_policy == PoolHitPolicy.BLOCK_GROUPS:
                # A second form of pages that are found by themselves: none of it is kept here.
                continue
            found = self._find(transfer.name, keys[:kv_pages])
            lengths = _restorable(found, transfer)
            restorable = [length for length in restorable if length in lengths]
            if lengths:
                hits[transfer.name] = max(lengths)
        return PoolTransferResult(restorable[-1] if restorable else 0, hits, restorable)

    def batch_get_v2(
        self,
        transfers: list[PoolTransfer],
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> dict[str, list[bool]]:
        return {it.name: self._get(it.name, it.keys or [], it.host_indices) for it in transfers}

    def batch_set_v2(
        self,
        transfers: list[PoolTransfer],
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> dict[str, list[bool]]:
        return {it.name: self._set(it.name, it.keys or [], it.host_indices) for it in transfers}

    # --- pages in tensors of the caller's ---

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    def get(
        self, key: str, target_location: Any | None = None, target_sizes: Any | None = None
    ) -> torch.Tensor | None:
        [page] = self.batch_get([key], [target_location], target_sizes)
        return page

    def batch_get(
        self,
        keys: list[str],
        target_locations: Any | None = None,
        target_sizes: Any | None = None,
    ) -> list[torch.Tensor | None]:
        got: list[torch.Tensor | None] = []
        for some in _batches(range(len(keys))):
            targets = [target_locations[index] for index in some] if target_locations else []
            got += self._flatly().get(_names(keys[index] for index in some), targets)
        return got

    def set(
        self,
        key: str,
        value: Any | None = None,
        target_location: Any | None = None,
        target_sizes: Any | None = None,
    ) -> bool:
        return self.batch_set([key], [value])

    def batch_set(
        self,
        keys: list[str],
        values: Any | None = None,
        target_locations: Any | None = None,
        target_sizes: Any | None = None,
    ) -> bool:
        batches = _batches(range(len(keys)))
        return all(
            self._flatly().set(
                _names(keys[index] for index in some), [values[index] for index in some]
            )
            for some in batches
        )

    def clear(self) -> None:
        """Not ours to do: other engines may use what is kept. SGLang reports it as failed."""
        raise NotImplementedError(
            "what Refrain keeps is dropped by its operator: `refrain ls namespaces`, then "
            "`refrain drop`"
        )

    def close(self) -> None:
        """Ends all calls under way: then no page is read or written any more."""
        self._client.close()
        for pages, _ in self._pools.values():
            pages.close()
        if self._flat is not None:
            self._flat.close()

    def _kv(self) -> NamedBlocks:
        if self._zero_copy:
            return self._pools[PoolName.KV.value][1]
        return self._flatly().blocks

    def _flatly(self) -> Flat:
        if self._flat is None:
            raise RuntimeError("no host pool is registered, or the extra config has interface_v1")
        return self._flat

    def _find(self, name: str, keys: Sequence[str]) -> list[bool]:
        if str(name) not in self._pools:
            return [False] * len(keys)
        return self._pools[str(name)][1].find(_names(keys))

    def _get(self, name: str, keys: Sequence[str], host_indices: torch.Tensor | None) -> list[bool]:
        known = self._known(name, keys, host_indices)
        if known is None:
            return [False] * len(keys)
        blocks, numbers = known
        loaded = blocks.load(_names(keys), numbers)
        return [index < loaded for index in range(len(keys))]

    def _set(self, name: str, keys: Sequence[str], host_indices: torch.Tensor | None) -> list[bool]:
        known = self._known(name, keys, host_indices)
        if known is None:
            return [False] * len(keys)
        blocks, numbers = known
        return blocks.save(_names(keys), numbers)

    def _known(
        self, name: str, keys: Sequence[str], host_indices: torch.Tensor | None
    ) -> tuple[NamedBlocks, list[int]] | None:
        if str(name) not in self._pools or host_indices is None:
            return None
        pages, blocks = self._pools[str(name)]
        numbers = pages.numbers(host_indices)
        if len(numbers) != len(keys):
            log.error("%s: %d keys for %d pages", name, len(keys), len(numbers))
            return None
        return blocks, numbers


class Flat:
    """Pages as the older calls have them: flat tensors, one after the other through a buffer."""

    def __init__(self, page_bytes: int, make: Any) -> None:
        self._page_bytes = page_bytes
        self._staging = Staging(STORAGE_BATCH_SIZE, page_bytes)
        # Loads and saves come from threads of their own.
        self._lock = threading.Lock()
        self.blocks: NamedBlocks = make(self._staging.cache)

    def get(self, names: list[bytes], targets: list[Any]) -> list[torch.Tensor | None]:
        with self._lock:
            loaded = self.blocks.load(names, list(range(len(names))))
            got: list[torch.Tensor | None] = [None] * len(names)
            for index in range(loaded):
                row = self._staging.rows[index]
                target = targets[index] if targets else None
                if target is None:
                    got[index] = row.clone()
                elif _bytes(target).numel() == self._page_bytes:
                    _bytes(target).copy_(row)
                    got[index] = target
            return got

    def set(self, names: list[bytes], values: list[Any]) -> bool:
        with self._lock:
            for row, value in zip(self._staging.rows, values):
                if _bytes(value).numel() != self._page_bytes:
                    log.error("a page of %d bytes, not %d", _bytes(value).numel(), self._page_bytes)
                    return False
                row.copy_(_bytes(value))
            return all(self.blocks.save(names, list(range(len(names)))))

    def close(self) -> None:
        self._staging.close()


def _names(keys: Any) -> list[bytes]:
    """32 bytes each: SGLang's SHA-256 of a page, or one of whatever else a key is."""
    return [
        bytes.fromhex(key)
        if re.fullmatch("[0-9a-f]{64}", key)
        else hashlib.sha256(key.encode()).digest()
        for key in keys
    ]


def _restorable(found: list[bool], transfer: PoolTransfer) -> set[int]:
    """Of which lengths in pages a prefix may be, by what one pool has of it."""
    if transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
        window = max(1, len(transfer.keys or ()))
        lengths = range(1, len(found) + 1)
        return {end for end in lengths if all(found[max(0, end - window) : end])}
    run = found.index(False) if False in found else len(found)
    return set(range(1, run + 1))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def _batches(indices: range) -> list[range]:
    return [
        indices[start : start + STORAGE_BATCH_SIZE]
        for start in range(0, len(indices), STORAGE_BATCH_SIZE)
    ]
