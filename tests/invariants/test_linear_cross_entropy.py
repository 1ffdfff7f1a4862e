"""Chunked log-probabilities and entropies equal the full computation, for any later function, one chunk at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from slime_core.tensors.linear_cross_entropy import Head, token_log_probs

T, H, V = 11, 6, 17

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "log-probs": lambda lp, _: -lp.mean(),
    "a function of log-probs": lambda lp, _: (lp.exp() * torch.arange(T)).sum() + lp[2] ** 3,
    "entropy": lambda _, h: (h * torch.arange(T)).sum(),
    "both": lambda lp, h: (lp * h).sum() + h[3] ** 2,
}


@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 512, -1])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (1.0, 2.0), (0.3, 2.0)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_equal_those_of_full_logits(
    chunk: int, scale: float, softcap: float | None, temperature: float, with_bias: bool
) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((T, H), (V, H), (V,)))
    targets = torch.randint(V, (T,))
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    head = Head(weight, bias if with_bias else None, scale, softcap)

    logits = hidden @ weight.t() + (bias if with_bias else 0)
    logits = logits * scale
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    all_log_probs = (logits / temperature).log_softmax(-1)
    expected = all_log_probs[torch.arange(T), targets], -(all_log_probs.exp() * all_log_probs).sum(-1)

    for name, loss in LOSSES.items():
        found = token_log_probs(hidden, head, targets, temperature=temperature, entropy=True, chunk_size=chunk)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
        if "entropy" not in name and name != "both":  # not asking for it changes nothing else, to the last bit
            alone, none = token_log_probs(hidden, head, targets, temperature=temperature, chunk_size=chunk)
            assert none is None
            assert torch.equal(alone, found[0])
        wanted = torch.autograd.grad(loss(*expected), inputs, retain_graph=True)
        for a, b in zip(torch.autograd.grad(loss(*found), inputs), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 512, -1])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_no_rows_have_no_log_probs_and_gradients_of_nothing(chunk: int, entropy: bool, softcap: float | None) -> None:
    hidden, weight, bias = (torch.randn(*s, requires_grad=True) for s in ((0, H), (V, H), (V,)))
    head = Head(weight, bias, softcap=softcap)
    found, entropies = token_log_probs(
        hidden, head, torch.zeros(0, dtype=torch.int64), entropy=entropy, chunk_size=chunk
    )
    assert found.shape == (0,)
    assert (entropies is not None) == entropy
    (found if entropies is None else found + entropies).sum().backward()
    for leaf in (hidden, weight, bias):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden_dtype", [None, torch.float32])
@pytest.mark.parametrize(("scale", "softcap", "temperature"), [(1.0, None, 1.0), (0.3, None, 0.6), (0.3, 20.0, 0.6)])
def test_weights_in_half_precision_round_their_products_and_nothing_else(
    half: torch.dtype, hidden_dtype: torch.dtype | None, scale: float, softcap: float | None, temperature: float
) -> None:
    torch.manual_seed(0)
    rows, width, vocabulary = 64, 16, 300
    hidden = (3 * torch.randn(rows, width)).to(half).to(hidden_dtype or half).requires_grad_()
    weight, bias = (torch.randn(*size).to(half).requires_grad_() for size in ((vocabulary, width), (vocabulary,)))
    targets = torch.randint(vocabulary, (rows,))
    product = (hidden.to(half) @ weight.t()).detach()  # rounded: from here on all is float64 in the reference
    logits = product.double().requires_grad_()
    bias_64 = bias.detach().double().requires_grad_()
    scaled = (logits + bias_64) * scale
    scaled = softcap * torch.tanh(scaled / softcap) if softcap else scaled
    every = (scaled / temperature).log_softmax(-1)
    expected = every[torch.arange(rows), targets], -(every.exp() * every).sum(-1)
    expected[0].sum().backward()

    head = Head(weight, bias, scale, softcap)
    found = token_log_probs(hidden, head, targets, temperature=temperature, entropy=True, chunk_size=7, product=half)
    for values, right in zip(found, expected, strict=True):
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.double(), right, rtol=2e-6, atol=2e-5)
    found[0].sum().backward()
    unit = torch.finfo(half).eps
    wanted = {hidden: logits.grad @ weight.double(), weight: logits.grad.t() @ hidden.double(), bias: bias_64.grad}
    for parameter, gradient in wanted.items():
        assert parameter.grad is not None
        assert parameter.grad.dtype == parameter.dtype
        assert (parameter.grad - gradient).norm() < unit * gradient.norm()


def test_a_very_unlikely_token_has_a_finite_log_prob_and_a_sure_one_no_entropy() -> None:
    weight = torch.tensor([[300.0], [0.0]], requires_grad=True)
    log_probs, entropy = token_log_probs(torch.ones(1, 1), Head(weight), torch.tensor([1]), entropy=True)
    assert (log_probs.item(), entropy.item()) == (-300.0, 0.0)
    (log_probs + entropy).sum().backward()
    assert weight.grad.tolist() == [[-1.0], [1.0]]


def test_equal_logits_have_the_entropy_log_v() -> None:
    _, entropy = token_log_probs(torch.ones(3, 2), Head(torch.zeros(V, 2)), torch.zeros(3).long(), entropy=True)
    assert entropy.tolist() == pytest.approx([math.log(V)] * 3)


class Watch(TorchDispatchMode):
    """Remembers how many elements the largest tensor that any operation made had, and counts the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.calls = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
        return result


@pytest.mark.parametrize("entropy", [False, True])
def test_full_logits_never_exist(entropy: bool) -> None:
    rows, vocabulary, chunk = 64, 512, 8
    hidden, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(vocabulary, 4, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,))

    def run(chunk_size: int) -> None:
        found = token_log_probs(hidden, Head(weight), targets, entropy=entropy, chunk_size=chunk_size)
        sum(values.sum() for values in found if values is not None).backward()

    with Watch() as seen:
        run(chunk)
    assert seen.largest == chunk * vocabulary
    with Watch() as seen:  # negative control: in one chunk they do
        run(-1)
    assert seen.largest == rows * vocabulary


def test_entropy_takes_no_further_matrix_product_and_nothing_backward_when_it_is_only_measured() -> None:
    hidden, weight = torch.randn(8, 4, requires_grad=True), torch.randn(V, 4, requires_grad=True)
    targets = torch.randint(V, (8,))
    forward, backward = {}, {}
    for entropy in (False, True):
        with Watch() as forward[entropy]:
            log_probs, _ = token_log_probs(hidden, Head(weight), targets, entropy=entropy, chunk_size=4)
        with Watch() as backward[entropy]:
            torch.autograd.grad(log_probs.sum(), (hidden, weight))
    assert forward[True].calls["mm"] == forward[False].calls["mm"] == 2
    assert backward[True].calls == backward[False].calls
