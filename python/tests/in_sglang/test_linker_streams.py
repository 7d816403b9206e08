"""Passes of a GPU run behind the scheduler, on a stream of their own. RefrainLinker saves what they
will have written, loads into slots once no pass has them, and tells of a layer when its bytes are
there."""

from __future__ import annotations

import pytest
import torch
from pools import LAYERS, PAGE
from refrain_kv.sglang.copies import Plan
from workers import BUSY, GPUS, Worker, mamba, mha, mla, request, swa, tokens

pytest_plugins = ["servers", "workers"]
pytestmark = pytest.mark.skipif(not GPUS, reason="no GPU is named: REFRAIN_TEST_GPU=0")


@pytest.fixture
def pair(worker):
    """Makes two workers, one that saves and one that loads, and has each do so once: the first
    launch of a kernel waits for all that runs."""

    def make_both(make=mha) -> tuple[Worker, Worker]:
        here, there = worker(make), worker(make)
        here.compute(tokens(9, 2))
        assert all(here.offloaded())
        assert there.ask(tokens(9, 2))[0] == 2
        return here, there

    return make_both


@pytest.mark.parametrize("make", [mha, mla, swa, mamba])
def test_a_save_waits_for_the_pass_that_writes_its_slots(pair, make):
    here, there = pair(make)
    before = here.compute(tokens(1, 4))
    assert all(here.offloaded())
    loaded, after = there.ask(tokens(1, 4))
    assert loaded == 4
    assert after == {name: pages[-len(after[name]) :] for name, pages in before.items()}


@pytest.mark.parametrize("stream", ["forward", "scheduler"])
def test_a_load_waits_for_the_pass_that_still_writes_its_slots(pair, stream):
    """SGLang's scheduler frees the slots of a request that has ended while a pass runs that was
    begun before that was known, and has it still."""
    here, there = pair()
    before = here.compute(tokens(1, 4))
    assert all(here.offloaded())
    req = request(tokens(1, 4))
    there.match(req)
    assert there.load_back(req) == 4 * PAGE
    everything = torch.arange(PAGE, there.memory.pool.size + PAGE, device=req.loaded.device)
    on = there.forward_stream if stream == "forward" else torch.cuda.current_stream()
    there.fill_late({"kv": everything}, 8, on)
    assert there.forward(req) == []
    there.wait()
    assert there.landed(req) == before


def test_a_layer_is_told_of_when_its_bytes_are_there(pair, monkeypatch):
    here, there = pair()
    before = here.compute(tokens(1, 4))
    assert all(here.offloaded())
    copy = Plan.copy

    def late(plan: Plan, layer: int) -> None:
        torch.cuda._sleep(BUSY)
        copy(plan, layer)

    monkeypatch.setattr(Plan, "copy", late)
    req = request(tokens(1, 4))
    there.match(req)
    assert there.load_back(req) == 4 * PAGE
    counter, pages = there.linker.layer_done_counter, there.linker._pages["kv"]
    counter.set_consumer(there.tree.ready_to_load_host_cache())

    def bytes_of(layer: int) -> list[torch.Tensor]:
        buffers = [there.buffers()["kv"][piece] for piece in pages.pieces_of(layer)]
        return [buffer[req.loaded].view(torch.uint8).cpu() for buffer in buffers]

    seen = []
    for layer in range(LAYERS):
        counter.wait_until(layer)
        seen.append(bytes_of(layer))
    assert there.tree.finish_external_linker_loads([req]) == []
    assert there.landed(req) == before
    for layer, there_then in enumerate(seen):
        assert all(map(torch.equal, there_then, bytes_of(layer)))


def test_pages_land_in_memory_that_a_gpu_reads_by_itself(worker):
    here = worker()
    landings = here.linker._landing
    assert all(piece.is_pinned() for landing in landings for piece in landing.pieces)
    here.close()
    assert not any(piece.is_pinned() for landing in landings for piece in landing.pieces)
