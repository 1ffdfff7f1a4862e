"""A micro-batch on its way through a train backend: its packed row, what its loss is given, and how the results of all
micro-batches of a step come together. Called by train backends; between these functions lies only the model's own
computation.

    row = pack_micro_batch(batch, micro_batch, …)
    predicted, entropy = …                                        # the backend's model
    outputs = loss(args, loss_inputs(batch, micro_batch, row, predicted, entropy))
    losses, metrics = gather_outputs([(outputs.loss, outputs.metrics), …], ranks)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from slime_core.contracts.loss import LossInputs, MeanOfNothing, Reduce, Responses
from slime_core.contracts.train_backend import TrainBatch
from slime_core.errors import PluginError
from slime_core.tensors.packed_rows import PackedRow, pack_samples
from slime_core.tensors.ranks import Ranks
from slime_core.tensors.transfer import numbers_on
from slime_core.token_arrays import rows_of, trained


def pack_micro_batch(
    batch: TrainBatch,
    micro_batch: Sequence[int],
    *,
    vocab_size: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    whole: bool = False,
) -> PackedRow:
    """Lay the samples of a micro-batch end to end, with the batch's columns at their trained tokens.

    Args:
        micro_batch: indices into `batch.samples`.
        vocab_size, device, dtype, whole: see `pack_samples`, whose errors this raises.
    """
    return pack_samples(
        [batch.samples[i] for i in micro_batch],
        vocab_size=vocab_size,
        share_prompts=batch.share_prompts,
        columns={name: [values[i] for i in micro_batch] for name, values in batch.columns.items()},
        device=device,
        dtype=dtype,
        whole=whole,
    )


def loss_inputs(
    batch: TrainBatch,
    micro_batch: Sequence[int],
    row: PackedRow,
    predicted: Tensor,
    entropy: Tensor | None = None,
    *,
    critic: bool = False,
) -> LossInputs:
    """What the loss is given for one micro-batch.

    Args:
        row: the packed row of this micro-batch.
        predicted: (T,) log-probs of the row's targets; a critic's values at them.
        entropy: (T,) entropies of the distributions that predict the targets, where the loss reads them.
        critic: `predicted` are values.
    """

    def reduce(per_sample: Sequence[float]) -> Reduce:
        weights = numbers_on(predicted.device, [per_sample[i] for i in micro_batch], predicted.dtype)
        return Reduce(weights[row.sample_index])

    measured = reduce(batch.measured)
    return LossInputs(
        log_probs=predicted,
        loss_mask=torch.ones_like(predicted),
        sample_index=row.sample_index,
        reduce=reduce(batch.weights),
        measured=measured if any(batch.measured) else MeanOfNothing(measured.weights),
        entropy=entropy,
        values=predicted if critic else None,
        responses=Responses([batch.samples[i] for i in micro_batch], batch.divisor),
        **row.columns,
    )


def gather_outputs(
    outputs: Sequence[tuple[Tensor, dict[str, Tensor]]], ranks: Ranks
) -> tuple[list[float], dict[str, float]]:
    """The losses of all micro-batches of all ranks, in the order of the batch, and the sums of the metrics.

    The sums are taken in that order, so that the result is the same in every run and on every rank. All ranks call this
    at the same time.

    Args:
        outputs: loss and metrics of each of this rank's micro-batches, at least one. Every rank has as many.

    Raises:
        PluginError: the metrics of some micro-batches, of this rank or another, have other names than those of others.
    """
    kinds = {frozenset(metrics) for _, metrics in outputs}
    names = sorted(outputs[0][1]) if len(kinds) == 1 else []
    device = outputs[0][0].device
    numbers = [number for loss, metrics in outputs for number in (loss, *map(metrics.__getitem__, names))]
    table = torch.stack([number.detach().to(device, torch.float64).reshape(()) for number in numbers])
    rows: list[list[float]] = table.view(len(outputs), -1).tolist()  # the device is read once
    same, rows = _exchanged(float(_digest(names)) if len(kinds) == 1 else -1.0, rows, ranks)
    if not same:
        raise _told_apart([names_of_one for of_rank in ranks.gather(kinds) for names_of_one in of_rank])
    losses, *columns = zip(*rows, strict=True)
    sums = {name: sum(column) for name, column in zip(names, columns, strict=True)}
    return list(losses), {name: sums[name] for name in outputs[0][1]}


_WIDTH = 32
"""Numbers of a micro-batch that are exchanged at once, so that ranks whose metrics are others exchange as many all the same."""


def _exchanged(digest: float, rows: list[list[float]], ranks: Ranks) -> tuple[bool, list[list[float]]]:
    """Whether the metrics of all ranks are the same, and then the rows of all.

    Args:
        digest: what metrics with the same names have in common; negative where they differ in this rank.
    """
    if ranks.size == 1:
        return digest >= 0, rows
    first = ranks.interleave([[digest, *row[:_WIDTH], *[0.0] * (_WIDTH - len(row))] for row in rows])
    if digest < 0 or any(row[0] != digest for row in first):
        return False, rows
    width = len(rows[0])
    rest = ranks.interleave([row[_WIDTH:] for row in rows]) if width > _WIDTH else [[] for _ in first]
    return True, [[*own[1 : 1 + width], *more] for own, more in zip(first, rest, strict=True)]


def _digest(names: Sequence[str]) -> int:
    """A number that a float64 holds whole."""
    return int.from_bytes(hashlib.sha256("\n".join(names).encode()).digest()[:6])


def _told_apart(kinds: Sequence[frozenset[str]]) -> PluginError:
    some = sorted(frozenset().union(*kinds) - kinds[0].intersection(*kinds))
    return PluginError(
        f"The loss gave the metrics {', '.join(some)} for some micro-batches and not for others, so that there is no mean of them. A "
        "loss must give the same metrics for all, also for one without tokens: 0 where there is nothing."
    )


def response_values(
    batch: TrainBatch, computed: Iterable[tuple[Sequence[int], Tensor]], ranks: Ranks
) -> Sequence[Sequence[float]]:
    """Numbers of trained tokens, put back where they belong in the responses: what `TrainBackend.log_probs` returns.

    All ranks call this at the same time, and each gets the numbers of all.

    Args:
        computed: this rank's micro-batches, and for each the (T,) numbers of its trained tokens, in the order of
            `PackedRow.targets`.

    Returns:
        per sample of the batch `response_length` floats, 0.0 where nothing was computed.
    """
    lengths = [sample.response_length for sample in batch.samples]
    begins = [0, *accumulate(lengths)]
    found: Tensor | None = None
    for micro_batch, predicted in computed:
        # One rank keeps 4 bytes as they are; several must add numbers of the same kind.
        kind = torch.float32 if ranks.size == 1 and predicted.dtype != torch.float64 else torch.float64
        numbers, start = predicted.detach().to("cpu", kind).numpy(), 0
        found = torch.zeros(begins[-1], dtype=kind) if found is None else found
        values = found.numpy()
        for i in micro_batch:
            places = trained(batch.samples[i]).nonzero()[0]
            places += begins[i]
            values[places] = numbers[start : start + len(places)]
            start += len(places)
    found = torch.zeros(begins[-1], dtype=torch.float64) if found is None else found
    if ranks.size > 1:
        found = ranks.sum(found.to(ranks.device)).cpu()
    return rows_of(found.numpy(), lengths)


def step_metrics(
    batch: TrainBatch, losses: Sequence[float], metrics: dict[str, float], grad_norm: float, lr: float
) -> dict[str, float]:
    """Return what a backend's `train_step` returns.

    Args:
        losses, metrics: what `gather_outputs` returned.
        grad_norm: the norm of the whole gradient, before it was clipped.
        lr: the learning rate of the step.
    """
    return {
        "loss": sum(losses),
        **metrics,
        "grad_norm": grad_norm,
        "lr": lr,
        "num_trained_tokens": batch.num_trained_tokens,
        "num_tokens": batch.num_tokens,
    }
