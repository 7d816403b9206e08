"""A worker of SGLang's: its own radix tree over its own pools, in the memory of the host or, with
REFRAIN_TEST_GPU=0, of a GPU, linked by its own factory and driven as its scheduler does. What a
forward pass would compute is filled in: bytes of each prompt's own."""

from __future__ import annotations

import itertools
import os
import time
from array import array
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import PATIENCE
from pools import LAYERS, PAGE
from sglang.srt.configs.mamba_utils import KimiLinearCacheParams, KimiLinearStateShape
from sglang.srt.managers.schedule_batch import ReqKvInfo
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import (
    InitLoadBackParams,
    InsertParams,
    MatchPrefixParams,
    MatchResult,
)
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import (
    DSATokenToKVPool,
    HybridLinearKVPool,
    HybridReqToTokenPool,
    MHATokenToKVPool,
    MLATokenToKVPool,
    ReqToTokenPool,
)
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.linker_factory import (
    create_unified_cache_linker,
    get_startup_linker_config,
)
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.runtime_context import get_memory, get_parallel

#: GPUs for as many ranks, in whose memory the pools lie; without any, in the host's.
GPUS = [it for it in os.environ.get("REFRAIN_TEST_GPU", "").split(",") if it]
DEVICE = f"cuda:{GPUS[0]}" if GPUS else "cpu"
#: Cycles of a GPU, some tens of milliseconds: in which everything else would be done.
BUSY = 100_000_000

PAGES = 48
TOKENS = PAGES * PAGE
#: Of pools with an index.
INDEXED_PAGE = 4 * PAGE
#: Tokens of a window, of two pages.
WINDOW = 2 * PAGE
ONE_RANK = {
    "tp_rank": 0,
    "tp_size": 1,
    "attn_tp_rank": 0,
    "attn_tp_size": 1,
    "attn_dp_size": 1,
    "attn_dcp_size": 1,
}

DTYPE = torch.bfloat16
SHAPE = {"page_size": PAGE, "dtype": DTYPE, "device": DEVICE, "enable_memory_saver": False}


@dataclass
class Memory:
    """What a worker keeps its KV in."""

    pool: Any
    allocator: Any
    components: list[ComponentType] = field(default_factory=lambda: [ComponentType.FULL])
    requests: Any = field(default_factory=lambda: ReqToTokenPool(8, TOKENS, DEVICE, False))
    page: int = PAGE


def mha() -> Memory:
    return paged(MHATokenToKVPool(size=TOKENS, layer_num=LAYERS, head_num=2, head_dim=32, **SHAPE))


def mla() -> Memory:
    """One latent for all ranks."""
    shape = {"kv_lora_rank": 64, "qk_rope_head_dim": 16, **SHAPE}
    return paged(MLATokenToKVPool(size=TOKENS, layer_num=LAYERS, **shape))


def swa() -> Memory:
    """Of three layers, the first and the last attend to a window."""
    pool = SWAKVPool(
        size=TOKENS,
        size_swa=TOKENS,
        head_num=2,
        head_dim=32,
        swa_attention_layer_ids=[0, 2],
        full_attention_layer_ids=[1],
        **SHAPE,
    )
    allocator = SWATokenToKVPoolAllocator(TOKENS, TOKENS, PAGE, DTYPE, DEVICE, pool, False)
    return Memory(pool, allocator, [ComponentType.FULL, ComponentType.SWA])


def mamba(*, use_mla: bool = False) -> Memory:
    """Of three layers, the first and the last have a state."""
    shape = KimiLinearStateShape.create(tp_world_size=1, num_heads=2, head_dim=16)
    requests = HybridReqToTokenPool(
        size=8,
        mamba_size=16,
        mamba_spec_state_size=8,
        max_context_len=TOKENS,
        device=DEVICE,
        enable_memory_saver=False,
        cache_params=KimiLinearCacheParams(shape=shape, layers=[0, 2]),
        mamba_layer_ids=[0, 2],
        enable_mamba_extra_buffer=True,
    )
    pool = HybridLinearKVPool(
        size=TOKENS,
        head_num=2,
        head_dim=32,
        full_attention_layer_ids=[1],
        mamba_pool=requests.mamba_pool,
        use_mla=use_mla,
        kv_lora_rank=64,
        qk_rope_head_dim=16,
        **SHAPE,
    )
    memory = paged(pool)
    memory.components.append(ComponentType.MAMBA)
    memory.requests = requests
    return memory


def mamba_mla() -> Memory:
    return mamba(use_mla=True)


def dsa() -> Memory:
    """A latent and an index of it, for all ranks, as of DeepSeek-V3.2; its pages are larger."""
    shape = {"kv_lora_rank": 64, "qk_rope_head_dim": 16, "kv_cache_dim": 80, "index_head_dim": 128}
    page = {**SHAPE, "page_size": INDEXED_PAGE}
    pool = DSATokenToKVPool(size=TOKENS, layer_num=LAYERS, **shape, **page)
    return paged(pool, INDEXED_PAGE)


def paged(pool: Any, page: int = PAGE) -> Memory:
    allocator = PagedTokenToKVPoolAllocator(TOKENS, page, DTYPE, DEVICE, pool, False)
    return Memory(pool, allocator, page=page)


def tokens(seed: int, pages: int) -> list[int]:
    return [seed * 10_000 + token for token in range(pages * PAGE)]


class Worker:
    """`make` makes what it keeps its KV in; `group` is of its ranks, where there are several."""

    def __init__(self, serve, address: str, make, *, group=None, **extra) -> None:
        config = {
            "linker": "RefrainLinker",
            "linker_module_path": "refrain_kv.sglang.linker",
            "linker_extra_config": {
                "address": address,
                "deadline": PATIENCE,
                "session_arena_bytes": 16 << 20,
                "landing_bytes": 16 << 20,
                **extra,
            },
        }
        server_args = serve(
            served_model_name="tiny",
            page_size=PAGE,
            enable_unified_cache_external_linker=True,
            unified_cache_external_linker_backend="dynamic",
            unified_cache_external_linker_config=config,
        )
        self.forward_stream = None
        if GPUS:
            torch.cuda.set_device(DEVICE)
            self.forward_stream = torch.cuda.Stream()
        with get_parallel().override(**ONE_RANK):
            self.memory = make()
            self.allocator = self.memory.allocator
            params = CacheInitParams(
                disable=False,
                req_to_token_pool=self.memory.requests,
                token_to_kv_pool_allocator=self.allocator,
                page_size=self.memory.page,
                tp_cache_group=group,
                enable_mamba_extra_buffer=True,
                sliding_window_size=WINDOW if self.has(ComponentType.SWA) else None,
                tree_components=tuple(self.memory.components),
            )
            self.tree = UnifiedRadixCache(params)
            self.linker = create_unified_cache_linker(
                server_args,
                params,
                backend=get_memory().unified_cache_external_linker_backend,
                config=get_startup_linker_config(),
                components=set(self.tree.components),
                forward_stream=self.forward_stream,
            )
        self.tree.init_cache_linker(self.linker)
        self.memory.pool.register_layer_transfer_counter(self.linker.layer_done_counter)

    def has(self, component: ComponentType) -> bool:
        return component in self.memory.components

    # --- what a forward pass leaves behind ---

    def buffers(self) -> dict[str, list[torch.Tensor]]:
        """Of each pool, the tensors of all layers."""
        return {str(name): entry.kv_buffer for name, entry in self.linker.pools.items()}

    def drawn(self, pool: str, slots: torch.Tensor, seed: int) -> list[torch.Tensor]:
        """What `fill` writes into each of a pool's tensors."""
        generator, made = torch.Generator().manual_seed(seed), []
        for buffer in self.buffers()[pool]:
            rows = torch.empty((len(slots), *buffer.shape[1:]), dtype=buffer.dtype)
            rows.view(torch.uint8).random_(0, 256, generator=generator)
            made.append(rows.to(buffer.device))
        return made

    def fill(self, pool: str, slots: torch.Tensor, seed: int) -> None:
        for buffer, rows in zip(self.buffers()[pool], self.drawn(pool, slots, seed), strict=True):
            buffer[slots] = rows

    def fill_late(self, places: dict[str, torch.Tensor], seed: int, stream: Any = None) -> None:
        """As a forward pass fills them: on a GPU on a stream of its own, behind what takes a while,
        and the scheduler runs ahead until it waits for all."""
        drawn = {pool: self.drawn(pool, slots, seed) for pool, slots in places.items()}
        with self.passing(stream):
            for pool, slots in places.items():
                for buffer, rows in zip(self.buffers()[pool], drawn[pool], strict=True):
                    buffer[slots] = rows
                    if self.forward_stream is not None:
                        rows.record_stream(torch.cuda.current_stream())

    def passing(self, stream: Any = None) -> Any:
        if self.forward_stream is None:
            return nullcontext()
        stream = stream or self.forward_stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(BUSY)
        return torch.cuda.stream(stream)

    def wait(self) -> None:
        """Until no pass runs."""
        if self.forward_stream is not None:
            torch.cuda.synchronize()

    def bytes_at(self, pool: str, slots: torch.Tensor) -> list[bytes]:
        """Of each page. A state has one slot, and so has a page's index."""
        each = 1 if pool in ("mamba", "indexer") else self.memory.page
        there = [buffer[slots].contiguous() for buffer in self.buffers()[pool]]
        rows = [row.view(torch.uint8).cpu() for row in there]
        pages = [row.view(len(slots) // each, -1) for row in rows]
        return [
            b"".join(row[page].numpy().tobytes() for row in pages)
            for page in range(len(slots) // each)
        ]

    def compute(self, ids: list[int], seed: int = 0) -> dict[str, list[bytes]]:
        """A prompt as if it were being prefilled, put into the tree, which has it offloaded. What
        each pool has of it in the end, page by page."""
        more = {}
        if self.has(ComponentType.SWA):
            slots = self.allocator.full_attn_allocator.alloc(len(ids))
            window = self.allocator.swa_attn_allocator.alloc(len(ids))
            self.allocator.set_full_to_swa_mapping(slots, window)
            places = {"kv": slots, "swa": window}
        else:
            places = {"kv": self.allocator.alloc(len(ids))}
        if self.has(ComponentType.MAMBA):
            places["mamba"] = more["mamba_value"] = self.memory.requests.mamba_allocator.alloc(1)
        places |= self.beside(places["kv"])
        key, value = RadixKey(array("q", ids)), places["kv"].clone()
        self.fill_late(places, seed)
        self.tree.insert(InsertParams(key=key, value=value, **more))
        self.wait()
        return {name: self.bytes_at(name, there) for name, there in places.items()}

    def beside(self, slots: torch.Tensor) -> dict[str, torch.Tensor]:
        """Slots of pools behind the same indices."""
        page = self.memory.page
        return {"indexer": slots[::page] // page} if "indexer" in self.buffers() else {}

    def forget(self) -> None:
        """Empties the tree and the pools, as a flush of SGLang's cache does."""
        self.tree.reset()
        self.allocator.clear()

    def offloaded(self) -> list[bool]:
        """Waits until none is under way, as the scheduler's steps would find it; what became of
        them."""
        seen: list[bool] = []
        commit = self.tree.linker.commit_completed_offloads

        def note(successes) -> None:
            seen.extend(successes)
            commit(successes)

        self.tree.linker.commit_completed_offloads = note
        end = time.monotonic() + PATIENCE
        while self.tree.linker.pending_offloads:
            self.tree.check_hicache_events()
            assert time.monotonic() < end
            time.sleep(0.002)
        self.tree.linker.commit_completed_offloads = commit
        return seen

    # --- what the scheduler asks ---

    def match(self, req: SimpleNamespace) -> MatchResult:
        """How the tree, and what is kept, stand to a request."""
        params = MatchPrefixParams(key=RadixKey(array("q", req.ids)), req=req)
        found = self.tree.match_prefix(params)
        req.prefix_len, req.last_node = found.device_prefix_len, found.last_device_node
        req.best_match_node, req.host_hit_length = found.best_match_node, found.host_hit_length
        req.swa_host_hit_length = found.swa_host_hit_length
        req.mamba_host_hit_length = found.mamba_host_hit_length
        return found

    def load_back(self, req: SimpleNamespace) -> int:
        """Tokens that are on their way to slots of the request's own."""
        loaded, req.last_node = self.tree.init_load_back(
            InitLoadBackParams(req.best_match_node, req.host_hit_length, req=req)
        )
        if loaded:
            req.loaded = self.tree.linker.private_load_indices[req.rid]
        return loaded

    def forward(self, *reqs: SimpleNamespace) -> list[SimpleNamespace]:
        """A batch's pass: each layer is waited for, then the loads are said to have landed.
        Returns the requests that SGLang would abort."""
        index = self.tree.ready_to_load_host_cache()
        counter = self.linker.layer_done_counter
        counter.set_consumer(index)
        for layer in range(LAYERS):
            counter.wait_until(layer)
        return self.tree.finish_external_linker_loads(list(reqs))

    def ask(self, ids: list[int]) -> tuple[int, dict[str, list[bytes]]]:
        """A whole request: pages that it did not have to compute and that were not on the device,
        and what then stands in their slots."""
        req = request(ids)
        self.match(req)
        loaded = self.load_back(req)
        if not loaded:
            return 0, {}
        assert self.forward(req) == []
        return loaded // self.memory.page, self.landed(req)

    def landed(self, req: SimpleNamespace) -> dict[str, list[bytes]]:
        """What stands in the slots that a request's load went to."""
        places = {"kv": req.loaded}
        if self.has(ComponentType.SWA):
            places["swa"] = self.allocator.full_to_swa_index_mapping[req.loaded[-WINDOW:]]
        if self.has(ComponentType.MAMBA):
            places["mamba"] = req.kv.mamba_pool_idx.view(1)
        places |= self.beside(req.loaded)
        return {name: self.bytes_at(name, there) for name, there in places.items()}

    def close(self) -> None:
        self.tree.linker.close()


RIDS = itertools.count()


def request(ids: list[int]) -> SimpleNamespace:
    """As much of a request as the tree looks at."""
    return SimpleNamespace(
        rid=f"request {next(RIDS)}",
        ids=ids,
        kv=ReqKvInfo(kv_allocated_len=0),
        swa_branching_seqlen=None,
        session=None,
        extra_key=None,
    )


@pytest.fixture
def worker(sidecar, serve) -> Iterator:
    made = []

    def make(pool=mha, address=sidecar.address, **more) -> Worker:
        made.append(Worker(serve, address, pool, **more))
        return made[-1]

    yield make
    for it in made:
        it.close()
