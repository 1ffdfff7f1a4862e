"""Prints what a run changed: how many held-out requests are answered with the right call, and some answers, before and after.

python scripts/before_after.py RUN_DIR
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from slime_core.sample import Sample

SHOWN = 4
WIDTH = 100


def main(run_dir: Path) -> None:
    before, after = (_answers(path) for path in _first_and_last(run_dir / "eval"))
    for old, new in list(zip(before, after, strict=True))[:SHOWN]:
        print(f"\nasked    {_one_line(_asked(old))}")
        print(f"before   {_one_line(old['response'])}")
        wrong = "" if new["reward"] else f"   (wrong, it is {new['label']})"
        print(f"after    {_one_line(new['response'])}{wrong}")
    print(f"\nright answers to {len(after)} held-out requests: before {_right(before)}, after {_right(after)}")
    print(f"\nthe model    {run_dir / 'model'}   (a Hugging Face checkpoint)")
    print(f"the numbers  {run_dir / 'metrics.jsonl'}, and every answer in {run_dir / 'eval'}")
    system, asked = (shlex.quote(_asked(after[0], place)) for place in (0, -1))
    print(f"\nask it yourself:\nslime chat {run_dir / 'model'} --system {system} {asked}\n")


def _first_and_last(folder: Path) -> tuple[Path, Path]:
    paths = sorted(folder.glob("*.jsonl"))
    return paths[0], paths[-1]


def _answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _asked(answer: dict[str, Any], place: int = -1) -> str:
    """A message of the prompt, the user's last by default: as text between the template's marks, or among messages."""
    return str(Sample.from_dict(answer).asked[place]["content"])


def _right(answers: list[dict[str, Any]]) -> str:
    right = sum(answer["reward"] == 1 for answer in answers)
    return f"{right} ({right / len(answers):.0%})"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
