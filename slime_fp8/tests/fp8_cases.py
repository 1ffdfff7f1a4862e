"""What the tests of FP8 share: arguments, numbers that are hard to quantise, and comparisons of bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from slime_fp8.recipes.blockwise import Blockwise
from slime_fp8.recipes.delayed import Delayed
from slime_fp8.recipes.mxfp8 import Mxfp8
from slime_fp8.recipes.tensorwise import Tensorwise

RECIPES: dict[str, Any] = {"tensorwise": Tensorwise, "delayed": Delayed, "blockwise": Blockwise, "mxfp8": Mxfp8}
CASES = [(name, format) for name in RECIPES for format in ("e4m3", "hybrid") if (name, format) != ("mxfp8", "hybrid")]
"""Every recipe with every format that it takes."""

BOUNDS = {"e4m3": (0.032, 0.045), "hybrid": (0.055, 0.07)}
"""Between which the relative error of a product lies. One operand in e4m3 is off by 2.6 %, one in e5m2 by 5.3 %, two of them by
3.7 % and 5.9 %: below the first bound one of the two was not quantised."""

INF = float("inf")
NAN = float("nan")


def arguments(**changes: Any) -> Any:
    """The options that recipes read, with their defaults."""
    defaults: dict[str, Any] = {
        "fp8_format": "e4m3",
        "first_last_layers_bf16": False,
        "num_layers_at_start_in_bf16": 1,
        "num_layers_at_end_in_bf16": 1,
        "fp8_modules_to_not_convert": [],
        "fp8_margin": 0,
        "fp8_amax_history_len": 1,
        "fp8_amax_compute_algo": "most_recent",
    }
    return SimpleNamespace(**{**defaults, **changes})


def made(name: str, num_layers: int = 4, **changes: Any) -> Any:
    """A recipe."""
    return RECIPES[name](arguments(**changes), num_layers)


def numbers(*shape: int, seed: int = 0, spread: float = 0.0) -> Tensor:
    """Normal numbers, float32; `spread` multiplies each with a random power of two up to 2^±spread."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(shape, generator=generator)
    return found * torch.exp2((torch.rand(shape, generator=generator) * 2 - 1) * spread)


def differing(left: Tensor, right: Tensor) -> int:
    """How many bytes of two tensors of one shape and dtype differ."""
    assert left.shape == right.shape
    assert left.dtype == right.dtype
    return int((left.contiguous().view(torch.uint8) != right.contiguous().view(torch.uint8)).sum())


def error(found: Tensor, right: Tensor) -> float:
    """The size of the difference, relative to the right one (Frobenius norms)."""
    return float((found - right).norm() / right.norm())
