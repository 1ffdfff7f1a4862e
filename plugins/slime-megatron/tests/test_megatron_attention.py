"""Attention with soft caps and windows rounds in half precision what its products are of, and no score."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("megatron.core")

from slime_megatron.modules import PackedCoreAttention


@pytest.mark.parametrize(("soft_cap", "window"), [(50.0, None), (None, 40), (20.0, 40)])
def test_half_precision_is_no_further_from_the_truth_than_its_products_and_weights_are(
    soft_cap: float | None, window: int | None
) -> None:
    torch.manual_seed(0)
    query, key, value = (2 * torch.randn(200, heads, 64).bfloat16() for heads in (4, 2, 2))
    attention = SimpleNamespace(soft_cap=soft_cap, window=window, _scale=None)
    found = PackedCoreAttention._attend(attention, query, key, value, None)
    exact = PackedCoreAttention._attend(attention, query.double(), key.double(), value.double(), None)
    assert found.dtype == torch.bfloat16
    assert (
        found.double() - exact
    ).norm() < 0.008 * exact.norm()  # scores in bfloat16: 0.0104 and 0.0144 with a soft cap
