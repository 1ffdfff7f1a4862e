"""Trains, saves and loads in ranks, for the tests of the training state."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from megatron_cases import Case, forget, leave, make_backend
from megatron_models import make_batch, make_samples
from safetensors.torch import load_file

from slime_core.errors import CheckpointError
from slime_core.plugins.boundaries import children
from slime_core.run import checkpoints as written
from slime_core.run.saving import Saving
from slime_megatron.optimizer import parts_of

BEFORE, AFTER = 3, 2
"""Optimizer steps before a state is saved, and after it."""


def ready(case: Case, checkpoints: Path) -> Any:
    """The backend of a case, with a loss that needs no reference model."""
    return make_backend(replace(case, options={**case.options, "use_kl_loss": False}), checkpoints)


def train(backend: Any, steps: int) -> list[float]:
    """Take optimizer steps; their losses."""
    batch = make_batch(
        {"advantages": [[0.3] * s.response_length for s in make_samples()]}, ranks=backend.data_parallel_size
    )
    return [backend.train_step(batch)["loss"] for _ in range(steps)]


def save(backend: Any, folder: Path, background: bool = False) -> None:
    """Let all ranks write into a new folder."""
    if dist.get_rank() == 0:
        folder.mkdir()
    dist.barrier()
    backend.args.async_save = background
    backend.save_state(folder)


def chain(
    cases: Sequence[Case], checkpoints: Path, folder: Path, found: dict[str, Any], note: Callable[[], None]
) -> None:
    """Train in the first layout and save; load and save again in each further one; tell the losses of the steps that follow.

    The state of case N is in the folder N. A first folder that is there already is loaded too.
    """
    for number, case in enumerate(cases):
        if number:
            leave()
        backend = ready(case, checkpoints)
        own, before = folder / str(number), folder / str(number - 1)
        if number:
            backend.load_state(before)
        elif own.exists():
            backend.load_state(own)
            own = folder / "again"
        else:
            train(backend, BEFORE)
        save(backend, own)
        found[str(case)] = train(backend, AFTER)
        note()
        forget(backend)
        del backend


@contextlib.contextmanager
def slow_writing(seconds: float) -> Iterator[None]:
    """Writing begins so much later, in whichever process or thread it happens."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    write = FileSystemWriterAsync.write_preloaded_data

    def later(*arguments: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return write(*arguments, **named)

    with mock.patch.object(FileSystemWriterAsync, "write_preloaded_data", staticmethod(later)):
        yield


def in_the_background(
    case: Case, checkpoints: Path, folder: Path, found: dict[str, Any], note: Callable[[], None]
) -> None:
    """Save at once and in the background, with training behind it, with an error, and given up."""
    backend = ready(case, checkpoints)
    train(backend, BEFORE)
    save(backend, folder / "at once")
    found["children after saving at once"] = list(children())
    with slow_writing(2):
        save(backend, folder / "in the background", background=True)
        found["writing when training goes on"] = backend.saved(wait=False)
        found["losses while it is written"] = train(backend, 1)
        found["one child at a time"] = len(children())
        found["written"] = [backend.saved(wait=True), backend.saved(wait=False)]
        found["children when it is written"] = list(children())
    note()
    for name, background in (("refused at once", False), ("refused in the background", True)):
        if dist.get_rank() == 0:
            (folder / name / "__1_0.distcp").mkdir(parents=True)  # where rank 1 wants to write a file
        dist.barrier()
        backend.args.async_save = background
        try:
            backend.save_state(folder / name)
            backend.saved()
            found[name] = "no error"
        except (OSError, RuntimeError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    save(backend, folder / "after an error", background=True)
    found["after an error"] = backend.saved()
    with slow_writing(600):
        save(backend, folder / "given up", background=True)
        time.sleep(0.2)
    (writing,) = children()
    backend._saver.close()
    found["children when it is given up"] = list(children())
    found["it is gone"] = not Path(f"/proc/{writing}").exists()
    note()
    dist.barrier()
    forget(backend)


def refused(
    saved: Case, cases: Sequence[Case], checkpoints: Path, folder: Path, found: dict[str, Any], note: Callable[[], None]
) -> None:
    """Save in one layout, and tell for each further one what loading it raises; nothing, where it is like the first."""
    for case in (saved, *cases):
        backend = ready(case, checkpoints)
        if case is saved:
            train(backend, 1)
            save(backend, folder / "whole")
        try:
            backend.load_state(folder / "whole")
            found[str(case)] = ""
        except CheckpointError as error:
            found[str(case)] = str(error)
        note()
        dist.barrier()
        forget(backend)
        del backend
        leave()


def both(
    background: Case,
    chains: Sequence[Sequence[Case]],
    refusals: tuple[Case, Sequence[Case]],
    checkpoints: Path,
    folder: Path,
    found: dict[str, Any],
    note: Any,
) -> None:
    """Everything that two ranks do."""
    found["background"] = {}
    in_the_background(background, checkpoints, folder, found["background"], note)
    for number, cases in enumerate(chains):
        leave()
        (folder / f"chain {number}").mkdir(exist_ok=True)
        found[f"chain {number}"] = {}
        chain(cases, checkpoints, folder / f"chain {number}", found[f"chain {number}"], note)
    leave()
    found["refused"] = {}
    refused(*refusals, checkpoints, folder, found["refused"], note)


def alone(
    cases: Sequence[tuple[Case, Path]], checkpoints: Path, found: dict[str, Any], note: Callable[[], None]
) -> None:
    """Load states in one process, and save them again beside."""
    for case, folder in cases:
        backend = ready(case, checkpoints)
        backend.load_state(folder)
        save(backend, folder.with_name("alone"))
        found[str(folder)] = train(backend, AFTER)
        note()
        forget(backend)
        del backend
        leave()


def momentum(checkpoints: Path, folder: Path, found: dict[str, Any]) -> None:
    """Train with SGD, save, and go on from there in a new backend."""
    case = Case("qwen3", distributed=False, options={"optimizer": "sgd"})
    for name in ("unbroken", "resumed"):
        backend = ready(case, checkpoints)
        if name == "resumed":
            backend.load_state(folder)
        else:
            train(backend, BEFORE)
            save(backend, folder)
        found[name] = train(backend, AFTER)
        forget(backend)
        del backend
        leave()


def settings(
    changes: dict[str, tuple[Case, dict[str, Any]]], checkpoints: Path, folder: Path, found: dict[str, Any]
) -> None:
    """Resume with other options of the optimizer: the settings of its groups that the options ask for, and those after loading."""
    folder.mkdir()
    for name, (case, others) in changes.items():
        backend = ready(case, checkpoints)
        train(backend, 1)
        save(backend, folder / name)
        forget(backend)
        leave()
        backend = ready(replace(case, options={**case.options, **others}), checkpoints)
        asked = _settings(backend)
        backend.load_state(folder / name)
        found[name] = {"asked": asked, "loaded": _settings(backend), "steps": backend._step}
        forget(backend)
        del backend
        leave()


def _settings(backend: Any) -> list[dict[str, Any]]:
    groups = (group for part in parts_of(backend._optimizer) for group in part.optimizer.param_groups)
    return [{key: value for key, value in group.items() if key not in ("params", "step")} for group in groups]


def save_for_ever(checkpoints: Path, folder: Path, background: bool) -> None:
    """Go on from the newest checkpoint, if there is one, and write one after every step."""
    backend = ready(Case("qwen2"), checkpoints)
    newest = written.find_latest(folder)
    if newest is not None:
        backend.load_state(newest / "trainer")
        assert backend._step == written.load_state(newest)["rollout_id"] + 1
    backend.args.async_save = background
    for number in range(backend._step, 10**6):
        train(backend, 1)
        with Saving(folder, number) as saving:
            backend.save_state(saving.trainer)
            backend.saved()
            saving.finish({"rollout_id": number})
        written.keep_newest(folder, 2)


def kill_while_saving(
    checkpoints: Path, folder: Path, rounds: int, found: dict[str, Any], note: Callable[[], None]
) -> None:
    """Kill a process that saves at a random moment of a save, again and again; each one goes on from what the one before left.

    Every second one writes in the background. The processes are forked after megatron-core was imported, which takes longest.
    """
    import slime_megatron.backend
    import slime_megatron.device
    import slime_megatron.saving

    slime_megatron.device.prepare()
    for number in range(rounds):
        before = _newest(folder)
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            try:
                save_for_ever(checkpoints, folder, background=bool(number % 2))
            finally:
                os._exit(1)
        while _newest(folder) <= before or not list(folder.glob(".saving_*")):
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the process that saves has ended by itself"
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        end = time.monotonic() + 20
        while (left := _alive(child)) and time.monotonic() < end:
            time.sleep(0.05)
        newest = written.find_latest(folder)
        assert newest is not None
        found[str(number)] = {
            "gone on by": _newest(folder) - before,
            "newest": written.load_state(newest)["rollout_id"] - _newest(folder),  # raises if a file is damaged
            "in the middle": bool(list(folder.glob(".saving_*"))),
            "left over": left,
        }
        note()


def _newest(folder: Path) -> int:
    newest = written.find_latest(folder)
    return -1 if newest is None else int(newest.name.removeprefix("iter_"))


def _alive(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, own = path.read_text().rpartition(")")[2].split()[:3]
            if int(own) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def names(models: Sequence[str], checkpoints: Path, found: dict[str, Any]) -> None:
    """For each model, the names in which what is said without a model differs from the model's own weights."""
    from slime_megatron import weights
    from slime_megatron.inventory import megatron_names

    for model in models:
        backend = make_backend(Case(model), checkpoints, role="reference")
        own = [name for name, _ in weights.own_tensors(backend._model)]
        said = list(megatron_names(backend._model.spec))
        assert len(set(said)) == len(said)
        found[model] = sorted(set(own) ^ set(said))
        del backend
        leave()


def initial_weights(
    model: str, given: dict[str, str], checkpoints: Path, expected: dict[str, Path], found: dict[str, Any]
) -> None:
    """For each way to give weights, the names of those that are not the expected ones."""
    for what, folder in given.items():
        backend = make_backend(Case(model, options={"ref_load": folder}), checkpoints, role="reference")
        stored = load_file(expected[what] / "model.safetensors")
        own = dict(backend.weights())
        assert own.keys() <= stored.keys()
        found[what] = [name for name, tensor in own.items() if not torch.equal(tensor, stored[name])]
        del backend
        leave()


def read_by_megatron(model: str, folder: Path, checkpoints: Path, found: dict[str, Any]) -> None:
    """Let megatron-core itself read a converted checkpoint into a model whose weights are something else; tell which differ.

    A state that Transformer Engine's attention would ask for is in the checkpoint besides what is read here.
    """
    from megatron.core import dist_checkpointing

    from slime_megatron import weights

    backend = make_backend(Case(model), checkpoints, role="reference")
    right = {name: tensor.clone() for name, tensor in weights.own_tensors(backend._model)}
    for _, tensor in weights.own_tensors(backend._model):
        tensor.data.fill_(7.0)
    module = backend._model.module
    read = dist_checkpointing.load(
        {"model": module.sharded_state_dict()}, str(folder / "release"), strict="raise_unexpected"
    )
    module.load_state_dict(read["model"])
    found["differing"] = [n for n, t in weights.own_tensors(backend._model) if not torch.equal(t, right[n])]
    found["layers"] = read["args"].num_layers
    leave()


def one_process(jobs: dict[str, Sequence[Any]], found: dict[str, Any], note: Callable[[], None]) -> None:
    """Everything that one process does: functions of this module by their names, with their arguments."""
    for name, arguments in jobs.items():
        found[name] = {}
        more = (note,) if name in ("kill_while_saving", "alone") else ()
        globals()[name](*arguments, found[name], *more)
        note()
