"""Emulated products of a linear layer: operands are quantised and restored, and multiplied in high precision, forwards and
backwards. On hardware with FP8 arithmetic the sums are taken over the same numbers, in another order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slime_fp8.operands import DelayedOperands, Operands


class EmulatedLinear(nn.Module):
    """Computes products with one weight in low precision.

    Args:
        operands: quantise input, weight and gradient.
    """

    def __init__(self, operands: Operands | DelayedOperands) -> None:
        super().__init__()
        self.operands = operands

    def forward(self, input: Tensor, weight: Tensor) -> Tensor:
        """(…, K) and (N, K) → (…, N) in the dtype of the input or, within autocast, in that of autocast. All leading dimensions
        together are the rows that blocks run along, so a packed row is one matrix."""
        device = input.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            input, weight = input.to(dtype), weight.to(dtype)
        rows = input.reshape(-1, input.shape[-1])
        with torch.autocast(device, enabled=False):
            output: Tensor = _Product.apply(rows, weight, self.operands)  # type: ignore[no-untyped-call]
        return output.view(*input.shape[:-1], weight.shape[0])


class RememberingLinear(EmulatedLinear):
    """The same with scales from earlier steps; see `slime_core.contracts.precision.Remembers`."""

    operands: DelayedOperands

    def end_step(self, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Find the scales of the next step."""
        self.operands.end_step(over_ranks)


class _Product(torch.autograd.Function):
    """rows (T, K), weight (N, K) → (T, N)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, operands: Operands | DelayedOperands) -> Tensor:
        rows_along_k, rows_along_t = operands.both("input", rows)
        weight_along_k, weight_along_n = operands.both("weight", weight)
        wants_rows, wants_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(rows_along_t if wants_weight else None, weight_along_n if wants_rows else None)
        ctx.operands, ctx.dtypes = operands, (rows.dtype, weight.dtype)
        return _product(rows_along_k, weight_along_k.t(), rows.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows_along_t, weight_along_n = ctx.saved_tensors
        gradient_along_n, gradient_along_t = ctx.operands.both("gradient", gradient)
        rows = weight = None
        with torch.autocast(gradient.device.type, enabled=False):
            if weight_along_n is not None:
                rows = _product(gradient_along_n, weight_along_n, ctx.dtypes[0])
            if rows_along_t is not None:
                weight = _product(gradient_along_t.t(), rows_along_t, ctx.dtypes[1])
        return rows, weight, None


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """A product of float32 matrices, summed in float32, or in float64 where that is the dtype wanted."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (left.to(wide) @ right.to(wide)).to(dtype)
