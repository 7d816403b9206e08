"""Who listens to `python -m refrain_kv.events`, and blocks that an engine has named."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time

import msgspec
import numpy as np
import refrain_kv as kv
import zmq
from conftest import LAYERS, PAGE_BYTES, PAGES_PER_BLOCK, PATIENCE, namespace

END = b"\xff" * 8


def names(seed: int, blocks: int) -> list[bytes]:
    return [hashlib.sha256(f"{seed} {block}".encode()).digest() for block in range(blocks)]


class Worker:
    """Saves blocks under an engine's names; what is in them is no matter here."""

    def __init__(self, client: kv.Client, shard: int = 0, **fields) -> None:
        pages = 8 * PAGES_PER_BLOCK
        layers = [np.zeros((pages, PAGE_BYTES), np.uint8) for _ in range(LAYERS)]
        self._cache = kv.KvCache(layers, pages_per_block=PAGES_PER_BLOCK)
        self._registration = client.register(namespace(**fields), shard=shard)

    def save(self, hashes: list[bytes], separate: bool = False) -> None:
        with self._registration.lookup_hashes(hashes, separate=separate) as lookup:
            pages = range(lookup.prompt_blocks * PAGES_PER_BLOCK)
            saved = lookup.save_from(self._cache, pages, first=0)
            assert saved.saved == saved.offered and saved.refusal == "none"
            lookup.release()

    def look_up(self, hashes: list[bytes]) -> int:
        with self._registration.lookup_hashes(hashes) as lookup:
            return lookup.matched_blocks


class Publisher:
    """The command, as a user runs it."""

    def __init__(self, address: str, *more: str) -> None:
        command = [sys.executable, "-m", "refrain_kv.events", "--connect", address]
        command += ["--bind", "tcp://127.0.0.1:*", "--replay", "tcp://127.0.0.1:*", *more]
        self._child = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        found = re.search(r"events at (\S+) and replay at (\S+)", self._child.stderr.readline())
        self.events, self.replay = found.groups()

    def until(self, said: str) -> None:
        for line in self._child.stderr:
            if said in line:
                return
        raise AssertionError(f"ended without {said!r}")

    def close(self) -> None:
        self._child.terminate()
        assert self._child.wait(PATIENCE) == 0
        self._child.stderr.close()


class Router:
    """Knows what is on SSD by an engine's own decoder, batch by batch in order."""

    def __init__(self, publisher: Publisher, batch: type, topic: str = "") -> None:
        self._context = zmq.Context()
        self._sub = self._context.socket(zmq.SUB)
        self._sub.connect(publisher.events)
        self._sub.setsockopt_string(zmq.SUBSCRIBE, topic)
        self._replay = publisher.replay
        self._decoder = msgspec.msgpack.Decoder(batch)
        self._next = 0
        self.resident: set = set()
        self.events: list = []

    def follow(self, expected: set) -> None:
        """Until it knows these; what it misses, it asks for."""
        end = time.monotonic() + PATIENCE
        while self.resident != expected:
            assert time.monotonic() < end, (self.resident, expected)
            if not self._sub.poll(200):
                # Perhaps the first batches came before it did.
                self.catch_up()
                continue
            _, number, payload = self._sub.recv_multipart()
            if int.from_bytes(number, "big") > self._next:
                self.catch_up()
            self._take(number, payload)

    def catch_up(self) -> None:
        """Asks for every batch from the next one on."""
        dealer = self._context.socket(zmq.DEALER)
        dealer.connect(self._replay)
        dealer.send_multipart([b"", self._next.to_bytes(8, "big")])
        while True:
            assert dealer.poll(int(PATIENCE * 1000)), "no end of the replay"
            parts = dealer.recv_multipart()
            if parts[-2] == END:
                break
            self._take(parts[-2], parts[-1])
        dealer.close()

    def _take(self, number: bytes, payload: bytes) -> None:
        sequence = int.from_bytes(number, "big")
        if sequence < self._next:
            return
        assert sequence == self._next, "a batch is missing"
        self._next += 1
        for event in self._decoder.decode(payload).events:
            self.events.append(event)
            if type(event).__name__ == "BlockStored":
                self.resident.update(event.block_hashes)
            else:
                self.resident.difference_update(event.block_hashes)

    def close(self) -> None:
        self._context.destroy(linger=0)
