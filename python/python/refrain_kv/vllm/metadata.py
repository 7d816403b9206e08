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
    names: list[bytes]
    first: int
    block_ids: list[int]


@dataclass
class Save(Move):
    #: Its blocks are kept until all workers have named it.
    number: int


@dataclass
class Orders(KVConnectorMetadata):
    """From the scheduler to all workers."""

    #: What they cache from now on; None: as before.
    identity: Identity | None = None
    loads: list[Move] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)


@dataclass
class Report(KVConnectorWorkerMetadata):
    """From the workers: saves that are over, by how many of them."""

    saves: Counter[int]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> Self:
        assert isinstance(other, Report)
        return type(self)(self.saves + other.saves)
