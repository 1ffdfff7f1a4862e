"""Triton kernels that quantise a matrix for both directions in one pass over it, with the bytes of `slime_fp8.quantise`. Called by
`slime_fp8.fused`, on a GPU; imported there alone, since Triton comes with torch for GPUs only.

Every kernel takes a matrix (M, N) whose rows lie in one piece in memory, `stride` numbers apart, in any dtype of floating-point numbers,
and writes FP8 numbers of it row by row and of its transposed matrix (N, M) row by row: the two layouts that products are summed along. Both are filled up with
zeros to the sizes that products need. ROUND: the matrix stands for what its numbers are in bfloat16.

Magnitudes are compared as the integers that their bits are: their order is that of the numbers, and NaN is above all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(0x7F800000)
LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)


@triton.jit
def _magnitudes(values):
    return values.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _multipliers(amax, largest, POWER_OF_TWO: tl.constexpr):
    """`slime_fp8.scales.multipliers`, of magnitudes as integers."""
    odd = (amax == 0) | (amax >= INFINITY)
    divisor = tl.where(odd, 1.0, amax.to(tl.float32, bitcast=True))
    scale = tl.minimum(tl.div_rn(divisor * 0.0 + largest, divisor), LARGEST_FLOAT)
    if POWER_OF_TWO:
        scale = (scale.to(tl.int32, bitcast=True) & INFINITY).to(tl.float32, bitcast=True)
    return tl.where(odd, 1.0, scale)


@triton.jit
def _inverse(scale):
    return tl.div_rn(scale * 0.0 + 1.0, scale)


@triton.jit
def _read(matrix, rows, columns, stride, m, n, ROUND: tl.constexpr):
    """Numbers of the matrix in float32; zeros where it ends."""
    inside = (m[:, None] < rows) & (n[None, :] < columns)
    values = tl.load(matrix + m[:, None].to(tl.int64) * stride + n[None, :], mask=inside, other=0.0).to(tl.float32)
    if ROUND:
        values = values.to(tl.bfloat16).to(tl.float32)
    return values


@triton.jit
def _write(numbers, scaled, largest, rows, columns, m, n, TRANSPOSED: tl.constexpr):
    """Round to FP8 and write to (rows, columns), or to (columns, rows) if `TRANSPOSED`."""
    scaled = tl.where(scaled > largest, largest, scaled)  # which leaves NaN alone
    scaled = tl.where(scaled < -largest, -largest, scaled)
    rounded = scaled.to(numbers.dtype.element_ty)
    inside = (m[:, None] < rows) & (n[None, :] < columns)
    if TRANSPOSED:
        tl.store(numbers + n[None, :].to(tl.int64) * rows + m[:, None], rounded, mask=inside)
    else:
        tl.store(numbers + m[:, None].to(tl.int64) * columns + n[None, :], rounded, mask=inside)


@triton.jit
def largest_of_parts(matrix, found, count, each, columns, stride, GAPS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest magnitude of each part of `each` numbers, as integers. GAPS: there are gaps between rows, and fewer than 2^31 numbers."""
    start = tl.program_id(0).to(tl.int64) * each
    amax = tl.zeros((BLOCK,), tl.int32)
    step = 0
    while step < each:
        places = start + step + tl.arange(0, BLOCK)
        inside = places < count
        if GAPS:
            row = places.to(tl.int32) // columns
            places += row.to(tl.int64) * (stride - columns)
        values = tl.load(matrix + places, mask=inside, other=0.0).to(tl.float32)
        amax = tl.maximum(amax, _magnitudes(values))
        step += BLOCK
    tl.store(found + tl.program_id(0), tl.max(amax, 0))


@triton.jit(
    do_not_specialize=["number_of_parts", "rows"], do_not_specialize_on_alignment=["earlier", "noted", "inverse"]
)
def quantise_whole(
    matrix,
    parts,
    number_of_parts,
    earlier,
    noted,
    along_columns,
    along_rows,
    inverse,
    rows,
    columns,
    stride,
    largest,
    ROUND: tl.constexpr,
    DELAYED: tl.constexpr,
    NOTES: tl.constexpr,
    BOTH: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One scale for the matrix: from the magnitudes of its parts, or DELAYED, which NOTES its largest magnitude."""
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    values = _read(matrix, rows, columns, stride, m, n, ROUND)
    if DELAYED:
        scale = tl.load(earlier)
        if NOTES:
            tl.atomic_max(noted, tl.max(tl.max(_magnitudes(values), 1), 0))
    else:
        places = tl.arange(0, PARTS)
        amax = tl.max(tl.load(parts + places, mask=places < number_of_parts, other=0), 0)
        if ROUND:
            amax = _magnitudes(amax.to(tl.float32, bitcast=True).to(tl.bfloat16).to(tl.float32))
        scale = _multipliers(amax, largest, False)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(inverse, _inverse(scale))
    tall, wide = tl.cdiv(rows, 16) * 16, tl.cdiv(columns, 16) * 16
    _write(along_columns, values * scale, largest, tall, wide, m, n, False)
    if BOTH:
        _write(along_rows, values * scale, largest, tall, wide, m, n, True)


@triton.jit(do_not_specialize=["rows"])
def quantise_blocks(
    matrix,
    along_columns,
    along_rows,
    scales_along_columns,
    scales_along_rows,
    rows,
    columns,
    stride,
    largest,
    ROUND: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    SQUARE: tl.constexpr,
    BOTH: tl.constexpr,
):
    """Blocks of 128 × 128 if SQUARE, else of 1 × 128 along the direction that is summed over. Scales lie as torch's product wants
    them: those of lines at (block, line), those of squares at (block of the other dimension, block of the one that is summed over),
    the latter in lines that are multiples of four."""
    down, across = tl.program_id(0), tl.program_id(1)
    m, n = down * 128 + tl.arange(0, 128), across * 128 + tl.arange(0, 128)
    values = _read(matrix, rows, columns, stride, m, n, ROUND)
    magnitudes = _magnitudes(values)
    # A dimension that is summed over is filled up to blocks, the other one to 16.
    tall, wide = tl.cdiv(rows, 16) * 16, tl.cdiv(columns, 16) * 16
    high, broad = tl.cdiv(rows, 128), tl.cdiv(columns, 128)
    if SQUARE:
        scale = _multipliers(tl.max(tl.max(magnitudes, 1), 0), largest, POWER_OF_TWO)
        _write(along_columns, values * scale, largest, high * 128, broad * 128, m, n, False)
        tl.store(scales_along_columns + down * (tl.cdiv(broad, 4) * 4) + across, _inverse(scale))
        if BOTH:
            _write(along_rows, values * scale, largest, high * 128, broad * 128, m, n, True)
            tl.store(scales_along_rows + across * (tl.cdiv(high, 4) * 4) + down, _inverse(scale))
    else:
        scale = _multipliers(tl.max(magnitudes, 1), largest, POWER_OF_TWO)
        _write(along_columns, values * scale[:, None], largest, tall, broad * 128, m, n, False)
        tl.store(scales_along_columns + across.to(tl.int64) * tall + m, _inverse(scale), mask=m < tall)
        if BOTH:
            scale = _multipliers(tl.max(magnitudes, 0), largest, POWER_OF_TWO)
            _write(along_rows, values * scale[None, :], largest, high * 128, wide, m, n, True)
            tl.store(scales_along_rows + down.to(tl.int64) * wide + n, _inverse(scale), mask=n < wide)
