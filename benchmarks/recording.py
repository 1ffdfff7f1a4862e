"""What recording samples for `slime report` costs: `python -m benchmarks.recording [RUN …]`.

Of run directories it tells which share of their rollouts' time their observers took, by the run's own clock. Without one it records
made-up rollouts of several sizes, and compares the smallest with a rollout of a real run of GRPO on the CPU. It counts the milliseconds of
a processor, which a busy machine does not change much.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from benchmarks.quiet import Watch, sentence
from slime_core.cli import main as slime
from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample, Status
from slime_core.testing.checkpoint import tiny_checkpoint
from slime_core.training.token_numbers import TokenNumbers
from slime_report.recording.recorder import Recorder

SIZES = ((64, 10, 64), (512, 200, 1_000), (256, 500, 4_000))
"""Samples of a rollout, and tokens of their prompts and responses."""


def share(run: Path) -> tuple[float, float]:
    """The seconds that slime-report's observers took in a run, and their share of all rollouts. Starting is left out."""
    spent = total = 0.0
    for line in read_metrics(run / "metrics.jsonl"):
        total += line.get("perf/rollout_time", 0.0)
        spent += sum(
            seconds
            for name, seconds in line.items()
            if name.startswith("perf/hooks/slime_") and name.endswith("/seconds") and "run_started" not in name
        )
    return spent, spent / total if total else 0.0


def recorded(samples: int, prompt: int, response: int, folder: Path, checkpoint: Path) -> tuple[float, float]:
    """Milliseconds of a processor to record a made-up rollout, the median of nine, and bytes that it takes."""
    tokens = [3 + n % 50 for n in range(prompt + response)]
    rollout = [
        Sample(n // 8, n, tokens=tokens, response_length=response, reward=n % 2, status=Status.COMPLETED)
        for n in range(samples)
    ]
    columns = {
        name: [[-0.12345678] * response] * samples for name in ("advantages", "rollout_log_probs", "old_log_probs")
    }
    args = SimpleNamespace(
        record_samples=6, record_limit=2**23, reward_key=None, use_rollout_logprobs=False, hf_checkpoint=str(checkpoint)
    )
    recorder = Recorder(cast(Any, args), folder, rank=0)
    seconds = []
    for rollout_id in range(10):
        started = time.thread_time()
        recorder.record(rollout_id, TokenNumbers(rollout, columns))
        seconds.append(time.thread_time() - started)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 10
    return 1000 * sorted(seconds[1:])[4], size  # the first loads the tokenizer


def main(argv: list[str]) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recording", description="What recording samples costs.")
    parser.add_argument("runs", nargs="*", metavar="RUN", type=Path, help="run directories; default: a small run")
    runs = parser.parse_args(argv).runs
    for run in runs:
        spent, part = share(run)
        print(f"{run}: {1000 * spent:.0f} ms in all rollouts, {part:.3%} of their time")
    if runs:
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = folder / "model"
        checkpoint.mkdir()
        tiny_checkpoint(checkpoint, weights=True)
        costs, watch = [], Watch()
        before = time.process_time()
        for samples, prompt, response in SIZES:
            milliseconds, size = recorded(samples, prompt, response, folder / f"{samples}", checkpoint)
            costs.append(milliseconds)
            print(
                f"{samples} samples of {prompt} + {response} tokens: {milliseconds:.1f} ms and {size / 1000:.0f} kB a rollout"
            )
        rollout = (small_run(folder / "long", checkpoint, 12) - small_run(folder / "short", checkpoint, 2)) / 10
        print(
            f"a rollout of two layers of the first size takes {rollout:.0f} ms: recording is {costs[0] / rollout:.3%} of it"
        )
        print(sentence([watch.others(time.process_time() - before)]))
    return 0


def small_run(folder: Path, checkpoint: Path, rollouts: int) -> float:
    """The milliseconds of a processor that a run of GRPO takes with the embedded engine on two layers, loading included."""
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "What is {n} plus {n}?", "label": "{2 * n}"}}\n' for n in range(32)))
    words = f"""train --hf-checkpoint {checkpoint} --prompt-data {rows} --input-key prompt --label-key label --rollout-engine local
        --rm-type exact_match --rollout-batch-size 8 --n-samples-per-prompt 8 --rollout-max-response-len 64 --num-rollout {rollouts}
        --use-dynamic-batch-size --max-tokens-per-gpu 4096 --no-skip-zero-advantages --run-dir {folder / "run"}"""
    started = time.process_time()
    if slime(words.split()) != 0:
        raise SystemExit("The small run failed.")
    return 1000 * (time.process_time() - started)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
