"""SFT and GRPO on one GPU in bfloat16: `python -m benchmarks.gpu`. Needs a CUDA device; minutes on one.

Runs recipes/quickstart-sft.yaml and recipes/quickstart-grpo.yaml as they are but for --bf16, a larger batch and a larger
token budget, each as `slime train` in a process of its own, and reads its metrics and samples; the first two rollouts are left out. GRPO computes every sample and every prompt, so
that its operations can be counted. Prints, and writes to benchmarks/results: tokens per second, and the share of the
device's bfloat16 peak that the operations of the model need (MFU; benchmarks/gemm.py says which).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gemm import Shapes, step_flops
from benchmarks.processes import ROOT, measured_environment, prepared, run_process
from benchmarks.report import RESULTS, command, tell
from slime_core.rollout.debug_data import read_debug_data
from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample

PEAK_TFLOPS = {"H200": 989, "H100": 989, "H20": 148, "B200": 2250, "A100": 312, "A800": 312, "L40S": 362, "4090": 165}
"""Dense bfloat16, from the makers' data sheets, by a part of the device's name. The SXM model where there are several."""
UNTIMED = 2


@dataclass(frozen=True)
class Figures:
    """Medians over the timed rollouts.

    Attributes:
        mfu: None where the device's peak is unknown.
    """

    trained_tokens_per_second: float
    generated_tokens_per_second: float | None
    rollout_seconds: float
    mfu: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=8, help=f"rollouts of each run; {UNTIMED} are not timed")
    parser.add_argument("--prompts", type=int, default=64, help="prompts per rollout")
    parser.add_argument("--peak-tflops", type=float, help="of a device that this program does not know")
    parser.add_argument(
        "--without-gpu", action="store_true", help="try the commands on a CPU, in fp32; nothing is kept"
    )
    given = parser.parse_args()
    if given.rollouts <= UNTIMED:
        parser.error(f"--rollouts must be above {UNTIMED}, which are not timed")
    device, peak = device_and_peak(given.peak_tflops, given.without_gpu)
    shapes = Shapes.of(prepared("model"))
    subprocess.run([sys.executable, ROOT / "scripts" / "tool_calls.py"], check=True)
    subprocess.run(["bash", ROOT / "scripts" / "tasks.sh"], check=True, stdout=subprocess.DEVNULL)
    found = {}
    for recipe in ("quickstart-sft", "quickstart-grpo"):
        tell(recipe)
        found[recipe] = figures(*run(recipe, given.rollouts, given.prompts, not given.without_gpu), shapes, peak)
    print(report(device, peak, found))
    if not given.without_gpu:
        results = {"command": command("gpu"), "device": device, "peak_tflops": peak}
        results |= {name: asdict(one) for name, one in found.items()}
        (RESULTS / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")


def device_and_peak(peak: float | None, without_gpu: bool) -> tuple[str, float | None]:
    """(the device's name, its peak in TFLOP/s)."""
    import torch

    if without_gpu:
        return "CPU", peak
    if not torch.cuda.is_available():
        raise SystemExit(
            "This benchmark needs a CUDA device, and torch sees none: install torch for CUDA and run it on a machine with a "
            "GPU. --without-gpu tries its commands on the CPU."
        )
    name = torch.cuda.get_device_name()
    return name, peak or next((float(t) for part, t in PEAK_TFLOPS.items() if part in name), None)


def run(recipe: str, rollouts: int, prompts: int, gpu: bool) -> tuple[list[dict[str, Any]], list[list[Sample]]]:
    """The metrics and the samples of a run, rollout by rollout."""
    flags: dict[str, Any] = {
        "--num-rollout": rollouts,
        "--rollout-batch-size": prompts,
        "--max-tokens-per-gpu": 32768 if gpu else 4096,
        "--eval-interval": rollouts + 1,
    }
    if recipe == "quickstart-sft":
        flags |= {"--global-batch-size": prompts, "--eval-generate": 0}
    switches = ["--skip-eval-before-train", *["--bf16"] * gpu]
    if recipe == "quickstart-grpo":
        switches += ["--no-skip-zero-advantages", "--no-share-prompts"]
    with tempfile.TemporaryDirectory() as folder:
        samples = f"{folder}/samples-{{rollout_id}}.jsonl"
        flags |= {"--run-dir": folder, "--save-debug-rollout-data": samples}
        words = [sys.executable, "-m", "slime_core", "train", ROOT / "recipes" / f"{recipe}.yaml", *switches]
        run_process(
            [str(word) for word in (*words, *(w for flag in flags.items() for w in flag))], measured_environment()
        )
        metrics = [line for line in read_metrics(Path(folder) / "metrics.jsonl") if "perf/train_time" in line]
        return metrics, [read_debug_data(Path(folder) / f"samples-{n}.jsonl").samples for n in range(rollouts)]


def figures(metrics: list[dict[str, Any]], samples: list[list[Sample]], shapes: Shapes, peak: float | None) -> Figures:
    """From all rollouts of a run. `peak` in TFLOP/s."""
    timed = list(zip(metrics, samples, strict=True))[UNTIMED:]
    made = [
        m["rollout/generated_tokens"] / m["perf/generate_time"] for m, _ in timed if "rollout/generated_tokens" in m
    ]
    rates = [
        step_flops(shapes, [len(sample.tokens) for sample in own], sum(sum(sample.trained_mask) for sample in own))
        / m["perf/train_time"]
        for m, own in timed
    ]
    return Figures(
        trained_tokens_per_second=median(m["train/num_tokens"] / m["perf/train_time"] for m, _ in timed),
        generated_tokens_per_second=median(made) if made else None,
        rollout_seconds=median(m["perf/rollout_time"] for m, _ in timed),
        mfu=median(rates) / (peak * 1e12) if peak else None,
    )


def report(device: str, peak: float | None, found: dict[str, Figures]) -> str:
    """The measurements as Markdown."""
    lines = [f"{device}, bfloat16 peak {f'{peak:g} TFLOP/s' if peak else 'unknown (--peak-tflops)'}", ""]
    lines += [
        "| recipe | trained tokens/s | MFU in training | generated tokens/s | s per rollout |",
        "|---|---|---|---|---|",
    ]
    for recipe, one in found.items():
        mfu = "—" if one.mfu is None else f"{100 * one.mfu:.1f} %"
        made = "—" if one.generated_tokens_per_second is None else f"{one.generated_tokens_per_second:.0f}"
        lines.append(f"| {recipe} | {one.trained_tokens_per_second:.0f} | {mfu} | {made} | {one.rollout_seconds:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
