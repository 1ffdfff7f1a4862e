"""Tiny random checkpoints of every family, samples for them, and the options of a backend that trains them.

Nothing here imports megatron-core.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from slime_core.arguments.groups import GROUPS
from slime_core.contracts.train_backend import TrainBatch
from slime_core.sample import Sample
from slime_core.testing import chat_tokenizer
from slime_core.training.batches import Mean, make_train_batch
from slime_losses.arguments import PolicyArguments

VOCABULARY = 251
LR, WEIGHT_DECAY, CLIP = 1e-2, 0.1, 1.0
BETAS, EPS = (0.9, 0.95), 1e-3

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 1, "moe_intermediate_size": 24}
SIGMOID = {**EXPERTS, "routed_scaling_factor": 1.8, "norm_topk_prob": True, "n_group": 1, "topk_group": 1}
LATENT = {
    "head_dim": None,  # of these configurations another name of qk_rope_head_dim
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "rms_norm_eps": 1e-6,  # the only one that transformers gives the norms of the latents
}
GROUPED = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4, "first_k_dense_replace": 1}
THREE_GROUPS = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8}
"""Heads that two ranks do not divide."""
QWEN3_MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]}

WIDE = {"num_hidden_layers": 2, "hidden_size": 144, "intermediate_size": 272}
WIDE_EXPERTS = {**WIDE, "moe_intermediate_size": 136}
"""Sizes of which blocks of 128 and of 32 do not end where a tensor-parallel rank's part does."""

MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "num_hidden_layers": 2},
    "qwen3": {"model_type": "qwen3"},
    "llama": {"model_type": "llama", "num_hidden_layers": 2, "rope_parameters": LLAMA3},
    "glm4": {"model_type": "glm4", "num_hidden_layers": 2, "attention_bias": True, "rope_parameters": HALF},
    "gemma2": {
        "model_type": "gemma2",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 24,
        "sliding_window": 4,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "qwen3_moe": {"model_type": "qwen3_moe", "norm_topk_prob": True, **QWEN3_MOE},
    "glm4_moe": {
        "model_type": "glm4_moe",
        **SIGMOID,
        "first_k_dense_replace": 1,
        "attention_bias": True,
        "use_qk_norm": True,
        "rope_parameters": HALF,
    },
    "glm4_moe_lite": {"model_type": "glm4_moe_lite", **LATENT, **SIGMOID},
    "deepseek_v3": {"model_type": "deepseek_v3", **LATENT, **SIGMOID, **GROUPED},
}
"""One model of every family."""
FAMILIES = tuple(MODELS)
VARIANTS: dict[str, dict[str, Any]] = {
    "qwen3, tied, 4 layers": {"model_type": "qwen3", "tie_word_embeddings": True, "num_hidden_layers": 4},
    "qwen2, untied, YaRN": {"model_type": "qwen2", "num_hidden_layers": 2, "rope_parameters": YARN},
    "llama, tied, linear rope": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "num_hidden_layers": 2,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    },
    "qwen3_moe, not normalised": {
        **MODELS["qwen3_moe"],
        "norm_topk_prob": False,
        "mlp_only_layers": [],
        "decoder_sparse_step": 2,
    },
    "glm4_moe, no norms of queries": {**MODELS["glm4_moe"], "use_qk_norm": False, "attention_bias": False},
    "glm4_moe_lite, whole queries": {**MODELS["glm4_moe_lite"], "q_lora_rank": None},
    "glm4_moe_lite, eps 1e-3": {**MODELS["glm4_moe_lite"], "rms_norm_eps": 1e-3},
    "glm4_moe_lite, eps 1e-3 in all norms": {**MODELS["glm4_moe_lite"], "rms_norm_eps": 1e-3},
    "deepseek_v3, YaRN": {
        **MODELS["deepseek_v3"],
        "rope_parameters": {**YARN, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "qwen3, 3 groups": {"model_type": "qwen3", "num_hidden_layers": 2, **THREE_GROUPS},
    "qwen2, 3 groups": {
        "model_type": "qwen2",
        "num_hidden_layers": 2,
        "tie_word_embeddings": True,
        **THREE_GROUPS,
    },
    "gemma2, 3 heads": {**MODELS["gemma2"], "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3},
    "glm4_moe_lite, 5 heads": {**MODELS["glm4_moe_lite"], "num_attention_heads": 5, "num_key_value_heads": 5},
    "glm4_moe_lite, dense": {**MODELS["glm4_moe_lite"], "mlp_layer_types": ["dense"] * 3},
    "qwen3, wide": {**MODELS["qwen3"], **WIDE},
    "qwen2, wide": {**MODELS["qwen2"], **WIDE},
    "qwen2, 3 groups, wide": {**MODELS["qwen2"], **WIDE, **THREE_GROUPS},
    "glm4, wide": {**MODELS["glm4"], **WIDE},
    "gemma2, wide": {**MODELS["gemma2"], **WIDE},
    "qwen3_moe, wide": {**MODELS["qwen3_moe"], **WIDE_EXPERTS},
    "glm4_moe, wide": {**MODELS["glm4_moe"], **WIDE_EXPERTS},
    "glm4_moe_lite, wide": {**MODELS["glm4_moe_lite"], **WIDE_EXPERTS},
    "deepseek_v3, wide": {**MODELS["deepseek_v3"], **WIDE_EXPERTS},
}
"""Further configurations that a family expresses in another way."""
PARITY = tuple(name for name in VARIANTS if "eps 1e-3" not in name and not name.endswith(("dense", "wide")))
"""Those that transformers computes as megatron-core does, and that need no fault to be trained, but for those of FP8's tests."""
MODELS |= VARIANTS


def make_config(name: str, **changes: Any) -> Any:
    """The configuration of one of the `MODELS`; a change to None takes a key out."""
    from transformers import AutoConfig

    settings = {**SHAPE, **MODELS[name], **changes}
    model_type = settings.pop("model_type")
    kept = {k: v for k, v in settings.items() if v is not None or k.endswith("_token_id") or k == "q_lora_rank"}
    config = AutoConfig.for_model(model_type, **kept)
    config._attn_implementation = "eager" if model_type == "gemma2" else "sdpa"
    config._experts_implementation = "eager"
    return config


def own_family(config: Any, padded_vocabulary: Any) -> Any:
    """A family of somebody's own: Qwen3 with a further key."""
    from slime_megatron.families import FAMILIES as KNOWN

    config.ignore("own_key")
    spec = KNOWN["qwen3"](config, padded_vocabulary)
    spec.remarks.append("a family of somebody's own")
    return spec


def make_model(name: str, **changes: Any) -> Any:
    """A random model that transformers computes in float32. Its norms are not 1, its biases not 0, its weights large
    enough for every part to matter. The changes are those of `make_config`."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(name, **changes)).float().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or key.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(3.0)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn_like(buffer) * 0.2)
    if name.endswith("in all norms"):
        for key, module in model.named_modules():
            if key.endswith(("q_a_layernorm", "kv_a_layernorm")):
                module.variance_epsilon = model.config.rms_norm_eps
    return model


def as_in_a_file(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors under the names that a checkpoint has for them; in memory transformers keeps the experts of a layer together."""
    found = {}
    for name, tensor in tensors:
        before, together, _ = name.rpartition(".experts.gate_up_proj")
        down, is_down, _ = name.rpartition(".experts.down_proj")
        if together:
            for number, both in enumerate(tensor):
                gate, up = both.chunk(2)
                found[f"{before}.experts.{number}.gate_proj.weight"] = gate
                found[f"{before}.experts.{number}.up_proj.weight"] = up
        elif is_down:
            for number, own in enumerate(tensor):
                found[f"{down}.experts.{number}.down_proj.weight"] = own
        else:
            found[name] = tensor
    return found


def tokenizer() -> PreTrainedTokenizerFast:
    """As `chat_tokenizer`, without the bytes that no text here has: the models have a row for every token, and for one that the
    tokenizer class of a model type adds."""
    whole = chat_tokenizer()
    inner = json.loads(whole.backend_tokenizer.to_str())
    special = inner["added_tokens"]
    letters = sorted(inner["model"]["vocab"], key=inner["model"]["vocab"].get)[: VOCABULARY - len(special) - 1]
    inner["model"]["vocab"] = {letter: number for number, letter in enumerate(letters)}
    inner["added_tokens"] = [{**token, "id": len(letters) + number} for number, token in enumerate(special)]
    smaller = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(inner)), eos_token=whole.eos_token, pad_token=whole.pad_token
    )
    smaller.chat_template = whole.chat_template
    return smaller


def save(model: Any, folder: Path) -> None:
    """Write the model as a checkpoint with a tokenizer."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


MASKS = [
    (3, [1, 1, 0]),
    (2, [1, 0, 1, 1, 0, 1, 1, 0]),
    (1, [1, 1, 1, 1]),
    (4, [0, 1, 1, 0]),
    (3, [0, 0]),
    (5, [1] * 8),
    (6, [1]),
    (2, [0, 0, 1, 1, 0, 1]),
]
"""Length of the prompt, and which tokens of the response are trained: gaps, untrained ends, a sample without any."""
CONSTANT = 9.0
"""What the mean "constant" divides by."""
TRAJECTORIES = (0, 1, 2, 2, 4, 5, 5, 5)
"""The trajectory of each."""


def make_samples() -> list[Sample]:
    """Samples with random tokens, of different lengths."""
    generator = random.Random(3)
    return [
        Sample(
            index=number,
            group_index=number // 2,
            rollout_id=TRAJECTORIES[number],
            tokens=[generator.randrange(VOCABULARY) for _ in range(prompt + len(mask))],
            response_length=len(mask),
            loss_mask=list(mask),
        )
        for number, (prompt, mask) in enumerate(MASKS)
    ]


def make_batch(
    columns: Mapping[str, Any], mean: Mean = "sample", ranks: int = 1, rows: Sequence[Sequence[int]] = ()
) -> TrainBatch:
    """The samples as one global batch of packed rows.

    Args:
        rows: the micro-batches, where they are not to be cut by their tokens.
    """
    options: dict[str, Any] = {"max_tokens": 24, "constant": CONSTANT, "temperature": 0.8}
    batch = make_train_batch(make_samples(), mean=mean, columns=dict(columns), ranks=ranks, **options)
    return replace(batch, micro_batches=rows) if rows else batch


def make_arguments(**changes: Any) -> SimpleNamespace:
    """The options of the core, of the losses and of the Megatron backend at their defaults, but for what these tests need."""
    from slime_megatron.arguments import MegatronArguments

    defaults = {
        name: None if field.is_required() else field.get_default(call_default_factory=True)
        for group in [*GROUPS, PolicyArguments, MegatronArguments]
        for name, field in group.model_fields.items()
    }
    own = {
        "make_vocab_size_divisible_by": 8,
        "lr": LR,
        "lr_decay_style": "constant",
        "weight_decay": WEIGHT_DECAY,
        "clip_grad": CLIP,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "adam_eps": EPS,
        "log_probs_chunk_size": 5,
        "use_kl_loss": True,
        "kl_loss_coef": 0.1,
        "kl_loss_type": "k3",
        "entropy_coef": 0.05,
        "distributed_timeout_minutes": 2.0,
    }
    unknown = {*own, *changes} - defaults.keys()
    assert not unknown, f"there are no options {unknown}"
    return SimpleNamespace(**{**defaults, **own, **changes})
