"""Rotary embeddings that look at the longest position: a row's loss and gradients are those of the row alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from slime_core.errors import PluginError
from slime_core.sample import Sample
from slime_core.training.batches import make_train_batch
from slime_torch.model import prepare

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 4.0, 8.0, 16.0],
    "original_max_position_embeddings": 16,
}
MODELS: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_parameters": DYNAMIC, "max_position_embeddings": 16},
    "longrope": {"rope_parameters": LONGROPE, "max_position_embeddings": 64},
}
LENGTHS = (15, 40, 16, 17, 18, 33, 5)
"""Of whole samples: below, at and above the 16 tokens from which on frequencies change, in no order."""


@pytest.fixture(params=list(MODELS))
def model(request: Any, tiny: SimpleNamespace) -> Any:
    return tiny.model("llama", **MODELS[request.param])


def samples_of(tiny: SimpleNamespace) -> list[Sample]:
    made: list[Sample] = tiny.samples([(2, [1] * (length - 2)) for length in LENGTHS])
    made[1].loss_mask = [1] * 5 + [0] * 33  # what is not trained counts in the length all the same
    return made


def alone(tiny: SimpleNamespace, model: Any, samples: list[Sample]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and gradients over all tokens, each sample computed by a model that has seen no other."""
    counts = [sum(sample.trained_mask) / sum(sum(other.trained_mask) for other in samples) for sample in samples]
    found = [tiny.one_by_one(model, [sample], per_token=True) for sample in samples]
    gradients = {name: sum(c * own[name] for c, (_, own) in zip(counts, found, strict=True)) for name in found[0][1]}
    return sum(c * loss for c, (loss, _) in zip(counts, found, strict=True)), gradients


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, len(LENGTHS)])
def test_loss_and_gradients_are_those_of_transformers_row_by_row(
    tiny: SimpleNamespace, model: Any, micro_batch_size: int
) -> None:
    samples = samples_of(tiny)
    with tiny.float64():
        expected = alone(tiny, model, samples)
        backend = tiny.backend(model)
        batch = make_train_batch(samples, micro_batch_size=micro_batch_size, mean="token")
        loss = backend.train_step(batch)["loss"]
    tiny.assert_equal_training(loss, backend.model, *expected)


def test_prompts_are_not_shared_and_what_was_computed_before_is_forgotten(tiny: SimpleNamespace, model: Any) -> None:
    samples = tiny.groups([(6, [[1] * 4, [1] * 30, [1] * 12])])
    backend = tiny.backend(model)
    assert not backend.shares_prompts
    first = backend.log_probs(make_train_batch(samples, micro_batch_size=3))
    for order in ([2, 0, 1], [1, 2, 0]):
        again = backend.log_probs(make_train_batch([samples[i] for i in order], micro_batch_size=1))
        for place, number in enumerate(order):
            assert again[place] == pytest.approx(first[number], abs=1e-12)


def test_plain_positions_share_prompts(tiny: SimpleNamespace) -> None:
    assert tiny.backend(tiny.model("llama")).shares_prompts


def test_the_self_check_sees_a_position_that_depends_on_the_longest_of_a_row(tiny: SimpleNamespace) -> None:
    """A module that is not known to do so: the frequencies change far behind the few tokens that are compared."""
    model = tiny.model("llama")

    class Own(nn.Module):
        def __init__(self, plain: nn.Module, limit: int) -> None:
            super().__init__()
            self.plain, self.limit = plain, limit

        def forward(self, x: Any, position_ids: Any) -> Any:
            cos, sin = self.plain(x, position_ids)
            longest = position_ids.max() + 1
            return (cos, sin) if longest <= self.limit else (cos * 0.9, sin * 0.9)

    model.model.rotary_emb = Own(model.model.rotary_emb, model.config.max_position_embeddings)
    with pytest.raises(PluginError, match="computes a position otherwise when another sequence is longer"):
        prepare(model)


def test_the_self_check_reaches_no_further_than_a_table_of_positions(tiny: SimpleNamespace) -> None:
    prepare(tiny.model("gpt2"))
