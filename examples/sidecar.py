"""A sidecar of our own, to start, kill and start again."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path


class Sidecar:
    """`refrain serve` on one directory."""

    def __init__(self, binary: Path, directory: Path, capacity: str, load_arena: str) -> None:
        self.binary = binary.resolve()
        self.directory = directory
        self.address = f"unix:{directory / 'refrain.sock'}"
        self._sizes = ["--capacity", capacity, "--load-arena", load_arena]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Returns when it serves."""
        command = [self.binary, "serve", "--dir", self.directory, *self._sizes]
        log = self.directory.with_suffix(".log")
        with log.open("ab") as said:
            self._process = subprocess.Popen([str(part) for part in command], stderr=said)
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(self.address.removeprefix("unix:")) == 0:
                    return
            if self._process.poll() is not None:
                raise RuntimeError(f"the sidecar did not start:\n{log.read_text()}")
            time.sleep(0.01)

    def kill(self) -> None:
        """As a power switch would: SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def rot(self) -> None:
        """Flips a bit in the middle of the blocks of a stopped store, as a bad drive would."""
        listed = subprocess.run(
            [self.binary, "ls", "blocks", "--dir", self.directory, "--json"],
            check=True, capture_output=True, text=True,
        )
        blocks = [json.loads(line) for line in listed.stdout.splitlines()]
        block = blocks[len(blocks) // 2]
        path = self.directory / f"segment-{block['segment']:08}"
        # Behind the record's header, in its first stripe.
        at = block["offset"] + 4096 + 1000
        with path.open("r+b") as segment:
            segment.seek(at)
            byte = segment.read(1)[0]
            segment.seek(at)
            segment.write(bytes([byte ^ 1]))

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
