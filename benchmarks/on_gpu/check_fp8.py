"""FP8 products by the GPU's arithmetic against the emulation of the same recipe, which multiplies the same numbers.

They differ by the order of sums and the rounding of the output to bfloat16 (2^-9), and on Hopper by partial sums of 14 bits: 1 % is
far above these together and far below the 10 % by which a scale that is used in the wrong place is off.
"""

from __future__ import annotations

import torch

from benchmarks.fp8 import RECIPES, furthest, on_cpu, reason_against, recipe, three_products
from benchmarks.on_gpu.job import Findings
from benchmarks.on_gpu.machine import Machine


def products(machine: Machine, found: Findings) -> None:
    """Output and both gradients, also of sizes that must be filled up, by every recipe that the device can compute."""
    from slime_core.runtime.hardware import hardware_of

    hardware = hardware_of(machine.device)
    for name in RECIPES:
        if machine.on_gpu and (why := reason_against(name, hardware)):
            found.note(**{name: f"not on this GPU: {why}"})
            continue
        for tokens, width, out in ((256, 512, 384), (160, 320, 256)) if machine.on_gpu else ((32, 64, 48),):
            torch.manual_seed(0)
            sizes = ((tokens, width), (out, width), (tokens, out))
            dtype = torch.bfloat16 if machine.on_gpu else torch.float32
            given = [torch.randn(size, device=machine.device, dtype=dtype) for size in sizes]
            if machine.on_gpu:
                emulated = recipe(name).linear("x.weight").to(machine.device)
                fast = recipe(name).hardware_linear("x.weight", hardware).to(machine.device)
                off: float | None = furthest(three_products(fast, *given), three_products(emulated, *given))
            else:
                off = on_cpu(name, given)
            if off is not None:
                found.within(f"{name}, {tokens} × {width} × {out}", off, 0.01)
