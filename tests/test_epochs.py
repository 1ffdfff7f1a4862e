"""`--num-epoch` says what it means, and where slime counts otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slime_core.arguments import RunArguments
from slime_core.cli import main
from slime_core.run.periods import Periods


@pytest.mark.parametrize(
    ("prompts", "epochs", "rollouts", "said"),
    [
        (8, 2, 4, None),
        (10, 2, 5, "2 × (10 // 4) = 4; give --num-rollout 4 to train as long."),
        (3, 2, 1, "2 × (3 // 4) = 0, and trains nothing."),
        (9, 1, 2, None),  # one epoch is the same in both
    ],
)
def test_the_check_says_where_slime_counts_epochs_otherwise(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    prompts: int,
    epochs: int,
    rollouts: int,
    said: str,
) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * prompts)
    words = ["check", "--hf-checkpoint", str(tiny_model), "--prompt-data", str(tmp_path / "rows.jsonl")]
    words += ["--input-key", "messages", "--rollout-function-path", "sft", "--loss-type", "sft_loss"]
    assert main([*words, "--rollout-batch-size", "4", "--num-epoch", str(epochs)]) == 0
    shown = capsys.readouterr().out
    assert f"{prompts} prompts, {rollouts} rollouts of 4 samples" in shown
    assert ("slime counts the whole rollouts of each epoch" in shown) == (said is not None)
    assert said is None or said in shown


@pytest.mark.parametrize(("epoch", "size"), [(10, 5), (10, 4), (10, 3), (7, 7), (3, 4), (1, 1), (12, 1), (5, 12)])
@pytest.mark.parametrize("interval", [3, 100])
def test_an_epoch_ends_with_the_rollout_that_has_its_last_prompt(epoch: int, size: int, interval: int) -> None:
    args = RunArguments.model_construct(
        rollout_batch_size=size, eval_interval=interval, save_interval=interval, eval_prompt_data=["a"]
    )
    prompts = [n % epoch for n in range(40 * size)]
    for rollout_id in range(40):
        due = (rollout_id + 1) % interval == 0
        ends = epoch - 1 in prompts[rollout_id * size : (rollout_id + 1) * size]
        for periods, expected in ((Periods(args, epoch), due or ends), (Periods(args), due)):
            assert periods.evaluates(rollout_id) == periods.saves(rollout_id) == expected
    without = Periods(args.model_copy(update={"eval_interval": None, "save_interval": None}), epoch)
    assert not any(without.evaluates(n) or without.saves(n) for n in range(40))


def test_a_run_evaluates_and_saves_where_an_epoch_ends_and_says_what_skipped_rows_mean(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]}
        for text in ("b", "c", "d" * 500, "e")
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "--hf-checkpoint", str(tiny_model), "--prompt-data", str(data), "--input-key", "messages"]
    words += ["--rollout-function-path", "sft", "--loss-type", "sft_loss", "--run-dir", str(tmp_path / "run")]
    words += ["--rollout-batch-size", "2", "--eval-prompt-data", "held", f"{data}@[:1]", "--eval-interval", "100"]
    words += ["--save", str(tmp_path / "save"), "--save-interval", "100", "--rollout-max-context-len", "200"]
    assert main([*words, "--num-epoch", "3", "--over-long-sample", "skip"]) == 0
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["rollout_id"] for row in metrics if "eval/held/loss" in row] == [-1, 1, 3, 5]
    assert sorted(p.name for p in (tmp_path / "save").glob("iter_*")) == [f"iter_000000{n}" for n in (1, 3, 5)]
    assert "prompts that are skipped count in --num-epoch 3: the others were read more often" in capsys.readouterr().err
