"""`RefrainTier`: a secondary tier behind vLLM's CPU pool, a `SecondaryTierManager`.

The client reads and writes rows of the engine's own pool. Nothing here makes the scheduler wait:
look-ups, loads and stores run on threads of their own, and a look-up without an answer by its
deadline is a miss.

vLLM's key is a block hash, which names a whole prefix with its salt and adapter, and a KV cache
group; each group is a namespace of its own. What is removed, the sidecar's events tell routers, and
what is stored too: this tier tells neither by itself.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import vllm
from vllm.v1.kv_offload.base import (
    LookupResult,
    Medium,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    get_offload_block_hash,
    get_offload_group_idx,
)
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from .. import Client, KvCache, Namespace, Plane
from ..named import NamedBlocks, of_pages
from . import shim

log = logging.getLogger("refrain_kv")

#: Jobs at once; each waits for the sidecar most of its time.
LOADS, STORES = 4, 2
#: Stores that wait for one of these: their rows cannot be used meanwhile, so that more are given
#: up.
STORES_QUEUED = 64


# All of them drive tiers alike.
shim.minor(vllm.__version__)


class UnknownFieldError(ValueError):
    """A field of the namespace cannot be known; the message says how to give it."""


class RefrainTier(SecondaryTierManager):
    """Made by vLLM, of an entry of `secondary_tiers`: `type` `RefrainTier`, `module_path`
    `refrain_kv.vllm.tier`, and the arguments below. `weights` and `config` name what vLLM does not
    tell its tiers: the revision of the weights, and whatever of the model's config is not as in its
    repository, RoPE say. Deadlines are in seconds."""

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        *,
        weights: str | None = None,
        config: str | None = None,
        address: str | None = None,
        tenant: str = "default",
        salt: str = "",
        deadline: float = 5.0,
        lookup_deadline: float = 0.5,
        session_arena_bytes: int = 256 << 20,
        locality: str | None = "LOCAL",
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = _locality(locality)
        for name, value in (("weights", weights), ("config", config)):
            if not value:
                raise UnknownFieldError(
                    f"namespace field `{name}` is not known: vLLM does not tell it to its tiers; "
                    f'give "{name}" in the tier\'s entry of secondary_tiers'
                )
        self._row_bytes = self._block_size_bytes
        rows = np.asarray(primary_kv_view)
        # Only its address: vLLM releases the view when this tier is shut down, and may then.
        address_of_rows, count = rows.ctypes.data, rows.shape[0]
        del rows
        self._cache = KvCache(
            [Plane(address_of_rows, self._row_bytes, self._row_bytes)], pages=count
        )
        self._client = Client(
            address,
            session_arena_bytes=session_arena_bytes,
            deadline=max(deadline, lookup_deadline),
        )
        fields = {"tenant": tenant, "weights": weights, "config": config, "salt": salt}
        described = offloading_spec.config
        namespaces = {
            group.group_id: _namespace(described, group, self._row_bytes, **fields)
            for group in described.groups
        }
        self._moves = {of: self._blocks(it, deadline) for of, it in namespaces.items()}
        self._finds = {of: self._blocks(it, lookup_deadline) for of, it in namespaces.items()}
        self._lookups = _Lookups(tier_type, self._find, lookup_deadline)
        self._loads = ThreadPoolExecutor(LOADS, "refrain-tier-load")
        self._stores = ThreadPoolExecutor(STORES, "refrain-tier-store")
        self._stores_queued = threading.Semaphore(STORES_QUEUED)
        self._running: set[Future[None]] = set()
        self._finished: queue.SimpleQueue[tuple[JobResult, Sequence[OffloadKey]]] = (
            queue.SimpleQueue()
        )

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        return self._lookups.verdict(key, req_context)

    def submit_store(self, job_metadata: Any) -> None:
        if self._stores_queued.acquire(blocking=False):
            self._submit(self._stores, self._store, job_metadata)
        else:
            self._finished.put((JobResult(job_metadata.job_id, success=False), ()))

    def submit_load(self, job_metadata: Any) -> None:
        self._submit(self._loads, self._load, job_metadata)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        results: list[JobResult] = []
        while True:
            try:
                result, failed = self._finished.get_nowait()
            except queue.Empty:
                return results
            # Asked for again, they would be loaded in vain again.
            self._lookups.mark_miss(failed)
            results.append(result)

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._lookups.finish(req_context)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._lookups.flush()

    def drain_jobs(self) -> None:
        for job in list(self._running):
            # What it came to is among the finished ones.
            job.exception()

    def shutdown(self) -> None:
        """Ends what is under way; then no row is read or written any more."""
        self._client.close()
        self._lookups.shutdown()
        for executor in (self._loads, self._stores):
            executor.shutdown(wait=True)
        self._cache.close()

    def _blocks(self, namespace: Namespace, deadline: float) -> NamedBlocks:
        # A row has the shares of all ranks.
        return NamedBlocks(self._client, namespace, 0, self._cache, deadline)

    def _find(self, keys: Sequence[OffloadKey]) -> list[bool]:
        found = [False] * len(keys)
        for group, indices in _by_group(keys):
            names = [get_offload_block_hash(keys[index]) for index in indices]
            for index, there in zip(indices, self._finds[group].find(names)):
                found[index] = there
        return found

    def _submit(self, executor: ThreadPoolExecutor, work: Any, job: Any) -> None:
        running = executor.submit(work, job.job_id, list(job.keys), _rows(job), time.monotonic())
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    def _load(self, job_id: int, keys: list[OffloadKey], rows: list[int], begun: float) -> None:
        loaded: list[OffloadKey] = []
        try:
            for group, indices in _by_group(keys):
                names = [get_offload_block_hash(keys[index]) for index in indices]
                done = self._moves[group].load(names, [rows[index] for index in indices])
                loaded += [keys[index] for index in indices[:done]]
        except Exception:
            log.exception("a load of %d blocks", len(keys))
        there = set(loaded)
        failed = [key for key in keys if key not in there]
        result = JobResult(
            job_id,
            success=not failed,
            successful_keys=tuple(loaded) if failed and loaded else None,
            transfer_time=time.monotonic() - begun,
            transfer_bytes=len(loaded) * self._row_bytes,
        )
        self._finished.put((result, failed))

    def _store(self, job_id: int, keys: list[OffloadKey], rows: list[int], begun: float) -> None:
        self._stores_queued.release()
        kept = 0
        try:
            for group, indices in _by_group(keys):
                names = [get_offload_block_hash(keys[index]) for index in indices]
                kept += sum(self._moves[group].save(names, [rows[index] for index in indices]))
        except Exception:
            log.exception("a store of %d blocks", len(keys))
        result = JobResult(
            job_id,
            success=kept == len(keys),
            transfer_time=time.monotonic() - begun,
            transfer_bytes=kept * self._row_bytes,
        )
        self._finished.put((result, ()))


class _Lookups(AsyncLookupManager):
    """vLLM's own, with a deadline. `verdict` and all else but `batch_lookup` are the
    scheduler's."""

    def __init__(self, tier_type: str, find: Any, deadline: float) -> None:
        self._find = find
        self._deadline = deadline
        #: When a request first asked, by request and key.
        self._asked: dict[str, dict[OffloadKey, float]] = {}
        super().__init__(tier_type=tier_type)

    def batch_lookup(self, keys: list[OffloadKey], req_context: ReqContext) -> Iterable[bool]:
        return self._find(keys)

    def verdict(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        asked = self._asked.setdefault(req_context.req_id, {})
        now = time.monotonic()
        found = self.lookup(key, req_context)
        if found is None:
            late = now - asked.setdefault(key, now) > self._deadline
            return LookupResult.MISS if late else LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def mark_miss(self, keys: Collection[OffloadKey]) -> None:
        # One that another request asks for anew has its answer still to come; before 0.33, marking
        # it
        # would end the engine by an assertion.
        states = ((key, self._lookup_state.get(key)) for key in keys)
        super().mark_miss([key for key, state in states if state and state.result is not None])

    def finish(self, req_context: ReqContext) -> None:
        self._asked.pop(req_context.req_id, None)
        self.cleanup(req_context.req_id)


def _namespace(
    described: Any,
    group: Any,
    row_bytes: int,
    *,
    tenant: str,
    weights: str | None,
    config: str | None,
    salt: str,
) -> Namespace:
    """Of one KV cache group's rows."""
    parallel = described.parallel
    if described.model.dtype in ("", "auto"):
        raise UnknownFieldError("namespace field `kv_dtype` is not known: vLLM tells `auto`")
    digest = {
        "config": config,
        "group": [group.group_id, group.tokens_per_block, list(group.layer_names)],
        "tokens_per_hash": described.cache.tokens_per_hash,
        "blocks_per_chunk": described.cache.blocks_per_chunk,
        "bytes_per_block": described.worker_kv_bytes_per_block,
        # A row's bytes are the ranks', one after the other.
        "parallel": [
            parallel.world_size,
            parallel.tp_size,
            parallel.pp_size,
            parallel.pcp_size,
            parallel.dcp_size,
        ],
        "layout": [
            getattr(described, name, None)
            for name in ("kv_cache_layout", "canonical_layout", "replicated_layout")
        ],
    }
    return of_pages(
        tenant=tenant,
        model=described.model.name,
        weights=str(weights),
        digest=digest,
        kv_dtype=described.model.dtype,
        block_tokens=group.tokens_per_block * described.cache.blocks_per_chunk,
        page_bytes=row_bytes,
        layout="key_value",
        parallel=(1, 1, 1),
        salt=salt.encode(),
    )


def _rows(job: Any) -> list[int]:
    """Of the pool: `chunk_ids`, or `block_ids` in older minors."""
    rows = job.chunk_ids if hasattr(job, "chunk_ids") else job.block_ids
    return [int(row) for row in rows]


def _by_group(keys: Collection[OffloadKey]) -> list[tuple[int, list[int]]]:
    """The indices of each group's keys, in order."""
    groups: dict[int, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(get_offload_group_idx(key), []).append(index)
    return list(groups.items())


def _locality(name: str | None) -> Any:
    if name is None:
        return None
    from vllm.v1.kv_offload.base import Locality

    return Locality(name)
