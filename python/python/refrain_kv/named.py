"""Blocks that an engine names one by one, and keeps in pages of its host memory.

All calls wait, without the GIL, no longer than their deadline, and raise nothing because of the
sidecar: what is not found, not loaded or not saved in time is a miss. A block is a page of `cache`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import Literal

from . import AttentionGroup, Client, KvCache, Lookup, Namespace, RefrainError

log = logging.getLogger("refrain_kv")

#: After a call that was answered too late, how long nothing is asked.
PAUSE = 1.0
#: While the drives are behind, how often a save is tried again.
BUSY_INTERVAL = 0.01


def of_pages(
    *,
    tenant: str,
    model: str,
    weights: str,
    digest: object,
    kv_dtype: str,
    block_tokens: int,
    page_bytes: int,
    layout: Literal["key_value", "latent"],
    parallel: tuple[int, int, int],
    salt: bytes,
) -> Namespace:
    """The namespace of blocks that are a page each. `digest`, as JSON has it, is whatever else
    must be equal; `parallel` is tensor-, pipeline- and context-parallel."""
    tensor, pipeline, context = parallel
    text = json.dumps(digest, sort_keys=True, default=str)
    return Namespace(
        tenant=tenant,
        model=model,
        weights=weights,
        config_digest=hashlib.sha256(text.encode()).digest(),
        kv_dtype=kv_dtype,
        block_tokens=block_tokens,
        # A page is read whole, so that it is one layer to the sidecar.
        layers=1,
        layer_bytes=page_bytes,
        layout=layout,
        groups=[AttentionGroup.full(1)],
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        context_parallel=context,
        # Adapter and salt of a request are in the engine's names.
        adapter_digest=b"",
        salt=salt,
    )


class NamedBlocks:
    """`namespace` describes them; all of its blocks are one page of `cache` each.

    Raises what the sidecar minds about the namespace, if it is there; `deadline`, in seconds, is
    that of a call.
    """

    def __init__(
        self, client: Client, namespace: Namespace, shard: int, cache: KvCache, deadline: float
    ) -> None:
        self._registration = client.register(namespace, shard=shard)
        self._cache = cache
        self._deadline = deadline
        self._paused_until = 0.0
        self._logged: set[str] = set()
        self._log_lock = threading.Lock()
        self.block_bytes = namespace.block_bytes

    def find(self, names: Sequence[bytes], end: float = math.inf) -> list[bool]:
        """Which of them are kept. `end`, of the monotonic clock, is when that must be known."""
        lookup = self._lookup(names, end - time.monotonic())
        if lookup is None:
            return [False] * len(names)
        with lookup:
            return resident(lookup)

    def load(self, names: Sequence[bytes], pages: Sequence[int], end: float = math.inf) -> int:
        """Loads them into pages; returns how many have their bytes, from the first one on. Nothing
        is written into any page afterwards. What has not come by `end` is a miss."""
        end = min(end, time.monotonic() + self._deadline)
        done = 0
        while done < len(names):
            step, is_more = self._load(names[done:], pages[done:], end)
            done += step
            if not step or not is_more:
                break
        return done

    def save(self, names: Sequence[bytes], pages: Sequence[int]) -> list[bool]:
        """Saves those that are not kept; returns which of them are kept now, as far as is known.
        The pages must keep their bytes meanwhile."""
        end = time.monotonic() + self._deadline
        while True:
            kept, is_busy = self._save(names, pages, end)
            if not is_busy or time.monotonic() + BUSY_INTERVAL > end:
                return kept
            # Nothing tells when a drive has caught up.
            time.sleep(BUSY_INTERVAL)

    def close(self) -> None:
        self._registration.close()

    def _load(self, names: Sequence[bytes], pages: Sequence[int], end: float) -> tuple[int, bool]:
        lookup = self._lookup(names, end - time.monotonic())
        if lookup is None:
            return 0, False
        with lookup:
            matched = lookup.matched_blocks
            if not matched:
                return 0, False
            try:
                left = max(end - time.monotonic(), 0.001)
                with lookup.load_into(self._cache, pages[:matched], deadline=left) as load:
                    loaded = load.finish()
                # Of nothing, no lease is worth the wait for a sidecar that may hang.
                held = loaded.blocks > 0 and lookup.release()
            except RefrainError as error:
                self._say(error)
                return 0, False
            # What was evicted meanwhile may have been overwritten before it was copied.
            blocks = loaded.blocks if held else 0
            return blocks, held and loaded.reason in ("none", "no_memory")

    def _save(
        self, names: Sequence[bytes], pages: Sequence[int], end: float
    ) -> tuple[list[bool], bool]:
        lookup = self._lookup(names, end - time.monotonic())
        if lookup is None:
            return [False] * len(names), False
        with lookup:
            kept = resident(lookup)
            try:
                with lookup.begin_save_from(self._cache, pages, first=0) as saving:
                    saved = saving.result(max(end - time.monotonic(), 0))
            except TimeoutError:
                return kept, False
            except RefrainError as error:
                self._say(error)
                return kept, False
            wanted = (index for index, is_kept in enumerate(kept) if not is_kept)
            for index, _ in zip(list(wanted), range(saved.saved)):
                kept[index] = True
            return kept, saved.refusal == "busy" and not all(kept)

    def _lookup(self, names: Sequence[bytes], left: float) -> Lookup | None:
        begun = time.monotonic()
        if not names or left <= 0 or begun < self._paused_until:
            return None
        deadline = min(left, self._deadline)
        try:
            lookup = self._registration.lookup_hashes(names, separate=True, deadline=deadline)
        except RefrainError as error:
            self._say(error)
            return None
        if not lookup.absent:
            return lookup
        if time.monotonic() - begun >= deadline:
            # It hangs: whoever comes next shall not wait as long.
            self._paused_until = time.monotonic() + PAUSE
        return None

    def _say(self, error: RefrainError) -> None:
        """Once a kind: it may come with every call."""
        with self._log_lock:
            if error.code in self._logged:
                return
            self._logged.add(error.code)
        log.warning("goes on without what is kept: %s", error)


def resident(lookup: Lookup) -> list[bool]:
    """Of separate names, which are kept."""
    found = [tier != "unspecified" for tier, blocks in lookup.tiers for _ in range(blocks)]
    return found + [False] * (lookup.prompt_blocks - len(found))
