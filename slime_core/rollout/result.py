"""What becomes of a rollout when its samples have been made: the samples and the state of the data source stay where they are, and the driver is told
what it logs. Made by `RolloutWorker`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.rollout.image_counts import image_counts
from slime_core.sample import RolloutOutput, Sample, stored_sample
from slime_core.token_arrays import num_tokens
from slime_core.trajectories import trajectory_worths


@dataclass(frozen=True)
class RolloutResult:
    """A checked rollout, and the state of the data source right after it (which a checkpoint of this rollout stores,
    however far the next rollouts have been prefetched by then)."""

    output: RolloutOutput
    data_state: dict[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """This result as plain JSON data in which samples stand, for a checkpoint that is written while the rollout waits to be trained."""
        return {
            "groups": self.output.groups,
            "metrics": self.output.metrics,
            "data_state": self.data_state,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RolloutResult:
        """Make a result from what `to_dict` returned, and a checkpoint has stored."""
        groups = [list(map(stored_sample, group)) for group in data["groups"]]
        return cls(RolloutOutput(groups, data["metrics"]), data["data_state"], data["seconds"])

    def facts(self, args: RunArguments) -> RolloutFacts:
        """What the driver is told of it."""
        samples = self.output.samples
        own = {**raw_rewards(samples, args), **image_counts(args, samples)}
        return RolloutFacts(self.output.metrics, own, sum(map(num_tokens, samples)), self.seconds)


@dataclass(frozen=True)
class RolloutFacts:
    """What is logged of a rollout.

    Attributes:
        metrics: of the rollout function.
        own: of its samples: what they were worth on average, images.
        num_tokens: of all prompts and responses.
        seconds: that it took.
    """

    metrics: dict[str, float]
    own: dict[str, float]
    num_tokens: int
    seconds: float


def raw_rewards(samples: Sequence[Sample], args: RunArguments) -> dict[str, float]:
    """The mean of what a rollout's trajectories were worth, where samples have a reward to train on."""
    if args.disable_compute_advantages_and_returns or not samples:
        return {}
    rewards = trajectory_worths(samples, args.reward_key)
    return {"raw_reward": sum(rewards) / len(rewards)}
