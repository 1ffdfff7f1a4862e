"""`--offload`: trainer and engine take turns with the memory of the devices that they share."""

from __future__ import annotations

import json
import threading

import cluster_hooks
import pytest

from slime_core.cli import main
from slime_core.rollout.worker import RolloutWorker


@pytest.fixture
def flags(tiny_model, chat_rows, tmp_path) -> list[str]:
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


@pytest.fixture
def without_gpu(monkeypatch) -> None:
    """Backend and engine do not insist on a GPU. What they give back is then host memory."""
    cluster_hooks.Memory.log.clear()
    cluster_hooks.Memory.out.clear()
    import slime_torch.backend

    for module in ("slime_torch.backend", "slime_engine_local.engine"):
        monkeypatch.setattr(f"{module}.check_device", lambda *args: None)

    def loaded(*args, _right=slime_torch.backend.load_model):
        model = _right(*args)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()  # on a CPU they lie in the file itself, which cannot be given back
        return model

    monkeypatch.setattr(slime_torch.backend, "load_model", loaded)


def test_nobody_works_without_memory_and_only_the_weights_find_both_there(flags, without_gpu):
    own = ("--train-backend", "cluster_hooks.LeavingBackend", "--rollout-engine", "cluster_hooks.LeavingEngine")
    assert main(["train", *flags, *own]) == 0
    start = ["engine leaves"]  # before the model is loaded
    evaluation = ["engine comes", "trainer leaves", "engine works", "engine leaves", "trainer comes"]
    rollout = ["trainer leaves", "engine comes", "engine works", "engine leaves", "trainer comes", "trainer works"]
    again = ["engine comes", *rollout[:1], *rollout[2:]]  # both are there while weights are handed over
    assert cluster_hooks.Memory.log == [*start, *evaluation, *rollout, *again, *evaluation]


def test_the_trainer_has_its_memory_for_the_checkpoint_after_an_evaluation_that_failed(
    flags, without_gpu, tmp_path, monkeypatch
):
    def evaluate(self, rollout_id, _right=RolloutWorker.evaluate):
        if rollout_id == 1:
            raise RuntimeError("the judge is away")
        return _right(self, rollout_id)

    monkeypatch.setattr(RolloutWorker, "evaluate", evaluate)
    own = ("--train-backend", "cluster_hooks.LeavingBackend", "--rollout-engine", "cluster_hooks.LeavingEngine")
    with pytest.raises(RuntimeError, match="the judge is away"):
        main(["train", *flags, *own, "--save", str(tmp_path / "save")])
    assert (tmp_path / "save" / "iter_0000001").is_dir()


def test_a_run_that_takes_turns_equals_one_that_does_not(flags, without_gpu, tmp_path, monkeypatch):
    from slime_core.tensors.offload import Offloaded

    left = []

    def leave(self, *args, _right=Offloaded.leave):
        _right(self, *args)
        left.append((threading.current_thread().name, sum(len(piece) for _, pieces in self._kept for piece in pieces)))

    monkeypatch.setattr(Offloaded, "leave", leave)

    def run(name: str, *more: str) -> list[dict[str, float]]:
        own = ("--rollout-engine", "local", "--use-kl-loss", "--kl-loss-coef", "0.1", "--lr", "0.01")
        assert main(["train", *flags, *own, "--run-dir", str(tmp_path / name), *more]) == 0
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        return [{k: v for k, v in line.items() if k != "time" and not k.startswith("perf/")} for line in logged]

    apart = run("apart")
    both, engine = {who for who, size in left if size}, [size for who, size in left if "engine" in who]
    assert both == {"trainer_0", "slime-engine-local"}
    assert len(engine) >= 2
    left.clear()
    assert run("together", "--no-offload") == apart
    assert not left
    assert any("kl" in name and value for line in apart for name, value in line.items())


def test_without_a_gpu_there_is_nothing_to_give_back(flags, capsys):
    assert main(["train", *flags, "--rollout-engine", "local"]) != 0
    assert "--offload needs a GPU" in capsys.readouterr().err


def test_components_that_cannot_give_back_memory_are_refused_by_name(flags, capsys):
    assert main(["check", *flags, "--rollout-engine", "slime_core.testing.EchoEngine"]) == 2
    assert "--offload: the engine 'slime_core.testing.EchoEngine'" in capsys.readouterr().err


def test_train_async_does_not_take_turns(flags, capsys):
    own = ("--train-backend", "cluster_hooks.LeavingBackend", "--rollout-engine", "cluster_hooks.LeavingEngine")
    assert main(["train-async", *flags, *own]) == 2
    assert "train-async generates and trains at the same time" in capsys.readouterr().err
