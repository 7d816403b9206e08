"""What vLLM's CPU pool drops, the tier brings back, byte for byte, also after the engine's restart;
another deployment's, a rotten or an absent sidecar's blocks are misses; and no call makes the
scheduler wait."""

from __future__ import annotations

import signal
import time

import pytest
from refrain_kv.vllm.shim import minor
from refrain_kv.vllm.tier import UnknownFieldError
from tier_engine import PATIENCE, ROWS, Engine, keys, tier
from vllm.v1.kv_offload.base import LookupResult


@pytest.fixture
def engine(sidecar):
    engines = []

    def make(address=sidecar.address, groups=1, rows=ROWS, model=None, **more) -> Engine:
        engines.append(Engine(tier(address, **more), groups=groups, rows=rows, **(model or {})))
        return engines[-1]

    yield make
    for it in engines:
        it.close()


def eventually(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_blocks_come_back_after_the_engines_restart(engine):
    engine().store(keys(1, 10))
    assert engine().load(keys(1, 10) + keys(2, 2)) == [True] * 10 + [False] * 2


def test_blocks_that_the_pool_dropped_come_back(engine):
    one = engine(rows=8)
    for seed in range(4):
        one.store(keys(seed, 8))
    for seed in range(4):
        assert one.load(keys(seed, 8)) == [True] * 8


def test_two_engines_share_a_sidecar(engine):
    one, other = engine(), engine()
    one.store(keys(1, 4))
    other.store(keys(2, 4))
    assert one.load(keys(2, 4)) == other.load(keys(1, 4)) == [True] * 4


def test_each_group_has_blocks_of_its_own(engine):
    engine(groups=2).store(keys(1, 3, group=0) + keys(1, 2, group=1))
    found = engine(groups=2).load(keys(1, 3, group=0) + keys(1, 3, group=1))
    assert found == [True] * 3 + [True, True, False]


@pytest.mark.parametrize(
    "differs",
    [
        {"weights": "seed 2"},
        {"config": "other rope"},
        {"salt": "b"},
        {"tenant": "b"},
        {"model": {"dtype": "float16"}},
        {"model": {"name": "b"}},
    ],
    ids=str,
)
def test_another_deployment_has_no_hit(engine, differs):
    engine().store(keys(1, 2))
    assert engine().load(keys(1, 2)) == [True, True]
    assert engine(**differs).load(keys(1, 2)) == [False, False]


@pytest.mark.parametrize("field", ["weights", "config"])
def test_a_field_that_nobody_knows_is_refused_by_its_name(engine, field):
    with pytest.raises(UnknownFieldError, match=f"`{field}`"):
        engine(**{field: None})


def test_a_rotten_block_is_a_miss_and_those_before_it_are_kept(engine, sidecar):
    engine().store(keys(1, 4))
    sidecar.flip(sidecar.blocks()[2], 100)
    other = engine()
    assert other.load(keys(1, 4)) == [True, True, False, False]
    # Those behind it are whole, and asked for again they come.
    assert other.load(keys(1, 4)) == [True, True, False, True]


def test_an_absent_sidecar_is_misses_until_it_comes(engine, sidecar):
    sidecar.kill()
    one = engine(lookup_deadline=0.5, deadline=0.5)
    one.store(keys(1, 2))
    assert engine().load(keys(1, 2)) == [False, False]
    sidecar.start()

    def is_kept() -> bool:
        other = engine(lookup_deadline=PATIENCE)
        other.store(keys(2, 2))
        return engine(lookup_deadline=PATIENCE).load(keys(2, 2)) == [True, True]

    eventually(is_kept)


def test_a_killed_sidecar_is_misses_and_afterwards_has_what_it_had(engine, sidecar):
    one = engine()
    one.store(keys(1, 2))
    sidecar.kill()
    other = engine()
    assert other.load(keys(1, 2)) == [False, False]
    other.store(keys(2, 2))
    sidecar.start()
    eventually(lambda: engine().load(keys(1, 2)) == [True, True])


def test_a_hanging_sidecar_never_makes_the_scheduler_wait(engine, sidecar):
    one = engine(lookup_deadline=0.5, deadline=0.5)
    one.store(keys(1, 4))
    other = engine(lookup_deadline=0.5, deadline=0.5)
    eventually(lambda: engine().load(keys(1, 1)) == [True])
    sidecar.stop()
    try:
        context, slowest = other.request(), 0.0
        verdicts = set()
        end = time.monotonic() + PATIENCE
        while LookupResult.MISS not in verdicts:
            assert time.monotonic() < end
            begun = time.monotonic()
            verdicts.add(other.tier.lookup(keys(1, 1)[0], context))
            other.step()
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(0.01)
        assert LookupResult.HIT not in verdicts
        begun = time.monotonic()
        wanted = other.manager.prepare_store(keys(2, 4), context)
        other.manager.complete_store(wanted.keys_to_store, context)
        assert max(slowest, time.monotonic() - begun) < PATIENCE / 10
        other.finish(context)
    finally:
        sidecar.signal(signal.SIGCONT)


def test_a_store_too_many_is_given_up_at_once(engine, sidecar):
    """Rows that wait to be stored cannot be used; so their number is bounded."""
    one = engine(deadline=1.0)
    sidecar.stop()
    try:
        for seed in range(100):
            context = one.request()
            wanted = one.manager.prepare_store(keys(seed, 1), context)
            if wanted is not None:
                one.manager.complete_store(wanted.keys_to_store, context)
            one.manager.on_request_finished(context)
            one.step()
    finally:
        sidecar.signal(signal.SIGCONT)
    one.settle()
    one.manager.reset_cache()


@pytest.mark.parametrize("version", ["0.30.2", "0.34.0", "1.0.0", "dev"])
def test_other_versions_are_refused_by_their_name(version):
    with pytest.raises(ImportError, match=f"0.31 to 0.33, and this is {version}"):
        minor(version)


@pytest.mark.parametrize("version", ["0.31.0", "0.32.0", "0.33.1.dev3"])
def test_these_are_taken(version):
    assert minor(version) == (0, int(version[2:4]))
