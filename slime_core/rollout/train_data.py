"""What `--custom-convert-samples-to-train-data-path` and `--custom-reward-post-process-path` returned, put into the samples that are
trained on. Called by the rollout worker, once for a rollout."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from slime_core.contracts.results import is_finite_number
from slime_core.errors import PluginError, SampleError
from slime_core.sample import Group, RolloutOutput, Sample, Status
from slime_core.trajectories import noted_worth, worth, worth_metrics

_FIELDS = {
    "tokens": "tokens",
    "response_lengths": "response_length",
    "rewards": "reward",
    "loss_masks": "loss_mask",
    "rollout_log_probs": "rollout_log_probs",
    "rollout_ids": "rollout_id",
    "sample_indices": "index",
}
"""Columns of slime → the fields of a sample."""

_KNOWN_OTHERWISE = ("raw_reward", "truncated", "round_number", "source_names", "rollout_mask_sums")
"""Columns for slime's logging, or that follow from others: they may be there. Of these, `raw_reward` is logged, and `truncated`
becomes the status."""

_NOT_TRAINED = {
    "metadata": "what a sample carries for its loss; read the sample's metadata in a rollout or reward function",
    "multimodal_train_inputs": "images",
    "teacher_log_probs": "log-probs of a teacher",
    "rollout_routed_experts": "the experts of the engine; --use-routing-replay repeats those of the trainer",
    "rollout_top_p_token_ids": "the tokens that the engine's top-p left",
    "rollout_top_p_token_offsets": "the tokens that the engine's top-p left",
}
"""Columns of slime that training here has no use for."""


def converted(output: RolloutOutput, data: dict[str, list[Any]]) -> RolloutOutput:
    """Return the rollout with the values of `contracts.rollout.convert_samples` in place of its own.

    Rewards that are among them are final: the estimator does not normalise them again, and `raw_reward` goes on saying what the
    answers were worth.

    Raises:
        PluginError: a column is unknown, or holds what training has no use for.
    """
    for name in sorted(data.keys() - {*_FIELDS, *_KNOWN_OTHERWISE}):
        if name not in _NOT_TRAINED:
            raise PluginError(
                f"--custom-convert-samples-to-train-data-path returned {name!r}, which training does not know; it knows "
                f"{', '.join([*_FIELDS, *_KNOWN_OTHERWISE])}."
            )
        if any(value is not None for value in data[name]):
            raise PluginError(
                f"--custom-convert-samples-to-train-data-path returned {name!r}, which training here has no use for "
                f"({_NOT_TRAINED[name]}). Leave it out."
            )
    rows = [_converted(sample, data, number) for number, sample in enumerate(output.samples)]
    return RolloutOutput(_in_groups(rows, output.groups), _with_raw_reward(output, data))


def post_processed(
    output: RolloutOutput, raw: Sequence[float], rewards: Sequence[float], key: str | None
) -> RolloutOutput:
    """Return the rollout with what `contracts.reward.reward_post_process` returned noted in its samples: their final rewards, and what they
    were worth, unless a hook has noted that of one of them. The metrics of that follow.

    Args:
        key: which number of a reward that is a dict counts.
    """
    noted = any(noted_worth(sample) is not None for sample in output.samples)  # goes before, as in slime
    rows = [sample.changed() for sample in output.samples]
    for sample, raw_reward, reward in zip(rows, raw, rewards, strict=True):
        sample.note(final_reward=float(reward), **({} if noted else {"worth": float(raw_reward)}))
    groups = _in_groups(rows, output.groups)
    told = worth_metrics(groups, [worth(sample, key) for sample in rows])
    return RolloutOutput(groups, output.metrics | {name: told[name] for name in told if name in output.metrics})


def _in_groups(samples: Sequence[Sample], like: Sequence[Group]) -> list[Group]:
    """The samples in groups as large as these."""
    rest = iter(samples)
    return [list(islice(rest, len(group))) for group in like]


def _converted(sample: Sample, data: dict[str, list[Any]], number: int) -> Sample:
    changes = {field: data[name][number] for name, field in _FIELDS.items() if name in data}
    if "truncated" in data and bool(data["truncated"][number]) != (sample.status is Status.TRUNCATED):
        changes["status"] = Status.TRUNCATED if data["truncated"][number] else Status.COMPLETED
    made = sample.changed(**changes)
    try:
        made.make_plain()  # arrays and tensors are as good as lists
    except SampleError as error:
        raise PluginError(
            f"--custom-convert-samples-to-train-data-path returned what cannot be trained on: {error}"
        ) from None
    if "rewards" in data:
        made.note(final_reward=True)
    return made


def _with_raw_reward(output: RolloutOutput, data: dict[str, list[Any]]) -> dict[str, float]:
    """The metrics of the rollout; those of what its trajectories were worth are as before where they have other rewards from now on, or
    of what is called raw."""
    if "rewards" not in data:
        return output.metrics
    before = [sample.reward for sample in output.samples]
    if "raw_reward" in output.metrics and "raw_reward" not in data:
        return output.metrics
    values = [value if is_finite_number(value) else None for value in data.get("raw_reward", before)]
    told = worth_metrics(output.groups, values)
    return output.metrics | {n: value for n, value in told.items() if n == "raw_reward" or n in output.metrics}
