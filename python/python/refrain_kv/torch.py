"""A paged KV cache of PyTorch tensors whose prompts are kept: look up, load what is there, compute
the rest, save it.

Nothing here fails because the sidecar is absent or busy: that is a miss, or a save of nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Literal, Self, TypeVar

import torch

from . import (
    AttentionGroup,
    CacheError,
    Client,
    KvCache,
    Load,
    Lookup,
    Namespace,
    RefrainError,
)

_Answer = TypeVar("_Answer")


class _Closes:
    """Closed by whoever leaves it."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class PagedCache(_Closes):
    """The tensors that a model keeps its KV in, and the namespace that its prompts are kept under.

    `layers` has for each layer its tensor, or its tensors (keys and values). A tensor's first axis
    is that of pages, of `page_tokens` tokens each; `pages_per_block` pages make up a block, the
    unit of reuse. `weights`, `config_digest`, `adapter_digest` and `salt` must tell apart whatever
    computes other KV, or has no business with this one's; the last two may be empty. `parallel`
    is how many ranks share a block: tensor-, pipeline- and context-parallel; `shard` is this one's.
    """

    def __init__(
        self,
        client: Client,
        layers: Sequence[torch.Tensor | Sequence[torch.Tensor]],
        *,
        page_tokens: int,
        pages_per_block: int = 1,
        layout: Literal["key_value", "latent"],
        tenant: str,
        model: str,
        weights: str,
        config_digest: bytes,
        adapter_digest: bytes,
        salt: bytes,
        parallel: tuple[int, int, int],
        shard: int,
    ) -> None:
        planes = [[it] if isinstance(it, torch.Tensor) else list(it) for it in layers]
        first = planes[0][0]
        if any(plane.dtype != first.dtype for layer in planes for plane in layer):
            raise CacheError("tensors of several data types", "cache", False)
        # As bytes, since not every exchange of arrays knows every data type. Tensors of a GPU other
        # than the current one are not handed out.
        with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
            self._cache = KvCache(
                [[plane.detach().view(torch.uint8) for plane in layer] for layer in planes],
                pages_per_block=pages_per_block,
            )
        self._pages_per_block = pages_per_block
        self._device = first.device
        # A page whose axes stand in another order holds other bytes.
        shapes = [[tuple(plane.shape[1:]) for plane in layer] for layer in planes]
        digest = hashlib.sha256(repr((config_digest, page_tokens, shapes)).encode())
        tensor, pipeline, context = parallel
        namespace = Namespace(
            tenant=tenant,
            model=model,
            weights=weights,
            # Nothing stands for a digest that was not given.
            config_digest=config_digest and digest.digest(),
            kv_dtype=str(first.dtype).removeprefix("torch."),
            block_tokens=page_tokens * pages_per_block,
            layers=len(planes),
            layer_bytes=self._cache.layer_bytes,
            layout=layout,
            groups=[AttentionGroup.full(len(planes))],
            tensor_parallel=tensor,
            pipeline_parallel=pipeline,
            context_parallel=context,
            adapter_digest=adapter_digest,
            salt=salt,
        )
        self.block_tokens = namespace.block_tokens
        self._registration = client.register(namespace, shard=shard)

    def lookup(self, tokens: Sequence[int] | torch.Tensor) -> Prefix:
        """What is kept of a prompt. A model that must compute a token at least looks up all but the
        last one."""
        return Prefix(self, self._lookup(tokens))

    def save(
        self, tokens: Sequence[int] | torch.Tensor, pages: Sequence[int], *, durable: bool = False
    ) -> int:
        """Saves what is not kept yet of a prompt whose KV lies in `pages`, behind what is on the
        current stream. Returns how many tokens were stored. The pages must keep their bytes until
        it returns."""
        lookup = self._lookup(tokens)
        if lookup is None:
            return 0
        with lookup:
            each = self._pages_per_block
            pages = list(pages)[lookup.matched_blocks * each : lookup.prompt_blocks * each]
            saved = _unless_absent(
                lambda: lookup.save_from(self._cache, pages, after=self._stream(), durable=durable)
            )
        return 0 if saved is None else saved.saved * self.block_tokens

    def close(self) -> None:
        """Gives the tensors back."""
        self._registration.close()
        self._cache.close()

    def _lookup(self, tokens: Sequence[int] | torch.Tensor) -> Lookup | None:
        return _unless_absent(lambda: self._registration.lookup(tokens))

    def _stream(self) -> int | None:
        if self._device.type != "cuda":
            return None
        return torch.cuda.current_stream(self._device).cuda_stream


class Prefix(_Closes):
    """What is kept of a prompt, for as long as it is open."""

    def __init__(self, cache: PagedCache, lookup: Lookup | None) -> None:
        self._cache = cache
        self._lookup = lookup
        #: How many tokens of the prompt are kept, from the first one on.
        self.tokens = 0 if lookup is None else lookup.matched_blocks * cache.block_tokens
        #: Seconds that loading them should take.
        self.expected_load = 0.0 if lookup is None else lookup.expected_load

    def load(self, pages: Sequence[int]) -> int:
        """Loads what is kept into the prompt's pages; returns how many tokens have their KV now."""
        with self.begin_load(pages) as load:
            return load.finish()

    def begin_load(self, pages: Sequence[int]) -> LayeredLoad:
        """The same layer by layer, for a model that computes meanwhile. Copies begin behind what is
        on the current stream."""
        load = None
        if self._lookup is not None and self.tokens:
            lookup, cache = self._lookup, self._cache
            pages = list(pages)[: lookup.matched_blocks * cache._pages_per_block]
            load = _unless_absent(
                lambda: lookup.load_into(cache._cache, pages, after=cache._stream())
            )
        return LayeredLoad(self._cache, self._lookup, load)

    def close(self) -> None:
        """Releases what was kept for it."""
        if self._lookup is not None:
            self._lookup.close()


class LayeredLoad(_Closes):
    """A load under way. Leaving it cancels what has not come."""

    def __init__(self, cache: PagedCache, lookup: Lookup | None, load: Load | None) -> None:
        self._cache = cache
        self._lookup = lookup
        self._load = load

    def layer(self, layer: int) -> int:
        """Has the current stream wait for a layer; returns how many tokens may be read of it. That
        may become fewer from layer to layer: what was computed with more is to be thrown away."""
        if self._load is None:
            return 0
        return self._load.layer(layer, self._cache._stream() or 0) * self._cache.block_tokens

    def finish(self) -> int:
        """Waits until all is there; returns how many tokens have their KV. Only these count."""
        if self._load is None or self._lookup is None:
            return 0
        blocks = self._load.finish().blocks
        # What was evicted meanwhile may have been overwritten before it was copied.
        held = _unless_absent(self._lookup.release)
        return blocks * self._cache.block_tokens if held else 0

    def close(self) -> None:
        """Cancels what has not come; then the pages are the caller's again."""
        if self._load is not None:
            self._load.cancel()


def _unless_absent(call: Callable[[], _Answer]) -> _Answer | None:
    """`None` where the sidecar cannot answer now."""
    try:
        return call()
    except RefrainError as error:
        if not error.retry:
            raise
        return None
