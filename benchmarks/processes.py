"""The processes that are measured: started, waited for and ended. Also the random models that they run on, and what
their speed depends on. For `benchmarks.cluster` and `benchmarks.weight_sync`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.sft import ROOT, prepared

LIMIT_S, GRACE_S = 1800.0, 60.0
"""How long a process may take, and how long it may take to end what it started when it is interrupted."""


def run_together(commands: list[list[str]]) -> None:
    """Run commands at the same time, to their ends, one thread each and without GPUs. Nothing of them outlasts this call,
    also when it fails or is interrupted."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    processes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryFile("w+") as output, _ended(processes):
        for words in commands:
            processes.append(
                subprocess.Popen(
                    words, env=environment, cwd=ROOT, stdout=output, stderr=output, text=True, start_new_session=True
                )
            )
        for process, words in zip(processes, commands, strict=True):
            with suppress(subprocess.TimeoutExpired):
                process.wait(LIMIT_S)
            if process.returncode != 0:
                what = "failed" if process.returncode else f"has not ended after {LIMIT_S:.0f} s"
                output.seek(0)
                raise SystemExit(f"{' '.join(words[:4])} … {what}:\n{output.read()[-4000:]}")


@contextmanager
def _ended(processes: list[subprocess.Popen[str]]) -> Iterator[None]:
    """Ends those that still run: first as a person would with Ctrl-C, so that they end what they started."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in processes:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def unwind_on_signals() -> None:
    """Let SIGINT and SIGTERM unwind this process like an error, so that it ends what it started. A shell lets what it
    starts in the background ignore SIGINT, which the processes that it starts would inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def random_model(folder: Path, width: int, layers: int) -> Path:
    """A Llama-shaped random model with SmolLM2's tokenizer, as a Hugging Face checkpoint."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(prepared("tokenizers") / "smollm2")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def versions() -> dict[str, str]:
    """Of the packages that decide the speed."""
    found = {"python": platform.python_version()}
    for name in ("slime-core", "torch", "transformers", "ray", "sglang"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def command(name: str) -> str:
    return " ".join([f"python -m benchmarks.{name}", *sys.argv[1:]])
