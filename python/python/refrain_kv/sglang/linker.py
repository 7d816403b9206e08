"""`RefrainLinker`: SGLang's device pools and disk in between, a `UnifiedCacheLinker`.

SGLang aborts a request whose found prefix does not come. So a prefix is found only once its bytes
are here: a lookup brings them into memory of this process's own, and from then on nothing that
becomes of a sidecar takes them away. What a load does is a copy to the device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.unified_cache_linker import (
    LayerWiseLoadCounter,
    UnifiedCacheLinker,
)
from sglang.srt.runtime_context import get_parallel, get_serving

from . import version
from .copies import Copies, Copy
from .device_pools import DevicePages, pool_group
from .kept import SESSION_ARENA, KeptPools, Ranks
from .landed import LandingPool, Landings
from .landing import Landing
from .offloads import Offloads

version.check()
log = logging.getLogger("refrain_kv")

#: Seconds of a lookup, for which the scheduler waits.
DEADLINE = 1.0
LANDING = 1 << 30
#: As many session arenas of pages may wait to be saved.
WAITING = 4


class RefrainLinker(UnifiedCacheLinker):
    """Made by SGLang, as backend `dynamic`; for its extra config see `KeptPools`. Its own are
    `landing_bytes`, of which each component's pools have an equal part, and another `deadline`."""

    def __init__(
        self,
        server_args: Any,
        params: Any,
        *,
        components: set[ComponentType],
        extra_config: Mapping[str, Any] | None = None,
        forward_stream: Any = None,
    ) -> None:
        extra = {"deadline": DEADLINE, **(extra_config or {})}
        self.forward_stream = forward_stream
        self._group = pool_group(params, components)
        self.pools = self._group.entry_map
        ranks = _ranks(params, is_replicated=self._group.rank_replicated)
        # One writes what all have.
        self._writes = not ranks.replicated or ranks.tensor_rank == 0
        self._kept = KeptPools(get_serving().served_model_name, ranks, extra)
        draft = [
            str(getattr(server_args, f"speculative_draft_model_{name}", None))
            for name in ("path", "revision")
        ]
        self._pages = {str(name): DevicePages(it, draft) for name, it in self.pools.items()}
        landings = self._landings(int(extra.get("landing_bytes", LANDING)))
        landing_pools = {}
        for name, pages in self._pages.items():
            self._kept.add(name, pages, pages, params.page_size)
            landing = landings[name]
            blocks = self._kept.blocks(
                name, pages, pages.page_bytes, pages.form, landing.cache, params.page_size
            )
            landing_pools[name] = LandingPool(landing, blocks)
        self._landed = Landings(self._kept, landing_pools, float(extra["deadline"]))
        layers = self._group.num_layers
        self.layer_done_counter = LayerWiseLoadCounter(layers)
        if PoolName.MAMBA in self.pools:
            params.req_to_token_pool.register_layer_transfer_counter(self.layer_done_counter)
        by_name = {name: (pages, landings[name]) for name, pages in self._pages.items()}
        self._landing = list(landings.values())
        self._copies = Copies(by_name, layers, self.layer_done_counter)
        arena = int(extra.get("session_arena_bytes", SESSION_ARENA))
        self._offloads = Offloads(self._kept, WAITING * arena)
        #: Loads that were asked for and not begun.
        self._queued: dict[str, list[Copy]] = {}
        rows = {name: landing.rows for name, landing in landings.items()}
        log.info("pages that may have landed and not been loaded: %s", rows)

    # --- loads ---

    def lookup(self, rid: str, transfers: list[PoolTransfer]) -> list[int]:
        resolved = self._group.resolve_transfers(transfers)
        if not resolved:
            return []
        keys = next(it.keys for it in transfers if it.name == PoolName.KV)
        return self._landed.lookup(rid, list(keys or ()), resolved)

    def load(self, rid: str, transfers: list[PoolTransfer]) -> bool:
        resolved = self._group.resolve_transfers(
            transfers, allow_partial=True, allow_missing_kv=True
        )
        if not resolved or rid in self._queued:
            return False
        taken = self._landed.take(rid, resolved)
        if taken is None:
            return False
        self._queued[rid] = [Copy(it.name, taken[it.name], it.host_indices) for it in resolved]
        return True

    def start_layer_wise_loading(self) -> int:
        if not self._queued:
            return -1
        copies = [copy for of_one in self._queued.values() for copy in of_one]
        self._queued.clear()
        # A pass that was begun before may still have slots that are free by now, and the load's: it
        # writes those of requests that have ended since, and reads those that windows have left.
        return self._copies.begin(copies, self.record_offload_ready())

    def finish_layer_wise_loading(self, counter_index: int) -> bool:
        return self.layer_done_counter.finish(counter_index)

    def cancel_queued_load(self, rid: str) -> bool:
        copies = self._queued.pop(rid, None)
        for copy in copies or ():
            self._landed.give(copy.name, copy.rows)
        return copies is not None

    # --- offloads ---

    def offload(self, transfers: list[PoolTransfer], session_id: str | None = None) -> bool:
        resolved = self._group.resolve_transfers(transfers, allow_partial=True)
        if not resolved:
            return False
        # All ranks answer alike, and have as many answers to give: what is dropped is one, too.
        size = sum(len(it.keys or ()) * self._pages[it.name].page_bytes for it in resolved)
        if self._writes:
            self._offloads.begin(resolved, size, self.record_offload_ready())
        else:
            self._offloads.results.append(True)
        return True

    def num_completed_offloads(self) -> int:
        return len(self._offloads.results)

    def pop_completed_offload(self) -> bool:
        return self._offloads.results.popleft()

    # --- its life ---

    def reset(self) -> None:
        for rid in list(self._queued):
            self.cancel_queued_load(rid)
        self._copies.wait()
        self._offloads.clear()
        self._landed.clear()
        self.layer_done_counter.reset()

    def close(self) -> None:
        """Afterwards no slot is read or written any more."""
        self.reset()
        self._copies.close()
        self._offloads.close()
        self._kept.close()
        for landing in self._landing:
            landing.close()

    def _landings(self, total: int) -> dict[str, Landing]:
        """Pools that lie behind the same indices land together, as many pages of each."""
        sources = {str(name): str(source) for name, source in self._group.sources.items()}
        share = total // len(set(sources.values()))
        made = {}
        for name, pages in self._pages.items():
            beside = [it for it, source in sources.items() if source == sources[name]]
            rows = share // sum(self._pages[it].page_bytes for it in beside)
            # No more than there are on the device: nothing of more is ever asked for at once.
            rows = min(rows, pages.pages)
            is_cuda = pages.device.type == "cuda"
            made[name] = Landing(name, pages.sizes, rows, pinned=is_cuda)
        return made


def _ranks(params: Any, *, is_replicated: bool) -> Ranks:
    tensor, rank = get_parallel().tp_size, 0
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        group = params.attn_tp_cache_group or params.tp_cache_group
        tensor = torch.distributed.get_world_size(group=group)
        rank = torch.distributed.get_rank(group=group)
    return Ranks(
        tensor=tensor,
        tensor_rank=rank,
        pipeline=params.pp_size,
        pipeline_rank=params.pp_rank,
        context=params.attn_cp_size,
        context_rank=params.attn_cp_rank,
        replicated=is_replicated,
    )
