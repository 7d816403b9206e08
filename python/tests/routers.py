"""Who listens to `python -m refrain_kv.events`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import msgspec
import zmq
from conftest import PATIENCE

END = b"\xff" * 8


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
