"""Where a pool of SGLang's keeps its pages, as addresses and strides."""

from __future__ import annotations

from typing import Any

import torch

from refrain_kv import KvCache, Plane


class UnevenPoolError(ValueError):
    """Pages that do not lie at equal distances: they cannot be read into without a copy."""


class PoolPages:
    """The pages of one pool in host memory, each a list of pieces as the pool itself tells them:
    keys and values, say, or as many as there are layers."""

    def __init__(self, pool: Any) -> None:
        pages = int(pool.page_num)
        self._page_size = int(pool.page_size)
        try:
            first, sizes = self._pieces(pool, 0)
            bases = first
            strides = [0] * len(first)
            if pages > 1:
                second, _ = self._pieces(pool, 1)
                last, last_sizes = self._pieces(pool, pages - 1)
                strides = [there - here for here, there in zip(first, second)]
                expected = [base + stride * (pages - 1) for base, stride in zip(bases, strides)]
                if last != expected or last_sizes != sizes or min(strides) < 0:
                    raise UnevenPoolError("its pages do not lie at equal distances")
        except (NotImplementedError, AssertionError, ValueError, AttributeError) as error:
            layout = getattr(pool, "layout", None)
            raise UnevenPoolError(
                f"{type(pool).__name__} of layout {layout!r} has no pages by address: {error}"
            ) from error
        planes = [Plane(base, stride, size) for base, stride, size in zip(bases, strides, sizes)]
        #: Bytes of a page's pieces, in order.
        self.form = sizes
        self.page_bytes = sum(sizes)
        # One layer of as many planes: nothing here loads layer by layer.
        self.cache = KvCache([planes], pages=pages)
        # The addresses are the pool's.
        self._pool = pool

    def numbers(self, indices: torch.Tensor) -> list[int]:
        """Page numbers of slots, given a page's worth each."""
        starts = indices.reshape(-1)[:: self._page_size].tolist()
        if any(start % self._page_size for start in starts):
            raise ValueError("slots do not begin at pages")
        return [start // self._page_size for start in starts]

    def close(self) -> None:
        self.cache.close()

    def _pieces(self, pool: Any, page: int) -> tuple[list[int], list[int]]:
        start = page * self._page_size
        meta = pool.get_page_buffer_meta(torch.arange(start, start + self._page_size))
        if not meta:
            raise UnevenPoolError("it has no memory of its own")
        addresses, sizes = meta
        return [int(address) for address in addresses], [int(size) for size in sizes]


class Staging:
    """Host memory between tensors anywhere and the arenas, a page a row."""

    def __init__(self, pages: int, page_bytes: int) -> None:
        self.rows = torch.zeros(pages, page_bytes, dtype=torch.uint8)
        plane = Plane(self.rows.data_ptr(), page_bytes, page_bytes)
        self.cache = KvCache([plane], pages=pages)
        self.page_bytes = page_bytes

    def close(self) -> None:
        self.cache.close()
