"""`Steps`: how the samples of a rollout are cut into optimizer steps, and how the batch of each is made. Called by
`TrainWorker`. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slime_core.arguments import RunArguments
from slime_core.arguments.derived import derived
from slime_core.contracts.train_backend import TrainBatch
from slime_core.errors import SampleError
from slime_core.sample import Sample
from slime_core.token_arrays import array_of, trained
from slime_core.training.batches import make_train_batch
from slime_core.training.signals import Column
from slime_core.training.work import TOKENS, Work
from slime_core.trajectories import in_trajectories

if TYPE_CHECKING:
    from slime_core.token_columns import Array


@dataclass(frozen=True)
class Steps:
    """Cuts rollouts into optimizer steps, as the arguments say.

    Attributes:
        has_advantages: the run computes advantages (all but SFT), so its samples come from an engine.
        may_skip: whether samples whose advantages are all 0 contribute no gradient, so that they need not be computed.
        ranks: data-parallel ranks.
        context_ranks: ranks that share every sequence, and so a micro-batch.
        shares_prompts: the backend computes the prompt of neighbouring samples once.
        work: what `--balance-data` balances.
    """

    args: RunArguments
    has_advantages: bool
    may_skip: bool
    ranks: int = 1
    context_ranks: int = 1
    shares_prompts: bool = False
    work: Work = TOKENS

    def parts(self, samples: Sequence[Sample]) -> Iterator[slice]:
        """Cut the samples of a rollout into its steps, with equally many trajectories in each where that is possible.

        Args:
            samples: the segments of every trajectory are neighbours (`slime_core.trajectories.gather_trajectories`).

        Raises:
            SampleError: there are fewer trajectories than steps.
        """
        steps = derived(self.args.num_steps_per_rollout)
        ends = list(itertools.accumulate(map(len, in_trajectories(samples)), initial=0))
        count = len(ends) - 1
        if count < steps:
            raise SampleError(
                f"The rollout has {count} trajectories ({len(samples)} samples), too few for {steps} optimizer steps "
                "(--num-steps-per-rollout)."
            )
        return (slice(ends[k * count // steps], ends[(k + 1) * count // steps]) for k in range(steps))

    def without_gradient(self, samples: Sequence[Sample], columns: Mapping[str, Column]) -> set[int]:
        """The indices of samples that contribute no gradient, since all their trained tokens have the advantage 0."""
        if not self.may_skip or "advantages" not in columns:
            return set()
        return {
            index
            for index, (sample, advantages) in enumerate(zip(samples, columns["advantages"], strict=True))
            if not _any_among(array_of(advantages), trained(sample))
        }

    def batch(
        self, samples: Sequence[Sample], columns: dict[str, Column] | None = None, skipped: set[int] | None = None
    ) -> TrainBatch:
        """Make the batch of one step.

        Args:
            samples: those of this step.
            columns: per-token values of these samples, as in `TrainBatch`.
            skipped: indices of samples that are not computed.
        """
        args, budget = self.args, None
        if self.args.use_dynamic_batch_size:
            budget = derived(self.args.max_tokens_per_gpu) * self.context_ranks
        return make_train_batch(
            samples,
            mean="token" if args.calculate_per_token_loss else "constant" if args.constant_length_loss else "sample",
            constant=args.rollout_max_response_len,
            micro_batch_size=args.micro_batch_size,
            max_tokens=budget,
            share_prompts=args.share_prompts and self.has_advantages and self.shares_prompts,
            temperature=args.rollout_temperature if self.has_advantages else 1.0,
            columns=columns,
            skipped=skipped or set(),
            ranks=self.ranks,
            balance=args.balance_data,
            work=self.work,
        )


def _any_among(values: Array, chosen: Array) -> bool:
    """Whether any of the chosen values is not 0; the first few mostly tell."""
    first, mask = values[:_FIRST], chosen[:_FIRST]
    return bool(first[mask].any()) or bool(values.any() and values[chosen].any())


_FIRST = 64
