"""SGLang: `RefrainStorage`, a `HiCacheStorage`."""

from .storage import RefrainStorage

__all__ = ["RefrainStorage"]
