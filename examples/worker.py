"""An inference worker: it computes what is not kept of a prompt, and saves it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from decoders import BLOCK_TOKENS, Decoder, PagedCache, Shape
from torch import Tensor

from refrain_kv import Client
from refrain_kv import torch as refrain


class Shorter(Exception):
    """Less of a prompt is there than was promised."""


@dataclass
class Answer:
    """The logits behind a prompt's last token, and what they took."""

    logits: Tensor
    # From the lookup until the logits are there.
    seconds: float
    # Tokens that were not computed.
    reused: int


class Worker:
    """A decoder, its cache and a session with a sidecar."""

    def __init__(
        self, shape: Shape, device: torch.device, tokens: int, chunk: int, address: str
    ) -> None:
        pages = -(-tokens // BLOCK_TOKENS)
        self.chunk = chunk
        self.device = device
        self.decoder = Decoder(shape, device)
        self.cache = PagedCache(shape, pages, device)
        # Scattered, as in an engine that has served for a while.
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(7))
        self.order = order.tolist()
        self.pages = order.to(device)
        self.client = Client(address, session_arena_bytes=1 << 30, deadline=60.0)
        self.kept = refrain.PagedCache(
            self.client,
            self.cache.layers,
            page_tokens=BLOCK_TOKENS,
            layout="latent" if shape.kind == "latent" else "key_value",
            tenant="examples",
            model=shape.kind,
            weights="seed 1",
            config_digest=repr(shape).encode(),
            adapter_digest=b"",
            salt=b"",
            parallel=(1, 1, 1),
            shard=0,
        )

    def cold(self, tokens: Tensor) -> Answer:
        """Computes everything."""
        self.cache.clear()
        begin = self._now()
        logits = self.decoder.prefill(self.cache, tokens, self.pages, 0, self.chunk)
        return Answer(logits, self._now() - begin, 0)

    def save(self, tokens: Tensor, patience: float = 60.0) -> None:
        """Saves what is not kept yet of a prompt whose KV is in the cache."""
        listed = tokens.tolist()
        full = len(listed) // BLOCK_TOKENS * BLOCK_TOKENS
        end = time.monotonic() + patience
        while time.monotonic() < end:
            with self.kept.lookup(listed) as prefix:
                if prefix.tokens == full:
                    return
            # A sidecar takes what its drives keep up with, and says no to the rest. An engine lets it go;
            # an example asks again.
            if self.kept.save(listed, self.order, durable=True) == 0:
                time.sleep(0.05)
        raise RuntimeError("the sidecar does not keep the prompt")

    def answer(self, tokens: Tensor, listed: list[int]) -> Answer:
        """Loads what is kept, and computes the rest while layers still come in."""
        self.cache.clear()
        begin = self._now()
        # A token at least is computed: what follows the prompt comes from its last one.
        with self.kept.lookup(listed[:-1]) as prefix:
            start = prefix.tokens // self.chunk * self.chunk
            with prefix.begin_load(self.order[: start // BLOCK_TOKENS]) as load:

                def wait(layer: int) -> None:
                    if load.layer(layer) < start:
                        raise Shorter

                try:
                    logits = self.decoder.prefill(
                        self.cache, tokens, self.pages, start, self.chunk,
                        wait if start else (lambda layer: None),
                    )
                except Shorter:
                    logits = None
                usable = min(load.finish(), start) if start else 0
        if logits is None or usable < start:
            # A stripe failed its check, or the sidecar has gone: what is left counts.
            start = usable // self.chunk * self.chunk
            logits = self.decoder.prefill(self.cache, tokens, self.pages, start, self.chunk)
        return Answer(logits, self._now() - begin, start)

    def load(self, listed: list[int]) -> tuple[float, float]:
        """What the sidecar foretells for a load of all that is kept, and what it takes, in seconds."""
        with self.kept.lookup(listed) as prefix:
            begin = self._now()
            prefix.load(self.order)
            return prefix.expected_load, self._now() - begin

    def warm(self) -> None:
        """Has a session, and its memory known to the GPU, before time counts."""
        # A prompt that nobody else has: its one block is saved and loaded.
        listed = [self.decoder.embedding.shape[0]] * BLOCK_TOKENS
        end = time.monotonic() + 60.0
        while time.monotonic() < end:
            self.kept.save(listed, self.order[:1])
            with self.kept.lookup(listed) as prefix:
                if prefix.load(self.order[:1]) == BLOCK_TOKENS:
                    return
            time.sleep(0.05)
        raise RuntimeError("the sidecar does not answer")

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def close(self) -> None:
        self.kept.close()
        self.client.close()
