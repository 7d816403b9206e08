"""Refrain in vLLM, by module path: nothing of vLLM is changed.

--kv-transfer-config '{"kv_connector": "RefrainConnector", "kv_role": "kv_both",
                       "kv_connector_module_path": "refrain_kv.vllm"}'
"""

import importlib
from typing import Any

# vLLM is imported only with what needs it.
_HOMES = {"RefrainConnector": ".connector"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
