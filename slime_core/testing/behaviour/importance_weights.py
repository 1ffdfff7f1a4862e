"""Checks of corrections for the difference between engine and trainer. They need torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slime_core.contracts.loss import LossInputs
from slime_core.testing.behaviour.losses import CUTS, WHOLE, expect_unchanged
from slime_core.testing.inputs import loss_inputs
from slime_core.testing.subject import Check, Subject

if TYPE_CHECKING:
    from torch import Tensor

    Weights = tuple[Tensor, dict[str, Tensor]] | tuple[Tensor, dict[str, Tensor], Tensor]


def weighs_every_token(subject: Subject[Weights]) -> None:
    """returns a finite weight of at least 0 for each token, and metrics that are detached scalars"""
    weights, metrics = _call(subject, _made(subject)[0])
    subject.expect(
        bool(weights.isfinite().all()) and bool((weights >= 0).all()),
        f"its weights lie between {weights.min().item()} and {weights.max().item()}; expected finite ones, not below "
        "0.",
    )
    for name, value in metrics.items():
        subject.expect(
            getattr(value, "shape", None) == () and not value.requires_grad and bool(value.isfinite()),
            f"its metric {name!r} is {value!r}; expected a finite scalar tensor: inputs.measured(values).",
        )


def corrects_nothing_without_a_difference(subject: Subject[Weights]) -> None:
    """weighs every trained token with 1 where engine and trainer agree"""
    import torch

    inputs = _made(subject)[0]
    weights, _ = _call(subject, dataclasses.replace(inputs, rollout_log_probs=inputs.old_log_probs))
    trained = weights[inputs.loss_mask > 0]
    subject.expect(
        torch.allclose(trained, torch.ones_like(trained), atol=1e-6),
        f"with rollout_log_probs equal to old_log_probs its weights are {trained.tolist()[:4]}…; expected 1 for each.",
    )


def does_not_depend_on_the_cut(subject: Subject[Weights]) -> None:
    """gives the same weights and metrics however the batch is cut into micro-batches"""
    import torch

    expected = _over_cut(subject, WHOLE)
    for cut in CUTS:
        for name, value in _over_cut(subject, cut).items():
            subject.expect(
                torch.allclose(value, expected[name], rtol=1e-9, atol=1e-12),
                f"its {name} differ between one micro-batch and {len(cut)} of them; use nothing that depends on which "
                "samples come together, and make metrics with inputs.measured(values).",
            )


def leaves_inputs_alone(subject: Subject[Weights]) -> None:
    """does not change its inputs"""
    inputs = _made(subject)[0]
    expect_unchanged(subject, inputs, lambda: _call(subject, inputs))


def _made(subject: Subject[Weights], **how: Any) -> list[LossInputs]:
    subject.need("torch")
    return loss_inputs(**how)


def _call(subject: Subject[Weights], inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weights, 0 where a token is rejected, and the metrics."""
    weights, metrics, *kept = subject.call(subject.args, inputs)
    return weights * kept[0] if kept else weights, metrics


def _over_cut(subject: Subject[Weights], cut: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return the weights, sample after sample, and the metrics, summed over micro-batches."""
    import torch

    weights: dict[int, Tensor] = {}
    totals: dict[str, Tensor] = {}
    for samples, inputs in zip(cut, _made(subject, micro_batches=cut), strict=True):
        given, metrics = _call(subject, inputs)
        for position, sample in enumerate(samples):
            weights[sample] = given[inputs.sample_index == position]
        for name, value in metrics.items():
            totals[f"metrics {name!r}"] = totals.get(f"metrics {name!r}", torch.zeros(())) + value
    return {"weights": torch.cat([weights[sample] for sample in sorted(weights)]), **totals}


IMPORTANCE_WEIGHT: list[Check] = [
    weighs_every_token,
    corrects_nothing_without_a_difference,
    does_not_depend_on_the_cut,
    leaves_inputs_alone,
]
