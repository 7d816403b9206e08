"""Engines, and tiny models for them. Sidecars are those of the tests above."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from engines import PROMPTS, Engine

HERE = Path(__file__).parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parents[2] / "target"))

collect_ignore_glob = ["test_*.py"] if find_spec("vllm") is None else []


@pytest.fixture(scope="session")
def models() -> Path:
    maker = HERE / "models.py"
    folder = TARGET / "tmp" / f"models-{hashlib.sha256(maker.read_bytes()).hexdigest()[:8]}"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, maker, folder], check=True)
    return folder


@pytest.fixture(scope="session")
def homes():
    """Short paths, for sockets."""
    made = []

    def make() -> Path:
        (TARGET / "tmp").mkdir(parents=True, exist_ok=True)
        made.append(tempfile.TemporaryDirectory(prefix="v", dir=TARGET / "tmp"))
        return Path(made[-1].name)

    yield make
    for home in made:
        home.cleanup()


@pytest.fixture(scope="session")
def engines(homes):
    """Makes engines' processes."""
    made = []

    def make(processes: bool = False) -> Engine:
        made.append(Engine(homes(), processes))
        return made[-1]

    yield make
    for engine in made:
        engine.end()


@pytest.fixture(scope="session")
def engine(engines) -> Engine:
    """One that is used by one test after the other."""
    return engines()


@pytest.fixture(scope="session")
def plain(engines, models):
    """What an engine without Refrain says."""
    answers, engine = {}, engines()

    def say(model: str, asked=PROMPTS, opening=None, **options) -> dict:
        key = json.dumps([model, asked, opening, options])
        if key not in answers:
            engine.open(models / model, **(opening or {}))
            answers[key] = engine.generate(asked, **options)
            engine.close()
        return answers[key]

    return say


@pytest.fixture
def opened(engine, models, sidecar):
    """Opens an engine with Refrain, instead of the one before."""

    def open_(model: str = "llama", **options):
        return engine.open(models / model, sidecar.address, **options)

    yield open_
    engine.close()
