"""How the samples of an optimizer step become its `TrainBatch`: the weights of their tokens, and their micro-batches.

One `TrainBatch` is one optimizer step over the *global* batch. Its micro-batches are lists of sample indices; every
micro-batch becomes one packed row of variable-length segments. The weight of a token counts the whole global batch, so
how the samples are cut into micro-batches (or spread over ranks) cannot change the loss. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

from slime_core.contracts.train_backend import TrainBatch
from slime_core.errors import ArgumentError
from slime_core.sample import Sample
from slime_core.token_arrays import num_trained
from slime_core.training.packing import Packing, balanced_micro_batches, micro_batches_in_order
from slime_core.training.work import TOKENS, Work
from slime_core.trajectories import trajectory_numbers

Mean = Literal["sample", "token", "constant"]


def make_train_batch(
    samples: Sequence[Sample],
    *,
    mean: Mean = "sample",
    constant: float = 1.0,
    micro_batch_size: int = 1,
    max_tokens: int | None = None,
    share_prompts: bool = False,
    temperature: float = 1.0,
    columns: dict[str, Sequence[Sequence[float]]] | None = None,
    skipped: Collection[int] = (),
    ranks: int = 1,
    balance: bool = False,
    work: Work = TOKENS,
) -> TrainBatch:
    """Build the batch of one optimizer step.

    Args:
        samples: the global batch.
        mean, constant: how the loss averages over tokens; see `token_weights`.
        micro_batch_size: samples per micro-batch; used when `max_tokens` is None.
        max_tokens: token budget of a micro-batch (`--max-tokens-per-gpu` under `--use-dynamic-batch-size`).
        share_prompts: keep samples of a group together, and count their prompt once.
        temperature, columns: as in `TrainBatch`.
        skipped: indices of samples that need no computation; they count in `weights` all the same.
        ranks: data-parallel ranks; see `TrainBatch.of_rank`.
        balance: spread the samples over the ranks by their work (`--balance-data`), whole groups where prompts are
            shared. Unless `max_tokens` stands against it, the waiting of a rank in all rounds together is then at most the time
            of the sample or group with most work. Without it every rank gets as many samples, in their order, and packs its own.
        work: what is balanced.

    Raises:
        ArgumentError: there are no samples.
    """
    if not samples:
        raise ArgumentError("A training batch needs at least one sample; the rollout returned none.")
    order = [i for i in range(len(samples)) if i not in skipped]
    packing = Packing(samples, micro_batch_size, max_tokens, share_prompts, work)
    cut = balanced_micro_batches if balance and ranks > 1 else micro_batches_in_order
    weights = token_weights(samples, mean, constant)
    computed = token_weights([samples[i] for i in order], mean, constant) if skipped else weights
    measured = dict(zip(order, computed, strict=True))
    return TrainBatch(
        samples=samples,
        micro_batches=cut(packing, order, ranks),
        weights=weights,
        measured=[measured.get(i, 0.0) for i in range(len(samples))],
        columns=columns or {},
        temperature=temperature,
        share_prompts=share_prompts,
        divisor=max(1, sum(map(num_trained, samples))) if mean == "token" else len(set(trajectory_numbers(samples))),
    )


def token_weights(samples: Sequence[Sample], mean: Mean, constant: float = 1.0) -> list[float]:
    """The weight of each trained token of a sample in the loss, per sample; 0 where a sample has no trained token.

    With R trajectories, n_r trained tokens in all segments of trajectory r together and M trained tokens in all:

    * "token" (`--calculate-per-token-loss`): 1 / M;
    * "sample" (the default): 1 / (R · n_r). One without trained tokens contributes nothing and still counts in R;
    * "constant" (Dr. GRPO, arXiv 2503.20783): 1 / (R · constant), so that long trajectories are not favoured.
    """
    counts = [num_trained(sample) for sample in samples]
    trained = sum(counts)
    numbers = trajectory_numbers(samples)
    of_trajectories = [0] * len(set(numbers))
    for number, count in zip(numbers, counts, strict=True):
        of_trajectories[number] += count
    divisors: dict[Mean, Callable[[int], float]] = {
        "token": lambda number: trained,
        "sample": lambda number: len(of_trajectories) * of_trajectories[number],
        "constant": lambda number: len(of_trajectories) * constant,
    }
    divisor = divisors[mean]
    return [1.0 / divisor(number) if count else 0.0 for number, count in zip(numbers, counts, strict=True)]
