"""Models with random weights of real shapes, made on the device, and the trainers, engines and batches that use them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gemm import Shapes
from benchmarks.on_gpu.machine import Machine
from slime_core.contracts.train_backend import TrainBatch
from slime_core.sample import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from slime_core.contracts.memory import MemoryUse
    from slime_engine_local.engine import LocalEngine

DENSE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "head_dim": 128,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}
MOE: dict[str, Any] = {
    **DENSE,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "0.6B": {**DENSE, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28},
    "1.7B": {**DENSE, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28},
    "4B": {
        **DENSE,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
    "8B": {
        **DENSE,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    # Qwen3-30B-A3B with four of its 48 layers, so that its training fits one GPU.
    "MoE": {
        **MOE,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
    # For checks: heads and kernels as above, few of them.
    "check": {
        **DENSE,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 4,
        "vocab_size": 32768,
    },
    "check MoE": {
        **MOE,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "moe_intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "vocab_size": 32768,
    },
}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 512, "head_dim": 16}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
TINY_MOE = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
SEED = 1234


def configuration(machine: Machine, name: str) -> dict[str, Any]:
    """The configuration of a model, as config.json has it; on a CPU that of a tiny one of its kind."""
    found = CONFIGS[name]
    if machine.on_gpu:
        return found
    return {**found, **TINY, **(TINY_MOE if "num_experts" in found else {})}


def folder(machine: Machine, name: str) -> Path:
    """A Hugging Face checkpoint without weights: configuration, and a tokenizer with fewer tokens than the model."""
    from slime_core.testing import chat_tokenizer

    place = machine.scratch / name.replace(" ", "-")
    if not place.exists():
        place.mkdir(parents=True)
        tokenizer = chat_tokenizer()
        tokenizer.save_pretrained(place)
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        (place / "config.json").write_text(json.dumps({**configuration(machine, name), **ends}), encoding="utf-8")
    return place


def random_model(
    machine: Machine, name: str, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> PreTrainedModel:
    """A model whose weights are the same ones in every call on the same kind of device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(SEED)
    with torch.device(device or machine.device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder(machine, name)), dtype=dtype
        )
    return model.to(device or machine.device)  # type: ignore[no-any-return, arg-type]  # transformers hides its signature


def checkpoint(machine: Machine, name: str) -> Path:
    """A Hugging Face checkpoint with weights, in bfloat16, for what reads one."""
    place = folder(machine, name)
    if not list(place.glob("*.safetensors")):
        tokenizer_and_configuration = {path: path.read_bytes() for path in place.iterdir()}
        random_model(machine, name, torch.bfloat16).save_pretrained(place)
        for path, content in tokenizer_and_configuration.items():
            path.write_bytes(content)
        machine.clean()
    return place


def arguments(words: Sequence[str]) -> tuple[Any, Any]:
    """(the arguments of a run, the plugins that are installed)."""
    from slime_core.arguments.namespace import Namespace
    from slime_core.arguments.resolve import resolve
    from slime_core.plugins import Plugins

    plugins = Plugins()
    return resolve(Namespace(plugins), [str(word) for word in words], env={}).args, plugins


def sft_words(machine: Machine, name: str, steps: int, words: Sequence[str]) -> list[str]:
    """The command line of fine-tuning a model for so many steps."""
    fixed = ["--hf-checkpoint", str(folder(machine, name)), "--prompt-data", "none", "--num-rollout", str(steps)]
    fixed += ["--rollout-batch-size", "1", "--lr", "1e-5", "--lr-decay-style", "constant", "--loss-type", "sft_loss"]
    return [*fixed, "--disable-compute-advantages-and-returns", *words, *machine.options]


def trainer(
    machine: Machine, name: str, words: Sequence[str], steps: int = 8, model: PreTrainedModel | None = None
) -> Any:
    """A `TorchBackend` that is ready to train a random model, or `model`."""
    from slime_core.data.tokenizer import load_tokenizer
    from slime_core.training.components import choose_train_components

    args, plugins = arguments(sft_words(machine, name, steps, words))
    components = choose_train_components(args, plugins)
    backend: Any = components.train_backend(args, components)
    model = random_model(machine, name) if model is None else model
    backend.attach(
        model, components.loss, steps, tokenizer=load_tokenizer(args.hf_checkpoint), folder=args.hf_checkpoint
    )
    return backend


def estimate(machine: Machine, name: str, words: Sequence[str], steps: int = 8) -> float:
    """Bytes that `slime check` says a training rank with such options will hold, without CUDA's own."""
    from transformers import AutoConfig

    from slime_core.contracts.memory import MemoryUse
    from slime_core.run.memory import ProcessMemory
    from slime_core.tensors.model_shape import shape_of
    from slime_torch.backend import TorchBackend

    args, _ = arguments(sft_words(machine, name, steps, words))
    use: MemoryUse = MemoryUse(on_gpu=machine.on_gpu)
    shape = shape_of(AutoConfig.from_pretrained(folder(machine, name)))
    return ProcessMemory("", 1, tuple(TorchBackend.memory(args, shape, use).parts)).peak()[1]


def random_batch(machine: Machine, name: str, lengths: Sequence[int], max_tokens: int, seed: int = 0) -> TrainBatch:
    """A global batch of random tokens, all of which but the first are trained, in micro-batches of at most `max_tokens`."""
    from slime_core.training.batches import make_train_batch

    vocabulary, generator = configuration(machine, name)["vocab_size"], random.Random(seed)
    rows = [[generator.randrange(vocabulary) for _ in range(length)] for length in lengths]
    samples = [Sample(tokens=row, response_length=len(row) - 1, loss_mask=[1] * (len(row) - 1)) for row in rows]
    return make_train_batch(samples, mean="token", max_tokens=max_tokens)


def shared_batch(machine: Machine, name: str, prompt: int, responses: Sequence[int], seed: int = 0) -> TrainBatch:
    """A global batch of one group: random responses of these lengths to one random prompt, which is computed once."""
    from slime_core.training.batches import make_train_batch

    vocabulary, generator = configuration(machine, name)["vocab_size"], random.Random(seed)
    asked = [generator.randrange(vocabulary) for _ in range(prompt)]
    answers = [[generator.randrange(vocabulary) for _ in range(length)] for length in responses]
    samples = [
        Sample(group_index=0, tokens=[*asked, *own], response_length=len(own), loss_mask=[1] * len(own))
        for own in answers
    ]
    return make_train_batch(samples, mean="token", micro_batch_size=len(samples), share_prompts=True)


def shapes(machine: Machine, name: str) -> Shapes:
    """For `benchmarks.gemm.step_flops`; of a MoE, the experts that a token goes through."""
    place, config = folder(machine, name), configuration(machine, name)
    found = Shapes.of(place)
    if experts := config.get("num_experts_per_tok"):
        found = replace(found, intermediate=experts * config["moe_intermediate_size"])
    return found


def engine(machine: Machine, name: str, running: int, tokens: int) -> LocalEngine:
    """A `LocalEngine` for a model, without weights yet.

    Args:
        running: how many requests are decoded together.
        tokens: whose keys and values it keeps.
    """
    from slime_engine_local.engine import LocalEngine

    words = ["--hf-checkpoint", str(folder(machine, name)), "--prompt-data", "none", "--num-rollout", "1"]
    words += ["--rollout-batch-size", "1", "--rollout-engine", "local"]
    words += ["--local-max-running-requests", str(running), "--local-max-total-tokens", str(tokens)]
    args, _ = arguments([*words, *machine.options])
    return LocalEngine(args)


def random_prompts(machine: Machine, name: str, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Prompts that have nothing in common."""
    vocabulary, generator = configuration(machine, name)["vocab_size"], random.Random(seed)
    return [[generator.randrange(vocabulary) for _ in range(length)] for _ in range(count)]
