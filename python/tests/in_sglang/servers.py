"""The arguments of a server of SGLang's, with a model in a folder as a hub leaves it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sglang.srt.runtime_context import get_context
from sglang.srt.server_args import ServerArgs

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}


def serves(home: Path):
    """Makes the server's arguments those of a model, in a folder of a hub's commit."""

    def make(commit: str | None = "a" * 40, model: dict | None = None, **arguments) -> ServerArgs:
        # SGLang reads the config of a path once in a process.
        servers = len(list(home.iterdir()))
        folder = home / f"{servers}" / "models--x--tiny" / "snapshots" / (commit or "main")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({**MODEL, **(model or {})}))
        server_args = ServerArgs(model_path=str(folder), device="cpu", **arguments)
        get_context().set_server_args(server_args)
        return server_args

    return make


@pytest.fixture
def serve(tmp_path):
    context = get_context()
    before = context._server_args
    (tmp_path / "servers").mkdir()
    yield serves(tmp_path / "servers")
    context._server_args = before
