"""The three products of a linear layer in low precision: its matrices are quantised, and multiplied by an `Arithmetic`: that of a GPU
(`slime_fp8.fused`, `slime_fp8.scaled_mm`) or, on any device, the `EMULATION`. All multiply the same numbers, and differ in the order
of their sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from slime_fp8.operands import DelayedOperands, Operands, Role, end_step
from slime_fp8.quantise import Quantised


class Factor(Protocol):
    """A quantised matrix, which `Quantised` is."""

    @property
    def data(self) -> Tensor: ...

    @property
    def scales(self) -> Tensor: ...

    def t(self) -> Any:
        """The transposed matrix."""

    def rebuilt(self) -> Callable[[Tensor, Tensor], Any]:
        """Makes such a factor of its tensors."""


@dataclass(frozen=True)
class Arithmetic:
    """How matrices are quantised and multiplied.

    Attributes:
        prepare: called with the operands of a layer, a role, a matrix, the dtype that it is rounded to first, and whether both
            results are needed; returns the matrix for products along its columns, and for those along its rows.
        multiply: called with matrices (M, S) and (S, N) and a dtype, returns their product (M, N) in that dtype.
        shares: a matrix that several layers read one after the other is quantised once.
    """

    prepare: Callable[[Any, Role, Tensor, torch.dtype, bool], tuple[Any, Any]]
    multiply: Callable[[Any, Any, torch.dtype], Tensor]
    shares: bool = False


def plainly(
    operands: Operands | DelayedOperands, role: Role, matrix: Tensor, dtype: torch.dtype, both: bool
) -> tuple[Quantised, Quantised]:
    """Quantise a matrix by operations of torch, on any device."""
    return operands.both(role, matrix.to(dtype))


def emulated(left: Quantised, right: Quantised, dtype: torch.dtype) -> Tensor:
    """The product of what the numbers stand for, summed in float32, or in float64 where that is the dtype wanted."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (left.restored().to(wide) @ right.restored().to(wide)).to(dtype)


EMULATION = Arithmetic(plainly, emulated)


class QuantisedLinear(nn.Module):
    """Computes products with one weight in low precision.

    Args:
        operands: quantise input, weight and gradient.
        arithmetic: how they are quantised and multiplied.
    """

    def __init__(self, operands: Operands | DelayedOperands, arithmetic: Arithmetic = EMULATION) -> None:
        super().__init__()
        self.operands, self.arithmetic = operands, arithmetic
        self._kept: dict[tuple[torch.dtype, bool], tuple[Factor, Factor, bool]] | None = None

    @contextmanager
    def weight_unchanged(self) -> Iterator[None]:
        """See `slime_core.contracts.precision.KeepsWeight`."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def forward(self, input: Tensor, weight: Tensor) -> Tensor:
        """(…, K) and (N, K) → (…, N) in the dtype of the input or, within autocast, in that of autocast. All leading dimensions
        together are the rows that blocks run along, so a packed row is one matrix."""
        device = input.device.type
        autocast = torch.is_autocast_enabled(device)
        dtypes = (torch.get_autocast_dtype(device),) * 2 if autocast else (input.dtype, weight.dtype)
        rows = input.reshape(-1, input.shape[-1])
        trains = torch.is_grad_enabled()
        wants = (trains and input.requires_grad, trains and weight.requires_grad)
        with torch.autocast(device, enabled=False):
            prepared = self._shared(input, rows, dtypes[0], wants[1])
            output: Tensor = _Products.apply(rows, weight, self, dtypes, wants, prepared)  # type: ignore[no-untyped-call]
        return output.view(*input.shape[:-1], weight.shape[0])

    def _shared(self, input: Tensor, rows: Tensor, dtype: torch.dtype, both: bool) -> tuple[Factor, Factor] | None:
        """The input quantised, if that is shared with the layers that read it before and after, as those of queries, keys and values."""
        if not self.arithmetic.shares or not isinstance(self.operands, Operands):
            return None
        with torch.no_grad():
            return _quantised_once(input, rows, self, self.operands, dtype, both)

    def prepared(self, role: Role, matrix: Tensor, dtype: torch.dtype, both: bool = True) -> tuple[Factor, Factor]:
        """Quantise a matrix, rounded to `dtype` first, for both directions."""
        return self.arithmetic.prepare(self.operands, role, matrix, dtype, both)

    def prepared_weight(self, weight: Tensor, dtype: torch.dtype, both: bool) -> tuple[Factor, Factor]:
        """The weight quantised, once while it does not change. In training mode anew, as its magnitude may have to be noted."""
        kept = None if self._kept is None else self._kept.get((dtype, self.training))
        if kept is None or (both and not kept[2]):
            kept = (*self.prepared("weight", weight, dtype, both), both)
            if self._kept is not None:
                self._kept[dtype, self.training] = kept
        return kept[:2]


class RememberingLinear(QuantisedLinear):
    """The same with scales from earlier steps; see `slime_core.contracts.precision.Remembers`."""

    operands: DelayedOperands

    def end_step(self, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Find the scales of the next step."""
        self.operands.end_step(over_ranks)

    @staticmethod
    def end_step_together(layers: Sequence[RememberingLinear], over_ranks: Callable[[Tensor], Tensor]) -> None:
        """The same for many layers."""
        end_step([layer.operands for layer in layers], over_ranks)


class _Products(torch.autograd.Function):
    """rows (T, K), weight (N, K) → (T, N).

    Args:
        dtypes: that rows and weight are rounded to before they are quantised.
        wants: whether their gradients will be.
        prepared: the rows, if they are quantised already.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        layer: QuantisedLinear,
        dtypes: tuple[torch.dtype, torch.dtype],
        wants: tuple[bool, bool],
        prepared: tuple[Factor, Factor] | None,
    ) -> Tensor:
        wants_rows, wants_weight = wants
        rows_along_k, rows_along_t = prepared or layer.prepared("input", rows, dtypes[0], wants_weight)
        weight_along_k, weight_along_n = layer.prepared_weight(weight, dtypes[1], wants_rows)
        kept = (rows_along_t if wants_weight else None, weight_along_n if wants_rows else None)
        ctx.save_for_backward(*(t for made in kept for t in ((made.data, made.scales) if made else (None, None))))
        # Gradients are in the dtype of what they belong to: within autocast, sums in float32 that are not rounded.
        ctx.layer, ctx.dtypes, ctx.rebuilt = (
            layer,
            (rows.dtype, weight.dtype),
            [made and made.rebuilt() for made in kept],
        )
        return layer.arithmetic.multiply(rows_along_k, weight_along_k.t(), dtypes[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        layer: QuantisedLinear = ctx.layer
        multiply, saved = layer.arithmetic.multiply, ctx.saved_tensors
        for_rows = for_weight = None
        with torch.autocast(gradient.device.type, enabled=False):
            along_n, along_t = layer.prepared("gradient", gradient, gradient.dtype, saved[0] is not None)
            if saved[2] is not None:
                for_rows = multiply(along_n, ctx.rebuilt[1](saved[2], saved[3]), ctx.dtypes[0])
            if saved[0] is not None:
                for_weight = multiply(along_t.t(), ctx.rebuilt[0](saved[0], saved[1]), ctx.dtypes[1])
        return for_rows, for_weight, None, None, None, None


# -------------------------------------------------------------------------------------------------------- what layers share


@dataclass(frozen=True)
class _Last:
    """The input that was quantised last. It is known by the object that it is and the writes to it, and forgotten with it."""

    input: ReferenceType[Tensor]
    key: tuple[Any, ...]
    made: tuple[Factor, Factor]


_last: _Last | None = None


def _quantised_once(
    input: Tensor, rows: Tensor, layer: QuantisedLinear, operands: Operands, dtype: torch.dtype, both: bool
) -> tuple[Factor, Factor]:
    global _last
    directions = operands.quantisers["input"]
    key = (input._version, tuple(input.shape), dtype, both, directions.along_columns, directions.along_rows)
    if _last is not None and _last.input() is input and _last.key == key:
        return _last.made
    made = layer.prepared("input", rows, dtype, both)
    _last = _Last(ref(input, _forget), key, made)
    return made


def _forget(input: ReferenceType[Tensor]) -> None:
    global _last
    if _last is not None and _last.input is input:
        _last = None
