"""What `slime check` says that a rank of the Megatron backend holds: layouts and frozen weights count."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve
from slime_core.contracts.memory import MemoryUse
from slime_core.plugins import Plugins
from slime_core.tensors.model_shape import shape_of
from slime_core.training.memory import product, trained_size
from slime_megatron.memory import memory

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}
MODEL = shape_of(AutoConfig.for_model("qwen3", **SHAPE))


@pytest.fixture(scope="module")
def namespace() -> Namespace:
    return Namespace(Plugins())


def parts(namespace: Namespace, *flags: str) -> dict[str, float]:
    """{what: bytes} of the rank that holds most of four."""
    words = ["--hf-checkpoint", "none", "--prompt-data", "none", "--num-rollout", "1", "--rollout-batch-size", "4"]
    words += [
        "--train-backend",
        "megatron",
        "--rollout-max-context-len",
        "4096",
        "--micro-batch-size",
        "2",
        "--log-probs-chunk-size",
        "-1",
    ]
    args: Any = resolve(namespace, [*words, *flags], env={}).args
    holding = memory(args, MODEL, MemoryUse(on_gpu=True, ranks=4))
    return {part.name: part.size for part in holding.parts} | {"expected": 4 * trained_size(args, MODEL)}


@pytest.mark.parametrize(
    "flags", [[], ["--use-dynamic-batch-size", "--max-tokens-per-gpu", "1024"]], ids=["fixed", "dynamic"]
)
def test_ranks_that_share_sequences_share_their_activations(namespace: Namespace, flags: list[str]) -> None:
    whole, shared = (parts(namespace, *flags, "--context-parallel-size", size) for size in "14")
    assert shared["activations"] == whole["activations"] / 4
    assert shared["logits"] < whole["logits"]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--only-train-params-name-list", r"layers\.3\."],
        ["--only-train-params-name-list", "norm", "--no-use-distributed-optimizer"],
        ["--freeze-params-name-list", "embed_tokens"],
    ],
    ids=str,
)
def test_frozen_weights_have_neither_gradients_nor_optimizer_state(namespace: Namespace, flags: list[str]) -> None:
    found = parts(namespace, *flags, "--make-vocab-size-divisible-by", "128")
    ranks = 1 if "--no-use-distributed-optimizer" in flags else 4
    assert found["gradients"] == found["expected"]
    assert found["optimizer state"] == 2 * found["expected"] / ranks
    assert found["weights"] == 4 * sum(product(shape) for shape in MODEL.parameters.values())
