"""A model of which some layers have a window, and some look at all tokens before them: two kinds of
blocks, of which a prompt is loaded as far as both allow. (Cold, whole, restarts: `test_equal`.)

Prompts whose loads end within a piece of what the engine computes are compared by their tokens.
"""

from __future__ import annotations

import os

import pytest
from engines import BLOCK, CHUNK, PROMPTS, WHOLE, counted, needs_gpus, prompts, same, until
from models import WINDOW

slow = pytest.mark.skipif(os.environ.get("VLLM_TESTS") != "all", reason="VLLM_TESTS=all")

#: Of a window, at a block's end: what the next token looks at.
NEEDED = -(-(WINDOW - 1) // BLOCK)
BLOCKS = 2 * CHUNK // BLOCK
#: Kinds in the order of their blocks' sizes.
KINDS = ["chain", "windows"]


def of_kind(sidecar, kind: str) -> list[dict]:
    """Its blocks, in the order in which they were written."""
    blocks = sidecar.blocks()
    sizes = sorted({block["stored_bytes"] for block in blocks})
    assert len(sizes) == len(KINDS)
    return [block for block in blocks if block["stored_bytes"] == sizes[KINDS.index(kind)]]


def test_prompts_shorter_and_longer_than_a_window_and_parts_of_them(engine, opened, plain):
    """And the null block, which stands in front of a window, is never written to."""
    lengths = [70, WINDOW, 150, 700]
    asked = [prompts(30 + length, length)[0] for length in lengths]
    # They go other ways where no prompt has ended: the first within a piece, the second behind one.
    parted = [asked[-1][:330] + prompts(31, 200)[0], asked[-1][:CHUNK] + prompts(32, 8)[0]]
    opened("windows")
    null = engine.ask("null_block")
    cold = engine.generate(asked)
    engine.ask("reset", connector=False)
    answer = engine.generate(asked + parted)
    expected = plain("windows", asked + parted)
    assert answer["tokens"] == expected["tokens"]
    assert cold["logprobs"] == expected["logprobs"][: len(asked)]
    assert answer["logprobs"][-1] == expected["logprobs"][-1]
    ends = [(length - 1) // BLOCK for length in lengths] + [330 // BLOCK, CHUNK // BLOCK]
    assert answer["cached"] == [end * BLOCK for end in ends]
    numbers = counted(engine)
    assert numbers["loaded_tokens"] == numbers["hits"] == sum(answer["cached"])
    assert numbers["loaded_blocks"] == sum(end + min(end, NEEDED) for end in ends)
    assert engine.ask("null_block") == null


@pytest.mark.parametrize(
    ("rotten", "asked_for", "loaded"),
    [
        ({"chain": 7}, BLOCKS + 7, 7),
        ({"windows": BLOCKS - 2}, BLOCKS + BLOCKS - 2, BLOCKS - 2),
        # The second of these is found by the second load, and there is no third.
        ({"chain": 7, "windows": 5}, BLOCKS + 7, 0),
    ],
)
def test_a_rotten_block_costs_what_lies_behind_it(
    engine, opened, sidecar, plain, rotten, asked_for, loaded
):
    asked = prompts(33, 2 * CHUNK + 8)
    opened("windows")
    engine.generate(asked)
    until(lambda: len(sidecar.blocks()) >= 2 * BLOCKS)
    for kind, block in rotten.items():
        sidecar.flip(of_kind(sidecar, kind)[block], 1234)
    engine.ask("reset", connector=False)
    answer = engine.generate(asked)
    assert answer["reasons"] == ["length"] and answer["cached"] == [loaded * BLOCK]
    assert answer["tokens"] == plain("windows", asked)["tokens"]
    numbers = counted(engine)
    # Nothing of a load that comes short counts; the next one asks for less.
    assert numbers["found_tokens"] == asked_for * BLOCK
    assert numbers.get("loaded_tokens", 0) == loaded * BLOCK
    assert numbers["missed_blocks"] > 0
    # It was saved anew.
    engine.ask("reset", connector=False)
    again = engine.generate(asked)
    expected, pieces = plain("windows", asked), loaded * BLOCK % CHUNK == 0
    assert again["cached"] == [2 * CHUNK] and same(again, expected, pieces=pieces)


def test_preempted_and_aborted_requests_leave_no_block_behind(engine, opened, plain):
    many = prompts(34, *[250] * 8)
    # Room for four until they are long: some are preempted.
    opened("windows", num_gpu_blocks_override=90, max_model_len=1024)
    answer = engine.generate(many, tokens=224, together=True)
    assert answer["tokens"] == plain("windows", many, tokens=224)["tokens"]
    assert engine.ask("metrics")["vllm:num_preemptions"] > 0
    blocks = engine.ask("blocks")
    assert blocks["free"] == blocks["all"]
    # Some of them while they are loaded.
    for steps in range(4):
        engine.ask("reset", connector=False)
        blocks = engine.ask("abort", prompt=many[steps], steps=steps)
        assert blocks["free"] == blocks["all"]
    again = engine.generate(many, tokens=224, together=True)
    assert again["tokens"] == answer["tokens"]


@slow
def test_a_sidecar_that_is_killed_costs_nothing_but_time(engine, opened, sidecar, plain):
    many = prompts(35, *[300] * 8, shared=96)
    expected = plain("windows", many)["tokens"]
    opened("windows")
    engine.generate(many)
    opened("windows")
    engine.begin("generate", prompts=many)
    until(lambda: "session begun" in sidecar.said())
    sidecar.kill()
    assert engine.result()["tokens"] == expected
    # Without one from the start.
    assert engine.generate(many)["tokens"] == expected


@slow
def test_ranks_load_their_shares(engines, models, sidecar):
    needs_gpus(2)
    engine, shape = engines(processes=True), {"tensor_parallel_size": 2}
    engine.open(models / "windows", **shape)
    cold = engine.generate(PROMPTS)
    engine.open(models / "windows", sidecar.address, **shape)
    assert same(engine.generate(PROMPTS), cold)
    until(lambda: len(sidecar.blocks()) >= 2 * 2 * BLOCKS)
    engine.open(models / "windows", sidecar.address, **shape)
    answer = engine.generate(PROMPTS)
    assert same(answer, cold) and answer["cached"] == WHOLE
    assert counted(engine)["loaded_tokens"] == sum(WHOLE)
    engine.close()
