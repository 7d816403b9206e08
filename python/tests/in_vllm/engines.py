"""An engine of a real vLLM, in a process of its own, and what to ask it: of a build for the CPU or,
with REFRAIN_TEST_GPU=0, of one for CUDA."""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
#: Far longer than any step takes that does not hang.
PATIENCE = 300.0
#: The engine's tensors are in its memory; None has them on the host.
GPU = os.environ.get("REFRAIN_TEST_GPU")
#: Tokens of a block; latent attention has its own.
BLOCK = 32
#: Smaller than a prompt, so that it is computed in pieces.
CHUNK = 256
#: One thread has the same order of sums each time.
ON_CPU = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
#: Greedy choices need no sampler that is compiled first.
ON_GPU = {"CUDA_VISIBLE_DEVICES": str(GPU), "VLLM_USE_FLASHINFER_SAMPLER": "0"}


class EngineFailed(Exception):
    """What went wrong in the engine's process."""


class Engine:
    """A process in which engines are opened one after the other."""

    def __init__(self, home: Path, processes: bool) -> None:
        self._log = home / "engine.log"
        reading, writing = os.pipe()
        self._environment = {
            **os.environ,
            "REPLIES": str(writing),
            "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(processes)),
            "VLLM_RPC_BASE_PATH": str(home),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            # The kernels as they are, without a compiler.
            "TORCHDYNAMO_DISABLE": "1",
            **(ON_CPU if GPU is None else ON_GPU),
        }
        self._environment.pop("REFRAIN_ADDRESS", None)
        with open(self._log, "ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, HERE / "host.py"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[writing],
                env=self._environment,
                text=True,
            )
        os.close(writing)
        self.is_open = False
        self._replies = os.fdopen(reading)
        self._reply()

    def _reply(self, patience: float = PATIENCE) -> Any:
        ready, _, _ = select.select([self._replies], [], [], patience)
        line = self._replies.readline() if ready else ""
        if not line:
            raise EngineFailed(f"no answer: {self.said()[-3000:]}")
        reply = json.loads(line)
        if "error" in reply:
            self.is_open = False
            raise EngineFailed(reply["error"])
        return reply["answer"]

    def begin(self, what: str, **options: Any) -> None:
        self._child.stdin.write(json.dumps([what, options]) + "\n")
        self._child.stdin.flush()

    def result(self) -> Any:
        return self._reply()

    def ask(self, what: str, **options: Any) -> Any:
        self.begin(what, **options)
        return self._reply()

    def open(self, model: Path, sidecar: str | None = None, **options: Any) -> Any:
        extra = options.pop("extra", {})
        latent = model.name == "mla"
        if not latent:
            options.setdefault("block_size", BLOCK)
        elif GPU is None:
            # The CPU's own rotary kernel computes something else for a latent.
            options["compilation_config"] = {"custom_ops": ["all", "-rotary_embedding"]}
        # On a GPU the kernels for latents and adapters have no more.
        is_short = GPU is not None and (latent or options.get("enable_lora", False))
        if GPU is not None and not is_short:
            # The only one that computes with all digits.
            options["attention_config"] = {"backend": "TRITON_ATTN"}
        if sidecar is not None:
            options["kv_transfer_config"] = {
                "kv_connector": "RefrainConnector",
                "kv_connector_module_path": "refrain_kv.vllm",
                "kv_role": "kv_both",
                # What a busy machine does late is a miss, which is no matter here.
                "kv_connector_extra_config": {
                    "address": sidecar,
                    "lookup_deadline_ms": 10_000,
                    "load_deadline_ms": 30_000,
                    "save_deadline_ms": 30_000,
                    **extra,
                },
            }
        options = {
            "model": str(model),
            "dtype": "bfloat16" if is_short else "float32",
            "kv_cache_memory_bytes": 64 << 20,
            "max_num_batched_tokens": CHUNK,
            **options,
        }
        if self.is_open:
            self.close()
        answer = self.ask("open", **options)
        self.is_open = True
        return answer

    def generate(self, prompts: list[list[int]], **options: Any) -> Any:
        return self.ask("generate", prompts=prompts, **options)

    def close(self) -> None:
        """Whatever became of the test."""
        if self.is_open:
            self.is_open = False
            self.ask("close")

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def end(self) -> None:
        self._child.stdin.close()
        try:
            self._child.wait(30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._replies.close()


def prompts(seed: int, *lengths: int, shared: int = 0) -> list[list[int]]:
    """Token ids; the first `shared` ones are those of all."""
    numbers = random.Random(seed)
    prefix = [numbers.randrange(3, 2000) for _ in range(shared)]
    return [
        (prefix + [numbers.randrange(3, 2000) for _ in range(length)])[:length]
        for length in lengths
    ]


#: The second shares all but its end with the first; the third is shorter than a block.
SHARED = CHUNK
PROMPTS = prompts(1, 2 * CHUNK + 8, CHUNK + 8, 10, shared=SHARED)
#: What of them is loaded.
WHOLE = [2 * CHUNK, CHUNK, 0]


def same(one: Any, other: Any, model: str = "llama", pieces: bool = True) -> bool:
    """The same tokens and, digit for digit, the same log-probabilities. They are only near where
    the last digits hang on more than the prompt: on the CPU, those of the latent model on where its
    memory lies; on a GPU, where they were not computed in the same `pieces`."""
    if GPU is None and model == "mla" or GPU is not None and not pieces:
        numbers = [
            [float(it) for answer in side["logprobs"] for it in answer] for side in (one, other)
        ]
        near = all(abs(a - b) < 1e-4 for a, b in zip(*numbers, strict=True))
        return one["tokens"] == other["tokens"] and near
    return (one["tokens"], one["logprobs"]) == (other["tokens"], other["logprobs"])


def reuses(model: str) -> bool:
    """Whether the engine itself has what a prompt shares with one that was loaded before it: not of
    the latent model on the CPU, nor where a window had left it."""
    return model == "llama" or model == "mla" and GPU is not None


def counted(engine) -> dict:
    """What the engine's metrics say of Refrain, and of tokens that it did not compute."""
    metrics = engine.ask("metrics")
    names = {"vllm:external_prefix_cache_hits": "hits"}
    found = {name: metrics.get(key, 0) for key, name in names.items()}
    for key, value in metrics.items():
        if key.startswith("vllm:refrain_"):
            found[key.removeprefix("vllm:refrain_")] = value
    return found


def needs_gpus(ranks: int) -> None:
    """Skips what has more ranks than GPUs are named."""
    if GPU is not None and len(GPU.split(",")) < ranks:
        pytest.skip(f"{ranks} GPUs are not named: REFRAIN_TEST_GPU=0,1")


def until(holds, patience: float = 30.0) -> None:
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
