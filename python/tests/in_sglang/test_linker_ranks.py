"""Two ranks of RefrainLinker, in processes of their own as SGLang has them: each keeps its share of
a page, a latent is kept once, and what one of them lacks is a miss of both and a failed load of
neither."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from workers import GPUS

HERE = Path(__file__).parent
RANKS = 2


@pytest.fixture
def ask(sidecar, tmp_path):
    """Has all ranks do something with a pool of a kind; what each says."""
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    ranks = [
        subprocess.Popen(
            [sys.executable, HERE / "rank.py", sidecar.address, tmp_path, str(rank), str(RANKS)],
            env={**os.environ, "PYTHONPATH": path, "REFRAIN_TEST_GPU": gpu},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, gpu in zip(range(RANKS), itertools.cycle(GPUS or [""]))
    ]

    def asked(what: str, make: str) -> list[dict]:
        for rank in ranks:
            print(what, make, file=rank.stdin, flush=True)
        return [json.loads(rank.stdout.readline()) for rank in ranks]

    yield asked
    for rank in ranks:
        rank.kill()
        rank.communicate()


def test_ranks_load_what_both_have(ask, sidecar):
    known: list[dict] = []
    for make, shards in (("mha", 2), ("mla", 1)):
        before = ask("save", make)
        assert [it["offloaded"] for it in before] == [[True], [True]]
        blocks = [it for it in sidecar.blocks() if it not in known]
        assert len(blocks) == shards * 6
        # The page of one rank alone, where each has its own.
        of_one = [it for it in blocks if it["shard"] == shards - 1]
        sidecar.flip(of_one[3], 100)
        after = ask("load", make)
        assert [(it["loaded"], it["aborted"]) for it in after] == [(3, 0), (3, 0)]
        pages = [it["pages"] for it in after]
        assert pages == [it["pages"][:3] for it in before]
        assert (pages[0] == pages[1]) == (make == "mla")
        known = sidecar.blocks()
