"""Products of FP8 matrices by the arithmetic of a GPU, through torch's `scaled_mm`: what it expects of sizes and of the order of
scales. Products with one scale for each tensor also run on a CPU, which the tests use; blocks of 128 have run on an H200, those of MXFP8
never.

Shapes and orders are those that torch 2.13 and cuBLAS 12.9 document. Dimensions are filled up with zeros, which change no sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

from slime_fp8.quantise import Quantised
from slime_fp8.scales import e8m0_scales

ALIGNED = 16
"""Every dimension of an FP8 product must be a multiple of this."""

TILE = (128, 4)
"""Scales of MXFP8 lie in tiles of so many rows and columns."""


def scaled_product(left: Quantised, right: Quantised, dtype: torch.dtype) -> Tensor:
    """Multiply (M, S) with (S, N): bfloat16 if that is wanted, otherwise float32 that is then made the wanted dtype."""
    rows, columns = left.data.shape[0], right.data.shape[1]
    if not rows or not columns or not left.data.shape[1]:
        return torch.zeros(rows, columns, dtype=dtype, device=left.data.device)
    whole = left.scales.numel() == right.scales.numel() == 1
    first, second = padded(left, whole), padded(right.t(), whole)
    recipe, scales, swizzle = layout(first, whole)
    other_recipe, other_scales, other_swizzle = layout(second, whole)
    product = F.scaled_mm(
        first.data,
        second.data.t(),
        scales,
        recipe,
        other_scales,
        other_recipe,
        swizzle,
        other_swizzle,
        output_dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32,
    )
    return product[:rows, :columns].to(dtype)


def padded(matrix: Quantised, whole: bool) -> Quantised:
    """Fill a matrix (M, S) up so that both dimensions are multiples of `ALIGNED` and of the block, row by row in memory. Added blocks
    have the scale 1.

    Args:
        whole: it has one scale, which stays the only one.
    """
    extents = matrix.data.shape
    units = [ALIGNED if whole else max(ALIGNED, size) for size in matrix.block]  # powers of two
    more = [-extent % unit for extent, unit in zip(extents, units, strict=True)]
    data = F.pad(matrix.data.view(torch.uint8), (0, more[1], 0, more[0])).contiguous().view(matrix.data.dtype)
    if whole:
        return Quantised(data, matrix.scales, (data.shape[0], data.shape[1]))
    blocks = [-(-extent // size) for extent, size in zip(data.shape, matrix.block, strict=True)]
    added = (0, blocks[1] - matrix.scales.shape[1], 0, blocks[0] - matrix.scales.shape[0])
    return Quantised(data, F.pad(matrix.scales, added, value=127 if _exponents(matrix) else 1), matrix.block)


def layout(matrix: Quantised, whole: bool) -> tuple[ScalingType, Tensor, SwizzleType]:
    """How torch calls the scales of a matrix (M, S) that is summed over S, and the order in which it wants them.

    Args:
        whole: it has one scale.

    Raises:
        ValueError: torch has no product for such blocks.
    """
    scales = matrix.scales
    if whole:
        single = e8m0_scales(scales) if _exponents(matrix) else scales
        return ScalingType.TensorWise, single.reshape(()), SwizzleType.NO_SWIZZLE
    if _exponents(matrix) and matrix.block == (1, 32):
        swizzled = in_tiles(scales).view(torch.float8_e8m0fnu)
        return ScalingType.BlockWise1x32, swizzled, SwizzleType.SWIZZLE_32_4_4
    if matrix.block == (1, 128):  # (M, S / 128), column by column
        return ScalingType.BlockWise1x128, scales.t().contiguous().t(), SwizzleType.NO_SWIZZLE
    if matrix.block == (128, 128):  # (S / 128, M / 128), column by column, each of a multiple of 4
        filled = F.pad(scales, (0, -scales.shape[1] % 4), value=1.0)
        return ScalingType.BlockWise128x128, filled.contiguous().t(), SwizzleType.NO_SWIZZLE
    raise ValueError(f"There is no FP8 product for blocks of {matrix.block[0]} × {matrix.block[1]}.")


def in_tiles(scales: Tensor) -> Tensor:
    """Order scales (M, B) as cuBLAS wants those of MXFP8: tiles of 128 × 4, and within one 16 bytes for each of the rows 0 to 31, four
    of that row, four of the row 32 below, and so on. Returns a vector; what sticks out of M and B is zero."""
    rows, columns = TILE
    filled = F.pad(scales, (0, -scales.shape[1] % columns, 0, -scales.shape[0] % rows))
    tiles = filled.view(filled.shape[0] // rows, 4, rows // 4, filled.shape[1] // columns, columns)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1)


def _exponents(matrix: Quantised) -> bool:
    return matrix.scales.dtype == torch.uint8
