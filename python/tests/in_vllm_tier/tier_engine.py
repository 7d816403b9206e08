"""vLLM's own tiering over a CPU pool, as its scheduler drives it, with `RefrainTier` behind."""

from __future__ import annotations

import hashlib
import time
import uuid

import numpy as np
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

ROW = 64 << 10
ROWS = 24
PATIENCE = 30.0


def tier(address: str, **more) -> dict:
    """The entry of `secondary_tiers`, as a user writes it."""
    return {
        "type": "RefrainTier",
        "module_path": "refrain_kv.vllm.tier",
        "address": address,
        "weights": "seed 1",
        "config": "tiny",
        "session_arena_bytes": 16 << 20,
        "lookup_deadline": PATIENCE,
        "deadline": PATIENCE,
        **more,
    }


def described(entry: dict, groups: int = 1, rows: int = ROWS, **model) -> OffloadingConfig:
    return OffloadingConfig(
        groups=tuple(
            OffloadingGroupConfig(tokens_per_block=16, layer_names=(f"layer.{it}",), group_id=it)
            for it in range(groups)
        ),
        worker_kv_bytes_per_block=ROW,
        enable_kv_cache_events=False,
        extra_config={"cpu_bytes_to_use": rows * ROW, "secondary_tiers": [entry]},
        engine_id=f"refrain-test-{uuid.uuid4().hex}",
        model=OffloadingModelConfig(**{"name": "tiny", "dtype": "bfloat16", **model}),
        cache=OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=1),
        parallel=OffloadingParallelConfig(
            rank=0,
            world_size=1,
            tp_size=1,
            pp_size=1,
            pcp_size=1,
            dcp_size=1,
            data_parallel_index=0,
            data_parallel_size=1,
            data_parallel_rank_local=None,
            is_parallelism_agnostic=False,
        ),
    )


class Engine:
    """A scheduler's calls. What GPUs would write into rows, it writes by itself."""

    def __init__(self, entry: dict, **more) -> None:
        self.manager = TieringOffloadingSpec(described(entry, **more)).get_manager()
        self.rows = self.manager.primary_tier.get_kv_memoryview()
        [self.tier] = self.manager.secondary_tiers

    def request(self) -> ReqContext:
        context = ReqContext(req_id=uuid.uuid4().hex)
        self.manager.on_new_request(context)
        return context

    def step(self) -> None:
        self.manager.on_schedule_end(ScheduleEndContext((), ()))

    def store(self, keys: list[bytes]) -> None:
        """Offloads blocks, each with its own bytes; returns when the tier is done with them."""
        context = self.request()
        wanted = self.manager.prepare_store(keys, context)
        for key, row in zip(wanted.keys_to_store, wanted.store_spec.chunk_ids):
            np.asarray(self.rows)[int(row)] = np.frombuffer(content(key), np.uint8)
        self.manager.complete_store(wanted.keys_to_store, context)
        self.finish(context)

    def lookup(self, keys: list[bytes], context: ReqContext) -> list[bool]:
        """Asks for all of them step by step, as for a request that waits, until there are
        verdicts."""
        end = time.monotonic() + PATIENCE
        while True:
            verdicts = [self.manager.lookup(key, context) for key in keys]
            if all(it in (LookupResult.HIT, LookupResult.MISS) for it in verdicts):
                return [it is LookupResult.HIT for it in verdicts]
            assert time.monotonic() < end, "no verdict"
            self.step()
            time.sleep(0.002)

    def load(self, keys: list[bytes]) -> list[bool]:
        """Which of them came into the pool; those that did have their bytes."""
        context = self.request()
        found = self.lookup(keys, context)
        there = [key for key, is_hit in zip(keys, found) if is_hit]
        if there:
            spec = self.manager.prepare_load(there, context)
            for key, row in zip(there, spec.chunk_ids):
                assert np.asarray(self.rows)[int(row)].tobytes() == content(key)
            self.manager.complete_load(there, context)
        self.finish(context)
        return found

    def finish(self, context: ReqContext) -> None:
        self.manager.on_request_finished(context)
        self.settle()

    def settle(self) -> None:
        end = time.monotonic() + PATIENCE
        self.step()
        while self.manager.has_pending_work():
            assert time.monotonic() < end
            time.sleep(0.002)
            self.step()

    def close(self) -> None:
        for it in self.manager.secondary_tiers:
            it.shutdown()
        self.manager.primary_tier.shutdown()


def content(key: bytes) -> bytes:
    return hashlib.shake_128(key).digest(ROW)


def keys(seed: int, blocks: int, group: int = 0) -> list[bytes]:
    def name(block: int) -> bytes:
        return hashlib.sha256(f"{seed} {block}".encode()).digest()

    return [make_offload_key(name(block), group) for block in range(blocks)]
