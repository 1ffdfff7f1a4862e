"""A base model that is trained on turns stops at their end: in evaluations, in RL, in exports and in what is converted."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slime_core.cli import main
from slime_core.data.ends import TrainedEnds, add_ends, ends_of_weights, known_ends, trained_end
from slime_core.sample import Sample, Status
from slime_core.testing import chat_tokenizer, tiny_checkpoint

BASE_END, END = "<|pad|>", "<|im_end|>"


def id_of(token: str) -> int:
    return int(chat_tokenizer().convert_tokens_to_ids(token))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends texts with another token than the one with which its chat template ends turns."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("base"))
    for name, key, value in (
        ("config.json", "eos_token_id", id_of(BASE_END)),
        ("tokenizer_config.json", "eos_token", BASE_END),
    ):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, key: value}))
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ok"}]}
    path.write_text(f"{json.dumps(row)}\n" * 8)
    return path


def flags_of(base: Path, rows: Path, folder: Path) -> list[str]:
    return [
        *("--hf-checkpoint", str(base), "--prompt-data", str(rows), "--input-key", "messages"),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--disable-compute-advantages-and-returns"),
        *(
            "--rollout-batch-size",
            "8",
            "--lr",
            "3e-2",
            "--lr-decay-style",
            "constant",
            "--run-dir",
            str(folder / "run"),
        ),
    ]


def answer(model: Path) -> str:
    """What transformers generates with a folder and its settings, end token included."""
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        found = loaded.generate(**prompt, max_new_tokens=20, do_sample=False)
    return str(tokenizer.decode(found[0, prompt["input_ids"].shape[1] :]))


def test_a_base_model_stops_at_the_end_of_the_turns_that_it_was_trained_on(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*flags_of(base, rows, tmp_path), "--save", str(tmp_path / "save"), "--save-hf", str(tmp_path / "model")]
    evaluation = ["--eval-prompt-data", "held", f"{rows}@[0:1]", "--eval-interval", "40", "--skip-eval-before-train"]
    evaluation += ["--eval-generate", "1", "--eval-max-response-len", "20", "--rollout-engine", "local"]
    assert main(["train", *flags, *evaluation, "--num-rollout", "40"]) == 0
    assert f"the exported model stops at '{END}' too" in capsys.readouterr().err
    (file,) = (tmp_path / "run" / "eval").glob("*.jsonl")
    assert json.loads(file.read_text())["response_length"] == 3
    assert answer(tmp_path / "model") == f"ok{END}"
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [id_of(BASE_END), id_of(END)]

    again = [*flags_of(base, rows, tmp_path), "--load", str(tmp_path / "save"), "--save-hf", str(tmp_path / "again")]
    assert main(["train", *again, "--num-rollout", "40", "--on-resume-change", "warn"]) == 0  # trains nothing more
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text()) == settings

    # RL that begins with the fine-tuned weights, beside the base model's configuration
    learner = ["--hf-checkpoint", str(base), "--ref-load", str(tmp_path / "model"), "--prompt-data", str(rows)]
    learner += ["--input-key", "messages", "--apply-chat-template", "--rollout-engine", "local", "--rm-type", "random"]
    learner += ["--rollout-batch-size", "2", "--n-samples-per-prompt", "2", "--rollout-max-response-len", "20"]
    learner += ["--rollout-temperature", "0.01", "--lr", "0", "--num-rollout", "1", "--run-dir", str(tmp_path / "rl")]
    assert main(["train", *learner, "--save-debug-rollout-data", str(tmp_path / "dump")]) == 0
    metrics = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert {m["rollout/response_len/max"] for m in metrics if "rollout/response_len/max" in m} == {3}


def sample(text: str, trained: int, **changes: Any) -> Sample:
    tokens = chat_tokenizer()(text, add_special_tokens=False)["input_ids"]
    mask = [0] * (len(tokens) - 1 - trained) + [1] * trained
    return replace(Sample(tokens=tokens, response_length=len(tokens) - 1, loss_mask=mask), **changes)


@pytest.mark.parametrize(
    ("text", "untrained", "end"),
    [
        (f"ab{END}", 0, END),
        (f"ab{END}\n", 0, END),  # white space behind it says nothing
        (f"ab{END}\n", 1, END),
        (f"ab{END}x", 0, None),
        ("abc", 0, None),
        (f"ab{END}cd{BASE_END}", 0, BASE_END),
    ],
)
def test_the_end_of_what_is_trained_is_its_last_special_token(text: str, untrained: int, end: str | None) -> None:
    made = sample(text, 2)
    if untrained:
        made.loss_mask = [0, 1, 1, 0]
    assert trained_end(made, chat_tokenizer()) == (id_of(end) if end else None)


def test_what_was_cut_off_or_left_out_has_no_end(base: Path, tmp_path: Path) -> None:
    ends = TrainedEnds(str(base))
    ends.note([sample(f"ab{END}", 2, status=Status.TRUNCATED), sample(f"ab{END}", 2, remove_sample=True)])
    ends.save(tmp_path)
    later = TrainedEnds(str(base))
    later.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert later.write(tmp_path) == []
    assert not (tmp_path / "generation_config.json").exists()
    later.note([sample(f"ab{END}", 2)])
    assert later.write(tmp_path) == [END]
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [5, id_of(END)]


@pytest.mark.parametrize(
    ("config", "generation", "written"),
    [
        ({"eos_token_id": 1}, None, {"eos_token_id": [1, 9]}),
        ({"eos_token_id": [1, 2], "bos_token_id": 3}, None, {"bos_token_id": 3, "eos_token_id": [1, 2, 9]}),
        ({"eos_token_id": 1}, {"eos_token_id": 2, "top_k": 5}, {"eos_token_id": [2, 9], "top_k": 5}),
        ({"eos_token_id": 1}, {"top_k": 5}, {"top_k": 5, "eos_token_id": [1, 9]}),
        ({"eos_token_id": None}, None, {"eos_token_id": [9]}),
        ({"eos_token_id": 1}, {"eos_token_id": [9]}, {"eos_token_id": [9]}),
        ({}, None, {"eos_token_id": [9]}),
    ],
)
def test_ends_are_added_to_those_that_a_model_has(config: Any, generation: Any, written: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    add_ends(tmp_path, [9])
    assert json.loads((tmp_path / "generation_config.json").read_text()) == written
    assert known_ends(str(tmp_path), chat_tokenizer()) >= {9}


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        ({}, None, set()),
        ({"eos_token_id": 1}, {"eos_token_id": [2, 9]}, {1, 2, 9}),
        ({"eos_token_id": 1}, {"top_k": 5}, {1}),
        ({"text_config": {"eos_token_id": [1, 2]}}, None, {1, 2}),
        ({"text_config": {"eos_token_id": 1}}, {"eos_token_id": 9}, {1, 9}),
        ({"eos_token_id": 3, "text_config": {"eos_token_id": 1}}, None, {3}),
        ({"eos_token_id": None, "text_config": {"eos_token_id": 1}}, None, set()),
        ({"thinker_config": {"text_config": {"eos_token_id": 1}}}, None, {1}),
        ({"text_config": None}, None, set()),
    ],
)
def test_a_checkpoint_ends_at_the_tokens_of_all_its_files(
    config: Any, generation: Any, ends: Any, tmp_path: Path
) -> None:
    tokenizer = copy.deepcopy(chat_tokenizer())
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert known_ends(str(tmp_path), tokenizer) == ends | {tokenizer.eos_token_id}
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eom_id|>"]})
    known_ends.cache_clear()
    assert known_ends(str(tmp_path), tokenizer) == {*ends, tokenizer.eos_token_id, len(tokenizer) - 1}


def test_the_ends_of_other_initial_weights_are_those_of_their_folder(base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 9]}))
    args: Any = SimpleNamespace(load=None, ref_load=str(tmp_path))
    assert ends_of_weights(args) == [1, 9]
    args = SimpleNamespace(load=str(tmp_path / "new"), ref_load=None)
    assert ends_of_weights(args) == []
