"""Writes checkpoints: the training ranks their parts, the driver the rest, and nothing is called a checkpoint before it is one.
`slime_core.run.checkpoints` says what they are on disk."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.arguments.resolve import shown_arguments
from slime_core.data.checkpoint_folders import PREFIX
from slime_core.data.sample_files import PackedSamples
from slime_core.errors import CheckpointError, DataError, SampleError
from slime_core.output import fault_of_disk
from slime_core.plugins import Plugins
from slime_core.run.best import keeps_best, name_best
from slime_core.run.checkpoints import RUN, clear_parts, describe, find_latest, keep_newest, write_latest
from slime_core.run.console import Console
from slime_core.run.state_samples import SAMPLES, without_samples
from slime_core.runtime.handles import Handle, LocalHandle, wait
from slime_core.training.worker import TrainWorker


class Saving:
    """A checkpoint that is being written: made by the driver, filled by the training ranks, finished by the driver.

        with Saving(folder, rollout_id) as saving:
            …                          # every rank writes into saving.trainer
            path = saving.finish(state)

    Leaving the block with an `OSError` or `RuntimeError` (torch reports a full disk so) removes what was written and
    raises a `CheckpointError`; older checkpoints are untouched. Leaving it without `finish` keeps it for a later block.
    """

    def __init__(self, folder: Path, rollout_id: int) -> None:
        self.rollout_id = rollout_id
        self._folder = folder
        self._hidden = folder / f".saving_{PREFIX}{rollout_id:07d}"
        self._begun = False

    @property
    def trainer(self) -> Path:
        """The folder into which the training ranks write their parts."""
        return self._hidden / "trainer"

    def __enter__(self) -> Saving:
        if not self._begun:
            self._begun = True
            try:
                self._begin()
            except OSError as error:
                self.__exit__(type(error), error, None)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, (OSError, RuntimeError)):
            return
        advice = fault_of_disk(error, self._hidden)  # before the space is free again
        shutil.rmtree(self._hidden, ignore_errors=True)
        previous = find_latest(self._folder)
        raise CheckpointError(
            f"The checkpoint after rollout {self.rollout_id} could not be written to {self._folder}: {error}. "
            + (f"The previous one, {previous}, is intact. " if previous else "There is no earlier one. ")
            + (f"{advice} Then start" if advice else "Start")
            + f" the same command again with --load {self._folder}."
        ) from error

    def _begin(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        clear_parts(self._folder)
        self.trainer.mkdir(parents=True)

    def finish(
        self, state: dict[str, Any], run: dict[str, Any] | None = None, samples: PackedSamples | None = None
    ) -> Path:
        """Make it a complete checkpoint, and return its folder.

        Args:
            state: plain JSON data.
            run: all arguments of the run, also those that may differ when it is resumed; for whoever uses the checkpoint without
                one.
            samples: what the state refers to.
        """
        final = self._folder / f"{PREFIX}{self.rollout_id:07d}"
        (self._hidden / "state.json").write_text(json.dumps(state), encoding="utf-8")
        if samples is not None:
            samples.write(self._hidden / SAMPLES)
        if run is not None:
            (self._hidden / RUN).write_text(json.dumps(run, indent=1), encoding="utf-8")
        files = sorted(p for p in self._hidden.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(self._hidden)): describe(p) for p in files}
        (self._hidden / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*files, self._hidden / "manifest.json", self.trainer, *{path.parent for path in files}):
            _flush(path)
        if final.exists():  # a resumed run writes the same state again
            shutil.rmtree(final)
        os.rename(self._hidden, final)
        write_latest(final)
        _flush(self._folder)
        return final


class Checkpoints:
    """Writes the checkpoints of a run, one at a time: the training ranks their parts, the driver the rest.

    With `--async-save` the ranks return as soon as they have a copy of their state, and training goes on; the driver asks
    now and then whether all of it is on disk, and makes the checkpoint complete then.

    Args:
        folder: `--save`.
        trainer: whose state is saved.
    """

    def __init__(
        self, args: RunArguments, plugins: Plugins, folder: Path, trainer: Handle[TrainWorker], console: Console
    ) -> None:
        self._args, self._plugins, self._trainer, self._console = args, plugins, trainer, console
        self._folder = folder
        self._saving: Saving | None = None
        self._state: dict[str, Any] = {}
        self._samples: PackedSamples | None = None
        self._finishing: Future[Path] | None = None

    def save(self, rollout_id: int, state: dict[str, Any]) -> None:
        """Write the checkpoint after `rollout_id`, once the one before is complete.

        Args:
            state: what the driver adds; plain JSON data, in which samples may stand.

        Raises:
            CheckpointError: it could not be written, or something in the state is no data.
        """
        self.advance(to_the_end=True)
        try:
            stored, samples = without_samples(state)
        except (DataError, SampleError) as error:
            raise CheckpointError(
                f"The checkpoint after rollout {rollout_id} cannot be written, as what it would hold is no plain data: "
                f"{str(error).rstrip('.')}. Let the hook or data source that left it there leave plain data."
            ) from error
        with Saving(self._folder, rollout_id) as saving:
            wait(
                self._trainer.call(TrainWorker.save_state, saving.trainer),
                f"the checkpoint after rollout {rollout_id + 1}",
            )
        self._state, self._samples = stored, samples
        self._saving = saving
        self.advance(to_the_end=not self._args.async_save)

    def advance(self, to_the_end: bool) -> None:
        """Make the checkpoint that is being written complete, if the ranks have written theirs.

        Args:
            to_the_end: wait for it.
        """
        if self._saving is None:
            return
        own, self._saving = self._saving, None  # what fails is not tried again
        what = f"the checkpoint after rollout {own.rollout_id + 1}"
        with own as saving:
            if self._finishing is None:
                answers = wait(self._trainer.call_all(TrainWorker.saved, to_the_end), what)
                if not all(answers):
                    self._saving = saving
                    return
                run = {"arguments": shown_arguments(self._args), "folder": os.getcwd()}
                self._finishing = LocalHandle(saving, "checkpoint").call(Saving.finish, self._state, run, self._samples)
            if not to_the_end and not self._finishing.done():
                self._saving = saving
                return
            path = wait(self._finishing, what)
        self._finishing = self._samples = None
        early = self._state["early_stopping"]
        if keeps_best(self._args) and early and early["best_rollout"] == saving.rollout_id:
            name_best(self._folder, saving.rollout_id)
        if self._args.save_total_limit is not None:
            keep_newest(self._folder, self._args.save_total_limit)
        self._console.say(f"checkpoint: {path}")
        self._plugins.notify("slime_checkpoint_saved", args=self._args, rollout_id=saving.rollout_id, path=path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
