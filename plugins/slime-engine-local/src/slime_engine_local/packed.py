"""Linear layers whose weight is stored in the form in which the processor's matrix product reads it.

A decoding step multiplies a few rows with every weight of the model. An ordinary product then spends most of its time
on rearranging the weight. Rearranging it once, when weights arrive, makes the product two to three times as fast at 8
to 64 rows, and no slower at thousands. `slime_engine_local.model` uses it for float32 on a CPU where PyTorch was built
with MKL.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

EXPECTED_ROWS = 64
"""The number of rows that MKL is told to expect. The packed form does not depend on it."""


class PackedLinear(nn.Module):
    """Takes the place of an `nn.Linear`. Its weight can be written, but not read.

    Args:
        weight: [out, in], float32, of which a packed copy is made.
        bias: [out], which is used as it is.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self._shape = torch.empty(1, 1).expand(weight.shape)  # the product asks the plain weight for its shape alone
        self.copy_(weight)

    def copy_(self, weight: Tensor) -> None:
        """Replace the weight."""
        self._packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.detach().contiguous(), EXPECTED_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply [..., in] with the weight, and return [..., out]."""
        rows = x.numel() // x.shape[-1]
        product: Tensor = torch.ops.mkl._mkl_linear(x, self._packed, self._shape, self.bias, rows)
        return product


@cache
def packing_works() -> bool:
    """Return whether packed products exist here and equal plain ones, for any number of rows."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]  # torch does not annotate it
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
