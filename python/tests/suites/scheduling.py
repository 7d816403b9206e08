"""A pytest plugin for vLLM's own tests of its scheduler: the schedulers that they make have a
`RefrainConnector`, with a worker over tensors of the host beside it, and a real sidecar.

Those tests compute nothing, so that blocks hold nothing of worth; what is looked at is that the
scheduler does all that its tests demand, with the connector's look-ups, loads and saves in it. What
the model runner that the tests play does not say of the worker is added to its outputs.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pointed import SIDECAR
from refrain_kv.vllm import RefrainConnector
from refrain_kv.vllm.kinds import kinds_of
from refrain_kv.vllm.settings import Settings
from refrain_kv.vllm.worker import Worker
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.v1.outputs import KVConnectorOutput

NAME = "Refrain"
PATIENCE = 60.0

#: Tests that this connector is not asked, and why not.
NOT_ASKED = {
    "test_reset_connector_cache_no_connector_is_no_op_success": "of a scheduler without connector",
    "test_requires_kv_delivery_defaults_to_producer_role": "of connectors that must deliver",
    "test_kv_pressure_preempt_mid_handoff[kv_producer-False]": "of connectors that must deliver",
    "test_prefix_cache_stats_counted_once_for_retried_then_scheduled_request": "reads the "
    "metadata of the connector that it thinks it has",
    "test_cow_retentions_deferred_until_copy_step_processed": "a prompt that Refrain has is "
    "scheduled a step later",
    "test_reset_prefix_cache_with_inflight_output_under_kv_pressure": "vLLM raises where a load "
    "is under way",
    "test_priority_scheduling_ec_connector_preemption_and_resumption": "wants a model of the hub",
    "test_encoder_cache_rejects_mismatched_embed_count": "wants a fixture that needs the hub",
}

_tenants = itertools.count()
_counted: list[dict[str, int]] = []


class Whole(RefrainConnector):
    """Both halves in one: what a step orders is done before the step is."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        # Tests find nothing of each other.
        extra = {
            "address": SIDECAR.address,
            "weights": "of a test",
            "tenant": f"{next(_tenants)}",
            # However busy the machine is: what comes late is a miss.
            "lookup_deadline_ms": 30_000,
            "load_deadline_ms": 30_000,
            "save_deadline_ms": 30_000,
            # There are hundreds of them, until they are collected.
            "session_arena_mib": 1,
        }
        vllm_config.kv_transfer_config.kv_connector_extra_config = extra
        super().__init__(vllm_config, role, kv_cache_config)
        blocks = kv_cache_config.num_blocks
        kinds = kinds_of(kv_cache_config.kv_cache_groups)
        self._own = Worker(Settings.read(extra), kinds, blocks, 0, True)
        _counted.append(self._own.stats.data)
        names = [name for it in kv_cache_config.kv_cache_groups for name in it.layer_names]
        self._own.takes({name: torch.zeros(blocks, 64) for name in names}, {})
        self.set_xfer_handshake_metadata({0: self._own.facts})
        self._waiting: set[str] = set()
        self._loaded: set[str] = set()

    def on_new_request(self, request: Any) -> None:
        super().on_new_request(request)
        _until(lambda: self.get_num_new_matched_tokens(request, 0)[0] is not None)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        orders = super().build_connector_meta(scheduler_output)
        self._own.begin_loads(orders)
        self._waiting.update(load.request for load in orders.loads)
        _until(self._loads_are_over)
        self._own.begin_saves(orders)
        _until(self._saves_are_over)
        return orders

    def _loads_are_over(self) -> bool:
        loaded = self._own.loaded()
        self._waiting -= loaded
        self._loaded |= loaded
        return not self._waiting

    def _saves_are_over(self) -> bool:
        report = KVConnectorOutput(kv_connector_worker_meta=self._own.report())
        self.update_connector_output(report)
        return not self.has_pending_push_work()

    def said(self, output: Any) -> Any:
        """The output of a model runner, with what this worker has loaded."""
        if not self._loaded:
            return output
        loaded, self._loaded = self._loaded, set()
        said = KVConnectorOutput(
            finished_recving=loaded,
            invalid_block_ids=self._own.lost(),
            failed_recving=self._own.failed(),
        )
        return dataclasses.replace(output, kv_connector_output=said)


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        why = NOT_ASKED.get(item.name) or NOT_ASKED.get(item.originalname)
        if why:
            item.add_marker(pytest.mark.skip(reason=why))


def pytest_configure(config: Any) -> None:
    from tests.v1.core import utils

    KVConnectorFactory.register_connector(NAME, __name__, Whole.__name__)
    create = utils.create_scheduler

    def create_scheduler(*args: Any, use_kv_connector: Any = None, **options: Any) -> Any:
        if options.get("model", "").startswith("llava"):
            pytest.skip("wants a model of the hub")
        if use_kv_connector is not None and not isinstance(use_kv_connector, bool):
            # A connector of the test's, of which it wants something.
            return create(*args, use_kv_connector=use_kv_connector, **options)
        scheduler = create(*args, use_kv_connector=NAME, **options)
        ours, update = scheduler.connector, scheduler.update_from_output

        def update_from_output(step: Any, output: Any) -> Any:
            # Some tests take another connector then.
            return update(step, ours.said(output) if scheduler.connector is ours else output)

        scheduler.update_from_output = update_from_output
        return scheduler

    utils.create_scheduler = create_scheduler


def pytest_sessionfinish(session: Any) -> None:
    sums = Counter[str]()
    for counts in _counted:
        sums.update(counts)
    print(f"\n{len(_counted)} schedulers: {dict(sums)}")
    if session.exitstatus == 0 and not (sums["saved_blocks"] and sums["loaded_blocks"]):
        session.exitstatus = 1
