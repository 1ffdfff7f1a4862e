"""Linear layers whose weight is stored in the form in which the processor's matrix product reads it.

A decoding step multiplies a few rows with every weight of the model. An ordinary product then spends most of its time
on rearranging the weight. Rearranging it once, when weights arrive, makes the product up to twice as fast at 8 to 64 rows,
and a tenth faster at thousands. `slime_engine_local.model` uses it for float32 on a CPU.

MKL and oneDNN, both parts of PyTorch, have a form each. On a processor of AMD MKL's is slower than an ordinary product, and
oneDNN's is used. Which one follows from the maker of the processor and is not measured, so that a run can be repeated and
resumed bit for bit; neither depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from slime_core.tensors.matrix_products import onednn_is_faster

EXPECTED_ROWS = 64
"""The number of rows that the library is told to expect. MKL's form does not depend on it."""


class PackedLinear(nn.Module):
    """Takes the place of an `nn.Linear`. Its weight can be written, but not read.

    Args:
        weight: [out, in], float32, of which a packed copy is made.
        bias: [out], which is used as it is.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self._by_onednn = onednn_is_faster()
        self._packed: Tensor | None = None
        self._shape = weight.shape
        self.copy_(weight)

    def copy_(self, weight: Tensor) -> None:
        """Replace the weight."""
        library = (
            torch.ops.mkldnn._reorder_linear_weight if self._by_onednn else torch.ops.mkl._mkl_reorder_linear_weight
        )
        self._packed = library(weight.detach().contiguous(), EXPECTED_ROWS)

    def give_up(self) -> None:
        """Free the memory of the weight, which must be replaced before the next product."""
        self._packed = None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply [..., in] with the weight, and return [..., out]."""
        product: Tensor
        if self._by_onednn:
            product = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        else:
            rows = x.numel() // x.shape[-1]
            plain = x.new_empty(1, 1).expand(self._shape)  # which is asked for its shape alone
            product = torch.ops.mkl._mkl_linear(x, self._packed, plain, self.bias, rows)
        return product


@cache
def packing_works() -> bool:
    """Return whether packed products exist here and equal plain ones, for any number of rows."""
    has_mkl: Callable[[], bool] = torch.backends.mkl.is_available
    if not onednn_is_faster() and not has_mkl():
        return False
    random = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(70, 50, generator=random), torch.randn(200, 50, generator=random)
    try:
        packed = PackedLinear(weight, None)
        counts = (1, 2, 7, 16, 48, 65, 200)
        return all(torch.allclose(packed(rows[:n]), linear(rows[:n], weight), rtol=1e-4, atol=1e-4) for n in counts)
    except (
        AttributeError,
        NotImplementedError,
        RuntimeError,
    ):  # the operators are private to PyTorch and may disappear
        return False
