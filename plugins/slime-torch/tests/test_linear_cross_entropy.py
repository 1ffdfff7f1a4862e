"""Chunked log-probabilities equal the full computation, for any later function of them, and keep one chunk alive."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from slime_torch.linear_cross_entropy import Head, token_log_probs

T, H, V = 11, 6, 17


@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 512, -1])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (1.0, 2.0), (0.3, 2.0)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_equal_log_softmax_of_full_logits(
    chunk: int, scale: float, softcap: float | None, with_bias: bool
) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((T, H), (V, H), (V,)))
    targets = torch.randint(V, (T,))
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)

    logits = hidden @ weight.t() + (bias if with_bias else 0)
    logits = logits * scale
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    expected = logits.log_softmax(-1)[torch.arange(T), targets]
    found = token_log_probs(hidden, Head(weight, bias if with_bias else None, scale, softcap), targets, chunk)

    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    for loss in (lambda lp: -lp.mean(), lambda lp: (lp.exp() * torch.arange(T)).sum() + lp[2] ** 3):
        wanted = torch.autograd.grad(loss(expected), inputs, retain_graph=True)
        found = token_log_probs(hidden, Head(weight, bias if with_bias else None, scale, softcap), targets, chunk)
        for a, b in zip(torch.autograd.grad(loss(found), inputs), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_very_unlikely_token_has_a_finite_log_prob() -> None:
    head = Head(torch.tensor([[300.0], [0.0]]))
    assert token_log_probs(torch.ones(1, 1), head, torch.tensor([1])).item() == -300.0


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor that any operation made had."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
        return result


def test_full_logits_never_exist() -> None:
    rows, vocabulary, chunk = 64, 512, 8
    hidden, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(vocabulary, 4, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,))
    with LargestTensor() as seen:
        token_log_probs(hidden, Head(weight), targets, chunk).sum().backward()
    assert seen.largest == chunk * vocabulary
    with LargestTensor() as seen:  # negative control: in one chunk they do
        token_log_probs(hidden, Head(weight), targets, -1).sum().backward()
    assert seen.largest == rows * vocabulary
