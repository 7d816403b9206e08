"""The server's own arguments name weights and config: what computes other KV has no hit."""

from __future__ import annotations

import pytest
from pools import config, hashes, mha, slots
from refrain_kv.sglang import RefrainStorage
from refrain_kv.sglang.identity import UnknownFieldError

pytest_plugins = ["servers", "storages"]


def test_only_the_same_weights_and_config_have_hits(attach, serve):
    told = {"weights": None, "config": None}
    keys = hashes(1, 2)
    serve()
    assert all(attach(**told)[0].batch_set_v1(keys, slots(0, 1)))
    serve()
    assert attach(**told)[0].batch_exists(keys) == 2
    for commit, model, arguments in (
        ("b" * 40, {}, {}),
        ("a" * 40, {"rope_theta": 50000.0}, {}),
        ("a" * 40, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {}),
        ("a" * 40, {}, {"json_model_override_args": '{"rope_theta": 50000.0}'}),
        ("a" * 40, {}, {"quantization": "fp8"}),
    ):
        serve(commit, model, **arguments)
        assert attach(**told)[0].batch_exists(keys) == 0, (commit, model, arguments)


def test_weights_without_a_commit_are_refused(sidecar, serve):
    serve(commit=None)
    with pytest.raises(UnknownFieldError, match="`weights`"):
        RefrainStorage(config(sidecar.address, weights=None), {})


def test_bytes_have_the_type_that_the_server_names(attach, serve):
    import torch

    serve(kv_cache_dtype="fp8_e4m3")
    storage, _ = attach(mha(dtype=torch.uint8))
    keys = hashes(1, 1)
    assert all(storage.batch_set_v1(keys, slots(0)))
    serve(kv_cache_dtype="fp8_e5m2")
    assert attach(mha(dtype=torch.uint8))[0].batch_exists(keys) == 0
