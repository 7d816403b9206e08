"""How an engine's KV lies in memory. A block of a layer is opaque bytes: which token's keys lie
where in it is between the kernels, and enters the namespace as a digest."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata

from .. import KvCache, Plane
from .kinds import Kind


class UnknownLayout(ValueError):
    """Tensors whose blocks this connector cannot find."""


@dataclass(frozen=True)
class Shape:
    """Of the layers of one kind."""

    layers: int
    layer_bytes: int
    kv_dtype: str
    digest: bytes


@dataclass
class Facts(KVConnectorHandshakeMetadata):
    """What only a worker knows, told to the scheduler before the first request."""

    #: Of each kind.
    shapes: tuple[Shape, ...] = ()
    #: Why this worker cannot cache; empty if it can.
    fault: str = ""


def paged(kind: Kind, kv_caches: Mapping[str, torch.Tensor], blocks: int) -> KvCache:
    """A kind's tensors as a cache of `blocks` pages, in the order of the layers' names as vLLM has
    them. They must outlive it."""
    own = kind.own(kv_caches)
    if not own:
        raise UnknownLayout("no tensor is of a layer that the groups name")
    layers = [_planes(name, tensor, blocks) for name, tensor in own.items()]
    groups = [kind.place(name) for name in own]
    device = next(iter(own.values())).device
    ordinal = (device.index or 0) if device.type == "cuda" else None
    return KvCache(layers, groups=groups, pages=blocks, device=ordinal)


def shape(
    kind: Kind,
    kv_caches: Mapping[str, torch.Tensor],
    cache: KvCache,
    layers: Mapping[str, Any],
) -> Shape:
    """Of a kind's tensors; `layers` are the engine's attention layers by name."""
    kv_caches = kind.own(kv_caches)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in kv_caches.values()})
    shapes = [
        (tuple(tensor.shape[1:]), tensor.stride()[1:], _kernel(layers.get(name)))
        for name, tensor in kv_caches.items()
    ]
    seen = repr((shapes, _device(next(iter(kv_caches.values())).device)))
    if kind.places is not None:
        # Another kind of the same model may have as many layers of the same shape.
        seen += repr(list(kv_caches))
    return Shape(
        layers=cache.layers,
        layer_bytes=cache.layer_bytes,
        kv_dtype="+".join(dtypes),
        digest=hashlib.sha256(seen.encode()).digest(),
    )


def _planes(name: str, tensor: torch.Tensor, blocks: int) -> list[Plane]:
    """A layer's blocks lie along the first axis; or the first one is keys and values, and they lie
    along the second. Kernels may have split a block into several rows."""
    if tensor.shape[0] % blocks == 0 and tensor.shape[0] > 0:
        return [_plane(name, tensor, blocks)]
    if tensor.dim() > 1 and tensor.shape[0] == 2 and tensor.shape[1] % blocks == 0:
        return [_plane(name, half, blocks) for half in tensor]
    raise UnknownLayout(f"layer {name}: no axis of {tuple(tensor.shape)} is of {blocks} blocks")


def _plane(name: str, tensor: torch.Tensor, blocks: int) -> Plane:
    rows, size = tensor.shape[0] // blocks, tensor.element_size()
    run = 1
    # The other axes fill a run without gaps, in whatever order they lie.
    for stride, length in sorted(zip(tensor.stride()[1:], tensor.shape[1:], strict=True)):
        if length > 1 and stride != run:
            raise UnknownLayout(
                f"layer {name}: a block has gaps: {tensor.shape}, {tensor.stride()}"
            )
        run *= length
    row = tensor.stride(0)
    if row < run:
        raise UnknownLayout(f"layer {name}: blocks overlap: {tensor.shape}, {tensor.stride()}")
    if row == run:
        run, rows = run * rows, 1
    page = row * (tensor.shape[0] // blocks)
    return Plane(tensor.data_ptr(), page * size, run * size, rows=rows, row_stride=row * size)


def _kernel(layer: Any) -> tuple[str, str]:
    """Who reads and writes a layer's blocks."""
    if layer is None:
        return "", ""
    backend = layer.get_attn_backend()
    return f"{backend.__module__}.{backend.__qualname__}", str(getattr(layer, "isa", ""))


def _device(device: torch.device) -> tuple[str, ...]:
    if device.type == "cuda":
        return "cuda", str(torch.cuda.get_device_capability(device)), str(torch.version.cuda)
    if device.type == "cpu":
        return "cpu", platform.machine(), torch.backends.cpu.get_cpu_capability()
    raise UnknownLayout(f"KV lies on a device that Refrain does not know: {device}")
