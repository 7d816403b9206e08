"""`RefrainConnector`: what vLLM calls, and who of the two halves answers."""

from __future__ import annotations

from typing import Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.logger import init_logger

from . import shim
from .identity import Engine
from .kinds import fault_of, kinds_of
from .layout import Facts
from .metadata import Orders
from .scheduler import Scheduler
from .settings import Settings
from .stats import RefrainMetrics, RefrainStats
from .worker import Worker

logger = init_logger("vllm.refrain_kv")

_Base: Any = shim.choose(vllm.__version__).Base


class RefrainConnector(_Base):
    """Loads prompts' KV from the sidecar of this node, and saves it there."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._scheduler: Scheduler | None = None
        self._worker: Worker | None = None
        transfer, parallel = vllm_config.kv_transfer_config, vllm_config.parallel_config
        settings = Settings.read(transfer.kv_connector_extra_config)
        if transfer.kv_load_failure_policy != "recompute":
            # Read by the scheduler after its connector was made.
            transfer.kv_load_failure_policy = "recompute"
            logger.warning(
                "kv_load_failure_policy is now `recompute`: with `fail`, requests would fail "
                "because of the cache."
            )
        fault = _fault(vllm_config, kv_cache_config)
        if fault:
            if role == KVConnectorRole.SCHEDULER:
                logger.error("Refrain caches nothing: %s", fault)
            return
        kinds = kinds_of(kv_cache_config.kv_cache_groups)
        # All ranks have the same latent: one copy is stored, and the first rank stores it.
        latent, ranks = kinds[0].latent, parallel.tensor_parallel_size
        if role == KVConnectorRole.SCHEDULER:
            version = vllm.__version__.partition("+")[0]
            engine, blocks = Engine(vllm_config, settings, version), kv_cache_config.num_blocks
            shards = 1 if latent else ranks
            self._scheduler = Scheduler(engine, settings, kinds, blocks, ranks, shards)
        else:
            from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

            rank = get_tensor_model_parallel_rank()
            shard, saves = (0, rank == 0) if latent else (rank, True)
            self._worker = Worker(settings, kinds, kv_cache_config.num_blocks, shard, saves)

    # Of a worker.

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        if self._worker is not None:
            layers = self._vllm_config.compilation_config.static_forward_context
            self._worker.takes(kv_caches, layers)

    def get_handshake_metadata(self) -> Facts | None:
        return None if self._worker is None else self._worker.facts

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.begin_loads(self._orders())

    def wait_for_layer_load(self, layer_name: str) -> None:
        # What is loaded is there before its request is scheduled.
        pass

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        # Blocks are saved whole, behind the step that completes them.
        pass

    def wait_for_save(self) -> None:
        if self._worker is not None:
            self._worker.begin_saves(self._orders())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, (self._worker.loaded() or None) if self._worker is not None else None

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        results = super().get_transfer_results(finished_req_ids)
        if self._worker is not None:
            results.failed_recving |= self._worker.failed()
        return results

    def get_block_ids_with_load_errors(self) -> set[int]:
        return set() if self._worker is None else self._worker.lost()

    def build_connector_worker_meta(self) -> Any:
        return None if self._worker is None else self._worker.report()

    def _orders(self) -> Orders:
        orders = self._get_connector_metadata()
        assert isinstance(orders, Orders)
        return orders

    # Of the scheduler.

    @property
    def requires_kv_delivery(self) -> bool:
        # A save that is dropped is a miss later.
        return False

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        if self._scheduler is not None:
            self._scheduler.bind(kv_cache_manager)

    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        if self._scheduler is not None:
            self._scheduler.workers_are(list(metadata.values()))

    def on_new_request(self, request: Any) -> None:
        if self._scheduler is not None:
            self._scheduler.comes(request)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        if self._scheduler is None:
            return 0, False
        return self._scheduler.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._scheduler is not None:
            self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Orders:
        return Orders() if self._scheduler is None else self._scheduler.orders(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        if self._scheduler is not None:
            self._scheduler.hears(connector_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, None]:
        # Blocks that are being saved are kept by themselves.
        if self._scheduler is not None:
            self._scheduler.finished(request)
        return False, None

    def has_pending_push_work(self) -> bool:
        return self._scheduler is not None and self._scheduler.is_saving()

    def reset_cache(self) -> bool:
        return self._scheduler is None or self._scheduler.reset()

    # Of both.

    def get_kv_connector_stats(self) -> RefrainStats | None:
        half = self._scheduler or self._worker
        return None if half is None else half.stats.taken()

    def shutdown(self) -> None:
        for half in (self._scheduler, self._worker):
            if half is not None:
                half.close()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> RefrainStats:
        return RefrainStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> RefrainMetrics:
        return RefrainMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)


def _fault(vllm_config: Any, kv_cache_config: Any) -> str:
    """Why an engine of this shape is run without a cache; empty where it is not."""
    parallel, groups = vllm_config.parallel_config, kv_cache_config.kv_cache_groups
    if parallel.pipeline_parallel_size > 1:
        return "pipeline parallelism is not supported"
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        return "context parallelism is not supported"
    fault = fault_of(groups)
    if fault:
        return fault
    each = getattr(kv_cache_config, "hash_block_size", None)
    if each not in (None, groups[0].kv_cache_spec.block_size):
        return f"prefix_match_unit makes hashes of {each} tokens, and not of a block"
    return ""
