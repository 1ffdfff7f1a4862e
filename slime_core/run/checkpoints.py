"""Checkpoints on disk, where they are complete or not there at all: found, verified and read. `slime_core.run.saving` writes them.

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
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.data.checkpoint_folders import LATEST, PREFIX, is_of_a_run, iterations
from slime_core.errors import CheckpointError, DataError
from slime_core.plain import read_json
from slime_core.run.best import BEST, best_checkpoint
from slime_core.run.state_samples import SAMPLES, with_samples
from slime_core.whole_file import write_whole

RUN = "run.json"

logger = logging.getLogger(__name__)


def keep_newest(folder: Path, count: int) -> None:
    """Delete all complete checkpoints in `folder` but the `count` newest, and the one that is named the best."""
    best = best_checkpoint(folder)
    for old in all_checkpoints(folder)[:-count]:
        if old != best:
            hidden = folder / f".removing_{old.name}"  # whoever finds a part of it must not take it for a checkpoint
            shutil.rmtree(hidden, ignore_errors=True)
            with _telling_what_stays(old):
                old.rename(hidden)
                shutil.rmtree(hidden)


@contextmanager
def _telling_what_stays(folder: Path) -> Iterator[None]:
    """Where a folder that is no longer needed cannot be removed, such as another user's, say so and go on."""
    try:
        yield
    except OSError as error:
        logger.warning("%s cannot be removed, and takes room: %s. Remove it yourself.", folder, error)


def newer_than(save: str | None, previous: Path) -> list[Path]:
    """The checkpoints of a run's own folder that are newer than the one there that it goes on from."""
    folder = previous.parent
    if not save or folder.resolve() != Path(save).resolve():
        return []
    return [path for path in all_checkpoints(folder) if path.name > previous.name]


def set_newer_aside(save: str | None, previous: Path) -> Path | None:
    """Where a run goes on from an earlier checkpoint of its own folder (`--ckpt-step`): move the newer ones into `earlier-N`, the first
    that is free, and return this folder; None if there are none. What comes next is then the newest, and takes no other's place.

    At no time does the file with the number of the latest name one that is gone, nor is there one without those before it: whoever
    goes on after a kill in between finds a whole folder."""
    folder, newer = previous.parent, newer_than(save, previous)
    if not newer:
        return None
    write_latest(previous)
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
            with _telling_what_stays(part):
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
    if itself and load.is_symlink():  # whose name and folder are not the checkpoint's
        load = load.resolve()
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
        if not inside or not path.is_file() or describe(path) != described:
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
    """Refuse to write among checkpoints that are not those of the run that is gone on with, or are its later ones. A copy of
    the best one may be there: a start that was killed has brought it (`slime_core.run.best.take_over_best`)."""
    best = best_checkpoint(loaded.parent)
    others = [own for own in all_checkpoints(save) if best is None or own.name != best.name or not _is_copy(own, best)]
    if others:
        raise CheckpointError(
            f"--save {save} holds checkpoints already ({others[-1].name}), and the run would go on from {loaded}, which is elsewhere, and "
            f"write over them. Give --load {save} to go on from those, or choose another folder for --save."
        )


def _is_copy(one: Path, other: Path) -> bool:
    """Whether two checkpoints have the same files."""
    manifests = [path / "manifest.json" for path in (one, other)]
    return manifests[1].is_file() and manifests[0].read_bytes() == manifests[1].read_bytes()


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


def describe(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: its size and its digest."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "blake2b": hashlib.file_digest(file, "blake2b").hexdigest()[:32]}


def write_latest(checkpoint: Path) -> None:
    """Let the folder that a checkpoint is in name it the newest."""
    write_whole(checkpoint.parent / LATEST, f"{int(checkpoint.name.removeprefix(PREFIX))}\n")
