"""Which blocks routers have been told of, from a sidecar's changes.

A block is told when all of its shards are resident, and taken back when one goes. Blocks that were
saved by tokens have no name that a router knows, and are never told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .. import Change

#: An event as msgpack has it, and an engine's name as its own events carry it.
Event = dict[str, Any]
Name = bytes | int


@dataclass(frozen=True)
class Dialect:
    """How an engine's own events tell the same."""

    name: Callable[[bytes], Name]
    medium: str
    #: What a vLLM adds to both, and SGLang does not know.
    extra: tuple[tuple[str, Any], ...] = ()

    def stored(self, names: list[Name]) -> Event:
        return {
            "type": "BlockStored",
            "block_hashes": names,
            # As vLLM leaves them open where its own tiers tell: who knows the name knows the rest.
            "parent_block_hash": None,
            "token_ids": [],
            "block_size": 0,
            "lora_id": None,
            "medium": self.medium,
            "lora_name": None,
            **dict(self.extra),
        }

    def removed(self, names: list[Name]) -> Event:
        return {
            "type": "BlockRemoved",
            "block_hashes": names,
            "medium": self.medium,
            **dict(self.extra),
        }


def _low_64(name: bytes) -> int:
    return int.from_bytes(name[-8:], "big")


def _first_64_signed(name: bytes) -> int:
    return int.from_bytes(name[:8], "big", signed=True)


DIALECTS = {
    # vLLM's default, and with VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0.
    "vllm": Dialect(_low_64, "STORAGE", (("locality", "LOCAL"),)),
    "vllm-bytes": Dialect(bytes, "STORAGE", (("locality", "LOCAL"),)),
    "sglang": Dialect(_first_64_signed, "DISK"),
}


@dataclass
class Ledger:
    """`model` alone is told of, where it is given."""

    dialect: Dialect
    model: str | None = None
    #: Shards that are resident, a bit each, of each block of each namespace.
    _resident: dict[bytes, dict[bytes, int]] = field(default_factory=dict)
    _shards: dict[bytes, int] = field(default_factory=dict)
    #: In how many namespaces a block of a name is whole: to routers, a name is one block.
    _whole: dict[bytes, int] = field(default_factory=dict)

    def take(self, change: Change) -> Event | None:
        """What routers are to be told of a change."""
        if not change.engine_hashes or (self.model is not None and change.model != self.model):
            return None
        shards = self._shards.setdefault(change.namespace_digest, change.shards)
        known = self._resident.setdefault(change.namespace_digest, {})
        whole, bit = (1 << shards) - 1, 1 << change.shard
        names = []
        for name in change.engine_hashes:
            before = known.get(name, 0)
            after = before | bit if change.kind == "stored" else before & ~bit
            if after:
                known[name] = after
            elif before:
                del known[name]
            if (before == whole) != (after == whole) and self._turns(name, after == whole):
                names.append(self.dialect.name(name))
        if not names:
            return None
        if change.kind == "stored":
            return self.dialect.stored(names)
        return self.dialect.removed(names)

    def forget(self, at_once: int) -> Iterator[Event]:
        """The sidecar has gone, and all that was told is taken back."""
        names = [self.dialect.name(name) for name in self._whole]
        for start in range(0, len(names), at_once):
            yield self.dialect.removed(names[start : start + at_once])
        for known in (self._resident, self._shards, self._whole):
            known.clear()

    def _turns(self, name: bytes, is_whole: bool) -> bool:
        """Counts a block that has become whole or has ceased to be; whether that is the first of
        its name, or was the last."""
        others = self._whole.pop(name, 0) - (not is_whole)
        if others + is_whole:
            self._whole[name] = others + is_whole
        return not others
