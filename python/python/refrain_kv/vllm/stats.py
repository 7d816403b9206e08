"""What the connector counts, in the engine's log and among its metrics."""

from __future__ import annotations

from typing import Any, Self

from prometheus_client import Counter
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

HELP = {
    "lookups": "Prompts looked up, by Refrain",
    "absent": "Look-ups that no sidecar answered in time",
    "found_tokens": "Tokens that Refrain has found beyond the engine's own cache",
    "loaded_tokens": "Tokens whose KV Refrain has loaded: they were not computed",
    "loaded_blocks": "Blocks loaded, each rank's share counted by itself",
    "missed_blocks": "Blocks found and not loaded: they were computed",
    "saved_blocks": "Blocks saved, each rank's share counted by itself",
    "errors": "Calls of Refrain that failed for no good reason; the log says why",
}


class RefrainStats(KVConnectorStats):
    """Sums by name."""

    def add(self, name: str, count: int = 1) -> None:
        if count:
            self.data[name] = self.data.get(name, 0) + count

    def taken(self) -> Self | None:
        """What was counted since the last call; None where nothing was."""
        if not self.data:
            return None
        taken = type(self)(data=self.data)
        self.data = {}
        return taken

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> Self:
        for name, count in other.data.items():
            self.add(name, count)
        return self

    def reduce(self) -> dict[str, int | float]:
        return dict(self.data)

    def is_empty(self) -> bool:
        return not self.data


class RefrainMetrics(KVConnectorPromMetrics):
    """`vllm:refrain_..._total`, one an engine."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {
            name: metric_types[Counter](
                name=f"vllm:refrain_{name}", documentation=text, labelnames=labelnames
            )
            for name, text in HELP.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self.per_engine_labelvalues[engine_idx]
        for name, count in transfer_stats_data.items():
            self._counters[name].labels(*labels).inc(count)
