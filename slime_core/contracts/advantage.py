"""Advantage estimators: the signals of a whole rollout in, one advantage per response token out.

An estimator is a pure function on flat tensors. It is called once per rollout, in the training process, on all samples
of the rollout, so that what it normalises over (a group, the whole batch) is never cut by steps or micro-batches.

Importing this module does not import torch; the tensors bring it along.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from slime_core.contracts.kind import Kind
from slime_core.contracts.loss import hint_at_reads
from slime_core.contracts.results import shape_of, shown

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.arguments import RunArguments


@dataclass(frozen=True)
class AdvantageInputs:
    """S samples with T response tokens in all, sample after sample. Floats are float64, on the CPU.

    Attributes:
        rewards: (S,) one reward for each sample, after `--reward-key` and reward post-processing.
        group_index: (S,) int64, 0 … G-1: samples of one prompt share it.
        lengths: (S,) int64, response tokens of each sample; their sum is T.
        loss_mask: (T,) 1 for trained tokens.
        sample_index: (T,) int64, 0 … S-1.
        trajectory_index: (S,) int64, 0 … R-1: the segments of a trajectory share it (`slime_core.trajectories`). None: every
            sample is a trajectory of its own.
        rewards_are_final: a `--custom-reward-post-process-path` or `--custom-convert-samples-to-train-data-path` made them; they are
            not to be normalised again.
        raw_rewards: (S,) what the answers were worth before such a function: what it called raw, or what a hook has noted as
            "raw_reward" in their metadata; None: `rewards`.
        log_probs: (T,) under the weights before training, 0 at untrained tokens; None unless the estimator `reads`
            "old_log_probs".
        ref_log_probs, values: (T,) likewise; "ref_log_probs", "values".
    """

    rewards: Tensor
    group_index: Tensor
    lengths: Tensor
    loss_mask: Tensor
    sample_index: Tensor
    trajectory_index: Tensor | None = None
    rewards_are_final: bool = False
    raw_rewards: Tensor | None = None
    log_probs: Tensor | None = None
    ref_log_probs: Tensor | None = None
    values: Tensor | None = None

    @cached_property
    def trained(self) -> Tensor:
        """(T,) bool: which tokens are trained. It takes an eighth of the memory of `loss_mask`."""
        return self.loss_mask > 0


@dataclass(frozen=True)
class AdvantageOutputs:
    """What an estimator returns.

    Attributes:
        advantages: (T,) finite.
        returns: (T,) what a critic shall predict; None without one.
    """

    advantages: Tensor
    returns: Tensor | None = None


def advantages(args: RunArguments, inputs: AdvantageInputs) -> AdvantageOutputs:
    """How much better than expected each response token was.

    It is called in every training rank with the whole rollout, so it must give the same in each; that is checked.

    An estimator that needs log-probs or values says so with `slime_core.contracts.loss.reads`.
    """
    raise NotImplementedError


def _check_advantages(result: Any, args: tuple[Any, ...]) -> str | None:
    if not isinstance(result, AdvantageOutputs):
        return f"{shown(result)}; expected an AdvantageOutputs"
    wanted = tuple(args[1].trained.shape)
    made = {"advantages": result.advantages} | ({} if result.returns is None else {"returns": result.returns})
    for name, value in made.items():
        if getattr(value, "shape", None) != wanted:
            return f"{shape_of(value)} as {name}; expected a tensor of shape {wanted}, one for each response token"
        # The sum is not finite if a number is not, and is found much sooner; where it only overflows, a look at all decides.
        if not bool(value.sum().isfinite()) and not bool(value.isfinite().all()):
            bad = sorted(set(args[1].sample_index[~value.isfinite()].tolist()))
            return f"{name} that are NaN or Inf, at samples {bad[:5]} of the rollout; expected finite numbers"
    return None


KINDS = (
    Kind(
        "advantage",
        "slime_advantages",
        advantages,
        ("--advantage-estimator", "--custom-advantage-function-path"),
        marks=("slime_reads",),
        check=_check_advantages,
        hint=hint_at_reads,
    ),
)
