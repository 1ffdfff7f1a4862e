"""Checkpoints of a run with a state of the torch backend, and a dump beside each."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzzing.damage import damaged, mutated


def attempt(r: Random, folder: Path) -> Callable[[], None]:
    """A checkpoint of which one file is damaged."""
    path = write_checkpoint(folder)
    damage_checkpoint(r, path)
    return partial(read_checkpoint, path)


def write_checkpoint(folder: Path) -> Path:
    """A checkpoint of a run with a state of the torch backend, and a dump of a rollout."""
    import torch

    from slime_core.rollout.debug_data import write_debug_data
    from slime_core.run.saving import Saving
    from slime_core.sample import RolloutOutput, Sample
    from slime_torch import state

    model, optimizer = small_model()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    stored = {"rollout_id": 3, "data_source": {"sets": []}, "arguments": {"lr": 1}, "data": {}, "plugins": {}}
    with Saving(folder, 3) as saving:
        state.Saver().save(saving.trainer, state.collect(model, optimizer, 1), background=False)
        (saving.trainer / "trained_ends.json").write_text("[1, 2]")
        path = saving.finish({**stored, "early_stopping": None, "prefetched": None, "evaluation_due": False})
    group = [Sample(index=n, tokens=[1, 2, 3], response_length=1, reward=1.0, metadata={"a": [n]}) for n in range(2)]
    write_debug_data(folder / "dump.jsonl", RolloutOutput([group], {"x": 1.0}))
    return path


def small_model() -> tuple[Any, Any]:
    import torch

    model = torch.nn.Linear(4, 3)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def damage_checkpoint(r: Random, path: Path) -> None:
    """Damage one file; sometimes the manifest says that it shall be so, as whoever forges one would have it."""
    from slime_core.run.checkpoints import describe

    files = sorted(p for p in [*path.rglob("*"), path.parent / "dump.jsonl"] if p.is_file())
    file = r.choice(files)
    if file.suffix in (".json", ".jsonl") and r.random() < 0.6:
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        place = r.randrange(len(lines))
        lines[place] = json.dumps(mutated(r, json.loads(lines[place])))
        file.write_text("\n".join(lines), errors="surrogatepass")
    elif file.name == ".metadata" and r.random() < 0.5:
        file.write_bytes(pickle.dumps(r.choice(({}, [1], Exception("x"), os.system))))
    else:
        file.write_bytes(damaged(r, file.read_bytes()))
    if file.name not in ("manifest.json", "dump.jsonl"):
        manifest = json.loads((path / "manifest.json").read_text())
        manifest[str(file.relative_to(path))] = describe(file)
        if r.random() < 0.8:
            (path / "manifest.json").write_text(json.dumps(manifest))


def read_checkpoint(path: Path) -> None:
    """Read everything of a checkpoint, and the dump beside it."""
    from slime_core.data.ends import stored_trained_ends
    from slime_core.errors import SlimeError
    from slime_core.rollout.debug_data import read_debug_data
    from slime_core.run import checkpoints
    from slime_torch import state

    refused: SlimeError | None = None
    for read in (
        lambda: checkpoints.require_state(checkpoints.load_state(path)),
        lambda: checkpoints.stored_arguments(path),
        lambda: state.load(path / "trainer", *small_model()),
        lambda: stored_trained_ends(path / "trainer"),
        lambda: read_debug_data(path.parent / "dump.jsonl"),
    ):
        try:
            read()
        except SlimeError as error:
            refused = error
    if refused is not None:
        raise refused
