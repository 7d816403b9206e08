"""The same with workers in processes of their own: one, and two that share each block."""

from __future__ import annotations

import os

import pytest
from engines import CHUNK, PROMPTS, WHOLE, needs_gpus, reuses, same, until

SHAPES = [("llama", 1), ("llama", 2)]
if os.environ.get("VLLM_TESTS") == "all":
    SHAPES.append(("mla", 2))


@pytest.mark.parametrize(("model", "ranks"), SHAPES)
def test_workers_load_what_workers_saved(engines, models, sidecar, model, ranks):
    needs_gpus(ranks)
    engine = engines(processes=True)
    shape = {"tensor_parallel_size": ranks}
    engine.open(models / model, **shape)
    cold = engine.generate(PROMPTS)
    engine.close()
    block = engine.open(models / model, sidecar.address, **shape)["block"]
    assert same(engine.generate(PROMPTS), cold, model)
    # One copy of a latent, a share of all else for each rank.
    copies = 1 if model == "mla" else ranks
    until(lambda: len(sidecar.blocks()) >= 2 * CHUNK // block * copies)
    engine.close()
    engine.open(models / model, sidecar.address, **shape)
    answer = engine.generate(PROMPTS)
    metrics = engine.ask("metrics")
    engine.close()
    assert same(answer, cold, model) and answer["cached"] == WHOLE
    # What the second prompt shares with the first is in the engine's own cache by then.
    tokens = sum(WHOLE) - (CHUNK if reuses(model) else 0)
    assert metrics["vllm:refrain_loaded_tokens"] == tokens
    assert metrics["vllm:refrain_loaded_blocks"] == tokens // block * ranks
