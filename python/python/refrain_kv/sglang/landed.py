"""What has landed for requests that SGLang may load, and has not yet: a prefix counts as found only
once its bytes are in this process's own memory, from where no sidecar can take them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolTransfer

from ..named import NamedBlocks
from .kept import KeptPools, names
from .landing import Landing

#: Seconds after a request's last lookup when what landed for it is let go: nothing tells when a
#: request has gone.
HELD = 30.0
#: Seconds before a request that had no hit is looked up anew: SGLang asks in every step.
AGAIN = 1.0
#: Of models with states or windows, the longest prefixes that are brought: ranks that lack one may
#: have the next.
LENGTHS = 4


@dataclass
class LandingPool:
    """Where pages of a pool land, and what brings them."""

    landing: Landing
    blocks: NamedBlocks


@dataclass
class Landed:
    """Of one request. `lengths`, in pages, are those that may be loaded."""

    keys: list[str]
    looked_up: float
    touched: float
    lengths: list[int] = field(default_factory=list)
    #: Of each pool, where a page lies.
    rows: dict[str, dict[str, int]] = field(default_factory=dict)


class Landings:
    """Called by SGLang's scheduler alone, from one thread. A lookup takes no longer than
    `deadline`, in seconds."""

    def __init__(self, kept: KeptPools, pools: Mapping[str, LandingPool], deadline: float) -> None:
        self._kept = kept
        self._pools = pools
        self._deadline = deadline
        #: The one that was looked up last is the last.
        self._of: OrderedDict[str, Landed] = OrderedDict()

    def __len__(self) -> int:
        return len(self._of)

    def lookup(self, rid: str, keys: list[str], transfers: Sequence[PoolTransfer]) -> list[int]:
        """Every length, in pages of `keys`, that may be loaded."""
        now = time.monotonic()
        self._let_go_of_old(now)
        known = self._of.get(rid)
        if known is not None:
            # It may have come to have more of its prefix on the device.
            behind = len(known.keys) - len(keys)
            is_same = behind >= 0 and known.keys[behind:] == keys
            if is_same and (known.lengths or now < known.looked_up + AGAIN):
                known.touched = now
                self._of.move_to_end(rid)
                return [length - behind for length in known.lengths if length > behind]
            self.let_go(rid)
        self._of[rid] = landed = Landed(keys, now, now)
        self._land(landed, transfers, now + self._deadline)
        return list(landed.lengths)

    def take(self, rid: str, transfers: Sequence[PoolTransfer]) -> dict[str, list[int]] | None:
        """The rows of these pages, which are the caller's to give back; `None` where not all have
        landed. Whatever else the request has is let go."""
        landed = self._of.pop(rid, None)
        if landed is None:
            return None
        wanted = [(landed.rows.get(it.name, {}), it.name, it.keys or ()) for it in transfers]
        taken: dict[str, list[int]] | None = None
        if all(key in there for there, _, keys in wanted for key in keys):
            taken = {name: [there.pop(key) for key in keys] for there, name, keys in wanted}
        self._keep(landed, {})
        return taken

    def give(self, name: str, rows: Sequence[int]) -> None:
        self._pools[name].landing.give(rows)

    def let_go(self, rid: str) -> None:
        landed = self._of.pop(rid, None)
        if landed is not None:
            self._keep(landed, {})

    def clear(self) -> None:
        for rid in list(self._of):
            self.let_go(rid)

    def _let_go_of_old(self, now: float) -> None:
        while self._of:
            rid, oldest = next(iter(self._of.items()))
            if oldest.touched + HELD > now:
                break
            self.let_go(rid)

    def _land(self, landed: Landed, transfers: Sequence[PoolTransfer], end: float) -> None:
        keys = landed.keys
        whole = [it for it in transfers if it.hit_policy == PoolHitPolicy.ALL_PAGES]
        ends = [it for it in transfers if it.hit_policy != PoolHitPolicy.ALL_PAGES]
        if not whole:
            return
        found = self._kept.find(whole[0].name, keys, end)
        run = found.index(False) if False in found else len(found)
        lengths = self._kept.restorable(keys, run, [*whole[1:], *ends], end).restorable_prefix_pages
        if not lengths:
            return
        pages = lengths[-1]
        for pool in whole:
            pages = self._bring(landed, pool.name, keys[:pages], end)
        lengths = [length for length in lengths if length <= pages]
        if ends:
            windows = {it.name: max(1, len(it.keys or ())) for it in ends}
            lengths = [
                length
                for length in reversed(lengths[-LENGTHS:])
                if all(
                    self._bring_all(landed, name, keys[max(0, length - window) : length], end)
                    for name, window in windows.items()
                )
            ][::-1]
        landed.lengths = lengths
        needed = {pool.name: set(keys[: max(lengths, default=0)]) for pool in whole}
        for it in ends:
            window = max(1, len(it.keys or ()))
            needed[it.name] = {
                key for length in lengths for key in keys[max(0, length - window) : length]
            }
        self._keep(landed, needed)

    def _bring_all(self, landed: Landed, name: str, keys: list[str], end: float) -> bool:
        return self._bring(landed, name, keys, end) == len(keys)

    def _bring(self, landed: Landed, name: str, keys: list[str], end: float) -> int:
        """How many of them have landed, from the first one on."""
        pool, rows = self._pools[name], landed.rows.setdefault(name, {})
        wanted = [key for key in keys if key not in rows]
        taken = pool.landing.take(len(wanted))
        loaded = pool.blocks.load(names(wanted[: len(taken)]), taken, end) if taken else 0
        pool.landing.give(taken[loaded:])
        rows.update(zip(wanted, taken[:loaded]))
        return next((index for index, key in enumerate(keys) if key not in rows), len(keys))

    def _keep(self, landed: Landed, needed: Mapping[str, set[str]]) -> None:
        """Lets all else of a request go."""
        for name, rows in landed.rows.items():
            others = [key for key in rows if key not in needed.get(name, ())]
            self._pools[name].landing.give([rows.pop(key) for key in others])
