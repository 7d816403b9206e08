"""Blocks in an engine's host memory, in batches larger than what carries them: all come, or it is
known which did not."""

from __future__ import annotations

import types

import numpy as np
import pytest
import refrain_kv as kv
import refrain_kv.named
from conftest import PATIENCE, content, namespace
from named import names
from refrain_kv.named import NamedBlocks

BLOCK = 1 << 20
#: More than the load arena of 64 MiB and the session arena of 16 MiB hold.
BLOCKS = 90


class Rows:
    """Host memory whose rows are blocks."""

    def __init__(self, client: kv.Client, blocks: int = BLOCKS) -> None:
        self.rows = np.zeros((blocks, BLOCK), np.uint8)
        cache = kv.KvCache([self.rows])
        whole = namespace(layers=1, layer_bytes=BLOCK, groups=[kv.AttentionGroup.full(1)])
        self.blocks = NamedBlocks(client, whole, 0, cache, PATIENCE)

    def fill(self, seed: int) -> None:
        for number, row in enumerate(self.rows):
            row[:] = np.frombuffer(content(seed * 1000 + number, BLOCK), np.uint8)

    def has(self, seed: int, rows: list[int]) -> bool:
        return all(
            self.rows[row].tobytes() == content(seed * 1000 + number, BLOCK)
            for number, row in enumerate(rows)
        )


@pytest.mark.parametrize("queue", ["", 'save_queue = "8MiB"\n'])
def test_a_batch_may_be_larger_than_arenas_and_queues(sidecars, queue):
    sidecar = sidecars(queue)
    with kv.Client(sidecar.address, session_arena_bytes=16 << 20, deadline=PATIENCE) as client:
        rows, hashes = Rows(client), names(1, BLOCKS)
        rows.fill(1)
        assert rows.blocks.save(hashes, range(BLOCKS)) == [True] * BLOCKS
        assert rows.blocks.find(hashes + names(2, 1)) == [True] * BLOCKS + [False]
        rows.rows[:] = 0
        backwards = list(range(BLOCKS))[::-1]
        assert rows.blocks.load(hashes, backwards) == BLOCKS
        assert rows.has(1, backwards)


def test_no_block_and_no_sidecar_are_no_error(client, sidecar):
    rows = Rows(client, 2)
    assert rows.blocks.find([]) == rows.blocks.save([], []) == []
    assert rows.blocks.load([], []) == 0
    sidecar.kill()
    assert rows.blocks.find(names(1, 2)) == rows.blocks.save(names(1, 2), [0, 1]) == [False] * 2
    assert rows.blocks.load(names(1, 2), [0, 1]) == 0


class Slow:
    """A registration whose look-ups take nearly all of the time, and what comes of them."""

    def __init__(self, it, clock: list[float], waits: list[float]) -> None:
        self._it, self._clock, self._waits = it, clock, waits

    def __getattr__(self, name: str):
        return getattr(self._it, name)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._it.__exit__(*error)

    def lookup_hashes(self, *given, **more):
        self._clock[0] += PATIENCE - 10
        return Slow(self._it.lookup_hashes(*given, **more), self._clock, self._waits)

    def load_into(self, *given, deadline: float):
        self._waits.append(deadline)
        return self._it.load_into(*given, deadline=deadline)

    def begin_save_from(self, *given, **more):
        return Slow(self._it.begin_save_from(*given, **more), self._clock, self._waits)

    def result(self, timeout: float):
        self._waits.append(timeout)
        return self._it.result(timeout)


def test_what_a_look_up_took_is_not_waited_for_again(client, monkeypatch):
    rows, clock, waits = Rows(client, 2), [0.0], []
    rows.blocks._registration = Slow(rows.blocks._registration, clock, waits)
    still = types.SimpleNamespace(monotonic=lambda: clock[0])
    monkeypatch.setattr(refrain_kv.named, "time", still)
    assert rows.blocks.save(names(1, 2), [0, 1]) == [True] * 2
    assert rows.blocks.load(names(1, 2), [0, 1]) == 2
    assert waits == [10, 10]
