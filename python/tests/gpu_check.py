"""A round trip of a paged KV cache in the memory of a GPU, on a stream of its own, byte for byte.

    python python/tests/gpu_check.py --refrain target/release/refrain

needs PyTorch with CUDA and the wheel; `--device cpu` does the same without streams. Each claim
prints a line; the first that does not hold ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import refrain_kv as kv
import torch
from refrain_kv.torch import PagedCache

LAYERS, PAGES, PAGE_TOKENS, PAGES_PER_BLOCK = 16, 512, 16, 4
BLOCKS = 48
PROMPT = list(range(BLOCKS * PAGES_PER_BLOCK * PAGE_TOKENS))
#: Cycles that a kernel keeps a stream busy before it does what the test looks at: about 0.1 s.
DELAY = 200_000_000


class Sidecar:
    def __init__(self, refrain: Path, home: Path) -> None:
        self._refrain, self.home, self.socket = refrain, home, home / "sock"
        self.start()

    def start(self) -> None:
        drive = ["--dir", self.home / "drive", "--capacity", "4GiB", "--load-arena", "1GiB"]
        command = [self._refrain, "tied", str(os.getpid()), "serve", *drive]
        self._child = subprocess.Popen([*command, "--listen", f"unix:{self.socket}"])
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.socket)) == 0:
                    return
            assert self._child.poll() is None, "the sidecar did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        self._child.terminate()
        assert self._child.wait() == 0

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()


def latent(device: str) -> list:
    """MLA: 576 numbers a token."""
    shape = (PAGES, PAGE_TOKENS, 576)
    return [torch.zeros(shape, dtype=torch.bfloat16, device=device) for _ in range(LAYERS)]


def key_value(device: str) -> list:
    """GQA: keys and values apart."""
    shape = (PAGES, PAGE_TOKENS, 4, 128)
    plane = lambda: torch.zeros(shape, dtype=torch.bfloat16, device=device)  # noqa: E731
    return [(plane(), plane()) for _ in range(LAYERS)]


def planes(layer) -> list[torch.Tensor]:
    return [it.view(torch.uint8) for it in (layer if isinstance(layer, tuple) else (layer,))]


class Check:
    """One kind of cache, and the stream that its model computes on."""

    def __init__(self, client: kv.Client, make, device: str) -> None:
        self.device, self.layers = device, make(device)
        self.is_gpu = device.startswith("cuda")
        self.stream = torch.cuda.Stream(device) if self.is_gpu else None
        self.cache = PagedCache(
            client,
            self.layers,
            page_tokens=PAGE_TOKENS,
            pages_per_block=PAGES_PER_BLOCK,
            layout="latent" if make is latent else "key_value",
            tenant="check",
            model=make.__name__,
            weights="seed 1",
            config_digest=b"none",
            adapter_digest=b"",
            salt=b"",
            parallel=(1, 1, 1),
            shard=0,
        )
        order = torch.randperm(PAGES, generator=torch.Generator().manual_seed(1)).tolist()
        half = BLOCKS * PAGES_PER_BLOCK
        self.saved_from, self.loaded_into = order[:half], order[half : 2 * half]
        # On the device, since a list is copied there by a copy that waits.
        self.saved_index, self.loaded_index = (
            torch.tensor(pages, device=device) for pages in (self.saved_from, self.loaded_into)
        )
        if self.is_gpu:
            torch.cuda.synchronize(device)

    def on_stream(self):
        return torch.cuda.stream(self.stream) if self.is_gpu else contextlib.nullcontext()

    def delay(self) -> None:
        if self.is_gpu:
            torch.cuda._sleep(DELAY)

    def wait(self) -> None:
        if self.is_gpu:
            self.stream.synchronize()

    def save(self) -> None:
        """What is on the stream when a save begins is done before it reads a page."""
        generator = torch.Generator(self.device).manual_seed(1)
        with self.on_stream():
            self.delay()
            for layer in self.layers:
                for plane in planes(layer):
                    plane.random_(0, 256, generator=generator)
            expected = [[it[self.saved_index] for it in planes(la)] for la in self.layers]
            tokens = self.cache.save(PROMPT, self.saved_from, durable=True)
        assert tokens == len(PROMPT), f"{tokens} tokens of {len(PROMPT)} were saved"
        self.wait()
        self.expected = expected

    def load(self) -> float:
        """What is on the stream when a load begins is done before a page is written; what is put
        there behind `layer` is done after the layer is there, and nobody waits for the GPU."""
        found = []
        with self.on_stream():
            self.delay()
            for layer in self.layers:
                for plane in planes(layer):
                    plane.fill_(0x5A)
            with self.cache.lookup(PROMPT) as prefix:
                assert prefix.tokens == len(PROMPT), f"{prefix.tokens} tokens are kept"
                begun = time.monotonic()
                with prefix.begin_load(self.loaded_into) as load:
                    for number, layer in enumerate(self.layers):
                        assert load.layer(number) == len(PROMPT)
                        found.append([it[self.loaded_index] for it in planes(layer)])
                    assert load.finish() == len(PROMPT)
                elapsed = time.monotonic() - begun
        self.wait()
        for number, (there, right) in enumerate(zip(found, self.expected)):
            assert all(map(torch.equal, there, right)), f"layer {number} was read too early"
        rest = sorted(set(range(PAGES)) - set(self.loaded_into))
        for layer in self.layers:
            for plane in planes(layer):
                assert (plane[rest] == 0x5A).all(), "a page of others was written"
        return elapsed

    def cancel(self) -> None:
        """A load that was cancelled writes no page afterwards."""
        with self.on_stream():
            with self.cache.lookup(PROMPT) as prefix, prefix.begin_load(self.loaded_into):
                pass
            for layer in self.layers:
                for plane in planes(layer):
                    plane.fill_(0x22)
            assert self.cache.lookup(PROMPT).tokens == len(PROMPT)
        self.wait()
        for layer in self.layers:
            for plane in planes(layer):
                assert (plane == 0x22).all(), "a cancelled load went on"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--refrain", type=Path, required=True, help="the binary")
    parser.add_argument("--dir", type=Path, help="where the sidecar keeps its blocks")
    parser.add_argument("--device", default="cuda:0")
    args = parser.parse_args()
    print(f"torch {torch.__version__} on {args.device}", flush=True)
    with tempfile.TemporaryDirectory(prefix="r", dir=args.dir) as home:
        sidecar = Sidecar(args.refrain.resolve(), Path(home))
        try:
            for make in (latent, key_value):
                run(sidecar, make, args.device)
        finally:
            sidecar.kill()
    print("all holds")


def run(sidecar: Sidecar, make, device: str) -> None:
    def said(what: str) -> None:
        print(f"{make.__name__}: {what}", flush=True)

    with kv.Client(f"unix:{sidecar.socket}", session_arena_bytes=512 << 20, deadline=60) as client:
        check = Check(client, make, device)
        check.save()
        said("saved behind the stream that computed it")
        said(f"loaded layer by layer, right on a side stream, {check.load():.3f} s")
        said(f"and again, {check.load():.3f} s")
        sidecar.stop()
        sidecar.start()
        while not check.cache.lookup(PROMPT).tokens:
            pass
        said(f"loaded from SSD after a restart, {check.load():.3f} s")
        for _ in range(20):
            check.cancel()
        said("20 cancelled loads wrote nothing afterwards")
        sidecar.kill()
        assert check.cache.lookup(PROMPT).tokens == 0
        assert check.cache.save(PROMPT, check.saved_from) == 0
        said("a sidecar that is gone is a miss")
        sidecar.start()
        check.cache.close()


if __name__ == "__main__":
    sys.exit(main())
