"""What transformers computes for the batch of `megatron_models`, and what torch's AdamW makes of it.

Nothing here imports megatron-core. The numbers are written to files, which ranks in other processes read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from megatron_adapters import merged, plain, with_peft
from megatron_models import (
    BETAS,
    CLIP,
    CONSTANT,
    EPS,
    LR,
    TRAJECTORIES,
    WEIGHT_DECAY,
    as_in_a_file,
    make_arguments,
    make_batch,
    make_samples,
)
from torch import Tensor

from slime_core.contracts.loss import LossFunction, LossInputs, Reduce
from slime_core.contracts.train_backend import TrainBatch
from slime_core.sample import Sample
from slime_core.training.batches import Mean
from slime_losses.policy import policy_loss
from slime_losses.sft import sft_loss

Loss = Literal["policy", "sft"]

STEPS = 2
LOSSES: dict[Loss, LossFunction] = {"policy": policy_loss, "sft": sft_loss}


@dataclass
class Truth:
    """What transformers computes for a batch, and torch's AdamW makes of it.

    Attributes:
        columns: the further values of the batch: advantages, log-probs before and of a reference model.
        log_probs, entropies: per sample, of the trained tokens of its response.
        loss, metrics: of the first step.
        gradients: of every parameter, by its name in a checkpoint, before clipping.
        losses, norms: of the steps.
        weights: after the steps, parameters and buffers by their names in a checkpoint.
        made, given: adapters by their names in files, as peft makes them, and as they are before the steps; none without LoRA.
    """

    columns: dict[str, list[list[float]]]
    log_probs: list[list[float]]
    entropies: list[list[float]]
    loss: float
    metrics: dict[str, float]
    gradients: dict[str, Tensor]
    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]
    made: dict[str, Tensor] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write everything to a file."""
        torch.save(vars(self), path)

    @classmethod
    @functools.cache
    def read(cls, path: Path) -> Truth:
        """Read what `write` wrote, once: many cases compare with one, and none changes it."""
        return cls(**torch.load(path, weights_only=True))


def compute_truth(model: Any, loss: Loss = "policy", mean: Mean = "sample", lora: Sequence[str] = ()) -> Truth:
    """Compute every sample alone, take the loss of all of them at once, and take optimizer steps. Changes the model.

    Args:
        lora: layers that get an adapter, of which alone is trained then.
    """
    samples = make_samples()
    made = with_peft(model, lora) if lora else {}
    trained = [(plain(name), p) for name, p in model.named_parameters() if p.requires_grad]
    given = {name: p.detach().clone() for name, p in trained} if lora else {}
    with torch.no_grad():
        before = [log_probs.tolist() for log_probs, _ in _predictions(model, samples)]
    columns = _columns(samples, before) if loss == "policy" else {}
    batch = make_batch(columns, mean)
    decayed = [p for _, p in trained if p.ndim > 1]
    others = [p for _, p in trained if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    losses, norms, first = [], [], None
    for _ in range(STEPS):
        optimizer.zero_grad()
        found = _predictions(model, samples)
        outputs = LOSSES[loss](make_arguments(), _loss_inputs(batch, found, _weights(samples, mean)))
        outputs.loss.backward()
        losses.append(outputs.loss.item())
        if first is None:
            pairs = ((n, torch.zeros_like(p) if p.grad is None else p.grad) for n, p in trained)
            first = outputs, [e.tolist() for _, e in found], {n: g.clone() for n, g in as_in_a_file(pairs).items()}
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
    outputs, entropies, gradients = first
    parameters = ((plain(name), p) for name, p in model.named_parameters())
    biases = ((n, b) for n, b in model.named_buffers() if n.endswith("e_score_correction_bias"))
    return Truth(
        columns=columns,
        log_probs=before,
        entropies=entropies,
        loss=losses[0],
        metrics={name: value.item() for name, value in outputs.metrics.items()},
        gradients=gradients,
        losses=losses,
        norms=norms,
        weights=merged({n: t.detach().clone() for n, t in as_in_a_file([*parameters, *biases]).items()}),
        made=made,
        given=given,
    )


def _predictions(model: Any, samples: list[Sample]) -> list[tuple[Tensor, Tensor]]:
    """Per sample the log-probs of its trained tokens and the entropies there, from whole logits."""
    temperature = make_batch({}).temperature
    found = []
    for sample in samples:
        logits = model(torch.tensor([sample.tokens]), use_cache=False).logits[0].float() / temperature
        rows = torch.log_softmax(logits, -1)
        first = len(sample.tokens) - sample.response_length
        places = [first + j for j, trained in enumerate(sample.trained_mask) if trained]
        chosen = [rows[place - 1, sample.tokens[place]] for place in places]
        entropies = [-(rows[place - 1].exp() * rows[place - 1]).sum() for place in places]
        empty = logits.new_zeros(0)
        found.append((torch.stack(chosen) if places else empty, torch.stack(entropies) if places else empty))
    return found


def _columns(samples: list[Sample], log_probs: list[list[float]]) -> dict[str, list[list[float]]]:
    """Advantages of both signs, and old log-probs on both sides of the clipping range."""

    def column(shift: Any) -> list[list[float]]:
        rows = []
        for sample, values in zip(samples, log_probs, strict=True):
            numbers = iter(values)
            trained = [next(numbers) if flag else 0.0 for flag in sample.trained_mask]
            rows.append([value + shift(sample.index, j) for j, value in enumerate(trained)])
        return rows

    return {
        "advantages": [[math.cos(2.0 * s.index + 0.3 * j) for j in range(s.response_length)] for s in samples],
        "old_log_probs": column(lambda i, j: 0.4 * math.sin(i + 2.0 * j)),
        "ref_log_probs": column(lambda i, j: 0.5 * math.cos(3.0 * i + j) - 0.2),
    }


def _weights(samples: list[Sample], mean: Mean) -> list[float]:
    """The weight of each sample's trained tokens, from the definitions in docs/rl.md."""
    trained = [sum(sample.trained_mask) for sample in samples]
    together = [sum(n for n, t in zip(trained, TRAJECTORIES, strict=True) if t == own) for own in TRAJECTORIES]
    trajectories = len(set(TRAJECTORIES))
    divisors = {
        "sample": [trajectories * n for n in together],
        "token": [sum(trained)] * len(samples),
        "constant": [trajectories * CONSTANT] * len(samples),
    }
    return [1 / divisor if n else 0.0 for divisor, n in zip(divisors[mean], trained, strict=True)]


def _loss_inputs(batch: TrainBatch, found: list[tuple[Tensor, Tensor]], weights: list[float]) -> LossInputs:
    """All trained tokens of the batch as one micro-batch."""
    log_probs = torch.cat([log_probs for log_probs, _ in found])
    counts = torch.tensor([len(log_probs) for log_probs, _ in found])
    sample_index = torch.arange(len(found)).repeat_interleave(counts)
    columns = {
        name: torch.tensor(
            [
                v
                for s, row in zip(batch.samples, rows, strict=True)
                for v, t in zip(row, s.trained_mask, strict=True)
                if t
            ]
        )
        for name, rows in batch.columns.items()
    }
    return LossInputs(
        log_probs=log_probs,
        loss_mask=torch.ones_like(log_probs),
        sample_index=sample_index,
        reduce=Reduce(torch.tensor(weights)[sample_index]),
        measured=Reduce(torch.tensor(weights)[sample_index]),
        entropy=torch.cat([entropy for _, entropy in found]),
        **columns,
    )
