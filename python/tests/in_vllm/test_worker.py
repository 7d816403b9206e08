"""A worker's saves of one request, one behind the other: they have one deadline, and are saved
under the name that they had when they were ordered, or not at all."""

from __future__ import annotations

import hashlib
import signal

import pytest
import torch
from engines import until
from refrain_kv.vllm.identity import Identity
from refrain_kv.vllm.kinds import Kind
from refrain_kv.vllm.metadata import Move, Orders, Save
from refrain_kv.vllm.settings import Settings
from refrain_kv.vllm.worker import Worker

LAYERS, BLOCKS = 2, 8
NAMES = [hashlib.sha256(bytes([block])).digest() for block in range(BLOCKS)]


@pytest.fixture
def caches():
    return {f"layer.{layer}": torch.zeros(BLOCKS, 1024) for layer in range(LAYERS)}


@pytest.fixture
def worker(sidecar, caches, request):
    """Of the only rank; saves are kept for three seconds, unless the test says otherwise."""
    deadline = getattr(request, "param", 3000)
    settings = Settings.read({"address": sidecar.address, "save_deadline_ms": deadline})
    worker = Worker(settings, [Kind(block_tokens=16)], BLOCKS, 0, True)
    worker.takes(caches, {})
    worker.begin_loads(Orders([identity(worker)]))
    yield worker
    worker.close()


def identity(worker: Worker, salt: bytes = b"") -> Identity:
    [shape] = worker.facts.shapes
    return Identity(
        tenant="tests",
        model="tiny",
        weights="seed 1",
        config_digest=b"config",
        kv_dtype=shape.kv_dtype,
        block_tokens=16,
        layers=LAYERS,
        layer_bytes=shape.layer_bytes,
        latent=False,
        tensor_parallel=1,
        salt=salt,
    )


def save(block: int) -> Save:
    """Of one block of the same request, numbered like it."""
    return Save("request", NAMES[: block + 1], block, [[block]], 0, block)


def reported(worker: Worker) -> set[int]:
    """What the next report says that says anything."""
    reports = []
    until(lambda: reports.append(worker.report()) or reports[-1])
    return set(reports[-1].saves)


def test_saves_that_wait_for_one_that_hangs_end_with_it(worker, sidecar):
    worker.begin_saves(Orders(saves=[save(0)]))
    assert reported(worker) == {0}
    sidecar.stop()
    worker.begin_saves(Orders(saves=[save(block) for block in range(1, 5)]))
    assert reported(worker) == {1, 2, 3, 4}


def test_saves_that_wait_when_the_names_change_are_not_saved_under_the_new_ones(worker, sidecar):
    worker.begin_saves(Orders(saves=[save(0)]))
    assert reported(worker) == {0}
    sidecar.stop()
    worker.begin_saves(Orders(saves=[save(1), save(2)]))
    worker.begin_loads(Orders([identity(worker, salt=b"after a reset")]))
    # The first of them is under way still.
    assert reported(worker) == {2}
    sidecar.signal(signal.SIGCONT)
    assert reported(worker) == {1}


@pytest.mark.parametrize("worker", [30_000], indirect=True)
def test_a_worker_touches_no_memory_that_it_gave_back(worker, sidecar, caches):
    for layer, tensor in enumerate(caches.values()):
        tensor[0] = layer + 1
    worker.begin_saves(Orders(saves=[save(0)]))
    assert reported(worker) == {0}
    worker.give_back()
    worker.begin_loads(Orders(loads=[Move("asleep", NAMES[:1], 0, [[3]], 0)]))
    worker.begin_saves(Orders(saves=[save(1)]))
    assert reported(worker) == {1}
    assert worker.loaded() == {"asleep"} and worker.lost() == {3}
    assert len(sidecar.blocks()) == 1
    worker.take_again()
    worker.begin_loads(Orders(loads=[Move("awake", NAMES[:1], 0, [[3]], 0)]))
    until(lambda: worker.loaded() == {"awake"})
    assert worker.lost() == set()
    for layer, tensor in enumerate(caches.values()):
        assert (tensor[3] == layer + 1).all()
