"""`slime eval`: models and checkpoints give the numbers that their training printed, in one table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.cli import main
from slime_core.plugins import Plugins
from slime_core.run.evaluated_models import Options, find_targets
from slime_core.run.scores import loss_score, reward_scores
from slime_core.run.stored_run import find_run
from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample

REWARD = """
def reward(args, sample):
    return {"score": float(len(sample.response) % 3 == 0), "length": float(len(sample.response))}
"""


@pytest.fixture(scope="module")
def made(tiny_model: Path, chat_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of SFT with LoRA whose evaluations also generate, its checkpoints and its export; questions; a reward."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "eval_reward.py").write_text(REWARD)
    questions = [json.loads(line)["messages"] for line in chat_rows.read_text().splitlines()[:4]]
    rows = [{"question": m[0]["content"], "answer": m[1]["content"]} for m in questions]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        *("train", "--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--rollout-batch-size", "4", "--lr", "1e-2"),
        *("--calculate-per-token-loss", "--lora-rank", "4", "--num-rollout", "2", "--run-dir", str(folder / "run")),
        *("--lr-warmup-iters", "1"),  # longer than a run without steps
        *("--save", str(folder / "save"), "--save-interval", "1", "--save-hf", str(folder / "run" / "model")),
        *("--eval-prompt-data", "held", f"{chat_rows}@[0:6]", "short", f"{chat_rows}@[0:2]", "--eval-interval", "1"),
        *("--rollout-engine", "local", "--eval-generate", "2", "--eval-max-response-len", "8", "--rm-type", "f1"),
    ]
    assert main(words) == 0
    return folder


def printed(folder: Path) -> list[dict[str, float]]:
    """The numbers of a run's evaluations."""
    lines = (
        {n: v for n, v in line.items() if n.startswith("eval/")} for line in read_metrics(folder / "metrics.jsonl")
    )
    return [line for line in lines if line]


def evaluated(tmp_path: Path, *words: object) -> list[dict[str, Any]]:
    """What `slime eval` measures of each model."""
    assert main(["eval", *map(str, words), "--json", str(tmp_path)]) == 2, "before anything is evaluated"
    assert main(["eval", *map(str, words), "--json", str(tmp_path / "found.json")]) == 0
    models: list[dict[str, Any]] = json.loads((tmp_path / "found.json").read_text())["models"]
    return models


def failing(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What `slime eval` says that ends with an error."""
    capsys.readouterr()
    assert main(["eval", *map(str, words)]) in (1, 2)
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


def test_a_run_and_its_models_give_the_numbers_that_training_printed(
    made: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, middle, after = printed(made / "run")
    answers = (made / "run" / "eval" / "rollout_0000001.jsonl").read_text()
    (run,) = evaluated(tmp_path, made / "run", "--run-dir", tmp_path / "out")
    assert run["metrics"] == after
    (file,) = (tmp_path / "out" / "eval").iterdir()
    mine, theirs = ([json.loads(line) for line in text.splitlines()] for text in (file.read_text(), answers))
    assert [row["response"] for row in mine] == [row["response"] for row in theirs]
    found = evaluated(tmp_path, tiny_model, made / "run" / "model", made / "save")
    assert [one["model"] for one in found[2:]] == [f"{made / 'save'}/iter_000000{n}" for n in (0, 1)]
    assert found[0]["metrics"] == before
    assert found[1]["metrics"] == pytest.approx(after, rel=1e-5)  # the adapters are merged
    assert [one["metrics"] for one in found[2:]] == [middle, after]
    loss = found[3]["scores"]["held/loss"]
    assert (loss["value"], loss["rows"]) == (after["eval/held/loss"], 6)
    assert loss["interval"][0] < loss["value"] < loss["interval"][1]
    assert loss["difference"]["value"] == pytest.approx(after["eval/held/loss"] - before["eval/held/loss"])
    table = capsys.readouterr().out
    assert f"{after['eval/held/loss']:.4f} [" in table
    assert "hooks/" not in table  # nothing failed
    assert "held/reward" in table


def test_a_model_alone_answers_in_one_line(
    made: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(made)
    words = (
        *("--eval-prompt-data", "add", made / "questions.jsonl", "--input-key", "question", "--label-key", "answer"),
        *("--apply-chat-template", "--custom-rm-path", "eval_reward.reward", "--eval-reward-key", "score"),
        *("--n-samples-per-eval-prompt", "4", "--eval-max-response-len", "6"),
    )
    other = shutil.copytree(made / "run" / "model", tmp_path / "other")
    found = evaluated(tmp_path, tiny_model, other, *words)
    for one in found:
        assert one["answers"] == 16
        assert one["scores"]["add/reward"]["rows"] == 4
        assert {"eval/add/pass@1", "eval/add/pass@4", "eval/add/reward/length"} <= one["metrics"].keys()
        assert one["metrics"]["eval/add/pass@1"] == pytest.approx(one["metrics"]["eval/add/reward"])
    assert "add/pass@4" in capsys.readouterr().out
    run = [*("train", "--hf-checkpoint", tiny_model, "--prompt-data", made / "questions.jsonl", "--num-rollout", "0")]
    run += ["--rollout-batch-size", "1", "--rollout-engine", "local", "--run-dir", tmp_path / "run", *words]
    assert main(list(map(str, run))) == 0
    assert printed(tmp_path / "run") == [found[0]["metrics"]]


def test_an_eval_config_is_read_and_the_loss_of_rows_needs_no_engine(
    made: Path, tiny_model: Path, chat_rows: Path, tmp_path: Path
) -> None:
    config = tmp_path / "sets.yaml"
    config.write_text(
        f"eval:\n  datasets:\n    - {{name: add, path: {made / 'questions.jsonl'}, rm_type: f1, input_key: question, "
        "label_key: answer, apply_chat_template: true, max_response_len: 4}\n"
    )
    (one,) = evaluated(tmp_path, tiny_model, "--eval-config", config)
    assert one["metrics"].keys() >= {"eval/add/reward", "eval/add/response_len/mean"}
    words = (
        "--eval-prompt-data",
        "held",
        f"{chat_rows}@[0:6]",
        "--input-key",
        "messages",
        "--calculate-per-token-loss",
    )
    (two,) = evaluated(tmp_path, tiny_model, *words)
    assert two["metrics"] == {"eval/held/loss": printed(made / "run")[0]["eval/held/loss"]}


def test_of_a_second_run_come_its_model_and_nothing_of_how_it_was_evaluated(made: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(made / "save", tmp_path / "other")) / "iter_0000001"
    stored = json.loads((other / "run.json").read_text())
    stored["arguments"] |= {"lora_rank": 0, "bf16": True, "eval_max_response_len": 3, "micro_batch_size": 7}
    stored["arguments"]["actor_num_gpus_per_node"] = 8
    (other / "run.json").write_text(json.dumps(stored))
    plugins = Plugins()
    options = Options(plugins, Namespace(plugins), ["--eval-generate", "1"], run=find_run(made / "run"))
    first, second = (
        options.of(target, str(tmp_path)) for target in find_targets([str(made / "run"), str(other)], False)
    )
    for resolution in (first, second):
        assert not resolution.errors
        args = resolution.resolved.args
        assert (args.num_rollout, args.save, args.save_hf, args.load, args.actor_num_gpus_per_node) == (
            0,
            None,
            None,
            None,
            1,
        )
        assert (args.eval_max_response_len, args.eval_generate, args.micro_batch_size) == (8, 1, 1)
    assert (first.resolved.args.lora_rank, first.resolved.args.bf16) == (4, False)
    assert (second.resolved.args.lora_rank, second.resolved.args.bf16) == (0, True)


def test_what_cannot_be_evaluated_is_said_in_words(
    made: Path, tiny_model: Path, chat_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = ("--eval-prompt-data", "add", made / "questions.jsonl", "--input-key", "question")
    plain = shutil.copytree(tiny_model, tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    expected = {
        (): "Which model?",
        (tmp_path / "nothing", *questions): "is not there",
        (made, *questions): "neither a model nor a run",
        (tiny_model,): "a model alone has no evaluation data",
        (tiny_model, f"{tiny_model}/", *questions): "is named twice",
        (tiny_model, *questions, "--rollout-function-path", "rl", "--rollout-engine", "local"): "--rm-type",
        (tiny_model, *questions, "--rm-type", "f2"): "f1",
        (plain, *questions, "--apply-chat-template", "--rm-type", "f1", "--label-key", "answer"): "chat template",
        (plain, "--eval-prompt-data", chat_rows, "--input-key", "messages"): "chat template",
        (tiny_model, *questions, "--save", tmp_path): "--save is about training",
        (tiny_model, *questions, "--hf-checkpoint", plain): "come first",
        (made / "save" / "iter_0000001", "--eval-prompt-data", "x", tmp_path / "no.jsonl"): "no.jsonl",
    }
    for words, text in expected.items():
        assert text in failing(capsys, *words), words
    broken = shutil.copytree(made / "save", tmp_path / "save")
    part = next((broken / "iter_0000000" / "trainer").glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-100])
    told = failing(capsys, broken, "--eval-prompt-data", "held", f"{chat_rows}@[0:2]")
    assert "iter_0000000 is damaged" in told
    assert "iter_0000001: " in told  # the others are evaluated all the same


def test_the_error_of_a_mean_counts_prompts_and_of_a_loss_tokens() -> None:
    rewards = {0: (1.0, 0.0), 1: (1.0, 1.0), 2: (0.0, 0.0)}
    samples = [
        Sample(index=2 * prompt + n, group_index=prompt, reward=reward, metadata={"slime": {"dataset": "s"}})
        for prompt, own in rewards.items()
        for n, reward in enumerate(own)
    ]
    score = reward_scores(samples)["s"]
    assert (score.value, score.rows) == (0.5, 3)
    assert score.standard_error == pytest.approx(0.5 / 3**0.5)
    assert score.interval == pytest.approx((0.5 - 4.303 * 0.5 / 3**0.5, 0.5 + 4.303 * 0.5 / 3**0.5), rel=0.2)
    right = reward_scores(
        [Sample(index=n, group_index=n, reward=1.0, metadata={"slime": {"dataset": "s"}}) for n in range(20)]
    )
    assert right["s"].interval == pytest.approx((0.839, 1.0), abs=1e-3)  # Wilson's
    rows = [("a", 2.0, 4), ("b", 9.0, 6), ("c", 1.0, 1)]
    token = loss_score(12 / 11, rows, per_token=True)
    assert token is not None
    assert sum(token.parts.values()) / 3 == pytest.approx(12 / 11)
    row = loss_score((0.5 + 1.5 + 1) / 3, rows, per_token=False)
    assert row is not None
    assert row.standard_error == pytest.approx(0.5 / 3**0.5)
    assert loss_score(7.0, rows, per_token=True) is None
    assert token.difference(token) == (0.0, 0.0)
    assert token.difference(score) is None
