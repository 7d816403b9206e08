"""A router with SGLang's own decoder knows pages on SSD by the hashes of SGLang's own events."""

from __future__ import annotations

from pools import hashes, slots
from routers import Publisher, Router
from sglang.srt.disaggregation.kv_events import BlockStored, KVEventBatch, StorageMedium
from sglang.srt.mem_cache.utils import hash_str_to_int64

pytest_plugins = ["storages"]


def test_pages_are_told_by_the_hashes_of_sglangs_events(attach, sidecar):
    storage, _ = attach()
    publisher = Publisher(sidecar.address, "--dialect", "sglang")
    router = Router(publisher, KVEventBatch)
    keys = hashes(1, 5)
    assert all(storage.batch_set_v1(keys, slots(*range(5))))
    router.follow({hash_str_to_int64(key) for key in keys})
    assert all(isinstance(event, BlockStored) for event in router.events)
    assert {event.medium for event in router.events} == {StorageMedium.DISK.value}
    router.close()
    publisher.close()
