"""What an engine has on a GPU alone: memory that it gives back while it sleeps, and a pool in the
host's memory, with `RefrainTier` behind it."""

from __future__ import annotations

import pytest
from engines import BLOCK, CHUNK, GPU, prompts, same, until

pytestmark = pytest.mark.skipif(GPU is None, reason="no GPU is named: REFRAIN_TEST_GPU=0")

PROMPTS = prompts(30, 2 * CHUNK + 8, CHUNK + 8, 10, shared=CHUNK)
WHOLE = [2 * CHUNK, CHUNK, 0]


@pytest.fixture
def plain(engine, models):
    """What an engine without Refrain says."""
    engine.open(models / "llama")
    answer = engine.generate(PROMPTS)
    engine.close()
    return answer


@pytest.fixture
def tiered(engine, models, sidecar):
    """Opens an engine with vLLM's own pool of a few blocks, and Refrain behind it."""
    behind = {
        "type": "RefrainTier",
        "module_path": "refrain_kv.vllm.tier",
        "address": sidecar.address,
        "weights": "seed 1",
        "config": "as in the repository",
        "session_arena_bytes": 16 << 20,
        # As for the connector: a late answer is a miss, which is no matter here.
        "lookup_deadline": 10.0,
    }

    def open_() -> None:
        transfer = {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {
                "spec_name": "TieringOffloadingSpec",
                "cpu_bytes_to_use": 64 << 20,
                "secondary_tiers": [behind],
            },
        }
        engine.open(models / "llama", kv_transfer_config=transfer)

    yield open_
    engine.close()


def test_an_engine_that_slept_says_the_same(engine, models, sidecar, plain):
    for keep, cached in ((False, [0, CHUNK, 0]), (True, WHOLE)):
        engine.open(
            models / "llama", sidecar.address, enable_sleep_mode=True, extra={"keep_on_reset": keep}
        )
        engine.generate(PROMPTS)
        assert engine.ask("sleep")["given_back"] > 0
        answer = engine.generate(PROMPTS)
        engine.close()
        # Unless it was told otherwise, it may have other weights now.
        assert same(answer, plain) and answer["cached"] == cached


def test_what_vllms_own_pool_lost_comes_from_the_tier_behind_it(engine, tiered, sidecar, plain):
    tiered()
    cold = engine.generate(PROMPTS)
    assert same(cold, plain) and cold["cached"][0] == 0
    until(lambda: len(sidecar.blocks()) >= 2 * CHUNK // BLOCK)
    # Another engine has another pool.
    tiered()
    warm = engine.generate(PROMPTS)
    assert same(warm, plain) and warm["cached"] == WHOLE
    sidecar.kill()
    sidecar.start()
    tiered()
    warm = engine.generate(PROMPTS)
    assert same(warm, plain) and warm["cached"] == WHOLE
