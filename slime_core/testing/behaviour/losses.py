"""Checks of losses. They need torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from slime_core.contracts.loss import READS, LossInputs, LossOutputs, may_skip_zero_advantage, what_reads
from slime_core.testing.inputs import loss_inputs
from slime_core.testing.subject import Check, Subject

if TYPE_CHECKING:
    from torch import Tensor

WHOLE = ((0, 1, 2, 3),)
CUTS = (((0,), (1,), (2,), (3,)), ((0, 3), (1, 2)), ((0, 1, 2), (3,)))


def returns_a_scalar(subject: Subject[LossOutputs]) -> None:
    """returns a finite scalar, and metrics that are detached scalars"""
    outputs = _call(subject, _made(subject)[0])
    shape = tuple(outputs.loss.shape)
    subject.expect(
        shape == (), f"its loss has the shape {shape}; expected one number, made with inputs.reduce(values)."
    )
    subject.expect(bool(outputs.loss.isfinite()), f"its loss is {outputs.loss.item()}; expected a finite number.")
    for name, value in outputs.metrics.items():
        subject.expect(
            getattr(value, "shape", None) == () and not value.requires_grad and bool(value.isfinite()),
            f"its metric {name!r} is {value!r}; expected a finite scalar tensor: inputs.reduce(values.detach()).",
        )


def passes_gradients(subject: Subject[LossOutputs]) -> None:
    """passes finite gradients to the log-probs of trained tokens"""
    inputs = _made(subject)[0]
    gradient = _gradient(subject, inputs)
    subject.expect(bool(gradient.isfinite().all()), "some of its gradients are NaN or Inf for ordinary inputs.")
    subject.expect(
        bool(gradient[inputs.loss_mask > 0].any()),
        "its gradient is 0 for every trained token, so nothing would be learnt; do not detach inputs.log_probs.",
    )


def ignores_masked_tokens(subject: Subject[LossOutputs]) -> None:
    """gives masked tokens no gradient"""
    for per_token in (False, True):
        inputs = _made(subject, per_token=per_token)[0]
        gradient = _gradient(subject, inputs)
        subject.expect(
            not gradient[inputs.loss_mask == 0].any(),
            "tokens whose loss_mask is 0 get a gradient; average with inputs.reduce(values), which leaves them out, "
            "instead of mean() or sum().",
        )


def does_not_depend_on_the_cut(subject: Subject[LossOutputs]) -> None:
    """sums to the same loss, metrics and gradients however the batch is cut into micro-batches"""
    import torch

    for per_token in (False, True):
        expected = _summed(subject, WHOLE, per_token)
        for cut in CUTS:
            for name, value in _summed(subject, cut, per_token).items():
                subject.expect(
                    torch.allclose(value, expected[name], rtol=1e-9, atol=1e-12),
                    f"its {name} differs between one micro-batch and {len(cut)} of them; average over tokens with "
                    "inputs.reduce(values) alone, which knows the whole batch, and use nothing else that depends on "
                    "which samples come together.",
                )


def takes_an_empty_micro_batch(subject: Subject[LossOutputs]) -> None:
    """costs 0 for a micro-batch without trained tokens"""
    empty = _made(subject, micro_batches=((),))[0]
    outputs = _call(subject, empty)
    for name, value in {"loss": outputs.loss, **outputs.metrics}.items():
        subject.expect(
            float(value.detach()) == 0.0,
            f"for a micro-batch without trained tokens its {name} is {float(value.detach())}; expected 0, which "
            "inputs.reduce(values) gives. (max() and mean() of no tokens do not work.)",
        )


def leaves_inputs_alone(subject: Subject[LossOutputs]) -> None:
    """does not change its inputs"""
    inputs = _made(subject)[0]
    expect_unchanged(subject, inputs, lambda: _call(subject, inputs))


def takes_present_log_probs_for_old_ones(subject: Subject[LossOutputs]) -> None:
    """takes log_probs for old_log_probs where those are None, as in the first step of a rollout"""
    import torch

    inputs = _made(subject)[0]
    first = dataclasses.replace(inputs, old_log_probs=None)
    same = dataclasses.replace(inputs, old_log_probs=inputs.log_probs.detach())
    for what, found, expected in (
        ("loss", _call(subject, first).loss.detach(), _call(subject, same).loss.detach()),
        ("gradient", _gradient(subject, first), _gradient(subject, same)),
    ):
        subject.expect(
            torch.allclose(found, expected, rtol=1e-9, atol=1e-12),
            f"without old_log_probs its {what} is another one than with those that log_probs have; use "
            "inputs.log_probs.detach() where inputs.old_log_probs is None.",
        )


def needs_what_it_says(subject: Subject[LossOutputs]) -> None:
    """has no gradient at samples whose advantages are 0, if it says so"""
    inputs = _made(subject)[0]
    if not may_skip_zero_advantage(subject.target, subject.args) or inputs.advantages is None:
        return
    gradient = _gradient(subject, dataclasses.replace(inputs, advantages=inputs.advantages * (inputs.sample_index % 2)))
    subject.expect(
        not gradient[inputs.sample_index % 2 == 0].any(),
        "samples whose advantages are 0 have a gradient, but @needs_gradient_at_zero_advantage says that they have "
        "none under these arguments, so they would be skipped; let it return True.",
    )


def _made(subject: Subject[LossOutputs], **how: Any) -> list[LossInputs]:
    """Return inputs with what the loss declares that it reads, and advantages; the other optional fields are None."""
    subject.need("torch")
    declared = what_reads(subject.target, subject.args)
    unread: dict[str, Any] = dict.fromkeys({*READS, "old_values"} - declared - {"advantages"})
    if "values" in declared:  # the loss of a critic
        del unread["old_values"]
        return [dataclasses.replace(made, **unread, values=made.log_probs) for made in loss_inputs(**how)]
    return [dataclasses.replace(made, **unread) for made in loss_inputs(**how)]


def _call(subject: Subject[LossOutputs], inputs: LossInputs) -> LossOutputs:
    with subject.lacking([name for name in READS if getattr(inputs, name) is None]):
        return subject.call(subject.args, inputs, extras={"importance_weight": None})


def _gradient(subject: Subject[LossOutputs], inputs: LossInputs) -> Tensor:
    import torch

    loss = _call(subject, inputs).loss
    subject.expect(
        loss.requires_grad, "its loss does not depend on inputs.log_probs; do not detach them, and stay in torch."
    )
    (gradient,) = torch.autograd.grad(loss.sum(), [inputs.log_probs])
    return gradient


def _summed(subject: Subject[LossOutputs], cut: Sequence[Sequence[int]], per_token: bool) -> dict[str, Tensor]:
    """Return loss and metrics, summed over micro-batches, and the "gradient" of the log-probs, sample after sample."""
    import torch

    totals: dict[str, Tensor] = {}
    gradients: dict[int, Tensor] = {}
    for samples, inputs in zip(cut, _made(subject, micro_batches=cut, per_token=per_token), strict=True):
        outputs = _call(subject, inputs)
        for name, value in {"loss": outputs.loss.detach(), **outputs.metrics}.items():
            totals[name] = totals.get(name, torch.zeros(())) + value
        gradient = _gradient(subject, inputs)
        for position, sample in enumerate(samples):
            gradients[sample] = gradient[inputs.sample_index == position]
    return {**totals, "gradient": torch.cat([gradients[sample] for sample in sorted(gradients)])}


def expect_unchanged(subject: Subject[Any], inputs: LossInputs, call: Callable[[], Any]) -> None:
    """Expect the tensors of the inputs to be after a call what they were before it."""
    import torch

    before = {name: value.detach().clone() for name, value in tensors(inputs).items()}
    call()
    for name, value in tensors(inputs).items():
        subject.expect(
            torch.equal(value.detach(), before[name]), f"it changed inputs.{name} in place; make a new tensor instead."
        )


def tensors(inputs: LossInputs) -> dict[str, Tensor]:
    """Return the tensors of the inputs by the names of their fields."""
    fields = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    fields |= {name: fields[name].weights for name in ("reduce", "measured")}
    del fields["responses"]
    return {name: value for name, value in fields.items() if value is not None}


LOSS: list[Check] = [
    returns_a_scalar,
    passes_gradients,
    ignores_masked_tokens,
    does_not_depend_on_the_cut,
    takes_an_empty_micro_batch,
    takes_present_log_probs_for_old_ones,
    needs_what_it_says,
    leaves_inputs_alone,
]
