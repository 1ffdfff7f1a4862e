"""How near the estimate of memory comes to what a run takes: `python -m benchmarks.memory`, on a CPU in some minutes.

Random models of two sizes, the shapes of a Llama of 19 million weights and of SmolLM2-135M, take two optimizer steps of SFT, of LoRA and
of GRPO (with the embedded engine, in one process), each in a process of its own by `slime train`'s own code. Rows fill the token
budget of their micro-batches, of which a step has several, and answers are as long as they may be.

Measured is the largest resident memory of the process, above that of the same process after a run of the smallest model there is, which
has loaded and used all libraries. The C library is told to give freed memory back at once (`MALLOC_MMAP_THRESHOLD_`); a run on a CPU
otherwise keeps it for the next step, which is faster (`slime_core.tensors.freed_memory`), and takes more than its tensors: that is
the second number. The estimate is the one that `slime check` prints. What others do on the machine does not change these figures.

Prints them, and writes them to benchmarks/results.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from benchmarks.quiet import beside_others, sentence
from benchmarks.report import RESULTS, command, machine, versions

SHAPES: dict[str, dict[str, int]] = {
    "none": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "19M": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 16384,
    },
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
}
SHAPES["38M with experts"] = {
    **SHAPES["19M"],
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 192,
}
TOKENS = int(os.environ.get("SLIME_BENCHMARK_TOKENS", "512"))
ANSWER = TOKENS // 8
"""Of a conversation, and of an answer."""
SFT = [
    *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--calculate-per-token-loss", "--debug-train-only"),
    *(
        "--disable-compute-advantages-and-returns",
        "--rollout-batch-size",
        "4",
        "--rollout-max-context-len",
        str(TOKENS),
    ),
    *("--over-long-sample", "truncate", "--use-dynamic-batch-size", "--max-tokens-per-gpu", str(2 * TOKENS)),
]
GRPO = [
    *("--rollout-engine", "local", "--rm-type", "random", "--apply-chat-template", "--advantage-estimator", "grpo"),
    *("--rollout-batch-size", "8", "--n-samples-per-prompt", "4", "--rollout-max-response-len", str(ANSWER)),
    *("--rollout-max-prompt-len", "64", "--use-dynamic-batch-size", "--max-tokens-per-gpu", str(2 * TOKENS)),
]
RUNS = {
    "SFT": SFT,
    "LoRA": [*SFT, "--lora-rank", "16"],
    "SFT, recomputed": [*SFT, "--gradient-checkpointing"],
    "GRPO": GRPO,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["19M", "135M"], choices=list(SHAPES)[1:])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument(
        "--kept", action="store_true", help="measure a second time with freed memory kept, as runs do by default"
    )
    parser.add_argument("--tokens", type=int, default=512, help="of a conversation; a micro-batch has two of them")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, size, run = options.worker
        print(json.dumps(measure(Path(folder), size, RUNS[run])))
        return
    os.environ["SLIME_BENCHMARK_TOKENS"] = str(options.tokens)  # read by the processes that are measured
    print("| run | model | estimate, MiB | measured, MiB | ratio | kept, MiB |\n|---|---|---|---|---|---|")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            for run in options.runs:
                found, others = beside_others(partial(_figures, Path(folder), size, run, options.kept))
                results.append({"run": run, "model": size, **found, "others": others})
                ratio = found["estimate"] / found["measured"]
                more = f"{found['kept']:.0f}" if options.kept else "–"
                print(
                    f"| {run} | {size} | {found['estimate']:.0f} | {found['measured']:.0f} | {ratio:.2f} | {more} |",
                    flush=True,
                )
    print(f"\n{sentence([found['others'] for found in results])}")
    about = {"command": command("memory"), "machine": machine(1), "tokens": options.tokens}
    about |= {"versions": versions("slime-core", "torch", "transformers"), "figures": results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps(about, indent=1) + "\n")


def _figures(folder: Path, size: str, run: str, kept: bool) -> dict[str, float]:
    found = _in_a_process(folder, size, run, gives_back=True)
    return found | ({"kept": _in_a_process(folder, size, run, gives_back=False)["measured"]} if kept else {})


def _in_a_process(folder: Path, size: str, run: str, gives_back: bool) -> dict[str, float]:
    own = (
        {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "SLIME_GIVES_BACK": "1"}
        if gives_back
        else {}
    )
    environment = {**os.environ, **own, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "benchmarks.memory", "--worker", str(folder), size, run]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{run} of {size} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, size: str, flags: list[str]) -> dict[str, float]:
    """Run in this process, and return MiB: the estimate and what was measured."""
    if os.environ.get("SLIME_GIVES_BACK"):
        import slime_engine_local.engine as engine
        import slime_torch.backend as backend

        for module in (backend, engine):
            vars(module)["keep_freed_memory"] = lambda part: True  # only this process
    words = [
        *flags,
        "--prompt-data",
        str(_rows(folder, "--rm-type" in flags)),
        "--input-key",
        "messages",
        "--num-rollout",
        "2",
        "--lr",
        "1e-5",
    ]
    _train([*words, "--hf-checkpoint", str(_model(folder, "none")), "--run-dir", str(folder / "run")])
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the largest memory so far is forgotten
    model = str(_model(folder, size, in_this_process=False))
    _train([*words, "--hf-checkpoint", model, "--run-dir", str(folder / "run")])
    return {"estimate": estimate([*words, "--hf-checkpoint", model]), "measured": _resident("VmHWM") - before}


def estimate(words: list[str]) -> float:
    """MiB that `slime check` prints for a run in one process."""
    from slime_core.arguments.namespace import Namespace
    from slime_core.arguments.resolve import resolve
    from slime_core.plugins import Plugins
    from slime_core.run.memory import estimate as estimated
    from slime_core.run.plan import make_plan
    from slime_core.tensors.model_shape import shape_of
    from slime_core.training.checkpoint_check import read_configuration

    plugins = Plugins()
    plan = make_plan(resolve(Namespace(plugins), words, env={}), plugins)
    model = shape_of(read_configuration(plan.args.hf_checkpoint, "--hf-checkpoint"))
    (process,) = estimated(plan.args, plan.components, plan.layout, model, on_gpu=False).processes
    plan.close()
    return process.peak()[1] / 2**20


def _train(words: list[str]) -> None:
    from slime_core.cli import main as slime

    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        status = slime(["train", *words])
    if status:
        raise SystemExit(told.getvalue()[-2000:])


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def _rows(folder: Path, prompts: bool) -> Path:
    """Conversations of which each is cut to half a micro-batch, or prompts."""
    file = folder / f"rows{prompts}.jsonl"
    turns: list[Any] = [{"role": "user", "content": "abcdefgh"}]
    turns += [] if prompts else [{"role": "assistant", "content": "abcdefgh" * 100}]
    file.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(16)))
    return file


def _model(folder: Path, size: str, in_this_process: bool = True) -> Path:
    """A random model; made in another process where this one's memory is measured."""
    place = folder / size
    if place.exists():
        return place
    if not in_this_process:
        code = (
            f"from pathlib import Path; from benchmarks.memory import _model; _model(Path({str(folder)!r}), {size!r})"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
        return place
    from transformers import AutoConfig, AutoModelForCausalLM

    from slime_core.testing import chat_tokenizer

    tokenizer = chat_tokenizer()
    settings: dict[str, Any] = {"vocab_size": len(tokenizer), **SHAPES[size]}
    config = AutoConfig.for_model(
        "qwen3_moe" if "num_experts" in settings else "llama",
        **settings,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


if __name__ == "__main__":
    main()
