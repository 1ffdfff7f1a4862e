"""Tiny random models of real architectures, samples, and what plain transformers computes for them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from slime_core.arguments.groups import GROUPS
from slime_core.plugins import Plugins
from slime_core.sample import Sample
from slime_fp8.arguments import DelayedScalingArguments
from slime_losses.sft import sft_loss
from slime_torch.arguments import TorchArguments
from slime_torch.backend import TorchBackend

torch.set_num_threads(1)

VOCABULARY = 263
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "llama_untied": {"model_type": "llama", "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2_sliding": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2",
        "sliding_window": 4,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 24,
    },
    "granite": {"model_type": "granite", "logits_scaling": 3.0, "attention_multiplier": 0.2},
    "cohere": {"model_type": "cohere", "logit_scale": 0.5},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "experts_implementation": "eager",
    },
    "glm4_moe": {  # a dense layer, shared experts and experts that are no layers
        "model_type": "glm4_moe",
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "experts_implementation": "eager",
    },
    "gpt2": {"model_type": "gpt2", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


class KeepFloat64(TorchFunctionMode):
    """Models compute norms, softmax and rotations in float32 whatever their dtype; here they stay in float64, so that
    equal formulas give results that are equal to the last digits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            return args[0].double()
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*(torch.float64 if a is torch.float32 else a for a in args), **kwargs)


@contextmanager
def float64() -> Any:
    with KeepFloat64():
        yield


def make_model(architecture: str = "llama", dtype: torch.dtype = torch.float64, **changes: Any) -> PreTrainedModel:
    """A random model that plain transformers computes with its eager attention."""
    settings = {**SHAPE, **ARCHITECTURES[architecture], **changes}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    with torch.no_grad():  # biases and norms start as 0 and 1, which would hide mistakes
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.train()


def make_args(**changes: Any) -> SimpleNamespace:
    """The options of the core and of this package at their defaults, but without clipping, so that gradients can be
    read."""
    defaults = {
        name: None if field.is_required() else field.get_default(call_default_factory=True)
        for group in [*GROUPS, TorchArguments, DelayedScalingArguments]
        for name, field in group.model_fields.items()
    }
    return SimpleNamespace(**{**defaults, "clip_grad": 0.0, "hf_checkpoint": "nowhere", **changes})


def make_samples(prompts_and_masks: list[tuple[int, list[int]]], seed: int = 0) -> list[Sample]:
    """Samples with random tokens; each is given as (length of the prompt, loss mask of the response)."""
    generator = random.Random(seed)
    return [
        Sample(
            index=number,
            tokens=[generator.randrange(VOCABULARY) for _ in range(prompt + len(mask))],
            response_length=len(mask),
            loss_mask=list(mask),
        )
        for number, (prompt, mask) in enumerate(prompts_and_masks)
    ]


def make_groups(prompts_and_masks: list[tuple[int, list[list[int]]]], seed: int = 0) -> list[Sample]:
    """Groups with random tokens; each is given as (length of the prompt, loss masks of its responses)."""
    generator = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(VOCABULARY) for _ in range(count)]

    samples: list[Sample] = []
    for group_index, (length, masks) in enumerate(prompts_and_masks):
        prompt = tokens(length)
        for mask in masks:
            fields = {"tokens": prompt + tokens(len(mask)), "response_length": len(mask), "loss_mask": list(mask)}
            samples.append(Sample(group_index=group_index, index=len(samples), **fields))
    return samples


def make_backend(
    model: PreTrainedModel, loss: Callable[..., Any] = sft_loss, role: str = "actor", **changes: Any
) -> TorchBackend:
    """A backend that trains `model`."""
    args = make_args(**changes)
    backend = TorchBackend(args, low_precision(args.fp8_recipe) if args.fp8_format else None)
    backend.attach(model, loss, total_steps=10, role=role)
    return backend


def low_precision(name: str) -> Any:
    """Components of a run with this precision recipe, which quantises in float32 also where all else stays in float64."""
    recipe = Plugins().select("precision_recipe", name).target

    def make(args: Any, num_layers: int) -> Any:
        made = recipe(args, num_layers)
        new_product = made.linear

        def linear(name: str) -> Any:
            product = new_product(name)
            both = product.operands.both

            def in_float32(role: str, matrix: torch.Tensor) -> Any:
                with torch._C.DisableTorchFunction():
                    return both(role, matrix)

            product.operands.both = in_float32
            return product

        made.linear = linear
        return made

    return SimpleNamespace(further={"precision_recipe": make})


FP8 = {"fp8_format": "e4m3", "fp8_emulation": True}
"""Options that switch FP8 on; `fp8_recipe` is still needed."""


def labels_of(sample: Sample) -> torch.Tensor:
    """The (1, N) labels that transformers wants: -100 where a token is not trained."""
    prompt = len(sample.tokens) - sample.response_length
    mask = [0] * prompt + sample.trained_mask
    return torch.tensor([[t if flag else -100 for t, flag in zip(sample.tokens, mask, strict=True)]])


def transformers_one_by_one(
    model: PreTrainedModel, samples: list[Sample], per_token: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients with transformers' own `labels=`, sample by sample, full logits."""
    model = copy.deepcopy(model)
    trained = [sum(s.trained_mask) for s in samples]
    total = 0.0
    for sample, count in zip(samples, trained, strict=True):
        if count:
            loss = model(input_ids=torch.tensor([sample.tokens]), labels=labels_of(sample), use_cache=False).loss
            loss = loss * (count / sum(trained) if per_token else 1 / len(samples))
            loss.backward()
            total += loss.item()
    return total, {n: p.grad for n, p in model.named_parameters()}


def transformers_padded(model: PreTrainedModel, samples: list[Sample]) -> tuple[float, dict[str, torch.Tensor]]:
    """Per-token loss and gradients with transformers' own `labels=` on one batch, padded on the right."""
    model = copy.deepcopy(model)
    longest = max(len(s.tokens) for s in samples)

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    loss = model(
        input_ids=padded([s.tokens for s in samples], 0),
        attention_mask=padded([[1] * len(s.tokens) for s in samples], 0),
        labels=padded([labels_of(s)[0].tolist() for s in samples], -100),
        use_cache=False,
    ).loss
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters()}


def assert_equal_training(
    loss: float, model: PreTrainedModel, expected_loss: float, expected: dict[str, torch.Tensor]
) -> None:
    """The loss and every gradient agree to 1e-12 of the gradient's largest entry."""
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    gradients = {n: p.grad for n, p in model.named_parameters()}
    assert gradients.keys() == expected.keys()
    scale = max(g.abs().max().item() for g in expected.values() if g is not None)
    for name, wanted in expected.items():
        if wanted is None:  # an expert that no token was sent to
            assert gradients[name] is None or not gradients[name].any(), name
        else:
            difference = (gradients[name] - wanted).abs().max().item()
            assert difference <= 1e-12 * scale, f"{name}: {difference:.1e} of {scale:.1e}"


MIXED = [
    (3, [1, 1, 1, 1]),
    (1, [1]),
    (5, [0, 1, 1, 0, 0, 1, 1, 0, 0]),
    (2, [0, 0, 0]),
    (9, [1] * 12),
    (1, [0, 1]),
]
"""Samples with one trained token, none, gaps, and untrained ends."""

GROUPED = [
    (5, [[1, 1, 1], [1] * 6, [1], [0, 0], [0, 1, 1, 0, 1, 0, 0]]),
    (3, [[1, 1, 1, 1]]),
    (7, [[1] * 9, [0, 1]]),
    (1, [[1], [1]]),
    (2, [[0, 0], [0], [1, 1]]),
    (4, [[1, 1], [1]]),
]
"""Groups with responses of one token, untrained, with gaps and untrained ends, and groups of one."""


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """Everything above."""
    return toolbox()


def toolbox() -> SimpleNamespace:
    """The same, for processes that tests start."""
    return SimpleNamespace(
        architectures=list(ARCHITECTURES),
        float64=float64,
        model=make_model,
        args=make_args,
        samples=make_samples,
        mixed=MIXED,
        groups=make_groups,
        grouped=GROUPED,
        backend=make_backend,
        low_precision=low_precision,
        fp8=FP8,
        one_by_one=transformers_one_by_one,
        padded=transformers_padded,
        assert_equal_training=assert_equal_training,
    )
