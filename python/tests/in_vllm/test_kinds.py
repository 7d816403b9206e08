"""Which groups of layers are cached as which kinds, and how far a prompt may be loaded: as far as
vLLM's own coordinator finds it in a cache that holds the same blocks."""

from __future__ import annotations

import random
from itertools import groupby
from types import SimpleNamespace

import pytest
import torch
from refrain_kv.vllm.asked import Asked
from refrain_kv.vllm.kinds import fault_of, kinds_of
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_coordinator import get_kv_cache_coordinator
from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    SlidingWindowSpec,
)

BLOCK, BLOCKS = 32, 24
HEADS = {"num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}
FULL = FullAttentionSpec(block_size=BLOCK, **HEADS)
WINDOW = SlidingWindowSpec(block_size=BLOCK, sliding_window=100, **HEADS)
CHUNK = ChunkedLocalAttentionSpec(block_size=BLOCK, attention_chunk_size=128, **HEADS)


def groups(*specs) -> list[KVCacheGroupSpec]:
    return [KVCacheGroupSpec([f"layer.{at}"], spec) for at, spec in enumerate(specs)]


def test_groups_of_one_spec_are_one_kind():
    kinds = kinds_of(groups(WINDOW, FULL, WINDOW, CHUNK))
    assert [(it.groups, it.window) for it in kinds] == [((0, 2), 100), ((1,), None), ((3,), 128)]
    layers = dict.fromkeys([f"layer.{at}" for at in range(4)])
    assert [list(it.own(layers)) for it in kinds] == [
        ["layer.0", "layer.2"],
        ["layer.1"],
        ["layer.3"],
    ]
    assert [kinds[0].place(name) for name in ("layer.0", "layer.2")] == [0, 1]
    # The only group has layers that it does not name.
    assert list(kinds_of(groups(FULL))[0].own(layers)) == list(layers)


@pytest.mark.parametrize(
    ("specs", "named"),
    [
        ([WINDOW], "SlidingWindowSpec"),
        ([FULL, MambaSpec(block_size=BLOCK, shapes=((1,),), dtypes=(torch.float32,))], "MambaSpec"),
        ([FULL, FullAttentionSpec(block_size=2 * BLOCK, **HEADS)], "blocks of several sizes"),
    ],
)
def test_other_groups_are_refused_by_name(specs, named):
    assert named in fault_of(groups(*specs))


def test_what_is_cached_has_no_fault():
    assert fault_of(groups(FULL)) == fault_of(groups(WINDOW, FULL, WINDOW, CHUNK)) == ""


def answer(held: list[bool]) -> SimpleNamespace:
    """Of a look-up of blocks, some of which are held."""
    there = [("ssd" if it else "unspecified", len(list(run))) for it, run in groupby(held)]
    lookup = SimpleNamespace(
        absent=False,
        matched_blocks=(held + [False]).index(False),
        prompt_blocks=len(held),
        tiers=there,
        close=lambda: None,
    )
    return SimpleNamespace(done=lambda: True, result=lambda: lookup)


@pytest.mark.parametrize("specs", [[FULL, WINDOW], [WINDOW, FULL, WINDOW], [FULL, CHUNK]])
def test_a_prompt_is_found_as_far_as_vllm_would_find_it(specs):
    numbers, found = random.Random(len(specs)), set()
    for _ in range(200):
        config = KVCacheConfig(1000, [], groups(*specs))
        coordinator = get_kv_cache_coordinator(
            config, 4096, 4096, False, True, False, 1, 1, BLOCK, BLOCK
        )
        kinds, pool = kinds_of(config.kv_cache_groups), coordinator.block_pool
        hashes = [sha256(block) for block in range(BLOCKS)]
        share = numbers.choice([0.5, 0.8, 0.95])
        pending = []
        for kind in kinds:
            held = [numbers.random() < share for _ in range(BLOCKS)]
            if kind.window is None:
                # What is behind a gap is never found: in the one because it is not looked for, in
                # the other because it is not there.
                end = numbers.randint(BLOCKS // 2, BLOCKS)
                held = [block < end for block in range(BLOCKS)]
            pending.append([answer(held)])
            for group in kind.groups:
                for block, name in enumerate(hashes):
                    if held[block]:
                        key = make_block_hash_with_group_id(name, group)
                        pool.cached_block_hash_to_block.insert(key, pool.get_new_blocks(1)[0])
        most = numbers.randint(1, BLOCKS)
        _, tokens, _ = coordinator.find_longest_cache_hit(hashes, most * BLOCK)
        managers = coordinator.single_type_managers

        def needed(kind: int, blocks: int) -> int:
            manager = managers[kinds[kind].groups[0]]
            return manager.get_num_skipped_tokens(blocks * BLOCK) // BLOCK

        asked = Asked(kinds, pending, 1.0)
        assert asked.look()
        assert asked.longest(0, most, needed) * BLOCK == tokens
        found.add(tokens)
    assert len(found) > BLOCKS // 2


def test_of_a_window_only_what_the_engine_lacks_is_needed():
    kinds = kinds_of(groups(FULL, WINDOW))
    window = [False] * 6 + [True, True] + [False] * 4
    asked = Asked(kinds, [[answer([True] * 12)], [answer(window)]], 1.0)
    assert asked.look()

    def needed(kind: int, blocks: int) -> int:
        return max(0, blocks - 4)

    assert asked.longest(0, 12, needed) == 0
    assert asked.longest(5, 12, needed) == 0
    assert asked.longest(6, 12, needed) == 8
