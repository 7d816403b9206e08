"""With Refrain an engine says the same, digit for digit, and computes less."""

from __future__ import annotations

import pytest
from engines import prompts, same

#: The second shares its first half with the first; the third is shorter than a block.
PROMPTS = prompts(1, 600, 500, 20, shared=256)


@pytest.fixture(scope="module")
def plain(engine, models) -> dict:
    """What engines without Refrain say."""
    answers = {}
    for model in ("llama", "mla"):
        engine.open(models / model)
        answers[model] = engine.generate(PROMPTS)
        engine.close()
    return answers


@pytest.mark.parametrize("model", ["llama", "mla"])
def test_a_restarted_engine_finds_what_was_saved(engine, models, sidecar, plain, model):
    block = engine.open(models / model, sidecar.address)["block"]
    cold = engine.generate(PROMPTS)
    assert same(cold, plain[model])
    engine.close()
    engine.open(models / model, sidecar.address)
    warm = engine.generate(PROMPTS)
    metrics = engine.ask("metrics")
    engine.close()
    assert same(warm, plain[model])
    assert warm["cached"] == [(len(it) - 1) // block * block for it in PROMPTS]
    print(metrics)
