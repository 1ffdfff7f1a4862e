"""Products by another library are the same products, with the same gradients, and as repeatable."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import linear as plain

from slime_core.tensors import matrix_products
from slime_core.tensors.matrix_products import linear, matmul, speed_up_products


def forget() -> None:
    for known in (matrix_products.onednn_is_faster, matrix_products._reads_transposed):
        known.cache_clear()


@pytest.fixture(autouse=True, params=["avx2", "avx2 avx512f"])
def onednn(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """As on processors of AMD, and for matrices of any size."""
    forget()
    monkeypatch.setattr(matrix_products, "_processor", lambda: f"vendor_id : AuthenticAMD\nflags : {request.param}")
    monkeypatch.setattr(matrix_products, "LEAST_OPERATIONS", 0)
    if not matrix_products.onednn_is_faster():
        pytest.skip("torch has no products of oneDNN here")
    yield
    forget()


@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (2, 5, 24), (0, 24), (2, 0, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_and_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    random = torch.Generator().manual_seed(0)
    given = [torch.randn(size, generator=random) for size in (shape, (40, 24), *([(40,)] if bias else []))]
    found, expected = ([t.clone().requires_grad_() for t in given] for _ in range(2))
    slope = torch.randn(*shape[:-1], 40, generator=random)
    outputs = linear(*found), plain(*expected)
    assert "_Linear" in str(outputs[0].grad_fn), "the other library was asked"
    for output in outputs:
        (output * slope).sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_matrix_is_read_as_it_lies_in_memory() -> None:
    left, right = torch.randn(6, 30), torch.randn(30, 20)
    torch.testing.assert_close(matmul(left, right), left @ right)
    torch.testing.assert_close(matmul(left, right.t().contiguous().t()), left @ right)


def test_a_weight_that_lies_transposed_is_onednns_where_that_is_faster(request: pytest.FixtureRequest) -> None:
    wide = "avx512f" in request.node.callspec.params["onednn"]
    x, weight = torch.randn(6, 30), torch.randn(20, 30)
    assert matrix_products._fits(x, weight)
    assert matrix_products._fits(torch.randn(6, 20), weight.t()) == wide


def test_training_gives_the_numbers_of_inference() -> None:
    x, weight = torch.randn(9, 24), torch.randn(40, 24)
    trained = linear(x, weight.clone().requires_grad_())
    with torch.inference_mode():
        assert torch.equal(linear(x, weight), trained)
    assert torch.equal(linear(x, weight), trained), "as well as beside a frozen weight"


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    x, weight, before = torch.randn(50, 192), torch.randn(640, 192), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append((linear(x, weight), matmul(x.t(), x), linear(x, weight).t() @ x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_copied_layer_uses_its_own_weight_and_other_precisions_are_torchs() -> None:
    layer = torch.nn.Linear(8, 6)
    assert speed_up_products(layer) == 1
    assert speed_up_products(layer) == 0, "once"
    copied, x = copy.deepcopy(layer), torch.randn(3, 8)
    with torch.no_grad():
        copied.weight.zero_()
        torch.testing.assert_close(copied(x), layer.bias.expand(3, 6))
        torch.testing.assert_close(layer(x), plain(x, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    exact = layer.double()
    assert torch.equal(exact(x.double()), plain(x.double(), exact.weight, exact.bias))
