"""A pytest plugin for vLLM's own tests of its tiers: where they make the tier over files, or the
example in memory, they get a `RefrainTier` with a real sidecar, and are asked no other question.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import pytest
import tier_engine
from pointed import SIDECAR
from refrain_kv.vllm.tier import RefrainTier
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext
from vllm.v1.kv_offload.config import OffloadingConfig

PATIENCE = 30.0

#: Of the tests of the tier over files, those that ask what every tier must do. The others look
#: into its files and threads, break them, or want its events.
OF_FILES = {
    "test_lookup_empty_tier",
    "test_store_creates_file_and_lookup_succeeds",
    "test_store_then_load_roundtrip",
    "test_failed_load_missing_file",
    "test_multiple_jobs_tracked_independently",
    "test_multi_block_job_partial_failure",
    "test_store_load_data_integrity",
    "test_batch_lookup_dispatch",
    "test_out_of_bounds_block_id_smoke",
    "test_load_job_emits_no_event",
    "test_invalid_locality_raises_at_construction",
}
#: Of those of the manager, what this tier is not asked, and why not.
NOT_ASKED = {
    "TestExampleSecondaryTierManager": "of the example",
    "test_cascade_to_all_secondary_tiers": "counts what the example holds",
    "test_ref_cnt_protection_during_cascade": "looks at the example's jobs",
    "test_failed_promotion_keeps_only_successful_chunks": "puts jobs among the example's",
    "test_tier_filter_skips_filtered_secondary[non_matching_medium]": "of a tier in memory",
    "test_tier_filter_allows_matching_secondary[explicit_cpu]": "of a tier in memory",
}

_tenants = itertools.count()


def described(spec: Any) -> Any:
    """A spec with what the tests leave out as it is not the file tier's: one group of layers."""
    whole = tier_engine.described({})
    if isinstance(spec.config, OffloadingConfig):
        spec.config = dataclasses.replace(spec.config, groups=whole.groups)
    else:
        spec.config = dataclasses.replace(whole, worker_kv_bytes_per_block=16)
    return spec


class Pointed(RefrainTier):
    """Of a tenant of its own, so that tests find nothing of each other."""

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        **of_files: Any,
    ) -> None:
        super().__init__(
            described(offloading_spec),
            primary_kv_view,
            tier_type,
            backpressure_detector,
            weights="of a test",
            config="of a test",
            address=SIDECAR.address,
            tenant=f"{next(_tenants)}",
            deadline=PATIENCE,
            lookup_deadline=PATIENCE,
            session_arena_bytes=64 << 20,
            locality=of_files.get("locality", "LOCAL"),
        )


class OverFiles(Pointed):
    """With the names that the tests of the tier over files look into."""

    @property
    def _lookup_manager(self) -> Any:
        return self._lookups

    @property
    def file_mapper(self) -> Any:
        return self

    def get_file_name(self, key: bytes) -> str:
        """A file that there is where the block is kept, and none where it is not."""
        return str(SIDECAR.home / ("log" if self._find([key]) == [True] else "nothing"))


class InMemory(Pointed):
    """Done when it is asked, as the example is, which says at once what it has."""

    def lookup(self, key: bytes, req_context: ReqContext) -> LookupResult:
        end = time.monotonic() + PATIENCE
        while True:
            found = super().lookup(key, req_context)
            if found is not LookupResult.RETRY:
                return found
            assert time.monotonic() < end
            super().on_schedule_end(ScheduleEndContext((), ()))

    def get_finished_jobs(self) -> Any:
        RefrainTier.drain_jobs(self)
        return super().get_finished_jobs()

    @property
    def chunks(self) -> Any:
        return Chunks(self)


class Chunks:
    """What is kept, as the example's dictionary says it."""

    def __init__(self, tier: InMemory) -> None:
        self._tier = tier

    def __contains__(self, key: bytes) -> bool:
        self._tier.drain_jobs()
        return self._tier._find([key]) == [True]

    def __setitem__(self, key: bytes, kept: bool) -> None:
        [blocks] = self._tier._moves.values()
        assert blocks.save([key[:-4]], [0]) == [kept]


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        module, name = item.module, item.originalname
        if hasattr(module, "FileSystemTierManager"):
            module.FileSystemTierManager = OverFiles
            why = "" if name in OF_FILES else "of files, threads and events"
        else:
            module.ExampleSecondaryTierManager = InMemory
            asked = (item.name, name, item.cls and item.cls.__name__)
            why = next((NOT_ASKED[it] for it in asked if it in NOT_ASKED), "")
        if why:
            item.add_marker(pytest.mark.skip(reason=why))
