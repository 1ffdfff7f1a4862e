"""`Schedule`: the learning rate of every optimizer step, as `--lr` and the options beside it describe it. Shared by all
train backends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from slime_core.arguments.groups.optimizer import OptimizerArguments
from slime_core.contracts.checking import Checking
from slime_core.errors import ArgumentError

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments


def check_schedule(args: RunArguments, checking: Checking) -> None:
    """Say before a run starts what is wrong with its schedule, where it is known how many steps there will be."""
    if args.num_rollout is None or args.num_steps_per_rollout is None:
        return
    with checking.noting():
        Schedule.from_args(args, args.num_rollout * args.num_steps_per_rollout)


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every optimizer step.

    Attributes:
        lr: the highest rate, reached after the warm-up.
        min_lr: the rate at the end of the decay, and after it.
        warmup_steps: steps in which the rate rises linearly from 0.
        decay_steps: steps, warm-up included, until the rate is `min_lr`.
        style: how it falls: "constant", "linear" or "cosine".
    """

    lr: float
    min_lr: float
    warmup_steps: int
    decay_steps: int
    style: str

    @classmethod
    def from_args(cls, args: OptimizerArguments, total_steps: int) -> Schedule:
        """The schedule of a run with `total_steps` optimizer steps; one without any only evaluates, whatever its schedule would be.

        Raises:
            ArgumentError: the warm-up does not end before the decay does.
        """
        decay_steps = max(1, args.lr_decay_iters or total_steps)
        warmup_steps = args.lr_warmup_iters
        if args.lr_warmup_fraction is not None:
            warmup_steps = int(Fraction(str(args.lr_warmup_fraction)) * decay_steps)  # of the decimal that was given
        if total_steps and warmup_steps >= decay_steps:
            raise ArgumentError(
                f"--lr-warmup-iters is {warmup_steps}, but the whole schedule has {decay_steps} steps "
                f"({'--lr-decay-iters' if args.lr_decay_iters else 'all steps of the run'}). Make the warm-up shorter."
            )
        return cls(args.lr, args.min_lr, warmup_steps, decay_steps, args.lr_decay_style)

    def lr_at(self, step: int) -> float:
        """The rate of the step that follows `step` finished ones, as Megatron's `OptimizerParamScheduler` has it. The
        first step of a run with a warm-up therefore has rate 0."""
        if self.warmup_steps and step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        if self.style == "constant":
            return self.lr
        if step > self.decay_steps:
            return self.min_lr
        done = (step - self.warmup_steps) / (self.decay_steps - self.warmup_steps)
        left = 1.0 - done if self.style == "linear" else 0.5 * (math.cos(math.pi * done) + 1.0)
        return self.min_lr + left * (self.lr - self.min_lr)
