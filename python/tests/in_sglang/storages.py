"""RefrainStorage as SGLang makes it, with a sidecar of the test's own."""

from __future__ import annotations

import pytest
from pools import config, mha
from sglang.srt.mem_cache.storage import StorageBackendFactory


@pytest.fixture
def attach(sidecar):
    """Makes storages by SGLang's factory, over host pools."""
    storages = []

    def make(pool=None, address=sidecar.address, **more):
        pool = mha() if pool is None else pool
        storage = StorageBackendFactory.create_backend("dynamic", config(address, **more), pool)
        storages.append(storage)
        storage.register_mem_pool_host(pool)
        storage.on_host_pools_registered()
        return storage, pool

    yield make
    for storage in storages:
        storage.close()
