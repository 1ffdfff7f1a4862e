"""What this distribution provides to slime: the command `report`, and observers that record what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments
    from slime_core.contracts.options import ArgumentGroup
    from slime_core.training.token_numbers import TokenNumbers
    from slime_report.arguments import RecordedRunArguments


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_report.arguments import RecordArguments

    return [RecordArguments]


@hookimpl
def slime_commands() -> dict[str, Lazy]:
    return {"report": Lazy("slime_report.command:main", "show runs on one page: alarms, curves, samples")}


@hookimpl
def slime_run_started(args: RunArguments, run_dir: Path) -> None:
    from slime_report.recording.events import note_start, resume_after
    from slime_report.recording.recorder import begin

    behind = resume_after(run_dir)
    begin(run_dir, 0 if behind is None else behind + 1)
    note_start(run_dir, behind)


@hookimpl
def slime_rollout_finished(args: RunArguments, rollout_id: int) -> None:
    _sign(args, "rollout_finished", rollout_id)


@hookimpl
def slime_before_train_step(args: RunArguments, rollout_id: int) -> None:
    _sign(args, "before_train_step", rollout_id)


@hookimpl
def slime_rollout_trained(args: RecordedRunArguments, rollout_id: int, tokens: TokenNumbers) -> None:
    from slime_report.recording.recorder import record

    record(args, rollout_id, tokens)
    _sign(args, "rollout_trained", rollout_id)


@hookimpl
def slime_weights_updated(args: RunArguments, version: int) -> None:
    _sign(args, "weights_updated", version)


@hookimpl
def slime_eval_finished(args: RunArguments, rollout_id: int) -> None:
    _sign(args, "eval_finished", rollout_id)


@hookimpl
def slime_checkpoint_saved(args: RunArguments, rollout_id: int) -> None:
    _sign(args, "checkpoint_saved", rollout_id)


@hookimpl
def slime_run_finished(args: RunArguments, error: BaseException | None) -> None:
    from slime_report.recording.events import note_end

    note_end(args, error)


def _sign(args: RunArguments, what: str, rollout_id: int) -> None:
    from slime_report.recording.events import sign

    sign(args, what, rollout_id)
