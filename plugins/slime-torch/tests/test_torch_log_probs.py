"""`log_probs` gives the numbers of the training forward pass bit for bit, and leaves no trace. Temperature, entropy."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from slime_core.contracts.loss import LossInputs, LossOutputs, reads
from slime_core.contracts.train_backend import TrainBatch
from slime_core.training.batches import make_train_batch


class Capture:
    """A loss that keeps what it was given; with entropy, and with a gradient through it, if wanted."""

    def __init__(self, entropy: bool) -> None:
        self.seen: list[LossInputs] = []
        self.slime_reads = lambda args: {"entropy"} if entropy else set()

    def __call__(self, args: Any, inputs: LossInputs) -> LossOutputs:
        self.seen.append(inputs)
        bonus = 0 if inputs.entropy is None else 0.1 * inputs.entropy
        return LossOutputs(inputs.reduce(-inputs.log_probs - bonus))


def in_order(batch: TrainBatch, found: list[list[float]]) -> list[list[float]]:
    """The trained tokens of every micro-batch."""
    return [
        [x for i in micro_batch for x, flag in zip(found[i], batch.samples[i].trained_mask, strict=True) if flag]
        for micro_batch in batch.micro_batches
    ]


@pytest.mark.parametrize(
    "options", [{}, {"bf16": True}, {"gradient_checkpointing": True}, {"log_probs_chunk_size": 5}], ids=str
)
@pytest.mark.parametrize("share_prompts", [False, True])
@pytest.mark.parametrize("architecture", ["qwen3", "gemma2"])
def test_they_equal_those_of_the_training_forward_pass_bit_for_bit(
    tiny: SimpleNamespace, architecture: str, share_prompts: bool, options: dict[str, Any]
) -> None:
    loss = Capture(entropy=True)
    backend = tiny.backend(tiny.model(architecture, dtype=torch.float32), loss, lr=0.0, **options)
    batch = make_train_batch(
        tiny.groups(tiny.grouped), max_tokens=40, share_prompts=share_prompts, temperature=0.7, skipped={1, 6}
    )
    found = backend.log_probs(batch)
    backend.train_step(batch)
    assert [len(f) for f in found] == [s.response_length for s in batch.samples]
    for wanted, inputs in zip(in_order(batch, found), loss.seen, strict=True):
        assert torch.equal(torch.tensor(wanted), inputs.log_probs.detach())
    pairs = [zip(f, s.trained_mask, strict=True) for f, s in zip(found, batch.samples, strict=True)]
    untrained = [x for pair in pairs for x, flag in pair if not flag]
    assert {*untrained, *found[1], *found[6]} == {0.0}


def test_taking_them_leaves_no_trace_and_no_dropout(tiny: SimpleNamespace) -> None:
    batch = make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=4)
    model = tiny.model("llama", attention_dropout=0.5)
    backend = tiny.backend(model, lr=0.0)
    backend.train_step(batch)
    before = (torch.get_rng_state(), [p.grad.clone() for p in model.parameters()])
    states = (random.getstate(), str(numpy.random.get_state()))
    found = backend.log_probs(batch)
    assert found == backend.log_probs(batch)
    assert model.training
    assert torch.equal(before[0], torch.get_rng_state())
    assert all(torch.equal(a, p.grad) for a, p in zip(before[1], model.parameters(), strict=True))
    assert states == (random.getstate(), str(numpy.random.get_state()))
    assert found == tiny.backend(tiny.model("llama"), lr=0.0).log_probs(batch)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere"])
def test_temperature_and_entropy_are_those_of_the_models_logits(tiny: SimpleNamespace, architecture: str) -> None:
    model, samples, loss = tiny.model(architecture), tiny.samples(tiny.mixed), Capture(entropy=True)
    with tiny.float64():
        expected, entropies = [], []
        for sample in samples:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([sample.tokens]), use_cache=False).logits[0] / 0.6
            rows = logits[-sample.response_length - 1 : -1].log_softmax(-1)
            expected.append(rows[torch.arange(len(rows)), torch.tensor(sample.tokens[-len(rows) :])])
            entropies.append(-(rows.exp() * rows).sum(-1))
        backend = tiny.backend(model, loss, lr=0.0)
        batch = make_train_batch(samples, micro_batch_size=6, temperature=0.6)
        found = backend.log_probs(batch)
        backend.evaluate(batch)
    mask = [torch.tensor(s.trained_mask, dtype=torch.bool) for s in samples]
    for f, e, m in zip(found, expected, mask, strict=True):
        torch.testing.assert_close(torch.tensor(f, dtype=torch.float64), e * m, rtol=1e-12, atol=1e-12)
    wanted = torch.cat([e[m] for e, m in zip(entropies, mask, strict=True)])
    torch.testing.assert_close(loss.seen[0].entropy, wanted, rtol=1e-12, atol=1e-12)


def test_entropy_is_there_for_losses_that_read_it_only(tiny: SimpleNamespace) -> None:
    batch = make_train_batch(tiny.samples([(2, [1, 1]), (2, [0])]))
    for entropy in (False, True):
        loss = Capture(entropy)
        tiny.backend(tiny.model(), loss).train_step(batch)
        assert [inputs.entropy is not None for inputs in loss.seen] == [entropy, entropy]
    wrong = reads(lambda args: {"entropie"})(lambda args, inputs: None)
    with pytest.raises(Exception, match="reads entropie"):
        tiny.backend(tiny.model(), wrong)
