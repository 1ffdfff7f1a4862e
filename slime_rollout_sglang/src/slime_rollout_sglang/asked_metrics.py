"""Metrics of rollouts and evaluations that somebody has to ask for, under slime's options and with slime's numbers:
`--log-passrate`, `--log-multi-turn` and `--log-reward-category`. Pure functions."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slime_core.contracts.results import shown
from slime_core.errors import SampleError
from slime_core.sample import Group, Sample
from slime_core.token_arrays import num_trained
from slime_core.trajectories import pass_rates, trajectory_worths

if TYPE_CHECKING:
    from slime_rollout_sglang.arguments import RlRunArguments


def asked_metrics(args: RlRunArguments, groups: Sequence[Group]) -> dict[str, float]:
    """Return what the options ask for of the samples of a rollout.

    Raises:
        SampleError: --log-reward-category names a key that no reward has.
    """
    samples = [sample for group in groups for sample in group]
    found: dict[str, float] = {}
    if args.log_passrate:
        rates = pass_rates([trajectory_worths(group, args.reward_key) for group in groups])
        found |= {f"passrate/{name}": value for name, value in rates.items()}
    if args.log_multi_turn:
        found |= multi_turn(samples, args.rollout_max_response_len)
    if args.log_reward_category:
        found |= reward_categories([sample.reward for sample in samples], args.log_reward_category)
    return found


def multi_turn(samples: Sequence[Sample], longest: int) -> dict[str, float]:
    """Return the lengths of responses with and without what tools wrote, and the number of turns where hooks note it.

    Args:
        samples: `metadata["round_number"]` is the number of turns; it is reported if the first sample has it.
        longest: --rollout-max-response-len; "clip_ratio" is the share of responses of at least this length.
    """
    lengths = [sample.response_length for sample in samples]
    found = {
        **_spread("multi_turn/raw_response_length/response_length", lengths),
        "multi_turn/raw_response_length/response_length_clip_ratio": statistics.fmean(n >= longest for n in lengths),
        **_spread("multi_turn/wo_obs_response_length/response_length", [num_trained(s) for s in samples]),
    }
    rounds = [sample.metadata.get("round_number") for sample in samples]
    numbers = [n for n in rounds if isinstance(n, (int, float))]
    return {**found, **(_spread("multi_turn/multi_turn_metric/round_number", numbers) if numbers else {})}


def reward_categories(rewards: Sequence[Any], key: str) -> dict[str, float]:
    """Return the share of samples with each value that their rewards have under a key, as "error_cat/VALUE". Those whose reward
    has no such key are "error_cat/none".

    Raises:
        SampleError: no reward has the key.
    """
    named = [str(reward[key]) if _has(reward, key) else None for reward in rewards]
    if not any(name is not None for name in named):
        raise SampleError(
            f"--log-reward-category is {key!r}, but no reward is a dict with that key; the first is {shown(rewards[0])}. Return the "
            "category from the reward, with the number that --reward-key names, or leave the option out."
        )
    counts = Counter("none" if name is None else name for name in named)
    return {f"error_cat/{name}": count / len(rewards) for name, count in sorted(counts.items())}


def categories_of_sets(rewards: Mapping[str, Sequence[Any]], key: str) -> dict[str, float]:
    """Return `reward_categories` of evaluation sets as "SET/error_cat/VALUE", but of a set whose rewards have no such key.

    Args:
        rewards: of each set.

    Raises:
        SampleError: there are rewards, and none has the key.
    """
    having = {name: of_set for name, of_set in rewards.items() if any(_has(reward, key) for reward in of_set)}
    chosen = having or {name: of_set for name, of_set in rewards.items() if of_set}
    return {
        f"{name}/{metric}": share
        for name, of_set in chosen.items()
        for metric, share in reward_categories(of_set, key).items()
    }


def _has(reward: Any, key: str) -> bool:
    return isinstance(reward, dict) and key in reward


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        f"{name}_mean": statistics.fmean(values),
        f"{name}_max": float(max(values)),
        f"{name}_min": float(min(values)),
    }
