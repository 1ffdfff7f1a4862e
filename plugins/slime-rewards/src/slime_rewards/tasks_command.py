"""`slime tasks`: writes data of procedural tasks."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slime_core.errors import ArgumentError, DataError, PluginError, did_you_mean
from slime_core.plugins import Plugins

TEMPLATE = "{question}"
"""The questions say themselves what the answer shall look like; docs/rewards.md compares this with other templates."""

_OWN = {"seed", "size"}
"""Settings of a task that are options of the command."""
_COMPOSED = {"composite"}
"""Tasks that are made of other tasks, and have no questions without them."""


def main(argv: list[str], plugins: Plugins) -> int:
    """Run `slime tasks …`."""
    options = _parser().parse_args(argv)
    if find_spec("reasoning_gym") is None:
        raise PluginError(
            "`slime tasks` takes its tasks from reasoning-gym, which is not installed: "
            "pip install 'slime-rewards[reasoning-gym]'"
        )
    if options.list:
        print("\n".join(f"{task:<26} {_shown(settings)}" for task, settings in _known().items()))
        return 0
    return _write(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slime tasks",
        description="Write questions of a procedural task as rows with messages, label and metadata. The questions of a "
        "file differ from each other; the same command writes the same file.",
        epilog="Train on it with --input-key messages --label-key label, and --rm-type reasoning_gym or, for numbers, "
        "final_answer.",
        allow_abbrev=False,
    )
    parser.add_argument("task", nargs="?", help="its name, see --list")
    parser.add_argument("--list", action="store_true", help="print all tasks with their settings, and stop")
    parser.add_argument("--size", type=int, default=100, help="how many rows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other questions (default: %(default)s)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="settings of the task"
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="take no question that is in these files",
    )
    parser.add_argument("--output", metavar="FILE", help="the .jsonl file to write")
    parser.add_argument("--template", default=TEMPLATE, help="text around {question} (default: %(default)r)")
    parser.add_argument("--system", metavar="TEXT", help="a system message before it")
    parser.add_argument(
        "--shuffle-labels",
        action="store_true",
        help="give the rows each other's labels: a control, from which nothing can be learnt about the questions",
    )
    return parser


def _write(options: argparse.Namespace) -> int:
    from slime_core.data.files import require_other_file
    from slime_rewards import tasks

    if options.task is None or options.output is None:
        raise ArgumentError("Give a task and --output FILE, for example: slime tasks chain_sum --output train.jsonl")
    if options.size < 1:
        raise ArgumentError(f"--size is {options.size}; expected at least 1.")
    if "{question}" not in options.template:
        raise ArgumentError(f"--template is {options.template!r}; it must say where the question goes: {{question}}.")
    output = Path(options.output)
    if output.suffix != ".jsonl":
        raise ArgumentError(f"--output is {options.output}; expected a name that ends in .jsonl.")
    require_other_file("--output", output, options.exclude)
    settings = _settings(options.task, options.set)
    excluded = tasks.Excluded.read(options.exclude)
    drawn = tasks.Distinct(options.task, tasks.entries(options.task, settings, options.seed), options.size, excluded)
    rows: Iterable[tasks.Row] = (
        tasks.row(options.task, settings, entry, options.template, options.system) for entry in drawn
    )
    if options.shuffle_labels:
        rows = tasks.with_shuffled_labels(list(rows), options.seed)
    _write_rows(rows, output)
    without = f"; {drawn.rejected} questions rejected because of --exclude" if options.exclude else ""
    print(f"{output}: {options.size} rows of {options.task}{without}")
    return 0


def _write_rows(rows: Iterable[dict[str, Any]], output: Path) -> None:
    """Write all rows into the file, or leave what is there as it is."""
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        unfinished.replace(output)
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror or error}.") from None
    finally:
        with suppress(FileNotFoundError):
            unfinished.unlink()


def _known() -> dict[str, dict[str, Any]]:
    """Return {task: {setting: default}} of every task."""
    from reasoning_gym.factory import DATASETS

    return {
        name: {f.name: _default(f) for f in dataclasses.fields(config) if f.name not in _OWN}
        for name, (_, config) in sorted(DATASETS.items())
        if name not in _COMPOSED
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _shown(settings: dict[str, Any]) -> str:
    """Return settings as text for messages. Long values are cut."""
    texts = {name: repr(value) for name, value in settings.items()}
    return " ".join(f"{name}={text if len(text) <= 40 else text[:37] + '...'}" for name, text in texts.items())


def _settings(task: str, given: list[str]) -> dict[str, Any]:
    """Read the NAME=VALUE texts of `--set`. A value is JSON, or a text.

    Raises:
        ArgumentError: there is no such task or setting.
    """
    known = _known()
    if task not in known:
        raise ArgumentError(f"There is no task {task!r}.{did_you_mean(task, known)} `slime tasks --list` shows all.")
    settings = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or name in _OWN or name not in known[task]:
            own = f" Give it as --{name}." if name in _OWN else did_you_mean(name, known[task])
            raise ArgumentError(f"--set {item}: expected NAME=VALUE.{own} Settings of {task}: {_shown(known[task])}")
        try:
            settings[name] = json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except (ValueError, RecursionError):
            settings[name] = value
    return settings
