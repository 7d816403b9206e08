"""Does a prompt whose prefix was kept get the logits that it gets without?

    python scenarios.py --shape deepseek-deep --tokens 8192
    python scenarios.py --shape llama-wide --tokens 32768 --device cuda

Each way of finding a prefix is held against a cold run, number by number. The exit status says whether all were equal.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from pathlib import Path

import torch
from decoders import SHAPES, prompt_of
from sidecar import Sidecar
from worker import Answer, Worker


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny-latent")
    parser.add_argument("--tokens", type=int, default=4096, help="of the prompt")
    parser.add_argument("--hit", type=float, default=0.9, help="share of it that is kept")
    parser.add_argument("--chunk", type=int, default=512, help="tokens that are computed at once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--refrain", type=Path, default=default_binary(), help="the program")
    parser.add_argument("--dir", type=Path, default=Path("."), help="on the drive to use")
    parser.add_argument("--capacity", default="8GiB")
    parser.add_argument("--load-arena", default="2GiB")
    return parser.parse_args()


def default_binary() -> Path:
    root = Path(__file__).resolve().parents[1]
    return Path(os.environ.get("CARGO_TARGET_DIR", root / "target")) / "release" / "refrain"


class Comparison:
    """Answers beside those of cold runs."""

    def __init__(self, noise: float) -> None:
        self.noise = noise
        self.all_good = True

    def row(self, what: str, cold: Answer, found: Answer, expected: int) -> None:
        """One line of the table; `expected` is how many tokens should have been reused at most."""
        difference = (cold.logits - found.logits).abs().max().item()
        good = difference <= self.noise and found.reused <= expected
        self.all_good &= good
        same = "equal" if difference == 0.0 else f"off by {difference:.2e}"
        print(
            f"{what:44} {found.reused:7} {found.seconds * 1e3:9.1f} ms"
            f" {found.seconds / cold.seconds:6.2f}  {same}{'' if good else '  WRONG'}",
            flush=True,
        )


def main() -> int:
    args = arguments()
    device = torch.device(args.device)
    shape = SHAPES[args.shape]
    kept = int(args.tokens * args.hit) // args.chunk * args.chunk
    with (
        tempfile.TemporaryDirectory(prefix="refrain-example-", dir=args.dir) as home,
        Sidecar(args.refrain, Path(home) / "store", args.capacity, args.load_arena) as sidecar,
    ):
        worker = Worker(shape, device, args.tokens, args.chunk, sidecar.address)
        good = compare(worker, sidecar, args.tokens, kept)
        worker.close()
    return 0 if good else 1


def compare(worker: Worker, sidecar: Sidecar, length: int, kept: int) -> bool:
    prompt = prompt_of(length, 1, worker.device)
    listed = prompt.tolist()
    # What was computed before is what both have in common.
    other = torch.cat((prompt[:kept], prompt_of(length - kept, 2, worker.device)))
    half = torch.cat((prompt[: length // 2], prompt_of(length - length // 2, 3, worker.device)))
    worker.cold(prompt)
    cold, again = worker.cold(prompt), worker.cold(prompt)
    noise = (cold.logits - again.logits).abs().max().item()
    print(f"two cold runs differ by {noise:.2e}; {kept} of {length} tokens are kept, of another prompt")
    print(f"{'':44} {'reused':>7} {'TTFT':>12} {'share':>6}")
    table = Comparison(noise)
    table.row("cold", cold, again, 0)
    worker.cold(other)
    worker.save(other[:kept])

    sidecar.kill()
    sidecar.start()
    table.row("hit, SSD, after a kill and a new start", cold, worker.answer(prompt, listed), kept)
    table.row("hit, host tier", cold, worker.answer(prompt, listed), kept)
    cold_half = worker.cold(half)
    table.row("partial hit", cold_half, worker.answer(half, half.tolist()), length // 2)

    table.row("killed during the load", cold, killed(worker, sidecar, prompt, listed), kept)
    table.row("no sidecar", cold, worker.answer(prompt, listed), 0)
    sidecar.rot()
    sidecar.start()
    table.row("one rotten bit", cold, worker.answer(prompt, listed), kept // 2)
    table.row("the same, saved again", cold, mended(worker, prompt, listed), length)
    return table.all_good


def killed(worker: Worker, sidecar: Sidecar, prompt: torch.Tensor, listed: list[int]) -> Answer:
    # Nothing of the prompt may be in memory, or the load is over too soon.
    sidecar.kill()
    sidecar.start()
    killer = threading.Timer(0.005, sidecar.kill)
    killer.start()
    answer = worker.answer(prompt, listed)
    killer.join()
    return answer


def mended(worker: Worker, prompt: torch.Tensor, listed: list[int]) -> Answer:
    worker.save(prompt)
    return worker.answer(prompt, listed)


if __name__ == "__main__":
    sys.exit(main())
