"""Prints what a run changed: held-out loss and one answer before and after. Usage: before_after.py RUN_DIR"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from slime_core.run.tracking import read_metrics


def main(run_dir: Path) -> None:
    evaluations = [m for m in read_metrics(run_dir / "metrics.jsonl") if "eval/heldout/loss" in m]
    first, last = evaluations[0], evaluations[-1]
    print(f"\nheld-out loss   before {first['eval/heldout/loss']:.4f}   after {last['eval/heldout/loss']:.4f}")
    answers = [json.loads(path.read_text().splitlines()[0]) for path in sorted((run_dir / "eval").glob("*.jsonl"))]
    if answers:
        print(f"\nasked:   {answers[0]['prompt'][-1]['content']}")
        print(f"before:  {answers[0]['response'].strip()}")
        print(f"after:   {answers[-1]['response'].strip()}")
    print(f"\nrun directory    {run_dir}   (metrics.jsonl, config.yaml, eval/)")
    print(f"exported model   {run_dir / 'model'}   (a Hugging Face checkpoint)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
