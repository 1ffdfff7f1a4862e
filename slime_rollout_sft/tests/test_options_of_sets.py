"""`--eval-config` in SFT: every set has the columns, and its answers the length, temperature and reward, that it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slime_core.cli import main

ROW = {
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is sunny."}],
    "q": [{"role": "user", "content": "other"}, {"role": "assistant", "content": "B"}],
    "metadata": {"rm_type": "f1"},
}
SETS = {
    "a": {"max_response_len": 3, "temperature": 1.0, "rm_type": "exact_match"},
    "b": {"input_key": "q", "max_response_len": 7, "metadata_key": "metadata"},
    "c": {"max_response_len": 5, "custom_rm_path": "reward_of_c.length"},
    "d": {"max_response_len": 2, "rm_type": "dapo"},
}


@pytest.fixture
def words(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "reward_of_c.py").write_text("def length(args, sample):\n    return float(sample.response_length)\n")
    monkeypatch.syspath_prepend(tmp_path)
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(tmp_path / "rows.jsonl"), "--input-key", "messages"),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--disable-compute-advantages-and-returns"),
        *("--num-rollout", "0", "--rollout-batch-size", "1", "--eval-config", str(tmp_path / "sets.yaml")),
        *("--eval-interval", "1", "--rollout-engine", "local", "--run-dir", str(tmp_path / "run")),
    ]


def write(tmp_path: Path, sets: dict[str, dict[str, object]]) -> None:
    given = {name: {"path": str(tmp_path / "rows.jsonl"), **own} for name, own in sets.items()}
    (tmp_path / "sets.yaml").write_text(json.dumps({"datasets": given}))


def test_every_set_is_read_answered_and_scored_as_it_says(words: list[str], tmp_path: Path) -> None:
    write(tmp_path, SETS)
    assert main(["train", *words, "--eval-generate", "1", "--reward-key", "score"]) == 0
    (file,) = (tmp_path / "run" / "eval").glob("*.jsonl")
    answers = {line["metadata"]["slime"]["dataset"]: line for line in map(json.loads, file.read_text().splitlines())}
    assert {name: line["response_length"] for name, line in answers.items()} == {"a": 3, "b": 7, "c": 5, "d": 2}
    assert {name: line["reward"] for name, line in answers.items()} == {"a": 0.0, "b": 0.0, "c": 5.0, "d": -1.0}
    assert answers["d"]["metadata"]["rewards"]["score"] == -1.0
    assert [answers[name]["label"] for name in "ab"] == ["It is sunny.", "B"]
    assert "other" in answers["b"]["prompt"]
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert metrics["eval/a/loss"] == metrics["eval/c/loss"] != metrics["eval/b/loss"]


def test_sampled_answers_do_not_depend_on_other_sets(words: list[str], tmp_path: Path) -> None:
    found = []
    for number, others in enumerate(({}, {"before": {}})):
        write(tmp_path, {**others, "a": {"temperature": 1.0, "max_response_len": 8}})
        run = tmp_path / f"run{number}"
        assert main(["train", *words[:-1], str(run), "--eval-generate", "1"]) == 0
        (file,) = (run / "eval").glob("*.jsonl")
        found.append(json.loads(file.read_text().splitlines()[-1])["tokens"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("own", "more", "said"),
    [
        (
            {"top_p": 0.9},
            ["--eval-generate", "1"],
            "The evaluation set 'a' sets top_p, which fine-tuning has no use for",
        ),
        ({"n_samples_per_eval_prompt": 2, "input_key": "q"}, [], "'a' sets n_samples_per_eval_prompt, which"),
        ({"rm_type": "nothing"}, ["--eval-generate", "1"], "no reward named 'nothing'"),
        (
            {"temperature": 1.0},
            [],
            "--eval-temperature of the evaluation set 'a' has no effect without --eval-generate.",
        ),
        ({"rm_type": "nothing"}, [], "--rm-type of the evaluation set 'a' has no effect without --eval-generate."),
    ],
)
def test_what_is_of_no_use_is_said_before_the_run(
    own: dict[str, object],
    more: list[str],
    said: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path, {"a": own})
    assert bool(main(["check", *words, *more])) == ("no effect" not in said)
    told = " ".join("".join(capsys.readouterr()).split())
    assert said in told
    assert "--eval-set-options has no effect" not in told
