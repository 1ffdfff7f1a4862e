"""Both trackers write real files with the real packages, and the tests read back from them what was logged."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slime_core.contracts.checking import Checking
from slime_core.errors import PluginError
from slime_core.run.console import Console
from slime_core.run.tracking import TRAINED, JsonlTracker, Tracking
from slime_trackers import checks
from slime_trackers.arguments import WandbArguments
from slime_trackers.plugin import slime_trackers
from slime_trackers.tensorboard_tracker import TensorboardTracker
from slime_trackers.wandb_tracker import WandbTracker

SECRET = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"arguments": {"rollout_batch_size": 8}, "plugins": {"slime-trackers": "0.1.0"}, "resume_after": None}


def tensorboard_args(**more: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"tensorboard_dir": None, **more})


def resumed(after: int) -> dict[str, Any]:
    return {**CONFIG, "resume_after": after}


# ------------------------------------------------------------------------------------------------------ TensorBoard


def read_events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read_events(folder).Scalars(name)]


@pytest.fixture
def tensorboard_run(tmp_path: Path) -> Path:
    """A run that logged the evaluation before training and rollouts 0 to 3, and was killed."""
    pytest.importorskip("tensorboard")
    tracker = TensorboardTracker(tensorboard_args(), tmp_path, CONFIG)
    tracker.log({"eval/loss": 3.5}, -1)
    for step in range(4):
        tracker.log({"train/loss": 3.0 - step, "train/lr": 0.5}, step)
    tracker.close(RuntimeError("killed"))
    return tmp_path


def test_tensorboard_shows_every_metric_at_its_rollout(tensorboard_run: Path) -> None:
    folder = tensorboard_run / "tensorboard"
    assert scalars(folder, "train/loss") == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.0)]
    assert scalars(folder, "train/lr") == [(step, 0.5) for step in range(4)]
    assert scalars(folder, "eval/loss") == [(-1, 3.5)]


def test_tensorboard_shows_arguments_and_plugin_versions(tensorboard_run: Path) -> None:
    (event,) = read_events(tensorboard_run / "tensorboard").Tensors("config")
    assert b"rollout_batch_size: 8" in event.tensor_proto.string_val[0]
    assert b"slime-trackers: 0.1.0" in event.tensor_proto.string_val[0]


def test_a_resumed_run_replaces_the_steps_it_repeats(tensorboard_run: Path) -> None:
    tracker = TensorboardTracker(tensorboard_args(), tensorboard_run, resumed(after=1))
    for step in range(2, 5):
        tracker.log({"train/loss": 100.0 + step}, step)
    tracker.close(None)
    folder = tensorboard_run / "tensorboard"
    assert scalars(folder, "train/loss") == [(0, 3.0), (1, 2.0), (2, 102.0), (3, 103.0), (4, 104.0)]
    assert scalars(folder, "eval/loss") == [(-1, 3.5)]


def test_an_evaluation_that_is_made_again_has_one_point_and_the_rollout_before_it_stays(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    def start(jsonl: JsonlTracker, config: dict[str, Any]) -> Tracking:
        trackers: Any = [TensorboardTracker]
        return Tracking(jsonl, Console(2), trackers, tensorboard_args(), tmp_path, config)  # type: ignore[arg-type]

    path = tmp_path / "metrics.jsonl"
    first = JsonlTracker(path, None)
    tracking = start(first, CONFIG)
    for step in range(2):
        tracking.log({"train/loss": 3.0 - step, "train/odd": math.nan, TRAINED: 1.0}, step)
    tracking.log({"eval/loss": 2.5}, 1)
    tracking.close(RuntimeError("an observer of evaluations has failed"))
    first.close()
    second = JsonlTracker(path, resume_after=1, again=1)
    tracking = start(second, resumed(after=1))
    tracking.log({"eval/loss": 2.25}, 1)
    tracking.close(None)
    second.close()
    assert scalars(tmp_path / "tensorboard", "eval/loss") == [(1, 2.25)]
    assert scalars(tmp_path / "tensorboard", "train/loss") == [(0, 3.0), (1, 2.0)]
    assert [step for step, value in scalars(tmp_path / "tensorboard", "train/odd") if math.isnan(value)] == [0, 1]


def test_trackers_are_closed_where_a_later_one_cannot_be_made(tmp_path: Path) -> None:
    closed: list[BaseException] = []

    def last(args: Any, run_dir: Path, config: dict[str, Any]) -> Any:
        raise RuntimeError("its server is away")

    trackers: Any = [lambda *_: SimpleNamespace(close=closed.append), last]
    jsonl = JsonlTracker(tmp_path / "m.jsonl", None)
    with closing(jsonl), pytest.raises(RuntimeError, match="its server is away") as raised:
        Tracking(jsonl, Console(2), trackers, tensorboard_args(), tmp_path, CONFIG)  # type: ignore[arg-type]
    assert closed == [raised.value]


def test_a_new_run_in_an_old_folder_shows_only_itself(tensorboard_run: Path) -> None:
    tracker = TensorboardTracker(tensorboard_args(), tensorboard_run, CONFIG)
    tracker.log({"train/loss": 9.0}, 0)
    tracker.close(None)
    assert scalars(tensorboard_run / "tensorboard", "train/loss") == [(0, 9.0)]


def test_tensorboard_dir_is_where_the_events_go(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    args = tensorboard_args(tensorboard_dir=str(tmp_path / "a" / "b"))
    TensorboardTracker(args, tmp_path / "run", CONFIG).close(None)
    assert list((tmp_path / "a" / "b").glob("events.out.tfevents.*"))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ Weights & Biases


def wandb_args(**given: Any) -> WandbArguments:
    return WandbArguments(use_wandb=True, wandb_mode="offline", **given)


def read_records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file, which is 7 bytes of magic and a LevelDB log of 32 KiB blocks."""
    data, position, record = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        if (room := 32768 - position % 32768) < 7:  # too small for a header: the rest of the block is padding
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def read_wandb(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], list[Any]]:
    """The rows, the config and the run records of all offline runs under `folder`, the oldest first."""
    from wandb.proto import wandb_internal_pb2

    rows, config, runs = [], {}, []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime):
        for data in read_records(file):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("history"):
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                rows.append({name: value for name, value in items.items() if not name.startswith("_")})
            if record.HasField("run"):
                runs.append(record.run)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return rows, config, runs


@pytest.fixture
def wandb_run(tmp_path: Path) -> Path:
    """An offline run that logged two rollouts and half of the third's metrics."""
    pytest.importorskip("wandb")
    args = wandb_args(wandb_project="slime-dev", wandb_group="qwen", wandb_team="us")
    tracker = WandbTracker(args, tmp_path, CONFIG)
    for step in range(3):
        tracker.log({"train/loss": 3.0 - step}, step)
    tracker.close(RuntimeError("killed"))
    return tmp_path


def test_wandb_offline_keeps_every_metric_with_its_rollout(wandb_run: Path) -> None:
    rows, config, (run, *_) = read_wandb(wandb_run)
    assert rows == [{"train/loss": 3.0 - step, "rollout_id": step} for step in range(3)]
    assert config["plugins"] == {"slime-trackers": "0.1.0"}
    assert config["arguments"] == {"rollout_batch_size": 8}
    assert (run.project, run.run_group, run.entity) == ("slime-dev", "qwen", "us")
    assert run.display_name == wandb_run.name


def test_a_resumed_wandb_run_keeps_its_id_and_repeats_nothing(wandb_run: Path) -> None:
    tracker = WandbTracker(wandb_args(), wandb_run, resumed(after=0))
    for step in range(1, 4):
        tracker.log({"train/loss": 3.0 - step}, step)
        tracker.log({"eval/loss": 5.0 - step}, step)
    tracker.close(None)
    rows, _, runs = read_wandb(wandb_run)
    assert len({run.run_id for run in runs}) == 1
    assert [row["rollout_id"] for row in rows if "train/loss" in row] == [0, 1, 2, 3]
    # Rollout 2 had been logged without its evaluation when the first part was killed.
    assert [row["rollout_id"] for row in rows if "eval/loss" in row] == [2, 3]


def test_a_branch_has_its_own_numbers_in_a_wandb_run_of_its_own_which_goes_on_when_it_is_resumed(
    wandb_run: Path,
) -> None:
    for config, steps in (({**resumed(after=0), "branches": True}, (1, 2)), (resumed(after=1), (2, 3))):
        tracker = WandbTracker(wandb_args(), wandb_run, config)
        for step in steps:
            tracker.log({"train/loss": 9.0 + step}, step)
        tracker.close(None)
    rows, _, runs = read_wandb(wandb_run)
    assert [row["train/loss"] for row in rows] == [3.0, 2.0, 1.0, 10.0, 11.0, 12.0]
    first, branch, more = (run.run_id for run in runs)
    assert first != branch == more


def test_a_new_run_in_an_old_folder_gets_a_new_wandb_id(wandb_run: Path) -> None:
    tracker = WandbTracker(wandb_args(), wandb_run, CONFIG)
    tracker.log({"train/loss": 9.0}, 0)
    tracker.close(None)
    rows, _, runs = read_wandb(wandb_run)
    assert len({run.run_id for run in runs}) == 2
    assert rows[-1] == {"train/loss": 9.0, "rollout_id": 0}


def test_the_wandb_key_is_stored_nowhere(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    home = tmp_path / "home"
    home.mkdir()
    script = """
        import sys
        from pathlib import Path
        from slime_trackers.arguments import WandbArguments
        from slime_trackers.wandb_tracker import WandbTracker

        args = WandbArguments(use_wandb=True, wandb_mode="offline", wandb_key=sys.argv[2])
        print(args, args.wandb_key)
        run_dir = Path(sys.argv[3])
        tracker = WandbTracker(args, run_dir, {"arguments": args.model_dump(mode="json"), "resume_after": None})
        tracker.log({"train/loss": 1.0}, 0)
        tracker.close(None)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), "--wandb-key", SECRET, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(home), "WANDB_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []


# ------------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize(("name", "tracker"), [("tensorboard", TensorboardTracker), ("wandb", WandbTracker)])
def test_a_missing_package_is_an_error_that_says_what_to_install(
    name: str, tracker: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PluginError, match=rf"pip install slime-trackers\[{name}\]"):
        tracker(SimpleNamespace(tensorboard_dir=None), tmp_path, CONFIG)


def test_listing_the_trackers_imports_neither_package() -> None:
    check = "import sys, slime_trackers.plugin; sys.exit(bool({'tensorboard', 'wandb', 'mlflow', 'trackio', 'swanlab', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    assert set(slime_trackers()) == {"tensorboard", "wandb", "mlflow", "trackio", "swanlab"}


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "mlflow", "trackio", "swanlab"])
def test_a_package_that_is_missing_is_told_by_the_trackers_name_whatever_option_chose_it(
    tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    checking = Checking(SimpleNamespace(wandb_dir=None, wandb_host=None), None, None)  # type: ignore[arg-type]
    getattr(checks, tracker)(checking.args, checking)
    (found,) = checking.found
    assert found.text.startswith(f"The tracker {tracker} needs the package {tracker}, which is not installed")
    assert found.text.endswith(f"pip install slime-trackers[{tracker}]")
