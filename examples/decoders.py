"""Two decoders with a paged KV cache and random, seeded weights, in plain PyTorch.

`latent` is shaped as DeepSeek-V3 (MLA: 512 + 64 numbers a token and layer, whatever the number of heads), `grouped`
as Llama-3-70B (GQA: keys and values of 8 heads). What they say means nothing; what they cost, and the bytes of their
cache, are those of the real ones at the same width. Both prefill in chunks, as engines do: a chunk of a prompt
runs the same kernels on the same shapes whether what stands before it was computed or loaded, so that a hit and a
cold run can be compared bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

VOCABULARY = 32_000
BLOCK_TOKENS = 64


@dataclass(frozen=True)
class Shape:
    """What decides the bytes and the work of a decoder."""

    kind: str
    layers: int
    hidden: int
    heads: int
    ffn: int
    kv_heads: int = 8
    head_dim: int = 128
    # Of MLA alone.
    latent: int = 512
    rope: int = 64
    query_latent: int = 1536

    @property
    def kv_parts(self) -> int:
        """Tensors of the cache a layer: one latent, or keys and values."""
        return 1 if self.kind == "latent" else 2

    @property
    def kv_width(self) -> int:
        """Numbers a token in each of them."""
        return self.latent + self.rope if self.kind == "latent" else self.kv_heads * self.head_dim

    @property
    def layer_bytes(self) -> int:
        """Bytes of a block in one layer."""
        return BLOCK_TOKENS * self.kv_parts * self.kv_width * 2


SHAPES = {
    # A few layers as wide as the real ones, for times; all layers of a narrow one, for whole blocks.
    "deepseek-wide": Shape("latent", layers=4, hidden=7168, heads=128, ffn=18_432),
    "deepseek-deep": Shape("latent", layers=61, hidden=1024, heads=8, ffn=2048, query_latent=512),
    "llama-wide": Shape("grouped", layers=4, hidden=8192, heads=64, ffn=28_672),
    "llama-deep": Shape("grouped", layers=80, hidden=1024, heads=16, ffn=2048),
    "tiny-latent": Shape("latent", layers=3, hidden=64, heads=2, ffn=128, query_latent=32),
    "tiny-grouped": Shape("grouped", layers=3, hidden=64, heads=4, ffn=128, kv_heads=2, head_dim=16),
}


class PagedCache:
    """Pages of `BLOCK_TOKENS` tokens, a tensor a layer and part: [pages, tokens, numbers]."""

    def __init__(self, shape: Shape, pages: int, device: torch.device) -> None:
        size = (pages, BLOCK_TOKENS, shape.kv_width)
        made = range(shape.layers)
        parts = range(shape.kv_parts)
        self.layers = [
            [torch.zeros(size, dtype=torch.bfloat16, device=device) for _ in parts] for _ in made
        ]
        self.pages = pages

    def clear(self) -> None:
        for layer in self.layers:
            for part in layer:
                part.zero_()


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of the last dimension, by halves."""
    half = x.shape[-1] // 2
    rates = torch.arange(half, device=x.device, dtype=torch.float32) / half
    angles = positions.float()[:, None] * (10_000.0 ** -rates)[None, :]
    shape = [len(positions)] + [1] * (x.dim() - 2) + [half]
    cos, sin = angles.cos().view(shape), angles.sin().view(shape)
    left, right = x[..., :half].float(), x[..., half:].float()
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x.dtype)


def normed(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


class Decoder:
    """Weights, and how a chunk of a prompt goes through them."""

    def __init__(self, shape: Shape, device: torch.device, seed: int = 1) -> None:
        self.shape = shape
        self.device = device
        generator = torch.Generator(device=device).manual_seed(seed)

        def weight(inputs: int, outputs: int) -> Tensor:
            made = torch.empty(outputs, inputs, dtype=torch.bfloat16, device=device)
            return made.normal_(0.0, inputs**-0.5, generator=generator)

        s = shape
        self.embedding = weight(s.hidden, VOCABULARY)
        self.head = weight(s.hidden, VOCABULARY)
        self.layers: list[dict[str, Tensor]] = []
        for _ in range(s.layers):
            layer = {"up": weight(s.hidden, 2 * s.ffn), "down": weight(s.ffn, s.hidden)}
            if s.kind == "latent":
                inner = s.head_dim + s.rope
                layer |= {
                    "q_down": weight(s.hidden, s.query_latent),
                    "q_up": weight(s.query_latent, s.heads * inner),
                    "kv_down": weight(s.hidden, s.latent + s.rope),
                    "kv_up": weight(s.latent, s.heads * 2 * s.head_dim),
                    "out": weight(s.heads * s.head_dim, s.hidden),
                }
            else:
                layer |= {
                    "q": weight(s.hidden, s.heads * s.head_dim),
                    "kv": weight(s.hidden, 2 * s.kv_heads * s.head_dim),
                    "out": weight(s.heads * s.head_dim, s.hidden),
                }
            self.layers.append(layer)

    @torch.inference_mode()
    def prefill(
        self,
        cache: PagedCache,
        tokens: Tensor,
        pages: Tensor,
        start: int,
        chunk: int,
        before_layer: Callable[[int], None] = lambda layer: None,
    ) -> Tensor:
        """Computes tokens from `start` on, chunk by chunk, and returns the logits of the last one.

        `before_layer` is called before a layer of the first chunk reads the cache.
        """
        if start % chunk != 0:
            raise ValueError(f"token {start} does not begin a chunk of {chunk}")
        hidden = None
        for at in range(start, len(tokens), chunk):
            wait = before_layer if at == start else (lambda layer: None)
            hidden = self._chunk(cache, tokens[at : at + chunk], pages, at, wait)
        if hidden is None:
            raise ValueError("a prompt needs at least one token that is computed")
        return F.linear(normed(hidden[-1:]), self.head)[0].float()

    def _chunk(
        self, cache: PagedCache, tokens: Tensor, pages: Tensor, at: int, wait: Callable[[int], None]
    ) -> Tensor:
        positions = torch.arange(at, at + len(tokens), device=self.device)
        slots = pages[positions // BLOCK_TOKENS], positions % BLOCK_TOKENS
        read = pages[: -(-(at + len(tokens)) // BLOCK_TOKENS)]
        x = F.embedding(tokens, self.embedding)
        for number, (layer, parts) in enumerate(zip(self.layers, cache.layers)):
            wait(number)
            attend = self._latent if self.shape.kind == "latent" else self._grouped
            x = x + attend(layer, parts, normed(x), positions, slots, (read, at + len(tokens)))
            gate, up = F.linear(normed(x), layer["up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        return x

    def _latent(self, layer, parts, x, positions, slots, context) -> Tensor:
        s, (read, context) = self.shape, context
        count = len(x)
        compressed = F.linear(x, layer["kv_down"])
        rope = rotated(compressed[:, s.latent :], positions)
        parts[0][slots] = torch.cat((normed(compressed[:, : s.latent]), rope), -1)
        held = parts[0][read].flatten(0, 1)[:context]
        q = F.linear(normed(F.linear(x, layer["q_down"])), layer["q_up"])
        q = q.view(count, s.heads, s.head_dim + s.rope)
        q = torch.cat((q[..., : s.head_dim], rotated(q[..., s.head_dim :], positions)), -1)
        kv = F.linear(held[:, : s.latent], layer["kv_up"]).view(context, s.heads, 2 * s.head_dim)
        k_rope = held[:, None, s.latent :].expand(context, s.heads, s.rope)
        k = torch.cat((kv[..., : s.head_dim], k_rope), -1)
        # Kernels want values as wide as keys.
        v = F.pad(kv[..., s.head_dim :], (0, s.rope))
        found = attention(q, k, v)[..., : s.head_dim]
        return F.linear(found.reshape(count, -1), layer["out"])

    def _grouped(self, layer, parts, x, positions, slots, context) -> Tensor:
        s, (read, context) = self.shape, context
        count = len(x)
        k, v = F.linear(x, layer["kv"]).view(count, 2, s.kv_heads, s.head_dim).unbind(1)
        parts[0][slots] = rotated(k, positions).flatten(1)
        parts[1][slots] = v.flatten(1)
        held = [p[read].flatten(0, 1)[:context].view(context, s.kv_heads, s.head_dim) for p in parts]
        q = rotated(F.linear(x, layer["q"]).view(count, s.heads, s.head_dim), positions)
        k, v = (p.repeat_interleave(s.heads // s.kv_heads, 1) for p in held)
        return F.linear(attention(q, k, v).reshape(count, -1), layer["out"])


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of the last tokens of a context over all of it; [tokens, heads, numbers] each."""
    mask = causal_lower_right(len(q), len(k))
    q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)


def prompt_of(length: int, seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (length,), generator=generator).to(device)

