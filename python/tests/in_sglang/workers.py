"""A worker of SGLang's without a GPU: its own radix tree over its own pools, in the memory of the
host, linked by its own factory and driven as its scheduler does. What a forward pass would compute
is filled in: bytes of each prompt's own."""

from __future__ import annotations

import itertools
import time
from array import array
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from conftest import PATIENCE
from pools import LAYERS, PAGE
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import (
    InitLoadBackParams,
    InsertParams,
    MatchPrefixParams,
    MatchResult,
)
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.linker_factory import (
    create_unified_cache_linker,
    get_startup_linker_config,
)
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.runtime_context import get_memory, get_parallel

PAGES = 48
TOKENS = PAGES * PAGE
#: Tokens of a window, of two pages.
WINDOW = 2 * PAGE
ONE_RANK = {"tp_rank": 0, "tp_size": 1, "attn_dp_size": 1, "attn_dcp_size": 1}

SHAPE = {"page_size": PAGE, "dtype": torch.bfloat16, "device": "cpu", "enable_memory_saver": False}


def mha() -> tuple:
    pool = MHATokenToKVPool(size=TOKENS, layer_num=LAYERS, head_num=2, head_dim=32, **SHAPE)
    return pool, PagedTokenToKVPoolAllocator(TOKENS, PAGE, torch.bfloat16, "cpu", pool, False)


def mla() -> tuple:
    pool = MLATokenToKVPool(
        size=TOKENS, layer_num=LAYERS, kv_lora_rank=64, qk_rope_head_dim=16, **SHAPE
    )
    return pool, PagedTokenToKVPoolAllocator(TOKENS, PAGE, torch.bfloat16, "cpu", pool, False)


def swa() -> tuple:
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
    allocator = SWATokenToKVPoolAllocator(
        TOKENS, TOKENS, PAGE, torch.bfloat16, "cpu", pool, need_sort=False
    )
    return pool, allocator


def tokens(seed: int, pages: int) -> list[int]:
    return [seed * 10_000 + token for token in range(pages * PAGE)]


class Worker:
    """`make` makes its pool; `groups` are of its ranks, where there are several."""

    def __init__(self, serve, address: str, make, *, rank=0, ranks=1, group=None, **extra) -> None:
        self.pool, self.allocator = make()
        components = [ComponentType.FULL]
        if make is swa:
            components.append(ComponentType.SWA)
        params = CacheInitParams(
            disable=False,
            req_to_token_pool=ReqToTokenPool(8, TOKENS, "cpu", False),
            token_to_kv_pool_allocator=self.allocator,
            page_size=PAGE,
            tp_cache_group=group,
            sliding_window_size=WINDOW if make is swa else None,
            tree_components=tuple(components),
        )
        self.tree = UnifiedRadixCache(params)
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
            enable_unified_cache_external_linker=True,
            unified_cache_external_linker_backend="dynamic",
            unified_cache_external_linker_config=config,
        )
        with get_parallel().override(**{**ONE_RANK, "tp_rank": rank, "tp_size": ranks}):
            self.linker = create_unified_cache_linker(
                server_args,
                params,
                backend=get_memory().unified_cache_external_linker_backend,
                config=get_startup_linker_config(),
                components=set(self.tree.components),
            )
        self.tree.init_cache_linker(self.linker)
        self.pool.register_layer_transfer_counter(self.linker.layer_done_counter)

    # --- what a forward pass leaves behind ---

    def buffers(self) -> dict[str, list[torch.Tensor]]:
        """Of each pool, the tensors of all layers."""
        return {str(name): entry.kv_buffer for name, entry in self.linker.pools.items()}

    def fill(self, pool: str, slots: torch.Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for buffer in self.buffers()[pool]:
            rows = buffer[slots].view(torch.uint8)
            rows.random_(0, 256, generator=generator)
            buffer[slots] = rows.view(buffer.dtype)

    def bytes_at(self, pool: str, slots: torch.Tensor) -> bytes:
        rows = [buffer[slots].contiguous().view(torch.uint8) for buffer in self.buffers()[pool]]
        return b"".join(row.numpy().tobytes() for row in rows)

    def compute(self, seed: int, pages: int, *, ids: list[int] | None = None) -> dict[str, bytes]:
        """A prompt as if it had been prefilled, put into the tree, which has it offloaded. Returns
        what each pool has of it."""
        ids = tokens(seed, pages) if ids is None else ids
        if isinstance(self.allocator, SWATokenToKVPoolAllocator):
            slots = self.allocator.full_attn_allocator.alloc(len(ids))
            window = self.allocator.swa_attn_allocator.alloc(len(ids))
            self.allocator.set_full_to_swa_mapping(slots, window)
            places = {"kv": slots, "swa": window}
        else:
            places = {"kv": self.allocator.alloc(len(ids))}
        for name, there in places.items():
            self.fill(name, there, seed)
        self.tree.insert(InsertParams(key=RadixKey(array("q", ids)), value=places["kv"].clone()))
        return {name: self.bytes_at(name, there) for name, there in places.items()}

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

    def ask(self, seed: int, pages: int) -> tuple[int, dict[str, bytes]]:
        """A whole request: how many tokens it did not have to compute that were not on the device,
        and what then stands in their slots."""
        req = request(tokens(seed, pages))
        self.match(req)
        loaded = self.load_back(req)
        if not loaded:
            return 0, {}
        slots = self.tree.linker.private_load_indices[req.rid]
        places = {"kv": slots}
        if isinstance(self.allocator, SWATokenToKVPoolAllocator):
            window = slots[-min(WINDOW, loaded) :]
            places["swa"] = self.allocator.full_to_swa_index_mapping[window]
        assert self.forward(req) == []
        return loaded, {name: self.bytes_at(name, there) for name, there in places.items()}

    def close(self) -> None:
        self.tree.linker.close()


RIDS = itertools.count()


def request(ids: list[int]) -> SimpleNamespace:
    """As much of a request as the tree looks at."""
    return SimpleNamespace(
        rid=f"request {next(RIDS)}",
        ids=ids,
        kv=None,
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
