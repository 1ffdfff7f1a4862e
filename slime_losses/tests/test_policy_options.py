"""What `--use-unbiased-kl`, `--use-opsm`, `--get-mismatch-metrics` and a reducer of the policy loss promise, beside the formulas
that `test_policy_losses` compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from policy_cases import arguments, gradient, loss_inputs, rows, samples_of, weights_of
from torch import Tensor

from slime_core.contracts.loss import may_skip_zero_advantage
from slime_core.errors import ArgumentError, PluginError
from slime_core.training.batches import make_train_batch
from slime_losses import importance
from slime_losses.cispo import cispo
from slime_losses.divergence import approximate_kl
from slime_losses.gspo import gspo
from slime_losses.policy import policy_loss

REDUCER = {"custom_pg_loss_reducer_function_path": "mine.reducer"}


def constant(
    total_lengths: list[int],
    response_lengths: list[int],
    loss_masks: list[Tensor],
    calculate_per_token_loss: bool = False,
) -> Callable[[Tensor], Tensor]:
    """Dr. GRPO's: every sample over the same length."""

    def reduce(x: Tensor) -> Tensor:
        own = zip(x.split(response_lengths), loss_masks, strict=True)
        return sum(((x * mask).sum() / (1 if calculate_per_token_loss else 7.0) for x, mask in own), x.new_zeros(()))

    return reduce


def mean_of_each(
    total_lengths: list[int],
    response_lengths: list[int],
    loss_masks: list[Tensor],
    calculate_per_token_loss: bool = False,
) -> Callable[[Tensor], Tensor]:
    """slime's own."""

    def reduce(x: Tensor) -> Tensor:
        own = zip(x.split(response_lengths), loss_masks, strict=True)
        sums = [(x * m).sum() / (1 if calculate_per_token_loss else m.sum().clamp(min=1)) for x, m in own]
        return sum(sums, x.new_zeros(()))

    return reduce


@pytest.mark.parametrize("kind", ["k1", "k3"])
@pytest.mark.parametrize("on_policy", [False, True])
def test_the_weighed_kl_has_the_gradient_of_the_kl_whatever_policy_sampled(kind: str, on_policy: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    logits, base, other = (torch.randn(6, generator=draw, dtype=torch.float64) for _ in range(3))
    logits.requires_grad_()
    p, reference = logits.log_softmax(-1), base.log_softmax(-1)
    q = p.detach() if on_policy else other.log_softmax(-1)
    (expected,) = torch.autograd.grad((p.exp() * (p - reference)).sum(), logits, retain_graph=True)

    def in_expectation(ratio: Tensor | None) -> Tensor:
        estimate = (q.exp() * approximate_kl(p, reference, kind, ratio)).sum()
        return torch.autograd.grad(estimate, logits, retain_graph=True)[0]

    assert torch.allclose(in_expectation((p - q).exp()), expected, rtol=1e-10, atol=1e-14)
    assert not torch.allclose(in_expectation(None), expected, rtol=0.1)
    if kind == "k1" and on_policy:
        assert in_expectation(None).abs().max() < 1e-15, "what `slime check` says of k1 as a loss"


def test_with_one_step_in_a_rollout_nothing_is_masked_and_the_kl_is_weighed_all_the_same() -> None:
    batch = rows(0)
    weights = weights_of(batch, "sample")
    inputs = loss_inputs(batch, weights, old_log_probs=None)
    assert policy_loss(arguments(use_opsm=True, opsm_delta=0.0), inputs).metrics["opsm_clipfrac"].item() == 0
    kl = {"use_kl_loss": True, "kl_loss_coef": 1.0}
    plain = policy_loss(arguments(**kl), inputs)
    weighed = policy_loss(arguments(**kl, use_unbiased_kl=True), inputs)
    assert torch.equal(plain.loss, weighed.loss)  # the ratio is 1
    difference = inputs.log_probs - inputs.ref_log_probs
    further = gradient(weighed, inputs.log_probs) - gradient(plain, inputs.log_probs)
    assert torch.allclose(further, difference.detach() * inputs.reduce.weights, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("rule", ["tis", "icepop", "sequence_tis", "geometric_mask"])
def test_mismatch_metrics_are_those_of_the_correction_and_leave_the_loss_alone(rule: str) -> None:
    batch = rows(1)
    weights = weights_of(batch, "sample")
    weight: Any = getattr(importance, rule)
    limits = {"tis_clip": 1.05, "tis_clip_low": 0.95}
    plain, measured, corrected = (
        policy_loss(arguments(**options, **limits), loss_inputs(batch, weights), importance_weight=weight)
        for options in ({}, {"get_mismatch_metrics": True}, {"use_tis": True})
    )
    assert torch.equal(measured.loss, plain.loss)
    assert not torch.equal(corrected.loss, plain.loss)
    found = {name: measured.metrics[name].item() for name in measured.metrics.keys() - plain.metrics.keys()}
    assert found == {name: corrected.metrics[name].item() for name in ("tis", "tis_abs", "tis_clipfrac")}


def test_mismatch_is_between_engine_and_trainer_also_where_the_old_log_probs_are_the_engines() -> None:
    batch = rows(2)
    weights = weights_of(batch, "sample")
    args = arguments(get_mismatch_metrics=True, use_rollout_logprobs=True)
    base = loss_inputs(batch, weights)
    engines = {"old_log_probs": base.rollout_log_probs, "trainer_log_probs": base.old_log_probs}
    several = policy_loss(args, loss_inputs(batch, weights, **engines))
    expected = policy_loss(arguments(get_mismatch_metrics=True), loss_inputs(batch, weights))
    assert several.metrics["tis"].item() == expected.metrics["tis"].item() != 1.0
    one = policy_loss(args, loss_inputs(batch, weights, old_log_probs=base.rollout_log_probs))
    present = policy_loss(
        arguments(get_mismatch_metrics=True), loss_inputs(batch, weights, old_log_probs=base.log_probs.detach())
    )
    assert one.metrics["tis"].item() == present.metrics["tis"].item() != 1.0


@pytest.mark.parametrize("loss", [policy_loss, gspo, cispo])
@pytest.mark.parametrize(("mean", "per_token"), [("sample", False), ("token", True)])
def test_a_reducer_that_takes_the_mean_changes_nothing(loss: Any, mean: Any, per_token: bool) -> None:
    args = arguments(**REDUCER, calculate_per_token_loss=per_token, use_tis=True, entropy_coef=0.1, use_opsm=True)
    for seed in range(3):
        batch = rows(seed)
        divisor = make_train_batch(samples_of(batch), mean=mean).divisor
        inputs = loss_inputs(batch, weights_of(batch, mean), divisor=divisor)
        plain, reduced = loss(args, inputs), loss(args, inputs, None, mean_of_each)
        assert reduced.loss.item() == pytest.approx(plain.loss.item(), rel=1e-12)
        slopes = gradient(plain, inputs.log_probs)
        assert torch.allclose(gradient(reduced, inputs.log_probs), slopes, rtol=1e-12, atol=1e-15)
        assert reduced.metrics.keys() == plain.metrics.keys()


@pytest.mark.parametrize("per_token", [False, True])
def test_a_reducer_gets_whole_responses_and_its_sums_do_not_depend_on_the_cut(per_token: bool) -> None:
    args = arguments(**REDUCER, calculate_per_token_loss=per_token, use_kl_loss=True, kl_loss_coef=0.2)
    batch = rows(4, lengths=(2, 4, 1, 3, 6, 2))
    mean: Any = "token" if per_token else "sample"
    weights, divisor = weights_of(batch, mean), make_train_batch(samples_of(batch), mean=mean).divisor
    seen: list[tuple[Any, ...]] = []

    def watched(*given: Any) -> Any:
        seen.append((*given[:2], [mask.tolist() for mask in given[2]], given[3]))
        return constant(*given)

    whole = loss_inputs(batch, weights, divisor=divisor)
    outputs = policy_loss(args, whole, pg_loss_reducer=watched)
    lengths = [len(row.mask) for row in batch]
    assert seen == [([n + 1 for n in lengths], lengths, [row.mask for row in batch], per_token)]
    plain = policy_loss(arguments(calculate_per_token_loss=per_token), loss_inputs(batch, [1.0] * len(batch)))
    per_sample = plain.loss / (1 if per_token else 7.0) / divisor  # the same losses of tokens, over the constant
    assert outputs.metrics["pg_loss"].item() == pytest.approx(per_sample.item(), rel=1e-12)
    slopes = gradient(outputs, whole.log_probs).split(lengths)
    total = 0.0
    for chosen in ([0, 3], [5], [1, 2, 4], []):
        part = loss_inputs(batch, weights, chosen, divisor=divisor)
        own = policy_loss(args, part, pg_loss_reducer=constant)
        total += own.loss.item()
        if chosen:
            expected = torch.cat([slopes[i] for i in chosen])
            assert torch.allclose(gradient(own, part.log_probs), expected, rtol=1e-12, atol=1e-15)
    assert total == pytest.approx(outputs.loss.item(), rel=1e-11)


def rejecting(args: Any, inputs: Any) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Halves every loss, and keeps the tokens that the engine gave between 0.8 and 1.25 of the trainer's probability."""
    ratio = (inputs.old_log_probs - inputs.rollout_log_probs).exp()
    return torch.full_like(ratio, 0.5), {"off": inputs.measured(ratio)}, ((ratio > 0.8) & (ratio < 1.25)).to(ratio)


@pytest.mark.parametrize("kl", [0.0, 0.3])
@pytest.mark.parametrize("entropy", [0.0, 0.2])
@pytest.mark.parametrize("reducer", [None, mean_of_each])
@pytest.mark.parametrize("per_token", [False, True])
def test_rejected_tokens_leave_every_term_and_every_diagnostic_of_the_loss(
    kl: float, entropy: float, reducer: Any, per_token: bool
) -> None:
    """The means stay over the tokens that were trained before, but for a reducer, which has the masks of those that are kept."""
    batch = rows(1, lengths=(4, 6, 1, 5))
    mean: Any = "token" if per_token else "sample"
    shares, divisor = weights_of(batch, mean), make_train_batch(samples_of(batch), mean=mean).divisor
    options = REDUCER if reducer else {}
    args = arguments(
        **options,
        calculate_per_token_loss=per_token,
        use_tis=True,
        use_kl_loss=True,
        kl_loss_coef=kl,
        kl_loss_type="k3",
        entropy_coef=entropy,
    )
    entropies = torch.tensor(
        [e for row in batch for e in row.columns["entropy"]], dtype=torch.float64, requires_grad=True
    )
    inputs = loss_inputs(batch, shares, divisor=divisor, entropy=entropies)
    outputs = policy_loss(args, inputs, rejecting, reducer)

    log_probs = inputs.log_probs.detach().requires_grad_()
    ratio = (log_probs - inputs.old_log_probs).exp()
    limited = ratio.clamp(1 - args.eps_clip, 1 + args.eps_clip)
    surrogates = torch.maximum(-ratio * inputs.advantages, -limited * inputs.advantages)
    back = (inputs.ref_log_probs - log_probs).exp()
    engine_off = (inputs.old_log_probs - inputs.rollout_log_probs).exp()
    kept = (engine_off > 0.8) & (engine_off < 1.25) & (inputs.loss_mask > 0)
    lengths = [len(row.mask) for row in batch]
    share = torch.cat([torch.full((n,), s, dtype=torch.float64) for n, s in zip(lengths, shares, strict=True)])
    per_loss = share
    if reducer and not per_token:
        counts = [1 / max(1, int(own.sum())) / divisor for own in kept.split(lengths)]
        per_loss = torch.cat([torch.full((n,), c, dtype=torch.float64) for n, c in zip(lengths, counts, strict=True)])
    terms = {
        "pg_loss": (0.5 * surrogates * per_loss)[kept].sum(),
        "kl_loss": ((back - 1 - back.log()) * share)[kept].sum(),
        "entropy_loss": (entropies * share)[kept].sum(),
        "ppo_kl": ((inputs.old_log_probs - log_probs) * share)[kept].sum(),
        "pg_clipfrac": ((surrogates > -ratio * inputs.advantages) * share)[kept].sum(),
        "train_rollout_logprob_abs_diff": ((inputs.old_log_probs - inputs.rollout_log_probs).abs() * share)[kept].sum(),
    }
    assert 0 < kept.sum() < inputs.loss_mask.sum()
    assert {name: outputs.metrics[name].item() for name in terms} == pytest.approx(
        {n: x.item() for n, x in terms.items()}, rel=1e-11
    )
    assert outputs.metrics["off"].item() == pytest.approx(
        (engine_off * share * inputs.loss_mask).sum().item(), rel=1e-12
    )
    loss = terms["pg_loss"] + kl * terms["kl_loss"] - entropy * terms["entropy_loss"]
    assert outputs.loss.item() == pytest.approx(loss.item(), rel=1e-11)
    found = torch.autograd.grad(outputs.loss, (inputs.log_probs, entropies), allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(loss, (log_probs, entropies))
    for own, expected in zip(found, wanted, strict=True):
        assert torch.allclose(own, expected, rtol=1e-11, atol=1e-15)


def test_a_reducer_is_shown_samples_without_advantage_too() -> None:
    assert not may_skip_zero_advantage(policy_loss, arguments(**REDUCER))


def test_a_reducer_is_not_called_without_samples() -> None:
    """The sum over none is no tensor where somebody's begins with the number 0."""
    part = loss_inputs(rows(2), [0.5, 0.5], [])
    outputs = policy_loss(arguments(**REDUCER), part, pg_loss_reducer=lambda *given: lambda x: sum([]))
    assert outputs.loss == 0.0
    assert outputs.loss.requires_grad


@pytest.mark.parametrize(
    ("reducer", "says"),
    [(lambda x: x, "expected a tensor with one number"), (lambda x: x.detach().sum(), "without detach or item")],
)
def test_a_reducer_that_makes_no_number_with_a_gradient_is_told(reducer: Any, says: str) -> None:
    batch = rows(0)
    inputs = loss_inputs(batch, weights_of(batch, "sample"))
    with pytest.raises(PluginError, match=says):
        policy_loss(arguments(**REDUCER), inputs, pg_loss_reducer=lambda *given: reducer)


def test_a_backend_that_tells_no_responses_cannot_have_a_reducer() -> None:
    batch = rows(0)
    inputs = loss_inputs(batch, weights_of(batch, "sample"), responses=None)
    with pytest.raises(ArgumentError, match="needs whole responses"):
        policy_loss(arguments(**REDUCER), inputs, pg_loss_reducer=constant)
