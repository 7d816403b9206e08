"""What differs between the minor versions of vLLM, one module each, chosen by the vLLM that is
there."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

SUPPORTED = [(0, 31), (0, 32), (0, 33)]


def choose(version: str) -> ModuleType:
    """The shim of a version of vLLM; `ImportError` where there is none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    minor = (int(found[1]), int(found[2])) if found else None
    if minor not in SUPPORTED:
        first, last = (".".join(map(str, it)) for it in (SUPPORTED[0], SUPPORTED[-1]))
        raise ImportError(
            f"refrain_kv.vllm works with vLLM {first} to {last}, and this is {version}: "
            "install one of these, or a newer refrain-kv"
        )
    return importlib.import_module(f".v{minor[0]}_{minor[1]}", __name__)
