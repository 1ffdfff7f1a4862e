"""The embedded engine on this device: decoding and prefill against their limits, and how fast new weights reach it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from benchmarks.gemm import step_flops
from benchmarks.on_gpu.check_engine import generate, in_dtype
from benchmarks.on_gpu.job import Findings, NotHere
from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.models import configuration, engine, random_model, random_prompts, shapes, trainer
from slime_core.tensors.offload import free_workspaces

if TYPE_CHECKING:
    from slime_engine_local.engine import LocalEngine

PROMPT = 416
SHORT, LONG = 16, 80
"""New tokens of two rounds whose difference is decoding alone."""


def decode(machine: Machine, found: Findings, name: str, batches: tuple[int, ...]) -> None:
    """Tokens per second when so many requests are decoded together, each behind a prompt of its own, and the share of the limit.

    The limit of a step is the time in which its bytes are read at the bandwidth of a copy (weights, but for rows of the embedding, and
    all keys and values), or the time of its products at the rate of a large one, if that is longer.
    """
    prompt, short, long = (PROMPT, SHORT, LONG) if machine.on_gpu else (24, 4, 12)
    model = random_model(machine, name, torch.bfloat16)
    serves = engine(machine, name, running=max(batches), tokens=max(batches) * (prompt + long + 64))
    try:
        serves.update_weights(in_dtype(model, torch.bfloat16), 1)
        read, touched = _weight_bytes(machine, name, model), 2 * sum(p.numel() for p in model.parameters())
        del model
        machine.clean()
        found.note(bandwidth=machine.copy_bandwidth, weights_gb=touched / 1e9)
        for batch in batches:
            prompts = random_prompts(machine, name, batch, prompt)
            generate(serves, prompts, short)  # warms up
            times = {n: _seconds(machine, serves, prompts, n) for n in (short, long)}
            step = (times[long] - times[short]) / (long - short)
            context = prompt + (short + long) / 2
            moved = read(batch) + batch * context * _kv_bytes(machine, name)
            limit = max(moved / machine.copy_bandwidth, 2 * batch * _active(machine, name) / machine.product_flops)
            found.note(
                **{
                    f"batch {batch}": {
                        "tokens_per_second": batch / step,
                        "ms_per_step": 1e3 * step,
                        "limit_ms": 1e3 * limit,
                        "share_of_limit": limit / step,
                    }
                }
            )
    finally:
        serves.close()


def _seconds(machine: Machine, serves: LocalEngine, prompts: list[list[int]], tokens: int) -> float:
    """The better of two times."""
    return min(machine.seconds(lambda: generate(serves, prompts, tokens)) for _ in range(2))


def prefill(machine: Machine, found: Findings, name: str) -> None:
    """Prompt tokens per second: prompts that have nothing in common, of which one token each is generated."""
    length, count = (2048, 8) if machine.on_gpu else (48, 2)
    serves = engine(machine, name, running=count, tokens=count * (length + 64))
    try:
        serves.update_weights(in_dtype(random_model(machine, name, torch.bfloat16), torch.bfloat16), 1)
        machine.clean()
        rounds = [random_prompts(machine, name, count, length, seed) for seed in range(4)]
        seconds = [machine.seconds(lambda p=p: generate(serves, p, 1)) for p in rounds][1:]
        rate = count * length / sorted(seconds)[1]
        found.note(tokens_per_second=rate, tflops=2 * _active(machine, name) * rate / 1e12)
        if machine.peak:
            found.note(share_of_peak=2 * _active(machine, name) * rate / machine.peak)
    finally:
        serves.close()


def weights(machine: Machine, found: Findings, name: str) -> None:
    """From the trainer to the engine in this process, as a run does between two rollouts, beside a plain copy of as many bytes; and
    how fast both leave the device and come back."""
    backend = trainer(machine, name, ["--bf16"])
    size = sum(tensor.nbytes for _, tensor in backend.weights())
    if machine.on_gpu and 1.1 * size > machine.memory - machine.allocated():
        raise NotHere(f"a second copy of {size / 1e9:.1f} GB has no room")
    serves = engine(machine, name, running=4, tokens=4096)
    try:
        versions = iter(range(1, 100))
        times = [machine.seconds(lambda: serves.update_weights(backend.weights(), next(versions))) for _ in range(6)]
        found.note(gb=size / 1e9, seconds=[round(s, 4) for s in times], gb_per_second=size / 1e9 / sorted(times[1:])[2])
        found.note(first_update_seconds=times[0], copy_gb_per_second=machine.copy_bandwidth / 2e9)
        free_workspaces()  # which offloading frees too
        took = machine.allocated()
        rounds: dict[str, list[float]] = {}
        for who, one in (("trainer", backend), ("trainer", backend), ("engine", serves)):
            before = machine.allocated()
            away = machine.seconds(one.offload)
            moved = before - machine.allocated()
            back = machine.seconds(one.onload)
            for way, took_seconds in (("offload", away), ("onload", back)):
                rounds.setdefault(f"{who}_{way}_gb_per_second", []).append(moved / 1e9 / took_seconds)
        # The first time host memory is taken from the system, which is slow; it is kept then.
        found.note(
            **{f"{key}{'_first' * (n == 0 < len(r) - 1)}": x for key, r in rounds.items() for n, x in enumerate(r)}
        )
        free_workspaces()
        found.holds("both take as much memory as before", abs(machine.allocated() - took) <= 0.01 * took)
    finally:
        serves.close()


def _weight_bytes(machine: Machine, name: str, model: torch.nn.Module) -> Callable[[int], float]:
    """Bytes of weights that a step with so many requests reads: of a MoE the experts that one of them chooses, of the embedding
    nothing, unless it is the head."""
    config = configuration(machine, name)
    count, chosen = config.get("num_experts", 1), config.get("num_experts_per_tok", 1)
    sizes = {key: p.numel() * p.element_size() for key, p in model.named_parameters()}
    tied = config["tie_word_embeddings"]
    experts = sum(size for key, size in sizes.items() if ".experts." in key)
    rest = sum(size for key, size in sizes.items() if ".experts." not in key and (tied or "embed_tokens" not in key))
    return lambda batch: rest + experts * (1 - (1 - chosen / count) ** batch)


def _kv_bytes(machine: Machine, name: str) -> int:
    config = configuration(machine, name)
    return 2 * 2 * int(config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"])


def _active(machine: Machine, name: str) -> float:
    """Weights that a token is multiplied with."""
    return step_flops(shapes(machine, name), [1], 1) / 6
