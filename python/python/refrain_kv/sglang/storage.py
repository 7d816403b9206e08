"""`RefrainStorage`: SGLang's host pool and disk in between, a `HiCacheStorage`.

Pages are named by SGLang's page hashes, which name whole prefixes, with cache salt and adapter;
each pool (KV, states of Mamba layers, indexers) has a namespace of its own. `batch_get_v1` and
`batch_set_v1` have the client read and write the pool itself; the older calls go through a buffer.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import (
    STORAGE_BATCH_SIZE,
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

from refrain_kv import KvCache

from ..named import NamedBlocks
from . import version
from .kept import KeptPools, Ranks, names
from .pages import PoolPages, Staging

version.check()
log = logging.getLogger("refrain_kv")


class RefrainStorage(HiCacheStorage):
    """Made by SGLang, as backend `dynamic`; for its extra config see `KeptPools`."""

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: dict[str, Any]) -> None:
        self._config = storage_config
        extra = storage_config.extra_config or {}
        ranks = Ranks(
            tensor=storage_config.tp_size,
            tensor_rank=storage_config.tp_rank,
            pipeline=storage_config.pp_size,
            pipeline_rank=storage_config.pp_rank,
            context=storage_config.attn_cp_size,
            context_rank=storage_config.attn_cp_rank,
            replicated=storage_config.is_mla_model,
        )
        self._kept = KeptPools(storage_config.model_name, ranks, extra)
        self._zero_copy = bool(extra.get("interface_v1", 0))
        self._flat: Flat | None = None

    # --- what SGLang tells of its pools ---

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        super().register_mem_pool_host(mem_pool_host)
        if self._zero_copy:
            self._add(PoolName.KV, mem_pool_host)
            return
        page_bytes = _bytes(mem_pool_host.get_dummy_flat_data_page()).numel()
        staging = Staging(2 * STORAGE_BATCH_SIZE, page_bytes)
        self._flat = Flat(staging, self._blocks(mem_pool_host, page_bytes, staging.cache))

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: str) -> None:
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        # The one that was registered as the first; and without memory, it is a name alone.
        has_memory = getattr(host_pool, "kv_buffer", None) is not None
        if host_pool_name not in self._kept and has_memory:
            self._add(host_pool_name, host_pool)

    def _add(self, name: str, pool: Any) -> None:
        self._kept.add(name, pool, PoolPages(pool), self._block_tokens())

    def _blocks(self, pool: Any, page_bytes: int, cache: KvCache) -> NamedBlocks:
        return self._kept.blocks(PoolName.KV, pool, page_bytes, "flat", cache, self._block_tokens())

    def _block_tokens(self) -> int:
        return int(self._config.logical_page_size or self.mem_pool_host.page_size)

    # --- pages of the pool itself ---

    def batch_exists(
        self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> int:
        if self._zero_copy:
            found = self._kept.find(PoolName.KV, keys)
        else:
            found = self._flatly().blocks.find(names(keys))
        return found.index(False) if False in found else len(found)

    def batch_get_v1(
        self,
        keys: list[str],
        host_indices: torch.Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        return self._kept.get(PoolName.KV, keys, host_indices)

    def batch_set_v1(
        self,
        keys: list[str],
        host_indices: torch.Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        return self._kept.set(PoolName.KV, keys, host_indices)

    # --- pages of several pools ---

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        return self._kept.restorable(keys, self.batch_exists(keys), pool_transfers or [])

    def batch_get_v2(
        self,
        transfers: list[PoolTransfer],
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> dict[str, list[bool]]:
        return {
            it.name: self._kept.get(it.name, it.keys or [], it.host_indices) for it in transfers
        }

    def batch_set_v2(
        self,
        transfers: list[PoolTransfer],
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> dict[str, list[bool]]:
        return {
            it.name: self._kept.set(it.name, it.keys or [], it.host_indices) for it in transfers
        }

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
            got += self._flatly().get(names(keys[index] for index in some), targets)
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
                names(keys[index] for index in some), [values[index] for index in some]
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
        self._kept.close()
        if self._flat is not None:
            self._flat.close()

    def _flatly(self) -> Flat:
        if self._flat is None:
            raise RuntimeError("no host pool is registered, or the extra config has interface_v1")
        return self._flat


class Flat:
    """Pages as the older calls have them: flat tensors, one after the other through a buffer. Half
    of its rows are for loads and half for saves, so that neither waits for the other."""

    def __init__(self, staging: Staging, blocks: NamedBlocks) -> None:
        self._staging = staging
        self.blocks = blocks
        self._loads, self._saves = threading.Lock(), threading.Lock()

    def get(self, names: list[bytes], targets: list[Any]) -> list[torch.Tensor | None]:
        with self._loads:
            loaded = self.blocks.load(names, list(range(len(names))))
            got: list[torch.Tensor | None] = [None] * len(names)
            for index in range(loaded):
                row = self._staging.rows[index]
                target = targets[index] if targets else None
                if target is None:
                    got[index] = row.clone()
                elif target.is_contiguous() and _bytes(target).numel() == row.numel():
                    # The bytes of any other tensor would be a copy's.
                    _bytes(target).copy_(row)
                    got[index] = target
            return got

    def set(self, names: list[bytes], values: list[Any]) -> bool:
        rows = range(STORAGE_BATCH_SIZE, STORAGE_BATCH_SIZE + len(names))
        with self._saves:
            for row, value in zip(rows, values):
                if _bytes(value).numel() != self._staging.page_bytes:
                    log.error(
                        "a page of %d bytes, not %d",
                        _bytes(value).numel(),
                        self._staging.page_bytes,
                    )
                    return False
                self._staging.rows[row].copy_(_bytes(value))
            return all(self.blocks.save(names, list(rows)))

    def close(self) -> None:
        self._staging.close()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def _batches(indices: range) -> list[range]:
    return [
        indices[start : start + STORAGE_BATCH_SIZE]
        for start in range(0, len(indices), STORAGE_BATCH_SIZE)
    ]
