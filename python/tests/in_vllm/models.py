"""Writes tiny models of seeded random weights: a Llama with grouped queries, another Llama, one
with DeepSeek's latent attention (MLA), a Gemma 3 with sliding windows; and an adapter of the first.

vLLM's own dummy weights are so small that every prompt ends in the same tokens.

usage: python models.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

VOCABULARY = 2048
HIDDEN = 128
LAYERS = 3
BREADTH = 0.15
#: Of the layers that have one, in tokens: not a whole number of blocks.
WINDOW = 100
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 4096,
    "initializer_range": BREADTH,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def llama() -> torch.nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=32, **COMMON)
    )


def mla() -> torch.nn.Module:
    """Dense: no experts. vLLM's kernels are made for the sizes of DeepSeek's heads."""
    config = DeepseekV3Config(
        num_attention_heads=4,
        num_key_value_heads=4,
        first_k_dense_replace=LAYERS,
        moe_intermediate_size=64,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        q_lora_rank=64,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        **COMMON,
    )
    return DeepseekV3ForCausalLM(config)


def windows() -> torch.nn.Module:
    """A Gemma 3: two layers with a window, then one without, twice. vLLM makes three groups of
    them, two of which have windows."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=WINDOW,
        layer_types=kinds,
        **COMMON | {"num_hidden_layers": len(kinds)},
    )
    return Gemma3ForCausalLM(config)


def write(folder: Path, make, seed: int) -> None:
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, BREADTH)
    model.to(torch.bfloat16).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if config["model_type"] == "deepseek_v3":
        # vLLM asks for them, and they are not written.
        config |= {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
        config |= {"num_nextn_predict_layers": 0}
        path.write_text(json.dumps(config))


def write_adapter(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    weights = {}
    for layer in range(LAYERS):
        # Of the keys' projection: it changes the KV.
        name = f"base_model.model.model.layers.{layer}.self_attn.k_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(8, HIDDEN) * 0.3
        weights[f"{name}.lora_B.weight"] = torch.randn(64, 8) * 0.3
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["k_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def main(folder: Path) -> None:
    made = (("llama", llama, 1), ("other", llama, 2), ("mla", mla, 3), ("windows", windows, 5))
    for name, make, seed in made:
        write(folder / name, make, seed)
    write_adapter(folder / "adapter", 4)
    (folder / "complete").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
