"""The kernels of this device are compared with torch's operations on small random matrices, outputs and gradients. Called once by
who is about to use them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from slime_core.tensors.fused import gated, heads, norm, products
from slime_core.tensors.fused.launch import kernels_on
from slime_core.tensors.fused.rounded import RoundedWeights
from slime_core.tensors.linear_cross_entropy import Head, token_log_probs

_log = logging.getLogger(__name__)
LIMIT = 2.0**-7
"""The largest distance, by the largest number: two roundings to bfloat16, of which one may fall to the other side."""


@cache
def kernels_are_right(device: torch.device) -> bool:
    """Whether all kernels run on a device and give what torch's operations give. If not, the reason is logged."""
    try:
        for name, distance in distances(device):
            if not distance <= LIMIT:
                _log.warning("The fused kernel for %s is off by %.1e here; none of them is used.", name, distance)
                return False
    except Exception as error:  # a compiler that is missing raises whatever it likes
        _log.warning(
            "Fused kernels cannot run here, and layers compute without them: %s: %s", type(error).__name__, error
        )
        return False
    return True


def distances(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> list[tuple[str, float]]:
    """(a kernel's name, how far its outputs and gradients are from those of torch's operations on the CPU).

    Args:
        dtype: in place of bfloat16, for those that compute in others as well.
    """
    found = []
    for name, work, given in _cases(dtype):
        with kernels_on(device.type):
            mine = _outputs_and_gradients(work, [one.to(device) for one in given])
        with kernels_on():
            theirs = _outputs_and_gradients(work, given)
        found.append((name, max(map(_distance, mine, theirs))))
    return found


def _cases(half: torch.dtype) -> list[tuple[str, Callable[..., tuple[Tensor, ...]], list[Tensor]]]:
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int, dtype: torch.dtype = half) -> Tensor:
        return (
            torch.randn(*shape, generator=random).to(torch.bfloat16).to(dtype)
        )  # so that both forms are given the same

    wide = torch.float32
    layout = heads.Heads(6, 2, 32, 1e-6)
    angles = numbers(21, 32, dtype=wide)
    turned = [numbers(21, 10 * 32), angles.cos(), angles.sin()]

    def dtype_of(x: Tensor) -> torch.dtype:
        return x.dtype

    return [
        ("a norm", lambda x, w: (norm.rms_norm(x, w, 1e-6, x.dtype),), [numbers(37, 80), numbers(80, dtype=wide)]),
        (
            "what is read and normed",
            lambda x, w: norm.and_rms_norm(x, w, 1e-6, half),
            [numbers(37, 80, dtype=wide), numbers(80, dtype=wide)],
        ),
        (
            "an addition and a norm",
            lambda x, d, w: norm.add_rms_norm(x, d, w, 1e-6, dtype_of(d)),
            [numbers(37, 80, dtype=wide), numbers(37, 80), numbers(80, dtype=wide)],
        ),
        (
            "heads",
            lambda x, c, s, q, k: heads.queries_keys_values(x, c.detach(), s.detach(), q, k, layout),
            [*turned, numbers(32, dtype=wide), numbers(32, dtype=wide)],
        ),
        (
            "heads without norms",
            lambda x, c, s: heads.queries_keys_values(x, c.detach(), s.detach(), None, None, layout),
            turned,
        ),
        (
            "queries and keys alone",
            lambda x, y, c, s, v, w: heads.queries_keys(x, y, c.detach(), s.detach(), v, w, layout),
            [numbers(21, 6 * 32), numbers(21, 2 * 32), *turned[1:], numbers(32, dtype=wide), numbers(32, dtype=wide)],
        ),
        ("a gate and another matrix", lambda x, y: (gated.gated_of(x, y),), [numbers(19, 70), numbers(19, 70)]),
        ("a gated activation", lambda x: (gated.gated(x),), [numbers(19, 2 * 70)]),
        (
            "a linear layer",
            lambda x, w: (products.products(x, RoundedWeights(x.dtype), [w]),),
            [numbers(40, 48), numbers(24, 48, dtype=wide)],
        ),
        *(
            (
                f"log-probs{' and entropies' * entropy}",
                _log_probs(entropy),
                [numbers(11, 32) / 4, numbers(300, 32, dtype=wide)],
            )
            for entropy in (False, True)
        ),
    ]


def _log_probs(entropy: bool) -> Callable[..., tuple[Tensor, ...]]:
    def work(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        targets = torch.arange(len(hidden), device=hidden.device) * 27
        found = token_log_probs(hidden, Head(weight, scale=0.7, fused=True), targets, entropy=entropy, chunk_size=4)
        return tuple(part for part in found if part is not None)

    return work


def _outputs_and_gradients(work: Callable[..., tuple[Tensor, ...]], given: list[Tensor]) -> list[Tensor]:
    leaves = [one.detach().clone().requires_grad_(one.is_floating_point()) for one in given]
    outputs = work(*leaves)
    random = torch.Generator().manual_seed(1)
    loss: Any = sum(
        (out * torch.randn(out.shape, generator=random).to(torch.bfloat16).to(out)).float().sum() for out in outputs
    )
    loss.backward()
    return [*outputs, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _distance(mine: Tensor, theirs: Tensor) -> float:
    mine, theirs = mine.detach().cpu().double(), theirs.detach().cpu().double()
    return float((mine - theirs).abs().max() / theirs.abs().max())
