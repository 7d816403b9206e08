"""A router with vLLM's own decoder knows, under the names that vLLM's own events carry, what is on
SSD: from before it came and what comes and goes, batches that it missed, and over the sidecar's
restart."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import PATIENCE, REFRAIN, namespace, prompt
from named import Worker, names
from routers import Publisher, Router
from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVEventBatch
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash


def told(hashes: list[bytes]) -> set:
    """As vLLM's events have them."""
    return {maybe_convert_block_hash(it) for it in hashes}


@pytest.fixture
def publish(sidecar):
    running = []

    def start(*more: str) -> Publisher:
        running.append(Publisher(sidecar.address, *more))
        running[-1].until("follows the sidecar")
        return running[-1]

    yield start
    for it in running:
        it.close()


@pytest.fixture
def router():
    routers = []

    def make(publisher: Publisher, topic: str = "") -> Router:
        routers.append(Router(publisher, KVEventBatch, topic))
        return routers[-1]

    yield make
    for it in routers:
        it.close()


def evict(sidecar, block: dict) -> None:
    hash = block["hash"] if "hash" in block else block["sequence_hash"]
    subprocess.run([REFRAIN, "evict", "--addr", sidecar.address, hash], check=True)


def test_a_router_learns_what_is_there_and_what_comes_and_goes(client, sidecar, publish, router):
    worker = Worker(client)
    worker.save(names(1, 3))
    listening = router(publish())
    listening.follow(told(names(1, 3)))
    worker.save(names(1, 5))
    worker.save(names(2, 2), separate=True)
    listening.follow(told(names(1, 5) + names(2, 2)))
    stored = [event for event in listening.events if isinstance(event, BlockStored)]
    assert all(event.medium == "STORAGE" and event.locality == "LOCAL" for event in stored)
    # The last to be written, which is behind no other.
    evict(sidecar, sidecar.blocks()[-1])
    listening.follow(told(names(1, 5) + names(2, 1)))
    [gone] = [event for event in listening.events if isinstance(event, BlockRemoved)]
    assert (set(gone.block_hashes), gone.medium) == (told(names(2, 2)[1:]), "STORAGE")


def test_a_router_that_missed_batches_asks_for_them(client, publish, router):
    worker, publisher = Worker(client), publish()
    first = router(publisher)
    for seed in range(5):
        worker.save(names(seed, 2))
        first.follow(told([name for it in range(seed + 1) for name in names(it, 2)]))
    # One that came late has missed all of them, one that slept the last ones.
    late = router(publisher)
    late.catch_up()
    assert late.resident == first.resident and late.events == first.events
    worker.save(names(9, 1))
    late.follow(first.resident | told(names(9, 1)))


def test_what_is_forgotten_of_late_batches_is_a_gap(client, publish, router):
    """The buffer is bounded: who asks for more gets what there is, and sees where it begins."""
    worker, publisher = Worker(client), publish("--buffer", "2")
    first = router(publisher)
    for seed in range(4):
        worker.save(names(seed, 1))
        first.follow(told([name for it in range(seed + 1) for name in names(it, 1)]))
    with pytest.raises(AssertionError, match="a batch is missing"):
        router(publisher).catch_up()


def test_a_sidecar_that_goes_takes_its_blocks_along_until_it_is_back(
    client, sidecar, publish, router
):
    worker = Worker(client)
    worker.save(names(1, 3))
    listening = router(publish())
    listening.follow(told(names(1, 3)))
    sidecar.kill()
    listening.follow(set())
    sidecar.start()
    client.connect()
    # An engine that looks up has them named again, all at once.
    assert worker.look_up(names(1, 1)) == 1
    listening.follow(told(names(1, 3)))


def test_a_block_is_told_when_all_of_its_shards_are_there(client, sidecar, publish, router):
    shards = [Worker(client, shard, tensor_parallel=2) for shard in range(2)]
    listening = router(publish())
    shards[0].save(names(1, 3))
    shards[1].save(names(1, 2))
    listening.follow(told(names(1, 2)))
    evict(sidecar, [it for it in sidecar.blocks() if it["shard"] == 0][1])
    listening.follow(told(names(1, 1)))


def test_a_name_is_told_once_for_all_namespaces_that_have_it(client, sidecar, publish, router):
    salted = [Worker(client, salt=salt) for salt in (b"before", b"after")]
    listening = router(publish())
    for worker in salted:
        worker.save(names(1, 2))
    # The last block of the first.
    evict(sidecar, sidecar.blocks()[1])
    salted[1].save(names(2, 1), separate=True)
    listening.follow(told(names(1, 2) + names(2, 1)))
    assert all(isinstance(event, BlockStored) for event in listening.events)
    stored = [name for event in listening.events for name in event.block_hashes]
    assert len(stored) == len(set(stored))
    # The last block of the second, and of its name.
    evict(sidecar, sidecar.blocks()[2])
    listening.follow(told(names(1, 1) + names(2, 1)))


def test_an_address_that_is_none_ends_the_command():
    command = [sys.executable, "-m", "refrain_kv.events", "--bind", "tcp://127.0.0.1:*"]
    ended = subprocess.run(
        [*command, "--connect", "nowhere"], stderr=subprocess.PIPE, text=True, timeout=PATIENCE
    )
    assert ended.returncode == 1 and "nowhere" in ended.stderr.splitlines()[-1]


def test_blocks_of_tokens_and_of_other_models_are_not_told(client, publish, router):
    worker, other = Worker(client), Worker(client, model="other")
    with client.register(namespace(model="tokens"), shard=0).lookup(prompt(1, 1)):
        pass
    listening = router(publish("--model", "other", "--topic", "kv@other"), "kv@other")
    worker.save(names(1, 2))
    other.save(names(2, 2))
    listening.follow(told(names(2, 2)))
    assert all(set(event.block_hashes) <= told(names(2, 2)) for event in listening.events)
