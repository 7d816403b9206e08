"""The scheduler's half: which blocks a request gets from Refrain, and which it gives.

The scheduler polls thousands of times a second while a request waits, so that nothing here waits
or calls anybody there: a look-up is begun when a request comes, and looked at. Blocks that are
being saved are kept by a reference of ours, whatever becomes of their request: it may finish, be
preempted or be aborted, and its blocks are free when the workers have said that they have read
them.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from vllm.logger import init_logger

from .. import Client, Lookup, Pending, RefrainError, Registration
from .adapters import Adapters, Names
from .identity import Engine, Identity
from .layout import Facts
from .metadata import Move, Orders, Report, Save
from .settings import Settings
from .stats import RefrainStats

logger = init_logger("vllm.refrain_kv.scheduler")

#: A look-up's answer is asked for again after this many seconds: its lease is about to end.
ANSWER_LASTS = 8.0
#: Of the engine's blocks, what saves may keep at most: the rest is not saved.
SAVES_SHARE = 4
#: Room for the stripes of a block to begin at pages.
STRIPE_ROOM = 4096


class Asked:
    """A look-up of one prompt in every shard."""

    def __init__(self, pending: list[Pending[Lookup]], deadline: float) -> None:
        self._begun = time.monotonic()
        self._deadline = deadline
        self._pending = pending
        self._found: list[Lookup] = []
        #: What all shards hold; None until they have answered.
        self.blocks: int | None = None
        self.absent = False

    def look(self) -> bool:
        """Whether there is an answer; after the deadline, there is."""
        if self.blocks is not None:
            return True
        if not all(it.done() for it in self._pending):
            # The look-ups have the same deadline; this one is for threads that get no time.
            if time.monotonic() - self._begun < 2 * self._deadline:
                return False
            self.blocks, self.absent = 0, True
            return True
        try:
            self._found = [it.result() for it in self._pending]
        except RefrainError as error:
            logger.warning("Refrain refuses a look-up: %s", error)
            self.blocks = 0
            return True
        self.absent = any(it.absent for it in self._found)
        self.blocks = min((it.matched_blocks for it in self._found), default=0)
        if self.blocks == 0:
            self.end()
        return True

    def is_old(self) -> bool:
        return self.blocks is not None and time.monotonic() - self._begun > ANSWER_LASTS

    def end(self) -> None:
        """Gives the leases back."""
        for lookup in self._found:
            lookup.close()
        self._found, self._pending = [], []


class Tracked:
    """What is known of a request."""

    def __init__(self, request: Any, names: Names) -> None:
        self.request = request
        self.names = names
        self.asked: Asked | None = None
        #: Blocks before this one are stored, or have been handed over for it.
        self.saved = 0
        #: Tokens of the engine's own cache, when it was last asked for.
        self.local = 0
        #: How often it had been preempted when it was loaded.
        self.loaded_in: int | None = None


class Scheduler:
    """Without an identity it finds nothing and saves nothing."""

    def __init__(
        self, engine: Engine, settings: Settings, kv_cache_config: Any, ranks: int, shards: int
    ) -> None:
        self._engine, self._settings = engine, settings
        self._blocks = kv_cache_config.num_blocks
        self._ranks, self._shards = ranks, shards
        self._identity: Identity | None = None
        self._announced = True
        self._client: Client | None = None
        self._registrations: list[Registration] = []
        self._adapters = Adapters()
        self._requests: dict[str, Tracked] = {}
        self._loading: dict[str, tuple[Move, Asked | None, set[int]]] = {}
        self._saving: dict[int, Save] = {}
        self._reported: Counter[int] = Counter()
        self._held_blocks = 0
        #: The engine holds KV from before a reset: what it computes may build on it.
        self._is_stale = False
        self._orders = Orders()
        self._numbers = 0
        self._manager: Any = None
        self.stats = RefrainStats()

    def bind(self, kv_cache_manager: Any) -> None:
        self._manager = kv_cache_manager

    def workers_are(self, facts: list[Facts]) -> None:
        """The engine has its workers: all of them must cache alike."""
        faults = sorted({it.fault for it in facts if it.fault})
        if faults or len(facts) != self._ranks or len({it.digest for it in facts}) != 1:
            why = faults or f"{len(facts)} of {self._ranks} ranks, or ranks that differ"
            logger.error("Refrain caches nothing: %s", why)
            return
        one = facts[0]
        # Nothing is saved from here, and a session must have room for a block all the same.
        arena = one.layers * (one.layer_bytes + STRIPE_ROOM)
        self._client = Client(
            self._settings.address,
            session_arena_bytes=arena,
            deadline=self._settings.load_deadline,
        )
        self._become(self._engine.identity(one))
        logger.info(
            "Refrain caches blocks of %d tokens, %d bytes in each of %d shards; weights: %s",
            self._identity.block_tokens if self._identity else 0,
            one.layers * one.layer_bytes,
            self._shards,
            self._identity.weights if self._identity else "",
        )

    def _become(self, identity: Identity) -> None:
        assert self._client is not None
        self._identity, self._announced = identity, False
        namespace = identity.namespace()
        for registration in self._registrations:
            registration.close()
        self._registrations = [
            self._client.register(namespace, shard=shard, check=False)
            for shard in range(self._shards)
        ]

    # Requests on their way in.

    def comes(self, request: Any) -> None:
        tracked = self._track(request)
        if tracked is not None and not _computes_all(request):
            self._ask(tracked)

    def matched(self, request: Any, local: int) -> tuple[int | None, bool]:
        """Tokens to load beyond those of the engine's own cache; None while that is not known."""
        tracked = self._track(request)
        if tracked is None or self._identity is None or _computes_all(request):
            return 0, False
        # Once in a life: a load that came to little is not tried again.
        if tracked.loaded_in == request.num_preemptions:
            return 0, False
        tracked.local = local
        if self._useful(tracked) * self._identity.block_tokens <= local:
            return 0, False
        if tracked.asked is None or tracked.asked.is_old():
            self._ask(tracked)
        if tracked.asked is None or not tracked.asked.look():
            return None if tracked.asked else 0, False
        found = min(tracked.asked.blocks or 0, self._useful(tracked))
        external = found * self._identity.block_tokens - local
        return (external, True) if external > 0 else (0, False)

    def allocated(self, request: Any, blocks: Any, external: int) -> None:
        tracked = self._requests.get(request.request_id)
        if tracked is None or self._identity is None:
            return
        asked, tracked.asked = tracked.asked, None
        known = asked.blocks or 0 if asked else 0
        if asked is not None and asked.blocks is not None:
            self.stats.add("lookups")
            self.stats.add("absent", asked.absent)
        tracked.saved = max(tracked.saved, known)
        if external <= 0:
            if asked is not None:
                asked.end()
            return
        each = self._identity.block_tokens
        first, end = tracked.local // each, (tracked.local + external) // each
        block_ids = blocks.get_block_ids()[0][first:end]
        load = Move(request.request_id, tracked.names.first(end), first, list(block_ids))
        tracked.loaded_in = request.num_preemptions
        self._loading[request.request_id] = (load, asked, set())
        self._orders.loads.append(load)
        self.stats.add("found_tokens", external)

    def _track(self, request: Any) -> Tracked | None:
        if self._identity is None:
            return None
        tracked = self._requests.get(request.request_id)
        if tracked is None:
            key = self._adapters.key(request)
            if key is None:
                return None
            tracked = self._requests[request.request_id] = Tracked(request, Names(request, key))
        return tracked

    def _useful(self, tracked: Tracked) -> int:
        """Blocks of a prompt that may be loaded: a token at least must be computed."""
        assert self._identity is not None
        tokens = tracked.request.num_tokens - 1
        return min(tokens // self._identity.block_tokens, len(tracked.names))

    def _ask(self, tracked: Tracked) -> None:
        if tracked.asked is not None:
            tracked.asked.end()
        tracked.asked = None
        names = tracked.names.first(self._useful(tracked))
        if not names:
            return
        deadline = self._settings.lookup_deadline
        pending = [it.begin_lookup_hashes(names, deadline=deadline) for it in self._registrations]
        tracked.asked = Asked(pending, deadline)

    # What is computed.

    def orders(self, output: Any) -> Orders:
        """Of the step that was scheduled: its loads, and a save of all blocks that it completes."""
        for request_id, tokens in output.num_scheduled_tokens.items():
            tracked = self._requests.get(request_id)
            if tracked is not None:
                self._save(tracked, tracked.request.num_computed_tokens + tokens)
        orders, self._orders = self._orders, Orders()
        if not self._announced:
            orders.identity, self._announced = self._identity, True
        return orders

    def _save(self, tracked: Tracked, computed: int) -> None:
        assert self._identity is not None
        if self._is_stale:
            return
        end = min(computed // self._identity.block_tokens, len(tracked.names))
        first, room = tracked.saved, self._blocks // SAVES_SHARE - self._held_blocks
        if end <= first or end - first > room:
            return
        request = tracked.request.request_id
        block_ids = list(self._manager.get_block_ids(request)[0][first:end])
        if len(block_ids) < end - first:
            return
        self._numbers += 1
        save = Save(request, tracked.names.first(end), first, block_ids, self._numbers)
        pool = self._manager.block_pool
        pool.touch([pool.blocks[it] for it in block_ids])
        self._held_blocks += len(block_ids)
        tracked.saved = end
        self._saving[save.number] = save
        self._orders.saves.append(save)

    def is_saving(self) -> bool:
        return bool(self._saving)

    # What workers say.

    def hears(self, output: Any) -> None:
        report = output.kv_connector_worker_meta
        if isinstance(report, Report):
            self._reported.update(report.saves)
            for number in report.saves:
                if self._reported[number] >= self._ranks:
                    self._end_save(number)
        failed = output.invalid_block_ids or set()
        for load, _, missing in self._loading.values():
            missing.update(failed.intersection(load.block_ids))
        for request_id in output.finished_recving or ():
            self._end_load(request_id)

    def _end_save(self, number: int) -> None:
        del self._reported[number]
        save = self._saving.pop(number)
        pool = self._manager.block_pool
        # The last ones first, so that they are also the first to be used again.
        pool.free_blocks(pool.blocks[it] for it in reversed(save.block_ids))
        self._held_blocks -= len(save.block_ids)

    def _end_load(self, request_id: str) -> None:
        ended = self._loading.pop(request_id, None)
        if ended is None or self._identity is None:
            return
        load, asked, missing = ended
        if asked is not None:
            asked.end()
        places = (place for place, it in enumerate(load.block_ids) if it in missing)
        loaded = next(places, len(load.block_ids))
        self.stats.add("loaded_tokens", loaded * self._identity.block_tokens)
        tracked = self._requests.get(request_id)
        if tracked is not None:
            # What is lost is computed, and saved once more.
            tracked.saved = min(tracked.saved, load.first + loaded)

    def finished(self, request: Any) -> None:
        tracked = self._requests.pop(request.request_id, None)
        if tracked is not None and tracked.asked is not None:
            tracked.asked.end()

    # The end of what is cached.

    def reset(self) -> bool:
        """Nothing that was saved before counts for this engine any more."""
        if self._identity is not None and not self._settings.keep_on_reset:
            for tracked in self._requests.values():
                tracked.saved = 0
                if tracked.asked is not None:
                    tracked.asked.end()
                tracked.asked = None
            # vLLM has reset its own cache just before, unless a block was in use.
            self._is_stale = self._manager.usage > 0
            if self._is_stale:
                logger.warning(
                    "Refrain saves nothing until the engine's cache is reset with no block in use"
                )
            self._become(self._identity.after_reset())
        return True

    def close(self) -> None:
        self._identity = None
        if self._client is not None:
            self._client.close()


def _computes_all(request: Any) -> bool:
    """It wants what only a computed prompt has, log-probabilities say."""
    return bool(getattr(request, "skip_reading_prefix_cache", False))
