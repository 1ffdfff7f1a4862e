"""Checks of advantage estimators. They need torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_core.contracts.loss import what_reads
from slime_core.testing.advantage_inputs import LENGTHS, REWARDS, advantage_inputs
from slime_core.testing.subject import Check, Subject

if TYPE_CHECKING:
    from torch import Tensor

OPTIONAL = {"log_probs": "old_log_probs", "ref_log_probs": "ref_log_probs", "values": "values"}
"""Fields of the inputs and the names under which `slime_core.contracts.loss.reads` declares them."""


def estimates_every_token(subject: Subject[AdvantageOutputs]) -> None:
    """returns one finite advantage for each response token, and as many returns if any"""
    for final in (False, True):
        _estimate(subject, _made(subject, rewards_are_final=final))


def copes_with_little(subject: Subject[AdvantageOutputs]) -> None:
    """copes with equal rewards, single samples, and samples without a trained token"""
    for given in (
        _made(subject, rewards=[[1.0, 1.0], [0.0, 0.0, 0.0]]),
        _made(subject, rewards=[[1.0]]),
        _made(subject, rewards=[[1.0, 0.0], [1.0, 1.0]], lengths=[[0, 2], [3, 1]]),
        _made(subject, masked=[0, 4, 5, 6]),
    ):
        _estimate(subject, given)


def does_not_depend_on_the_order(subject: Subject[AdvantageOutputs]) -> None:
    """gives a sample the same advantages wherever its group stands in the rollout"""
    import torch

    forwards = _estimate(subject, _made(subject)).advantages
    backwards = _estimate(subject, _backwards(_made(subject))).advantages
    subject.expect(
        torch.allclose(forwards, torch.cat(_by_group(backwards, LENGTHS[::-1])[::-1]), rtol=1e-9, atol=1e-12),
        "with the groups in the opposite order the same samples get other advantages; tell groups and samples apart by "
        "inputs.group_index and inputs.sample_index alone.",
    )


def leaves_inputs_alone(subject: Subject[AdvantageOutputs]) -> None:
    """does not change its inputs"""
    import torch

    inputs = _made(subject)
    before = {name: value.clone() for name, value in _tensors(inputs).items()}
    _estimate(subject, inputs)
    for name, value in _tensors(inputs).items():
        subject.expect(
            torch.equal(value, before[name]), f"it changed inputs.{name} in place; make a new tensor instead."
        )


def _made(subject: Subject[AdvantageOutputs], **how: Any) -> AdvantageInputs:
    """Return inputs with what the estimator declares that it reads; the other optional fields are None."""
    subject.need("torch")
    declared = what_reads(subject.target, subject.args)
    unread = {field: None for field, name in OPTIONAL.items() if name not in declared}
    return dataclasses.replace(advantage_inputs(**how), **unread)  # type: ignore[arg-type]


def _estimate(subject: Subject[AdvantageOutputs], inputs: AdvantageInputs) -> AdvantageOutputs:
    with subject.lacking([name for field, name in OPTIONAL.items() if getattr(inputs, field) is None]):
        return subject.call(subject.args, inputs)


def _backwards(inputs: AdvantageInputs) -> AdvantageInputs:
    """Return the rollout `inputs`, as `_made(subject)` gives it, with its groups in the opposite order."""
    import torch

    turned = {
        name: None if value is None else torch.cat(_by_group(value, LENGTHS)[::-1])
        for name, value in ((name, getattr(inputs, name)) for name in ("loss_mask", *OPTIONAL))
    }
    return dataclasses.replace(advantage_inputs(REWARDS[::-1], LENGTHS[::-1]), **turned)  # type: ignore[arg-type]


def _by_group(values: Tensor, lengths: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return per-token values, cut where groups end; `lengths` are those of the samples of each group."""
    return list(values.split([sum(group) for group in lengths]))  # type: ignore[no-untyped-call]  # torch says no type


def _tensors(inputs: AdvantageInputs) -> dict[str, Tensor]:
    fields = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    return {name: value for name, value in fields.items() if value is not None and name != "rewards_are_final"}


ADVANTAGE: list[Check] = [
    estimates_every_token,
    copes_with_little,
    does_not_depend_on_the_order,
    leaves_inputs_alone,
]
