"""Blocks by an engine's names, loaded and saved in one call each: all of them come back, what is
not there is a miss, and what another worker is still saving is waited for."""

from __future__ import annotations

import numpy as np
import pytest
import refrain_kv as kv
from conftest import LAYERS, PAGE_BYTES, PATIENCE, content, namespace
from test_caches import BLOCKS, Worker

NAMES = [content(1_000 + block, 32) for block in range(BLOCKS)]


@pytest.fixture
def worker(client) -> Worker:
    worker = Worker(client)
    worker.compute(1, range(BLOCKS))
    return worker


def save(worker: Worker, blocks: range, deadline: float = PATIENCE) -> kv.Pending[kv.Saved]:
    return worker.registration.begin_save_hashes(
        NAMES[: blocks.stop],
        worker.cache,
        worker.pages(blocks),
        first=blocks.start,
        deadline=deadline,
    )


def load(worker: Worker, blocks: range, deadline: float = PATIENCE) -> kv.Loaded:
    return worker.registration.begin_load_hashes(
        NAMES[: blocks.stop],
        worker.cache,
        worker.pages(blocks),
        first=blocks.start,
        deadline=deadline,
    ).result()


def test_what_was_saved_is_loaded_from_any_block_on(worker):
    saved = save(worker, range(BLOCKS)).result()
    assert (saved.saved, saved.refusal) == (BLOCKS, "none")
    worker.clear()
    loaded = load(worker, range(5, BLOCKS))
    assert (loaded.blocks, loaded.reason) == (BLOCKS - 5, "none")
    assert worker.has(1, range(5, BLOCKS))
    assert load(worker, range(5)).blocks == 5
    assert worker.has(1, range(BLOCKS))


def test_what_is_there_is_not_saved_again_and_what_is_not_is_a_miss(worker):
    assert save(worker, range(4)).result().saved == 4
    assert save(worker, range(6)).result().saved == 2
    assert save(worker, range(2, 6)).result().saved == 0
    worker.clear()
    assert load(worker, range(3, BLOCKS)).blocks == 3
    assert worker.has(1, range(3, 6))
    assert load(worker, range(7, BLOCKS)).blocks == 0


def test_a_save_waits_for_the_blocks_before_it(worker):
    behind = save(worker, range(4, BLOCKS))
    assert save(worker, range(4)).result().saved == 4
    assert behind.result().saved == BLOCKS - 4


def test_a_save_whose_blocks_before_it_never_come_ends_at_its_deadline(worker):
    saved = save(worker, range(4, BLOCKS), deadline=0.1).result()
    assert (saved.saved, saved.refusal) == (0, "no_parent")


def test_without_a_sidecar_nothing_is_loaded_or_saved(sidecar, worker):
    assert save(worker, range(BLOCKS)).result().saved == BLOCKS
    sidecar.stop()
    assert load(worker, range(BLOCKS), deadline=0.1).blocks == 0
    assert save(worker, range(BLOCKS), deadline=0.1).result().saved == 0
    sidecar.kill()
    assert load(worker, range(BLOCKS)).blocks == 0
    assert save(worker, range(BLOCKS)).result().saved == 0


def test_pages_must_fit_the_blocks(worker):
    with pytest.raises(ValueError, match="pages for 3 blocks"):
        worker.registration.begin_load_hashes(
            NAMES[:4], worker.cache, worker.pages(range(4)), first=1, deadline=1.0
        )


def separately(worker: Worker, names: list[bytes], pages: range) -> dict:
    """Of blocks that stand behind no other."""
    return {
        "hashes": names,
        "cache": worker.cache,
        "pages": worker.pages(pages),
        "separate": True,
        "deadline": PATIENCE,
    }


def test_separate_blocks_are_saved_and_loaded_without_those_before_them(worker):
    last = separately(worker, NAMES[5:], range(5, BLOCKS))
    assert worker.registration.begin_save_hashes(**last).result().saved == BLOCKS - 5
    # Those that are there are not saved again, wherever they stand.
    more = separately(worker, NAMES[3:], range(3, BLOCKS))
    saved = worker.registration.begin_save_hashes(**more).result()
    assert (saved.saved, saved.refusal) == (2, "none")
    worker.clear()
    loaded = worker.registration.begin_load_hashes(**last).result()
    assert (loaded.blocks, loaded.reason) == (BLOCKS - 5, "none")
    assert worker.has(1, range(5, BLOCKS))
    # A load ends at the first that is not there.
    assert (
        worker.registration.begin_load_hashes(**separately(worker, NAMES[2:], range(2, BLOCKS)))
        .result()
        .blocks
        == 0
    )


def test_each_group_of_layers_has_pages_of_its_own(client):
    """Blocks of layers in two groups, whose pages lie in the same array."""
    array = np.zeros((8, PAGE_BYTES), np.uint8)
    array[[0, 1]], array[[4, 5]] = 1, 2
    layers = [array] * LAYERS
    groups = [layer % 2 for layer in range(LAYERS)]
    whole = {"block_tokens": 8, "layer_bytes": PAGE_BYTES}
    with (
        kv.KvCache(layers, groups=groups) as cache,
        client.register(namespace(**whole), shard=0) as registration,
    ):
        saved = registration.begin_save_hashes(
            NAMES[:2], cache, [[0, 1], [4, 5]], deadline=PATIENCE
        )
        assert saved.result().saved == 2
        loaded = registration.begin_load_hashes(
            NAMES[:2], cache, [[7], [3]], first=1, deadline=PATIENCE
        )
        assert loaded.result().blocks == 1
        assert (array[7] == 1).all() and (array[3] == 2).all()
        assert not array[[2, 6]].any()
        with pytest.raises(ValueError, match="groups of pages for different blocks"):
            registration.begin_load_hashes(NAMES[:2], cache, [[7], [3, 2]], deadline=PATIENCE)
