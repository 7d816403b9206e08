"""Which SGLang this is, and that it names pages as these connectors rely on."""

from __future__ import annotations

import importlib.metadata
import re

#: From the first one on whose page hashes include cache salt and adapter; below the next major one.
FIRST, BELOW = (0, 5, 23), (0, 6)


def check() -> None:
    """Raises where KV could be found under a name that is not all of its own."""
    version = importlib.metadata.version("sglang")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if not FIRST <= numbers < BELOW:
        first, below = (".".join(map(str, bound)) for bound in (FIRST, BELOW))
        raise ImportError(f"refrain_kv.sglang is for sglang from {first} to {below}, not {version}")
    from sglang.srt.mem_cache import utils

    if not hasattr(utils, "storage_namespace_seed"):
        raise ImportError(f"sglang {version} does not part pages by cache salt: {utils.__file__}")
