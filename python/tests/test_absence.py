"""A sidecar that is absent, comes, hangs or goes is nobody's error: look-ups miss and saves are
refused, at once while it is absent, by their deadline while it hangs; and they work again by
themselves."""

from __future__ import annotations

import signal
import time

import pytest
import refrain_kv as kv
from conftest import LAYERS, PATIENCE, namespace, prompt
from test_caches import BLOCKS, Worker


@pytest.fixture
def waiting(sidecar):
    """A client that was made before its sidecar came."""
    sidecar.kill()
    with kv.Client(sidecar.address, session_arena_bytes=16 << 20, deadline=PATIENCE) as client:
        yield client


def until_connected(client: kv.Client) -> None:
    """Without asking: it comes by itself."""
    end = time.monotonic() + PATIENCE
    while not client.connected:
        assert time.monotonic() < end
        time.sleep(0.01)


def check_absent(worker: Worker, tokens) -> None:
    """Answers, each of them a miss."""
    with worker.registration.lookup(tokens) as lookup:
        assert lookup.absent
        assert (lookup.prompt_blocks, lookup.matched_blocks) == (BLOCKS, 0)
        assert (lookup.tiers, lookup.expected_load) == ([], 0)
        with lookup.load_into(worker.cache, []) as load:
            assert load.layers_on_their_way == LAYERS
            assert [load.layer(layer) for layer in range(LAYERS)] == [0] * LAYERS
            loaded = load.finish()
        assert (loaded.blocks, loaded.reason) == (0, "unspecified")
        with pytest.raises(kv.BlocksOutOfRangeError):
            lookup.load_into(worker.cache, worker.pages(range(1)))
        saved = lookup.save_from(worker.cache, worker.pages(range(BLOCKS)))
        assert (saved.offered, saved.saved, saved.refusal) == (0, 0, "unspecified")
        with pytest.raises(kv.BlocksOutOfRangeError):
            lookup.save_from(worker.cache, worker.pages(range(BLOCKS)), first=1)
        assert lookup.renew() is False
        assert lookup.release() is False


def test_a_client_may_be_there_before_its_sidecar(sidecar, waiting):
    worker, tokens = Worker(waiting), prompt(1, BLOCKS)
    assert not waiting.connected
    check_absent(worker, tokens)
    with pytest.raises(kv.AbsentError):
        assert worker.registration.layers_per_stripe
    sidecar.start()
    until_connected(waiting)
    assert worker.save(tokens, 1, range(BLOCKS), durable=True).saved == BLOCKS
    assert worker.registration.layers_per_stripe == 2


def test_a_client_outlives_its_sidecars(sidecar, client):
    worker, tokens = Worker(client), prompt(2, BLOCKS)
    assert worker.save(tokens, 2, range(BLOCKS), durable=True).saved == BLOCKS
    for _ in range(3):
        sidecar.kill()
        check_absent(worker, tokens)
        sidecar.start()
        until_connected(client)
        worker.clear()
        with worker.registration.lookup(tokens) as lookup:
            assert not lookup.absent
            loaded = lookup.load_into(worker.cache, worker.pages(range(BLOCKS))).finish()
            assert loaded.blocks == BLOCKS and lookup.release()
        assert worker.has(2, range(BLOCKS))


def test_what_a_sidecar_minds_is_said_when_it_comes(sidecar, waiting):
    registration = waiting.register(namespace(weights=""), shard=0)
    assert registration.lookup(prompt(3, 1)).absent
    sidecar.start()
    until_connected(waiting)
    with pytest.raises(kv.RefusedError, match="`weights` is missing"):
        registration.lookup(prompt(3, 1))


def test_a_sidecar_that_hangs_is_waited_for_until_the_deadline_only(sidecar, client):
    worker, tokens = Worker(client), prompt(4, BLOCKS)
    worker.save(tokens, 4, range(BLOCKS), durable=True)
    sidecar.stop()
    # If these waited for the client's own deadline, the second one would find its end.
    for lookup in (
        lambda: worker.registration.lookup(tokens, deadline=0.05),
        lambda: worker.registration.begin_lookup(tokens, deadline=0.05).result(PATIENCE / 2),
        lambda: worker.registration.lookup_hashes([bytes(32)], deadline=0.05),
    ):
        assert lookup().absent
    sidecar.signal(signal.SIGCONT)
    with worker.registration.lookup(tokens) as lookup:
        assert lookup.matched_blocks == BLOCKS
