"""What differs between the minor versions of vLLM, one module each, chosen by the vLLM that is
there."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

SUPPORTED = [(0, 31), (0, 32), (0, 33)]


def minor(version: str) -> tuple[int, int]:
    """The minor of a version of vLLM; `ImportError` where it is none of these."""
    found = re.match(r"(\d+)\.(\d+)", version)
    this = (int(found[1]), int(found[2])) if found else None
    if this not in SUPPORTED:
        first, last = (".".join(map(str, it)) for it in (SUPPORTED[0], SUPPORTED[-1]))
        raise ImportError(
            f"refrain_kv.vllm works with vLLM {first} to {last}, and this is {version}: "
            "install one of these, or a newer refrain-kv"
        )
    return this


def choose(version: str) -> ModuleType:
    """The shim of a version of vLLM."""
    return importlib.import_module(".v{}_{}".format(*minor(version)), __name__)
