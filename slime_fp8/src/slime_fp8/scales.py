"""From the largest magnitude of a block to its scale, as Transformer Engine does it (version 2.20, `recipe_common.cuh` and
`ptx.cuh`). Every step is exact or correctly rounded on every device, so the bytes are the same everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
"""Formats of 8 bits: 4 bits of exponent and 3 of mantissa, or 5 and 2."""

LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}
"""The largest finite number of each format."""

E8M0_BIAS = 127


def multipliers(amax: Tensor, largest: float, power_of_two: bool = False) -> Tensor:
    """What numbers are multiplied with before they are rounded, so that `amax` becomes `largest`.

    Args:
        amax: the largest magnitude of each block, float32, any shape.
        largest: number of the format.
        power_of_two: take the next lower power of two.

    Returns:
        float32 of the shape of `amax`; 1 where `amax` is 0, Inf or NaN.
    """
    # torch computes `number / tensor` as a product with the reciprocal, which differs in the last bit.
    scale = torch.div(torch.full_like(amax, largest), amax).clamp(max=torch.finfo(torch.float32).max)
    if power_of_two:
        scale = (scale.view(torch.int32) & 0x7F800000).view(torch.float32)
    return torch.where((amax == 0) | ~amax.isfinite(), torch.ones_like(scale), scale)


def e8m0_exponents(amax: Tensor, largest: float) -> Tensor:
    """The scale that blocks of MXFP8 are divided by: the exponent of the next power of two that is at least `amax / largest`.

    Args:
        amax: the largest magnitude of each block, float32, any shape.
        largest: number of the format.

    Returns:
        uint8 of the shape of `amax`, biased by 127; 0xFE (the largest) for Inf, 0xFF for NaN.
    """
    # A cast to torch.float8_e8m0fnu rounds to the nearest one, which is too small for the block's largest number.
    value = amax * torch.full_like(amax, 1.0 / largest)
    bits = value.view(torch.int32)
    exponent, mantissa = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    exact = (mantissa == 0) | ((exponent == 0) & (mantissa <= 0x400000))  # 2^-127, the smallest scale, is subnormal
    exponent = torch.where(exact | (exponent == 0xFE), exponent, exponent + 1)
    exponent = torch.where(value.isinf(), torch.full_like(exponent, 0xFE), exponent)
    return torch.where(value.isnan(), torch.full_like(exponent, 0xFF), exponent).to(torch.uint8)


def e8m0_multipliers(exponents: Tensor) -> Tensor:
    """What the numbers of a block are multiplied with, as float32: the reciprocal of the scale, but 1 for the smallest scale."""
    power = torch.exp2(E8M0_BIAS - exponents.to(torch.float64)).to(
        torch.float32
    )  # 2^-127 is subnormal, no power overflows
    power = torch.where(exponents == 0, torch.ones_like(power), power)
    return torch.where(exponents == 0xFF, torch.full_like(power, torch.nan), power)


def e8m0_scales(exponents: Tensor) -> Tensor:
    """The scales themselves, as float32: 2^(exponent - 127), NaN for 0xFF."""
    power = torch.exp2(exponents.to(torch.float64) - E8M0_BIAS).to(torch.float32)
    return torch.where(exponents == 0xFF, torch.full_like(power, torch.nan), power)
