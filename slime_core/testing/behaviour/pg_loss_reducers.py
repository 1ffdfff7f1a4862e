"""Checks of reducers of the policy loss. They need torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from slime_core.contracts.results import shape_of
from slime_core.testing.behaviour.losses import CUTS, WHOLE
from slime_core.testing.subject import Check, Subject

if TYPE_CHECKING:
    from torch import Tensor

    Reducer = Callable[[Tensor], Tensor]

_MASKS = ([1, 1, 0, 1], [1, 0, 1, 1, 1], [1], [0, 1, 1])


def makes_one_number(subject: Subject[Reducer]) -> None:
    """makes one finite number of the losses of tokens, from which trained tokens get gradients and others none"""
    import torch

    for per_token in (False, True):
        losses = _losses(range(len(_MASKS))).requires_grad_()
        total = _reduced(subject, range(len(_MASKS)), losses, per_token)
        subject.expect(
            getattr(total, "shape", None) == () and bool(total.isfinite()) and total.requires_grad,
            f"it made {shape_of(total)} of the losses of tokens; expected one finite number that is computed from them without detach.",
        )
        (slopes,) = torch.autograd.grad(total, losses)
        trained = torch.tensor([bool(one) for mask in _MASKS for one in mask])
        subject.expect(
            bool(slopes[trained].all()) and not bool(slopes[~trained].any()),
            "tokens whose loss_mask is 0 get a gradient, or trained ones get none; multiply losses by loss_masks.",
        )


def does_not_depend_on_the_cut(subject: Subject[Reducer]) -> None:
    """sums to the same number however the batch is cut into micro-batches"""
    import torch

    for per_token in (False, True):
        expected = _over_cut(subject, WHOLE, per_token)
        for cut in CUTS:
            subject.expect(
                torch.allclose(_over_cut(subject, cut, per_token), expected, rtol=1e-9, atol=1e-12),
                f"its sum differs between one micro-batch and {len(cut)} of them; add up what each sample gives, and divide by "
                "nothing that depends on which samples come together: the core divides by what the global batch has.",
            )


def _losses(samples: Sequence[int]) -> Tensor:
    import torch

    return torch.tensor([0.3 + s + t / 7 for s in samples for t in range(len(_MASKS[s]))], dtype=torch.float64)


def _reduced(subject: Subject[Reducer], samples: Sequence[int], losses: Tensor, per_token: bool) -> Tensor:
    subject.need("torch")
    import torch

    masks = [torch.tensor(_MASKS[s], dtype=torch.float64) for s in samples]
    lengths = [len(mask) for mask in masks]
    return subject.call([2 + n for n in lengths], lengths, masks, per_token)(losses)


def _over_cut(subject: Subject[Reducer], cut: Sequence[Sequence[int]], per_token: bool) -> Tensor:
    parts = [_reduced(subject, samples, _losses(samples), per_token) for samples in cut]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


PG_LOSS_REDUCER: list[Check] = [makes_one_number, does_not_depend_on_the_cut]
