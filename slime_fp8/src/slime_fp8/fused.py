"""Quantises for the arithmetic of a GPU by Triton kernels (`slime_fp8.kernels`): the bytes of the plain quantisers, which are torch
operations one by one, in one pass over a matrix, or two where its scale is that of its own numbers. Called by recipes.

Products are summed along rows of memory, so every matrix is needed as it is and transposed; both are written by the same kernel.
Whoever uses this asks `reason_against` first, which compares with the plain quantisers on the device. Kernels quantise what products in
bfloat16 read. Other numbers are left to the plain quantisers: of float32 ones the transposed copy comes out wrong on an H200, by a fault of
the assembler that Triton 3.6 brings (triton-lang/triton, issue 11111), which needs one result that is stored in both layouts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

from slime_fp8.linear import Arithmetic, QuantisedLinear, plainly
from slime_fp8.operands import ROLES, DelayedOperands, Directions, Operands, Role
from slime_fp8.quantise import Format, Quantiser
from slime_fp8.scaled_mm import ALIGNED, layout, padded, scaled_product
from slime_fp8.scales import DTYPES, LARGEST

BLOCK = 128
PARTS = 512
"""A matrix is read in so many parts to find its largest magnitude."""

LINES = ((1, BLOCK), (BLOCK, 1))
"""Blocks of a matrix for its two directions."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A matrix (M, S) for products that are summed over S, as torch's product wants it.

    Attributes:
        data: (M', S') float8, row by row: filled up with zeros to what the product needs.
        scales: in the order that the product needs.
        kind: what shares a scale.
        rows: M.
        transposed: it stands for the matrix (S, M).
    """

    data: Tensor
    scales: Tensor
    kind: ScalingType
    rows: int
    transposed: bool = False

    def t(self) -> Prepared:
        """The transposed matrix, which lies in memory as this one."""
        return Prepared(self.data, self.scales, self.kind, self.rows, not self.transposed)

    def rebuilt(self) -> Callable[[Tensor, Tensor], Prepared]:
        """Makes it of its tensors, for the backward pass."""
        return partial(Prepared, kind=self.kind, rows=self.rows, transposed=self.transposed)


def prepared_product(left: Prepared, right: Prepared, dtype: torch.dtype) -> Tensor:
    """Multiply (M, S) with (S, N): bfloat16 if that is wanted, otherwise float32 that is then made the wanted dtype."""
    if left.transposed or not right.transposed:
        raise ValueError("A product is summed along the rows that both of its factors have in memory.")
    if not (left.rows and right.rows and left.data.shape[1]):
        return torch.zeros(left.rows, right.rows, dtype=dtype, device=left.data.device)
    product = F.scaled_mm(
        left.data,
        right.data.t(),
        left.scales,
        left.kind,
        right.scales,
        right.kind,
        SwizzleType.NO_SWIZZLE,
        SwizzleType.NO_SWIZZLE,
        output_dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32,
    )
    return product[: left.rows, : right.rows].to(dtype)


def prepare(
    operands: Operands | DelayedOperands, role: Role, matrix: Tensor, dtype: torch.dtype, both: bool
) -> tuple[Prepared, Prepared]:
    """Quantise a matrix, rounded to `dtype` first, for products along its columns, and for those along its rows.

    Args:
        both: otherwise the second one is not made, and the first one takes its place.
    """
    matrix = matrix.detach()
    if matrix.numel() and (dtype != torch.bfloat16 or matrix.shape[1] % ALIGNED):
        return _as_products_want_it(operands, role, matrix, dtype)
    matrix, rounds = _in_rows(matrix), matrix.dtype != dtype
    if isinstance(operands, DelayedOperands):
        place = ROLES.index(role)
        noted = operands.history[0, place].view(torch.int32) if operands.training and matrix.numel() else None
        return _whole(matrix, operands.formats[role], rounds, both, (operands.scale[place], noted))
    first, second = operands.quantisers[role].along_columns, operands.quantisers[role].along_rows
    if first.block == (None, None):
        return _whole(matrix, first.format, rounds, both)
    return _blocks(matrix, first, second, rounds, both)


BY_KERNELS = Arithmetic(prepare, prepared_product, shares=True)
BY_TORCH = Arithmetic(plainly, scaled_product)


def _whole(
    matrix: Tensor, format: Format, rounds: bool, both: bool, delayed: tuple[Tensor, Tensor | None] | None = None
) -> tuple[Prepared, Prepared]:
    from slime_fp8 import kernels

    (rows, columns), device = matrix.shape, matrix.device
    tall, wide = _filled(rows, ALIGNED), _filled(columns, ALIGNED)
    along_columns = torch.empty(tall, wide, dtype=DTYPES[format], device=device)
    along_rows = torch.empty(wide, tall, dtype=DTYPES[format], device=device) if both else along_columns
    inverse = torch.empty((), dtype=torch.float32, device=device)
    first = Prepared(along_columns, inverse, ScalingType.TensorWise, rows)
    second = Prepared(along_rows, inverse, ScalingType.TensorWise, columns, transposed=True) if both else first
    if not matrix.numel():
        return first, second
    parts, number, unused = inverse, 0, inverse
    if delayed is None:
        block = 4096
        each = _filled(-(-matrix.numel() // PARTS), block)
        number = -(-matrix.numel() // each)
        parts = torch.empty(number, dtype=torch.int32, device=device)
        gaps, stride = not matrix.is_contiguous(), matrix.stride(0)
        kernels.largest_of_parts[(number,)](
            matrix, parts, matrix.numel(), each, columns, stride, GAPS=gaps, BLOCK=block, num_warps=8
        )
    earlier, noted = delayed or (unused, None)
    tile = (64, 128)
    kernels.quantise_whole[(-(-tall // tile[0]), -(-wide // tile[1]))](
        matrix,
        parts,
        number,
        earlier,
        unused if noted is None else noted,
        along_columns,
        along_rows,
        inverse,
        rows,
        columns,
        matrix.stride(0),
        LARGEST[format],
        ROUND=rounds,
        DELAYED=delayed is not None,
        NOTES=noted is not None,
        BOTH=both,
        PARTS=PARTS,
        ROWS=tile[0],
        COLUMNS=tile[1],
        num_warps=8,
    )
    return first, second


def _blocks(
    matrix: Tensor, along_columns: Quantiser, along_rows: Quantiser, rounds: bool, both: bool
) -> tuple[Prepared, Prepared]:
    from slime_fp8 import kernels

    (rows, columns), device, format = matrix.shape, matrix.device, along_columns.format
    square = along_columns.block == (BLOCK, BLOCK)
    high, broad = -(-rows // BLOCK), -(-columns // BLOCK)

    def empty(lines: int, blocks: int, line_blocks: int) -> tuple[Tensor, Tensor]:
        """Numbers of a matrix with so many lines, of so many blocks each, and their scales in memory."""
        height = line_blocks * BLOCK if square else _filled(lines, ALIGNED)
        data = torch.empty(height, blocks * BLOCK, dtype=DTYPES[format], device=device)
        if not square:
            return data, torch.empty(blocks, height, dtype=torch.float32, device=device)
        size = (line_blocks, _filled(blocks, 4))
        return data, (torch.ones if blocks % 4 else torch.empty)(size, dtype=torch.float32, device=device)

    kind = ScalingType.BlockWise128x128 if square else ScalingType.BlockWise1x128
    data, scales = empty(rows, broad, high)
    transposed, its_scales = empty(columns, high, broad) if both else (data, scales)
    first = Prepared(data, scales.t(), kind, rows)
    second = Prepared(transposed, its_scales.t(), kind, columns, transposed=True) if both else first
    if matrix.numel():
        kernels.quantise_blocks[(high, broad)](
            matrix,
            data,
            transposed,
            scales,
            its_scales,
            rows,
            columns,
            matrix.stride(0),
            LARGEST[format],
            ROUND=rounds,
            POWER_OF_TWO=along_columns.scaling == "power_of_two",
            SQUARE=square,
            BOTH=both,
            num_warps=8,
        )
    return first, second


def _in_rows(matrix: Tensor) -> Tensor:
    """The matrix with each row in one piece of memory, where kernels can read them fast: as it is if it is so, such as a few columns of
    another matrix."""
    stride = matrix.stride(0)
    fast = matrix.stride(1) == 1 and stride >= matrix.shape[1] and not stride % ALIGNED and not matrix.data_ptr() % 16
    return matrix if fast and matrix.numel() < 2**31 else matrix.contiguous()


def _filled(extent: int, unit: int) -> int:
    return -(-extent // unit) * unit


# ------------------------------------------------------------------------------------------------------------ whether it can


def gpu_arithmetic(operands: Operands | DelayedOperands) -> Arithmetic:
    """How a GPU quantises and multiplies these: by the kernels, or, where it has none, by torch's operations one by one."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    return BY_TORCH if reason_against(operands, device) else BY_KERNELS


def reason_against(operands: Operands | DelayedOperands, device: torch.device) -> str:
    """Why these matrices are not quantised by the kernels on a device; "" if they are. The first call on a device compiles the kernels
    and compares them with the plain quantisers, and says it if they cannot be used."""
    if device.type != "cuda" or find_spec("triton") is None:
        return "no Triton for this device"
    if isinstance(operands, DelayedOperands):
        return _first_difference(tuple(operands.formats.items()), device)
    if not all(_has_kernel(own.along_columns, own.along_rows) for own in operands.quantisers.values()):
        return "no kernel for such blocks"
    return _first_difference(tuple(operands.quantisers.items()), device)


def _has_kernel(along_columns: Quantiser, along_rows: Quantiser) -> bool:
    blocks = (along_columns.block, along_rows.block)
    if along_columns.scaling != along_rows.scaling or along_columns.format != along_rows.format:
        return False
    if blocks == ((None, None), (None, None)):
        return along_columns.scaling == "float32"
    return along_columns.scaling in ("float32", "power_of_two") and blocks in (LINES, ((BLOCK, BLOCK), (BLOCK, BLOCK)))


@lru_cache
def _first_difference(roles: tuple[tuple[Role, Directions | Format], ...], device: torch.device) -> str:
    try:
        why = difference(roles, device)
    except Exception as error:  # whatever a compiler that is not ours may raise
        why = f"{type(error).__name__}: {error}"
    if why:
        _log.warning(
            f"FP8: quantised by torch, operation by operation, which is slow, since the kernels cannot be used: {why}"
        )
    return why


def difference(roles: Sequence[tuple[Role, Directions | Format]], device: torch.device) -> str:
    """What of a few matrices, and of the products of a layer, comes out otherwise by the kernels; "" if nothing.

    Args:
        roles: how the matrix in each role is quantised, or its format if that is by scales of earlier steps.
    """
    random = torch.Generator(device).manual_seed(1)

    def numbers(rows: int, columns: int) -> Tensor:
        found = torch.randn(rows, columns, device=device, generator=random).mul_(1e-3)
        found[:, 7], found[3, 5] = 0, 3.0
        return found

    operands = _operands(roles).to(device)
    wide = numbers(72, 208)
    for matrix in (numbers(136, 144), wide[:, 16:160]):
        for given in (matrix, matrix.bfloat16()):
            for role, how in roles:
                if differing(operands, role, given, torch.bfloat16):
                    what = "by earlier scales" if isinstance(how, str) else f"in blocks of {how.along_columns.block}"
                    return f"the {role} from {given.dtype}, {given.shape[0]} × {given.shape[1]}, {what}"
    x, weight, gradient = wide, numbers(144, 208), numbers(72, 144).bfloat16()
    results = []
    for arithmetic in (BY_KERNELS, BY_TORCH):
        layer = QuantisedLinear(_operands(roles).to(device), arithmetic)
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16):
            output = layer(*leaves)
        results.append([output.detach(), *torch.autograd.grad(output, leaves, gradient)])
    for name, ours, right in zip(("output", "gradient of the input", "gradient of the weight"), *results, strict=True):
        if not (ours - right).float().norm() <= 0.01 * right.float().norm():
            return f"the {name} of a layer"
    return ""


def _operands(roles: Sequence[tuple[Role, Directions | Format]]) -> Operands | DelayedOperands:
    if any(isinstance(how, str) for _, how in roles):
        delayed = DelayedOperands({role: how for role, how in roles if isinstance(how, str)})
        delayed.scale.fill_(100.0)
        return delayed
    return Operands({role: how for role, how in roles if isinstance(how, Directions)})


def differing(operands: Operands | DelayedOperands, role: Role, matrix: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels make something else of a matrix than the plain quantisers do: numbers, scales, or magnitudes that are noted."""
    found: list[list[Any]] = []
    history = operands.history.clone() if isinstance(operands, DelayedOperands) else None
    for makes in (partial(prepare, both=True), _as_products_want_it):
        if isinstance(operands, DelayedOperands) and history is not None:
            operands.history.copy_(history)
        first, second = makes(operands, role, matrix, dtype)
        found.append([*_bytes(first), *_bytes(second)])
        if isinstance(operands, DelayedOperands):
            found[-1].append(operands.history.nan_to_num(nan=-1.0))
    if isinstance(operands, DelayedOperands) and history is not None:
        operands.history.copy_(history)
    return any(not ours.equal(right) for ours, right in zip(*found, strict=True))


def _as_products_want_it(
    operands: Operands | DelayedOperands, role: Role, matrix: Tensor, dtype: torch.dtype
) -> tuple[Prepared, Prepared]:
    """What `prepare` makes of a matrix, by the plain quantisers."""
    found = []
    whole = isinstance(operands, DelayedOperands) or operands.quantisers[role].along_columns.block == (None, None)
    for made, transposed in zip(operands.both(role, matrix.to(dtype)), (False, True), strict=True):
        filled = padded(made.t() if transposed else made, whole)
        kind, scales, _ = layout(filled, whole)
        found.append(Prepared(filled.data, scales, kind, matrix.shape[1 if transposed else 0], transposed))
    return found[0], found[1]


def _bytes(made: Prepared) -> tuple[Tensor, Tensor]:
    return made.data.view(torch.uint8), made.scales.contiguous().view(torch.int32)
