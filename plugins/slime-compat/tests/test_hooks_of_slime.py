"""Whole runs with hooks as they are written for slime, on the embedded engine: real responses, real training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vision_checkpoints import picture, write_checkpoint

from slime_core.cli import main
from slime_core.data.images import data_url
from slime_core.data.tokenizer import load_tokenizer
from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample, check_rollout


class Run:
    """What a run left: the samples of each rollout, and its metrics."""

    def __init__(self, folder: Path, flags: list[str], generate: str, *more: str, command: str = "train") -> None:
        words = [command, *flags, "--custom-generate-function-path", f"hooks_that_import_slime.{generate}", *more]
        words += ["--run-dir", str(folder), "--save-debug-rollout-data", str(folder / "dump_{rollout_id}.jsonl")]
        assert main(words) == 0
        self.metrics: list[dict[str, Any]] = read_metrics(folder / "metrics.jsonl")
        self.rollouts = [read_dump(path) for path in sorted(folder.glob("dump_*.jsonl"))]
        self.samples = [sample for rollout in self.rollouts for sample in rollout]


def read_dump(path: Path) -> list[Sample]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Sample.from_dict({k: v for k, v in row.items() if k != "group"}) for row in rows if "tokens" in row]


def check(run: Run) -> None:
    """The samples keep every rule, and the trainer computes the log-probs that the engine gave."""
    check_rollout([run.samples], need_reward=True)
    for number, rollout in enumerate(run.rollouts):
        assert {version for sample in rollout for version in map(int, sample.weight_versions)} == {number}
        assert all(len(sample.weight_versions) == sample.response_length for sample in rollout)
    for line in run.metrics:
        if "train/loss" in line:
            assert line["train/train_rollout_logprob_abs_diff"] < 1e-4
    assert any(line.get("train/grad_norm", 0) > 0 for line in run.metrics)


def test_turns_with_a_tool_are_trained_but_for_what_the_tool_said(
    flags: list[str], writer: Path, tmp_path: Path
) -> None:
    words = ("--custom-rm-path", "hooks_that_import_slime.tool_reward", "--reward-key", "score")
    run = Run(tmp_path / "run", flags, "with_tool", *words)
    check(run)
    tokenizer = load_tokenizer(str(writer))
    for sample in run.samples:
        calls = sample.further_attributes["tool_calls"]
        response = sample.tokens[-sample.response_length :]
        assert tokenizer.decode(response) == sample.response
        masked = [token for token, mask in zip(response, sample.trained_mask, strict=True) if not mask]
        assert tokenizer.decode(masked) == "".join(
            f"\n<result>{r}</result>\n\n" for r in _results(sample.response, calls)
        )
        right = "\\boxed{7}" in sample.response[-100:]
        assert sample.reward["score"] == pytest.approx((1.0 if right else -1.0) + 0.1 * calls)  # type: ignore[index]
    assert any(sample.further_attributes["tool_calls"] for sample in run.samples)
    assert len({sample.reward["score"] for sample in run.samples}) > 1  # type: ignore[index]  # a dict


def _results(response: str, calls: int) -> list[str]:
    found = [part.partition("</result>")[0] for part in response.split("<result>")[1:]]
    assert len(found) == calls
    return found


def test_a_response_by_text_ends_with_its_stop_string(flags: list[str], questions: Path, tmp_path: Path) -> None:
    words = ["--rm-type", "boxed_exact_match", "--eval-prompt-data", "held", str(questions), "--eval-interval", "2"]
    words += ["--use-tis", "--custom-tis-function-path", "hooks_that_import_slime.correction"]
    run = Run(tmp_path / "run", flags, "by_text", *words)
    check(run)
    ratios = [line["train/ratio_of_samples"] for line in run.metrics if "train/ratio_of_samples" in line]
    assert ratios == pytest.approx([1.0, 1.0], abs=1e-4)
    for sample in run.samples:
        finish = sample.metadata["finish"]
        if isinstance(finish.get("matched"), str):
            assert sample.response.endswith(finish["matched"])
        assert sample.metadata["evaluation"] is False
    assert {sample.metadata["finish"].get("matched") for sample in run.samples} >= {"</code>", "}"}
    held = next((tmp_path / "run" / "eval").glob("*.jsonl"))
    assert all(json.loads(line)["metadata"]["evaluation"] for line in held.read_text().splitlines())


def test_images_that_stand_beside_their_text_are_seen_as_the_trainer_sees_them(tmp_path: Path) -> None:
    shown = write_checkpoint(tmp_path / "model", "qwen2_5_vl")
    rows = []
    for number in range(4):
        parts = [{"type": "image", "image": data_url(picture(40 + 8 * n, 60, n))} for n in range((0, 1, 2, 1)[number])]
        content = [*parts, {"type": "text", "text": f"What is {number}?"}]
        rows.append(json.dumps({"messages": [{"role": "user", "content": content}]}))
    (shown / "rows.jsonl").write_text("\n".join(rows))
    flags = ["--hf-checkpoint", str(shown), "--prompt-data", str(shown / "rows.jsonl"), "--input-key", "messages"]
    flags += ["--apply-chat-template", "--rollout-engine", "local", "--rollout-batch-size", "4", "--lr", "1e-4"]
    flags += ["--n-samples-per-prompt", "2", "--rollout-max-response-len", "6", "--num-rollout", "2"]
    flags += ["--use-dynamic-batch-size", "--max-tokens-per-gpu", "600"]
    run = Run(tmp_path / "run", flags, "by_text_and_images", "--custom-rm-path", "hooks_that_import_slime.third")
    check(run)
    assert {len(sample.images) for sample in run.samples} == {0, 1, 2}


def test_agents_that_change_args_give_the_samples_of_one_trajectory(flags: list[str], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", flags, "agents", "--rm-type", "boxed_exact_match")
    check(run)
    per_trajectory: dict[Any, list[Sample]] = {}
    for sample in run.samples:
        per_trajectory.setdefault(sample.rollout_id, []).append(sample)
    assert {len(segments) for segments in per_trajectory.values()} == {3}
    assert len(per_trajectory) == 2 * 2 * 4
    for one, other, last in per_trajectory.values():
        assert one.reward in (0.0, 0.5)
        assert other.reward in (0.0, 0.5)
        assert last.reward in (0.0, 1.0)
        assert last.prompt == f"{one.response}{other.response}\n"


@pytest.mark.parametrize("generate", ["with_tool", "by_text", "agents", "best_of_two"])
def test_a_run_can_be_repeated_bit_for_bit(generate: str, flags: list[str], tmp_path: Path) -> None:
    words = ("--rm-type", "boxed_exact_match", "--num-rollout", "1")
    one, other = (Run(tmp_path / name, flags, generate, *words) for name in ("one", "other"))
    assert [sample.to_dict() for sample in one.samples] == [sample.to_dict() for sample in other.samples]
    assert len({sample.response for sample in one.samples}) > 1


def test_slimes_own_generate_gives_the_same_as_no_generate_function(flags: list[str], tmp_path: Path) -> None:
    words = ("--rm-type", "boxed_exact_match", "--num-rollout", "1")
    own = Run(tmp_path / "own", flags, "around_single_turn", *words)
    folder = tmp_path / "native"
    native = [*flags, *words, "--run-dir", str(folder), "--save-debug-rollout-data", str(folder / "dump_0.jsonl")]
    assert main(["train", *native]) == 0
    for mine, theirs in zip(own.samples, read_dump(folder / "dump_0.jsonl"), strict=True):
        assert mine.metadata.pop("before")
        assert mine.metadata.pop("after")
        assert mine == theirs


def test_a_plain_function_may_run_coroutines_that_ask_the_engine(flags: list[str], tmp_path: Path) -> None:
    check(Run(tmp_path / "run", flags, "plain", "--rm-type", "boxed_exact_match"))


def test_a_reward_may_ask_the_engine_too(flags: list[str], tmp_path: Path) -> None:
    words = ("--custom-rm-path", "hooks_that_import_slime.asks_as_judge", "--num-rollout", "1")
    run = Run(tmp_path / "run", flags, "by_text", *words)
    assert all(1 <= sample.reward <= 4 for sample in run.samples)  # type: ignore[operator]  # a number


def test_sampling_that_is_stopped_aborts_what_hooks_have_asked_for(flags: list[str], tmp_path: Path) -> None:
    words = ("--over-sampling-batch-size", "6", "--dynamic-sampling-filter-path", "hooks_that_import_slime.varied")
    run = Run(tmp_path / "run", flags, "by_text", "--rm-type", "boxed_exact_match", *words)
    check(run)
    assert all(sample.status is not Sample.Status.ABORTED for sample in run.samples)  # type: ignore[attr-defined]
    assert all(len(rollout) == 8 for rollout in run.rollouts)


@pytest.mark.parametrize(("temperature", "measures"), [("0.5", True), ("0.25", False)])
def test_an_evaluation_of_ones_own_knows_its_sets_and_is_warned_of_if_it_measures_nothing(
    flags: list[str],
    questions: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    temperature: str,
    measures: bool,
) -> None:
    flags[flags.index("--num-rollout") + 1] = "0"
    words = ["train", *flags, "--eval-prompt-data", "few", str(questions), "--run-dir", str(tmp_path / "run")]
    words += ["--eval-temperature", temperature, "--n-samples-per-eval-prompt", "3", "--rm-type", "boxed_exact_match"]
    assert main([*words, "--eval-function-path", "hooks_that_import_slime.measured"]) == 0
    found = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line.get("eval/few/reward") for line in found] == [3.0 if measures else None]
    assert ("returned neither samples nor metrics for few." in caplog.text) is not measures
