"""`scripts/assets.py`: what tests and recipes get from it is complete, split cleanly, and safe to ask for at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "assets.py"
Assets = Callable[[str], Path]


def run(*words: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SLIME_ASSETS": str(root)},
    )


def read_questions(file: Path) -> list[str]:
    return [json.loads(line)["messages"][0]["content"] for line in file.read_text(encoding="utf-8").splitlines()]


def test_processes_that_ask_at_once_share_one_build(tmp_path: Path) -> None:
    (tmp_path / ".building-of-a-killed-process").mkdir()
    command = [sys.executable, str(SCRIPT), "templates"]
    env = {**os.environ, "SLIME_ASSETS": str(tmp_path)}
    asked = [subprocess.Popen(command, env=env, stdout=-1, stderr=-1, text=True) for _ in range(3)]
    answers = [process.communicate() for process in asked]
    assert [process.returncode for process in asked] == [0, 0, 0], answers
    assert {out.splitlines()[-1] for out, _ in answers} == {str(tmp_path / "templates")}
    assert sum(err.count("downloading") for _, err in answers) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [".assets.lock", "templates"]
    assert "{%- generation %}" in (tmp_path / "templates" / "qwen3_training.jinja").read_text()


def test_a_folder_that_a_killed_build_left_incomplete_is_built_anew(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "half.jinja").touch()
    assert run("templates", root=tmp_path).returncode == 0
    assert not (tmp_path / "templates" / "half.jinja").exists()
    assert (tmp_path / "templates" / "qwen3.jinja").exists()


def test_asking_for_what_is_there_is_cheap(assets: Assets) -> None:
    folder = assets("templates")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert assets("templates") == folder
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3


@pytest.mark.parametrize(
    ("words", "says"), [(["modle"], "unknown asset 'modle'; there are: templates, data, model"), ([], "say what")]
)
def test_a_wrong_name_is_refused_with_the_names_there_are(words: list[str], says: str, tmp_path: Path) -> None:
    done = run(*words, root=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    done = run("templates", root=tmp_path)
    assert done.returncode == 2
    assert "pip could not download trl" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == [".assets.lock"]


def test_training_and_held_out_rows_are_disjoint_chats(assets: Assets) -> None:
    train = read_questions(assets("data") / "alpaca_train.jsonl")
    heldout = read_questions(assets("data") / "alpaca_heldout.jsonl")
    assert (len(train), len(heldout)) == (900, 99)
    assert set(train).isdisjoint(heldout)
    assert (assets("data") / "raw" / "glaive_toolcall_en_demo.json").exists()


def test_tokenizers_load_and_know_their_chat_marks(assets: Assets) -> None:
    transformers = pytest.importorskip("transformers")
    marks = {"smollm2": "<|im_end|>", "qwen2.5": "<|im_end|>", "qwen3": "<think>", "deepseek": "<｜Assistant｜>"}
    text = "It's 12,345 – naïve 漢字\n\n  done"
    for name, mark in marks.items():
        tokenizer = transformers.AutoTokenizer.from_pretrained(assets("tokenizers") / name)
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text, name
        assert len(tokenizer(mark, add_special_tokens=False).input_ids) == 1, name
        chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        assert "Hello" in tokenizer.apply_chat_template(chat, tokenize=False), name
    qwen3 = transformers.AutoTokenizer.from_pretrained(assets("tokenizers") / "qwen3")
    assert qwen3.convert_tokens_to_ids(["<|im_start|>", "<think>"]) == [151644, 151667]
    # Published ids of Qwen's tokenizer: the merges were recovered from ranks, so check that they merge.
    assert qwen3("Hello, world!").input_ids == [9707, 11, 1879, 0]


@pytest.mark.slow
def test_the_model_answers_a_question(assets: Assets) -> None:
    transformers = pytest.importorskip("transformers")
    folder = assets("model")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
