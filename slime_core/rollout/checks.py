"""What the checks of rollout functions share (`slime_core.contracts.checking`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice

from slime_core.another_machine import is_for_another_machine
from slime_core.arguments import RunArguments
from slime_core.contracts.checking import Checking
from slime_core.data import evaluation_sets
from slime_core.data.absent import absent_files
from slime_core.data.samples import require_columns
from slime_core.errors import ArgumentError, DataError
from slime_core.sample import Sample


def first_evaluated(checking: Checking) -> list[Sample]:
    """Return the first sample of every evaluation set, and say which sets have none."""
    found: list[Sample] = []
    if not checking.args.eval_prompt_data or "eval_prompt_data" in checking.set_aside:
        return found
    try:
        sets = evaluation_sets(checking.args)
    except ArgumentError:  # told already
        return found
    for evaluation_set in sets:
        if is_for_another_machine() and absent_files([evaluation_set.spec]):
            checking.not_seen(
                f"The evaluation set {evaluation_set.name}, {evaluation_set.spec}, is not on this machine."
            )
            continue
        try:
            found += islice(evaluation_set.samples(Counter()), 1)
            require_columns(evaluation_set.named, [evaluation_set.spec])
        except DataError as error:
            checking.error(f"The evaluation set {evaluation_set.name}: {error}")
    for number, sample in enumerate(found):
        sample.index = sample.group_index = number
    return found


def needs_an_engine(what: str, args: RunArguments) -> str:
    """Say that something needs an inference engine, in a run that has none, and what to do."""
    without = "--load-debug-rollout-data" if args.load_debug_rollout_data else "--debug-train-only"
    steps = [
        *(["add --rollout-engine local"] if args.rollout_engine is None else []),
        *([f"leave out {without}, with which none starts"] if args.debug_train_only else []),
    ]
    return f"{what} needs an inference engine: {' and '.join(steps) or 'choose another --rollout-engine'}."


def check_early_stopping(checking: Checking, measured: Sequence[str], why: str) -> None:
    """Say that `--early-stopping-metric` is not measured by the rollout function's evaluations.

    Args:
        measured: the short names that are, "loss" or "reward".
        why: the other one is not, as half a sentence.
    """
    args = checking.args
    metric = args.early_stopping_metric
    if not (args.early_stopping_patience and args.eval_prompt_data) or "early_stopping_metric" in checking.set_aside:
        return
    if metric.removeprefix("-").rpartition("/")[2] in {"loss", "reward"} - set(measured):
        checking.error(f"--early-stopping-metric is {metric!r}, but {why}. Measured is {' and '.join(measured)}.")
