"""Two train backends are installed side by side: they share the options of optimizer and schedule, each has its own,
and a run chooses one of them by name. The second one is `stub_backend`."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.cli import main
from slime_core.plugins import Plugins
from slime_core.run.tracking import read_metrics

SHARED = ["--lr", "0.05", "--lr-decay-style", "constant", "--weight-decay", "0", "--clip-grad", "0", "--seed", "7"]


@pytest.fixture(autouse=True)
def stub_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the distribution stub-pack, whose module lies beside this one."""
    info = tmp_path / "site" / "stub_pack-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: stub-pack\nVersion: 1.0\nRequires-Dist: slime-core>=0.1\n"
    )
    (info / "entry_points.txt").write_text("[slime]\nstub = stub_backend\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "stub_backend", raising=False)


@pytest.fixture
def flags(tiny_model: Path, chat_rows: Path, tmp_path: Path) -> list[str]:
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--rollout-batch-size", "4"),
        *("--num-rollout", "2", "--eval-prompt-data", "held", f"{chat_rows}@[0:6]", "--eval-interval", "2"),
        *("--run-dir", str(tmp_path / "run"), *SHARED),
    ]


def test_both_are_loaded_and_no_option_is_defined_twice() -> None:
    plugins = Plugins()
    namespace = Namespace(plugins)  # sets plugins aside whose options clash
    status = {info.distribution: (info.status, info.reason) for info in plugins.infos}
    assert status["slime-torch"] == status["stub-pack"] == ("loaded", "")
    assert set(plugins.components("train_backend")) >= {"torch", "stub"}
    of = {name: option.distribution for name, option in namespace.options.items()}
    assert (of["lr"], of["gradient_checkpointing"], of["stub_hidden_size"]) == (
        "slime-core",
        "slime-torch",
        "stub-pack",
    )


@pytest.mark.parametrize(
    ("backend", "own", "others"),
    [
        ("torch", ["--lora-rank", "2"], {"--stub-hidden-size": "stub"}),
        (
            "stub",
            ["--stub-hidden-size", "4"],
            {"--lora-rank": "megatron' or the train_backend 'torch", "--gradient-checkpointing": "torch"},
        ),
    ],
)
def test_a_run_takes_the_shared_options_and_is_told_which_ones_only_the_other_backend_reads(
    backend: str, own: list[str], others: dict[str, str], flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = [word for flag in others for word in ((flag,) if flag == "--gradient-checkpointing" else (flag, "3"))]
    assert main(["check", *flags, "--train-backend", backend, *own, *foreign]) == 0
    shown = capsys.readouterr().out
    for flag, reader in others.items():
        told = f"{flag} has no effect: it is read by the train_backend '{reader}', which this run does not use."
        assert told in " ".join(shown.split())
    assert shown.count("has no effect") == len(others)


@pytest.mark.parametrize("backend", ["torch", "stub"])
def test_each_of_them_trains(backend: str, flags: list[str], tmp_path: Path) -> None:
    assert main(["train", *flags, "--train-backend", backend]) == 0
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    held = [line["eval/held/loss"] for line in lines if "eval/held/loss" in line]
    assert len(held) == 2
    assert held[1] < held[0] < math.inf
    steps = [line for line in lines if "train/loss" in line]
    assert [line["train/lr"] for line in steps] == [0.05, 0.05]
    assert all(line["train/grad_norm"] > 0 for line in steps)


def test_a_run_closes_the_backend_that_it_used_once(flags: list[str]) -> None:
    assert main(["train", *flags, "--train-backend", "stub", "--num-rollout", "0", "--eval-interval", "1"]) == 0
    assert sys.modules["stub_backend"].StubBackend.closed == 1


def test_a_run_of_the_second_backend_is_resumed_bit_for_bit(flags: list[str], tmp_path: Path) -> None:
    words = [*flags, "--train-backend", "stub", "--rollout-shuffle"]
    assert main(["train", *words]) == 0
    unbroken = read_metrics(tmp_path / "run" / "metrics.jsonl")
    again = [*words, "--save", str(tmp_path / "save"), "--run-dir", str(tmp_path / "again")]
    assert main(["train", *again, "--num-rollout", "1"]) == 0
    assert main(["train", *again, "--load", str(tmp_path / "save"), "--on-resume-change", "warn"]) == 0
    resumed = read_metrics(tmp_path / "again" / "metrics.jsonl")
    for name in ("train/loss", "train/grad_norm", "eval/held/loss"):
        assert [line[name] for line in resumed if name in line][-1] == [
            line[name] for line in unbroken if name in line
        ][-1]
