"""KV of prompts kept on SSD by a sidecar: look up, load into a paged KV cache, save out of it."""

import os

from ._native import (
    AttentionGroup,
    Change,
    Client,
    KvCache,
    Load,
    Loaded,
    Lookup,
    Namespace,
    Pending,
    Plane,
    Registration,
    RemoteClient,
    RemoteLookup,
    RemoteRegistration,
    Saved,
    Watch,
    forked,
)
from .errors import (
    AbsentError,
    AddressError,
    AnswerError,
    ArenaTooSmallError,
    BlocksOutOfRangeError,
    CacheError,
    CancelledError,
    ClosedError,
    RefrainError,
    RefusedError,
    TransferError,
)

__all__ = [
    "AbsentError",
    "AddressError",
    "AnswerError",
    "ArenaTooSmallError",
    "AttentionGroup",
    "BlocksOutOfRangeError",
    "CacheError",
    "CancelledError",
    "Change",
    "Client",
    "ClosedError",
    "KvCache",
    "Load",
    "Loaded",
    "Lookup",
    "Namespace",
    "Pending",
    "Plane",
    "RefrainError",
    "RefusedError",
    "Registration",
    "RemoteClient",
    "RemoteLookup",
    "RemoteRegistration",
    "Saved",
    "TransferError",
    "Watch",
]

# The threads of a client stay in the process that made it.
os.register_at_fork(after_in_child=forked)
del forked, os
