"""A sidecar that is absent, is killed or hangs, and one whose disk rots, cost SGLang hits and no
more: no call raises, or takes longer than its deadline."""

from __future__ import annotations

import signal
import time

from conftest import PATIENCE
from pools import fill, hashes, page, slots

pytest_plugins = ["storages"]

DEADLINE = 0.5


def misses(storage, keys) -> None:
    """Each call, and how long all of them may take when each waits for its deadline."""
    begun = time.monotonic()
    assert storage.batch_exists(keys) == 0
    assert storage.batch_get_v1(keys, slots(*range(len(keys)))) == [False] * len(keys)
    assert storage.batch_set_v1(keys, slots(*range(len(keys)))) == [False] * len(keys)
    assert not storage.exists(keys[0])
    # A machine may be busy; what hangs takes forever.
    assert time.monotonic() - begun < PATIENCE


def eventually(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_absent_sidecar_is_misses_until_it_comes(attach, sidecar):
    sidecar.kill()
    storage, pool = attach(deadline=DEADLINE)
    fill(pool, 1)
    keys = hashes(1, 2)
    misses(storage, keys)
    sidecar.start()
    eventually(lambda: all(storage.batch_set_v1(keys, slots(0, 1))))
    eventually(lambda: storage.batch_exists(keys) == 2)


def test_a_killed_sidecar_is_misses_and_afterwards_has_what_it_had(attach, sidecar):
    storage, pool = attach()
    fill(pool, 1)
    keys, before = hashes(1, 2), page(pool, 0)
    assert all(storage.batch_set_v1(keys, slots(0, 1)))
    sidecar.kill()
    misses(storage, hashes(2, 2))
    sidecar.start()
    eventually(lambda: storage.batch_exists(keys) == 2)
    fill(pool, 2)
    assert all(storage.batch_get_v1(keys, slots(0, 1)))
    assert page(pool, 0) == before


def test_a_hanging_sidecar_is_misses_by_the_deadline(attach, sidecar):
    storage, pool = attach(deadline=DEADLINE)
    fill(pool, 1)
    keys, before = hashes(1, 2), page(pool, 0)
    eventually(lambda: all(storage.batch_set_v1(keys, slots(0, 1))))
    sidecar.stop()
    try:
        misses(storage, keys)
    finally:
        sidecar.signal(signal.SIGCONT)
    eventually(lambda: storage.batch_exists(keys) == 2)
    fill(pool, 2)
    eventually(lambda: all(storage.batch_get_v1(keys, slots(0, 1))))
    assert page(pool, 0) == before


def test_a_rotten_page_is_a_miss_and_can_be_saved_again(attach, sidecar):
    storage, pool = attach()
    fill(pool, 1)
    keys, before = hashes(1, 3), [page(pool, number) for number in range(3)]
    assert all(storage.batch_set_v1(keys, slots(0, 1, 2)))
    # What was read from disk is in the host tier then: nothing has been read yet.
    sidecar.flip(sidecar.blocks()[1], 100)
    fill(pool, 2)
    assert storage.batch_get_v1(keys, slots(0, 1, 2)) == [True, False, False]
    assert page(pool, 0) == before[0]
    fill(pool, 1)
    eventually(lambda: all(storage.batch_set_v1(keys, slots(0, 1, 2))))
    fill(pool, 2)
    assert all(storage.batch_get_v1(keys, slots(0, 1, 2)))
    assert [page(pool, number) for number in range(3)] == before
