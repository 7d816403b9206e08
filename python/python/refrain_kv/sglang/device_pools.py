"""The pools of a worker's device that a linker reads and writes, and where their pages lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import PoolName
from sglang.srt.mem_cache.hybrid_cache.linker_pool_assembler import (
    DevicePoolEntry,
    DevicePoolGroup,
    _mamba_device_pool_entry,
    resolve_hybrid_device_pool_group,
)
from sglang.srt.mem_cache.memory_pool import (
    HybridLinearKVPool,
    MHATokenToKVPool,
    MLATokenToKVPool,
)
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.runtime_context import get_parallel

from refrain_kv import KvCache, Plane

from .pages import UnevenPoolError


def pool_group(params: Any, components: set[ComponentType]) -> DevicePoolGroup:
    """As SGLang assembles the pools of its own linkers; and those that it has no assembly for, of
    models with plain attention: by itself, beside windows, or beside states of other layers."""
    kvcache, page_size = params.token_to_kv_pool_allocator.get_kvcache(), params.page_size
    entries = _entries(kvcache, params, components)
    if entries is None:
        return resolve_hybrid_device_pool_group(
            kvcache=kvcache, page_size=page_size, params=params, components=components
        )
    if params.mtp_draft_device_pools or params.sidecar_draft_device_pools:
        raise ValueError(f"a draft model's KV beside {type(kvcache).__name__} is not kept")
    if get_parallel().attn_dcp_size > 1:
        raise ValueError("pages that context-parallel decode cuts are not kept")
    layers = 1 + max(layer for entry in entries for layer in entry.layer_mapping)
    is_latent = type(kvcache) is MLATokenToKVPool
    return DevicePoolGroup(entries, layers, page_size, rank_replicated=is_latent)


def _entries(
    kvcache: Any, params: Any, components: set[ComponentType]
) -> list[DevicePoolEntry] | None:
    """`None` where SGLang knows better. Other kinds may be derived from these, and hold more."""
    kind, beside = type(kvcache), components - {ComponentType.FULL}
    if kind in (MHATokenToKVPool, MLATokenToKVPool) and not beside:
        return [_entry(PoolName.KV, kvcache, {it: it for it in range(kvcache.layer_num)}, params)]
    if kind is SWAKVPool and beside == {ComponentType.SWA}:
        full: dict[int, int] = {}
        window: dict[int, int] = {}
        for layer, (own, is_window) in kvcache.layers_mapping.items():
            (window if is_window else full)[layer - kvcache.start_layer] = own
        return [
            _entry(PoolName.KV, kvcache.full_kv_pool, full, params),
            _entry(PoolName.SWA, kvcache.swa_kv_pool, window, params),
        ]
    if kind is HybridLinearKVPool and beside == {ComponentType.MAMBA}:
        pool, start = kvcache.full_kv_pool, kvcache.start_layer
        if type(pool) is MHATokenToKVPool:
            layers = {
                layer - start: own for layer, own in kvcache.full_attention_layer_id_mapping.items()
            }
            states = _mamba_device_pool_entry(params.req_to_token_pool, start)
            return [_entry(PoolName.KV, pool, layers, params), states]
    return None


def _entry(name: PoolName, pool: Any, layers: dict[int, int], params: Any) -> DevicePoolEntry:
    """`layers` has the pool's own number of each of the model's layers that it is of."""
    mapping: dict[int, Any] = dict(layers)
    if type(pool) is MLATokenToKVPool:
        buffers = pool.kv_buffer
    elif type(pool) is MHATokenToKVPool and pool.kv_cache_layout == "nhd":
        for scales in ("k_scale_buffer", "native_k_scale_buffer"):
            if getattr(pool, scales, None) is not None:
                raise ValueError(f"pages of {name} with scales beside them are not kept")
        count = len(pool.k_buffer)
        buffers = [*pool.k_buffer, *pool.v_buffer]
        mapping = {layer: (own, count + own) for layer, own in layers.items()}
    else:
        layout = getattr(pool, "kv_cache_layout", None)
        raise ValueError(f"{type(pool).__name__} of layout {layout!r} is not kept")
    return DevicePoolEntry(
        name=name,
        indices_from_pool=name,
        device_pool=pool,
        components=[buffers],
        layer_mapping=mapping,
        page_size=params.page_size,
        rows_are_pages=False,
    )


class DevicePages:
    """The pages of one pool, each as many pieces as there are buffers: of every layer its keys,
    then of every layer its values, say."""

    #: As the namespace has it: host pools of the same bytes have others.
    layout = "device"

    def __init__(self, entry: DevicePoolEntry, draft: Sequence[str] = ()) -> None:
        self._entry = entry
        pool, buffers = entry.device_pool, entry.kv_buffer
        sizes = [size for component in entry.buffer_meta for _, _, size in component]
        rows = min(buffer.shape[0] for buffer in buffers)
        self._span = sizes[0] // (buffers[0].nbytes // buffers[0].shape[0])
        self.pages = rows // self._span
        try:
            #: Of each piece, as words, a page a row.
            self.pieces = [self._rows(buffer) for buffer in buffers]
        except RuntimeError as error:
            raise UnevenPoolError(f"pages of {entry.name} have gaps: {error}") from error
        self.sizes = sizes
        self.page_bytes = sum(sizes)
        self.device = buffers[0].device
        dtype = getattr(pool, "dtype", None)
        self.dtype = dtype if isinstance(dtype, torch.dtype) else buffers[0].dtype
        self.start_layer = getattr(pool, "start_layer", None)
        self.end_layer = getattr(pool, "end_layer", None)
        shapes = [(str(buffer.dtype), list(buffer.shape[1:])) for buffer in buffers]
        # A draft model's layers may stand behind the model's own.
        self.form = [type(pool).__name__, entry.page_size, shapes, *draft]
        planes = [Plane(rows.data_ptr(), size, size) for rows, size in zip(self.pieces, sizes)]
        self.cache = KvCache([planes], pages=self.pages, device=self.device.index)

    def _rows(self, buffer: torch.Tensor) -> torch.Tensor:
        rows = buffer.view(torch.uint8).view(buffer.shape[0], -1)
        return words(rows[: self.pages * self._span].view(self.pages, -1))

    def numbers(self, indices: torch.Tensor) -> list[int]:
        """Page numbers of slots, given a page's worth each."""
        return [row // self._span for row in self._entry.prepare_locations(indices)]

    def pieces_of(self, layer: int) -> list[int]:
        """Those that a layer reads."""
        mapped = self._entry.layer_mapping.get(layer)
        if mapped is None:
            return []
        numbers = [mapped] if isinstance(mapped, int) else list(mapped)
        found, first = [], 0
        for component in self._entry.components:
            found += [first + number for number in numbers]
            first += len(component)
        return found

    def close(self) -> None:
        self.cache.close()


def words(rows: torch.Tensor) -> torch.Tensor:
    """Rows of bytes as rows of larger numbers where they divide: fewer to copy."""
    return rows if rows.shape[1] % 8 else rows.view(torch.int64)
