"""Computing the prompt of a group once changes neither the loss nor any gradient."""

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
import slime_torch.attention as attention_module
import slime_torch.predictor as predictor_module
from slime_core.errors import PluginError
from slime_core.sample import Sample
from slime_core.tensors.packed_rows import Segments, pack_samples
from slime_core.training.batches import make_train_batch
from slime_torch.attention import packed_attention

ARCHITECTURES = (
    *("llama", "llama_untied", "qwen2", "qwen2_sliding", "qwen3", "gemma2", "granite", "cohere", "gpt2"),
    *("qwen3_moe", "glm4_moe"),
)
TOGETHER, APART = 10**9, -(10**9)
"""Values of `_CALL_COST` with which all branches are attended to in one call, or each in its own."""


def check(tiny: SimpleNamespace, model: Any, samples: list[Sample], per_token: bool = True, **cut: Any) -> None:
    """One step of rate 0 with shared prompts equals transformers sample by sample."""
    with tiny.float64():
        expected = tiny.one_by_one(model, samples, per_token)
        trained = copy.deepcopy(model)
        backend = tiny.backend(trained, lr=0.0, log_probs_chunk_size=7)
        batch = make_train_batch(samples, mean="token" if per_token else "sample", share_prompts=True, **cut)
        metrics = backend.train_step(batch)
    tiny.assert_equal_training(metrics["loss"], trained, *expected)


@pytest.mark.parametrize("cost", [TOGETHER, APART], ids=["together", "apart"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_equal_plain_transformers(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, architecture: str, cost: int
) -> None:
    assert set(tiny.architectures) == set(ARCHITECTURES)
    monkeypatch.setattr(attention_module, "_CALL_COST", cost)
    check(tiny, tiny.model(architecture), tiny.groups(tiny.grouped), micro_batch_size=20)


@pytest.mark.parametrize("cut", [{"micro_batch_size": n} for n in (1, 3, 4)] + [{"max_tokens": 24}], ids=str)
def test_groups_may_be_cut_into_micro_batches(tiny: SimpleNamespace, cut: dict[str, int]) -> None:
    check(tiny, tiny.model("qwen3"), tiny.groups(tiny.grouped), per_token=False, **cut)


shapes = st.lists(
    st.tuples(
        st.integers(1, 8),
        st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=7), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=12)
@given(shapes=shapes, size=st.integers(1, 16), cost=st.sampled_from([TOGETHER, 20, APART]))
def test_any_groups_and_cuts_equal_plain_transformers(tiny: SimpleNamespace, shapes: Any, size: int, cost: int) -> None:
    samples = tiny.groups(shapes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_module, "_CALL_COST", cost)
        if any(sum(s.trained_mask) for s in samples):
            check(tiny, tiny.model("qwen2_sliding"), samples, micro_batch_size=size)


def test_a_prompt_is_laid_once_and_predicts_the_first_token_of_every_response() -> None:
    samples = [
        Sample(group_index=0, tokens=[1, 2, 3, 10, 11, 12], response_length=3),
        Sample(group_index=0, tokens=[1, 2, 3, 20, 21], response_length=2),
        Sample(group_index=0, tokens=[1, 2, 3, 30], response_length=1),
        Sample(group_index=0, tokens=[1, 2, 4, 40, 41], response_length=2),
        Sample(group_index=1, tokens=[1, 2, 4, 50, 51], response_length=2),
    ]
    row = pack_samples(samples, vocab_size=263, share_prompts=True)
    assert row.input_ids.tolist() == [[1, 2, 3, 10, 11, 20, 1, 2, 4, 40, 1, 2, 4, 50]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2, 3, 0, 1, 2, 3]]
    assert row.segments.lengths == (6, 4, 4)
    assert row.segments.bounds.tolist() == [0, 6, 10, 14]
    shared, *others = row.segments.branches
    assert shared.lengths == (3, 2, 1)
    assert others == [None, None]
    assert row.targets.tolist() == [10, 11, 12, 20, 21, 30, 40, 41, 50, 51]
    assert row.predictors.tolist() == [2, 3, 4, 2, 5, 2, 8, 9, 12, 13]
    assert row.sample_index.tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 4, 4]


def test_samples_without_a_prompt_share_nothing() -> None:
    samples = [Sample(group_index=0, tokens=[1, 2, 3], response_length=3, loss_mask=[0, 1, 1]) for _ in range(2)]
    row = pack_samples(samples, vocab_size=263, share_prompts=True)
    assert row.segments.lengths == (2, 2)
    assert row.segments.branches == (None, None)


@pytest.mark.parametrize("cost", [TOGETHER, APART], ids=["together", "apart"])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("key_heads", [4, 1])
def test_attention_and_its_gradients_equal_every_sample_alone(
    monkeypatch: pytest.MonkeyPatch, window: int | None, cap: float | None, key_heads: int, cost: int
) -> None:
    monkeypatch.setattr(attention_module, "_CALL_COST", cost)
    torch.manual_seed(0)
    shape, before = (5, 3, 1, 4), 2
    q, k, v = (torch.randn(1, h, 15, 8, dtype=torch.float64, requires_grad=True) for h in (4, key_heads, key_heads))
    options = {"scaling": 0.7, "sliding_window": window, "softcap": cap}

    def attention(places: list[int], segments: Segments) -> torch.Tensor:
        chosen = (t[:, :, places] for t in (q, k, v))
        return packed_attention(torch.nn.Module(), *chosen, None, segments=segments, **options)[0]

    found = attention(list(range(15)), Segments.of([(before,), shape]))
    stem, alone, start = list(range(before, before + shape[0])), [], before + shape[0]
    for length in shape[1:]:
        alone.append(attention([*stem, *range(start, start + length)], Segments.of([(shape[0] + length,)])))
        start += length
    first = attention([0, 1], Segments.of([(before,)]))
    expected = torch.cat([first, alone[0][:, : shape[0]], *(a[:, shape[0] :] for a in alone)], 1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    found_grads = torch.autograd.grad(found, (q, k, v), grad)
    for a, b in zip(found_grads, torch.autograd.grad(expected, (q, k, v), grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def plain_and_shared(tiny: SimpleNamespace, **options: Any) -> list[tuple[dict[str, float], list[torch.Tensor]]]:
    """Metrics and gradients of a step on the groups, float32 weights."""
    found = []
    for share in (False, True):
        backend = tiny.backend(tiny.model("qwen3", dtype=torch.float32), lr=0.0, **options)
        samples = tiny.groups(tiny.grouped)
        batch = make_train_batch(samples, micro_batch_size=20, share_prompts=share, temperature=0.8)
        found.append((backend.train_step(batch), [p.grad for p in backend.model.parameters()]))
    return found


def test_gradient_checkpointing_does_not_change_a_bit(tiny: SimpleNamespace) -> None:
    (_, (_, without)), (_, (_, with_it)) = (plain_and_shared(tiny, gradient_checkpointing=on) for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(without, with_it, strict=True))


def test_bf16_stays_near_plain_packing(tiny: SimpleNamespace) -> None:
    (plain, _), (shared, _) = plain_and_shared(tiny, bf16=True)
    assert shared["loss"] == pytest.approx(plain["loss"], rel=0.01)
    assert shared["grad_norm"] == pytest.approx(plain["grad_norm"], rel=0.03)


# ------------------------------------------------------------------------------------------------ negative controls


def plant_branches_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention_module._branch_mask

    def wrong(branches: Any, stem: int, window: int | None, blocks: Any) -> torch.Tensor:
        return right(dataclasses.replace(branches, owner=branches.owner * 0), stem, window, blocks)

    monkeypatch.setattr(attention_module, "_branch_mask", wrong)


def plant_positions_that_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    right = predictor_module.packed_hidden

    def wrong(model: Any, row: Any) -> Any:
        run_on = torch.cat([torch.arange(length) for length in row.segments.lengths])[None]
        return right(model, dataclasses.replace(row, position_ids=run_on))

    monkeypatch.setattr(predictor_module, "packed_hidden", wrong)


def plant_first_tokens_predicted_from_the_branch_before(monkeypatch: pytest.MonkeyPatch) -> None:
    right = micro_batches_module.pack_samples

    def wrong(samples: Any, **kwargs: Any) -> Any:
        row = right(samples, **kwargs)
        return dataclasses.replace(row, predictors=row.predictors.cummax(0).values)

    monkeypatch.setattr(micro_batches_module, "pack_samples", wrong)


@pytest.mark.parametrize(
    "plant",
    [
        plant_branches_that_see_each_other,
        plant_positions_that_run_on,
        plant_first_tokens_predicted_from_the_branch_before,
    ],
)
def test_the_check_sees_a_planted_fault(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, plant: Any) -> None:
    samples = tiny.groups([(5, [[1, 1, 1], [1] * 4])])
    check(tiny, tiny.model("qwen3"), samples, micro_batch_size=20)
    plant(monkeypatch)
    with pytest.raises((AssertionError, PluginError)):  # some are seen before training already, by `model.prepare`
        check(tiny, tiny.model("qwen3"), samples, micro_batch_size=20)
