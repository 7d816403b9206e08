"""How long until a prompt's first token, by its length: computed, from the host tier, from SSD?

    python ttft.py --shape deepseek-wide --tokens 1024,4096,16384,65536 --svg ttft.svg

Of each prompt `--hit` is kept. Beside the times stand what the sidecar foretold for the load and what it took.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from decoders import SHAPES, prompt_of
from plot import Line, plotted
from scenarios import default_binary
from sidecar import Sidecar
from worker import Worker


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="deepseek-wide")
    parser.add_argument("--tokens", default="1024,2048,4096,8192,16384,32768,65536,131072")
    parser.add_argument("--hit", type=float, default=0.9, help="share of a prompt that is kept")
    parser.add_argument("--chunk", type=int, default=2048, help="tokens that are computed at once, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--refrain", type=Path, default=default_binary(), help="the program")
    parser.add_argument("--dir", type=Path, default=Path("."), help="on the drive to use")
    parser.add_argument("--capacity", default="8GiB")
    parser.add_argument("--load-arena", default="2GiB")
    parser.add_argument("--svg", type=Path, help="where to draw it")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    lengths = [int(length) for length in args.tokens.split(",")]
    rows = []
    print(
        f"{'tokens':>7} {'kept':>7} {'cold ms':>9} {'SSD ms':>9} {'host ms':>9} {'host share':>10}"
        f" {'SSD load: foretold, taken ms':>30} {'host load: foretold, taken ms':>30}"
    )
    for length in lengths:
        row = measured(args, length)
        rows.append(row)
        print(
            f"{length:7} {row['kept']:7} {row['cold']:9.2f} {row['ssd']:9.2f} {row['host']:9.2f}"
            f" {row['host'] / row['cold']:10.3f}"
            f" {row['ssd_expected']:15.2f} {row['ssd_load']:14.2f}"
            f" {row['host_expected']:15.2f} {row['host_load']:14.2f}",
            flush=True,
        )
    print(json.dumps(rows))
    if args.svg:
        lines = [
            Line("computed", [(row["tokens"], row["cold"]) for row in rows]),
            Line("kept on SSD", [(row["tokens"], row["ssd"]) for row in rows]),
            Line("kept in the host tier", [(row["tokens"], row["host"]) for row in rows]),
        ]
        title = f"Time to first token, {args.shape}, {args.hit:.0%} of the prompt kept"
        args.svg.write_text(plotted(title, "tokens of the prompt", "ms", lines))


def measured(args: argparse.Namespace, length: int) -> dict[str, float]:
    device = torch.device(args.device)
    # A short prompt has several chunks too, or nothing of it could be reused.
    chunk = min(args.chunk, max(64, length // 16 // 64 * 64))
    kept = int(length * args.hit) // chunk * chunk
    prompt = prompt_of(length, length, device)
    listed = prompt.tolist()
    with (
        tempfile.TemporaryDirectory(prefix="refrain-example-", dir=args.dir) as home,
        Sidecar(args.refrain, Path(home) / "store", args.capacity, args.load_arena) as sidecar,
    ):
        worker = Worker(SHAPES[args.shape], device, length, chunk, sidecar.address)
        worker.cold(prompt)
        cold = [worker.cold(prompt).seconds for _ in range(args.rounds)]
        worker.save(prompt[:kept])
        ssd, ssd_loads, host, host_loads = [], [], [], []
        for turn in range(2 * args.rounds):
            sidecar.kill()
            sidecar.start()
            # A session with the new sidecar, and its arenas known to the GPU, before time counts.
            worker.warm()
            # Its memory is made beside the first loads.
            time.sleep(1.0)
            if turn % 2 == 0:
                ssd.append(worker.answer(prompt, listed).seconds)
            else:
                ssd_loads.append(worker.load(listed))
            host.append(worker.answer(prompt, listed).seconds)
            host_loads.append(worker.load(listed))
        worker.close()
    row = {"tokens": length, "kept": kept}
    row |= {"cold": median_ms(cold), "ssd": median_ms(ssd), "host": median_ms(host)}
    for name, loads in (("ssd", ssd_loads), ("host", host_loads)):
        row[f"{name}_expected"] = median_ms([expected for expected, _ in loads])
        row[f"{name}_load"] = median_ms([taken for _, taken in loads])
    return row


def median_ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e3


if __name__ == "__main__":
    sys.exit(main())
