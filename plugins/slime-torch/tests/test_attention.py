"""Packed attention equals the attention of every sequence alone, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slime_core.tensors.packed_rows import Segments
from slime_torch.attention import packed_attention

LENGTHS = (5, 1, 9, 3)


def written_out(q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None, cap: float | None) -> Tensor:
    """(1, N, heads, D) from the dense scores of all N tokens, everything outside segment, past and window removed."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    segment = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).to(q.device)
    position = torch.arange(q.shape[2], device=q.device)
    distance = position[:, None] - position
    seen = (segment[:, None] == segment) & (distance >= 0)
    if window is not None:
        seen &= distance < window
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scaling
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bhkd->bqhd", weights, v)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_packed_attention_and_its_gradients_equal_the_formula(
    window: int | None, cap: float | None, key_heads: int
) -> None:
    torch.manual_seed(0)
    n = sum(LENGTHS)
    q = torch.randn(1, n, 4, 8, dtype=torch.float64).transpose(1, 2).requires_grad_()
    k, v = (torch.randn(1, key_heads, n, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    segments = Segments.of([(length,) for length in LENGTHS])
    found, _ = packed_attention(
        torch.nn.Module(), q, k, v, None, scaling=0.7, sliding_window=window, softcap=cap, segments=segments
    )
    expected = written_out(q, k, v, 0.7, window, cap)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    found_grads = torch.autograd.grad(found, (q, k, v), grad)
    for a, b in zip(found_grads, torch.autograd.grad(expected, (q, k, v), grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 3])
def test_the_variable_length_kernel_equals_the_formula(window: int | None) -> None:
    torch.manual_seed(0)
    n = sum(LENGTHS)
    q, k, v = (torch.randn(1, h, n, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (4, 2, 2))
    segments = Segments.of([(length,) for length in LENGTHS], "cuda")
    found, _ = packed_attention(torch.nn.Module(), q, k, v, None, scaling=0.2, sliding_window=window, segments=segments)
    expected = written_out(*(t.float() for t in (q, k, v)), 0.2, window, None)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
    grad = torch.randn_like(expected)
    found_grads = torch.autograd.grad(found, (q, k, v), grad.bfloat16())
    for a, b in zip(found_grads, torch.autograd.grad(expected, (q, k, v), grad), strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=0.05, atol=0.05)


def _of_torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    """torch's function of that version, by the formula: it takes grouped heads as they are."""
    q, k, v = (t.transpose(0, 1)[None] for t in (query, key, value))
    return written_out(q, k, v, scale, None if window_size[0] == -1 else window_size[0] + 1, None)[0]


def _of_torch_2_13(query, key, value, *given, enable_gqa=False, **named):
    """torch's function of that version, which refuses grouped heads of which it is not told."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    return _of_torch_2_11(query, key, value, *given, **named)


@pytest.mark.parametrize("kernel", [_of_torch_2_11, _of_torch_2_13])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_the_kernel_is_called_as_the_installed_torch_takes_it(monkeypatch, kernel, key_heads: int) -> None:
    from torch.nn.attention import varlen

    from slime_torch import attention

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_varlen_kernel_fits", lambda *_: attention._has_varlen())
    attention._varlen_options.cache_clear()
    n = sum(LENGTHS)
    q, k, v = (torch.randn(1, heads, n, 8, dtype=torch.float64) for heads in (4, key_heads, key_heads))
    segments = Segments.of([(length,) for length in LENGTHS])
    found, _ = packed_attention(torch.nn.Module(), q, k, v, None, scaling=0.7, sliding_window=3, segments=segments)
    attention._varlen_options.cache_clear()
    torch.testing.assert_close(found, written_out(q, k, v, 0.7, 3, None), rtol=1e-12, atol=1e-12)
