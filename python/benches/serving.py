"""Does an engine answer sooner with Refrain behind it?

    VENV/bin/python benches/serving.py --refrain PATH/refrain [--lmcache VENV/bin/python] [-- FLAGS]

The first environment has vLLM and this package (`make vllm`), the other one LMCache and vLLM.

Conversations of several turns with vLLM's server, of which its own cache holds a few: without a
store, with Refrain, with Refrain behind vLLM's own pool, with vLLM's tier over files there, and
with LMCache, on the same disk. vLLM's pool needs a GPU.

Each turn's prompt is the one before, what the engine said, and more; all conversations have their
first turn before any has its second, so that a cache that holds fewer of them holds nothing of use.
All engines are up, one works at a time, and each round goes from one to the next with conversations
of its own. A way that does not come up is told of, with the error that it gave.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

HOST = "127.0.0.1"
VOCABULARY = 2048


@dataclass
class Way:
    """Of keeping KV: what it takes beside the engine, and what the engine is told."""

    name: str
    transfer: dict[str, Any] | None = None
    beside: list[str] | None = None
    #: The Python whose vLLM it is.
    python: str = sys.executable
    port: int = 0
    fault: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    #: One of each round.
    rounds: list[dict[str, float]] = field(default_factory=list)


def ways(options: argparse.Namespace, folder: Path) -> Iterator[Way]:
    yield Way("none")
    yield refrain("Refrain", "group", options, folder)
    # What the others do: none of them syncs.
    yield refrain("Refrain without syncs", "none", options, folder)
    yield refrain_tier(options, folder)
    files = {"type": "fs", "root_dir": f"{folder}/files"}
    yield Way("vLLM's file tier", behind_pool(files, options))
    if options.lmcache:
        port, http = free_port(), free_port()
        adapter = {"type": "fs_native", "base_path": f"{folder}/lmcache"}
        yield Way(
            "LMCache",
            connector(
                "LMCacheMPConnector",
                {"lmcache.mp.host": f"tcp://{HOST}", "lmcache.mp.port": port},
            ),
            [
                *(str(Path(options.lmcache).with_name("lmcache")), "server"),
                *("--host", HOST, "--port", f"{port}", "--http-host", HOST),
                *("--http-port", f"{http}", "--chunk-size", f"{options.lmcache_chunk}"),
                *("--l1-size-gb", f"{options.host_mib / 1024}", "--no-l1-use-lazy"),
                *("--eviction-policy", "LRU", "--disable-observability"),
                *("--supported-transfer-mode", "auto", "--shm-name", f"lm{os.getpid()}"),
                *("--l2-adapter", json.dumps(adapter)),
            ],
            python=options.lmcache,
        )


def refrain(name: str, durability: str, options: argparse.Namespace, folder: Path) -> Way:
    address, serve = sidecar(folder / f"refrain-{durability}", durability, options)
    told = {"address": address, "lookup_deadline_ms": 1000}
    if options.dummy:
        told["weights"] = "vLLM's own"
    engine = connector("RefrainConnector", told, kv_connector_module_path="refrain_kv.vllm")
    return Way(name, engine, serve)


def refrain_tier(options: argparse.Namespace, folder: Path) -> Way:
    address, serve = sidecar(folder / "refrain-tier", "none", options)
    tier = {
        "type": "RefrainTier",
        "module_path": "refrain_kv.vllm.tier",
        "address": address,
        "weights": "of this run",
        "config": "of this run",
    }
    return Way("Refrain as vLLM's tier, without syncs", behind_pool(tier, options), serve)


def sidecar(home: Path, durability: str, options: argparse.Namespace) -> tuple[str, list[str]]:
    """Its address, and what starts it."""
    home.mkdir()
    config = home / "config"
    config.write_text(
        f'listen = "unix:{home}/sock"\nload_arena = "{options.host_mib}MiB"\n'
        f'durability = "{durability}"\n'
        f'[[drives]]\npath = "{home}/drive"\ncapacity = "{options.disk_gib}GiB"\n'
    )
    return f"unix:{home}/sock", [str(options.refrain), "serve", "--config", str(config)]


def behind_pool(tier: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    spec = {
        "spec_name": "TieringOffloadingSpec",
        "cpu_bytes_to_use": options.host_mib << 20,
        "secondary_tiers": [tier],
    }
    return connector("OffloadingConnector", spec)


def connector(name: str, extra: dict[str, Any], **more: str) -> dict[str, Any]:
    return {
        "kv_connector": name,
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
        **more,
    }


def start(way: Way, options: argparse.Namespace, folder: Path) -> None:
    log = log_of(way, folder)
    quiet = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "LMCACHE_TRACK_USAGE": "false"}
    environment = {**os.environ, **quiet, "VLLM_RPC_BASE_PATH": str(folder)}
    (folder / "lmcache").mkdir(exist_ok=True)
    way.port = free_port()
    engine = [
        *(way.python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(options.model)),
        *("--host", HOST, "--port", f"{way.port}", "--served-model-name", "model"),
        *("--max-model-len", f"{last_prompt(options) + options.answer}"),
        *("--skip-tokenizer-init", "--kv-cache-memory-bytes", f"{options.engine_mib << 20}"),
        *options.engine,
    ]
    if options.dummy:
        engine += ["--load-format", "dummy"]
    if way.transfer is not None:
        engine += ["--kv-transfer-config", json.dumps(way.transfer)]
    with open(log, "ab") as file:
        for command in filter(None, (way.beside, engine)):
            way.processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=environment,
                )
            )


def await_up(way: Way, options: argparse.Namespace, folder: Path) -> None:
    end = time.monotonic() + options.patience
    while not answers(way.port):
        if any(it.poll() is not None for it in way.processes) or time.monotonic() > end:
            way.fault = first_error(log_of(way, folder).read_text(errors="replace"))
            stop(way)
            return
        time.sleep(0.2)


def first_error(text: str) -> str:
    """The first error of the engine's: what it says after that follows from it."""
    found = re.search(r"ERROR .*\] (\w+(?:Error|Exception)?: .+)", text)
    return found[1][:300] if found else (text.splitlines() or ["it said nothing"])[-1]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def stop(way: Way) -> None:
    for process in reversed(way.processes):
        if process.poll() is None:
            process.terminate()
    for process in way.processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    way.processes = []


class Conversation:
    def __init__(self, seed: str, options: argparse.Namespace) -> None:
        self._numbers = random.Random(seed)
        self._more = options.more
        self.tokens = self._said(options.first)

    def _said(self, count: int) -> list[int]:
        return [self._numbers.randrange(3, VOCABULARY) for _ in range(count)]

    def goes_on(self, answer: list[int]) -> None:
        self.tokens += answer + self._said(self._more)


@dataclass
class Turn:
    first_token: float
    seconds: float
    prompt: int
    answer: list[int]


async def ask(session: aiohttp.ClientSession, port: int, prompt: list[int], tokens: int) -> Turn:
    body = {
        "model": "model",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    begun, first, answer = time.perf_counter(), 0.0, []
    async with session.post(f"http://{HOST}:{port}/v1/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.content:
            if not line.startswith(b"data: {"):
                continue
            said = json.loads(line[6:])
            for choice in said.get("choices") or ():
                answer += choice.get("token_ids") or []
            if answer and not first:
                first = time.perf_counter()
    if len(answer) != tokens:
        raise RuntimeError(f"{len(answer)} tokens of {tokens}")
    return Turn(first - begun, time.perf_counter() - begun, len(prompt), answer)


async def converse(way: Way, number: int, options: argparse.Namespace) -> dict[str, float]:
    """A round: every conversation has its turn before any has its next one."""
    many = options.conversations if number >= 0 else options.at_once
    talks = [Conversation(f"{number} {it}", options) for it in range(many)]
    turns: list[list[Turn]] = []
    places = asyncio.Semaphore(options.at_once)
    begun = time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def take_turn(talk: Conversation) -> Turn:
            async with places:
                turn = await ask(session, way.port, talk.tokens, options.answer)
            talk.goes_on(turn.answer)
            return turn

        for _ in range(options.turns):
            turns.append(await asyncio.gather(*map(take_turn, talks)))
    seconds = time.perf_counter() - begun
    later = [turn for some in turns[1:] for turn in some]
    every = [turn for some in turns for turn in some]
    return {
        "first_turns_ttft_s": statistics.median(turn.first_token for turn in turns[0]),
        "later_turns_ttft_s": statistics.median(turn.first_token for turn in later),
        "later_turns_ttft_p90_s": statistics.quantiles((it.first_token for it in later), n=10)[-1],
        "last_turns_ttft_s": statistics.median(turn.first_token for turn in turns[-1]),
        "answer_tokens_per_s": sum(len(turn.answer) for turn in every) / seconds,
        "prompt_tokens_per_s": sum(turn.prompt for turn in every) / seconds,
    }


def model_of(options: argparse.Namespace, folder: Path) -> Path:
    """A Llama of seeded random weights, of the given size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.width,
        intermediate_size=options.width * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        num_key_value_heads=options.kv_heads or max(options.width // 256, 1),
        head_dim=64,
        max_position_embeddings=131_072,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    if options.dummy:
        config.save_pretrained(folder / "model")
        return folder / "model"
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    return folder / "model"


def last_prompt(options: argparse.Namespace) -> int:
    return int(options.first + (options.turns - 1) * (options.answer + options.more))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def log_of(way: Way, folder: Path) -> Path:
    return folder / f"{way.name}.log"


def report(all_ways: list[Way], options: argparse.Namespace) -> dict[str, Any]:
    """Medians of rounds, and how many times those without a store."""
    found: dict[str, Any] = {
        "conversations": options.conversations,
        "turns": options.turns,
        "last_prompt_tokens": last_prompt(options),
        "rounds": options.rounds,
        "ways": {},
    }
    plain = next(way for way in all_ways if way.name == "none")
    for way in all_ways:
        if way.fault:
            found["ways"][way.name] = {"did_not_run": way.fault}
            continue
        says = {}
        for key in way.rounds[0]:
            values = [each[key] for each in way.rounds]
            beside = [mine[key] / its[key] for mine, its in zip(way.rounds, plain.rounds)]
            says[key] = {"median": statistics.median(values), "of_none": statistics.median(beside)}
        found["ways"][way.name] = says
    return found


def print_table(found: dict[str, Any]) -> None:
    print(
        f"{found['conversations']} conversations of {found['turns']} turns, the last prompts of "
        f"{found['last_prompt_tokens']} tokens; medians of {found['rounds']} rounds, and in "
        "brackets that of their ratios to those without a store"
    )
    for name, says in found["ways"].items():
        if "did_not_run" in says:
            print(f"{name}: did not run: {says['did_not_run']}")
            continue
        numbers = (f"{it['median']:.3f} ({it['of_none']:.2f})" for it in says.values())
        titled = (f"{key} {number}" for key, number in zip(says, numbers))
        print(f"{name}: {', '.join(titled)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--refrain", type=Path, required=True, help="the sidecar's binary")
    parser.add_argument("--lmcache", help="Python of an environment with LMCache and vLLM")
    parser.add_argument("--lmcache-chunk", type=int, default=64, help="tokens")
    parser.add_argument("--folder", type=Path, help="where all of them keep what they keep")
    parser.add_argument("--keep", action="store_true", help="the folder, with what they said")
    parser.add_argument("--model", type=Path, help="else one of random weights, of these sizes:")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--kv-heads", type=int, default=0, help="of 64; else a quarter of all")
    parser.add_argument(
        "--dummy", action="store_true", help="weights that vLLM makes up: large ones"
    )
    parser.add_argument("--engine-mib", type=int, default=48, help="the engine's own cache")
    parser.add_argument("--host-mib", type=int, default=64, help="a store's memory")
    parser.add_argument("--disk-gib", type=int, default=4)
    parser.add_argument("--conversations", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--first", type=int, default=1500, help="tokens of a first prompt")
    parser.add_argument("--more", type=int, default=500, help="tokens of each further turn")
    parser.add_argument("--answer", type=int, default=16, help="tokens")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=300, help="seconds for all to come up")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("engine", nargs="*", help="further flags of vLLM's, behind --")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    folder = Path(tempfile.mkdtemp(prefix="serving-", dir=options.folder))
    options.model = options.model or model_of(options, folder)
    all_ways = list(ways(options, folder))
    try:
        for way in all_ways:
            start(way, options, folder)
        for way in all_ways:
            await_up(way, options, folder)
        running = [way for way in all_ways if not way.fault]
        for number in range(-1, options.rounds):
            for way in running[number % len(running) :] + running[: number % len(running)]:
                said = asyncio.run(converse(way, number, options))
                # A short one before the first warms them up.
                if number >= 0:
                    way.rounds.append(said)
                print(f"round {number + 1}, {way.name}: {said}", file=sys.stderr)
    finally:
        for way in all_ways:
            stop(way)
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    found = report(all_ways, options)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print_table(found)


if __name__ == "__main__":
    main()
