"""Leaving samples out that have no gradient is the same as computing them."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.contracts.train_backend import TrainBatch
from slime_core.training.batches import make_train_batch

ADVANTAGES = [0.7, 0.0, -1.2, 0.0, 0.4, 0.0]
"""Of the samples of `tiny.mixed`; the fourth has no trained token."""
WITHOUT = [i for i, advantage in enumerate(ADVANTAGES) if advantage == 0]


def policy_gradient(args: Any, inputs: LossInputs) -> LossOutputs:
    """PPO's clipped objective (Schulman et al. 2017, arXiv 1707.06347)."""
    ratio = (inputs.log_probs - inputs.old_log_probs).exp()
    clipped = ratio.clamp(0.8, 1.2)
    loss = -torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    metrics = {"ratio": inputs.measured(ratio.detach()), "share": inputs.reduce(torch.ones_like(ratio).detach())}
    return LossOutputs(inputs.reduce(loss), metrics)


def make_batch(tiny: SimpleNamespace, skipped: list[int], advantages: list[float], mean: str = "token") -> TrainBatch:
    samples = tiny.samples(tiny.mixed)
    columns = {
        "advantages": [[a] * s.response_length for a, s in zip(advantages, samples, strict=True)],
        "old_log_probs": [[-4.0 - 0.1 * j for j in range(s.response_length)] for s in samples],
    }
    return make_train_batch(samples, mean=mean, micro_batch_size=3, columns=columns, skipped=skipped)


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("mean", ["token", "sample"])
@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "qwen3_moe"])
def test_loss_and_gradients_are_equal(tiny: SimpleNamespace, architecture: str, mean: str) -> None:
    model = tiny.model(architecture)
    with tiny.float64():
        plain = tiny.backend(copy.deepcopy(model), policy_gradient, lr=0.0)
        expected = plain.train_step(make_batch(tiny, [], ADVANTAGES, mean))
        skipping = tiny.backend(model, policy_gradient, lr=0.0)
        batch = make_batch(tiny, WITHOUT, ADVANTAGES, mean)
        found = skipping.train_step(batch)
        tiny.assert_equal_training(found["loss"], model, expected["loss"], gradients_of(plain.model))
        assert sorted(i for m in batch.micro_batches for i in m) == [0, 2, 4]
        # Negative control: a loss built with the mean over what is computed would be another one.
        wrong = dataclasses.replace(batch, weights=batch.measured)
        assert skipping.train_step(wrong)["loss"] != pytest.approx(expected["loss"], rel=0.01)


def test_diagnostics_are_means_over_what_was_computed(tiny: SimpleNamespace) -> None:
    counts = [sum(s.trained_mask) for s in tiny.samples(tiny.mixed)]
    found = tiny.backend(tiny.model(), policy_gradient, lr=0.0).train_step(make_batch(tiny, WITHOUT, ADVANTAGES))
    assert found["share"] == pytest.approx((counts[0] + counts[2] + counts[4]) / sum(counts))
    alone = tiny.backend(tiny.model(), policy_gradient, lr=0.0).train_step(make_batch(tiny, [], ADVANTAGES))
    assert found["ratio"] != pytest.approx(alone["ratio"], rel=1e-3)
    batch = make_batch(tiny, WITHOUT, ADVANTAGES)
    reversed_ = dataclasses.replace(batch, micro_batches=[[4], [0, 2]])
    again = tiny.backend(tiny.model(), policy_gradient, lr=0.0).train_step(reversed_)
    assert found["ratio"] == pytest.approx(again["ratio"])
    assert found["num_trained_tokens"] == sum(counts)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_in_which_all_samples_are_skipped_moves_weights_and_optimizer_as_gradient_0_does(
    tiny: SimpleNamespace, optimizer: str
) -> None:
    runs = []
    for skipped in ([], list(range(6))):
        backend = tiny.backend(
            tiny.model("llama_untied"), policy_gradient, lr=0.1, weight_decay=0.3, optimizer=optimizer
        )
        first = backend.train_step(make_batch(tiny, [], ADVANTAGES))
        before = {name: value.clone() for name, value in backend.weights()}
        found = [backend.train_step(make_batch(tiny, skipped, [0.0] * 6)) for _ in range(2)]
        assert all(metrics["grad_norm"] == metrics["loss"] == 0 for metrics in found)
        assert all(metrics.keys() == first.keys() for metrics in found)
        assert any(not torch.equal(before[name], value) for name, value in backend.weights())
        runs.append((dict(backend.weights()), backend.optimizer.state_dict()["state"]))
    (plain, plain_state), (skipping, skipping_state) = runs
    assert all(torch.equal(plain[name], skipping[name]) for name in plain)
    for number, values in plain_state.items():
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(skipping_state[number][name])), name
