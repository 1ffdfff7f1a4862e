"""The reference quantiser: a matrix in blocks of FP8 numbers with a scale each. Plain torch, any device; whatever computes
faster must give the same bytes.

    Quantiser("e4m3", (128, 128)).quantise(weight).restored()

Blocks at the edges may be smaller. A block of zeros stays zero. Inf becomes the largest number of the format, and NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from slime_fp8.scales import DTYPES, LARGEST, e8m0_exponents, e8m0_multipliers, e8m0_scales, multipliers

Format = Literal["e4m3", "e5m2"]
Scaling = Literal["float32", "power_of_two", "e8m0", "quotient"]
Block = tuple[int | None, int | None]


@dataclass(frozen=True)
class Quantised:
    """A matrix (M, N) in FP8.

    Attributes:
        data: (M, N), float8.
        scales: (blocks down, blocks across), what the numbers of a block are multiplied with to get the matrix back: float32,
            or uint8 exponents (E8M0).
        block: rows and columns of a block.
    """

    data: Tensor
    scales: Tensor
    block: tuple[int, int]

    def restored(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix (M, N) that the numbers stand for, multiplied in float32 and then rounded to `dtype`."""
        if not self.data.is_contiguous() and self.data.t().is_contiguous():  # blocks are cut from rows
            return self.t().restored(dtype).t()
        scales = e8m0_scales(self.scales) if self.scales.dtype == torch.uint8 else self.scales
        blocks = _blocks(widened(self.data), self.block) * scales[:, None, :, None]
        return _whole(blocks, self.data.shape).to(dtype)

    def t(self) -> Quantised:
        """The transposed matrix (N, M), as views."""
        return Quantised(self.data.t(), self.scales.t(), (self.block[1], self.block[0]))

    def rebuilt(self) -> Callable[[Tensor, Tensor], Quantised]:
        """Makes it of its tensors, for the backward pass."""
        return partial(Quantised, block=self.block)


@dataclass(frozen=True)
class Quantiser:
    """How matrices are quantised.

    Attributes:
        format: of the numbers.
        block: rows and columns that share a scale; None for all of them.
        scaling: what scales are. "float32": numbers are multiplied with largest / amax, and back with the reciprocal of that.
            "power_of_two": the same, with the next lower power of two. "e8m0": the exponent of a power of two, stored as a
            byte (MXFP8). "quotient": numbers are divided by amax / largest, as compressed-tensors and slime's converter do;
            the scales differ from those of "float32" by at most one unit in the last place.
    """

    format: Format = "e4m3"
    block: Block = (None, None)
    scaling: Scaling = "float32"

    def quantise(self, matrix: Tensor) -> Quantised:
        """Quantise a matrix (M, N) of floating-point numbers; its scales are found from its float32 values."""
        block = self._block_of(matrix)
        blocks = _blocks(matrix.to(torch.float32), block)
        amax, largest = blocks.abs().amax((1, 3)), LARGEST[self.format]
        if self.scaling == "e8m0":
            scales = e8m0_exponents(amax, largest)
            scaled = blocks * e8m0_multipliers(scales)[:, None, :, None]
        elif self.scaling == "quotient":
            scales = torch.div(amax, torch.full_like(amax, largest))
            scales = torch.where((scales == 0) | ~scales.isfinite(), torch.ones_like(scales), scales)
            scaled = blocks / scales[:, None, :, None]
        else:
            forwards = multipliers(amax, largest, self.scaling == "power_of_two")
            scales = forwards.reciprocal()
            scaled = blocks * forwards[:, None, :, None]
        return Quantised(_whole(rounded(scaled, self.format), matrix.shape), scales, block)

    def rounding(self, matrix: Tensor) -> Tensor:
        """Quantise and restore: the matrix (M, N) with the numbers that low precision leaves, in float32."""
        return self.quantise(matrix).restored()

    def _block_of(self, matrix: Tensor) -> tuple[int, int]:
        rows, columns = (size or max(1, extent) for size, extent in zip(self.block, matrix.shape, strict=True))
        return rows, columns


def rounded(scaled: Tensor, format: Format) -> Tensor:
    """Round float32 numbers to the nearest ones of a format, ties to even; what is too large becomes the largest one."""
    largest = LARGEST[format]  # torch's own cast to e5m2 overflows to Inf
    return scaled.clamp(-largest, largest).to(DTYPES[format])


def widened(data: Tensor) -> Tensor:
    """Return numbers of 8 bits as float32, exactly. Torch's own cast on a CPU takes ten times as long."""
    if data.device.type != "cpu":
        return data.to(torch.float32)
    if data.dtype == torch.float8_e5m2:  # the upper half of a float16
        return data.view(torch.int8).to(torch.int16).bitwise_left_shift_(8).view(torch.float16).to(torch.float32)
    # e4m3 has the bits of a float16 that is 2^8 times smaller, without its highest bit of exponent.
    bits = data.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000)
    numbers = bits.view(torch.float16).to(torch.float32).mul_(256)
    has_nan = numbers.numel() > 0 and bool(numbers.abs().amax() > LARGEST["e4m3"])  # NaN has the bits of 480
    return data.to(torch.float32) if has_nan else numbers


def _blocks(matrix: Tensor, block: tuple[int, int]) -> Tensor:
    """(M, N) → (blocks down, rows, blocks across, columns), with zeros where the last blocks stick out."""
    (m, n), (rows, columns) = matrix.shape, block
    if m % rows or n % columns:
        matrix = F.pad(matrix, (0, -n % columns, 0, -m % rows))
    return matrix.reshape(-(-m // rows), rows, -(-n // columns), columns)


def _whole(blocks: Tensor, shape: torch.Size) -> Tensor:
    """(blocks down, rows, blocks across, columns) → (M, N), without what stuck out."""
    down, rows, across, columns = blocks.shape
    matrix = blocks.reshape(down * rows, across * columns)
    return matrix if matrix.shape == shape else matrix[: shape[0], : shape[1]].contiguous()
