"""SGLang's own host pools, over device pools in the memory of the host."""

from __future__ import annotations

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.mem_cache.utils import get_storage_hash_str

PAGE = 16
LAYERS = 3
TOKENS = 16 * PAGE

FIELDS = {"weights": "seed 1", "config": "tiny"}


def mha(layout: str = "page_first", dtype: torch.dtype = torch.bfloat16) -> MHATokenToKVPoolHost:
    device = _device(MHATokenToKVPool, dtype, head_num=2, head_dim=32)
    return _beside(
        device,
        MHATokenToKVPoolHost(
            device.get_device_pool_infos()[0].buffer_info, 4.0, 0, PAGE, layout, **_host()
        ),
    )


def mla(layout: str = "page_first", dtype: torch.dtype = torch.bfloat16) -> MLATokenToKVPoolHost:
    device = _device(MLATokenToKVPool, dtype, kv_lora_rank=64, qk_rope_head_dim=16)
    return _beside(
        device,
        MLATokenToKVPoolHost(
            device.get_device_pool_infos()[0].buffer_info,
            4.0,
            0,
            PAGE,
            layout,
            target_layer_num=LAYERS,
            **_host(),
        ),
    )


def _device(kind, dtype: torch.dtype, **shape: int):
    return kind(
        size=TOKENS,
        page_size=PAGE,
        dtype=dtype,
        layer_num=LAYERS,
        device="cpu",
        enable_memory_saver=False,
        **shape,
    )


def _beside(device, host):
    """A host pool, and what it is of."""
    host.device_pool = device
    return host


def _host() -> dict:
    return {
        "pin_memory": False,
        "device": "cpu",
        "device_capacity_tokens": TOKENS,
        "start_layer": 0,
        "end_layer": LAYERS,
    }


def config(address: str, *, rank: int = 0, ranks: int = 1, is_mla: bool = False, **extra):
    """As SGLang's cache controller makes it."""
    return HiCacheStorageConfig(
        tp_rank=rank,
        tp_size=ranks,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=is_mla,
        enable_storage_metrics=False,
        is_page_first_layout=True,
        model_name="tiny",
        extra_config={
            "backend_name": "refrain",
            "module_path": "refrain_kv.sglang",
            "class_name": "RefrainStorage",
            "interface_v1": 1,
            "address": address,
            "deadline": 30.0,
            "session_arena_bytes": 16 << 20,
            **FIELDS,
            **extra,
        },
    )


def hashes(seed: int, pages: int) -> list[str]:
    """SGLang's names of a prompt's pages."""
    tokens = [seed * 10_000 + token for token in range(pages * PAGE)]
    return get_storage_hash_str(tokens, page_size=PAGE)


def fill(pool, seed: int) -> None:
    """Every byte of a pool, as no other seed has it."""
    generator = torch.Generator().manual_seed(seed)
    data = pool.kv_buffer.view(torch.uint8)
    data.copy_(torch.randint(0, 256, data.shape, dtype=torch.uint8, generator=generator))


def slots(*pages: int) -> torch.Tensor:
    """Host indices of whole pages."""
    return torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages])


def page(pool, number: int) -> bytes:
    """A page as SGLang itself reads it."""
    data = pool.get_data_page(number * PAGE).contiguous()
    return data.view(torch.uint8).numpy().tobytes()
