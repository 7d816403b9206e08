"""Two tensor-parallel ranks, each a process with a GPU of its own, and one sidecar.

    python python/tests/shards_check.py --refrain target/release/refrain

needs PyTorch with CUDA, two GPUs and the wheel; `--device cpu` does the same in memory. Each claim
prints a line; the first that does not hold ends it.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import refrain_kv as kv
import torch
from gpu_check import Sidecar
from refrain_kv.torch import PagedCache

RANKS = 2
LAYERS, PAGES, PAGE_TOKENS, PAGES_PER_BLOCK = 32, 384, 16, 4
HEADS, HEAD_SIZE = 4, 128
BLOCKS = PAGES // PAGES_PER_BLOCK
PROMPT = list(range(BLOCKS * PAGES_PER_BLOCK * PAGE_TOKENS))
OTHER = [token + 1 for token in PROMPT[: len(PROMPT) // 2]]
LAYER_BYTES = 2 * PAGE_TOKENS * PAGES_PER_BLOCK * HEADS * HEAD_SIZE * 2
RANK_BYTES = BLOCKS * LAYERS * LAYER_BYTES


class Rank:
    """One rank's share of the heads, and what its parent has it do."""

    def __init__(self, number: int, device: str, address: str) -> None:
        self.device = device
        shape = (PAGES, PAGE_TOKENS, HEADS, HEAD_SIZE)
        generator = torch.Generator(device).manual_seed(number)
        self.layers = []
        for _ in range(LAYERS):
            layer = tuple(torch.zeros(shape, dtype=torch.bfloat16, device=device) for _ in "kv")
            for plane in layer:
                plane.view(torch.uint8).random_(0, 256, generator=generator)
            self.layers.append(layer)
        self.right = [tuple(plane.clone() for plane in layer) for layer in self.layers]
        self.client = kv.Client(address, session_arena_bytes=512 << 20, deadline=60)
        self.cache = PagedCache(
            self.client,
            self.layers,
            page_tokens=PAGE_TOKENS,
            pages_per_block=PAGES_PER_BLOCK,
            layout="key_value",
            tenant="check",
            model="shards",
            weights="seed 1",
            config_digest=b"none",
            adapter_digest=b"",
            salt=b"",
            parallel=(RANKS, 1, 1),
            shard=number,
        )

    def save(self, tokens: list[int]) -> int:
        """Until all of it is there: the drives may be behind."""
        deadline = time.monotonic() + 60
        while (found := self.find(tokens)) < len(tokens) and time.monotonic() < deadline:
            self.cache.save(tokens, range(PAGES), durable=True)
        return found

    def find(self, tokens: list[int]) -> int:
        with self.cache.lookup(tokens) as prefix:
            return prefix.tokens

    def load(self, tokens: list[int]) -> float:
        """Into cleared pages, each byte compared; seconds from the request to the last layer."""
        for layer in self.layers:
            for plane in layer:
                plane.zero_()
        self.wait()
        with self.cache.lookup(tokens) as prefix:
            begun = time.monotonic()
            loaded = prefix.load(range(PAGES))
            self.wait()
            elapsed = time.monotonic() - begun
        assert loaded == len(tokens), f"{loaded} tokens of {len(tokens)}"
        pages = loaded // PAGE_TOKENS
        for found, right in zip(self.layers, self.right):
            for plane, expected in zip(found, right):
                same = torch.equal(
                    plane[:pages].view(torch.uint8), expected[:pages].view(torch.uint8)
                )
                assert same, "another rank's bytes, or wrong ones"
        return elapsed

    def load_for_ever(self, tokens: list[int]) -> None:
        while True:
            self.load(tokens)

    def wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)


def serve(number: int, device: str, address: str, parent: Connection) -> None:
    """A rank's process: one call after the other, each answered with what it returned or raised."""
    rank = Rank(number, device, address)
    parent.send(None)
    while True:
        try:
            name, tokens = parent.recv()
        except EOFError:
            return
        try:
            parent.send(getattr(rank, name)(tokens))
        except Exception as error:  # told to the parent, which ends
            parent.send(error)


class Ranks:
    def __init__(self, device: str, address: str) -> None:
        self.device, self.address = device, address
        self._all = [self._start(number) for number in range(RANKS)]
        for _, pipe in self._all:
            self._answer(pipe)

    def _start(self, number: int) -> tuple[mp.Process, Connection]:
        device = f"cuda:{number}" if self.device == "cuda" else self.device
        ours, theirs = mp.Pipe()
        child = mp.Process(target=serve, args=(number, device, self.address, theirs), daemon=True)
        child.start()
        return child, ours

    def all(self, name: str, tokens: list[int]) -> list:
        """All ranks do it at the same time."""
        for number in range(RANKS):
            self.tell(number, name, tokens)
        return [self._answer(pipe) for _, pipe in self._all]

    def one(self, number: int, name: str, tokens: list[int]):
        self.tell(number, name, tokens)
        return self._answer(self._all[number][1])

    def tell(self, number: int, name: str, tokens: list[int]) -> None:
        self._all[number][1].send((name, tokens))

    def kill(self, number: int) -> None:
        child, pipe = self._all[number]
        child.kill()
        child.join()
        pipe.close()
        self._all[number] = self._start(number)
        self._answer(self._all[number][1])

    @staticmethod
    def _answer(pipe: Connection):
        assert pipe.poll(120), "a rank does not answer"
        answer = pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--refrain", type=Path, required=True, help="the binary")
    parser.add_argument("--dir", type=Path, help="where the sidecar keeps its blocks")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = parser.parse_args()
    if args.device == "cuda" and torch.cuda.device_count() < RANKS:
        sys.exit(f"{torch.cuda.device_count()} GPUs are here, and {RANKS} are needed")
    mp.set_start_method("spawn")
    with tempfile.TemporaryDirectory(prefix="r", dir=args.dir) as home:
        sidecar = Sidecar(args.refrain.resolve(), Path(home))
        try:
            check(sidecar, Ranks(args.device, f"unix:{sidecar.socket}"))
        finally:
            sidecar.kill()
    print("all holds")


def check(sidecar: Sidecar, ranks: Ranks) -> None:
    def rates(seconds: list[float]) -> str:
        return ", ".join(f"{RANK_BYTES / each / 1e9:.2f} GB/s" for each in seconds)

    assert ranks.all("save", PROMPT) == [len(PROMPT)] * RANKS
    print(f"{RANKS} ranks saved {RANK_BYTES >> 20} MiB each", flush=True)
    for _ in range(3):
        print(f"both loaded at once, from memory: {rates(ranks.all('load', PROMPT))}", flush=True)
    sidecar.kill()
    sidecar.start()
    deadline = time.monotonic() + 60
    while ranks.all("find", PROMPT) != [len(PROMPT)] * RANKS:
        assert time.monotonic() < deadline, "the prompt is lost"
    print(f"after a kill, from SSD: {rates(ranks.all('load', PROMPT))}", flush=True)
    assert ranks.one(1, "save", OTHER) == len(OTHER)
    assert ranks.all("find", OTHER) == [0, len(OTHER)]
    print("what one rank alone saved, the other does not find", flush=True)
    for _ in range(5):
        ranks.tell(1, "load_for_ever", PROMPT)
        ranks.one(0, "load", PROMPT)
        ranks.kill(1)
        ranks.one(0, "load", PROMPT)
    print("5 ranks killed in their loads: the other's loads are right", flush=True)
    print(f"and both again: {rates(ranks.all('load', PROMPT))}", flush=True)


if __name__ == "__main__":
    main()
