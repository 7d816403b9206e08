"""RefrainLinker in SGLang's own radix tree, over its own pools: what was offloaded is loaded again,
byte for byte, by a worker that starts later; found is what has landed, and only that; what is never
loaded holds nothing."""

from __future__ import annotations

import json
import subprocess
import threading

import pytest
import torch
from conftest import PATIENCE, REFRAIN
from pools import PAGE, hashes
from refrain_kv.sglang import device_pools, landed
from refrain_kv.sglang.copies import Plan
from refrain_kv.sglang.kept import KeptPools
from refrain_kv.sglang.landing import LandingFullError
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer
from test_storage_absence import eventually
from workers import LAYERS, Worker, dsa, mamba, mamba_mla, mha, mla, request, swa, tokens

pytest_plugins = ["servers", "workers"]

#: Of `mha`: keys and values of 16 tokens, two heads of 32 numbers of two bytes, three layers.
PAGE_BYTES = 2 * PAGE * 2 * 32 * 2 * LAYERS
#: A state that stands, or a window that lies, at the end.
TRAILING = PoolHitPolicy.TRAILING_PAGES


def stat(sidecar) -> dict:
    asked = subprocess.run(
        [REFRAIN, "stat", "--json", "--addr", sidecar.address], check=True, capture_output=True
    )
    return json.loads(asked.stdout)["running"]


def saved(worker: Worker, ids: list[int]) -> dict[str, list[bytes]]:
    there = worker.compute(ids)
    assert all(worker.offloaded())
    return there


def free(worker: Worker) -> dict[str, int]:
    """Rows of each pool where something could land, once no copy is under way."""
    worker.linker._copies.wait()
    return {name: it.landing.free for name, it in worker.linker._landed._pools.items()}


@pytest.mark.parametrize("make", [mha, mla, swa, mamba, mamba_mla, dsa])
def test_what_was_offloaded_is_loaded_by_a_worker_that_starts_later(worker, sidecar, make):
    here = worker(make)
    ids = tokens(1, 6 * here.memory.page // PAGE)
    assert here.ask(ids) == (0, {})
    before = saved(here, ids)
    here.close()
    sidecar.kill()
    sidecar.start()
    there = worker(make)
    rows = free(there)
    loaded, after = there.ask(ids + tokens(2, 4))
    assert loaded == 6
    # A window has as many pages, a state is one.
    sizes = {"kv": 6, "swa": 2, "mamba": 1, "indexer": 6}
    assert {name: len(pages) for name, pages in after.items()}.items() <= sizes.items()
    assert after == {name: pages[-sizes[name] :] for name, pages in before.items()}
    assert free(there) == rows


@pytest.mark.parametrize("make", [mha, mla])
def test_no_slot_is_written_but_those_of_the_load(worker, make):
    saved(worker(make), tokens(1, 3))
    there = worker(make)
    everything = torch.arange(PAGE, there.memory.pool.size + PAGE)
    there.fill("kv", everything, 9)
    before = there.bytes_at("kv", everything)
    req = request(tokens(1, 3))
    there.match(req)
    assert there.load_back(req) == 3 * PAGE and there.forward(req) == []
    after = there.bytes_at("kv", everything)
    pages = {int(slot) // PAGE - 1 for slot in req.loaded[::PAGE]}
    assert {number for number, it in enumerate(after) if it != before[number]} == pages


def test_after_a_reset_of_the_tree_what_was_offloaded_is_there(worker):
    here = worker()
    before = saved(here, tokens(1, 4))
    here.tree.reset()
    assert here.ask(tokens(1, 4)) == (4, {"kv": before["kv"]})


def test_prompts_share_what_is_kept_of_both(worker):
    before = saved(worker(), tokens(1, 4) + tokens(2, 2))
    there = worker()
    assert there.ask(tokens(1, 4) + tokens(3, 2)) == (4, {"kv": before["kv"][:4]})
    assert there.ask(tokens(3, 2)) == (0, {})


def test_only_what_is_not_on_the_device_is_loaded(worker):
    before = saved(worker(), tokens(1, 6))
    there = worker()
    there.compute(tokens(1, 2))
    req = request(tokens(1, 6))
    found = there.match(req)
    assert (found.device_prefix_len, found.host_hit_length) == (2 * PAGE, 4 * PAGE)
    assert there.load_back(req) == 4 * PAGE and there.forward(req) == []
    assert there.landed(req) == {"kv": before["kv"][2:]}


def test_requests_of_one_batch_are_loaded_together(worker):
    here = worker()
    before = [saved(here, tokens(seed, 3))["kv"] for seed in (1, 2, 3)]
    there = worker()
    reqs = [request(tokens(seed, 3)) for seed in (1, 2, 3)]
    for req in reqs:
        there.match(req)
        assert there.load_back(req) == 3 * PAGE
    assert there.forward(*reqs) == []
    assert [there.landed(req)["kv"] for req in reqs] == before


def test_a_rotten_page_is_a_miss_and_no_failed_load(worker, sidecar):
    before = saved(worker(), tokens(1, 5))
    sidecar.flip(sidecar.blocks()[3], 100)
    assert worker().ask(tokens(1, 5)) == (3, {"kv": before["kv"][:3]})


def test_a_rotten_state_is_a_miss_of_its_length_alone(worker, sidecar):
    here = worker(mamba)
    before = saved(here, tokens(1, 2))
    saved(here, tokens(1, 5))
    # A state is offloaded behind the pages in front of it.
    sidecar.flip(sidecar.blocks()[-1], 100)
    assert worker(mamba).ask(tokens(1, 5)) == (2, before)


@pytest.mark.parametrize("make", [mamba, swa])
def test_every_length_that_all_pools_have_is_found(worker, make):
    here = worker(make)
    side, window = (PoolName.MAMBA, 1) if make is mamba else (PoolName.SWA, 2)
    keys = hashes(1, 6)
    slots = torch.arange(PAGE, 7 * PAGE)

    def at(*pages: int) -> torch.Tensor:
        if make is mamba:
            return torch.tensor(pages)
        return torch.cat([slots[page * PAGE : (page + 1) * PAGE] for page in pages])

    def offload(kv: list[int], ends: list[int]) -> None:
        parts = torch.cat([slots[page * PAGE : (page + 1) * PAGE] for page in kv])
        transfers = [PoolTransfer(PoolName.KV, device_indices=parts, keys=[keys[it] for it in kv])]
        if ends:
            there = PoolTransfer(side, device_indices=at(*ends), keys=[keys[it] for it in ends])
            there.hit_policy = TRAILING
            transfers.append(there)
        assert here.linker.offload(transfers)
        eventually(lambda: here.linker.num_completed_offloads() == 1)
        assert here.linker.pop_completed_offload()

    def lookup(rid: str, pages: int) -> list[int]:
        side_keys = keys[max(0, pages - window) : pages]
        return here.linker.lookup(
            rid,
            [
                PoolTransfer(PoolName.KV, keys=keys[:pages]),
                PoolTransfer(side, keys=side_keys, hit_policy=TRAILING),
            ],
        )

    offload([0, 1, 2], [1, 2])
    offload([3, 4], [])
    # Windows of two pages, that end at the third one; states at the second and third ones' ends.
    assert lookup("a", 5) == ([2, 3] if make is mamba else [3])
    offload([5], [4, 5])
    assert lookup("b", 6) == ([2, 3, 5, 6] if make is mamba else [3, 6])
    # A request that has more on its device by now lacks as much less.
    behind = here.linker.lookup(
        "b",
        [
            PoolTransfer(PoolName.KV, keys=keys[2:]),
            PoolTransfer(side, keys=keys[6 - window :], hit_policy=TRAILING),
        ],
    )
    assert behind == ([1, 3, 4] if make is mamba else [1, 4])


def test_a_request_that_is_looked_up_in_every_step_is_asked_for_once(worker, sidecar):
    saved(worker(), tokens(1, 3))
    there, req, other = worker(), request(tokens(1, 3)), request(tokens(2, 3))
    found = [there.match(it).host_hit_length for it in (req, other)]
    lookups = stat(sidecar)["lookups"]
    for _ in range(20):
        assert [there.match(it).host_hit_length for it in (req, other)] == found
    assert found == [3 * PAGE, 0] and stat(sidecar)["lookups"] == lookups


def test_what_is_never_loaded_holds_nothing(worker, sidecar, monkeypatch):
    here = worker()
    for seed in (1, 2, 3):
        saved(here, tokens(seed, 3))
    there = worker()
    rows = free(there)["kv"]
    for seed in (1, 2):
        assert there.match(request(tokens(seed, 3))).host_hit_length == 3 * PAGE
    assert free(there)["kv"] == rows - 6
    # Nothing of it is the sidecar's, even now.
    eventually(lambda: (stat(sidecar)["leases"], stat(sidecar)["reservations"]) == (0, 0))
    monkeypatch.setattr(landed, "HELD", 0.0)
    assert there.match(request(tokens(3, 3))).host_hit_length == 3 * PAGE
    assert free(there)["kv"] == rows - 3
    there.tree.reset()
    assert free(there)["kv"] == rows


def test_a_load_that_is_cancelled_gives_back_what_had_landed(worker):
    saved(worker(), tokens(1, 3))
    there, req = worker(), request(tokens(1, 3))
    rows = free(there)
    there.match(req)
    assert there.load_back(req) == 3 * PAGE
    there.tree.linker.release_request(req.rid)
    assert free(there) == rows
    assert there.forward(req) == []


def test_a_prompt_beyond_the_memory_lands_as_far_as_there_is_room(worker):
    here = worker()
    before = saved(here, tokens(1, 6))
    saved(here, tokens(2, 3))
    there = worker(landing_bytes=4 * PAGE_BYTES)
    first, second = request(tokens(1, 6)), request(tokens(2, 3))
    assert there.match(first).host_hit_length == 4 * PAGE
    # The rest is another's: what is not found is computed.
    assert there.match(second).host_hit_length == 0
    assert there.load_back(first) == 4 * PAGE and there.forward(first) == []
    assert there.landed(first) == {"kv": before["kv"][:4]}
    assert there.ask(tokens(2, 3))[0] == 3
    with pytest.raises(LandingFullError, match="landing_bytes"):
        worker(landing_bytes=PAGE_BYTES - 1)


def test_offloads_that_come_too_fast_are_dropped_in_their_turn(worker, monkeypatch):
    # Four arenas may wait.
    here = worker(session_arena_bytes=4 * PAGE_BYTES)
    save, may_go = KeptPools.set, threading.Event()

    def slow(*given) -> list[bool]:
        assert may_go.wait(PATIENCE)
        return save(*given)

    monkeypatch.setattr(KeptPools, "set", slow)
    for seed in (1, 2, 3):
        here.compute(tokens(seed, 7))
    assert here.linker.num_completed_offloads() == 0
    may_go.set()
    assert here.offloaded() == [True, True, False]
    there = worker()
    assert [there.ask(tokens(seed, 7))[0] for seed in (1, 2, 3)] == [7, 7, 0]
    # It is offloaded when it is used again.
    here.compute(tokens(3, 7))
    assert here.offloaded() == [True]


def test_a_reset_ends_offloads_under_way(worker, monkeypatch):
    here = worker()
    save, begun = KeptPools.set, threading.Event()

    def noted(*given) -> list[bool]:
        begun.set()
        return save(*given)

    monkeypatch.setattr(KeptPools, "set", noted)
    for seed in (1, 2, 3):
        here.compute(tokens(seed, 7))
    assert begun.wait(PATIENCE)
    here.tree.reset()
    assert here.linker.num_completed_offloads() == 0
    assert saved(here, tokens(4, 2))


def test_a_device_that_fails_ends_the_requests_of_its_batch(worker, monkeypatch):
    """The one failure that a load can have."""
    saved(worker(), tokens(1, 3))
    there, req = worker(), request(tokens(1, 3))
    rows = free(there)
    there.match(req)
    assert there.load_back(req) == 3 * PAGE

    def fail(*_) -> None:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patched:
        patched.setattr(Plan, "copy", fail)
        assert there.forward(req) == [req]
    assert free(there) == rows
    assert there.ask(tokens(1, 3))[0] == 3


def test_another_deployment_has_no_hit(worker):
    saved(worker(), tokens(1, 2))
    assert worker().ask(tokens(1, 2))[0] == 2
    for differs in ({"salt": "b"}, {"tenant": "b"}, {"weights": "b"}, {"config": "b"}):
        assert worker(**differs).ask(tokens(1, 2)) == (0, {})


def test_pools_that_are_not_known_are_refused(worker, monkeypatch):
    memory = mha()
    memory.pool.kv_cache_layout = "vectorized_5d"
    with pytest.raises(ValueError, match="vectorized_5d"):
        worker(lambda: memory)

    class Other(device_pools.MHATokenToKVPool):
        """Which may hold more than its base does."""

    other = mha()
    other.pool.__class__ = Other
    with pytest.raises(ValueError, match="does not support the direct external linker"):
        worker(lambda: other)
