"""`--offload`: trainer and engine take turns with the memory of the devices that they share."""

from __future__ import annotations

from pathlib import Path

import pytest

from slime_core.cli import main


@pytest.fixture
def flags(tiny_model, chat_rows, tmp_path, monkeypatch) -> list[str]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *(
            "--apply-chat-template",
            "--rollout-batch-size",
            "2",
            "--n-samples-per-prompt",
            "2",
            "--colocate",
            "--offload",
        ),
        *("--custom-rm-path", "cluster_hooks.even_tokens", "--rollout-max-response-len", "4", "--num-rollout", "2"),
        *("--eval-prompt-data", f"{chat_rows}@[0:1]", "--eval-interval", "2", "--run-dir", str(tmp_path / "run")),
    ]


def test_nobody_works_without_memory_and_only_the_weights_find_both_there(flags):
    import cluster_hooks

    cluster_hooks.Memory.log.clear()
    own = ("--train-backend", "cluster_hooks.LeavingBackend", "--rollout-engine", "cluster_hooks.LeavingEngine")
    assert main(["train", *flags, *own]) == 0
    first = ["trainer leaves", "engine works", "engine leaves", "trainer comes"]  # evaluation, with the initial weights
    rollout = ["trainer leaves", "engine comes", "engine works", "engine leaves", "trainer comes", "trainer works"]
    again = ["engine comes", *rollout[:1], *rollout[2:]]  # both are there while weights are handed over
    evaluation = again[:-1]
    assert cluster_hooks.Memory.log == [*first, *rollout, *again, *evaluation]


def test_components_that_cannot_give_back_memory_are_refused_by_name(flags, capsys):
    assert main(["check", *flags, "--rollout-engine", "cluster_hooks.LeavingEngine"]) == 2
    assert "--offload: the train_backend 'torch' of torch" in capsys.readouterr().err


def test_train_async_does_not_take_turns(flags, capsys):
    own = ("--train-backend", "cluster_hooks.LeavingBackend", "--rollout-engine", "cluster_hooks.LeavingEngine")
    assert main(["train-async", *flags, *own]) == 2
    assert "train-async generates and trains at the same time" in capsys.readouterr().err
