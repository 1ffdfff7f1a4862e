"""Fine-tuning on this device: tokens per second, MFU, and the peak of memory against what `slime check` says."""

from __future__ import annotations

import statistics

from benchmarks.gemm import step_flops
from benchmarks.on_gpu.job import Findings, NotHere
from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.models import estimate, random_batch, shapes, trainer
from slime_core.run.memory import CONTEXT

MICRO_BATCHES = 2
ROOM = 0.95
"""The share of the free memory that an estimate may fill."""


def tokens_of(machine: Machine) -> int:
    """Tokens of a micro-batch."""
    return 8192 if machine.on_gpu else 64


def words_that_fit(machine: Machine, name: str, words: list[str]) -> tuple[list[str], float]:
    """(the options with which a model can be trained here, bytes that `slime check` says it takes): without recomputing
    activations, if they have room.

    Raises:
        NotHere: it does not fit, or an option of it needs a GPU.
    """
    if "--optimizer-cpu-offload" in words and not machine.on_gpu:
        raise NotHere("--optimizer-cpu-offload needs a GPU")
    words = ["--bf16", "--use-dynamic-batch-size", "--max-tokens-per-gpu", str(tokens_of(machine)), *words]
    room = ROOM * machine.memory - CONTEXT * 2**30 * machine.on_gpu
    needed = 0.0
    for more in ([], ["--gradient-checkpointing"]):
        needed = estimate(machine, name, [*words, *more])
        if needed <= room:
            return [*words, *more], needed
    raise NotHere(f"training takes {needed / 2**30:.1f} GiB by the estimate, and {room / 2**30:.1f} are free")


def sft(
    machine: Machine, found: Findings, name: str, words: list[str], steps: int = 5, length: int | None = None
) -> None:
    """Optimizer steps of two micro-batches of 8192 tokens each, all of them trained.

    Args:
        length: of a conversation; None: a micro-batch has one conversation of half its tokens, one of a quarter, and so on.
    """
    tokens = tokens_of(machine)
    words, needed = words_that_fit(machine, name, words)
    lengths = [tokens >> k for k in range(1, 5)] + [tokens >> 4] if length is None else [length] * (tokens // length)
    backend = trainer(machine, name, words, steps + 2)
    batches = [random_batch(machine, name, lengths * MICRO_BATCHES, tokens, seed) for seed in range(2)]
    memory: dict[str, float] = {}
    with machine.peak_memory(memory):
        seconds = [machine.seconds(lambda n=n: backend.train_step(batches[n % 2])) for n in range(steps + 2)]
    first, seconds = seconds[0], seconds[2:]
    middle, count = statistics.median(seconds), tokens * MICRO_BATCHES
    flops = step_flops(shapes(machine, name), lengths * MICRO_BATCHES, count - len(lengths) * MICRO_BATCHES)
    found.note(
        options=" ".join(words),
        tokens_per_second=count / middle,
        first_step_seconds=round(first, 2),
        seconds_per_step=[round(s, 4) for s in seconds],
        tflops=flops / middle / 1e12,
        estimate_gib=needed / 2**30,
        **memory,
    )
    if machine.peak:
        found.note(mfu=flops / middle / machine.peak, share_of_product=flops / middle / machine.product_flops)
    if memory:
        found.note(peak_against_estimate=memory["peak_gib"] * 2**30 / needed)


def fp8(machine: Machine, found: Findings, name: str, recipe: str) -> None:
    """The same by a precision recipe, of a GPU that can compute it."""
    from benchmarks.fp8 import reason_against
    from slime_core.runtime.hardware import hardware_of

    if machine.on_gpu and (why := reason_against(recipe, hardware_of(machine.device))):
        raise NotHere(why)
    words = ["--fp8-format", "e4m3", "--fp8-recipe", recipe, *["--fp8-emulation"] * (not machine.on_gpu)]
    sft(machine, found, name, words)


def fp8_products(machine: Machine, found: Findings) -> None:
    """The three products of each matrix of a layer of Qwen3-4B by each recipe, against bfloat16 in turn."""
    from benchmarks.fp8 import QWEN3_4B, RECIPES, measure_products, reason_against
    from slime_core.runtime.hardware import hardware_of

    hardware = hardware_of(machine.device)
    names = [name for name in RECIPES if not (machine.on_gpu and reason_against(name, hardware))]
    matrices = QWEN3_4B if machine.on_gpu else {"q_proj": (64, 64)}
    for one in measure_products(names, hardware, matrices, tokens_of(machine), repeats=3):
        found.note(
            **{
                f"{one.recipe}, {one.matrix}": {
                    "ms": round(statistics.median(one.milliseconds), 4),
                    "times as fast as bf16": round(statistics.median(one.ratios), 3),
                    "off": one.error,
                }
            }
        )
