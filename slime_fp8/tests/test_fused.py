"""The kernels that quantise on a GPU, interpreted on a CPU: their bytes are those of the plain quantisers, and a layer that computes
with them computes what the emulation computes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fp8_cases import INF, NAN, error, made, numbers

INTERPRETED = not torch.cuda.is_available()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
pytest.importorskip("triton", reason="Triton comes with torch for GPUs")

from slime_fp8 import fused, linear  # noqa: E402
from slime_fp8.fused import (  # noqa: E402
    BY_KERNELS,
    _first_difference,
    difference,
    differing,
    prepare,
    prepared_product,
    reason_against,
)
from slime_fp8.linear import Arithmetic  # noqa: E402
from slime_fp8.operands import DelayedOperands  # noqa: E402

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
NARROW = {8: {3: torch.float8_e4m3fn, 2: torch.float8_e5m2}, 16: {7: torch.bfloat16, 10: torch.float16}}
RECIPES = [("tensorwise", "e4m3"), ("tensorwise", "hybrid"), ("delayed", "hybrid"), ("blockwise", "e4m3")]
EVERY = pytest.mark.parametrize(("name", "format"), RECIPES, ids=["-".join(one) for one in RECIPES])


@pytest.fixture(autouse=True)
def numbers_are_rounded_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's interpreter cuts digits off where a GPU rounds to the nearest number, ties to even."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    cut = interpreter._convert_float

    def rounded(input: Any, source: Any, target: Any, mode: Any) -> Any:
        if source.primitive_bitwidth != 32 or target.primitive_bitwidth > 16:
            return cut(input, source, target, mode)
        dtype = NARROW[target.primitive_bitwidth][target.fp_mantissa_width]
        found = torch.from_numpy(np.ascontiguousarray(input).view(np.float32).copy()).to(dtype)
        wide = target.primitive_bitwidth == 16
        return found.view(torch.int16 if wide else torch.uint8).numpy().view(np.uint16 if wide else np.uint8)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    with np.errstate(all="ignore"):
        yield


def hard(rows: int, columns: int) -> torch.Tensor:
    """Numbers of many sizes, with blocks of zeros, ties, subnormals, and such that overflow."""
    matrix = numbers(rows, columns, spread=6)
    matrix[: rows // 3, : columns // 3] = 0
    matrix[-1] = torch.tensor([0.0, -0.0, 1e-42, 3e38, 17.0, 0.4375, -448.0, 2.0**-10]).repeat(columns)[:columns]
    return matrix.to(DEVICE)


@EVERY
@pytest.mark.parametrize("shape", [(128, 128), (130, 208), (1, 16), (33, 304)], ids=str)
def test_kernels_write_the_bytes_of_the_plain_quantisers(name: str, format: str, shape: tuple[int, int]) -> None:
    operands = made(name, fp8_format=format).operands().to(DEVICE)
    if isinstance(operands, DelayedOperands):
        operands.scale.copy_(torch.tensor([37.0, 4096.0, 1.5]))
        operands.history[0, 1] = 1e30
    matrix = hard(*shape)
    for role in ("input", "weight", "gradient"):
        for given in (matrix, matrix.bfloat16()):
            assert not differing(operands, role, given, torch.bfloat16), (role, given.dtype)


@pytest.mark.parametrize("name", ["tensorwise", "delayed", "blockwise"])
@pytest.mark.parametrize(("shape", "dtype"), [((20, 32), torch.float32), ((20, 33), torch.bfloat16)], ids=str)
def test_what_is_not_for_kernels_is_quantised_plainly(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "slime_fp8.kernels", None)
        first, second = prepare(made(name).operands().to(DEVICE), "input", numbers(*shape).to(DEVICE), dtype, True)
    assert (first.rows, second.rows) == shape


@pytest.mark.parametrize("name", ["tensorwise", "blockwise", "delayed"])
@pytest.mark.parametrize(
    "part", [(slice(None), slice(16, 48)), (slice(None), slice(1, 33)), (slice(0, 8, 2), slice(None))], ids=str
)
def test_parts_of_other_matrices_are_read_where_they_lie(name: str, part: tuple[slice, slice]) -> None:
    matrix = numbers(32, 96).to(DEVICE, torch.bfloat16)[part]
    assert not matrix.is_contiguous()
    operands = made(name).operands().to(DEVICE)
    for own in (matrix, *([matrix.t()] if len(matrix) == 32 else [])):
        assert not differing(operands, "gradient", own, torch.bfloat16)


@pytest.mark.parametrize("name", ["tensorwise", "blockwise", "delayed"])
@pytest.mark.parametrize("odd", [INF, NAN])
def test_numbers_that_are_none_go_through_as_in_the_plain_quantisers(name: str, odd: float) -> None:
    matrix = numbers(130, 144).to(DEVICE)
    matrix[3, 5] = odd
    assert not differing(made(name).operands().to(DEVICE), "input", matrix, torch.bfloat16)


def test_kernels_are_used_where_all_of_a_layer_is_found_to_be_right(caplog: pytest.LogCaptureFixture) -> None:
    roles = tuple(made("delayed", fp8_format="hybrid").operands().formats.items())
    assert difference(roles, DEVICE) == ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "prepared_product", lambda *given: 1.02 * prepared_product(*given))
        patch.setattr(fused, "BY_KERNELS", Arithmetic(prepare, fused.prepared_product))
        assert _first_difference(roles, DEVICE) == "the output of a layer"
    assert "quantised by torch, operation by operation, which is slow" in caplog.text


def test_a_difference_would_be_seen() -> None:
    operands, other = made("blockwise").operands(), made("blockwise").operands()
    operands.both = lambda role, matrix: other.both(role, matrix * 1.01)
    assert differing(operands, "input", numbers(130, 144).to(DEVICE), torch.bfloat16)


@pytest.mark.parametrize("name", ["tensorwise", "delayed"])
@pytest.mark.parametrize("tokens", [48, 70, 0])
def test_all_three_products_are_those_of_the_emulation_also_within_autocast(name: str, tokens: int) -> None:
    results = []
    recipe = made(name)
    for product in (recipe.products(BY_KERNELS).to(DEVICE), recipe.linear("x.weight").to(DEVICE)):
        own = []
        for step in range(2):
            x, w = numbers(tokens, 48).to(DEVICE).requires_grad_(), numbers(32, 48, seed=1).to(DEVICE).requires_grad_()
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=step == 1):
                y = product(x, w)
            y.backward((numbers(tokens, 32, seed=2) * 1e-3).to(DEVICE, y.dtype))
            own += [y.detach(), x.grad, w.grad]
            if name == "delayed":
                product.end_step(lambda values: values)
                own.append(product.operands.scale.clone())
        results.append(own)
    for ours, right in zip(*results, strict=True):
        assert (ours.dtype, ours.shape) == (right.dtype, right.shape)
        assert not ours.numel() or not right.any() or error(ours.float(), right.float()) < 4e-3
        assert right.any() or not ours.any()


def test_what_several_layers_read_is_quantised_once_until_it_changes() -> None:
    asked: list[str] = []

    def counting(operands: Any, role: Any, matrix: torch.Tensor, dtype: torch.dtype, both: bool) -> Any:
        asked.append(role)
        return prepare(operands, role, matrix, dtype, both)

    arithmetic = Arithmetic(counting, BY_KERNELS.multiply, shares=True)
    layers = [made("tensorwise").products(arithmetic) for _ in range(3)]
    weights = [numbers(24, 40, seed=seed).to(DEVICE).requires_grad_() for seed in range(3)]
    x = numbers(48, 40).to(DEVICE)
    first = [layer(x, weight) for layer, weight in zip(layers, weights, strict=True)]
    assert asked.count("input") == 1
    again = [layer(x.clone(), weight) for layer, weight in zip(layers, weights, strict=True)]
    assert asked.count("input") == 4
    assert all(one.equal(other) for one, other in zip(first, again, strict=True))
    x.mul_(2)
    layers[0](x, weights[0])
    assert asked.count("input") == 5
    with torch.no_grad():
        layers[0](x, weights[0])
    assert asked.count("input") == 6, "without a gradient one direction is enough"
    del x
    assert linear._last is None, "what was shared is forgotten with what it was made of"


@pytest.mark.parametrize("name", ["tensorwise", "blockwise", "mxfp8"])
def test_where_there_is_no_gpu_or_no_kernel_torch_quantises(name: str) -> None:
    assert reason_against(made(name).operands(), torch.device("cpu"))
