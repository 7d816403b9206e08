"""A sidecar that dies, hangs or is absent costs RefrainLinker hits and never a request: what was
found has landed, and needs no sidecar any more; what is asked of it is a miss by the deadline."""

from __future__ import annotations

import signal
import time

import pytest
from conftest import PATIENCE
from pools import PAGE
from test_storage_absence import eventually
from workers import Worker, mamba, mha, request, swa, tokens

pytest_plugins = ["servers", "workers"]

DEADLINE = 0.5


def save_at_last(worker: Worker, ids: list[int]) -> dict[str, list[bytes]]:
    """As soon as the sidecar is there again."""
    there: dict[str, list[bytes]] = {}

    def is_saved() -> bool:
        worker.forget()
        there.update(worker.compute(ids))
        return all(worker.offloaded())

    eventually(is_saved)
    return there


@pytest.mark.parametrize("make", [mha, swa, mamba])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("when", ["found", "queued"])
def test_what_was_found_is_loaded_whatever_becomes_of_the_sidecar(
    worker, sidecar, make, number, when
):
    here, there = worker(make), worker(make)
    before = here.compute(tokens(1, 4))
    assert all(here.offloaded())
    req = request(tokens(1, 4))
    assert there.match(req).host_hit_length == 4 * PAGE
    if when == "queued":
        assert there.load_back(req) == 4 * PAGE
    if number == signal.SIGKILL:
        sidecar.kill()
    else:
        sidecar.stop()
    try:
        if when == "found":
            assert there.load_back(req) == 4 * PAGE
        assert there.forward(req) == []
        after = there.landed(req)
        assert after == {name: pages[-len(after[name]) :] for name, pages in before.items()}
    finally:
        if number == signal.SIGSTOP:
            sidecar.signal(signal.SIGCONT)


def test_what_was_found_is_right_after_the_sidecar_has_come_again_and_used_its_memory(
    worker, sidecar
):
    here, there = worker(), worker()
    before = here.compute(tokens(1, 4))
    assert all(here.offloaded())
    req = request(tokens(1, 4))
    there.match(req)
    sidecar.kill()
    sidecar.start()
    for seed in (2, 3):
        others = save_at_last(here, tokens(seed, 8))
        eventually(lambda: there.ask(tokens(seed, 8)) == (8, others))
    assert there.load_back(req) == 4 * PAGE and there.forward(req) == []
    assert there.landed(req) == {"kv": before["kv"]}


def test_a_hanging_sidecar_is_misses_by_the_deadline_and_no_failed_load(worker, sidecar):
    before = save_at_last(worker(), tokens(1, 4))
    there = worker(deadline=DEADLINE)
    eventually(lambda: there.match(request(tokens(1, 4))).host_hit_length)
    sidecar.stop()
    try:
        begun = time.monotonic()
        reqs = [request(tokens(1, 4)) for _ in range(100)]
        assert [there.match(req).host_hit_length for req in reqs] == [0] * 100
        # A hundred requests do not each wait for it: a call that was late is followed by a second
        # without any. A machine may be busy; what hangs takes forever.
        assert time.monotonic() - begun < PATIENCE
        assert there.load_back(reqs[0]) == 0 and there.forward(*reqs) == []
        there.compute(tokens(2, 4))
        assert there.offloaded() == [False]
    finally:
        sidecar.signal(signal.SIGCONT)
    eventually(lambda: there.ask(tokens(1, 4)) == (4, {"kv": before["kv"]}))


def test_a_sidecar_that_hangs_while_pages_land_is_a_miss(worker, sidecar, monkeypatch):
    here = worker()
    here.compute(tokens(1, 4))
    assert all(here.offloaded())
    there = worker(deadline=DEADLINE)
    rows = there.linker._landed._pools["kv"].landing.free
    find = there.linker._kept.find

    def then_it_hangs(*given) -> list[bool]:
        found = find(*given)
        sidecar.stop()
        return found

    monkeypatch.setattr(there.linker._kept, "find", then_it_hangs)
    req = request(tokens(1, 4))
    try:
        assert there.match(req).host_hit_length == 0
        assert there.load_back(req) == 0 and there.forward(req) == []
        assert there.linker._landed._pools["kv"].landing.free == rows
    finally:
        sidecar.signal(signal.SIGCONT)


def test_an_absent_sidecar_is_misses_until_it_comes(worker, sidecar):
    sidecar.kill()
    here = worker(deadline=DEADLINE)
    req = request(tokens(1, 3))
    assert here.match(req).host_hit_length == 0
    here.compute(tokens(1, 3))
    assert here.offloaded() == [False]
    sidecar.start()
    before = save_at_last(here, tokens(1, 3))
    there = worker()
    eventually(lambda: there.ask(tokens(1, 3)) == (3, before))
