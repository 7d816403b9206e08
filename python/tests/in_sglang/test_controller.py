"""SGLang's own cache controller backs prompts up and fetches them again through RefrainStorage, in
host memory of both modes, with its threads and its limits; detaching leaves nothing under way."""

from __future__ import annotations

import itertools
import tempfile
import threading

import pytest
import torch
from pools import PAGE, TOKENS, config, fill, hashes, mha, mla, page, slots
from sglang.srt.managers.cache_controller import HiCacheController
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.runtime_context import get_parallel

PATIENCE = 30.0
ONE_RANK = {
    "tp_rank": 0,
    "tp_size": 1,
    "pp_rank": 0,
    "pp_size": 1,
    "dp_size": 1,
    "attn_tp_rank": 0,
    "attn_tp_size": 1,
    "attn_dp_rank": 0,
    "attn_dp_size": 1,
    "attn_dcp_rank": 0,
    "attn_dcp_size": 1,
}


@pytest.fixture(scope="module")
def group():
    with tempfile.TemporaryDirectory() as home:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{home}/store", rank=0, world_size=1
        )
        with get_parallel().override(**ONE_RANK):
            yield torch.distributed.group.WORLD
        torch.distributed.destroy_process_group()


@pytest.fixture
def controller(sidecar, group):
    made = []

    def make(pool, address=sidecar.address, mode="cache", **extra) -> HiCacheController:
        device = pool.device_pool
        allocator = PagedTokenToKVPoolAllocator(TOKENS, PAGE, pool.dtype, "cpu", device, False)
        made.append(
            HiCacheController(
                allocator,
                pool,
                PAGE,
                group,
                threading.Event(),
                io_backend="direct",
                storage_backend="dynamic",
                model_name="tiny",
                storage_backend_extra_config=config(address, **extra).extra_config,
                host_memory_mode=mode,
            )
        )
        return made[-1]

    yield make
    for it in made:
        it.detach_storage_backend()


def tokens(seed: int, pages: int) -> list[int]:
    return [seed * 10_000 + token for token in range(pages * PAGE)]


def back_up(controller, seed: int, numbers: range) -> int:
    """Tokens that SGLang counts as backed up."""
    keys = hashes(seed, len(numbers))
    controller.write_storage(slots(*numbers), tokens(seed, len(numbers)), keys)
    return controller.ack_backup_queue.get(timeout=PATIENCE).completed_tokens


def fetch(controller, seed: int, pages: int, into: int) -> int:
    """Tokens that came into the pages from `into` on, as the scheduler has it done."""
    controller.prefetch(f"request {seed}", tokens(seed, pages))
    operation = controller.prefetch_hit_queue.get(timeout=PATIENCE)
    found = operation.storage_hit_count // PAGE
    if not found:
        return 0
    operation.host_indices = slots(*range(into, into + found))
    controller.prefetch_buffer.put(operation)
    completed = 0
    for _ in itertools.count():
        ack = controller.ack_prefetch_queue.get(timeout=PATIENCE)
        if ack.completed_req:
            return completed
        completed = ack.completed_tokens


@pytest.mark.parametrize("mode", ["cache", "buffer_only"])
@pytest.mark.parametrize("zero_copy", [0, 1])
@pytest.mark.parametrize("make", [mha, mla])
def test_prompts_are_backed_up_and_fetched_again(controller, make, zero_copy, mode):
    pool = make()
    fill(pool, 1)
    before = [page(pool, number) for number in range(6)]
    assert back_up(controller(pool, interface_v1=zero_copy), 1, range(6)) == 6 * PAGE

    other = make()
    again = controller(other, interface_v1=zero_copy, mode=mode)
    # It goes on behind what is kept.
    assert fetch(again, 1, 8, into=7) == 6 * PAGE
    assert [page(other, number) for number in range(7, 13)] == before
    assert fetch(again, 2, 3, into=0) == 0


def test_an_absent_sidecar_costs_the_controller_hits_alone(controller, sidecar):
    pool = mha()
    here = controller(pool, deadline=0.5)
    sidecar.kill()
    assert back_up(here, 1, range(2)) == 0
    assert fetch(here, 1, 2, into=0) == 0


def test_what_is_damaged_ends_what_is_fetched(controller, sidecar):
    pool = mha()
    fill(pool, 1)
    here = controller(pool)
    assert back_up(here, 1, range(5)) == 5 * PAGE
    sidecar.flip(sidecar.blocks()[3], 100)
    assert fetch(here, 1, 5, into=8) == 3 * PAGE
    assert [page(pool, 8 + number) for number in range(3)] == [page(pool, it) for it in range(3)]
