"""What a train step reports and refuses, and what it leaves alone."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.errors import SampleError, TrainingError
from slime_core.sample import Sample
from slime_core.training.batches import make_train_batch
from slime_losses.sft import sft_loss


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_training_lowers_the_loss_and_reports_it(tiny: SimpleNamespace) -> None:
    backend = tiny.backend(tiny.model(dtype=torch.float32), lr=0.01, lr_decay_style="constant", clip_grad=1.0)
    batch = make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=2)
    metrics = [backend.train_step(batch) for _ in range(8)]
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]
    assert metrics[0].keys() == {"loss", "grad_norm", "lr", "num_trained_tokens", "num_tokens"}
    assert (metrics[0]["num_trained_tokens"], metrics[0]["num_tokens"]) == (22, 52)


def test_clipping_scales_the_whole_gradient_to_the_limit(tiny: SimpleNamespace) -> None:
    backend = tiny.backend(tiny.model(), lr=0.0, clip_grad=0.01)
    metrics = backend.train_step(make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=6))
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in backend.model.parameters()))
    assert metrics["grad_norm"] > 1 > norm
    assert norm == pytest.approx(0.01, rel=1e-5)


def test_the_first_step_is_that_of_adamw_with_the_schedules_rate(tiny: SimpleNamespace) -> None:
    options = {"lr": 0.01, "lr_decay_style": "linear", "weight_decay": 0.0}
    model = tiny.model()
    before = weights_of(model)
    backend = tiny.backend(model, **options)
    metrics = backend.train_step(make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=6))
    assert metrics["lr"] == 0.01
    for name, parameter in model.named_parameters():
        # Adam's first step: lr · g / (|g| + eps)
        expected = before[name] - 0.01 * parameter.grad / (parameter.grad.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected)
    assert backend.train_step(make_train_batch(tiny.samples(tiny.mixed)))["lr"] == pytest.approx(0.009)


def test_two_runs_give_the_same_bits(tiny: SimpleNamespace) -> None:
    runs = []
    for _ in range(2):
        backend = tiny.backend(tiny.model("qwen3", dtype=torch.float32), lr=0.01)
        batch = make_train_batch(tiny.samples(tiny.mixed), max_tokens=25)
        runs.append(([backend.train_step(batch) for _ in range(3)], weights_of(backend.model)))
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])


def test_a_batch_without_trained_tokens_has_loss_0_and_takes_a_step_of_gradient_0(tiny: SimpleNamespace) -> None:
    backend = tiny.backend(tiny.model(), lr=0.1, weight_decay=0.5)
    before = weights_of(backend.model)
    metrics = backend.train_step(make_train_batch(tiny.samples([(3, [0, 0]), (2, [0])])))
    assert (metrics["loss"], metrics["grad_norm"]) == (0.0, 0.0)
    for name, value in backend.weights():
        torch.testing.assert_close(value, before[name] * (0.95 if value.ndim >= 2 else 1.0))


def test_gradients_are_let_go_when_weights_are_handed_over(tiny: SimpleNamespace) -> None:
    backend = tiny.backend(tiny.model())
    backend.train_step(make_train_batch(tiny.samples(tiny.mixed)))
    next(backend.weights())
    assert all(parameter.grad is None for parameter in backend.model.parameters())


def test_evaluate_gives_the_loss_without_dropout_and_leaves_no_trace(tiny: SimpleNamespace) -> None:
    model, without_dropout = tiny.model("llama", attention_dropout=0.5), tiny.model("llama")
    batch = make_train_batch(tiny.samples(tiny.mixed), mean="token", micro_batch_size=4)
    with tiny.float64():
        expected, _ = tiny.one_by_one(without_dropout, tiny.samples(tiny.mixed), True)
        backend = tiny.backend(model, lr=0.0)
        backend.train_step(batch)
        before = (weights_of(model), [p.grad.clone() for p in model.parameters()], torch.get_rng_state())
        states = (random.getstate(), str(numpy.random.get_state()))
        found = backend.evaluate(batch)
    assert found == {"loss": pytest.approx(expected, rel=1e-12)}
    assert model.training
    assert_same(before[0], weights_of(model))
    assert all(torch.equal(a, p.grad) for a, p in zip(before[1], model.parameters(), strict=True))
    assert torch.equal(before[2], torch.get_rng_state())
    assert states == (random.getstate(), str(numpy.random.get_state()))


def poison(model: Any, token: int) -> None:
    """Make every sample that reads `token` give NaN."""
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = math.nan


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_nan_stops_the_step_names_the_samples_and_changes_nothing(tiny: SimpleNamespace, optimizer: str) -> None:
    model = tiny.model("llama_untied")
    samples = tiny.samples([(3, [1, 1])] * 6)
    for sample in samples:
        sample.tokens = [min(t, 90) for t in sample.tokens]
    backend = tiny.backend(model, lr=0.1, optimizer=optimizer)
    backend.train_step(make_train_batch(samples, micro_batch_size=2))
    poison(model, 95)
    samples[3] = replace(
        samples[3], tokens=[95, *samples[3].tokens[1:]], metadata={"slime": {"source": "rows.jsonl:17"}}
    )
    before, state = weights_of(model), copy.deepcopy(backend.optimizer.state_dict())
    with pytest.raises(TrainingError, match=r"loss is NaN or Inf.*sample 2, sample 3 \(rows.jsonl:17\)\. The weights"):
        backend.train_step(make_train_batch(samples, micro_batch_size=2))
    after = weights_of(model)
    assert all(torch.equal(before[n].nan_to_num(7), after[n].nan_to_num(7)) for n in before)
    for key, values in state["state"].items():
        for name, value in values.items():
            assert torch.equal(
                torch.as_tensor(value), torch.as_tensor(backend.optimizer.state_dict()["state"][key][name])
            )
    assert backend.optimizer.state_dict()["param_groups"] == state["param_groups"]


def test_a_nan_gradient_of_a_finite_loss_names_its_micro_batch(tiny: SimpleNamespace) -> None:
    def loss(args: Any, inputs: LossInputs) -> LossOutputs:
        zero = inputs.log_probs - inputs.log_probs.detach()
        bad = inputs.reduce(zero.abs().sqrt()) if len(zero) == 5 else 0.0
        return LossOutputs(sft_loss(args, inputs).loss + bad)

    model = tiny.model()
    backend = tiny.backend(model, loss=loss, lr=0.1)
    before = weights_of(model)
    samples = tiny.samples([(3, [1, 1]), (3, [1] * 5), (3, [1])])
    with pytest.raises(
        TrainingError, match=r"gradient is NaN or Inf in optimizer step 0, in the micro-batch of sample 1\."
    ):
        backend.train_step(make_train_batch(samples, micro_batch_size=1))
    assert_same(before, weights_of(model))


def test_a_loss_gets_columns_masks_and_its_metrics_are_summed(tiny: SimpleNamespace) -> None:
    seen: list[LossInputs] = []

    def loss(args: Any, inputs: LossInputs) -> LossOutputs:
        seen.append(inputs)
        return LossOutputs(
            inputs.reduce(-inputs.log_probs * inputs.advantages), {"advantage": inputs.reduce(inputs.advantages)}
        )

    samples = tiny.samples([(2, [1, 0, 1]), (1, [1, 1]), (4, [0, 0])])
    columns = {"advantages": [[1.0, 9.0, 2.0], [3.0, 6.0], [9.0, 9.0]]}
    batch = make_train_batch(samples, mean="token", micro_batch_size=2, columns=columns)
    metrics = tiny.backend(tiny.model(), loss=loss).train_step(batch)
    assert seen[0].advantages.tolist() == [1.0, 2.0, 3.0, 6.0]
    assert seen[0].sample_index.tolist() == [0, 0, 1, 1]
    assert seen[1].advantages.tolist() == []
    assert metrics["advantage"] == pytest.approx(12 / 4)


@pytest.mark.parametrize("token", [263, -1])
def test_a_token_outside_the_vocabulary_is_refused_by_name(tiny: SimpleNamespace, token: int) -> None:
    bad = Sample(index=5, tokens=[1, 2, token], response_length=1)
    with pytest.raises(
        SampleError, match=rf"sample 5 holds the token id {token}, but the model knows the ids 0 to 262"
    ):
        tiny.backend(tiny.model()).train_step(make_train_batch([bad]))


def test_a_trained_first_token_is_refused(tiny: SimpleNamespace) -> None:
    bad = Sample(index=5, tokens=[1, 2], response_length=2)
    with pytest.raises(SampleError, match="first token of sample 5 is trained"):
        tiny.backend(tiny.model()).train_step(make_train_batch([bad]))


def test_bf16_keeps_float32_weights_and_stays_near_float32(tiny: SimpleNamespace) -> None:
    batch = make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=3)
    metrics = {}
    for bf16 in (False, True):
        backend = tiny.backend(tiny.model(dtype=torch.float32), bf16=bf16)
        metrics[bf16] = backend.train_step(batch)
        assert {p.dtype for p in backend.model.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in backend.model.parameters()} == {torch.float32}
    assert metrics[True]["loss"] == pytest.approx(metrics[False]["loss"], rel=0.02)
    assert metrics[True]["loss"] != metrics[False]["loss"]
    assert metrics[True]["grad_norm"] == pytest.approx(metrics[False]["grad_norm"], rel=0.05)


def test_weights_come_under_their_names_tied_ones_once(tiny: SimpleNamespace) -> None:
    names = [name for name, _ in tiny.backend(tiny.model("llama")).weights()]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert len(names) == len(set(names))
    assert "lm_head.weight" in dict(tiny.backend(tiny.model("llama_untied")).weights())
