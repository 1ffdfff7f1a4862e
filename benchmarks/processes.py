"""The processes that are measured: started, waited for and ended; and the models that they run on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quiet import Family, Watch

ROOT = Path(__file__).parent.parent
LIMIT_S, GRACE_S = 1800.0, 60.0
"""How long a process may take, and how long it may take to end what it started when it is interrupted."""


def measured_environment(threads: int | None = None) -> dict[str, str]:
    """This process's environment without the network, with so many threads (None: what torch finds right), and with bytecode that is kept,
    as it is where people install slime: to compile its modules anew takes a third of a second."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    count = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**kept, **count, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Ended:
    """A process that was measured.

    Attributes:
        peak_gib: its largest resident memory.
        others: the share of all processors' time that others used meanwhile (`benchmarks.quiet`).
    """

    peak_gib: float
    others: float


def run_process(words: list[str], environment: dict[str, str]) -> Ended:
    """Run a command. Its process does not outlast this call."""
    watch = Watch()
    processes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryFile("w+") as output, _ended(processes):
        process = _start(words, environment, output)
        processes.append(process)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(words[:4])} … failed:\n{output.read()[-4000:]}")
    return Ended(usage.ru_maxrss / 2**20, watch.others(usage.ru_utime + usage.ru_stime))


def run_family(words: list[str], environment: dict[str, str]) -> Ended:
    """Run a command that starts processes of its own, such as Ray's: what is measured is all of them together, every half second."""
    with Family() as family:
        run_process(words, environment | family.mark)
    return Ended(family.peak_gib, family.others())


def run_together(commands: list[list[str]]) -> float:
    """Run commands at the same time, to their ends, one thread each and without GPUs. Nothing of them outlasts this call,
    also when it fails or is interrupted.

    Returns:
        the share of all processors' time that others used meanwhile.
    """
    environment = {**measured_environment(1), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": python_path()}
    environment.pop("RAY_ADDRESS", None)
    processes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryFile("w+") as output, _ended(processes), Family() as family:
        environment |= family.mark
        for words in commands:
            processes.append(_start(words, environment, output))
        for process, words in zip(processes, commands, strict=True):
            with suppress(subprocess.TimeoutExpired):
                process.wait(LIMIT_S)
            if process.returncode != 0:
                what = "failed" if process.returncode else f"has not ended after {LIMIT_S:.0f} s"
                output.seek(0)
                raise SystemExit(f"{' '.join(words[:4])} … {what}:\n{output.read()[-4000:]}")
    return family.others()


def python_path() -> str:
    """Where Python finds this repository, and what this process finds."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def _start(words: list[str], environment: dict[str, str], output: Any) -> subprocess.Popen[str]:
    """In a session of its own, so that `_ended` can end all of it."""
    return subprocess.Popen(
        words, env=environment, cwd=ROOT, stdout=output, stderr=output, text=True, start_new_session=True
    )


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


def prepared(what: str) -> Path:
    """The folder of one of the things that `scripts/assets.py` knows."""
    done = subprocess.run([sys.executable, ROOT / "scripts" / "assets.py", what], stdout=-1, text=True, check=True)
    return Path(done.stdout.splitlines()[-1])


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


def smollm2_shaped(folder: Path) -> Path:
    """A random model of the shape of SmolLM2-135M with a small tokenizer, as a Hugging Face checkpoint, made without a download."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from slime_core.testing import chat_tokenizer

    disable_progress_bar()
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder
