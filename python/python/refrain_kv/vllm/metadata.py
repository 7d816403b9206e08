"""What the two halves of the connector tell each other, once a step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Self

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from .identity import Identity


@dataclass
class Move:
    """Blocks `first` and those behind it of a prompt, and where they lie in the engine's cache."""

    request: str
    #: Of a chain, all from the prompt's start on; with a window, only those of these blocks.
    names: list[bytes]
    first: int
    #: Of each group of its kind.
    block_ids: list[list[int]]
    #: Which of the engine's.
    kind: int

    @property
    def blocks(self) -> int:
        return len(self.block_ids[0])


@dataclass
class Save(Move):
    #: Its blocks are kept until all workers have named it.
    number: int


@dataclass
class Orders(KVConnectorMetadata):
    """From the scheduler to all workers."""

    #: What they cache from now on, a kind each; empty: as before.
    identities: list[Identity] = field(default_factory=list)
    loads: list[Move] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)


@dataclass
class Report(KVConnectorWorkerMetadata):
    """From the workers."""

    #: Those that are over, by how many of them.
    saves: Counter[int]
    #: Requests whose load came short: up to which block of the prompt nothing is missing.
    short: dict[str, int]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> Self:
        assert isinstance(other, Report)
        short = {**self.short, **other.short}
        for request in self.short.keys() & other.short.keys():
            short[request] = min(self.short[request], other.short[request])
        return type(self)(self.saves + other.saves, short)
