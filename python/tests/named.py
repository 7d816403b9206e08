"""Blocks that an engine has named; what is in them is no matter here."""

from __future__ import annotations

import hashlib

import numpy as np
import refrain_kv as kv
from conftest import LAYERS, PAGE_BYTES, PAGES_PER_BLOCK, namespace


def names(seed: int, blocks: int) -> list[bytes]:
    return [hashlib.sha256(f"{seed} {block}".encode()).digest() for block in range(blocks)]


class Worker:
    """Saves them, and looks them up."""

    def __init__(self, client: kv.Client, shard: int = 0, **fields) -> None:
        pages = 8 * PAGES_PER_BLOCK
        layers = [np.zeros((pages, PAGE_BYTES), np.uint8) for _ in range(LAYERS)]
        self._cache = kv.KvCache(layers, pages_per_block=PAGES_PER_BLOCK)
        self._registration = client.register(namespace(**fields), shard=shard)

    def save(self, hashes: list[bytes], separate: bool = False) -> None:
        self._save(self._registration.lookup_hashes(hashes, separate=separate))

    def save_tokens(self, tokens: list[int]) -> None:
        self._save(self._registration.lookup(tokens))

    def load(self, hashes: list[bytes]) -> int:
        """How many come."""
        with self._registration.lookup_hashes(hashes, separate=True) as lookup:
            pages = range(lookup.matched_blocks * PAGES_PER_BLOCK)
            with lookup.load_into(self._cache, pages) as load:
                return load.finish().blocks

    def _save(self, lookup: kv.Lookup) -> None:
        with lookup:
            pages = range(lookup.prompt_blocks * PAGES_PER_BLOCK)
            saved = lookup.save_from(self._cache, pages, first=0)
            assert saved.saved == saved.offered and saved.refusal == "none"
            lookup.release()

    def look_up(self, hashes: list[bytes], separate: bool = False) -> int:
        with self._registration.lookup_hashes(hashes, separate=separate) as lookup:
            return lookup.matched_blocks

    def tiers(self, hashes: list[bytes]) -> list[tuple[str, int]]:
        with self._registration.lookup_hashes(hashes, separate=True) as lookup:
            return lookup.tiers
