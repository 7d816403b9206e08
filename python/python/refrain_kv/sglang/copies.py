"""Copies of what has landed into the slots of a device, layer by layer, beside the scheduler."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.mem_cache.unified_cache.unified_cache_linker import LayerWiseLoadCounter

from .device_pools import DevicePages
from .landing import Landing

log = logging.getLogger("refrain_kv")

#: Of memory on the device between a copy and its slots.
STEP_BYTES = 32 << 20


@dataclass
class Copy:
    """Rows where a pool's pages have landed, and the slots that they are for."""

    name: str
    rows: list[int]
    slots: torch.Tensor


class Copies:
    """One thread, and on a GPU one stream. A batch's layers are reported to `counter` when their
    bytes are in the slots; rows are given back when all of them are."""

    def __init__(
        self,
        pools: Mapping[str, tuple[DevicePages, Landing]],
        layers: int,
        counter: LayerWiseLoadCounter,
    ) -> None:
        self._pools = pools
        self._layers = layers
        self._counter = counter
        self._device = next(iter(pools.values()))[0].device
        self._queue: queue.Queue[tuple[int, list[Copy], Sequence[Any]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="refrain-loads", daemon=True)
        self._thread.start()

    def begin(self, copies: list[Copy], after: Sequence[Any]) -> int:
        """Copies after the events `after`, when whoever had the slots before has done with them."""
        index = self._counter.update_producer()
        self._queue.put((index, copies, after))
        return index

    def wait(self) -> None:
        """Until none is under way."""
        self._queue.join()

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        # The slots may have been made in inference mode, outside of which they are read-only.
        with torch.inference_mode(), self._on_stream():
            while (batch := self._queue.get()) is not None:
                index, copies, after = batch
                try:
                    for event in after:
                        event.synchronize()
                    self._copy(index, copies)
                except Exception as error:
                    log.exception("pages that had landed could not be copied to the device")
                    self._fail(index, error)
                for copy in copies:
                    self._pools[copy.name][1].give(copy.rows)
                self._queue.task_done()
            self._queue.task_done()

    def _fail(self, index: int, error: Exception) -> None:
        try:
            if self._device.type == "cuda":
                # Slots are the caller's again once it is told.
                torch.cuda.current_stream().synchronize()
        except Exception:
            log.exception("the device")
        self._counter.fail(index, error)

    def _on_stream(self) -> Any:
        if self._device.type != "cuda":
            return nullcontext()
        torch.cuda.set_device(self._device)
        return torch.cuda.stream(torch.cuda.Stream(self._device))

    def _copy(self, index: int, copies: Sequence[Copy]) -> None:
        plans = [Plan(*self._pools[name], some) for name, some in _by_pool(copies).items()]
        under_way = []
        for layer in range(self._layers):
            for plan in plans:
                plan.copy(layer)
            if self._device.type != "cuda":
                self._counter.complete(index, layer)
                continue
            # All layers are put on the stream before the first is waited for.
            event = torch.cuda.Event()
            event.record()
            under_way.append(event)
        for layer, event in enumerate(under_way):
            event.synchronize()
            self._counter.complete(index, layer)


class Plan:
    """All of a batch's copies of one pool, as runs of rows that lie one behind the other."""

    def __init__(self, pages: DevicePages, landing: Landing, copies: Sequence[Copy]) -> None:
        self._pages, self._landing = pages, landing
        numbered = sorted(
            (row, number)
            for copy in copies
            for row, number in zip(copy.rows, pages.numbers(copy.slots), strict=True)
        )
        self._runs: list[tuple[int, int, torch.Tensor]] = []
        limit = max(1, STEP_BYTES // max(pages.sizes))
        first = 0
        for end in range(1, len(numbered) + 1):
            goes_on = end < len(numbered) and numbered[end][0] == numbered[end - 1][0] + 1
            if not goes_on or end - first == limit:
                numbers = torch.tensor([number for _, number in numbered[first:end]])
                row = numbered[first][0]
                self._runs.append((row, row + end - first, numbers.to(pages.device)))
                first = end

    def copy(self, layer: int) -> None:
        for piece in self._pages.pieces_of(layer):
            target, source = self._pages.pieces[piece], self._landing.pieces[piece]
            for first, end, numbers in self._runs:
                rows = source[first:end].to(target.device, non_blocking=True)
                target.index_copy_(0, numbers, rows)


def _by_pool(copies: Sequence[Copy]) -> dict[str, list[Copy]]:
    found: dict[str, list[Copy]] = {}
    for copy in copies:
        found.setdefault(copy.name, []).append(copy)
    return found
