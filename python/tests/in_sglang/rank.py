"""One rank of `test_linker_ranks`: saves a prompt or loads what is kept of it, as each line asks,
by a worker made anew, and says in a line what became of it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
import workers
from servers import serves


def main(address: str, home: str, rank: str, ranks: str) -> None:
    own = Path(home) / f"rank {rank}"
    own.mkdir()
    serve = serves(own)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{home}/group", rank=int(rank), world_size=int(ranks)
    )
    for line in sys.stdin:
        what, make = line.split()
        group = torch.distributed.group.WORLD
        worker = workers.Worker(serve, address, getattr(workers, make), group=group)
        # All ranks compute the same latent.
        said = save(worker, 0 if make == "mla" else int(rank)) if what == "save" else load(worker)
        worker.close()
        print(json.dumps(said), flush=True)


def save(worker: workers.Worker, seed: int) -> dict:
    pages = worker.compute(workers.tokens(1, 6), seed)["kv"]
    return {"offloaded": worker.offloaded(), "pages": digests(pages)}


def load(worker: workers.Worker) -> dict:
    req = workers.request(workers.tokens(1, 6))
    worker.match(req)
    loaded = worker.load_back(req) // workers.PAGE
    aborted = len(worker.forward(req))
    return {"loaded": loaded, "aborted": aborted, "pages": digests(worker.landed(req)["kv"])}


def digests(pages: list[bytes]) -> list[str]:
    return [hashlib.sha256(page).hexdigest() for page in pages]


main(*sys.argv[1:])
