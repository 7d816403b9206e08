"""A worker's half: its rank's share of blocks, in and out of the engine's cache.

Each load and each save is one call of the client's, begun here and looked at once a step; nothing
waits. What goes wrong is a load of nothing, or a save of nothing.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any

import torch
from vllm.logger import init_logger

from .. import Client, KvCache, Loaded, Pending, RefrainError, Registration, Saved
from .identity import Identity
from .layout import Facts, UnknownLayout, facts, paged
from .metadata import Move, Orders, Report, Save
from .settings import Settings
from .stats import RefrainStats

logger = init_logger("vllm.refrain_kv.worker")


class Worker:
    """Of one rank, which has `shard` of each block, and `saves` it unless another rank does."""

    def __init__(self, settings: Settings, blocks: int, shard: int, saves: bool) -> None:
        self._settings, self._blocks = settings, blocks
        self._shard, self._saves = shard, saves
        self._tensors: dict[str, torch.Tensor] = {}
        self._device: torch.device | None = None
        self._cache: KvCache | None = None
        self._client: Client | None = None
        self._identity: Identity | None = None
        self._registration: Registration | None = None
        self._loading: dict[str, tuple[Move, Pending[Loaded] | None]] = {}
        #: Of each request, in order, each with its end: a block is saved after those before it.
        self._saving: dict[str, deque[tuple[Save, float, Pending[Saved] | None]]] = {}
        self._over: Counter[int] = Counter()
        self._lost: set[int] = set()
        self.facts: Facts | None = None
        self.stats = RefrainStats()

    # The engine's memory.

    def takes(self, kv_caches: dict[str, torch.Tensor], layers: dict[str, Any]) -> None:
        self._tensors = kv_caches
        self._device = next(iter(kv_caches.values())).device
        try:
            self._cache = paged(kv_caches, self._blocks)
            self.facts = facts(kv_caches, self._cache, layers)
        except (RefrainError, UnknownLayout) as error:
            logger.error("Refrain cannot cache this engine's KV: %s", error)
            self.facts = Facts(0, 0, "", b"", fault=str(error))
            return
        self._client = Client(
            self._settings.address,
            session_arena_bytes=self._settings.session_arena_bytes,
            deadline=self._settings.save_deadline,
        )

    def give_back(self) -> None:
        """The tensors are about to lose their memory."""
        self._cancel()
        if self._cache is not None:
            self._cache.close()
        self._cache = None

    def take_again(self) -> None:
        if self._client is not None:
            self._cache = paged(self._tensors, self._blocks)

    # A step.

    def begin_loads(self, orders: Orders) -> None:
        if orders.identity is not None:
            self._become(orders.identity)
        for load in orders.loads:
            self._loading[load.request] = (load, self._begin_load(load))

    def begin_saves(self, orders: Orders) -> None:
        """Behind the step's work on the device."""
        # From here on: what waits for others keeps its blocks too.
        end = time.monotonic() + self._settings.save_deadline
        for save in orders.saves:
            if self._saves:
                self._saving.setdefault(save.request, deque()).append((save, end, None))
            else:
                self._over[save.number] += 1
        self._look_at_saves()

    def _become(self, identity: Identity) -> None:
        known = self.facts
        assert known is not None and self._client is not None
        assert (known.layers, known.layer_bytes) == (identity.layers, identity.layer_bytes)
        if self._registration is not None:
            self._registration.close()
        self._drop_saves()
        self._identity = identity
        self._registration = self._client.register(
            identity.namespace(), shard=self._shard, check=False
        )

    def _begin_load(self, load: Move) -> Pending[Loaded] | None:
        """None where there is nothing to wait for."""
        if self._registration is None or self._cache is None:
            return None
        try:
            return self._registration.begin_load_hashes(
                load.names,
                self._cache,
                load.block_ids,
                first=load.first,
                deadline=self._settings.load_deadline,
                after=self._stream(),
            )
        except RefrainError as error:
            self._tell("load", error)
            return None

    def _begin_save(self, save: Save, left: float) -> Pending[Saved] | None:
        if self._registration is None or self._cache is None or left <= 0:
            return None
        try:
            return self._registration.begin_save_hashes(
                save.names,
                self._cache,
                save.block_ids,
                first=save.first,
                deadline=left,
                after=self._stream(),
            )
        except RefrainError as error:
            self._tell("save", error)
            return None

    def _stream(self) -> int | None:
        if self._device is None or self._device.type != "cuda":
            return None
        return torch.cuda.current_stream(self._device).cuda_stream

    # What has come to an end.

    def loaded(self) -> set[str]:
        """Requests whose load is over; blocks that are not there are then among the lost ones."""
        if not self._loading:
            return set()
        over = {name for name, (_, pending) in self._loading.items() if _is_over(pending)}
        for name in over:
            load, pending = self._loading.pop(name)
            blocks = self._count_load(pending)
            self.stats.add("loaded_blocks", blocks)
            self.stats.add("missed_blocks", len(load.block_ids) - blocks)
            self._lost.update(load.block_ids[blocks:])
        return over

    def lost(self) -> set[int]:
        lost, self._lost = self._lost, set()
        return lost

    def report(self) -> Report | None:
        self._look_at_saves()
        if not self._over:
            return None
        over, self._over = self._over, Counter()
        return Report(over)

    def _look_at_saves(self) -> None:
        for request in list(self._saving):
            queue = self._saving[request]
            while queue:
                save, end, pending = queue[0]
                if pending is None:
                    pending = self._begin_save(save, end - time.monotonic())
                    queue[0] = (save, end, pending)
                if not _is_over(pending):
                    break
                queue.popleft()
                self._over[save.number] += 1
                self.stats.add("saved_blocks", self._count_save(pending))
            if not queue:
                del self._saving[request]

    def _count_load(self, pending: Pending[Loaded] | None) -> int:
        try:
            return 0 if pending is None else pending.result().blocks
        except RefrainError as error:
            self._tell("load", error)
            return 0

    def _count_save(self, pending: Pending[Saved] | None) -> int:
        try:
            return 0 if pending is None else pending.result().saved
        except RefrainError as error:
            self._tell("save", error)
            return 0

    def _tell(self, what: str, error: RefrainError) -> None:
        self.stats.add("errors")
        if error.code != "cancelled":
            logger.warning_once("Refrain cannot %s: %s", what, str(error))

    def _drop_saves(self) -> None:
        """Those not begun: what their blocks hold has another name by now."""
        for queue in self._saving.values():
            while queue and queue[-1][-1] is None:
                self._over[queue.pop()[0].number] += 1

    def _cancel(self) -> None:
        """Ends all that reads or writes the engine's memory."""
        for _, loading in self._loading.values():
            if loading is not None:
                loading.cancel()
        for queue in self._saving.values():
            for _, _, saving in queue:
                if saving is not None:
                    saving.cancel()

    def close(self) -> None:
        self._cancel()
        if self._client is not None:
            self._client.close()
        if self._cache is not None:
            self._cache.close()


def _is_over(pending: Pending[Any] | None) -> bool:
    return pending is None or pending.done()
