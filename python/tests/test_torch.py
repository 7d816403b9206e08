"""Prompts of a paged KV cache of PyTorch tensors come back byte for byte, whole and in part, and a
sidecar that goes away is a miss."""

from __future__ import annotations

import pytest
import refrain_kv as kv
from conftest import PATIENCE

torch = pytest.importorskip("torch", reason="PyTorch is not installed: its tests do not run")
from refrain_kv import torch as paged  # noqa: E402

LAYERS = 4
PAGES = 64
PAGE_TOKENS = 16
PROMPT = list(range(1000, 1000 + 8 * 2 * PAGE_TOKENS + 5))


def latent() -> list:
    """MLA: one vector a token."""
    return [torch.zeros(PAGES, PAGE_TOKENS, 576, dtype=torch.bfloat16) for _ in range(LAYERS)]


def key_value() -> list:
    """GQA: keys and values apart."""
    shape = (PAGES, PAGE_TOKENS, 2, 64)
    return [tuple(torch.zeros(shape, dtype=torch.float16) for _ in "kv") for _ in range(LAYERS)]


def float8() -> list:
    """A data type that arrays of other libraries do not have; half of a wider tensor."""
    wide = [torch.zeros(PAGES, PAGE_TOKENS, 2, 512).to(torch.float8_e4m3fn) for _ in range(LAYERS)]
    return [layer[:, :, 0] for layer in wide]


def cache(client, layers, **more):
    fields = dict(
        page_tokens=PAGE_TOKENS,
        pages_per_block=2,
        layout="latent",
        tenant="tests",
        model="tiny",
        weights="seed 1",
        config_digest=b"config",
        adapter_digest=b"",
        salt=b"",
        parallel=(1, 1, 1),
        shard=0,
    )
    return paged.PagedCache(client, layers, **{**fields, **more})


def planes(layers) -> list:
    return [
        plane.view(torch.uint8)
        for layer in layers
        for plane in (layer if isinstance(layer, tuple) else (layer,))
    ]


def fill(layers, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for plane in planes(layers):
        plane.copy_(torch.randint(0, 256, plane.shape, dtype=torch.uint8, generator=generator))


@pytest.mark.parametrize("make", [latent, key_value, float8])
def test_a_prompt_is_loaded_as_it_was_saved(client, make):
    layers = make()
    pages = torch.randperm(PAGES, generator=torch.Generator().manual_seed(1))[:16].tolist()
    others = [page for page in range(PAGES) if page not in pages][:16]
    with cache(client, layers) as kept:
        assert kept.block_tokens == 32
        fill(layers, 1)
        with kept.lookup(PROMPT) as prefix:
            assert (prefix.tokens, prefix.load(pages)) == (0, 0)
        assert kept.save(torch.tensor(PROMPT), pages) == 8 * 32
        assert kept.save(PROMPT, pages) == 0
        saved = [plane[pages].clone() for plane in planes(layers)]
        for plane in planes(layers):
            plane.zero_()
        with kept.lookup(PROMPT) as prefix:
            assert prefix.tokens == 8 * 32
            assert prefix.expected_load >= 0
            with prefix.begin_load(others) as load:
                assert [load.layer(layer) for layer in range(LAYERS)] == [8 * 32] * LAYERS
                assert load.finish() == 8 * 32
        for plane, bytes in zip(planes(layers), saved):
            assert torch.equal(plane[others], bytes)
            plane[others] = 0
            assert not plane.any()


def test_part_of_a_prompt_is_loaded_and_the_rest_saved(client):
    layers = latent()
    with cache(client, layers) as kept:
        fill(layers, 2)
        assert kept.save(PROMPT[:100], list(range(6))) == 96
        with kept.lookup(PROMPT) as prefix:
            assert prefix.load(list(range(16))) == 96
        assert kept.save(PROMPT, list(range(16))) == 160
        with kept.lookup(PROMPT[:-40]) as prefix:
            assert prefix.tokens == 7 * 32 - 32 * (len(PROMPT[:-40]) < 7 * 32)


def test_caches_that_differ_in_shape_or_digest_do_not_share_prompts(client):
    layers = latent()
    with cache(client, layers) as kept:
        fill(layers, 3)
        assert kept.save(PROMPT, list(range(16))) == 256
    found = []
    for other, more in (
        (latent(), {}),
        (latent(), {"config_digest": b"another"}),
        (latent(), {"salt": b"salt"}),
        ([layer.view(PAGES, PAGE_TOKENS, 4, 144) for layer in latent()], {}),
        ([layer.view(torch.float16) for layer in latent()], {}),
    ):
        with cache(client, other, **more) as kept, kept.lookup(PROMPT) as prefix:
            found.append(prefix.tokens)
    assert found == [256, 0, 0, 0, 0]


def test_a_missing_digest_and_mixed_types_are_refused(client):
    with pytest.raises(kv.RefusedError, match="`config_digest` is missing"):
        cache(client, latent(), config_digest=b"")
    with pytest.raises(kv.CacheError, match="several data types"):
        cache(client, latent()[:3] + [torch.zeros(PAGES, PAGE_TOKENS, 288)])


def test_a_sidecar_that_is_gone_is_a_miss_and_one_that_is_back_is_found(sidecar):
    layers = latent()
    with kv.Client(sidecar.address, deadline=PATIENCE) as client, cache(client, layers) as kept:
        fill(layers, 4)
        assert kept.save(PROMPT, list(range(16)), durable=True) == 256
        prefix = kept.lookup(PROMPT)
        sidecar.kill()
        assert prefix.load(list(range(16))) == 0
        with kept.lookup(PROMPT) as prefix:
            assert (prefix.tokens, prefix.load(list(range(16)))) == (0, 0)
        assert kept.save(PROMPT, list(range(16))) == 0
        sidecar.start()
        while not (found := kept.lookup(PROMPT)).tokens:
            pass
        assert found.load(list(range(16))) == 256
