"""What the sidecar holds of a prompt, and how much of that an engine can go on from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from vllm.logger import init_logger

from .. import Lookup, Pending, RefrainError
from ..named import resident
from .kinds import Kind

logger = init_logger("vllm.refrain_kv.scheduler")

#: A look-up's answer is asked for again after this many seconds: its lease is about to end.
ANSWER_LASTS = 8.0


class Asked:
    """A look-up of one prompt: of each kind, in every shard."""

    def __init__(
        self, kinds: Sequence[Kind], pending: list[list[Pending[Lookup]]], deadline: float
    ) -> None:
        self._begun = time.monotonic()
        self._deadline = deadline
        self._kinds, self._pending = kinds, pending
        self._found: list[list[Lookup]] = []
        self._runs: dict[int, list[int]] = {}
        self.is_answered = False
        self.absent = False
        #: Blocks that all shards hold from the prompt's start on, of each kind without a window.
        self.chains: dict[int, int] = {}

    def look(self) -> bool:
        """Whether there is an answer; after the deadline, there is."""
        if self.is_answered:
            return True
        if not all(it.done() for shards in self._pending for it in shards):
            # The look-ups have the same deadline; this one is for threads that get no time.
            if time.monotonic() - self._begun < 2 * self._deadline:
                return False
            self.is_answered = self.absent = True
            return True
        self.is_answered = True
        try:
            self._found = [[it.result() for it in shards] for shards in self._pending]
        except RefrainError as error:
            logger.warning("Refrain refuses a look-up: %s", error)
            return True
        self.absent = any(it.absent for shards in self._found for it in shards)
        for number, shards in enumerate(self._found):
            if self._kinds[number].window is None:
                self.chains[number] = min(it.matched_blocks for it in shards)
            else:
                self._runs[number] = _runs(shards)
        if not any(self.chains.values()):
            self.end()
        return True

    def longest(self, local: int, most: int, needed: Callable[[int, int], int]) -> int:
        """The longest prefix that can be loaded, in blocks: more than the engine's `local` ones,
        at most `most`; otherwise 0. Of kind `k`, a prefix of `n` blocks needs those from `needed(k,
        n)` on, beyond the local ones."""
        most = min(most, *self.chains.values()) if self.chains else 0
        for blocks in range(most, local, -1):
            if all(
                run[blocks] >= blocks - max(needed(number, blocks), local)
                for number, run in self._runs.items()
            ):
                return blocks
        return 0

    def is_old(self) -> bool:
        return self.is_answered and time.monotonic() - self._begun > ANSWER_LASTS

    def end(self) -> None:
        """Gives the leases back."""
        for shards in self._found:
            for lookup in shards:
                lookup.close()
        self._found, self._pending = [], []


def _runs(shards: list[Lookup]) -> list[int]:
    """How many blocks all shards hold one behind the other, just before each block and at the
    end."""
    runs = [0]
    for held in zip(*(resident(it) for it in shards), strict=True):
        runs.append(runs[-1] + 1 if all(held) else 0)
    return runs
