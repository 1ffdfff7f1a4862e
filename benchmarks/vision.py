"""The data path of vision-language models against TRL's collator: `python -m benchmarks.vision`, on a CPU in about three minutes.

Both read the same rows with JPEG files and make of them what a Qwen2.5-VL model is given: token ids, what is trained, pixels and grid.
slime makes samples of all rows of the step, and then packed rows one after the other, as its torch backend does. TRL's collator makes
batches, and a step that accumulates gradients fetches all of them before it computes the first. They run in turn, each in a process of
its own, several times; TRL in a virtual environment of its own, made once, with torchvision, which its processor needs.

Prints, and writes to benchmarks/results/vision.json: images per second from the first row to the last pixel, also per second of the
processor, which says more where something else runs (with --threads 1), and the largest resident memory above that of a bare interpreter. Both must give as many image tokens and the same pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, measured_environment, run_process
from benchmarks.quiet import add_option, require_quiet, sentence
from benchmarks.report import RESULTS, command, machine, spread, tell, versions
from benchmarks.sft import TRL, environment_with

VENV = ROOT / ".cache" / "benchmarks" / "trl-vision-venv"
TORCHVISION = "torchvision==0.28.0"
"""The one for the torch of constraints.txt."""
WIDTH, HEIGHT = 280, 196
MAX_TOKENS = 2048

CONTESTANTS: dict[str, dict[str, Any] | None] = {
    "slime": None,
    "TRL, one batch": {"batch": 0, "keep": True},
    "TRL, one row a batch, as gradients are accumulated": {"batch": 1, "keep": True},
    "TRL, one row a batch, each dropped": {"batch": 1, "keep": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--rows", type=int, default=64, help="rows of a step")
    parser.add_argument("--images", type=int, default=8, help="images of a row")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each")
    parser.add_argument("--more", action="store_true", help="add the runs to those in benchmarks/results/vision.json")
    add_option(parser)
    options = parser.parse_args()
    environment = measured_environment(options.threads)
    python = environment_with(VENV, [*TRL, "pillow", TORCHVISION])
    own = {**environment, "PYTHONPATH": ""}  # TRL's environment alone
    stored = RESULTS / "vision.json"
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    if options.more and stored.exists():
        runs = json.loads(stored.read_text())["runs"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        job = {"model": str(folder / "model"), "data": str(folder / "rows.jsonl"), "threads": options.threads}
        job |= {"max_tokens": MAX_TOKENS, "cache": str(folder / "cache")}
        write_checkpoint(folder / "model")
        write_rows(folder, options.rows, options.images)
        for repeat in range(options.repeats):
            # Turn about, so that neither always runs on the machine that the other left behind.
            for name in list(CONTESTANTS) if repeat % 2 == 0 else reversed(CONTESTANTS):
                how = CONTESTANTS[name]
                tell(f"repeat {repeat + 1}/{options.repeats}: {name}")
                require_quiet(options.under_load)
                load = os.getloadavg()[0]
                if how is None:
                    found = measured(
                        [sys.executable, "-m", "benchmarks.vision_worker"], sys.executable, job, environment
                    )
                else:
                    words = [python, str(ROOT / "benchmarks" / "trl_vision_worker.py")]
                    found = measured(words, python, {**job, **how, "batch": how["batch"] or options.rows}, own)
                runs[name].append({**found, "load_before": load})
                tell(
                    f"  {found['images_per_second']:.0f} images/s, {found['peak_mib']:.0f} MiB above a bare interpreter"
                )
    require_same_work([run for found in runs.values() for run in found])
    print(report(runs, options.rows, options.images))
    about = {"command": command("vision"), "machine": machine(options.threads)}
    about["versions"] = versions("torch", "transformers", "pillow") | {"trl": TRL[1].partition("==")[2]}
    RESULTS.mkdir(exist_ok=True)
    stored.write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n")


def write_checkpoint(folder: Path) -> None:
    """A tiny Qwen2.5-VL whose processor takes images as they are."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    sys.path.insert(0, str(ROOT / "scripts"))
    from digits import write_model

    folder.mkdir()
    write_model(folder)
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "size": {"shortest_edge": 28 * 28, "longest_edge": WIDTH * HEIGHT}}))


def write_rows(folder: Path, rows: int, images: int) -> None:
    """Conversations about JPEG files, all of which differ."""
    from PIL import Image

    (folder / "images").mkdir()
    lines = []
    for row in range(rows):
        names = []
        for place in range(images):
            number = row * images + place
            ramp = Image.linear_gradient("L").rotate(number % 360).resize((WIDTH, HEIGHT))
            noise = Image.effect_noise((WIDTH // 4, HEIGHT // 4), 60).resize((WIDTH, HEIGHT))
            buffer = io.BytesIO()
            Image.merge("RGB", (ramp, noise, ramp.transpose(Image.Transpose.FLIP_TOP_BOTTOM))).save(buffer, "JPEG")
            names.append(f"images/{number}.jpg")
            (folder / names[-1]).write_bytes(buffer.getvalue())
        question = [*({"type": "image"} for _ in names), {"type": "text", "text": f"What is on picture {row}?"}]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "A pattern."}]
        lines.append({"messages": messages, "images": [str(folder / name) for name in names]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def measured(words: list[str], python: str, job: dict[str, Any], environment: dict[str, str]) -> dict[str, float]:
    """One run of a worker: what it found, with images per second, and its largest memory above that of its bare interpreter."""
    with tempfile.TemporaryDirectory() as scratch:
        given, result, bare = (Path(scratch) / name for name in ("job.json", "result.json", "bare"))
        given.write_text(json.dumps(job))
        program = f"import memory_of; open({str(bare)!r}, 'w').write(str(memory_of.largest_mib()))"
        run_process(
            [python, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); {program}"], environment
        )
        ended = run_process([*words, str(given), str(result)], environment)
        found: dict[str, float] = {**json.loads(result.read_text()), "others": ended.others}
        peak = found["largest_mib"] - float(bare.read_text())
    speeds = {f"images_per_{name}": found["images"] / found[f"{name}s"] for name in ("second", "cpu_second")}
    return {**found, **speeds, "peak_mib": peak}


def require_same_work(runs: list[dict[str, float]]) -> None:
    """Raise `SystemExit` if one has made other tokens or pixels than another."""
    first = runs[0]
    for run in runs:
        same = all(run[name] == first[name] for name in ("images", "image_tokens"))
        if not same or not math.isclose(run["pixels"], first["pixels"], rel_tol=1e-5):
            raise SystemExit(f"The contestants have not made the same: {first} and {run}.")


def report(runs: dict[str, list[dict[str, float]]], rows: int, images: int) -> str:
    """The measurements as Markdown."""
    one = runs["slime"][0]
    pixels = one["image_tokens"] * 4 * 1176 * 4 / 2**20
    lines = [
        f"{rows} rows of {images} images of {WIDTH} × {HEIGHT} pixels: {one['image_tokens']:.0f} image tokens, whose pixels are "
        f"{pixels:.0f} MiB in fp32. Median (lowest to highest) of {len(runs['slime'])} runs in turn.",
        "",
        "| | images/s | slime is faster by | by time of the processor | peak memory above a bare interpreter | slime's is smaller by | of "
        "it for data |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in runs.items():
        faster = by_cpu = smaller = "—"
        if name != "slime":
            pairs = list(zip(runs["slime"], found, strict=True))
            faster = spread([a["images_per_second"] / b["images_per_second"] for a, b in pairs], "×", 2)
            by_cpu = spread([a["images_per_cpu_second"] / b["images_per_cpu_second"] for a, b in pairs], "×", 2)
            smaller = spread([b["peak_mib"] / a["peak_mib"] for a, b in pairs], "×", 2)
        speed = spread([run["images_per_second"] for run in found], "", 0)
        memory = spread([run["peak_mib"] for run in found], " MiB", 0)
        data = spread([run["largest_mib"] - run["loaded_mib"] for run in found], " MiB", 0)
        lines.append(f"| {name} | {speed} | {faster} | {by_cpu} | {memory} | {smaller} | {data} |")
    lines += ["", sentence([run["others"] for found in runs.values() for run in found])]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
