"""What `kv_connector_extra_config` may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Settings:
    """All have a default. Times are in milliseconds where users write them, in seconds here."""

    #: Of the sidecar, `unix:PATH`; by default `REFRAIN_ADDRESS`, then the standard socket.
    address: str | None
    #: Tenants do not see each other's blocks.
    tenant: str
    #: Stands for the weights where the connector cannot tell them by itself.
    weights: str | None
    #: How long a request waits at most before it is computed without the cache.
    lookup_deadline: float
    load_deadline: float
    #: How long blocks that are being saved stay allotted at most.
    save_deadline: float
    #: Memory that blocks to save are copied into, each rank's own.
    session_arena_bytes: int
    #: `reset_cache`, a sleeping engine's too, leaves what is stored valid: the operator knows that
    #: weights are never changed in place.
    keep_on_reset: bool

    @classmethod
    def read(cls, extra: Mapping[str, Any]) -> Self:
        """Of the engine's extra config; an unknown key is refused."""
        unknown = sorted(set(extra) - set(_DEFAULTS))
        if unknown:
            known = ", ".join(sorted(_DEFAULTS))
            raise ValueError(
                f"kv_connector_extra_config has no key {unknown[0]!r} for Refrain; it has {known}"
            )
        values = {key: extra.get(key, default) for key, default in _DEFAULTS.items()}
        for key, kind in _KINDS.items():
            value = values[key]
            if value is None and _DEFAULTS[key] is None:
                continue
            if type(value) not in kind or not _positive(value):
                raise ValueError(f"kv_connector_extra_config.{key}: {value!r} will not do")
        return cls(
            address=values["address"],
            tenant=values["tenant"],
            weights=values["weights"],
            lookup_deadline=values["lookup_deadline_ms"] / 1000,
            load_deadline=values["load_deadline_ms"] / 1000,
            save_deadline=values["save_deadline_ms"] / 1000,
            session_arena_bytes=values["session_arena_mib"] << 20,
            keep_on_reset=values["keep_on_reset"],
        )


_DEFAULTS: dict[str, Any] = {
    "address": None,
    "tenant": "default",
    "weights": None,
    "lookup_deadline_ms": 50,
    "load_deadline_ms": 5000,
    "save_deadline_ms": 5000,
    "session_arena_mib": 256,
    "keep_on_reset": False,
}
_KINDS: dict[str, tuple[type, ...]] = {
    "address": (str,),
    "tenant": (str,),
    "weights": (str,),
    "lookup_deadline_ms": (int, float),
    "load_deadline_ms": (int, float),
    "save_deadline_ms": (int, float),
    "session_arena_mib": (int,),
    "keep_on_reset": (bool,),
}


def _positive(value: Any) -> bool:
    return isinstance(value, bool) or bool(value) and (isinstance(value, str) or value > 0)
