"""Checkpoints: what they are on disk, and who writes them when. On disk they are complete or not there at all.

    DIR/iter_0000019/            the state after rollout 19
        state.json               rollout id, data source, early stopping, arguments, files of data and evaluation sets, plugins
        samples.arrow            the samples that state.json refers to, if any: those in the data source's buffer, in flight or waiting
        run.json                 all arguments of the run that wrote it, without secrets, and the folder that it was started in
        trainer/                 what the train backend wrote
        manifest.json            size and digest of every file above
    DIR/latest_checkpointed_iteration.txt
    DIR/best_checkpointed_iteration.txt     with --early-stopping-keep best

A checkpoint is written into a hidden folder, flushed to disk and then renamed, so a folder that is called `iter_…` and has a
manifest is complete; one that is removed is first renamed back. On loading, every file is compared with the manifest, and one in
`trainer/` that it does not list is refused; nothing in a checkpoint is executed. Folders of other programs may have the same name
(`slime_core.data.checkpoint_folders`): they are not looked at here, never removed, and none is written beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.arguments.resolve import shown_arguments
from slime_core.data.checkpoint_folders import LATEST, PREFIX, is_of_a_run, iterations
from slime_core.data.sample_files import PackedSamples
from slime_core.errors import CheckpointError, DataError, SampleError
from slime_core.plain import read_json
from slime_core.plugins import Plugins
from slime_core.run.best import BEST, best_checkpoint, keeps_best, name_best
from slime_core.run.console import Console
from slime_core.run.output import fault_of_disk
from slime_core.run.state_samples import SAMPLES, with_samples, without_samples
from slime_core.runtime.handles import Handle, LocalHandle, wait
from slime_core.training.worker import TrainWorker
from slime_core.whole_file import write_whole

RUN = "run.json"


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
        manifest = {str(p.relative_to(self._hidden)): _describe(p) for p in files}
        (self._hidden / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*files, self._hidden / "manifest.json", self.trainer, *{path.parent for path in files}):
            _flush(path)
        if final.exists():  # a resumed run writes the same state again
            shutil.rmtree(final)
        os.rename(self._hidden, final)
        write_latest(self._folder, self.rollout_id)
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


def keep_newest(folder: Path, count: int) -> None:
    """Delete all complete checkpoints in `folder` but the `count` newest, and the one that is named the best."""
    best = best_checkpoint(folder)
    for old in all_checkpoints(folder)[:-count]:
        if old != best:
            hidden = folder / f".removing_{old.name}"  # whoever finds a part of it must not take it for a checkpoint
            shutil.rmtree(hidden, ignore_errors=True)
            old.rename(hidden)
            shutil.rmtree(hidden)


def set_newer_aside(save: str | None, previous: Path) -> Path | None:
    """Where a run goes on from an earlier checkpoint of its own folder (`--ckpt-step`): move the newer ones into `earlier-N`, the first
    that is free, and return this folder; None if there are none. What comes next is then the newest, and takes no other's place.

    At no time does the file with the number of the latest name one that is gone, nor is there one without those before it: whoever
    goes on after a kill in between finds a whole folder."""
    folder = previous.parent
    if not save or folder.resolve() != Path(save).resolve():
        return None
    newer = [path for path in all_checkpoints(folder) if path.name > previous.name]
    if not newer:
        return None
    write_latest(folder, int(previous.name.removeprefix(PREFIX)))
    if best_checkpoint(folder) in newer:  # its number is about to be another's
        (folder / BEST).unlink()
    return move_aside(folder, reversed(newer))


def move_aside(folder: Path, paths: Iterable[Path]) -> Path:
    """Move what stands in a folder into its `earlier-N`, the first that is free, one after the other, and return that."""
    aside = next(path for n in count(1) if not (path := folder / f"earlier-{n}").exists())
    aside.mkdir()
    for path in paths:
        path.rename(aside / path.name)
    return aside


def clear_parts(folder: Path) -> None:
    """Delete what was left of checkpoints that were being written or removed when a run was killed."""
    for pattern in (f".saving_{PREFIX}*", f".removing_{PREFIX}*"):
        for part in folder.glob(pattern):
            shutil.rmtree(part)


def find_latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None."""
    found = all_checkpoints(folder)
    return found[-1] if found else None


def find_checkpoint(load: Path, step: int | None) -> Path | None:
    """The complete checkpoint that `--load` and `--ckpt-step` mean: the folder itself if it is one, else the newest in it or that of a
    number; None where there is none.

    Raises:
        CheckpointError: one was plainly meant that is not there.
    """
    itself = is_of_a_run(load)
    if step is None:
        return load if itself else find_latest(load)
    name = f"{PREFIX}{step:07d}"
    found = load if itself and load.name == name else load / name
    if is_of_a_run(found):
        return found
    there = ", ".join(path.name for path in ([load] if itself else all_checkpoints(load))) or "no checkpoint of a run"
    raise CheckpointError(
        f"--ckpt-step {step}: there is no {name} in --load {load}, which has {there}. Give one that is there."
    )


def stored_arguments(checkpoint: Path) -> dict[str, Any]:
    """The arguments of the run that wrote a checkpoint; {} where they cannot be read, which `load_state` reports. Of a checkpoint
    that an older slime wrote, those that can change the result."""
    for name in (RUN, "state.json"):
        found = _read(checkpoint / name)
        arguments = found.get("arguments") if isinstance(found, dict) else None
        if isinstance(arguments, dict):
            return arguments
    return {}


def started_in(checkpoint: Path) -> Path:
    """The folder that the run was started in that wrote a checkpoint: that of the relative paths in its arguments."""
    found = _read(checkpoint / RUN)
    folder = found.get("folder") if isinstance(found, dict) else None
    return Path(folder) if isinstance(folder, str) else Path()


def _read(file: Path) -> Any:
    try:
        return read_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, DataError):
        return None


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Verify every file of a checkpoint against its manifest and return its state, in which samples may stand.

    Raises:
        CheckpointError: a file is missing, truncated, changed or not in the manifest.
    """
    try:
        damaged = _differences(checkpoint, read_json((checkpoint / "manifest.json").read_text(encoding="utf-8")))
        if not damaged:
            state = read_json((checkpoint / "state.json").read_text(encoding="utf-8"), halves=True)
            if isinstance(state, dict):
                file = checkpoint / SAMPLES
                return with_samples(state, file) if file.exists() else state
            damaged = ["state.json holds no object"]
    except (OSError, UnicodeDecodeError, DataError) as error:
        damaged = [str(error)]
    others = [path.name for path in all_checkpoints(checkpoint.parent) if path.name != checkpoint.name]
    instead = (
        f"Go on from an earlier one with --ckpt-step N; there are {', '.join(others)}."
        if others
        else "There is no other one beside it; without --load the run starts anew, with another --save."
    )
    raise CheckpointError(f"The checkpoint {checkpoint} is damaged: {', '.join(damaged[:5])}. {instead}")


def _differences(checkpoint: Path, manifest: Any) -> list[str]:
    """The files that are not as the manifest says; and those under `trainer` that it does not list, which a train backend could
    take for its own. Elsewhere further files are nobody's, and are not read."""
    if not isinstance(manifest, dict) or "state.json" not in manifest:
        return ["manifest.json lists no state.json"]
    found = []
    for name, described in manifest.items():
        path = checkpoint / name
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts and not path.is_symlink()
        if not inside or not path.is_file() or _describe(path) != described:
            found.append(name)
    files = (path for path in (checkpoint / "trainer").rglob("*") if not path.is_dir() or path.is_symlink())
    unlisted = [str(path.relative_to(checkpoint)) for path in files if not path.name.startswith(".nfs")]
    return found + [f"{name} is not in its manifest" for name in sorted(set(unlisted) - manifest.keys())]


_STATE: dict[str, Any] = {"rollout_id": int, "data_source": dict, "arguments": dict, "data": dict, "plugins": dict}


def require_state(state: Any) -> dict[str, Any]:
    """Return what `load_state` gave, if it has what every run stores.

    Raises:
        CheckpointError: says what is missing.
    """
    for name, kind in _STATE.items():
        if not isinstance(state, dict) or not isinstance(state.get(name), kind):
            raise CheckpointError(f"The state.json of the checkpoint has no {name!r} of a run. Go on from another one.")
    return dict(state)


def require_own(folder: Path) -> None:
    """Refuse to write into a folder that has checkpoints of another program.

    Raises:
        CheckpointError: names one of them.
    """
    foreign = [path for path in iterations(folder) if not is_of_a_run(path)]
    foreign += [path for path in [folder / "release"] if path.is_dir()]
    if foreign:
        raise CheckpointError(
            f"--save {folder} holds a checkpoint of another program ({foreign[0].name}); checkpoints of a run beside it could "
            "take its name. Choose another folder for --save; --load may go on naming that one, whose weights the run then "
            "starts from."
        )


def checkpoint_to_load(args: RunArguments) -> Path | None:
    """The checkpoint that a run goes on from; None if it is a new run. Nothing of it is read.

    Raises:
        CheckpointError: `--load` is not there, or the run would write over checkpoints that it does not go on from.
    """
    newest = find_checkpoint(Path(args.load), args.ckpt_step) if args.load else None
    if newest is None:
        _require_load(args)
        if args.save and (existing := find_latest(Path(args.save))):
            raise CheckpointError(
                f"--save {args.save} holds a checkpoint of an earlier run ({existing.name}), which a new run would overwrite. "
                f"Add --load {args.save} to go on with it, or choose another folder."
            )
    elif args.save and Path(args.save).resolve() != newest.parent.resolve():
        _require_no_other(Path(args.save), newest)
    return newest


def _require_no_other(save: Path, loaded: Path) -> None:
    """Refuse to write among checkpoints that are not those of the run that is gone on with, or are its later ones."""
    if existing := find_latest(save):
        raise CheckpointError(
            f"--save {save} holds checkpoints already ({existing.name}), and the run would go on from {loaded}, which is elsewhere, and "
            f"write over them. Give --load {save} to go on from those, or choose another folder for --save."
        )


def _require_load(args: RunArguments) -> None:
    """Refuse a `--load` that is not there, unless the same command is to start the run and to resume it."""
    if not args.load or Path(args.load).exists() or Path(args.load).resolve() == Path(args.save or ".").resolve():
        return
    raise CheckpointError(
        f"--load {args.load} is not there. Name the folder that --save wrote checkpoints into, or leave --load out to start a new run."
    )


def all_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of runs in a folder, the oldest first."""
    return [path for path in iterations(folder) if is_of_a_run(path)]


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "blake2b": hashlib.file_digest(file, "blake2b").hexdigest()[:32]}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_latest(folder: Path, rollout_id: int) -> None:
    """Let a folder of checkpoints name the one after this rollout the newest."""
    write_whole(folder / LATEST, f"{rollout_id}\n")
