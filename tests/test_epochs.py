"""`--num-epoch` says what it means, and where slime counts otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slime_core.cli import main


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
