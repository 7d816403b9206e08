"""Kinds of layers: each is cached by itself, and a prompt is loaded where all kinds hold it.

vLLM puts layers into groups with a block table each, and finds a prompt's blocks for all groups of
one spec together, so that their tables have blocks at the same places: here these are one kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

T = TypeVar("T")
#: Those with a window, and where their spec has its tokens.
WINDOWS = {SlidingWindowSpec: "sliding_window", ChunkedLocalAttentionSpec: "attention_chunk_size"}


@dataclass(frozen=True)
class Kind:
    block_tokens: int
    #: vLLM's groups, by number.
    groups: tuple[int, ...] = (0,)
    #: Of each layer, which of these groups has it. None: one group has them all, those too that
    #: only share another's tensor.
    places: Mapping[str, int] | None = None
    #: How many tokens back its layers look at most: the blocks before those are not needed, and
    #: not kept. They stand behind no other, so that the last ones may be there alone.
    window: int | None = None
    #: Latent attention: all ranks have the same.
    latent: bool = False

    def own(self, layers: Mapping[str, T]) -> dict[str, T]:
        """Those of this kind."""
        if self.places is None:
            return dict(layers)
        return {name: layer for name, layer in layers.items() if name in self.places}

    def place(self, layer: str) -> int:
        return 0 if self.places is None else self.places[layer]


def kinds_of(groups: Sequence[Any]) -> list[Kind]:
    """Of an engine's groups, which have no fault."""
    specs: list[Any] = []
    for group in groups:
        if group.kv_cache_spec not in specs:
            specs.append(group.kv_cache_spec)
    return [_kind(spec, groups) for spec in specs]


def fault_of(groups: Sequence[Any]) -> str:
    """Why an engine of such groups is not cached; empty where it is."""
    kinds = sorted({type(group.kv_cache_spec).__name__ for group in groups})
    said = f"the KV cache has {len(groups)} groups of {', '.join(kinds)}"
    if len(groups) == 1 and type(groups[0].kv_cache_spec) in (FullAttentionSpec, MLAAttentionSpec):
        return ""
    off = "; sliding windows become full attention with --disable-hybrid-kv-cache-manager"
    types = {type(group.kv_cache_spec) for group in groups}
    if FullAttentionSpec not in types or types - {FullAttentionSpec, *WINDOWS}:
        return (
            f"{said}, and only full attention, alone or with windows beside it, is supported{off}"
        )
    if len({group.kv_cache_spec.block_size for group in groups}) > 1:
        return f"{said} with blocks of several sizes{off}"
    return ""


def _kind(spec: Any, groups: Sequence[Any]) -> Kind:
    own = [number for number, group in enumerate(groups) if group.kv_cache_spec == spec]
    places = {name: place for place, it in enumerate(own) for name in groups[it].layer_names}
    window = WINDOWS.get(type(spec))
    return Kind(
        block_tokens=spec.block_size,
        groups=tuple(own),
        places=None if len(groups) == 1 else places,
        window=None if window is None else getattr(spec, window),
        latent=isinstance(spec, MLAAttentionSpec),
    )
