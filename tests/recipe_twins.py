"""The twin of a recipe: the same run, small enough for a test. It is the recipe's own options with those of three tables in their place,
so that an option which is added to a recipe is in its twin too.

Called by tests/test_recipes.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM
from vision_checkpoints import write_checkpoint

from slime_core.arguments.recipe_names import NamedRecipe
from slime_core.testing import chat_tokenizer

GONE = object()

SIZES: Mapping[str, Any] = {
    "num_epoch": GONE,
    "num_rollout": 2,
    "rollout_batch_size": 2,
    "global_batch_size": 2,
    "over_sampling_batch_size": 3,
    "n_samples_per_prompt": 4,
    "rollout_max_response_len": 3,
    "rollout_max_context_len": 384,
    "n_samples_per_eval_prompt": 1,
    "eval_max_response_len": 3,
    "eval_interval": 2,
    "save_interval": 2,
    "max_tokens_per_gpu": 512,
    "image_max_pixels": 28 * 28 * 4,
    "lr_warmup_iters": 1,
    "actor_num_gpus_per_node": 1,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "decoder_last_pipeline_num_layers": GONE,
    "expert_model_parallel_size": 1,
    "expert_tensor_parallel_size": 1,
}
"""What is smaller. An option that a recipe does not set stays out of its twin, but for the number of rollouts."""

MACHINE: Mapping[str, Any] = {
    "rollout_engine": "local",  # SGLang needs its own environment
    "rollout_num_gpus": GONE,
    "rollout_num_gpus_per_engine": GONE,
    "sglang_mem_fraction_static": GONE,
    "sglang_server_concurrency": GONE,
    "offload": GONE,  # refused where there is no GPU whose memory could be given back
    "transformer_impl": GONE,  # Transformer Engine needs a GPU; the same recipe of FP8 is emulated
    "fp8_param_gather": GONE,
    "reuse_grad_buf_for_mxfp8_param_ag": GONE,
}
"""What a machine without GPUs cannot do, and what it does in place of that."""

REWARD: Mapping[str, Any] = {"rm_type": "random"}
"""A random model never solves a task, and where all answers of all groups have one reward there is nothing to learn."""

SHAPE: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_nextn_predict_layers": 0,
    "max_position_embeddings": 512,
    "max_window_layers": 2,
    "bos_token_id": None,
    "pad_token_id": None,
}
"""The model of a twin is that of the recipe's card with these sizes, where the card has them."""


def options_of(recipe: NamedRecipe) -> dict[str, Any]:
    """What the file of a recipe says."""
    found: dict[str, Any] = yaml.safe_load(recipe.path.read_text(encoding="utf-8"))
    return found


TWO_RANKS: Mapping[str, Any] = {
    "actor_num_gpus_per_node": 2,
    "tensor_model_parallel_size": 2,
    "rollout_num_gpus": 1,
    "ray_address": "local",
}
"""What a twin on Ray has in place of one process."""


def twin(
    recipe: NamedRecipe, models: Path, rows: Path, folder: Path, further: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The options of a recipe's twin.

    Args:
        models: a folder for small models, which twins share.
        rows: of conversations, with prompts, labels and tools; beside it lies images.jsonl, of conversations with images.
        folder: what the twin writes goes there.
        further: a table that wins over the others.
    """
    options = options_of(recipe)
    served, trained = Path(options["hf_checkpoint"]), Path(str(options.get("ref_load", "")).removesuffix("_torch_dist"))
    card = recipe.path.parent / "models"
    if "multimodal_keys" in options:
        rows = rows.with_name("images.jsonl")
    paths: dict[str, Any] = {
        "hf_checkpoint": str(small_model(card / served.name, models)),
        "prompt_data": [str(rows)],
        "eval_prompt_data": ["small", f"{rows}@[0:2]"],
        "save": str(folder / "save"),
        "load": str(folder / "save"),
        "save_hf": str(folder / "hf"),
    }
    if "ref_load" in options:
        paths["ref_load"] = str(small_model(card / trained.name, models))
    changes = {**SIZES, **MACHINE, **REWARD, **paths, **(further or {})}
    emulated = {"fp8_emulation": True} if "fp8_format" in options else {}
    kept = {name: changes.get(name, value) for name, value in options.items()}
    made = {**kept, "num_rollout": SIZES["num_rollout"], **emulated, "run_dir": str(folder / "run")}
    if further and "ray_address" in further:
        made["ray_address"] = further["ray_address"]
    return {name: value for name, value in made.items() if value is not GONE}


def small_model(card: Path, models: Path) -> Path:
    """A random model of a card's family; in FP8 where the card says so."""
    from served_cases import convert

    folder = models / card.name
    if folder.exists():
        return folder
    config = json.loads((card / "config.json").read_text(encoding="utf-8"))
    if "vision_config" in config:
        return write_checkpoint(folder, config["model_type"])
    quantised = config.pop("quantization_config", None)
    tokenizer = chat_tokenizer()
    sizes = {name: size for name, size in SHAPE.items() if name in config}
    config |= sizes | {"vocab_size": len(tokenizer) + 8, "eos_token_id": tokenizer.eos_token_id}
    if config["model_type"] == "glm4_moe_lite":
        config["num_key_value_heads"] = config["num_attention_heads"]
    plain = models / f"{card.name}-plain" if quantised else folder
    torch.manual_seed(0)
    made = AutoConfig.for_model(config.pop("model_type"), **config)
    AutoModelForCausalLM.from_config(made, dtype=torch.float32).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    return convert(plain, folder, "block") if quantised else folder
