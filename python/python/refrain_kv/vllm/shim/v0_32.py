"""vLLM 0.32: hits have a source."""

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, SupportsHMA
from vllm.v1.metrics.cache_hit_source import CacheHitSource


class Base(KVConnectorBase_V1, SupportsHMA):
    """What the connector is, to this vLLM."""

    _cache_hit_source = CacheHitSource.DISK
