"""What SGLang backs up it gets back, byte for byte, into any page of its host pool, by zero copy
and by the older calls; what is another deployment's, rank's or request's is no hit; what is not
there is a miss."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import PATIENCE
from pools import PAGE, config, fill, hashes, mha, mla, page, slots
from refrain_kv.named import NamedBlocks
from refrain_kv.sglang import RefrainStorage
from refrain_kv.sglang.identity import UnknownFieldError
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.utils import get_storage_hash_str

pytest_plugins = ["storages"]

POOLS = [
    (make, layout)
    for make in (mha, mla)
    for layout in ("page_first", "page_first_direct", "layer_first")
]
SAVED, INTO = (5, 2, 9), (1, 7, 3)


def check_round_trip(attach, make, layout, **more) -> None:
    is_mla = make is mla
    storage, pool = attach(make(layout), is_mla=is_mla, **more)
    assert isinstance(storage, HiCacheStorage)
    fill(pool, 1)
    before = [page(pool, number) for number in SAVED]
    keys = hashes(1, len(SAVED))
    assert storage.batch_exists(keys) == 0
    assert storage.batch_set_v1(keys, slots(*SAVED)) == [True] * 3
    assert storage.batch_exists(keys) == 3

    other, pool = attach(make(layout), is_mla=is_mla, **more)
    fill(pool, 2)
    others = {number: page(pool, number) for number in range(pool.page_num) if number not in INTO}
    assert other.batch_exists(keys + hashes(2, 1)) == 3
    assert other.batch_get_v1(keys, slots(*INTO)) == [True] * 3
    assert [page(pool, number) for number in INTO] == before
    assert all(page(pool, number) == there for number, there in others.items())


@pytest.mark.parametrize(("make", "layout"), POOLS)
def test_pages_of_a_host_pool_come_back_into_others(attach, make, layout):
    check_round_trip(attach, make, layout)


@pytest.mark.parametrize("make", [mha, mla])
def test_pages_in_tensors_come_back_too(attach, make):
    storage, pool = attach(make(), is_mla=make is mla, interface_v1=0)
    fill(pool, 1)
    keys, numbers = hashes(1, 140), [number % pool.page_num for number in range(140)]
    assert storage.batch_set(keys, [pool.get_data_page(number * PAGE) for number in numbers])
    assert storage.exists(keys[0]) and storage.batch_exists(keys) == 140
    targets = [pool.get_dummy_flat_data_page() for _ in keys]
    got = storage.batch_get(keys, targets)
    assert all(it is target for it, target in zip(got, targets))
    for number, target in zip(numbers, targets):
        assert target.view(torch.uint8).numpy().tobytes() == page(pool, number)
    assert storage.get(hashes(2, 1)[0], pool.get_dummy_flat_data_page()) is None


def test_a_target_that_cannot_be_written_through_is_a_miss(attach):
    storage, pool = attach(interface_v1=0)
    fill(pool, 1)
    keys, there = hashes(1, 3), pool.get_data_page(0)
    assert storage.batch_set(keys, [there] * 3)
    scattered = torch.zeros(*there.shape[:-1], 2 * there.shape[-1], dtype=there.dtype)[..., ::2]
    whole, short = torch.zeros_like(there), torch.zeros(3, dtype=there.dtype)
    assert storage.batch_get(keys, [scattered, whole, short]) == [None, whole, None]
    assert torch.equal(whole.view(torch.uint8), there.contiguous().view(torch.uint8))
    assert not scattered.any()


def test_a_load_does_not_wait_for_a_save(attach, monkeypatch):
    storage, pool = attach(interface_v1=0)
    fill(pool, 1)
    keys, there = hashes(1, 1), pool.get_data_page(0)
    assert storage.batch_set(keys, [there])
    save, inside, may_end = NamedBlocks.save, threading.Event(), threading.Event()

    def slow(*given) -> list[bool]:
        inside.set()
        assert may_end.wait(PATIENCE)
        return save(*given)

    monkeypatch.setattr(NamedBlocks, "save", slow)
    with ThreadPoolExecutor(2) as threads:
        saving = threads.submit(storage.batch_set, hashes(2, 1), [pool.get_data_page(PAGE)])
        assert inside.wait(PATIENCE)
        try:
            got = threads.submit(storage.get, keys[0]).result(PATIENCE / 2)
        finally:
            may_end.set()
        assert saving.result()
    assert torch.equal(got, there.contiguous().view(-1).view(torch.uint8))
    # What the load brought has not come into what was saved.
    saved = storage.get(hashes(2, 1)[0])
    assert torch.equal(saved, pool.get_data_page(PAGE).contiguous().view(-1).view(torch.uint8))


def test_what_is_saved_in_pieces_and_out_of_order_is_found_by_its_names(attach):
    storage, pool = attach()
    fill(pool, 1)
    keys = hashes(1, 6)
    for numbers in ([4, 5], [0, 1], [1, 2]):
        some = [keys[number] for number in numbers]
        assert storage.batch_set_v1(some, slots(*numbers)) == [True, True]
    assert storage.batch_exists(keys) == 3
    assert storage.batch_exists(keys[4:]) == 2
    # The first that is missing ends a prefix.
    assert storage.batch_get_v1(keys, slots(*range(8, 14))) == [True] * 3 + [False] * 3


def test_a_batch_may_be_larger_than_the_session_arena(attach):
    storage, pool = attach(session_arena_bytes=64 << 10)
    fill(pool, 1)
    keys, numbers = hashes(1, 60), range(60)
    assert all(storage.batch_set_v1(keys, slots(*numbers)))
    before = [page(pool, number) for number in numbers]
    fill(pool, 2)
    assert all(storage.batch_get_v1(keys, slots(*numbers)))
    assert [page(pool, number) for number in numbers] == before


def test_each_rank_has_its_own_share_of_a_page(attach):
    ranks = [attach(rank=rank, ranks=2) for rank in range(2)]
    keys = hashes(1, 2)
    for rank, (storage, pool) in enumerate(ranks):
        fill(pool, rank)
        assert storage.batch_exists(keys) == 0
        assert all(storage.batch_set_v1(keys, slots(0, 1)))
    for rank, (storage, pool) in enumerate(ranks):
        before = page(pool, 0)
        fill(pool, 7)
        assert all(storage.batch_get_v1(keys, slots(0, 1)))
        assert page(pool, 0) == before
    # As many ranks as others are another cut.
    assert attach(rank=0, ranks=4)[0].batch_exists(keys) == 0


def test_a_latent_has_one_copy_for_all_ranks(attach, sidecar):
    writer, pool = attach(mla(), rank=0, ranks=2, is_mla=True)
    reader, other = attach(mla(), rank=1, ranks=2, is_mla=True)
    assert writer._config.is_storage_writer and not reader._config.is_storage_writer
    fill(pool, 1)
    keys = hashes(1, 2)
    assert all(writer.batch_set_v1(keys, slots(0, 1)))
    assert all(reader.batch_get_v1(keys, slots(2, 3)))
    assert page(other, 2) == page(pool, 0)
    assert len(sidecar.blocks()) == 2


@pytest.mark.parametrize(
    "differs",
    [
        {"weights": "seed 2"},
        {"config": "other rope"},
        {"salt": "b"},
        {"tenant": "b"},
        {"model": "b"},
    ],
    ids=lambda differs: next(iter(differs)),
)
def test_another_deployment_has_no_hit(attach, differs):
    storage, pool = attach()
    keys = hashes(1, 2)
    assert all(storage.batch_set_v1(keys, slots(0, 1)))
    assert attach()[0].batch_exists(keys) == 2
    other, _ = attach(**differs)
    assert other.batch_exists(keys) == 0
    assert other.batch_get_v1(keys, slots(0, 1)) == [False, False]


def test_another_data_type_of_the_same_size_has_no_hit(attach):
    storage, _ = attach(mha(dtype=torch.bfloat16))
    keys = hashes(1, 2)
    assert all(storage.batch_set_v1(keys, slots(0, 1)))
    assert attach(mha(dtype=torch.float16))[0].batch_exists(keys) == 0


def test_another_order_of_bytes_has_no_hit(attach):
    storage, _ = attach(mha("page_first"))
    keys = hashes(1, 2)
    assert all(storage.batch_set_v1(keys, slots(0, 1)))
    for layout in ("page_first_direct", "layer_first"):
        assert attach(mha(layout))[0].batch_exists(keys) == 0


def test_another_salt_or_adapter_of_a_request_has_no_hit(attach):
    storage, _ = attach()
    tokens = list(range(2 * PAGE))

    def keys(**more) -> list[str]:
        return get_storage_hash_str(RadixKey(tokens, **more), page_size=PAGE)

    assert all(storage.batch_set_v1(keys(cache_salt="a"), slots(0, 1)))
    assert storage.batch_exists(keys(cache_salt="a")) == 2
    for other in (
        {},
        {"cache_salt": "b"},
        {"extra_key": "a"},
        {"extra_key": "b", "cache_salt": "a"},
    ):
        assert storage.batch_exists(keys(**other)) == 0


@pytest.mark.parametrize("field", ["weights", "config", "model"])
def test_a_field_that_nobody_knows_is_refused_by_its_name(sidecar, field):
    without = config(sidecar.address, **{field: ""})
    without.model_name = None if field == "model" else "tiny"
    with pytest.raises(UnknownFieldError, match=f"`{field}`"):
        RefrainStorage(without, {})


def test_bytes_for_a_type_that_the_pool_does_not_tell_are_refused(attach):
    with pytest.raises(UnknownFieldError, match="`kv_dtype`"):
        attach(mha(dtype=torch.uint8))
    storage, _ = attach(mha(dtype=torch.uint8), kv_dtype="fp8_e4m3")
    keys = hashes(1, 1)
    assert all(storage.batch_set_v1(keys, slots(0)))
    assert attach(mha(dtype=torch.uint8), kv_dtype="fp8_e5m2")[0].batch_exists(keys) == 0


def test_pages_of_several_pools_are_found_by_their_policies(attach):
    storage, pool = attach()
    state, window = mha(), mha()
    for name, it in ((PoolName.MAMBA, state), (PoolName.SWA, window)):
        storage.register_mem_host_pool_v2(it, name)
        fill(it, 3)
    keys = hashes(1, 4)
    assert all(storage.batch_set_v1(keys, slots(0, 1, 2, 3)))
    # The state stands at the second page's end, the window of two before the third one's.
    saved = storage.batch_set_v2(
        [
            PoolTransfer(PoolName.MAMBA, host_indices=slots(5), keys=[keys[1]]),
            PoolTransfer(PoolName.SWA, host_indices=slots(6, 7), keys=keys[1:3]),
        ]
    )
    assert saved == {PoolName.MAMBA: [True], PoolName.SWA: [True, True]}

    def exists(*transfers) -> tuple:
        found = storage.batch_exists_v2(keys, list(transfers))
        return found.kv_hit_pages, found.restorable_prefix_pages

    trailing = PoolHitPolicy.TRAILING_PAGES
    assert exists() == (4, [1, 2, 3, 4])
    assert exists(PoolTransfer(PoolName.MAMBA, keys=["_"], hit_policy=trailing)) == (2, [2])
    assert exists(PoolTransfer(PoolName.SWA, keys=["_"] * 2, hit_policy=trailing)) == (3, [3])
    assert exists(PoolTransfer(PoolName.SWA)) == (0, [])
    assert exists(PoolTransfer(PoolName.INDEXER)) == (0, [])
    before = [page(state, 5), page(window, 6), page(window, 7)]
    got = storage.batch_get_v2(
        [
            PoolTransfer(PoolName.MAMBA, host_indices=slots(8), keys=[keys[1]]),
            PoolTransfer(PoolName.SWA, host_indices=slots(8, 9), keys=keys[1:3]),
        ]
    )
    assert got == {PoolName.MAMBA: [True], PoolName.SWA: [True, True]}
    assert [page(state, 8), page(window, 8), page(window, 9)] == before


def test_clear_is_left_to_the_operator(attach):
    with pytest.raises(NotImplementedError, match="refrain drop"):
        attach()[0].clear()
