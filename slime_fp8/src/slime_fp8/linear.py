"""The three products of a linear layer in low precision: its matrices are quantised, and multiplied by `Multiply`, which is the
arithmetic of a GPU (`slime_fp8.scaled_mm`) or, on any device, `emulated`. Both multiply the same numbers, and differ in the order of
their sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slime_fp8.operands import DelayedOperands, Operands
from slime_fp8.quantise import Quantised

Multiply = Callable[[Quantised, Quantised, torch.dtype], Tensor]
"""Called with matrices (M, S) and (S, N) and a dtype, returns their product (M, N) in that dtype."""


def emulated(left: Quantised, right: Quantised, dtype: torch.dtype) -> Tensor:
    """The product of what the numbers stand for, summed in float32, or in float64 where that is the dtype wanted."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (left.restored().to(wide) @ right.restored().to(wide)).to(dtype)


class QuantisedLinear(nn.Module):
    """Computes products with one weight in low precision.

    Args:
        operands: quantise input, weight and gradient.
        multiply: multiplies what was quantised.
    """

    def __init__(self, operands: Operands | DelayedOperands, multiply: Multiply = emulated) -> None:
        super().__init__()
        self.operands, self.multiply = operands, multiply

    def forward(self, input: Tensor, weight: Tensor) -> Tensor:
        """(…, K) and (N, K) → (…, N) in the dtype of the input or, within autocast, in that of autocast. All leading dimensions
        together are the rows that blocks run along, so a packed row is one matrix."""
        device = input.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            input, weight = input.to(dtype), weight.to(dtype)
        rows = input.reshape(-1, input.shape[-1])
        with torch.autocast(device, enabled=False):
            output: Tensor = _Products.apply(rows, weight, self)  # type: ignore[no-untyped-call]
        return output.view(*input.shape[:-1], weight.shape[0])


class RememberingLinear(QuantisedLinear):
    """The same with scales from earlier steps; see `slime_core.contracts.precision.Remembers`."""

    operands: DelayedOperands

    def end_step(self, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Find the scales of the next step."""
        self.operands.end_step(over_ranks)


class _Products(torch.autograd.Function):
    """rows (T, K), weight (N, K) → (T, N)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, layer: QuantisedLinear) -> Tensor:
        rows_along_k, rows_along_t = layer.operands.both("input", rows)
        weight_along_k, weight_along_n = layer.operands.both("weight", weight)
        wants_rows, wants_weight = ctx.needs_input_grad[:2]
        kept = (rows_along_t if wants_weight else None, weight_along_n if wants_rows else None)
        ctx.save_for_backward(*(t for made in kept for t in ((made.data, made.scales) if made else (None, None))))
        ctx.layer, ctx.dtypes, ctx.blocks = layer, (rows.dtype, weight.dtype), [made and made.block for made in kept]
        return layer.multiply(rows_along_k, weight_along_k.t(), rows.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        layer: QuantisedLinear = ctx.layer
        saved = ctx.saved_tensors
        gradient_along_n, gradient_along_t = layer.operands.both("gradient", gradient)
        for_rows = for_weight = None
        with torch.autocast(gradient.device.type, enabled=False):
            if saved[2] is not None:
                weight_along_n = Quantised(saved[2], saved[3], ctx.blocks[1])
                for_rows = layer.multiply(gradient_along_n, weight_along_n, ctx.dtypes[0])
            if saved[0] is not None:
                rows_along_t = Quantised(saved[0], saved[1], ctx.blocks[0])
                for_weight = layer.multiply(gradient_along_t.t(), rows_along_t, ctx.dtypes[1])
        return for_rows, for_weight, None
