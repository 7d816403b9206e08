"""vLLM 0.31."""

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, SupportsHMA


class Base(KVConnectorBase_V1, SupportsHMA):
    """What the connector is, to this vLLM."""
