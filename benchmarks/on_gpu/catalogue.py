"""All jobs of `benchmarks.gpu`, those first whose answers matter most. They import what they need when they are done."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.on_gpu.job import Findings, Job

if TYPE_CHECKING:
    from benchmarks.on_gpu.machine import Machine


def _work(module: str, function: str, *given: Any) -> Callable[[Machine, Findings], None]:
    return partial(_call, module, function, given)


def _call(module: str, function: str, given: tuple[Any, ...], machine: Machine, found: Findings) -> None:
    getattr(import_module(f"benchmarks.on_gpu.{module}"), function)(machine, found, *given)


def machine_itself(machine: Machine, found: Findings) -> None:
    """What the device reaches of its peaks."""
    found.note(
        copy_bandwidth=machine.copy_bandwidth,
        product_tflops=machine.product_flops / 1e12,
        peak_tflops=machine.peak and machine.peak / 1e12,
    )


def _dtype_check(machine: Machine, found: Findings, name: str, dtype: str) -> None:
    import torch

    from benchmarks.on_gpu.check_engine import log_probs

    log_probs(machine, found, name, getattr(torch, dtype))


EXACT = ["--bf16", "--deterministic-mode"]
FP8 = ["--fp8-format", "e4m3", "--fp8-recipe", "tensorwise"]

JOBS = [
    Job("checks/machine", machine_itself, 5),
    Job("checks/attention", _work("check_numbers", "attention"), 15),
    Job("checks/cross-entropy", _work("check_numbers", "cross_entropy"), 8),
    Job("checks/decoding-kernels", _work("check_decoding", "kernels"), 25),
    Job("checks/fused", _work("check_fused", "fused"), 15),
    Job("checks/bf16-against-fp32", _work("check_training", "bf16_against_fp32", "check"), 8),
    Job("checks/bf16-against-fp32-0.6B", _work("check_training", "bf16_against_fp32", "0.6B"), 15),
    Job("checks/gpu-against-cpu", _work("check_training", "gpu_against_cpu", "check"), 15),
    Job("checks/gpu-against-cpu-MoE", _work("check_training", "gpu_against_cpu", "check MoE"), 15),
    Job("checks/engine-log-probs-fp32", partial(_dtype_check, name="check", dtype="float32"), 10),
    Job("checks/engine-log-probs-bf16", partial(_dtype_check, name="check", dtype="bfloat16"), 10),
    Job("checks/engine-log-probs-MoE", partial(_dtype_check, name="check MoE", dtype="float32"), 10),
    Job("checks/offload", _work("check_training", "offload"), 6),
    Job("checks/twice", _work("check_training", "twice", "check", EXACT, True), 6),
    Job("checks/twice-MoE", _work("check_training", "twice", "check MoE", EXACT, True), 6),
    Job("checks/twice-fp8", _work("check_training", "twice", "check", [*EXACT, *FP8], True), 6),
    Job("checks/twice-rounded", _work("check_training", "twice", "check", ["--bf16"], False), 6),
    Job("checks/resume", _work("check_training", "resume", EXACT, True), 8),
    Job("checks/resume-rounded", _work("check_training", "resume", ["--bf16"], False), 8),
    Job("checks/fp8", _work("check_fp8", "products"), 8),
    Job("checks/nccl", _work("check_training", "process_group", "nccl"), 6),
    Job("checks/gloo", _work("check_training", "process_group", "gloo"), 3),
    Job("sft/4B", _work("measure_training", "sft", "4B", []), 25),
    Job("engine/4B", _work("measure_engine", "decode", "4B", (64, 1, 8, 256)), 50),
    Job("profile/training-4B", _work("profiles", "training", "4B"), 40),
    Job("profile/decoding-4B", _work("profiles", "decoding", "4B", 64), 35),
    Job("grpo/0.6B", _work("measure_grpo", "grpo", "0.6B", 16, 8, 256), 70, alone=True),
    Job("weights/4B", _work("measure_engine", "weights", "4B"), 25),
    Job("fp8/products", _work("measure_training", "fp8_products"), 20),
    Job("sft/1.7B", _work("measure_training", "sft", "1.7B", []), 12),
    Job("sft/1.7B-deterministic", _work("measure_training", "sft", "1.7B", ["--deterministic-mode"]), 12),
    Job("fp8/1.7B-tensorwise", _work("measure_training", "fp8", "1.7B", "tensorwise"), 15),
    Job("fp8/1.7B-blockwise", _work("measure_training", "fp8", "1.7B", "blockwise"), 15),
    Job("fp8/4B-tensorwise", _work("measure_training", "fp8", "4B", "tensorwise"), 25),
    Job("sft/MoE", _work("measure_training", "sft", "MoE", []), 25),
    Job("engine/prefill-4B", _work("measure_engine", "prefill", "4B"), 20),
    Job("sft/8B", _work("measure_training", "sft", "8B", []), 40),
    Job("sft/8B-offloaded", _work("measure_training", "sft", "8B", ["--optimizer-cpu-offload"]), 60),
    Job("sft/4B-unfused", _work("measure_training", "sft", "4B", ["--no-fuse-layers"]), 25),
    Job("sft/0.6B", _work("measure_training", "sft", "0.6B", []), 10),
    Job("sft/4B-recomputed", _work("measure_training", "sft", "4B", ["--gradient-checkpointing"]), 25),
    Job("sft/4B-compiled", _work("measure_training", "sft", "4B", ["--compile-layers"]), 120),
    Job("engine/0.6B", _work("measure_engine", "decode", "0.6B", (64, 1, 8, 256)), 35),
    Job("engine/MoE", _work("measure_engine", "decode", "MoE", (64, 1)), 30),
    Job("grpo/1.7B", _work("measure_grpo", "grpo", "1.7B", 16, 8, 512), 150, alone=True),
    Job("weights/1.7B", _work("measure_engine", "weights", "1.7B"), 12),
    Job("weights/0.6B", _work("measure_engine", "weights", "0.6B"), 10),
    Job("engine/8B", _work("measure_engine", "decode", "8B", (64, 1)), 50),
]
