"""Products by the arithmetic of a GPU. On a CPU torch has those with one scale for each tensor; of the others the sizes and the order
of the scales are checked here, and `python -m benchmarks.fp8` compares their numbers on a GPU."""

from __future__ import annotations

import pytest
import torch
from fp8_cases import error, made, numbers
from torch.nn.functional import ScalingType, SwizzleType

from slime_core.contracts.precision import Hardware
from slime_core.errors import ArgumentError
from slime_fp8.fused import BY_TORCH
from slime_fp8.linear import QuantisedLinear, RememberingLinear, emulated
from slime_fp8.quantise import Quantiser
from slime_fp8.scaled_mm import in_tiles, layout, padded, scaled_product

H200, B200 = Hardware("H200", (9, 0), (12, 9)), Hardware("B200", (10, 0), (13, 0))
CPU = Hardware("CPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 64, 32), (7, 33, 5), (1, 1, 1), (0, 64, 32), (16, 0, 32), (16, 64, 0)])
@pytest.mark.parametrize("formats", [("e4m3", "e4m3"), ("e5m2", "e4m3")])
def test_a_product_with_one_scale_for_each_tensor_is_the_emulated_one(shape, formats, dtype):
    rows, summed, columns = shape
    left = Quantiser(formats[0]).quantise(numbers(rows, summed))
    right = Quantiser(formats[1]).quantise(numbers(columns, summed, seed=1)).t()
    found, expected = scaled_product(left, right, dtype), emulated(left, right, torch.float32)
    assert (found.dtype, found.shape) == (dtype, (rows, columns))
    if expected.numel() and summed:
        assert error(found.float(), expected) < (1e-6 if dtype == torch.float32 else 4e-3)
    else:
        assert not found.any()


@pytest.mark.parametrize("format", ["e4m3", "hybrid"])
@pytest.mark.parametrize("name", ["tensorwise", "delayed"])
def test_all_three_products_of_a_layer_are_those_of_its_emulation(name, format):
    """So what differs between a GPU's arithmetic and the emulation is the order of sums."""
    recipe = made(name, fp8_format=format)
    fast = type(recipe.linear("x.weight"))(recipe.operands(), BY_TORCH)
    assert isinstance(fast, RememberingLinear if name == "delayed" else QuantisedLinear)
    results = []
    for product in (fast, recipe.linear("x.weight")):
        for _ in range(2):
            x, w = numbers(70, 40).requires_grad_(), numbers(24, 40, seed=1).requires_grad_()
            y = product(x, w)
            y.backward(numbers(70, 24, seed=2) * 1e-3)
            if isinstance(product, RememberingLinear):
                product.end_step(lambda values: values)
        results.append((y.detach(), x.grad, w.grad))
    for ours, theirs in zip(*results, strict=True):
        assert error(ours, theirs) < 1e-6


@pytest.mark.parametrize("name", ["blockwise", "mxfp8"])
def test_a_product_of_two_single_blocks_is_one_with_one_scale_for_each_tensor(name):
    operands = made(name).operands()
    left, right = operands.both("input", numbers(1, 20))[0], operands.both("weight", numbers(1, 20, seed=1))[0]
    found = scaled_product(left, right.t(), torch.float32)
    assert error(found, emulated(left, right.t(), torch.float32)) < 1e-6


@pytest.mark.parametrize("block", [(1, 128), (128, 128), (1, 32), (None, None)])
@pytest.mark.parametrize("shape", [(130, 200), (16, 128), (1, 1), (300, 520)])
def test_filling_up_changes_no_number_and_gives_whole_blocks(block, shape):
    quantiser = Quantiser("e4m3", block, "e8m0" if block == (1, 32) else "float32")
    before = quantiser.quantise(numbers(*shape))
    after = padded(before, block == (None, None))
    assert all(extent % 16 == 0 for extent in after.data.shape)
    assert after.data.is_contiguous()
    whole = torch.zeros(after.data.shape)
    whole[: shape[0], : shape[1]] = before.restored()
    assert after.restored().equal(whole)
    if block != (None, None):
        assert [e % b for e, b in zip(after.data.shape, block, strict=True)] == [0, 0]
        assert after.scales.shape == tuple(e // b for e, b in zip(after.data.shape, block, strict=True))


def test_scales_of_lines_of_128_lie_column_by_column():
    matrix = padded(Quantiser("e4m3", (1, 128)).quantise(numbers(48, 384)), False)
    kind, scales, swizzle = layout(matrix, False)
    assert (kind, swizzle) == (ScalingType.BlockWise1x128, SwizzleType.NO_SWIZZLE)
    assert (scales.shape, scales.stride()) == ((48, 3), (1, 48))
    assert scales.equal(matrix.scales)


@pytest.mark.parametrize("blocks", [3, 4, 5])
def test_scales_of_squares_of_128_are_transposed_and_filled_up_to_a_multiple_of_four(blocks):
    matrix = padded(Quantiser("e4m3", (128, 128)).quantise(numbers(256, 128 * blocks)), False)
    kind, scales, _ = layout(matrix, False)
    filled = -(-blocks // 4) * 4
    assert kind == ScalingType.BlockWise128x128
    assert (scales.shape, scales.stride()) == ((filled, 2), (1, filled))
    assert scales[:blocks].equal(matrix.scales.t())


@pytest.mark.parametrize("shape", [(128, 4), (256, 12), (130, 5), (16, 1)])
def test_scales_of_mxfp8_lie_in_tiles(shape):
    scales = torch.randint(1, 255, shape, dtype=torch.uint8)
    found = in_tiles(scales)
    across = -(-shape[1] // 4)
    assert found.numel() == -(-shape[0] // 128) * across * 512
    for row in range(shape[0]):
        for column in range(shape[1]):
            tile = (row // 128) * across + column // 4
            assert found[tile * 512 + (row % 32) * 16 + (row % 128) // 32 * 4 + column % 4] == scales[row, column]


def test_blocks_that_torch_has_no_product_for_are_an_error():
    with pytest.raises(ValueError, match="no FP8 product for blocks of 1 × 64"):
        layout(padded(Quantiser("e4m3", (1, 64)).quantise(numbers(16, 128)), False), False)


@pytest.mark.parametrize(
    ("name", "format", "hardware", "why"),
    [
        *((name, "e4m3", CPU, "CPU has no FP8 arithmetic") for name in ("tensorwise", "delayed", "blockwise", "mxfp8")),
        ("mxfp8", "e4m3", H200, "H200 has 9.0"),
        ("blockwise", "e4m3", B200, "torch multiplies blocks of 128 on Hopper alone, not on B200"),
        ("blockwise", "hybrid", H200, "in e4m3 alone, not --fp8-format hybrid"),
        ("blockwise", "e4m3", Hardware("H200", (9, 0), (12, 6)), "needs CUDA 12.9 or newer"),
        ("tensorwise", "e4m3", Hardware("A100", (8, 0), (12, 9)), "A100 has 8.0"),
    ],
)
def test_products_that_hardware_cannot_compute_are_refused_with_what_would_do(name, format, hardware, why):
    with pytest.raises(ArgumentError, match=f"--fp8-recipe {name}: .*{why}.*Give --fp8-emulation"):
        made(name, fp8_format=format).hardware_linear("x.weight", hardware)


@pytest.mark.parametrize(
    ("name", "hardware"), [("tensorwise", H200), ("delayed", B200), ("blockwise", H200), ("mxfp8", B200)]
)
def test_hardware_that_can_gets_products_of_its_own(name, hardware):
    product = made(name).hardware_linear("x.weight", hardware)
    assert product.arithmetic is BY_TORCH, "there is no GPU for the kernels here"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["tensorwise", "delayed", "blockwise", "mxfp8"])
def test_on_a_gpu_products_are_those_of_the_emulation(name):
    from slime_core.runtime.hardware import hardware_of

    recipe, hardware = made(name), hardware_of(torch.device("cuda"))
    if recipe.refusal(hardware) or recipe.torch_refusal(hardware):
        pytest.skip(recipe.refusal(hardware) or recipe.torch_refusal(hardware))
    results = []
    for product in (recipe.hardware_linear("x.weight", hardware), recipe.linear("x.weight")):
        product.to("cuda")
        x, w = numbers(200, 260).cuda().requires_grad_(), numbers(136, 260, seed=1).cuda().requires_grad_()
        y = product(x, w)
        y.backward(numbers(200, 136, seed=2).cuda())
        results.append((y.detach(), x.grad, w.grad))
    for ours, theirs in zip(*results, strict=True):
        assert error(ours, theirs) < 1e-3  # tensor cores sum FP8 products with 14 bits of fraction
