"""The reference quantiser, against hand-made vectors and properties; libraries are in test_quantise_libraries.py."""

from __future__ import annotations

import math

import pytest
import torch
from fp8_cases import INF, NAN, differing, numbers
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_fp8.quantise import Quantiser, rounded, widened
from slime_fp8.scales import (
    DTYPES,
    LARGEST,
    e8m0_exponents,
    e8m0_multipliers,
    e8m0_scales,
    multipliers,
)

QUANTISERS = {
    "tensorwise": Quantiser("e4m3"),
    "tensorwise e5m2": Quantiser("e5m2"),
    "channels": Quantiser("e4m3", (1, None)),
    "blocks": Quantiser("e4m3", (128, 128)),
    "lines": Quantiser("e4m3", (1, 128)),
    "columns": Quantiser("e5m2", (128, 1)),
    "power of two": Quantiser("e4m3", (1, 128), "power_of_two"),
    "quotient": Quantiser("e4m3", (128, 128), "quotient"),
    "mxfp8": Quantiser("e4m3", (1, 32), "e8m0"),
    "mxfp8 columns": Quantiser("e4m3", (32, 1), "e8m0"),
}
EVERY = pytest.mark.parametrize("quantiser", QUANTISERS.values(), ids=QUANTISERS)


@pytest.mark.parametrize("nan", [True, False], ids=["with NaN", "without"])
@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
def test_every_number_of_a_format_is_widened_exactly(format, nan):
    every = torch.arange(256, dtype=torch.uint8).view(DTYPES[format]).reshape(16, 16).t()
    if not nan:
        every = every[~every.float().isnan()]
    made, expected = widened(every), every.to(torch.float32)
    assert torch.equal(made.isnan(), expected.isnan())
    assert torch.equal(made.nan_to_num(0).view(torch.int32), expected.nan_to_num(0).view(torch.int32))
    assert widened(every[:0]).dtype == torch.float32


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
def test_rounding_goes_to_the_nearest_number_of_the_format_ties_to_even(format):
    every = torch.arange(256, dtype=torch.uint8).view(DTYPES[format]).float()
    finite = every[every.isfinite() & (every >= 0)].sort().values.unique()
    assert finite[-1] == LARGEST[format]
    assert differing(rounded(finite, format), finite.to(DTYPES[format])) == 0
    middles = (finite[1:] + finite[:-1]) / 2
    even = torch.where(torch.arange(len(middles)) % 2 == 0, finite[:-1], finite[1:])  # 0 has an even mantissa
    assert rounded(middles, format).float().equal(even)
    assert rounded(torch.nextafter(middles, torch.tensor(INF)), format).float().equal(finite[1:])
    assert rounded(torch.nextafter(middles, torch.tensor(-INF)), format).float().equal(finite[:-1])


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
def test_what_is_too_large_becomes_the_largest_number_and_nan_stays_nan(format):
    largest = LARGEST[format]
    found = rounded(torch.tensor([1e30, -1e30, INF, -INF, largest * 1.07, NAN]), format).float()
    assert found[:-1].tolist() == [largest, -largest, largest, -largest, largest]
    assert found[-1].isnan()


@pytest.mark.parametrize(
    ("amax", "expected"),
    [
        (448.0, 1.0),
        (1.0, 448.0),
        (0.0, 1.0),
        (INF, 1.0),
        (NAN, 1.0),
        (1e-37, 3.4028234663852886e38),  # 448 / amax is more than float32 holds
        (2.0**-149, 3.4028234663852886e38),
        (3.4028234663852886e38, 448 / 3.4028234663852886e38),
    ],
)
def test_scales_map_the_largest_magnitude_to_the_largest_number(amax, expected):
    assert multipliers(torch.tensor([amax]), 448.0).item() == torch.tensor(expected).item()


def test_scales_are_correctly_rounded_quotients():
    amax = numbers(20000, spread=30).abs()
    exact = torch.tensor([448.0 / value for value in amax.tolist()], dtype=torch.float64).float()
    assert multipliers(amax, 448.0).equal(exact)
    product = 448.0 / amax  # what torch makes of a number and a tensor
    assert not product.equal(exact), "the trap is gone; torch.div of two tensors is not needed any more"


@pytest.mark.parametrize(
    ("amax", "expected"),
    [(448.0, 1.0), (449.0, 0.5), (447.0, 1.0), (1.0, 256.0), (0.0, 1.0), (INF, 1.0), (1e-37, 2.0**127)],
)
def test_scales_that_are_powers_of_two_are_rounded_down(amax, expected):
    assert multipliers(torch.tensor([amax]), 448.0, power_of_two=True).item() == expected


def up(value):
    return torch.nextafter(torch.tensor(value), torch.tensor(INF)).item()


def down(value):
    return torch.nextafter(torch.tensor(value), torch.tensor(-INF)).item()


@pytest.mark.parametrize(
    ("amax", "exponent"),
    [
        (0.0, 0),
        (448.0, 127),
        (down(448.0), 127),
        (up(448.0), 128),
        (896.0, 128),
        (up(896.0), 129),
        (1.0, 127 - 8),  # 1 / 448 lies between 2^-9 and 2^-8
        (2.0**-149, 0),  # a quotient that is subnormal or 0 has the smallest scale
        (448 * 2.0**-127, 0),
        (up(448 * 2.0**-127), 0),  # a quotient so small is rounded to it
        (449 * 2.0**-127, 1),
        (448 * 2.0**-126, 1),
        (up(448 * 2.0**-126), 2),
        (3.4028234663852886e38, 127 + 128 - 8),
        (INF, 0xFE),
        (NAN, 0xFF),
    ],
)
def test_exponents_of_mxfp8_are_rounded_up(amax, exponent):
    assert e8m0_exponents(torch.tensor([amax]), 448.0).item() == exponent


@pytest.mark.parametrize("power", range(-110, 119))
def test_exponents_of_mxfp8_are_exact_around_every_power_of_two(power):
    """Where a logarithm would be a bit off."""
    amax = 448 * 2.0**power
    found = e8m0_exponents(torch.tensor([down(amax), amax, up(amax)]), 448.0).tolist()
    # The product with 1/448 as float32 decides: it is a little more than the quotient.
    reciprocal = torch.tensor(1 / 448).double().item()
    expected = [
        127 + math.ceil(math.log2(torch.tensor(value * reciprocal, dtype=torch.float64).float().item()))
        for value in (down(amax), amax, up(amax))
    ]
    assert found == expected == [127 + power, 127 + power, 128 + power]


def test_scales_of_mxfp8_and_what_numbers_are_multiplied_with_are_exact_powers_of_two():
    exponents = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    scales, forwards = e8m0_scales(exponents), e8m0_multipliers(exponents)
    assert scales[:255].tolist() == [2.0 ** (e - 127) for e in range(255)]
    assert forwards[1:255].tolist() == [2.0 ** (127 - e) for e in range(1, 255)]
    assert forwards[0] == 1, "as in Transformer Engine; a block with this scale holds zeros"
    assert scales[255].isnan()
    assert forwards[255].isnan()


@EVERY
def test_zeros_stay_zeros(quantiser):
    matrix = numbers(130, 300)
    matrix[:128, :256] = 0
    made = quantiser.quantise(matrix)
    assert not made.restored()[:128, :256].any()
    assert made.restored().isfinite().all()
    empty = quantiser.quantise(torch.zeros(64, 64))
    assert not empty.data.view(torch.uint8).any()
    assert not empty.restored().any()


@EVERY
def test_matrices_without_rows_have_no_numbers(quantiser):
    made = quantiser.quantise(torch.zeros(0, 64))
    assert made.data.shape == (0, 64)
    assert made.restored().shape == (0, 64)


@EVERY
def test_nan_stays_where_it_is_or_in_its_block_and_spreads_no_further(quantiser):
    matrix = numbers(256, 256)
    matrix[3, 5] = NAN
    made = quantiser.quantise(matrix)
    assert made.restored()[3, 5].isnan()
    rows, columns = made.block
    beyond = torch.ones_like(matrix, dtype=torch.bool)
    beyond[3 // rows * rows : (3 // rows + 1) * rows, 5 // columns * columns : (5 // columns + 1) * columns] = False
    assert made.restored()[beyond].isfinite().all()


@EVERY
def test_inf_becomes_the_largest_number_of_the_format(quantiser):
    matrix = numbers(256, 256)
    matrix[3, 5], matrix[130, 7] = INF, -INF
    data = quantiser.quantise(matrix).data.float()
    assert (data[3, 5], data[130, 7]) == (LARGEST[quantiser.format], -LARGEST[quantiser.format])


@EVERY
@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (33, 1), (127, 129), (128, 128), (130, 300)])
def test_ragged_edges_are_blocks_of_their_own(quantiser, shape):
    matrix = numbers(*shape, spread=6)
    made = quantiser.quantise(matrix)
    (m, n), (rows, columns) = shape, made.block
    assert made.scales.shape == (-(-m // rows), -(-n // columns))
    for top in range(0, m, rows):
        for left in range(0, n, columns):
            part = matrix[top : top + rows, left : left + columns]
            alone = Quantiser(quantiser.format, (None, None), quantiser.scaling).quantise(part)
            assert differing(alone.data, made.data[top : top + rows, left : left + columns]) == 0
            assert alone.scales.item() == made.scales[top // rows, left // columns]
        if top // rows > 3:
            break  # the others are like them


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_quantised_as_their_float32_values(quantiser, dtype):
    matrix = numbers(40, 200).to(dtype)
    made, plain = quantiser.quantise(matrix), quantiser.quantise(matrix.float())
    assert differing(made.data, plain.data) == 0
    assert made.scales.equal(plain.scales)


def test_a_matrix_that_is_not_contiguous_is_quantised_like_a_copy_of_it():
    matrix = numbers(300, 130).t()[:, ::2]
    for quantiser in QUANTISERS.values():
        assert differing(quantiser.quantise(matrix).data, quantiser.quantise(matrix.contiguous()).data) == 0


FINITE = st.floats(-(2.0**127), 2.0**127, width=32)  # what is larger may be rounded up to what float32 cannot hold


@EVERY
@settings(max_examples=60)
@given(
    values=st.lists(FINITE, min_size=1, max_size=70),
    columns=st.integers(1, 70),
)
def test_restored_numbers_are_off_by_at_most_half_a_step(quantiser, values, columns):
    rows = -(-len(values) // columns)
    matrix = torch.zeros(rows * columns)
    matrix[: len(values)] = torch.tensor(values)
    matrix = matrix.view(rows, columns)
    made = quantiser.quantise(matrix)
    restored = made.restored()
    assert restored.isfinite().all()
    assert ((restored == 0) | (restored.sign() == matrix.sign())).all()
    scales = e8m0_scales(made.scales) if made.scales.dtype == torch.uint8 else made.scales
    scale = scales.repeat_interleave(made.block[0], 0)[:rows].repeat_interleave(made.block[1], 1)[:, :columns]
    if quantiser.scaling == "e8m0":
        scale = torch.where(made.scales == 0, 1.0, 0.0).repeat_interleave(made.block[0], 0)[:rows].repeat_interleave(made.block[1], 1)[:, :columns] + scale  # fmt: skip
    mantissa, smallest = (3, 2.0**-9) if quantiser.format == "e4m3" else (2, 2.0**-16)
    bound = matrix.abs().double() * 2.0 ** -(mantissa + 1) + scale.double() * smallest / 2
    slack = 1 + 2.0**-20
    tiny = 2.0**-126  # float32 products below it are rounded to multiples of 2^-149
    assert ((restored.double() - matrix.double()).abs() <= bound * slack + tiny).all()


@EVERY
def test_quantising_what_was_restored_changes_no_number_where_scales_are_powers_of_two(quantiser):
    matrix = numbers(130, 300, spread=4)
    once = quantiser.quantise(matrix)
    twice = quantiser.quantise(once.restored())
    if quantiser.scaling in ("power_of_two", "e8m0"):
        assert twice.restored().equal(once.restored())
    else:
        assert torch.allclose(twice.restored(), once.restored(), rtol=1e-6, atol=0)
