"""Host memory of a worker's own that pages land in before SGLang is told of them."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Sequence

import torch

from refrain_kv import KvCache, Plane

from .device_pools import words

#: Pieces begin at cache lines.
ALIGNMENT = 64


class LandingFullError(ValueError):
    """The memory holds not one page of each pool."""


class Landing:
    """Rows for pages of one pool, of which a piece's rows lie one behind the other: so all pages'
    share of a layer is one copy. With `pinned`, of memory that a GPU reads by itself."""

    def __init__(self, name: str, sizes: Sequence[int], rows: int, *, pinned: bool) -> None:
        if rows < 1:
            raise LandingFullError(
                f"landing_bytes hold no page of {name}, of {sum(sizes)} bytes: give more"
            )
        starts, end = [], 0
        for size in sizes:
            starts.append(end)
            end += -(-rows * size // ALIGNMENT) * ALIGNMENT
        self._memory = torch.empty(end, dtype=torch.uint8)
        self._pinned = pinned
        if pinned:
            # PyTorch's own pinned memory comes in powers of two.
            status = torch.cuda.cudart().cudaHostRegister(self._memory.data_ptr(), end, 0)
            if int(status):
                raise RuntimeError(f"pin {end} bytes that pages of {name} land in: {status}")
        #: Of each piece, as words, a page a row.
        self.pieces = [
            words(self._memory[start : start + rows * size].view(rows, size))
            for start, size in zip(starts, sizes)
        ]
        base = self._memory.data_ptr()
        planes = [Plane(base + start, size, size) for start, size in zip(starts, sizes)]
        self.cache = KvCache([planes], pages=rows)
        self.rows = rows
        self._free = list(range(rows))
        # Taken by lookups, given back by whoever copies out of them.
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        with self._lock:
            return len(self._free)

    def take(self, count: int) -> list[int]:
        """As many rows, or as are free; in order, and as close together as may be."""
        with self._lock:
            return [heapq.heappop(self._free) for _ in range(min(count, len(self._free)))]

    def give(self, rows: Sequence[int]) -> None:
        with self._lock:
            for row in rows:
                heapq.heappush(self._free, row)

    def close(self) -> None:
        self.cache.close()
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())
            self._pinned = False
