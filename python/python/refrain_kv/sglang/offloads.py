"""Saves of what SGLang offloads, one after the other, beside the scheduler."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from sglang.srt.mem_cache.hicache_storage import STORAGE_BATCH_SIZE, PoolTransfer

from .kept import KeptPools

log = logging.getLogger("refrain_kv")


class Offloads:
    """One thread. While more than `limit` bytes wait, further ones are dropped: SGLang keeps their
    slots until they are answered."""

    def __init__(self, kept: KeptPools, limit: int) -> None:
        self._kept = kept
        self._limit = limit
        self._waiting_bytes = 0
        self._dropping = threading.Event()
        self._lock = threading.Lock()
        self._queue: queue.Queue[tuple[Sequence[PoolTransfer], int, Sequence[Any]] | None] = (
            queue.Queue()
        )
        #: What became of those that have ended, in the order in which they were asked for.
        self.results: deque[bool] = deque()
        self._thread = threading.Thread(target=self._run, name="refrain-saves", daemon=True)
        self._thread.start()

    def begin(self, transfers: Sequence[PoolTransfer], size: int, after: Sequence[Any]) -> None:
        """Saves all of them, or as good as none, after the events `after`. Without any, or too many
        bytes in front of it, it comes to nothing in its turn."""
        with self._lock:
            if self._waiting_bytes and self._waiting_bytes + size > self._limit:
                transfers, size, after = (), 0, ()
            self._waiting_bytes += size
        self._queue.put((transfers, size, after))

    def clear(self) -> None:
        """Ends the one under way, drops those that wait and forgets what became of others."""
        self._dropping.set()
        self._queue.join()
        self._dropping.clear()
        self.results.clear()

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (offload := self._queue.get()) is not None:
            transfers, size, after = offload
            is_saved = False
            try:
                is_saved = bool(transfers) and not self._dropping.is_set()
                if is_saved:
                    is_saved = self._save(transfers, after)
            except Exception:
                log.exception("pages could not be saved")
                is_saved = False
            with self._lock:
                self._waiting_bytes -= size
            self.results.append(is_saved)
            self._queue.task_done()
        self._queue.task_done()

    def _save(self, transfers: Sequence[PoolTransfer], after: Sequence[Any]) -> bool:
        for event in after:
            event.synchronize()
        return all(self._save_pool(it) for it in transfers)

    def _save_pool(self, transfer: PoolTransfer) -> bool:
        """A batch at a time: each has a deadline of its own."""
        keys, slots = transfer.keys or [], transfer.host_indices
        if not keys or slots is None:
            return True
        each = slots.numel() // len(keys)
        return all(
            all(
                self._kept.set(
                    transfer.name,
                    keys[first : first + STORAGE_BATCH_SIZE],
                    slots[first * each : (first + STORAGE_BATCH_SIZE) * each],
                )
            )
            for first in range(0, len(keys), STORAGE_BATCH_SIZE)
        )
