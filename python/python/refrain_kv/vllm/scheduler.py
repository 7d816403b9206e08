"""The scheduler's half: which blocks a request gets from Refrain, and which it gives.

The scheduler polls thousands of times a second while a request waits, so that nothing here waits
or calls anybody there: a look-up is begun when a request comes, and looked at. Blocks that are
being saved are kept by a reference of ours, whatever becomes of their request: it may finish, be
preempted or be aborted, and its blocks are free when the workers have said that they have read
them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.logger import init_logger

from .. import Client, Registration
from .adapters import Adapters, Names
from .asked import Asked
from .identity import Engine, Identity
from .kinds import Kind
from .layout import Facts
from .metadata import Move, Orders, Report, Save
from .settings import Settings
from .stats import RefrainStats

logger = init_logger("vllm.refrain_kv.scheduler")

#: Of the engine's blocks, what saves may keep at most: the rest is not saved.
SAVES_SHARE = 4
#: Room for the stripes of a block to begin at pages.
STRIPE_ROOM = 4096


class Tracked:
    """What is known of a request."""

    def __init__(self, request: Any, names: Names, kinds: int) -> None:
        self.request = request
        self.names = names
        self.asked: Asked | None = None
        #: Of each kind, blocks before this one are stored, or have been handed over for it.
        self.saved = [0] * kinds
        #: Tokens of the engine's own cache, when it was last asked for.
        self.local = 0
        #: How often it had been preempted when it was loaded.
        self.loaded_in: int | None = None
        #: Blocks to load at most, after a load that came short and counted for nothing.
        self.limit: int | None = None


@dataclass
class Loading:
    """A load of blocks `first` to `end` of a prompt."""

    first: int
    end: int
    asked: Asked | None
    #: Up to which one nothing is missing, as far as workers have said.
    came: int


class Scheduler:
    """Without an identity it finds nothing and saves nothing."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        kinds: Sequence[Kind],
        blocks: int,
        ranks: int,
        shards: int,
    ) -> None:
        self._engine, self._settings = engine, settings
        self._kinds, self._blocks = kinds, blocks
        self._block_tokens = kinds[0].block_tokens
        self._ranks, self._shards = ranks, shards
        #: A load that comes short counts for nothing, as vLLM has it with several groups.
        self._whole = sum(len(kind.groups) for kind in kinds) > 1
        self._identities: list[Identity] = []
        self._announced = True
        self._client: Client | None = None
        #: Of each kind, in every shard.
        self._registrations: list[list[Registration]] = []
        self._adapters = Adapters()
        self._requests: dict[str, Tracked] = {}
        self._loading: dict[str, Loading] = {}
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
        if faults or len(facts) != self._ranks or len({it.shapes for it in facts}) != 1:
            why = faults or f"{len(facts)} of {self._ranks} ranks, or ranks that differ"
            logger.error("Refrain caches nothing: %s", why)
            return
        shapes = facts[0].shapes
        # Nothing is saved from here, and a session must have room for a block all the same.
        arena = max(one.layers * (one.layer_bytes + STRIPE_ROOM) for one in shapes)
        self._client = Client(
            self._settings.address,
            session_arena_bytes=arena,
            deadline=self._settings.load_deadline,
        )
        self._become(
            [self._engine.identity(*both) for both in zip(self._kinds, shapes, strict=True)]
        )
        for one in self._identities:
            logger.info(
                "Refrain caches blocks of %d tokens, %d bytes in each of %d shards%s; weights: %s",
                one.block_tokens,
                one.layers * one.layer_bytes,
                self._shards,
                "" if one.window is None else f", of windows of {one.window} tokens",
                one.weights,
            )

    def _become(self, identities: list[Identity]) -> None:
        assert self._client is not None
        self._identities, self._announced = identities, False
        for registration in itertools.chain(*self._registrations):
            registration.close()
        self._registrations = [
            [
                self._client.register(identity.namespace(), shard=shard, check=False)
                for shard in range(self._shards)
            ]
            for identity in identities
        ]

    # Requests on their way in.

    def comes(self, request: Any) -> None:
        tracked = self._track(request)
        if tracked is not None and not _computes_all(request):
            self._ask(tracked)

    def matched(self, request: Any, local: int) -> tuple[int | None, bool]:
        """Tokens to load beyond those of the engine's own cache; None while that is not known."""
        tracked = self._track(request)
        if tracked is None or not self._identities or _computes_all(request):
            return 0, False
        # Once in a life: a load that came to little is not tried again.
        if tracked.loaded_in == request.num_preemptions:
            return 0, False
        tracked.local = local
        useful = self._useful(tracked)
        if useful * self._block_tokens <= local:
            return 0, False
        if tracked.asked is None or tracked.asked.is_old():
            self._ask(tracked)
        if tracked.asked is None or not tracked.asked.look():
            return None if tracked.asked else 0, False
        found = tracked.asked.longest(local // self._block_tokens, useful, self._needed)
        external = found * self._block_tokens - local
        return (external, True) if external > 0 else (0, False)

    def allocated(self, request: Any, blocks: Any, external: int) -> None:
        tracked = self._requests.get(request.request_id)
        if tracked is None or not self._identities:
            return
        asked, tracked.asked = tracked.asked, None
        if asked is not None and asked.is_answered:
            self.stats.add("lookups")
            self.stats.add("absent", asked.absent)
        for kind, known in (asked.chains if asked else {}).items():
            tracked.saved[kind] = max(tracked.saved[kind], known)
        if external <= 0:
            if asked is not None:
                asked.end()
            return
        first = tracked.local // self._block_tokens
        end = (tracked.local + external) // self._block_tokens
        block_ids = blocks.get_block_ids()
        for kind in range(len(self._kinds)):
            load = self._move(tracked, kind, first, end, block_ids)
            # What the window looks at may be in the engine's own cache.
            if load.blocks:
                self._orders.loads.append(load)
            tracked.saved[kind] = max(tracked.saved[kind], end)
        tracked.loaded_in = request.num_preemptions
        self._loading[request.request_id] = Loading(first, end, asked, end)
        self.stats.add("found_tokens", external)

    def _move(
        self, tracked: Tracked, kind: int, first: int, end: int, block_ids: Sequence[list[int]]
    ) -> Move:
        """Of blocks `first` to `end`, without those that the engine does not keep."""
        tables = [block_ids[group] for group in self._kinds[kind].groups]
        names = tracked.names.first(end)
        if self._kinds[kind].window is not None:
            # In front of a window there is the null block.
            null = self._manager.block_pool.null_block.block_id
            kept = itertools.takewhile(
                lambda place: all(table[place] != null for table in tables),
                range(end - 1, first - 1, -1),
            )
            first = min(kept, default=end)
            names = names[first:]
        lying = [list(table[first:end]) for table in tables]
        return Move(tracked.request.request_id, names, first, lying, kind)

    def _needed(self, kind: int, blocks: int) -> int:
        """Of a prefix of so many blocks, the first one that its next token looks at."""
        manager = self._manager.coordinator.single_type_managers[self._kinds[kind].groups[0]]
        skipped: int = manager.get_num_skipped_tokens(blocks * self._block_tokens)
        return skipped // self._block_tokens

    def _track(self, request: Any) -> Tracked | None:
        if not self._identities:
            return None
        tracked = self._requests.get(request.request_id)
        if tracked is None:
            key = self._adapters.key(request)
            if key is None:
                return None
            tracked = Tracked(request, Names(request, key), len(self._kinds))
            self._requests[request.request_id] = tracked
        return tracked

    def _useful(self, tracked: Tracked) -> int:
        """Blocks of a prompt that may be loaded: a token at least must be computed."""
        blocks = min((tracked.request.num_tokens - 1) // self._block_tokens, len(tracked.names))
        return blocks if tracked.limit is None else min(blocks, tracked.limit)

    def _ask(self, tracked: Tracked) -> None:
        if tracked.asked is not None:
            tracked.asked.end()
        tracked.asked = None
        names = tracked.names.first(self._useful(tracked))
        if not names:
            return
        deadline = self._settings.lookup_deadline
        pending = [
            [
                it.begin_lookup_hashes(names, separate=kind.window is not None, deadline=deadline)
                for it in shards
            ]
            for kind, shards in zip(self._kinds, self._registrations, strict=True)
        ]
        tracked.asked = Asked(self._kinds, pending, deadline)

    # What is computed.

    def orders(self, output: Any) -> Orders:
        """Of the step that was scheduled: its loads, and a save of all blocks that it completes."""
        for request_id, tokens in output.num_scheduled_tokens.items():
            tracked = self._requests.get(request_id)
            if tracked is not None:
                self._save(tracked, tracked.request.num_computed_tokens + tokens)
        orders, self._orders = self._orders, Orders()
        if not self._announced:
            orders.identities, self._announced = self._identities, True
        return orders

    def _save(self, tracked: Tracked, computed: int) -> None:
        end = min(computed // self._block_tokens, len(tracked.names))
        if end <= min(tracked.saved) or self._is_stale:
            return
        request = tracked.request.request_id
        block_ids = self._manager.get_block_ids(request)
        for kind, first in enumerate(tracked.saved):
            room = self._blocks // SAVES_SHARE - self._held_blocks
            groups = self._kinds[kind].groups
            if end <= first or (end - first) * len(groups) > room:
                continue
            if any(len(block_ids[group]) < end for group in groups):
                continue
            move = self._move(tracked, kind, first, end, block_ids)
            tracked.saved[kind] = end
            if move.blocks:
                self._begin_save(move)

    def _begin_save(self, move: Move) -> None:
        self._numbers += 1
        save = Save(**vars(move), number=self._numbers)
        pool = self._manager.block_pool
        for table in save.block_ids:
            pool.touch([pool.blocks[it] for it in table])
            self._held_blocks += len(table)
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
            for request_id, came in report.short.items():
                load = self._loading.get(request_id)
                if load is not None:
                    load.came = min(load.came, came)
        for request_id in output.finished_recving or ():
            self._end_load(request_id)

    def _end_save(self, number: int) -> None:
        del self._reported[number]
        pool = self._manager.block_pool
        for table in self._saving.pop(number).block_ids:
            # The last ones first, so that they are also the first to be used again.
            pool.free_blocks(pool.blocks[it] for it in reversed(table))
            self._held_blocks -= len(table)

    def _end_load(self, request_id: str) -> None:
        load = self._loading.pop(request_id, None)
        if load is None:
            return
        if load.asked is not None:
            load.asked.end()
        tracked = self._requests.get(request_id)
        if load.came == load.end or not self._whole:
            self.stats.add("loaded_tokens", (load.came - load.first) * self._block_tokens)
        elif tracked is not None and tracked.limit is None:
            # Nothing of it counts, and it is asked for once more: no further than this.
            tracked.limit, tracked.loaded_in = load.came, None
        if tracked is not None and load.came < load.end:
            # What is lost is computed, and saved once more.
            for kind, saved in enumerate(tracked.saved):
                known = load.came if self._kinds[kind].window is None else 0
                tracked.saved[kind] = min(saved, known)

    def finished(self, request: Any) -> None:
        tracked = self._requests.pop(request.request_id, None)
        if tracked is not None and tracked.asked is not None:
            tracked.asked.end()

    # The end of what is cached.

    def reset(self) -> bool:
        """Nothing that was saved before counts for this engine any more."""
        if self._identities and not self._settings.keep_on_reset:
            for tracked in self._requests.values():
                tracked.saved = [0] * len(self._kinds)
                if tracked.asked is not None:
                    tracked.asked.end()
                tracked.asked = None
            # vLLM has reset its own cache just before, unless a block was in use.
            self._is_stale = self._manager.usage > 0
            if self._is_stale:
                logger.warning(
                    "Refrain saves nothing until the engine's cache is reset with no block in use"
                )
            self._become([it.after_reset() for it in self._identities])
        return True

    def close(self) -> None:
        self._identities = []
        if self._client is not None:
            self._client.close()


def _computes_all(request: Any) -> bool:
    """It wants what only a computed prompt has, log-probabilities say."""
    return bool(getattr(request, "skip_reading_prefix_cache", False))
