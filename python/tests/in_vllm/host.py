"""A process that has imported vLLM, and does what it is told in lines of JSON.

It is told on standard input and answers on the descriptor REPLIES, since vLLM writes to standard
output. One engine at a time; prompts are token ids, and the greedy choice is what comes out.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import time
import traceback

import torch
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest


class Host:
    def __init__(self) -> None:
        self.llm: LLM | None = None

    def open(self, **options) -> dict:
        common = {
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "max_model_len": 2048,
            "disable_log_stats": False,
            "seed": 0,
        }
        self.llm = LLM(**{**common, **options})
        config = self.llm.llm_engine.vllm_config
        policy = config.kv_transfer_config and config.kv_transfer_config.kv_load_failure_policy
        return {"block": config.cache_config.block_size, "policy": policy}

    def generate(self, prompts, tokens=8, salts=None, adapter=None, together=False, drain=True):
        sampling = SamplingParams(
            temperature=0, max_tokens=tokens, detokenize=False, ignore_eos=True, logprobs=0
        )
        asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        for prompt, salt in zip(asked, salts or [], strict=False):
            prompt["cache_salt"] = salt
        lora = LoRARequest("adapter", 1, adapter) if adapter else None
        begun = time.monotonic()
        outputs = []
        for batch in [asked] if together else [[it] for it in asked]:
            outputs += self.llm.generate(batch, sampling, use_tqdm=False, lora_request=lora)
        seconds = time.monotonic() - begun
        if drain:
            self.drain()
        return {
            "seconds": seconds,
            "tokens": [list(it.outputs[0].token_ids) for it in outputs],
            # All digits of them.
            "logprobs": [
                [repr(next(iter(place.values())).logprob) for place in it.outputs[0].logprobs]
                for it in outputs
            ],
            "reasons": [it.outputs[0].finish_reason for it in outputs],
            "cached": [it.num_cached_tokens for it in outputs],
        }

    def scheduler(self):
        """Of an engine in this process."""
        core = getattr(self.llm.llm_engine.engine_core, "engine_core", None)
        return getattr(core, "scheduler", None)

    def drain(self) -> None:
        """Saves go on while the engine has steps; an engine in its own process makes them."""
        scheduler = self.scheduler()
        while scheduler is not None and scheduler.has_requests():
            self.llm.llm_engine.step()

    def abort(self, prompt, steps) -> dict:
        """Gives a prompt up after some steps."""
        engine = self.llm.llm_engine
        request = self.begin("given up", prompt)
        for _ in range(steps):
            engine.step()
        engine.abort_request([request])
        self.drain()
        return self.blocks()

    def reset_amid(self, prompt) -> dict:
        """Resets both caches when some of a prompt is computed, and goes on."""
        self.begin("goes on", prompt)
        while self.blocks()["free"] == self.blocks()["all"]:
            self.llm.llm_engine.step()
        answer = self.reset(connector=True)
        self.drain()
        return answer

    def is_saving(self) -> bool:
        return self.scheduler().connector.has_pending_push_work()

    def begin_one(self, prompt) -> None:
        """Until some of the prompt is computed."""
        self.begin("is reset", prompt)
        while self.blocks()["free"] == self.blocks()["all"]:
            self.llm.llm_engine.step()

    def reset_running(self) -> dict:
        """Resets the engine's cache with what runs when a save is under way, and goes on; what vLLM
        says of it, and what comes out."""
        engine, said, outputs = self.llm.llm_engine, "", []
        while engine.has_unfinished_requests() and not self.is_saving():
            outputs += engine.step()
        try:
            engine.reset_prefix_cache(reset_running_requests=True)
        except RuntimeError as error:
            said = str(error)
        while self.scheduler().has_requests():
            outputs += engine.step()
        [tokens] = [list(it.outputs[0].token_ids) for it in outputs if it.finished]
        return {"said": said, "tokens": tokens, **self.blocks()}

    def begin(self, name, prompt) -> str:
        sampling = SamplingParams(temperature=0, max_tokens=64, detokenize=False, ignore_eos=True)
        asked = TokensPrompt(prompt_token_ids=prompt)
        return self.llm.llm_engine.add_request(name, asked, sampling) or name

    def blocks(self) -> dict:
        """Blocks in use: none but the null block when nothing runs."""
        pool = self.scheduler().kv_cache_manager.block_pool
        return {"free": pool.get_num_free_blocks(), "all": len(pool.blocks) - 1}

    def null_block(self) -> str:
        """What it holds in all layers: it stands where an engine keeps no block."""
        layers = self.llm.llm_engine.vllm_config.compilation_config.static_forward_context
        held = hashlib.sha256()
        for layer in layers.values():
            held.update(layer.kv_cache[0].cpu().numpy().tobytes())
        return held.hexdigest()

    def reset(self, connector) -> dict:
        return {"reset": self.llm.reset_prefix_cache(reset_connector=connector)}

    def sleep(self) -> dict:
        """Gives a GPU's memory back, and takes it again; on a CPU it stays where it is."""
        free = self.free()
        self.llm.sleep(level=1)
        asleep = self.free()
        self.llm.wake_up()
        return {"given_back": asleep - free}

    @staticmethod
    def free() -> int:
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0

    def metrics(self) -> dict:
        found = {}
        for metric in self.llm.get_metrics():
            value = getattr(metric, "value", None)
            if value is not None:
                labels = {
                    k: v for k, v in metric.labels.items() if k not in ("model_name", "engine")
                }
                found[metric.name + (json.dumps(labels) if labels else "")] = value
        return found

    def close(self) -> None:
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        # One that was refused half-way has left its worker's half, which the next one would take.
        ensure_kv_transfer_shutdown()
        cleanup_dist_env_and_memory()
        gc.collect()


def main() -> None:
    replies = os.fdopen(int(os.environ["REPLIES"]), "w")
    host = Host()

    def reply(**what) -> None:
        replies.write(json.dumps(what) + "\n")
        replies.flush()

    reply(answer="ready")
    for line in sys.stdin:
        what, options = json.loads(line)
        try:
            answer = getattr(host, what)(**options)
        except Exception as error:
            traceback.print_exc()
            reply(error=f"{type(error).__name__}: {error}")
            host.close()
            continue
        reply(answer=answer)


if __name__ == "__main__":
    main()
