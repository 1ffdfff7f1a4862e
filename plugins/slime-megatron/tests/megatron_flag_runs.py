"""Trains a tiny model with options that must not change a number: `python megatron_flag_runs.py FOLDER`, on each of two ranks.
Rank 0 writes FOLDER/found.json. Run by test_megatron_flags.py, in processes of its own: megatron-core changes a process."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import create_model

from slime_core.arguments import RunArguments
from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.errors import ArgumentError
from slime_core.sample import Sample
from slime_core.testing import chat_tokenizer
from slime_core.training.batches import make_train_batch
from slime_megatron import device
from slime_megatron.arguments import MegatronArguments

device.prepare()
torch.set_num_threads(1)

from slime_megatron import optimizer as optimizer_module  # noqa: E402 - after megatron-core was made to run without CUDA
from slime_megatron.backend import MegatronBackend  # noqa: E402

Arguments: Any = create_model("Arguments", __base__=(RunArguments, MegatronArguments))


def loss(args: Any, inputs: LossInputs) -> LossOutputs:
    return LossOutputs(inputs.reduce(-inputs.log_probs))


def save_model(folder: Path) -> None:
    """Write a checkpoint of a tiny model with latent attention, a dense layer, experts and a shared expert."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=16,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=12,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        norm_topk_prob=True,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    DeepseekV3ForCausalLM(config).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)


def backend(folder: Path, **options: Any) -> MegatronBackend:
    given = {"hf_checkpoint": str(folder), "prompt_data": ["-"], "rollout_batch_size": 4, "lr": 1e-2, "adam_eps": 1e-3}
    args: Any = Arguments(**given, lr_decay_style="constant", make_vocab_size_divisible_by=8, **options)
    made = MegatronBackend(args)
    made.setup(loss, 10)
    return made


def samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 251, (length,), generator=generator).tolist() for length in (5, 9, 4, 7, 8, 6)]
    return [Sample(tokens=row, response_length=len(row) // 2, index=n, group_index=n) for n, row in enumerate(rows)]


def steps(folder: Path, **options: Any) -> dict[str, Any]:
    """What three steps find.

    steps:    [loss, norm of the gradient] of each.
    calls:    for each part of a layer how often it is computed in the forward and backward pass of one micro-batch.
    buckets:  groups of gradients that travel together.
    """
    made = backend(folder, **options)
    batch = make_train_batch(samples(), max_tokens=14, columns={}, ranks=2)
    dense, sparse = made._model.module.decoder.layers
    parts = {
        "core_attn": dense.self_attention.core_attention,
        "mla_up_proj": dense.self_attention.linear_q_up_proj,
        "mlp": dense.mlp,
        "moe": sparse.mlp.router,
        "shared_experts": sparse.mlp.shared_experts,
    }
    calls = dict.fromkeys(parts, 0)

    def count(name: str, *given: Any) -> None:
        calls[name] += 1

    for name, part in parts.items():
        part.register_forward_pre_hook(partial(count, name))
    found = [made.train_step(batch) for _ in range(3)]
    computed = 3 * len(batch.micro_batches) // 2
    wrapped: Any = made._wrapped
    return {
        "steps": [[step["loss"], step["grad_norm"]] for step in found],
        "calls": {name: number / computed for name, number in calls.items()},
        "buckets": len(wrapped.bucket_groups) + len(wrapped.expert_parallel_bucket_groups),
    }


def offloaded(folder: Path) -> dict[str, list[str]]:
    """Where the state of an optimizer is whose host memory is torch's meta device."""
    made = backend(folder)
    made.train_step(make_train_batch(samples(), max_tokens=14, columns={}, ranks=2))
    parts = getattr(made._optimizer, "chained_optimizers", [made._optimizer])
    states = [state for part in parts for state in part.optimizer.state.values()]

    def places(*keys: str) -> list[str]:
        return sorted({state[key].device.type for state in states for key in keys})

    moments = ("exp_avg", "exp_avg_sq")
    optimizer_module.HOST = torch.device("meta")
    with optimizer_module.on_device(made._optimizer, offloaded=False):
        found = {"inside": places(*moments)}
    found["not asked for"] = places(*moments)
    with optimizer_module.on_device(made._optimizer, offloaded=True):
        found["inside"] += places(*moments)
    return found | {"outside": places(*moments), "step": places("step")}


def shared_prompts(folder: Path) -> list[list[list[float]]]:
    """Log-probs of a group of samples, without and with shared prompts asked for."""
    made = backend(folder)
    group = [Sample(tokens=[5, 6, 7, 8 + n, 9, 10 + n], response_length=3, index=n, group_index=0) for n in range(4)]
    batches = [
        make_train_batch(group, max_tokens=64, columns={}, ranks=2, share_prompts=share) for share in (False, True)
    ]
    return [list(map(list, made.log_probs(batch))) for batch in batches]


def closed(folder: Path) -> dict[str, bool]:
    """What is left of a model that has trained, and of its ranks, once it is closed."""
    made = backend(folder)
    made.train_step(make_train_batch(samples(), max_tokens=14, columns={}, ranks=2))
    module = weakref.ref(made._model.module)
    made.close()
    del made
    gc.collect()
    return {"freed": module() is None, "ranks together": dist.is_initialized()}


def refused(folder: Path, **options: Any) -> str:
    try:
        backend(folder, **options)
    except ArgumentError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    from slime_core.tensors.ranks import Ranks

    ranks = Ranks.join(5)
    if ranks.rank == 0:
        save_model(folder / "model")
    dist.barrier()
    optimizer_module.wrap = partial(optimizer_module.wrap, bucket_size=2000)
    full = {"recompute_granularity": "full", "recompute_num_layers": 1}
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "deterministic": {"deterministic_mode": True},
        "overlap": {"overlap_grad_reduce": True},
        "full": {**full, "recompute_method": "uniform"},
        "block": {**full, "recompute_method": "block"},
    }
    for part in ("core_attn", "mlp", "moe", "shared_experts", "mla_up_proj"):
        cases[part] = {"recompute_granularity": "selective", "recompute_modules": [part]}
    found: dict[str, Any] = {"runs": {name: steps(folder / "model", **options) for name, options in cases.items()}}
    found["offload"], found["log-probs"] = offloaded(folder / "model"), shared_prompts(folder / "model")
    wrong: dict[str, Any] = {"rotary_base": 7, "attention_dropout": 0.5, "optimizer_cpu_offload": True}
    found["refused"] = {name: refused(folder / "model", **{name: value}) for name, value in wrong.items()}
    dist.barrier()
    found["closed"] = closed(folder / "model")
    if ranks.rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
