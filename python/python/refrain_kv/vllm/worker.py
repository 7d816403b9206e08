"""A worker's half: its rank's share of blocks, in and out of the engine's cache.

Each load and each save is one call of the client's, begun here and looked at once a step; nothing
waits. What goes wrong is a load of nothing, or a save of nothing.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import torch
from vllm.logger import init_logger

from .. import Client, KvCache, Loaded, Pending, RefrainError, Registration, Saved
from .identity import Identity
from .kinds import Kind
from .layout import Facts, UnknownLayout, paged, shape
from .metadata import Move, Orders, Report, Save
from .settings import Settings
from .stats import RefrainStats

logger = init_logger("vllm.refrain_kv.worker")


class Worker:
    """Of one rank, which has `shard` of each block, and `saves` it unless another rank does."""

    def __init__(
        self, settings: Settings, kinds: Sequence[Kind], blocks: int, shard: int, saves: bool
    ) -> None:
        self._settings, self._kinds, self._blocks = settings, kinds, blocks
        self._shard, self._saves = shard, saves
        #: vLLM knows lost blocks in one group alone: elsewhere a load counts whole or not at all.
        self._whole = sum(len(kind.groups) for kind in kinds) > 1
        self._tensors: dict[str, torch.Tensor] = {}
        self._device: torch.device | None = None
        #: Of each kind; empty while there is no memory to read or write.
        self._caches: list[KvCache] = []
        self._client: Client | None = None
        self._registrations: list[Registration] = []
        #: Of each request, one of each kind that it loads.
        self._loading: dict[str, list[tuple[Move, Pending[Loaded] | None]]] = {}
        #: Of each request and kind, in order, each with its end: a block is saved after those
        #: before it.
        self._saving: dict[tuple[str, int], deque[tuple[Save, float, Pending[Saved] | None]]] = {}
        self._over: Counter[int] = Counter()
        self._short: dict[str, int] = {}
        #: Blocks that did not come; where loads count as a whole, their requests.
        self._lost: set[int] = set()
        self._failed: set[str] = set()
        self.facts: Facts | None = None
        self.stats = RefrainStats()

    # The engine's memory.

    def takes(self, kv_caches: dict[str, torch.Tensor], layers: dict[str, Any]) -> None:
        self._tensors = kv_caches
        self._device = next(iter(kv_caches.values())).device
        try:
            self._caches = self._paged()
            shapes = [
                shape(kind, kv_caches, cache, layers)
                for kind, cache in zip(self._kinds, self._caches, strict=True)
            ]
        except (RefrainError, UnknownLayout) as error:
            logger.error("Refrain cannot cache this engine's KV: %s", error)
            self.facts, self._caches = Facts(fault=str(error)), []
            return
        self.facts = Facts(tuple(shapes))
        self._client = Client(
            self._settings.address,
            session_arena_bytes=self._settings.session_arena_bytes,
            deadline=self._settings.save_deadline,
        )

    def give_back(self) -> None:
        """The tensors are about to lose their memory."""
        self._cancel()
        for cache in self._caches:
            cache.close()
        self._caches = []

    def take_again(self) -> None:
        if self._client is not None:
            self._caches = self._paged()

    def _paged(self) -> list[KvCache]:
        return [paged(kind, self._tensors, self._blocks) for kind in self._kinds]

    # A step.

    def begin_loads(self, orders: Orders) -> None:
        if orders.identities:
            self._become(orders.identities)
        for load in orders.loads:
            self._loading.setdefault(load.request, []).append((load, self._begin_load(load)))

    def begin_saves(self, orders: Orders) -> None:
        """Behind the step's work on the device."""
        # From here on: what waits for others keeps its blocks too.
        end = time.monotonic() + self._settings.save_deadline
        for save in orders.saves:
            if self._saves:
                queue = self._saving.setdefault((save.request, save.kind), deque())
                queue.append((save, end, None))
            else:
                self._over[save.number] += 1
        self._look_at_saves()

    def _become(self, identities: Sequence[Identity]) -> None:
        assert self.facts is not None and self._client is not None
        for known, identity in zip(self.facts.shapes, identities, strict=True):
            assert (known.layers, known.layer_bytes) == (identity.layers, identity.layer_bytes)
        for registration in self._registrations:
            registration.close()
        self._drop_saves()
        self._registrations = [
            self._client.register(identity.namespace(), shard=self._shard, check=False)
            for identity in identities
        ]

    def _begin_load(self, load: Move) -> Pending[Loaded] | None:
        """None where there is nothing to wait for."""
        if not self._registrations or not self._caches:
            return None
        separate = self._kinds[load.kind].window is not None
        try:
            return self._registrations[load.kind].begin_load_hashes(
                load.names,
                self._caches[load.kind],
                load.block_ids,
                first=0 if separate else load.first,
                separate=separate,
                deadline=self._settings.load_deadline,
                after=self._stream(),
            )
        except RefrainError as error:
            self._tell("load", error)
            return None

    def _begin_save(self, save: Save, left: float) -> Pending[Saved] | None:
        if not self._registrations or not self._caches or left <= 0:
            return None
        separate = self._kinds[save.kind].window is not None
        try:
            return self._registrations[save.kind].begin_save_hashes(
                save.names,
                self._caches[save.kind],
                save.block_ids,
                first=0 if separate else save.first,
                separate=separate,
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
        """Requests whose load is over. What of it is not there is then among the lost blocks, or
        the request among the failed ones."""
        if not self._loading:
            return set()
        over = {
            name
            for name, loads in self._loading.items()
            if all(_is_over(pending) for _, pending in loads)
        }
        for name in over:
            for load, pending in self._loading.pop(name):
                self._end_load(load, self._count_load(pending))
        return over

    def _end_load(self, load: Move, blocks: int) -> None:
        self.stats.add("loaded_blocks", blocks)
        self.stats.add("missed_blocks", load.blocks - blocks)
        if blocks == load.blocks:
            return
        end = load.first + blocks
        self._short[load.request] = min(self._short.get(load.request, end), end)
        if self._whole:
            self._failed.add(load.request)
        else:
            self._lost.update(load.block_ids[0][blocks:])

    def lost(self) -> set[int]:
        lost, self._lost = self._lost, set()
        return lost

    def failed(self) -> set[str]:
        failed, self._failed = self._failed, set()
        return failed

    def report(self) -> Report | None:
        self._look_at_saves()
        if not self._over and not self._short:
            return None
        report = Report(self._over, self._short)
        self._over, self._short = Counter(), {}
        return report

    def _look_at_saves(self) -> None:
        for key in list(self._saving):
            queue = self._saving[key]
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
                del self._saving[key]

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
        for loads in self._loading.values():
            for _, loading in loads:
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
        for cache in self._caches:
            cache.close()


def _is_over(pending: Pending[Any] | None) -> bool:
    return pending is None or pending.done()
