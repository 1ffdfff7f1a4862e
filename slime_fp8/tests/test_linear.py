"""Emulated products, against a computation of their own and between two bounds of error."""

from __future__ import annotations

import pytest
import torch
from fp8_cases import BOUNDS, CASES, RECIPES, error, made, numbers
from torch import Tensor

from slime_core.contracts.precision import Remembers
from slime_fp8.quantise import Quantiser

STATELESS = [name for name in RECIPES if name != "delayed"]
EVERY = pytest.mark.parametrize(("name", "format"), CASES, ids=["-".join(case) for case in CASES])


def gradients(product, x, w, g):
    """(output, gradient of x, gradient of w)."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = product(x, w)
    return (y.detach(), *torch.autograd.grad(y, (x, w), g))


def settled(name, x, w, g, **changes):
    """A product whose scales, if it has any from earlier steps, come from such numbers."""
    product = made(name, **changes).linear("x.weight")
    gradients(product, x, w, g)
    if isinstance(product, Remembers):
        product.end_step(lambda values: values)
    return product


# ------------------------------------------------------------------------------- a second computation, block by block


def one_block(block: Tensor, format: str, rule: str) -> Tensor:
    """What is left of one block, computed in float64 from the definition of the format."""
    amax = block.abs().max().double().item()
    if amax == 0:
        return block.double()
    largest = {"e4m3": 448.0, "e5m2": 57344.0}[format]
    if rule == "e8m0":
        scale = 2.0 ** torch.tensor(amax / largest).double().log2().ceil().item()
    else:
        scale = 1 / torch.tensor(largest / amax, dtype=torch.float64).float().item()
    mantissa, lowest = {"e4m3": (3, -6), "e5m2": (2, -14)}[format]
    value = block.double() / scale
    exponent = value.abs().clamp(min=1e-300).log2().floor().clamp(min=lowest)
    step = torch.exp2(exponent - mantissa)
    return (value / step).round().mul(step).clamp(-largest, largest) * scale


def blocks(matrix: Tensor, rows: int, columns: int, format: str, rule: str) -> Tensor:
    """What is left of a matrix."""
    found = torch.empty_like(matrix, dtype=torch.float64)
    for top in range(0, matrix.shape[0], rows):
        for left in range(0, matrix.shape[1], columns):
            part = slice(top, top + rows), slice(left, left + columns)
            found[part] = one_block(matrix[part], format, rule)
    return found


def expected(name: str, gradient: str, x: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three products, each with the operands that are written beside it."""

    def q(matrix: Tensor, direction: str, format: str, is_weight: bool = False) -> Tensor:
        if name in ("tensorwise", "delayed"):
            return blocks(matrix, *matrix.shape, format, "float32")
        if name == "blockwise" and is_weight:
            return blocks(matrix, 128, 128, format, "float32")
        size = 128 if name == "blockwise" else 32
        rows, columns = (1, size) if direction == "across" else (size, 1)
        return blocks(matrix, rows, columns, format, "e8m0" if name == "mxfp8" else "float32")

    output = q(x, "across", "e4m3") @ q(w, "across", "e4m3", True).t()  # summed over K
    for_input = q(g, "across", gradient) @ q(w, "down", "e4m3", True)  # summed over N
    for_weight = q(g, "down", gradient).t() @ q(x, "down", "e4m3")  # summed over T
    return output, for_input, for_weight


@EVERY
def test_the_three_products_are_those_of_a_computation_block_by_block(name, format):
    x, w, g = numbers(150, 200), numbers(140, 200, seed=1) * 0.02, numbers(150, 140, seed=2) * 1e-4
    found = gradients(settled(name, x, w, g, fp8_format=format), x, w, g)
    right = expected(name, "e5m2" if format == "hybrid" else "e4m3", x, w, g)
    for ours, theirs in zip(found, right, strict=True):
        assert error(ours.double(), theirs) < 2e-6


@EVERY
def test_errors_of_every_product_lie_between_two_bounds(name, format):
    x, w, g = numbers(256, 384), numbers(320, 384, seed=1), numbers(256, 320, seed=2)
    found = gradients(settled(name, x, w, g, fp8_format=format), x, w, g)
    right = gradients(torch.nn.functional.linear, x, w, g)
    for product, ours, exact in zip(("output", "input", "weight"), found, right, strict=True):
        low, high = BOUNDS["e4m3" if product == "output" else format]
        assert low < error(ours, exact) < high, product


@pytest.mark.parametrize("name", RECIPES)
def test_leading_dimensions_are_one_row_of_tokens(name):
    x, w, g = numbers(3, 50, 64), numbers(96, 64, seed=1), numbers(3, 50, 96, seed=2)
    shaped = gradients(made(name).linear("x.weight"), x, w, g)
    flat = gradients(made(name).linear("x.weight"), x.flatten(0, 1), w, g.flatten(0, 1))
    for one, other in zip(shaped, flat, strict=True):
        assert one.flatten(0, -2).equal(other)


@pytest.mark.parametrize("name", RECIPES)
def test_rows_of_zeros_behind_a_packed_row_change_nothing(name):
    """So a row may be padded to what the hardware needs."""
    recipe = made(name, fp8_amax_history_len=2)
    x, w, g = numbers(70, 64), numbers(96, 64, seed=1), numbers(70, 96, seed=2)
    more = -70 % recipe.row_multiple()
    assert more > 0
    plain = gradients(recipe.linear("x.weight"), x, w, g)
    padded = gradients(
        recipe.linear("x.weight"),
        *(torch.nn.functional.pad(t, (0, 0, 0, n)) for t, n in ((x, more), (w, 0), (g, more))),
    )
    assert padded[0][:70].equal(plain[0])
    assert padded[1][:70].equal(plain[1])
    assert torch.allclose(padded[2], plain[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_no_tokens_are_no_error(name):
    found = gradients(made(name).linear("x.weight"), torch.zeros(0, 64), numbers(96, 64), torch.zeros(0, 96))
    assert found[0].shape == (0, 96)
    assert not found[2].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", STATELESS)
def test_products_keep_the_dtype_of_their_factors(name, dtype):
    x, w, g = (t.to(dtype) for t in (numbers(70, 64), numbers(96, 64, seed=1), numbers(70, 96, seed=2)))
    found = gradients(made(name).linear("x.weight"), x, w, g)
    plain = gradients(made(name).linear("x.weight"), x.float(), w.float(), g.float())
    assert {t.dtype for t in found} == {dtype}
    for one, other in zip(found, plain, strict=True):
        assert error(one.float(), other) < 4e-3


@pytest.mark.parametrize("name", STATELESS)
def test_autocast_rounds_factors_before_they_are_quantised_and_decides_the_dtype(name):
    x, w, g = numbers(70, 64), numbers(96, 64, seed=1), numbers(70, 96, seed=2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(made(name).linear("x.weight"), x, w, g)
    plain = gradients(made(name).linear("x.weight"), x.bfloat16(), w.bfloat16(), g)
    assert found[0].equal(plain[0])
    assert found[1].dtype == found[2].dtype == torch.float32
    for ours, rounded in zip(found[1:], plain[1:], strict=True):
        assert ours.bfloat16().equal(rounded)
        assert not ours.equal(rounded.float()), "gradients of float32 numbers are not rounded"


@pytest.mark.parametrize("name", RECIPES)
def test_only_wanted_gradients_are_computed(name):
    x, w = numbers(70, 64), numbers(96, 64, seed=1).requires_grad_()
    made(name).linear("x.weight")(x, w).sum().backward()
    assert w.grad is not None
    x, w = x.requires_grad_(), w.detach()
    made(name).linear("x.weight")(x, w).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", STATELESS)
def test_the_trainer_computes_with_the_weights_that_are_stored_for_the_engine(name):
    recipe, weight_name = made(name), "model.layers.1.mlp.up_proj.weight"
    weight = numbers(200, 300).bfloat16()
    stored = recipe.restored(weight_name, recipe.stored(weight_name, weight))
    operands = recipe.linear(weight_name).operands
    assert operands.both("weight", weight)[0].restored().equal(stored)


@pytest.mark.parametrize("rowwise", [False, True], ids=["tensors", "rows"])
def test_torch_s_product_of_fp8_numbers_is_the_product_of_what_they_stand_for(rowwise):
    """The numbers and scales mean to torch's own FP8 product what they mean here."""
    x, w = numbers(48, 64), numbers(32, 64, seed=1)
    quantiser = Quantiser("e4m3", (1, None) if rowwise else (None, None))
    left, right = quantiser.quantise(x), quantiser.quantise(w)
    scales = (left.scales, right.scales.t()) if rowwise else (left.scales.view(()), right.scales.view(()))
    found = torch._scaled_mm(left.data, right.data.t(), *scales, out_dtype=torch.float32)
    assert error(found, left.restored() @ right.restored().t()) < 1e-6
    if not rowwise:
        assert error(found, made("tensorwise").linear("x.weight")(x, w)) < 1e-6
