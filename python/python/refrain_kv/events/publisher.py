"""Numbered batches of events over ZMQ, and those of late for whoever missed some.

PUB sends `[topic, number, payload]`; the replay socket takes `[number]` from a REQ or DEALER and
answers with every batch from that one on that it still has, and then with number -1. Numbers are 8
bytes, big-endian.
"""

from __future__ import annotations

import time
from collections import deque

import msgspec
import zmq

from .ledger import Event

END = (-1).to_bytes(8, "big", signed=True)


class Publisher:
    """Of one sidecar; used by one thread."""

    def __init__(
        self, bind: str, replay: str | None, *, topic: str, rank: int, buffer: int, high_water: int
    ) -> None:
        self._context = zmq.Context()
        self._topic, self._rank = topic.encode(), rank
        self._next = 0
        self._late: deque[tuple[bytes, bytes]] = deque(maxlen=buffer)
        self._encoder = msgspec.msgpack.Encoder()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.set_hwm(high_water)
        self._pub.bind(bind)
        self._replay = None
        if replay is not None:
            self._replay = self._context.socket(zmq.ROUTER)
            self._replay.bind(replay)

    @property
    def endpoints(self) -> list[str]:
        """Where it listens: PUB first, then replay."""
        sockets = [self._pub] + ([self._replay] if self._replay else [])
        return [socket.getsockopt_string(zmq.LAST_ENDPOINT) for socket in sockets]

    def publish(self, events: list[Event]) -> None:
        payload = self._encoder.encode([time.time(), events, self._rank])
        number = self._next.to_bytes(8, "big")
        self._next += 1
        self._late.append((number, payload))
        self._pub.send_multipart([self._topic, number, payload])

    def serve_replay(self) -> None:
        """Answers whoever has asked by now; does not wait."""
        while self._replay is not None and self._replay.poll(0):
            request = self._replay.recv_multipart()
            if len(request) != 3 or len(request[2]) != 8:
                # Not of this protocol; there is nobody to tell.
                continue
            peer, _, start = request
            for number, payload in self._late:
                # Of equal length, so that bytes compare as their numbers do.
                if number >= start:
                    self._replay.send_multipart([peer, b"", self._topic, number, payload])
            self._replay.send_multipart([peer, b"", b"", END, b""])

    def close(self) -> None:
        self._context.destroy(linger=1000)
