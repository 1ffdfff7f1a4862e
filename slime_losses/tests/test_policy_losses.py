"""The policy losses equal their papers, computed token by token; so do their gradients, however the batch is cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import Row, arguments, gradient, loss_inputs, policy_reference, rows, weights_of

from slime_core.contracts.loss import LossInputs, LossOutputs, Reduce, may_skip_zero_advantage, what_reads
from slime_core.errors import ArgumentError
from slime_losses import divergence, importance, objective, policy, surrogate
from slime_losses.cispo import cispo
from slime_losses.gspo import gspo
from slime_losses.opsm import left_behind
from slime_losses.policy import policy_loss

KL = {"use_kl_loss": True, "kl_loss_coef": 0.3}
TIS = {"use_tis": True, "tis_clip": 1.2, "tis_clip_low": 0.7}
VARIANTS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "clip-higher": {"eps_clip_high": 0.28},
    "dual clip": {"eps_clip_c": 1.1},
    "gspo": {"advantage_estimator": "gspo", "eps_clip": 0.03, "eps_clip_high": 0.04},
    "cispo": {"advantage_estimator": "cispo", "eps_clip": 0.1},
    "cispo without lower limit": {"advantage_estimator": "cispo", "eps_clip": 1.0, "eps_clip_high": 0.1},
    "k1": {**KL, "kl_loss_type": "k1"},
    "k2": {**KL, "kl_loss_type": "k2"},
    "k3": {**KL, "kl_loss_type": "k3"},
    "low_var_kl": {**KL, "kl_loss_type": "low_var_kl"},
    "kl measured only": {"use_kl_loss": True, "kl_loss_type": "k3"},
    **{f"unbiased {kind}": {**KL, "use_unbiased_kl": True, "kl_loss_type": kind} for kind in ("k1", "k2", "k3")},
    "unbiased low_var_kl": {**KL, "use_unbiased_kl": True, "kl_loss_type": "low_var_kl"},
    "unbiased kl of cispo": {**KL, "use_unbiased_kl": True, "kl_loss_type": "k3", "advantage_estimator": "cispo"},
    "opsm": {"use_opsm": True, "opsm_delta": 0.02},
    "opsm of gspo": {"use_opsm": True, "advantage_estimator": "gspo", "eps_clip": 0.03},
    "entropy": {"entropy_coef": 0.01},
    "engine's old log-probs": {"use_rollout_logprobs": True},
    "tis": {**TIS, "rule": "tis"},
    "icepop": {**TIS, "rule": "icepop"},
    "sequence_tis": {**TIS, "rule": "sequence_tis"},
    "geometric_mask": {**TIS, "rule": "geometric_mask", "tis_clip_low": 0.9, "tis_clip": 1.1},
    "mismatch metrics": {"get_mismatch_metrics": True},
    "opsm, tis and unbiased kl": {
        **KL,
        **TIS,
        "rule": "tis",
        "use_opsm": True,
        "use_unbiased_kl": True,
        "kl_loss_type": "k3",
    },
    "everything": {**KL, **TIS, "rule": "tis", "kl_loss_type": "k3", "entropy_coef": 0.1, "eps_clip_c": 1.3},
}
MEANS = ("sample", "token", "constant")


def run(args: SimpleNamespace, inputs: Any) -> LossOutputs:
    """The loss as a run would call it, with the importance weight that `args.rule` names."""
    return policy_loss(args, inputs, importance_weight=getattr(importance, args.rule) if args.use_tis else None)


def differences(args: SimpleNamespace, batch: list[Row], weights: list[float], step: float = 1e-6) -> list[float]:
    """The gradient of the reference, by central differences."""
    found = []
    for s, row in enumerate(batch):
        for t in range(len(row.mask)):
            ends = []
            for sign in (1, -1):
                moved = [list(r.log_probs) for r in batch]
                moved[s][t] += sign * step
                ends.append(policy_reference(args, batch, weights, moved)["loss"])
            found.append((ends[0] - ends[1]) / (2 * step))
    return found


def agrees(args: SimpleNamespace, seed: int = 0) -> bool:
    """Whether loss and metrics equal the reference."""
    batch = rows(seed)
    weights = weights_of(batch, "sample")
    outputs = run(args, loss_inputs(batch, weights))
    found = {"loss": outputs.loss.item(), **{name: value.item() for name, value in outputs.metrics.items()}}
    expected = policy_reference(args, batch, weights)
    return all(found[name] == pytest.approx(value, rel=1e-12, abs=1e-13) for name, value in expected.items())


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_metrics_equal_the_papers_formulas(variant: str, mean: Any) -> None:
    args = arguments(**VARIANTS[variant])
    for seed in range(3):
        batch = rows(seed)
        weights = weights_of(batch, mean)
        outputs = run(args, loss_inputs(batch, weights))
        expected = policy_reference(args, batch, weights)
        assert outputs.loss.item() == pytest.approx(expected.pop("loss"), rel=1e-12, abs=1e-13)
        assert {n: outputs.metrics[n].item() for n in expected} == pytest.approx(expected, rel=1e-12, abs=1e-13)
        assert set(outputs.metrics) - set(expected) == (
            {"tis", "tis_abs", "tis_clipfrac"} if args.use_tis or args.get_mismatch_metrics else set()
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_differences_of_the_papers_formulas(variant: str) -> None:
    args = arguments(**VARIANTS[variant])
    for seed in range(3):
        batch = rows(seed)
        weights = weights_of(batch, "sample")
        inputs = loss_inputs(batch, weights)
        found = gradient(run(args, inputs), inputs.log_probs).tolist()
        assert found == pytest.approx(differences(args, batch, weights), rel=1e-7, abs=1e-9)


def test_every_clip_is_met_by_the_cases() -> None:
    for variant in ("ppo", "clip-higher", "gspo", "cispo"):
        batch = rows(0)
        outputs = run(arguments(**VARIANTS[variant]), loss_inputs(batch, weights_of(batch, "token")))
        assert 0 < outputs.metrics["pg_clipfrac"].item() < 1, variant
    for variant in ("opsm", "opsm of gspo", "opsm, tis and unbiased kl"):
        batch = rows(0)
        outputs = run(arguments(**VARIANTS[variant]), loss_inputs(batch, weights_of(batch, "token")))
        assert 0 < outputs.metrics["opsm_clipfrac"].item() < 1, variant
    limited, free = ({**VARIANTS["dual clip"], "eps_clip_c": c} for c in (1.1, None))
    batch = rows(0)
    losses = [run(arguments(**v), loss_inputs(batch, weights_of(batch, "token"))).loss for v in (limited, free)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize(
    "variant", ["everything", "gspo", "cispo", "sequence_tis", "geometric_mask", "opsm, tis and unbiased kl"]
)
@settings(max_examples=25)
@given(seed=st.integers(0, 1000), owners=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_any_cut_into_micro_batches_gives_the_same_numbers(variant: str, seed: int, owners: list[int]) -> None:
    args = arguments(**VARIANTS[variant])
    batch = rows(seed, lengths=(2, 4, 1, 3, 6, 2))
    for mean in MEANS:
        weights = weights_of(batch, mean)
        whole = loss_inputs(batch, weights)
        expected = run(args, whole)
        slopes = gradient(expected, whole.log_probs).split([len(row.mask) for row in batch])
        totals: dict[str, float] = {}
        for number in sorted(set(owners)):
            chosen = [i for i, owner in enumerate(owners) if owner == number]
            part = loss_inputs(batch, weights, chosen)
            outputs = run(args, part)
            for name, value in {"loss": outputs.loss, **outputs.metrics}.items():
                totals[name] = totals.get(name, 0.0) + value.item()
            own = gradient(outputs, part.log_probs)
            assert torch.allclose(own, torch.cat([slopes[i] for i in chosen]), rtol=1e-12, atol=1e-15)
        assert totals.pop("loss") == pytest.approx(expected.loss.item(), rel=1e-11, abs=1e-13)
        assert totals == pytest.approx({n: v.item() for n, v in expected.metrics.items()}, rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("variant", ["ppo", "gspo", "cispo", "dual clip"])
def test_on_policy_ratio_kl_and_clip_fraction_are_exact(variant: str) -> None:
    args = arguments(**VARIANTS[variant])
    batch = rows(3, lengths=(4, 4, 4, 4))
    for row in batch:
        row.mask = [1] * 4
    weights = weights_of(batch, "token")  # 1/16, so that the sums below are exact
    first = loss_inputs(batch, weights, old_log_probs=None)
    outputs = run(args, first)
    assert outputs.metrics["ratio"].item() == 1.0
    assert outputs.metrics["ppo_kl"].item() == 0.0
    assert outputs.metrics["pg_clipfrac"].item() == 0.0
    given_old = loss_inputs(batch, weights, old_log_probs=first.log_probs.detach())
    same = run(args, given_old)
    assert torch.equal(same.loss, outputs.loss)
    assert torch.equal(gradient(same, given_old.log_probs), gradient(outputs, first.log_probs))


def test_on_policy_gradient_is_that_of_reinforce() -> None:
    batch = rows(1)
    weights = weights_of(batch, "sample")
    inputs = loss_inputs(batch, weights, old_log_probs=None)
    expected = -inputs.advantages * inputs.reduce.weights
    assert torch.equal(gradient(run(arguments(), inputs), inputs.log_probs), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_extreme_differences_stay_finite(variant: str, dtype: torch.dtype) -> None:
    extremes = [-1e-7, -1.0, -90.0, -1e4]
    values = torch.cartesian_prod(*[torch.tensor(extremes, dtype=dtype)] * 4)
    count = len(values)
    weights = Reduce(torch.full((count,), 1 / count, dtype=dtype))
    inputs = LossInputs(
        log_probs=values[:, 0].clone().requires_grad_(),
        old_log_probs=values[:, 1],
        ref_log_probs=values[:, 2],
        rollout_log_probs=values[:, 3],
        loss_mask=torch.ones(count, dtype=dtype),
        sample_index=torch.arange(count) // 2,
        advantages=torch.tensor([1.0, -1.0], dtype=dtype).repeat(count // 2),
        entropy=torch.ones(count, dtype=dtype),
        reduce=weights,
        measured=weights,
    )
    outputs = run(arguments(**VARIANTS[variant]), inputs)
    assert all(bool(value.isfinite()) for value in [outputs.loss, *outputs.metrics.values()])
    assert bool(gradient(outputs, inputs.log_probs).isfinite().all())


@pytest.mark.parametrize("kind", ["k2", "k3", "low_var_kl"])
def test_a_divergence_falls_all_the_way_to_the_reference(kind: str) -> None:
    differences = torch.tensor(
        [-200.0, -50.0, -21.0, -20.0, -19.0, -1.0, 0.0, 1.0, 19.0, 21.0, 200.0], dtype=torch.float64
    )
    differences.requires_grad_()
    estimates = divergence.approximate_kl(differences, torch.zeros_like(differences), kind)
    (slopes,) = torch.autograd.grad(estimates.sum(), differences)
    assert (slopes * differences >= 0).all()
    assert (slopes * differences)[[5, 7]].gt(0).all()
    below, above = estimates.detach().split([7, 4])
    assert (below.diff() <= 0).all()
    assert (above.diff() >= 0).all()


def test_the_losses_named_gspo_and_cispo_are_those_of_the_estimators() -> None:
    batch = rows(5)
    weights = weights_of(batch, "sample")
    for loss, estimator in ((gspo, "gspo"), (cispo, "cispo")):
        through_estimator = policy_loss(arguments(advantage_estimator=estimator), loss_inputs(batch, weights)).loss
        assert torch.equal(loss(arguments(), loss_inputs(batch, weights)).loss, through_estimator)


@pytest.mark.parametrize("loss", [policy_loss, gspo, cispo])
def test_only_what_is_read_is_asked_for(loss: Any) -> None:
    always = {"advantages", "old_log_probs", "rollout_log_probs", "entropy"}
    assert what_reads(loss, arguments()) == always
    assert what_reads(loss, arguments(use_kl_loss=True)) == always | {"ref_log_probs"}
    assert may_skip_zero_advantage(loss, arguments())
    assert may_skip_zero_advantage(loss, arguments(use_kl_loss=True))
    assert not may_skip_zero_advantage(loss, arguments(**KL))
    assert not may_skip_zero_advantage(loss, arguments(entropy_coef=0.1))
    mismatch = arguments(get_mismatch_metrics=True)
    assert what_reads(loss, mismatch) == always
    assert may_skip_zero_advantage(loss, mismatch)
    engines = arguments(get_mismatch_metrics=True, use_rollout_logprobs=True)
    assert what_reads(loss, engines) == always | {"trainer_log_probs"}


@pytest.mark.parametrize("variant", ["ppo", "dual clip", "gspo", "cispo", "icepop", "kl measured only"])
def test_a_sample_without_advantage_has_no_gradient(variant: str) -> None:
    batch = rows(2)
    batch[1].columns["advantages"] = [0.0] * len(batch[1].mask)
    inputs = loss_inputs(batch, weights_of(batch, "sample"))
    found = gradient(run(arguments(**VARIANTS[variant]), inputs), inputs.log_probs)
    assert not found[inputs.sample_index == 1].any()
    assert found[inputs.sample_index == 0].any()


def test_metrics_that_only_measure_count_computed_samples_alone() -> None:
    batch = rows(4)
    weights = weights_of(batch, "sample")
    inputs = loss_inputs(batch, weights)
    doubled = Reduce(2 * inputs.reduce.weights)
    args = arguments(use_kl_loss=True, kl_loss_type="k3")
    plain, other = (run(args, loss_inputs(batch, weights, measured=m)) for m in (inputs.reduce, doubled))
    assert torch.equal(plain.loss, other.loss)
    assert {name for name in plain.metrics if not torch.equal(plain.metrics[name], other.metrics[name])} == {
        *("ratio", "ppo_kl", "pg_clipfrac", "entropy_loss", "kl_loss", "train_rollout_logprob_abs_diff"),
        "train_rollout_kl",
    }


def test_without_advantages_or_engine_log_probs_the_message_says_what_to_do() -> None:
    batch = rows(0)
    weights = weights_of(batch, "sample")
    with pytest.raises(ArgumentError, match="leave out --disable-compute-advantages-and-returns"):
        policy_loss(arguments(), loss_inputs(batch, weights, advantages=None))
    with pytest.raises(ArgumentError, match="or leave the option out"):
        policy_loss(arguments(use_tis=True), loss_inputs(batch, weights, rollout_log_probs=None))
    with pytest.raises(ArgumentError, match="KL divergence from the reference model needs log-probs"):
        policy_loss(arguments(use_kl_loss=True), loss_inputs(batch, weights, ref_log_probs=None))
    outputs = policy_loss(arguments(), loss_inputs(batch, weights, rollout_log_probs=None))
    assert not any("rollout" in name for name in outputs.metrics)


FAULTS: dict[str, tuple[Any, str, Any, str]] = {
    "the wrong one of two": (surrogate.torch, "maximum", torch.minimum, "ppo"),
    "no clip": (surrogate, "clip_range", lambda args: (0.0, 1e9), "clip-higher"),
    "the lower limit on both sides": (
        *(surrogate, "clip_range", lambda args: (1 - args.eps_clip, 1 + args.eps_clip)),
        "clip-higher",
    ),
    "a token ratio in gspo": (policy, "_SURROGATES", {}, "gspo"),
    "k3 the wrong way round": (
        *(objective, "approximate_kl", lambda p, q, kind, ratio=None: (p - q).exp() - 1 - (p - q)),
        "k3",
    ),
    "the ratio left out": (
        *(objective, "approximate_kl", lambda p, q, kind, ratio=None: divergence.approximate_kl(p, q, kind)),
        "unbiased k3",
    ),
    "positive advantages masked too": (
        objective,
        "left_behind",
        lambda a, i, old, adv: left_behind(a, i, old, -adv),
        "opsm",
    ),
    "old for rollout": (importance, "_difference", lambda inputs: inputs.log_probs.detach() * 0, "tis"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_catches(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, wrong, variant = FAULTS[fault]
    args = arguments(**VARIANTS[variant])
    assert agrees(args)
    monkeypatch.setattr(where, name, wrong)
    assert not agrees(args)
