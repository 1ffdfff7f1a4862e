"""What `--rollout-data-postprocess-path` and `--save-debug-train-data` see of a rollout that is about to be trained: everything
that was computed for it, in slime's layout. Called by `TrainWorker`, in every training rank alike; torch is imported when a function
is called."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.arguments import RunArguments
from slime_core.contracts.results import is_finite_number, shown
from slime_core.data.sample_files import PackedSamples
from slime_core.data.sample_lines import is_json
from slime_core.errors import PluginError
from slime_core.plugins import Selected
from slime_core.sample import Sample, Status
from slime_core.token_arrays import array_of, num_tokens, token_ids, trained
from slime_core.token_columns import TokenColumn
from slime_core.training.alike import require_alike
from slime_core.training.signals import Column
from slime_core.trajectories import number_of

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = ("log_probs", "ref_log_probs", "rollout_log_probs", "trainer_log_probs", "values", "advantages", "returns")
_OF_MODELS = ("log_probs", "ref_log_probs", "trainer_log_probs", "values")
"""What models computed, for the tokens that were trained by then."""
_FIXED = (
    "tokens",
    "response_lengths",
    "total_lengths",
    "rewards",
    "raw_reward",
    "sample_indices",
    "rollout_ids",
    "truncated",
)


def column_names(args: RunArguments) -> dict[str, str]:
    """What slime calls a column → what it is called here. Its "log_probs" are the trainer's, whatever the ratio is taken from."""
    names = {name: name for name in COLUMNS} | {"values": "old_values"}
    names["log_probs"] = names.pop("trainer_log_probs") if args.use_rollout_logprobs else "old_log_probs"
    return names


def rollout_data_of(
    args: RunArguments,
    samples: Sequence[Sample],
    columns: Mapping[str, Column],
    rewards: Mapping[str, list[float]],
) -> dict[str, list[Any]]:
    """Return a rollout as slime's hooks know it: lists with one entry for each sample, tensors for what tokens have.

    Args:
        rewards: "rewards" and "raw_reward"; without any, as in SFT, they are 0.
    """
    import torch

    none = [0.0] * len(samples)
    data: dict[str, list[Any]] = {
        "tokens": [torch.tensor(token_ids(sample), dtype=torch.int64) for sample in samples],
        "response_lengths": [sample.response_length for sample in samples],
        "total_lengths": [num_tokens(sample) for sample in samples],
        "loss_masks": [torch.tensor(trained(sample), dtype=torch.int64) for sample in samples],
        "rewards": list(rewards.get("rewards", none)),
        "raw_reward": list(rewards.get("raw_reward", none)),
        "sample_indices": [sample.index for sample in samples],
        "rollout_ids": [number_of(sample) for sample in samples],
        "truncated": [int(sample.status is Status.TRUNCATED) for sample in samples],
    }
    for name, own in column_names(args).items():
        column = columns.get(own)
        if column is not None:
            data[name] = [torch.tensor(array_of(row), dtype=torch.float64) for row in column]
    return data


def postprocessed(
    args: RunArguments,
    rollout_id: int,
    samples: Sequence[Sample],
    columns: Mapping[str, Column],
    hook: Selected[None],
    rewards: Mapping[str, list[float]],
) -> tuple[list[Sample], dict[str, Column], dict[str, float]]:
    """Call the hook, and return the samples with the masks, the columns with the numbers, and the metrics that it leaves: the mean
    of every further list of numbers, one for each sample.

    Args:
        rewards: see `rollout_data_of`.

    Raises:
        PluginError: it leaves something that cannot be trained on, changes what is fixed by now, or does not do the same in every rank.
    """
    data = rollout_data_of(args, samples, columns, rewards)
    hook(args, rollout_id, data)
    before = rollout_data_of(args, samples, columns, rewards)

    def refuse(what: str) -> PluginError:
        return PluginError(f"The {hook.label} left {what}.")

    for name in _FIXED:
        if not _equal(data.get(name), before[name]):
            raise refuse(
                f"other {name!r} than it was given, which log-probs and advantages have been computed from. It may change loss_masks, "
                f"{', '.join(name for name in COLUMNS if name in before)}"
            )
    changed = {
        name: data.get(name) for name in before if name not in _FIXED and not _equal(data.get(name), before[name])
    }
    made, new_columns, names = list(samples), dict(columns), column_names(args)
    for name, rows in changed.items():
        numbers = _rows(rows, samples)
        if numbers is None or not all(math.isfinite(number) for row in numbers for number in row):
            raise refuse(
                f"{shown(rows)} as {name!r}; expected for each sample as many finite numbers as its response has tokens"
            )
        if name != "loss_masks":
            new_columns[names[name]] = numbers
            if name == "rollout_log_probs" and args.use_rollout_logprobs and "old_log_probs" in columns:
                new_columns["old_log_probs"] = numbers
        elif any(number not in (0, 1) for row in numbers for number in row):
            raise refuse("other numbers than 0 and 1 among the 'loss_masks'; 1 stands for tokens that are trained")
        else:
            masks = [[int(number) for number in row] for row in numbers]
            computed = [name for name in _OF_MODELS if name in before]
            for sample, mask in zip(samples, masks, strict=True):
                if computed and any(after and not known for after, known in zip(mask, trained(sample), strict=True)):
                    raise refuse(
                        f"tokens of {sample.name} trained that were not, which have no {', '.join(computed)}. Let a "
                        "--rollout-sample-hook-path set that mask, before they are computed"
                    )
                if num_tokens(sample) == sample.response_length and mask and mask[0]:
                    raise refuse(
                        f"the first token of {sample.name} trained, but nothing precedes it to predict it from"
                    )
            made = [
                sample.changed(loss_mask=mask, remove_sample=False) for sample, mask in zip(samples, masks, strict=True)
            ]
    require_alike(hook, chain(*new_columns.values(), map(trained, made)), lambda: chain(*columns.values()))
    metrics = {}
    for name in data.keys() - before.keys():
        values = _numbers(data[name])
        if len(values) != len(samples) or not all(map(is_finite_number, values)):
            raise refuse(
                f"{shown(data[name])} as {name!r}; what it adds is logged, so it must be one finite number for each sample"
            )
        metrics[name] = math.fsum(values) / len(values)
    return made, new_columns, metrics


def write_train_data(args: RunArguments, path: Path, samples: Sequence[Sample], columns: Mapping[str, Column]) -> None:
    """Write what a rollout is trained with, as `--save-debug-train-data` asks: a file of samples with the numbers of their tokens, or one JSON
    line for each sample where the name ends so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: columns[own] for name, own in column_names(args).items() if own in columns}
    if not is_json(path):
        PackedSamples(
            [_as_trained(sample) for sample in samples], rows={name: list(column) for name, column in rows.items()}
        ).write(path)
        return
    with path.open("w", encoding="utf-8") as file:
        for place, sample in enumerate(samples):
            line: dict[str, Any] = {
                "index": sample.index,
                "group_index": sample.group_index,
                "rollout_id": number_of(sample),
                "tokens": token_ids(sample).tolist(),
                "response_length": sample.response_length,
                "reward": sample.reward,
                "loss_mask": sample.trained_mask,
                **{name: list(column[place]) for name, column in rows.items()},
            }
            file.write(json.dumps(line) + "\n")


def _as_trained(sample: Sample) -> Sample:
    """The sample with the mask and the number that it is trained with."""
    mask = TokenColumn(trained(sample).view("uint8"))
    return sample.changed(loss_mask=mask, remove_sample=False, rollout_id=number_of(sample))


def _rows(rows: Any, samples: Sequence[Sample]) -> list[list[float]] | None:
    """Rows of numbers, one for each sample and token of its response; None if they are something else."""
    if not isinstance(rows, (list, tuple)) or len(rows) != len(samples):
        return None
    made = [_numbers(row) for row in rows]
    fits = all(len(row) == sample.response_length for row, sample in zip(made, samples, strict=True))
    return made if fits and all(isinstance(n, (int, float)) for row in made for n in row) else None


def _numbers(row: Any) -> list[Any]:
    made = row.tolist() if hasattr(row, "tolist") else row
    return [n.item() if hasattr(n, "item") else n for n in made] if isinstance(made, (list, tuple)) else []


def _equal(own: Any, given: list[Any]) -> bool:
    """Whether a list is as it was."""
    if not isinstance(own, (list, tuple)) or len(own) != len(given):
        return False
    return all(_same(a, b) for a, b in zip(own, given, strict=True))


def _same(own: Any, given: Any) -> bool:
    tensor: Tensor | None = given if hasattr(given, "tolist") else None
    return _numbers(own) == tensor.tolist() if tensor is not None else bool(own == given)
