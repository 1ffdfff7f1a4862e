"""The reference quantiser gives the bytes of torchao and compressed-tensors."""

from __future__ import annotations

import json

import pytest
import torch
from fp8_cases import differing
from fp8_libraries import COMPARED, FILE, digest, matrices, of_library
from torch import Tensor

from slime_fp8.quantise import Quantiser
from slime_fp8.scales import e8m0_scales

VECTORS = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", COMPARED)
def test_numbers_and_scales_are_those_that_a_library_made(name):
    def ours(matrix: Tensor) -> tuple[Tensor, Tensor]:
        made = COMPARED[name][1].quantise(matrix)
        return made.data, made.scales

    found = digest(name, ours)
    assert found["inputs"] == VECTORS[name]["inputs"], "torch makes other random numbers; write the vectors anew"
    assert found == VECTORS[name]


@pytest.mark.parametrize("name", COMPARED)
def test_the_vectors_are_what_the_library_makes(name):
    pytest.importorskip(name.split()[0].replace("-", "_"))
    assert of_library(name) == VECTORS[name]


def test_a_product_and_a_quotient_differ_by_a_unit_in_the_last_place_of_scales_and_in_one_number_of_a_million():
    different = count = 0
    for block in ((128, 128), (1, None), (None, None)):
        for matrix in matrices("compressed-tensors block"):
            product = Quantiser("e4m3", block).quantise(matrix)
            quotient = Quantiser("e4m3", block, "quotient").quantise(matrix)
            assert ((product.scales / quotient.scales - 1).abs() <= 2.0**-22).all()
            different, count = different + differing(product.data, quotient.data), count + matrix.numel()
    assert different <= 4 < count / 1e5


def test_mxfp8_differs_from_torchao_where_its_logarithm_is_off():
    config = pytest.importorskip("torchao.prototype.mx_formats.config")
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    for power in range(-100, 100, 7):
        matrix = torch.zeros(1, 32)
        matrix[0, 0] = torch.nextafter(torch.tensor(448 * 2.0**power), torch.tensor(float("inf")))
        scales, _ = to_mx(matrix, torch.float8_e4m3fn, 32, config.ScaleCalculationMode.RCEIL)
        ours = Quantiser("e4m3", (1, 32), "e8m0").quantise(matrix)
        assert e8m0_scales(ours.scales).item() == 2.0 ** (power + 1), "else the largest number would be cut off"
        assert scales.view(torch.uint8).item() in (127 + power, 128 + power)
