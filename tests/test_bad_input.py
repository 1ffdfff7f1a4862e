"""Every mistake that a newcomer makes ends in one clear message and an exit status, before the model is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slime_core.cli import main
from slime_core.run.tracking import read_metrics


def chat(*turns: tuple[str, str]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


GOOD = [chat(("user", f"Say {n}."), ("assistant", f"{n}!")) for n in range(8)]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def flags(model: Path, data: Path | str, run_dir: Path, *more: str) -> list[str]:
    return [
        *("--hf-checkpoint", str(model), "--prompt-data", str(data), "--input-key", "messages"),
        *(
            "--rollout-function-path",
            "sft",
            "--loss-type",
            "sft_loss",
            "--rollout-batch-size",
            "4",
            "--num-rollout",
            "2",
        ),
        *("--run-dir", str(run_dir), *more),
    ]


def failure(capsys, *words: str) -> str:
    status = main(list(words))
    err = capsys.readouterr().err
    assert status in (1, 2), err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"messages": [', "rows.jsonl:3:"),
        ("[1, 2]", "rows.jsonl:3: the row is a"),
        ({"message": []}, "rows.jsonl:3: the row has no key 'messages'; it has 'message'. Did you mean 'message'?"),
        ({"messages": []}, "rows.jsonl:3: the messages are []"),
        ({"messages": [{"content": "hi"}]}, "rows.jsonl:3: message 1 has the role null"),
        ({"messages": [{"role": "user"}]}, "rows.jsonl:3: message 1 (user) has neither content nor tool_calls"),
        ({"messages": "hi"}, "is text, but fine-tuning needs messages"),
        (chat(("user", "hi")), "rows.jsonl:3:"),
        (chat(("human", "hi"), ("assistant", "ho")), "rows.jsonl:3:"),
    ],
)
def test_a_bad_row_is_named_with_file_and_row(capsys, tiny_model, tmp_path, row, message):
    rows = write(tmp_path / "rows.jsonl", [*GOOD[:2], row, *GOOD[2:]])
    assert message in failure(capsys, "train", *flags(tiny_model, rows, tmp_path / "run"))


def test_a_bad_row_is_skipped_and_counted_when_asked(tiny_model, tmp_path):
    bad = ['{"messages": [', {"x": 1}, chat(("user", "nobody answers"))]
    rows = write(tmp_path / "rows.jsonl", [GOOD[0], *bad, *GOOD[1:]])
    words = flags(tiny_model, rows, tmp_path / "run", "--malformed-row", "skip", "--no-trainable-token", "skip")
    assert main(["train", *words]) == 0
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    counted = {k: v for k, v in lines[0].items() if "skipped" in k}
    assert sum(counted.values()) == 3, counted
    assert [line["train/num_tokens"] > 0 for line in lines] == [True, True]


@pytest.mark.parametrize("policy", ["error", "skip", "truncate"])
def test_an_over_long_row_follows_its_policy(capsys, tiny_model, tmp_path, policy):
    rows = write(tmp_path / "rows.jsonl", [chat(("user", "Count."), ("assistant", "one two three " * 60)), *GOOD])
    words = flags(tiny_model, rows, tmp_path / "run", "--rollout-max-context-len", "100", "--over-long-sample", policy)
    if policy == "error":
        message = failure(capsys, "train", *words)
        assert "rows.jsonl:1: the conversation has" in message
        assert "more than --rollout-max-context-len 100" in message
    else:
        assert main(["train", *words]) == 0
        first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
        assert first["rollout/skipped_over_long" if policy == "skip" else "rollout/truncated"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--prompt-data", "no/such/rows.jsonl"], "no/such/rows.jsonl"),
        (["--input-key", "mesages"], "the row has no key 'mesages'; it has 'messages'. Did you mean 'messages'?"),
        (["--hf-checkpoint", "no/such/model"], "no/such/model"),
        (["--learning-rate", "1"], "There is no option --learning-rate."),
        (["--lr-decay-stile", "cosine"], "Did you mean '--lr-decay-style'?"),
        (["--lr", "fast"], "--lr: given 'fast' (command line)"),
        (["--global-batch-size", "3"], "--global-batch-size is 3, but it must divide"),
        (["--loss-type", "sft_los"], "Did you mean 'sft_loss'?"),
        (["--rollout-function-path", "stf"], "Did you mean 'sft'?"),
        (["--loss-mask-type", "quen"], "There is no loss_mask named 'quen'"),
        (["--train-backend", "megatrom"], "There is no train_backend named 'megatrom'"),
        (["--eval-prompt-data", "a.jsonl", "--eval-interval", "1"], "a.jsonl"),
    ],
)
def test_a_wrong_option_is_answered_with_what_to_do(capsys, tiny_model, tmp_path, change, message):
    rows = write(tmp_path / "rows.jsonl", GOOD)
    assert message in failure(capsys, "train", *flags(tiny_model, rows, tmp_path / "run"), *change)


def test_an_option_without_effect_is_reported(capsys, tiny_model, tmp_path):
    rows = write(tmp_path / "rows.jsonl", GOOD)
    words = flags(tiny_model, rows, tmp_path / "run", "--max-tokens-per-gpu", "64", "--wandb-project", "p")
    assert main(["check", *words]) == 0
    out = capsys.readouterr().out
    assert "--max-tokens-per-gpu has no effect without --use-dynamic-batch-size." in out
    assert "--wandb-project has no effect: it is read by the tracker 'wandb'" in out


def test_a_nan_stops_the_run_names_the_samples_and_writes_no_checkpoint(capsys, tiny_model, tmp_path):
    rows = write(tmp_path / "rows.jsonl", GOOD)
    words = flags(tiny_model, rows, tmp_path / "run", "--save", str(tmp_path / "save"), "--save-interval", "1")
    message = failure(capsys, "train", *words, "--lr", "1e38", "--clip-grad", "0", "--optimizer", "sgd")
    assert "NaN or Inf" in message
    assert "rows.jsonl:" in message
    saved = sorted(p.name for p in (tmp_path / "save").glob("iter_*"))
    assert saved in ([], ["iter_0000000"]), "a checkpoint was written from the step that failed"


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_leaves_the_previous_checkpoint(tiny_model, tmp_path):
    rows = write(tmp_path / "rows.jsonl", GOOD)
    words = [
        *flags(tiny_model, rows, tmp_path / "run"),
        "--save",
        str(tmp_path / "save"),
        "--load",
        str(tmp_path / "save"),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "slime_core", "train", *words]
    assert subprocess.run([*command, "--num-rollout", "1"], env=env, capture_output=True).returncode == 0
    # No file may grow beyond 1 MB, as on a disk that is full: the training state needs more.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
        "from slime_core.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    limited = [sys.executable, "-c", code, "train", *words, "--on-resume-change", "warn"]
    done = subprocess.run(limited, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "could not be written" in done.stderr
    assert "iter_0000000, is intact" in done.stderr
    assert [p.name for p in (tmp_path / "save").glob("*iter_*")] == ["iter_0000000"]
    finished = subprocess.run([*command, "--on-resume-change", "warn"], env=env, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "save" / "iter_0000001").exists()
