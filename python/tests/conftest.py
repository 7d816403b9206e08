"""A real sidecar over a directory of its own, for each test that asks for one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import refrain_kv as kv

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
REFRAIN = TARGET / "release" / "refrain"
#: Far longer than anything takes that does not hang.
PATIENCE = 30.0

#: Tests of engines run where the engines are: `make sglang`.
ENGINES = {"in_sglang": "sglang", "in_vllm_tier": "vllm"}
collect_ignore = [folder for folder, engine in ENGINES.items() if find_spec(engine) is None]

LAYERS = 8
PAGES_PER_BLOCK = 2
PAGE_TOKENS = 8
BLOCK_TOKENS = PAGES_PER_BLOCK * PAGE_TOKENS
#: Of one layer of one page: four stripes of two layers a block.
PAGE_BYTES = 65_536


class Sidecar:
    """A sidecar as a child that does not outlive the tests."""

    def __init__(self, home: Path, config: str) -> None:
        self.home = home
        self.socket = home / "sock"
        self._config = home / "config"
        self._config.write_text(
            f'listen = "unix:{self.socket}"\nload_arena = "64MiB"\n'
            # A disk that others keep busy for long is no matter here.
            f'drive_patience = "2m"\n{config}'
            f'[[drives]]\npath = "{home / "drive"}"\ncapacity = "256MiB"\nsegment = "16MiB"\n'
        )
        self.start()

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    def start(self) -> None:
        with open(self.home / "log", "ab") as log:
            self._child = subprocess.Popen(
                [REFRAIN, "tied", str(os.getpid()), "serve", "--config", self._config],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        end = time.monotonic() + PATIENCE
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.socket)) == 0:
                    return
            assert self._child.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def stop(self) -> None:
        """Has it hang until it is sent SIGCONT."""
        self.signal(signal.SIGSTOP)
        # Until all of its threads have stopped, one may answer.
        os.waitid(os.P_PID, self._child.pid, os.WSTOPPED | os.WNOWAIT)

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()

    def said(self) -> str:
        return (self.home / "log").read_text()

    def blocks(self) -> list[dict]:
        """Every resident block, in the order in which they were written."""
        listed = subprocess.run(
            [REFRAIN, "ls", "--json", "--addr", self.address, "blocks"],
            check=True,
            capture_output=True,
        )
        blocks = [json.loads(line) for line in listed.stdout.splitlines()]
        return sorted(blocks, key=lambda block: (block["segment"], block["offset"]))

    def flip(self, block: dict, offset: int) -> None:
        """Flips a bit of a record, `offset` bytes behind its header."""
        [path] = (self.home / "drive").glob(f"*{block['segment']:08}*")
        with open(path, "r+b") as file:
            file.seek(block["offset"] + 4096 + offset)
            [byte] = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0x20]))


@pytest.fixture
def sidecars():
    """Makes sidecars with further lines of config."""
    assert REFRAIN.exists(), f"{REFRAIN} is missing: cargo build --release -p refrain"
    # On the disk of the build: others may refuse O_DIRECT. The path of a socket must be short.
    (TARGET / "tmp").mkdir(parents=True, exist_ok=True)
    homes, running = [], []

    def start(config: str = "") -> Sidecar:
        homes.append(Path(tempfile.mkdtemp(prefix="p", dir=TARGET / "tmp")))
        running.append(Sidecar(homes[-1], config))
        return running[-1]

    yield start
    for sidecar in running:
        sidecar.kill()
        print(sidecar.said(), file=sys.stderr)
    for home in homes:
        shutil.rmtree(home)


@pytest.fixture
def sidecar(sidecars) -> Sidecar:
    return sidecars()


@pytest.fixture
def client(sidecar):
    with kv.Client(sidecar.address, session_arena_bytes=16 << 20, deadline=PATIENCE) as client:
        yield client


def namespace(**fields) -> kv.Namespace:
    """Of the cache that these tests have, but for what is said otherwise."""
    whole = {
        "tenant": "tests",
        "model": "tiny",
        "weights": "seed 1",
        "config_digest": b"config",
        "kv_dtype": "u8",
        "block_tokens": BLOCK_TOKENS,
        "layers": LAYERS,
        "layer_bytes": PAGES_PER_BLOCK * PAGE_BYTES,
        "layout": "key_value",
        "groups": [kv.AttentionGroup.full(LAYERS)],
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
        "context_parallel": 1,
        "adapter_digest": b"",
        "salt": b"",
    }
    return kv.Namespace(**{**whole, **fields})


def prompt(seed: int, blocks: int) -> list[int]:
    """Token ids that no other seed has."""
    return [seed * 100_000 + token for token in range(blocks * BLOCK_TOKENS)]


def content(seed: int, length: int) -> bytes:
    """Bytes that no other seed has."""
    return hashlib.shake_128(seed.to_bytes(8, "little")).digest(length)
