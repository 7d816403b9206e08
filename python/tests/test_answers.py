"""What a worker is told: misses and refused saves are answers, all else an exception with a stable
code; and a sidecar that goes away makes misses only."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import refrain_kv as kv
from conftest import LAYERS, PATIENCE, namespace, prompt
from test_caches import BLOCKS, Worker


@pytest.mark.parametrize(
    ("field", "empty", "named"),
    [
        ("tenant", "", "tenant"),
        ("model", "", "model"),
        ("weights", "", "weights"),
        ("config_digest", b"", "config_digest"),
        ("kv_dtype", "", "kv_dtype"),
        ("block_tokens", 0, "block_tokens"),
        ("groups", [], "groups"),
        ("tensor_parallel", 0, "parallel.tensor"),
    ],
)
def test_a_missing_namespace_field_is_refused_by_its_name(client, field, empty, named):
    with pytest.raises(kv.RefusedError, match=f"`{named}` is missing") as refused:
        client.register(namespace(**{field: empty}), shard=0)
    assert (refused.value.code, refused.value.retry) == ("invalid_argument", False)


def test_a_namespace_field_that_is_not_given_is_named():
    with pytest.raises(TypeError, match="weights"):
        kv.Namespace(tenant="one", model="two")
    with pytest.raises(ValueError, match='"key_value" nor "latent"'):
        namespace(layout="packed")


def test_a_block_of_other_bytes_than_registered_is_refused(client):
    with pytest.raises(kv.RefusedError, match="block"):
        client.register(namespace(), shard=0, block_bytes=1)


def test_an_arena_without_room_for_a_block_is_an_error_of_its_own(sidecar):
    with kv.Client(sidecar.address, session_arena_bytes=4096, deadline=PATIENCE) as client:
        with pytest.raises(kv.ArenaTooSmallError) as refused:
            client.register(namespace(), shard=0)
    assert (refused.value.code, refused.value.retry) == ("arena_too_small", False)


def test_a_sidecar_that_is_not_there_is_absent_and_a_text_that_is_no_address_is_refused(tmp_path):
    with kv.Client(f"unix:{tmp_path}/s") as client:
        with pytest.raises(kv.AbsentError, match="no sidecar at") as absent:
            client.connect()
    assert (absent.value.code, absent.value.retry) == ("absent", True)
    assert isinstance(absent.value, kv.RefrainError)
    again = pickle.loads(pickle.dumps(absent.value))
    assert (type(again), str(again), again.retry) == (kv.AbsentError, str(absent.value), True)
    with pytest.raises(kv.AddressError, match="write unix:PATH"):
        kv.Client("localhost:5000")
    assert issubclass(kv.AddressError, ValueError)


def test_the_environment_names_the_sidecar(sidecar, monkeypatch):
    monkeypatch.setenv("REFRAIN_ADDRESS", sidecar.address)
    with kv.Client() as client:
        client.register(namespace(), shard=0)


def test_a_save_that_the_drives_are_too_slow_for_is_refused_without_an_error(sidecars):
    # Room for one record: 1 MiB and its header.
    sidecar = sidecars('save_queue = "2MiB"\n')
    with kv.Client(sidecar.address, session_arena_bytes=64 << 20, deadline=PATIENCE) as client:
        worker, tokens = Worker(client), prompt(1, BLOCKS)
        saved = worker.save(tokens, 1, range(BLOCKS))
        assert (saved.offered, saved.saved, saved.refusal) == (1, 1, "busy")
        # The rest is taken by and by.
        while True:
            with worker.registration.lookup(tokens) as lookup:
                if lookup.matched_blocks == BLOCKS:
                    break
                rest = range(lookup.matched_blocks, BLOCKS)
                assert lookup.save_from(worker.cache, worker.pages(rest)).refusal in (
                    "none",
                    "busy",
                )
        worker.clear()
        with worker.registration.lookup(tokens) as lookup:
            assert lookup.load_into(worker.cache, worker.order).finish().blocks == BLOCKS
        assert worker.has(1, range(BLOCKS))


def test_a_sidecar_that_is_killed_in_the_middle_makes_misses_only(sidecar, client):
    worker, tokens = Worker(client), prompt(2, BLOCKS)
    worker.save(tokens, 2, range(BLOCKS), durable=True)
    worker.clear()
    lookup = worker.registration.lookup(tokens)
    other = worker.registration.lookup(prompt(3, 2))
    assert lookup.matched_blocks == BLOCKS
    # It does not answer any more when it is asked to load, and then it is gone.
    sidecar.stop()
    loading = lookup.begin_load_into(worker.cache, worker.pages(range(BLOCKS)))
    sidecar.kill()
    with loading.result() as load:
        assert load.layer(LAYERS - 1) == 0
        loaded = load.finish()
    assert loaded.blocks == 0 and loaded.reason != "none"
    saved = other.save_from(worker.cache, worker.pages(range(2)))
    assert (saved.offered, saved.saved, saved.refusal) == (0, 0, "unspecified")
    assert lookup.renew() is False
    assert lookup.release() is False
    assert worker.registration.lookup(tokens).absent
    with pytest.raises(kv.AbsentError):
        client.connect()
    sidecar.start()
    client.connect()
    with worker.registration.lookup(tokens) as lookup:
        assert lookup.matched_blocks == BLOCKS
        assert lookup.load_into(worker.cache, worker.pages(range(BLOCKS))).finish().blocks == BLOCKS
    assert worker.has(2, range(BLOCKS))


def test_answers_say_what_they_are(client):
    worker, tokens = Worker(client), prompt(4, 2)
    saved = worker.save(tokens, 4, range(2), durable=True)
    assert repr(saved) == 'Saved(offered=2, saved=2, refusal="none", durable=True)'
    with worker.registration.lookup(tokens) as lookup:
        assert lookup.expected_load >= 0
        assert lookup.renew(5)
        loaded = lookup.load_into(worker.cache, np.array(worker.pages(range(2)), np.int32)).finish()
        assert repr(loaded).startswith('Loaded(blocks=2, reason="none"')
        assert lookup.release() is True
