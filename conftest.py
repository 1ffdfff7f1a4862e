"""Fixtures shared by the tests of all distributions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings

# The folders of these distributions have the names of their packages, and pytest would take the folders for the packages when
# it imports the tests in them, unless the packages are there already.
import slime_fp8  # noqa: F401
import slime_losses  # noqa: F401
import slime_rollout_sft  # noqa: F401
import slime_rollout_sglang  # noqa: F401
from slime_core.start_up import collect_again, collect_seldom

ROOT = Path(__file__).parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A property is tried on the same inputs in every run, so that a run fails for what was changed; new inputs are looked for by
# `pytest --hypothesis-profile=search`. Inputs may take their time: a machine may have other work.
settings.register_profile("same-inputs", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None, max_examples=1000)
settings.load_profile("same-inputs")


# Shells let what they start in the background ignore SIGINT, and nohup SIGHUP, and so would all that tests start and interrupt.
for number, usual in {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}.items():
    if signal.getsignal(number) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(number, usual)

# Tests import millions of objects that stay. Looking through them again and again takes a quarter of the time of collecting.
collect_seldom()


def pytest_collection_finish() -> None:
    collect_again()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several workers take one file after another (`scripts/test.sh`), files with slow tests come first, and of the others
    those with many tests: the workers end together, and none begins minutes of work when the others have nothing left."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    tests = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, -tests[item.path]))


@pytest.fixture(autouse=True)
def own_modules_are_forgotten(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test imports from its own folder is of this test alone: the next may write a module of the same name."""
    if "tmp_path" not in request.fixturenames:
        yield
        return
    folder, before = request.getfixturevalue("tmp_path"), set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(f"{folder}{os.sep}"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def assets() -> Callable[[str], Path]:
    """`assets("model")` prepares one of the things that `scripts/assets.py` knows and returns its folder."""

    def prepare(what: str) -> Path:
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "assets.py"), what], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.fail(f"scripts/assets.py {what} failed:\n{done.stdout}\n{done.stderr}")
        return Path(done.stdout.strip().splitlines()[-1])

    return prepare


def keep_first_tokens(file: Path, size: int) -> None:
    """Leave out all but the first tokens of a BPE tokenizer, which are those that it has learned first."""
    whole = json.loads(file.read_text())
    vocab, merges = whole["model"]["vocab"], whole["model"]["merges"]
    left_out = len(vocab) - size
    whole["model"]["vocab"] = {token: number for token, number in vocab.items() if number < size}
    whole["model"]["merges"] = merges[: len(merges) - left_out]
    file.unlink()
    file.write_text(json.dumps(whole))


@pytest.fixture(scope="session")
def tiny_model(assets: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama-shaped random model of two layers, as a Hugging Face checkpoint. Its tokenizer has the first 4,096 tokens of SmolLM2's:
    all of them would be most of the work of a model of this size."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-model")
    shutil.copytree(assets("tokenizers") / "smollm2", folder, dirs_exist_ok=True)
    keep_first_tokens(folder / "tokenizer.json", 4096)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty short conversations in a JSONL file, each different."""
    path = tmp_path_factory.mktemp("chat-rows") / "rows.jsonl"
    rows = []
    for n in range(20):
        question = {"role": "user", "content": f"What is {n} plus {n + 1}?"}
        answer = {"role": "assistant", "content": f"It is {2 * n + 1}. " + "Easy. " * (n % 4)}
        rows.append({"messages": [question, answer]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of three CPUs that this process has joined; runs use it and leave it running."""
    from slime_core.runtime.connect import prepare, start_local

    prepare("local")
    import ray

    start_local(num_cpus=3, num_gpus=0, object_store_memory=200 * 1024 * 1024)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def default_arguments() -> Callable[..., SimpleNamespace]:
    """`default_arguments(*specs, groups=[…], **changes)`: the options of the core, and of further groups, at their
    defaults. Of the required ones there is only `--prompt-data`: these files."""
    from slime_core.arguments.groups import GROUPS

    def make(*specs: Path | str, groups: Sequence[Any] = (), **changes: Any) -> SimpleNamespace:
        defaults = {
            name: field.get_default(call_default_factory=True)
            for group in [*GROUPS, *groups]
            for name, field in group.model_fields.items()
            if not field.is_required()
        }
        return SimpleNamespace(**{**defaults, "prompt_data": [str(spec) for spec in specs], **changes})

    return make
