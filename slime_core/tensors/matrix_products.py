"""Matrix products by the library that is fastest on this processor. Train backends and the embedded engine use them, on the CPU.

torch multiplies float32 matrices with MKL, which is slower on processors of AMD than oneDNN, a part of torch as well:
by a tenth on the matrices of a training step, by a third where a few rows meet a large vocabulary. Without AVX-512 this
holds for weights read as they lie in memory; where they are read transposed, for gradients by inputs, oneDNN takes up to
twice as long there. The two differ in the last digits. So that a run can be repeated and resumed bit for bit, nothing is
measured: which library multiplies follows from the processor and the matrices alone. Neither depends on the number of threads.

What a product reads is kept for the gradient by its weight, unless it can be made again (`slime_core.tensors.made_again`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slime_core.tensors.made_again import recipe_of

LEAST_OPERATIONS, LARGE_WEIGHT = 2**26, 2**20
"""oneDNN is used from so many multiplications on, and with weights of so many numbers. It needs about 0.7 ms for each
combination of sizes that is new to it, and is no faster where a few rows meet a small matrix."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x Wᵀ + b, as `torch.nn.functional.linear` does, with gradients.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).

    Returns:
        (..., out).
    """
    if not (torch.is_grad_enabled() and (_is_traced(x) or recipe_of(x) or _fits(x, weight))):
        return _linear(x, weight, bias)
    product: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return product


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _is_traced(x):
        product: Tensor = _untraced(x, weight)
        return product if bias is None else product + bias
    return _onednn(x, weight, bias) if _fits(x, weight) else functional.linear(x, weight, bias)


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Compute the product of (m, k) and (k, n), without a gradient. The right one is read as it lies in memory."""
    return _linear(left, right.t(), None)


def speed_up_products(model: nn.Module) -> int:
    """Have the linear layers of `model` multiply by `linear`, and return how many do.

    Layers of other classes, and what is computed in half precision (autocast), stay as they are.
    """
    found = 0
    for module in model.modules():
        if type(module) is nn.Linear and "forward" not in vars(module):
            vars(module)["forward"] = MethodType(_forward, module)  # so that a copied model uses its own weights
            found += 1
    return found


@cache
def onednn_is_faster() -> bool:
    """Whether products are oneDNN's here: the processor is one of AMD, and oneDNN's products equal the others."""
    available: Callable[[], bool] = torch.backends.mkldnn.is_available
    if not available() or "AuthenticAMD" not in _processor():
        return False
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(7, 50, generator=random), torch.randn(70, 50, generator=random)
    try:
        pairs = [(x, weight), (functional.linear(x, weight), weight.t()), (x.t(), functional.linear(weight, x))]
        return all(torch.allclose(_onednn(a, b), a @ b.t(), rtol=1e-4, atol=1e-4) for a, b in pairs)
    except (AttributeError, NotImplementedError, RuntimeError):  # the operator is private to torch and may disappear
        return False


@cache
def _reads_transposed() -> bool:
    """Whether oneDNN is faster with weights that are transposed in memory as well."""
    return "avx512f" in _processor()


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.exists() else ""


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether this product is one of oneDNN's."""
    return (
        (x.numel() * len(weight) >= LEAST_OPERATIONS or weight.numel() >= LARGE_WEIGHT)
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and type(weight) in (Tensor, nn.Parameter)
        and onednn_is_faster()
        and (weight.is_contiguous() or _reads_transposed())
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b; the weight (out, in) may be transposed in memory."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _is_traced(x: Tensor) -> bool:
    """Whether torch.compile makes a program of what is called, to be run on the CPU."""
    return torch.compiler.is_compiling() and x.device.type == "cpu"


@torch.library.custom_op("slime::product", mutates_args=())
def _untraced(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ as one step of a compiled program, which knows oneDNN's products with constant weights alone."""
    return _linear(x, weight, None)


@_untraced.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _forward(self: Any, x: Tensor) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        return functional.linear(x, self.weight, self.bias)
    return linear(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    """The gradient by the weight is MKL's, which is as fast there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        need_x, need_weight, _ = ctx.needs_input_grad
        ctx.recipe, read = (need_weight and recipe_of(x)) or (None, (x,))
        if ctx.recipe:
            ctx.recipe.read()
        ctx.save_for_backward(weight if need_x else None, *(read if need_weight else ()))
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight, *read = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        by_x = matmul(rows, weight).view(*grad.shape[:-1], weight.shape[1]) if need_x else None
        by_weight = None
        if need_weight:
            x = ctx.recipe.again(*read) if ctx.recipe else read[0]
            by_weight = rows.t() @ x.reshape(-1, x.shape[-1])
        return by_x, by_weight, rows.sum(0) if need_bias else None
