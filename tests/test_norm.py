"""The norm of a gradient is exact, however many parameters there are."""

from __future__ import annotations

import math

import pytest
import torch

from slime_core.tensors.norm import squares_of


@pytest.mark.parametrize("tensors", [[], [torch.tensor(3.0)], [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]])
def test_it_is_that_of_all_numbers_together(tensors: list[torch.Tensor]) -> None:
    assert squares_of(tensors).item() == sum((tensor**2).sum().item() for tensor in tensors)


def test_many_numbers_of_different_sizes_lose_nothing() -> None:
    numbers = torch.randn(6_000_000, generator=torch.Generator().manual_seed(0))
    numbers[::3] *= 50
    expected = numbers.double().norm().item()
    assert math.sqrt(squares_of([numbers]).item()) == pytest.approx(expected, rel=3e-8)
    assert torch.linalg.vector_norm(numbers).item() != pytest.approx(expected, rel=1e-6), "torch loses something"


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_squares_that_float32_cannot_hold_are_added_up_all_the_same(size: float) -> None:
    found = squares_of([torch.full((5000,), size)]).item()
    assert found == pytest.approx(5000 * torch.tensor(size).item() ** 2, rel=1e-6)


def test_it_is_nan_or_infinite_if_a_number_is() -> None:
    for bad in (math.nan, math.inf):
        found = squares_of([torch.ones(3), torch.tensor([1.0, bad])]).item()
        assert str(abs(found)) == str(bad)
