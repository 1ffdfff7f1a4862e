"""Small models and runs for the tests of weights in low precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve
from slime_core.cli import main
from slime_core.plugins import Plugins
from slime_core.run.plan import Plan, make_plan
from slime_core.testing.checkpoint import chat_tokenizer

OF_RECIPE = {"tensorwise": "tensor", "delayed": "tensor", "blockwise": "block", "mxfp8": "mxfp8"}
"""How each recipe stores weights, as `--strategy` calls it."""


def small_model(folder: Path, **changes: Any) -> Path:
    """A random model of three layers whose sizes blocks of 128 do not divide."""
    tokenizer = chat_tokenizer()
    settings: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 160,
        "intermediate_size": 288,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 40,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
        **changes,
    }
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


MOE = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
"""A model whose experts are stacks in memory, and single matrices in files."""


def convert(model: Path, folder: Path, strategy: str, *more: str) -> Path:
    """`slime convert hf-to-fp8`."""
    words = ["--model-dir", str(model), "--save-dir", str(folder), "--strategy", strategy, *more]
    assert main(["convert", "hf-to-fp8", *words]) == 0
    return folder


def grpo(served: Path, trained: Path | None, rows: Path, folder: Path) -> list[str]:
    """The options of a small run of GRPO."""
    return [
        *("--hf-checkpoint", str(served), *(("--ref-load", str(trained)) if trained else ())),
        *("--prompt-data", str(rows), "--input-key", "messages", "--apply-chat-template"),
        *("--rollout-engine", "served_engines.KeepsWeights", "--custom-rm-path", "rl_hooks.even_tokens"),
        *("--rollout-batch-size", "2", "--n-samples-per-prompt", "3", "--rollout-max-response-len", "5"),
        *("--use-dynamic-batch-size", "--max-tokens-per-gpu", "400", "--lr-decay-style", "constant"),
        *("--num-rollout", "2", "--run-dir", str(folder)),
    ]


def planned(words: list[str]) -> Plan:
    """Plan a run, and do not start it."""
    plugins = Plugins()
    plan = make_plan(resolve(Namespace(plugins), words, env={}), plugins)
    plan.close()
    return plan


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def differing(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    """The names under which two sets of tensors have another dtype, shape or byte."""
    names = sorted(left.keys() | right.keys())
    return [name for name in names if name not in left or name not in right or not _same(left[name], right[name])]


def _same(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))
