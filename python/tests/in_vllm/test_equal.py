"""With Refrain an engine says the same and computes less, over whatever becomes of the engine, the
sidecar and what is stored.

All digits of the log-probabilities are compared. They depend on which tokens a step computes
together, without Refrain too: so prompts are asked one by one, and end just behind the pieces in
which the engine computes them, where what is loaded ends as well. Elsewhere tokens are compared.
"""

from __future__ import annotations

import signal
import socket
import urllib.request

import pytest
from engines import (
    BLOCK,
    CHUNK,
    GPU,
    PROMPTS,
    SHARED,
    WHOLE,
    counted,
    prompts,
    reuses,
    same,
    until,
)


@pytest.mark.parametrize("model", ["llama", "mla", "windows"])
def test_cold_then_whole_then_after_restarts_of_both(engine, opened, sidecar, plain, model):
    expected = plain(model)
    opened(model)
    cold = engine.generate(PROMPTS)
    assert same(cold, expected, model) and cold["cached"][0] == 0
    opened(model)
    warm = engine.generate(PROMPTS)
    assert same(warm, expected, model) and warm["cached"] == WHOLE
    numbers = counted(engine)
    assert numbers["hits"] == numbers["loaded_tokens"] == numbers["found_tokens"]
    # What the second prompt shares with the first is in the engine's own cache by then.
    assert numbers["hits"] == sum(WHOLE) - (SHARED if reuses(model) else 0)
    sidecar.kill()
    sidecar.start()
    opened(model)
    warm = engine.generate(PROMPTS)
    assert same(warm, expected, model) and warm["cached"] == WHOLE


def test_what_the_engine_counts_is_what_the_sidecar_counts(engine, opened, sidecars, models, plain):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sidecar = sidecars(f'metrics = "127.0.0.1:{port}"\n')

    def sidecar_counts(name: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith(name))

    engine.open(models / "llama", sidecar.address)
    engine.generate(PROMPTS)
    engine.open(models / "llama", sidecar.address)
    answer = engine.generate(PROMPTS)
    numbers = counted(engine)
    engine.close()
    assert same(answer, plain("llama"))
    assert sidecar_counts("refrain_loaded_blocks_total") == numbers["loaded_blocks"]
    assert numbers["loaded_blocks"] * BLOCK == numbers["loaded_tokens"]
    assert numbers["loaded_tokens"] == sum(answer["cached"]) - SHARED
    assert sidecar_counts("refrain_missed_blocks_total") == numbers.get("missed_blocks", 0)


def test_a_prompt_that_goes_on_is_loaded_as_far_as_it_is_known(engine, opened, plain):
    [begun], [longer] = prompts(2, 300), prompts(2, 700)
    assert longer[:300] == begun
    opened()
    engine.generate([begun])
    opened()
    answer = engine.generate([longer])
    assert answer["cached"] == [300 // BLOCK * BLOCK]
    assert answer["tokens"] == plain("llama", [longer])["tokens"]
    # What was computed of it was saved too, and what was said.
    opened()
    longest = longer + answer["tokens"][0]
    assert engine.generate([[*longest, 5]])["cached"][0] == (len(longest) - 1) // BLOCK * BLOCK


def test_an_engine_says_the_same_before_its_sidecar_comes_and_after_it_dies(
    engine, opened, sidecar, plain
):
    cold = plain("llama")
    sidecar.kill()
    opened()
    answer = engine.generate(PROMPTS)
    assert same(answer, cold) and counted(engine)["absent"] >= 1
    sidecar.start()
    other = prompts(3, 400)
    # Until it has been found.
    seed = iter(range(100, 1000))
    until(lambda: engine.generate(prompts(next(seed), 100)) and sidecar.blocks())
    assert engine.generate(other)["cached"] == [0]
    opened()
    assert engine.generate(other)["cached"] == [399 // BLOCK * BLOCK]
    sidecar.kill()
    answer = engine.generate(PROMPTS)
    assert same(answer, cold)


def test_a_sidecar_that_dies_in_the_middle_costs_nothing_but_time(engine, opened, sidecar, plain):
    many = prompts(4, *[300] * 12, shared=96)
    cold = plain("llama", many)
    opened()
    engine.generate(many)
    opened()
    engine.begin("generate", prompts=many)
    until(lambda: "session begun" in sidecar.said())
    sidecar.kill()
    assert engine.result()["tokens"] == cold["tokens"]


def test_a_hanging_sidecar_is_waited_for_until_the_deadline(engine, opened, sidecar, plain):
    opened(extra={"lookup_deadline_ms": 50, "load_deadline_ms": 300, "save_deadline_ms": 300})
    before = engine.generate(prompts(5, 300))
    sidecar.stop()
    answer = engine.generate(PROMPTS, drain=False)
    sidecar.signal(signal.SIGCONT)
    assert answer["tokens"] == plain("llama")["tokens"] and before["cached"] == [0]
    # Each of them waits for a look-up; were it for the client's own deadline, it would be seconds.
    assert answer["seconds"] < len(PROMPTS) * 2.5
    numbers = counted(engine)
    assert numbers.get("absent", 0) >= 1, numbers


def test_a_rotten_block_is_computed(engine, opened, sidecar, plain):
    asked = prompts(6, 2 * CHUNK + 8)
    opened()
    engine.generate(asked)
    until(lambda: len(sidecar.blocks()) >= 2 * CHUNK // BLOCK)
    rotten = sidecar.blocks()[7]
    sidecar.kill()
    sidecar.flip(rotten, 1234)
    sidecar.start()
    opened()
    answer = engine.generate(asked)
    assert answer["reasons"] == ["length"]
    assert answer["tokens"] == plain("llama", asked)["tokens"]
    numbers = counted(engine)
    # All before it is loaded, and nothing behind it: by the load, or by a start that had to read it
    # since the kill came before its sync.
    assert numbers["loaded_tokens"] == 7 * BLOCK
    assert numbers.get("missed_blocks", 0) in (0, 2 * CHUNK // BLOCK - 7)
    # It was saved anew.
    opened()
    again = engine.generate(asked)
    assert again["cached"] == [2 * CHUNK]
    assert same(again, plain("llama", asked), pieces=False)


def test_salts_adapters_and_other_configs_find_nothing_of_each_other(
    engine, opened, models, sidecar, plain
):
    asked, whole = prompts(7, CHUNK + 8), CHUNK
    adapter = str(models / "adapter")
    opened(enable_lora=True)
    # A worker's session begins beside its first steps, and what these compute may not be kept.
    others = (prompts(seed, CHUNK) for seed in range(1000, 1100))
    while not sidecar.blocks():
        engine.generate(next(others))
    engine.generate(asked, salts=["one"])
    opened(enable_lora=True)
    assert engine.generate(asked, salts=["other"])["cached"] == [0]
    assert engine.generate(asked)["cached"] == [0]
    adapted = engine.generate(asked, adapter=adapter)
    assert adapted["cached"] == [0]
    expected = plain("llama", asked, {"enable_lora": True}, adapter=adapter)
    # On a GPU an adapter's kernels add up in any order, so that digits differ by themselves.
    assert adapted["tokens"] == expected["tokens"] and (GPU or same(adapted, expected))
    opened(enable_lora=True)
    assert engine.generate(asked, salts=["one"])["cached"] == [whole]
    assert engine.generate(asked, adapter=adapter)["cached"] == [whole]
    assert adapted["tokens"] != plain("llama", asked)["tokens"]
    stretched = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
    opened(hf_overrides=stretched)
    answer = engine.generate(asked)
    assert answer["cached"] == [0]
    assert same(answer, plain("llama", asked, {"hf_overrides": stretched}))
    opened("other")
    answer = engine.generate(asked)
    assert answer["cached"] == [0] and same(answer, plain("other", asked))
    opened(extra={"tenant": "another"})
    assert engine.generate(asked)["cached"] == [0]


def test_two_engines_share_a_sidecar(engine, engines, opened, models, sidecar, plain):
    opened()
    other = engines()
    other.open(models / "llama", sidecar.address)
    # At the same time, and both want to save.
    other.begin("generate", prompts=PROMPTS, together=True)
    mine, theirs = engine.generate(PROMPTS, together=True), other.result()
    assert mine["tokens"] == theirs["tokens"] == plain("llama")["tokens"]
    fresh = prompts(8, 500)
    engine.generate(fresh)
    assert other.generate(fresh)["cached"] == [499 // BLOCK * BLOCK]
    other.close()


def test_preempted_and_aborted_requests_leave_no_block_behind(engine, opened, plain):
    many = prompts(9, *[250] * 6)
    # Room for fewer than are asked for at once: some are preempted.
    opened(num_gpu_blocks_override=40, max_model_len=1024)
    answer = engine.generate(many, tokens=64, together=True)
    assert answer["tokens"] == plain("llama", many, tokens=64)["tokens"]
    assert engine.ask("metrics")["vllm:num_preemptions"] > 0
    blocks = engine.ask("blocks")
    assert blocks["free"] == blocks["all"]
    for steps in range(4):
        blocks = engine.ask("abort", prompt=prompts(10 + steps, 600)[0], steps=steps)
        assert blocks["free"] == blocks["all"]
    # Aborted while they are loaded.
    for steps in range(4):
        engine.ask("reset", connector=False)
        blocks = engine.ask("abort", prompt=many[steps], steps=steps)
        assert blocks["free"] == blocks["all"]
    again = engine.generate(many, tokens=64, together=True)
    assert again["tokens"] == answer["tokens"]


def test_a_reset_forgets_what_was_saved(engine, opened):
    asked = prompts(20, 300)
    whole = 299 // BLOCK * BLOCK
    opened()
    engine.generate(asked)
    assert engine.ask("reset", connector=False) == {"reset": True}
    assert engine.generate(asked)["cached"] == [whole]
    assert engine.ask("reset", connector=True) == {"reset": True}
    assert engine.generate(asked)["cached"] == [0]
    # What was saved since counts.
    assert engine.ask("reset", connector=False) == {"reset": True}
    assert engine.generate(asked)["cached"] == [whole]
    opened(extra={"keep_on_reset": True})
    assert engine.ask("reset", connector=True) == {"reset": True}
    assert engine.generate(asked)["cached"] == [whole]


def test_an_engine_that_has_slept_finds_nothing_from_before(engine, opened, plain):
    asked = prompts(22, 2 * CHUNK + 8)
    opened()
    engine.generate(asked)
    engine.ask("sleep")
    awake = engine.generate(asked)
    assert same(awake, plain("llama", asked)) and awake["cached"] == [0]
    # What was saved since counts.
    assert engine.ask("reset", connector=False) == {"reset": True}
    assert engine.generate(asked)["cached"] == [2 * CHUNK]
    opened(extra={"keep_on_reset": True})
    engine.ask("sleep")
    kept = engine.generate(asked)
    assert same(kept, plain("llama", asked)) and kept["cached"] == [2 * CHUNK]


def test_what_is_computed_on_kv_from_before_a_reset_is_not_saved(engine, opened):
    asked = prompts(21, 2 * CHUNK + 8)
    whole = [2 * CHUNK]
    opened()
    # A request has blocks, so that vLLM keeps them, and all others.
    assert engine.ask("reset_amid", prompt=asked[0]) == {"reset": False}
    for _ in range(2):
        assert engine.ask("reset", connector=False) == {"reset": True}
        assert engine.generate(asked)["cached"] == [0]
    # One that succeeds has it saved again.
    assert engine.ask("reset", connector=True) == {"reset": True}
    assert engine.generate(asked)["cached"] == [0]
    assert engine.ask("reset", connector=False) == {"reset": True}
    assert engine.generate(asked)["cached"] == whole


def test_a_reset_with_what_runs_that_vllm_refuses_for_a_save_costs_nothing(
    engine, opened, sidecar, plain
):
    asked = prompts(23, 2 * CHUNK + 8)
    opened(extra={"lookup_deadline_ms": 50, "save_deadline_ms": 500})
    engine.ask("begin_one", prompt=asked[0])
    sidecar.stop()
    answer = engine.ask("reset_running")
    sidecar.signal(signal.SIGCONT)
    assert "Failed to reset KV cache" in answer["said"]
    assert answer["tokens"] == plain("llama", asked, tokens=64)["tokens"][0]
    assert answer["free"] == answer["all"]
    assert engine.ask("reset", connector=True) == {"reset": True}


def test_no_request_fails_though_the_policy_says_so(opened, engine, models):
    assert opened()["policy"] == "recompute"
    assert "kv_load_failure_policy is now `recompute`" in engine.said()
