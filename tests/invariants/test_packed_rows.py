"""The loss and every gradient equal plain transformers, however the samples are cut into micro-batches."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slime_core.tensors.micro_batches as micro_batches_module
import slime_core.training.batches as batch_module
import slime_torch.predictor as predictor_module
from slime_core.tensors.packed_rows import Segments
from slime_core.training.batches import make_train_batch

ARCHITECTURES = (
    *("llama", "llama_untied", "qwen2", "qwen2_sliding", "qwen3", "gemma2", "granite", "cohere", "gpt2"),
    *("qwen3_moe", "glm4_moe"),
)


def check(
    tiny: SimpleNamespace, model: Any, samples: Any, per_token: bool = True, chunk: int = 512, **cut: Any
) -> None:
    """Train one step of rate 0 on `samples`, cut by `cut`, and compare with transformers sample by sample."""
    with tiny.float64():
        expected = tiny.one_by_one(model, samples, per_token)
        trained = copy.deepcopy(model)
        backend = tiny.backend(trained, lr=0.0, log_probs_chunk_size=chunk)
        batch = batch_module.make_train_batch(samples, mean="token" if per_token else "sample", **cut)
        metrics = backend.train_step(batch)
    tiny.assert_equal_training(metrics["loss"], trained, *expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("per_token", [True, False])
def test_loss_and_gradients_equal_plain_transformers(tiny: SimpleNamespace, architecture: str, per_token: bool) -> None:
    assert set(tiny.architectures) == set(ARCHITECTURES)
    check(tiny, tiny.model(architecture), tiny.samples(tiny.mixed), per_token, micro_batch_size=4)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_packed_equals_padded(tiny: SimpleNamespace, architecture: str) -> None:
    model, samples = tiny.model(architecture), tiny.samples(tiny.mixed)
    with tiny.float64():
        expected = tiny.padded(model, samples)
        trained = copy.deepcopy(model)
        metrics = tiny.backend(trained, lr=0.0).train_step(make_train_batch(samples, mean="token", micro_batch_size=6))
    tiny.assert_equal_training(metrics["loss"], trained, *expected)


@pytest.mark.parametrize(
    "cut",
    [{"micro_batch_size": n} for n in (1, 2, 3, 5, 6)] + [{"max_tokens": n} for n in (1, 10, 21, 30, 1000)],
    ids=str,
)
@pytest.mark.parametrize("per_token", [True, False])
def test_micro_batching_does_not_change_loss_or_gradients(
    tiny: SimpleNamespace, cut: dict[str, int], per_token: bool
) -> None:
    check(tiny, tiny.model("qwen3"), tiny.samples(tiny.mixed), per_token, **cut)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "granite"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 512, -1])
def test_chunked_cross_entropy_equals_the_full_one(tiny: SimpleNamespace, architecture: str, chunk: int) -> None:
    check(tiny, tiny.model(architecture), tiny.samples(tiny.mixed), chunk=chunk, micro_batch_size=6)


def test_gradient_checkpointing_does_not_change_a_bit(tiny: SimpleNamespace) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny.model("qwen3", dtype=torch.float32)
        backend = tiny.backend(model, lr=0.0, gradient_checkpointing=checkpointing)
        calls = count_forwards(model.model.layers[0].mlp)
        backend.train_step(make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=6))
        assert len(calls) == 1 + checkpointing
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def count_forwards(module: torch.nn.Module) -> list[None]:
    calls: list[None] = []
    module.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


shapes = st.lists(
    st.tuples(st.integers(1, 8), st.lists(st.integers(0, 1), min_size=1, max_size=10)), min_size=1, max_size=6
)


@settings(max_examples=12)
@given(
    shapes=shapes, per_token=st.booleans(), chunk=st.sampled_from([-1, 1, 4]), size=st.integers(1, 4), data=st.data()
)
def test_any_lengths_masks_and_cuts_equal_plain_transformers(
    tiny: SimpleNamespace, shapes: Any, per_token: bool, chunk: int, size: int, data: Any
) -> None:
    samples = tiny.samples(shapes)
    cut = {"micro_batch_size": size} if data.draw(st.booleans()) else {"max_tokens": data.draw(st.integers(1, 40))}
    if any(sum(s.trained_mask) for s in samples):
        check(tiny, tiny.model("llama", num_hidden_layers=1), samples, per_token, chunk, **cut)


# ------------------------------------------------------------------------------------------------ negative controls
# Each plants a classic fault and shows that `check` sees it. Rotary positions are relative, so positions that run on
# from one sample to the next only matter to a model with absolute ones.


def plant_attention_across_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    right = predictor_module.packed_hidden

    def wrong(model: Any, row: Any) -> Any:
        return right(model, dataclasses.replace(row, segments=Segments.of([(row.input_ids.shape[1],)])))

    monkeypatch.setattr(predictor_module, "packed_hidden", wrong)


def plant_positions_that_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    right = predictor_module.packed_hidden
    monkeypatch.setattr(
        predictor_module,
        "packed_hidden",
        lambda model, row: right(
            model, dataclasses.replace(row, position_ids=torch.arange(row.input_ids.shape[1])[None])
        ),
    )


def plant_off_by_one_at_the_first_response_token(monkeypatch: pytest.MonkeyPatch) -> None:
    right = micro_batches_module.pack_samples

    def wrong(samples: Any, **kwargs: Any) -> Any:
        row = right(samples, **kwargs)
        first = torch.cat([torch.tensor([True]), row.sample_index[1:] != row.sample_index[:-1]])
        last = row.input_ids.shape[1] - 1
        return dataclasses.replace(row, predictors=(row.predictors + first.long()).clamp(max=last))

    monkeypatch.setattr(micro_batches_module, "pack_samples", wrong)


def plant_mean_of_means(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(samples: Any, *_: Any) -> list[float]:
        counts = [sum(s.trained_mask) for s in samples]
        pairs = [sum(counts[i - i % 2 : i - i % 2 + 2]) for i in range(len(counts))]
        return [1 / max(1, pair) / (len(samples) // 2) for pair in pairs]

    monkeypatch.setattr(batch_module, "token_weights", wrong)


@pytest.mark.parametrize(
    ("plant", "architecture"),
    [
        (plant_attention_across_samples, "qwen3"),
        (plant_positions_that_run_on, "gpt2"),
        (plant_off_by_one_at_the_first_response_token, "qwen3"),
        (plant_mean_of_means, "qwen3"),
    ],
)
def test_the_check_sees_a_planted_fault(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, plant: Any, architecture: str
) -> None:
    check(tiny, tiny.model(architecture), tiny.samples(tiny.mixed), micro_batch_size=2)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(tiny, tiny.model(architecture), tiny.samples(tiny.mixed), micro_batch_size=2)
