"""What is saved out of a paged KV cache comes back byte for byte, into other pages and other kinds
of arrays; what is not there, or rotten, is known to be a miss."""

from __future__ import annotations

import ctypes
import random
import weakref

import numpy as np
import pytest
import refrain_kv as kv
from conftest import LAYERS, PAGE_BYTES, PAGE_TOKENS, PAGES_PER_BLOCK, content, namespace, prompt

BLOCKS = 12
PAGES = 2 * BLOCKS * PAGES_PER_BLOCK
HALF = PAGE_BYTES // 2


def together() -> tuple[list, list]:
    """Keys and values of a page lie side by side."""
    layers = [
        np.zeros((PAGES, 2, PAGE_TOKENS, HALF // PAGE_TOKENS), np.uint8) for _ in range(LAYERS)
    ]
    return layers, [[layer] for layer in layers]


def apart() -> tuple[list, list]:
    """Keys and values lie in arrays of their own, in another type."""
    planes = [[np.zeros((PAGES, HALF // 4), np.float32) for _ in "kv"] for _ in range(LAYERS)]
    return planes, planes


def all_in_one() -> tuple[list, list]:
    """A page of the first layer is followed by that of the next one."""
    whole = np.zeros((PAGES, LAYERS, PAGE_BYTES), np.uint8)
    layers = [whole[:, layer] for layer in range(LAYERS)]
    return layers, [[layer] for layer in layers]


def with_gaps() -> tuple[list, list]:
    """Each token's bytes are followed by something else."""
    wide = [
        np.zeros((PAGES, PAGE_TOKENS, PAGE_BYTES // PAGE_TOKENS + 64), np.uint8)
        for _ in range(LAYERS)
    ]
    layers = [layer[:, :, :-64] for layer in wide]
    return layers, [[layer] for layer in layers]


def by_address() -> tuple[list, list]:
    """The caller says where pages lie."""
    layers = [np.zeros((PAGES, PAGE_BYTES), np.uint8) for _ in range(LAYERS)]
    return [kv.Plane(layer.ctypes.data, PAGE_BYTES, PAGE_BYTES) for layer in layers], [
        [layer] for layer in layers
    ]


def by_dlpack() -> tuple[list, list]:
    """Arrays that say by DLPack alone where they lie."""

    class Tensor:
        def __init__(self, array):
            self.__dlpack__ = array.__dlpack__

    layers, planes = all_in_one()
    return [Tensor(layer) for layer in layers], planes


LAYOUTS = [together, apart, all_in_one, with_gaps, by_address, by_dlpack]


class Worker:
    """A cache in some layout, and pages for a prompt in some order."""

    def __init__(self, client, layout=together, seed=1):
        layers, self.planes = layout()
        self.cache = kv.KvCache(
            layers, pages_per_block=PAGES_PER_BLOCK, pages=PAGES if layout is by_address else None
        )
        self.registration = client.register(namespace(), shard=0)
        self.order = random.Random(seed).sample(range(PAGES), BLOCKS * PAGES_PER_BLOCK)

    def pages(self, blocks: range) -> list[int]:
        return self.order[blocks.start * PAGES_PER_BLOCK : blocks.stop * PAGES_PER_BLOCK]

    def _halves(self, layer: int, page: int):
        """The keys of a page and its values, as far as they lie apart."""
        return [plane[page] for plane in self.planes[layer]]

    def compute(self, seed: int, blocks: range) -> None:
        """Puts each page's own bytes into it, as a model does."""
        for index, page in zip(
            range(blocks.start * PAGES_PER_BLOCK, BLOCKS * PAGES_PER_BLOCK), self.pages(blocks)
        ):
            for layer in range(LAYERS):
                halves = self._halves(layer, page)
                for part, half in enumerate(halves):
                    there = expected(seed, layer, index, part, len(halves))
                    half[...] = np.frombuffer(there, half.dtype).reshape(half.shape)

    def has(self, seed: int, blocks: range, layers: range = range(LAYERS)) -> bool:
        found = enumerate(self.pages(blocks), blocks.start * PAGES_PER_BLOCK)
        return all(
            half.tobytes() == expected(seed, layer, index, part, len(self.planes[layer]))
            for index, page in found
            for layer in layers
            for part, half in enumerate(self._halves(layer, page))
        )

    def clear(self) -> None:
        for layer in self.planes:
            for plane in layer:
                plane[...] = 0

    def save(self, tokens, seed: int, blocks: range, **more) -> kv.Saved:
        self.compute(seed, blocks)
        with self.registration.lookup(tokens) as lookup:
            saved = lookup.save_from(self.cache, self.pages(blocks), first=blocks.start, **more)
            # Waited for, so that no call of it is under way afterwards.
            lookup.release()
        return saved


def expected(seed: int, layer: int, page: int, part: int, parts: int) -> bytes:
    """Of a page as the prompt counts them: keys before values, of a block's pages."""
    if parts == 1:
        return content(seed * 10_000 + layer * 1000 + page, PAGE_BYTES)
    return content(seed * 10_000 + layer * 1000 + page + 500 * part, HALF)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_saved_out_of_pages_is_loaded_into_others(client, layout):
    worker, tokens = Worker(client, layout), prompt(1, BLOCKS)
    saved = worker.save(tokens, 1, range(BLOCKS), durable=True)
    assert (saved.offered, saved.saved, saved.refusal) == (BLOCKS, BLOCKS, "none")
    assert saved.durable
    other = Worker(client, layout, seed=2)
    with other.registration.lookup(tokens) as lookup:
        assert (lookup.prompt_blocks, lookup.matched_blocks) == (BLOCKS, BLOCKS)
        assert sum(blocks for _, blocks in lookup.tiers) == BLOCKS
        with lookup.load_into(other.cache, other.pages(range(BLOCKS))) as load:
            for layer in range(LAYERS):
                assert load.layer(layer) == BLOCKS
                assert load.layers_on_their_way > layer
                assert other.has(1, range(BLOCKS), range(layer, layer + 1))
            loaded = load.finish()
        assert (loaded.blocks, loaded.reason) == (BLOCKS, "none")
        assert loaded.host_blocks + loaded.ssd_blocks == BLOCKS
        assert lookup.release()
    assert other.has(1, range(BLOCKS))


def test_part_of_a_prompt_is_found_and_the_rest_saved_behind_it(client):
    worker = Worker(client)
    tokens = prompt(2, BLOCKS)
    half = BLOCKS // 2
    assert worker.save(tokens[: len(tokens) // 2], 2, range(half)).saved == half
    worker.clear()
    with worker.registration.lookup(tokens) as lookup:
        assert (lookup.prompt_blocks, lookup.matched_blocks) == (BLOCKS, half)
        with lookup.load_into(worker.cache, worker.pages(range(half))) as load:
            assert load.finish().blocks == half
        assert worker.has(2, range(half))
        worker.compute(2, range(half, BLOCKS))
        # Behind what was matched, unless something else is said.
        saved = lookup.save_from(worker.cache, worker.pages(range(half, BLOCKS)))
    assert (saved.offered, saved.saved) == (BLOCKS - half, BLOCKS - half)
    worker.clear()
    with worker.registration.lookup(np.array(tokens, np.int64)) as lookup:
        load = lookup.load_into(worker.cache, worker.pages(range(3, BLOCKS)), first=3)
        assert load.finish().blocks == BLOCKS - 3
    assert worker.has(2, range(3, BLOCKS))


def test_a_prompt_that_was_never_saved_is_an_answer_of_no_blocks(client):
    worker = Worker(client)
    with worker.registration.lookup(prompt(3, 2)) as lookup:
        assert (lookup.prompt_blocks, lookup.matched_blocks, lookup.tiers) == (2, 0, [])
        loaded = lookup.load_into(worker.cache, []).finish()
    assert (loaded.blocks, loaded.reason) == (0, "none")


def test_equal_tokens_under_other_extra_keys_are_another_prompt(client):
    worker, tokens = Worker(client), prompt(4, 2)
    worker.compute(4, range(2))
    with worker.registration.lookup(tokens, extra_keys=[b"image 1"]) as lookup:
        assert lookup.save_from(worker.cache, worker.pages(range(2))).saved == 2
    found = [
        worker.registration.lookup(tokens, extra_keys=keys).matched_blocks
        for keys in ([b"image 1"], [b"image 2"], [])
    ]
    assert found == [2, 0, 0]


def test_blocks_are_found_by_an_engines_own_names(client):
    worker, names = Worker(client), [content(name, 32) for name in range(2)]
    worker.compute(5, range(2))
    with worker.registration.lookup_hashes(names) as lookup:
        assert lookup.save_from(worker.cache, worker.pages(range(2))).saved == 2
    assert worker.registration.begin_lookup_hashes(names).result().matched_blocks == 2


def test_a_rotten_stripe_shortens_what_may_be_used(sidecar, client):
    worker, tokens = Worker(client), prompt(6, BLOCKS)
    worker.save(tokens, 6, range(BLOCKS), durable=True)
    worker.clear()
    # The third stripe of the sixth block: layers 4 and 5.
    stripe = worker.registration.layers_per_stripe * PAGES_PER_BLOCK * PAGE_BYTES
    assert stripe == 2 * PAGES_PER_BLOCK * PAGE_BYTES
    sidecar.flip(sidecar.blocks()[5], 2 * stripe + 77)
    with worker.registration.lookup(tokens) as lookup:
        assert lookup.matched_blocks == BLOCKS
        with lookup.load_into(worker.cache, worker.pages(range(BLOCKS))) as load:
            for layer in range(LAYERS):
                usable = load.layer(layer)
                assert usable == 5 or (usable == BLOCKS and layer < 4)
                assert worker.has(6, range(usable), range(layer, layer + 1))
            loaded = load.finish()
    assert (loaded.blocks, loaded.reason) == (5, "damaged")
    assert worker.has(6, range(5))
    assert worker.registration.lookup(tokens).matched_blocks == 5


def test_a_page_that_is_not_kept_is_passed_over(client):
    worker, tokens = Worker(client), prompt(7, 3)
    worker.save(tokens, 7, range(3))
    worker.clear()
    pages = worker.pages(range(3))
    pages[0] = 2**32 - 1
    with worker.registration.lookup(tokens) as lookup:
        assert lookup.load_into(worker.cache, pages).finish().blocks == 3
        assert not worker.has(7, range(1)) and worker.has(7, range(1, 3))
        with pytest.raises(kv.CacheError, match="not kept"):
            lookup.save_from(worker.cache, pages, first=0)


def test_arrays_that_are_no_cache_are_refused_by_what_they_lack():
    def check(why: str, *layers, error: type[Exception] = kv.CacheError, **more):
        with pytest.raises(error, match=why):
            kv.KvCache(layers, **more)

    whole = np.zeros((4, 8, 16), np.uint8)
    check("not in order", whole.transpose(0, 2, 1))
    check("backwards", whole[:, ::-1])
    check("overlap", np.lib.stride_tricks.as_strided(whole, (4, 16), (8, 1)))
    check("no axis of pages", np.array(7))
    check("3 pages among those of 4", whole, whole[:3])
    check("layer 1 has 4 bytes a block", whole, np.zeros((4, 4), np.uint8))
    check("0 layers", pages=4)
    check("no array", ctypes.c_int(7), error=TypeError)
    check("number of pages", kv.Plane(4096, 16, 16), error=ValueError)
    check("2 groups for 1", whole, error=ValueError, groups=[0, 1])
    whole.flags.writeable = False
    check("read-only", whole)


def test_pages_that_a_cache_has_not_are_refused(client):
    worker, tokens = Worker(client), prompt(8, 2)
    worker.save(tokens, 8, range(2))
    with worker.registration.lookup(tokens) as lookup:
        with pytest.raises(kv.CacheError, match=f"page {PAGES} of group 0"):
            lookup.load_into(worker.cache, [0, PAGES])
        with pytest.raises(ValueError, match="3 pages are not 2 for each"):
            lookup.load_into(worker.cache, [0, 1, 2])
        with pytest.raises(kv.BlocksOutOfRangeError) as refused:
            lookup.load_into(worker.cache, worker.pages(range(3)))
        assert (refused.value.code, refused.value.retry) == ("blocks_out_of_range", False)
        other = kv.KvCache([np.zeros((4, 16), np.uint8)] * LAYERS, pages_per_block=2)
        with pytest.raises(kv.CacheError, match="stripes hold"):
            lookup.load_into(other, [0, 1, 2, 3])


def test_attention_groups_have_pages_of_their_own(client):
    groups = [kv.AttentionGroup.full(6), kv.AttentionGroup.sliding_window(2, 16)]
    layers = [np.zeros((8, PAGES_PER_BLOCK * PAGE_BYTES), np.uint8) for _ in range(LAYERS)]
    cache = kv.KvCache(layers, groups=[0] * 6 + [1] * 2)
    registration = client.register(namespace(groups=groups), shard=0)
    for layer in layers:
        layer[...] = np.random.default_rng(1).integers(0, 256, layer.shape)
    first, last = layers[0][[1, 2]].copy(), layers[7][[5, 4]].copy()
    with registration.lookup(prompt(9, 2)) as lookup:
        assert lookup.save_from(cache, [[1, 2], [5, 4]]).saved == 2
    with registration.lookup(prompt(9, 2)) as lookup:
        assert lookup.load_into(cache, [[7, 0], [0, 7]]).finish().blocks == 2
    assert (layers[0][[7, 0]] == first).all() and (layers[7][[0, 7]] == last).all()


def test_arrays_are_kept_until_their_cache_is_closed():
    whole = np.zeros((LAYERS, PAGES, PAGE_BYTES), np.uint8)
    cache, whole = kv.KvCache(list(whole), pages_per_block=PAGES_PER_BLOCK), weakref.ref(whole)
    assert whole() is not None
    cache.close()
    assert whole() is None
