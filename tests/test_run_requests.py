"""A run that is asked to end saves and says how to go on; every run says at its end what came of it."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from slime_core.cli import main
from slime_core.errors import WorkerDied
from slime_core.run.console import Console
from slime_core.run.early_stopping import EarlyStopping
from slime_core.run.requests import Requests
from slime_core.run.summary import Summary
from slime_core.run.tracking import read_metrics

LOSS = """
import os, signal, time
from slime_losses.sft import sft_loss
calls = 0
def loss(args, inputs):
    global calls
    calls += 1
    if calls == 6:  # of four conversations each
        for number in {numbers}:
            os.kill(os.getpid(), number)
            time.sleep(1)
    return sft_loss(args, inputs)
"""


def interrupted(tmp_path: Path, words: list[str], *numbers: int) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own that is sent these signals in its second rollout."""
    (tmp_path / "asks.py").write_text(LOSS.format(numbers=tuple(int(number) for number in numbers)))
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "slime_core", "train", *words, "--num-rollout", "5"]
    command += ["--loss-type", "custom_loss", "--custom-loss-function-path", "asks.loss"]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def whole(sft_anywhere, tmp_path_factory) -> list[float]:
    """The losses of a run that nobody asks to end."""
    folder = tmp_path_factory.mktemp("whole")
    assert interrupted(folder, [*sft_anywhere, "--run-dir", str(folder / "run")]).returncode == 0
    return [metrics["train/loss"] for metrics in read_metrics(folder / "run" / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_end_saves_after_its_rollout_and_goes_on_as_if_it_had_not(
    sft, whole, tmp_path, number, status
):
    save = ["--save", str(tmp_path / "s"), "--load", str(tmp_path / "s"), "--save-interval", "100"]
    done = interrupted(tmp_path, [*sft, *save], number)
    assert done.returncode == status, done.stderr
    assert f"{number.name}: the run ends after this rollout, with a checkpoint;" in done.stderr
    assert "2 of 5 rollouts are done" in done.stderr
    assert f"to go on: the same command with --load {tmp_path / 's'}" in done.stderr
    assert [path.name for path in sorted((tmp_path / "s").glob("iter_*"))] == ["iter_0000001"]
    assert interrupted(tmp_path, [*sft, *save]).returncode == 0
    assert [metrics["train/loss"] for metrics in read_metrics(tmp_path / "run" / "metrics.jsonl")] == whole
    assert len(whole) == 5


@pytest.mark.parametrize(
    ("save", "numbers", "status"),
    [
        (True, (signal.SIGINT, signal.SIGINT), 130),
        (True, (signal.SIGINT, signal.SIGTERM), 143),
        (False, (signal.SIGINT,), 130),
        (False, (signal.SIGTERM,), 143),
    ],
)
def test_a_second_signal_or_one_where_nothing_is_saved_ends_a_run_at_once(sft, tmp_path, save, numbers, status):
    done = interrupted(tmp_path, [*sft, *(["--save", str(tmp_path / "s")] if save else [])], *numbers)
    assert done.returncode == status, done.stderr
    assert "1 of 5 rollouts are done" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("s/iter_*"))


def test_a_run_whose_terminal_is_closed_saves_and_ends_as_after_sigterm(sft, tmp_path):
    started = "import fcntl, sys, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    started += "from slime_core.cli import main\nsys.exit(main(sys.argv[1:]))"
    words = ["train", *sft, "--num-rollout", "500", "--save", str(tmp_path / "s"), "--save-interval", "500"]
    terminal, end = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-c", started, *words], stdin=end, stdout=end, stderr=end, start_new_session=True
    )
    os.close(end)
    said = b""
    while b"rollout 2/500" not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    assert run.wait(timeout=300) == 128 + signal.SIGHUP
    (saved,) = (tmp_path / "s").glob("iter_*")
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == int(saved.name.removeprefix("iter_")) + 1 < 500


ENDED = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
WITH_WHOLE_GROUP = """
import os, signal, sys, threading, time
from pathlib import Path
from slime_core.cli import main
from slime_core.run.tracking import read_metrics
from slime_core.runtime import connect

def ask(name, metrics):
    while not metrics.exists() or not read_metrics(metrics):
        time.sleep(0.1)
    for _ in range(2 if name == "SIGHUP" else 1):  # as where a terminal is closed
        os.killpg(0, getattr(signal, name))

ranks, *words = sys.argv[1:]
if ranks == "2":
    connect.prepare("local")
    connect.start_local(num_cpus=3)
    words += ["--actor-num-gpus-per-node", "2"]
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    folder = Path(words[words.index("--save") + 1]) / name
    own = ["--run-dir", str(folder), "--save", str(folder)]
    asks = threading.Thread(target=ask, args=(name, folder / "metrics.jsonl"))
    asks.start()
    print(name, main(["train", *words, *own]), flush=True)
    asks.join()
"""


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_to_the_whole_group_of_a_run_ends_it_with_a_checkpoint_and_leaves_no_process(sft, tmp_path, ranks):
    if ranks == 2:
        pytest.importorskip("ray")
    words = [*sft, "--num-rollout", "500", "--save", str(tmp_path / "s"), "--save-interval", "500"]
    mark = f"RUN_OF_THIS_TEST={tmp_path}"
    run = subprocess.run(
        [sys.executable, "-c", WITH_WHOLE_GROUP, str(ranks), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **dict([mark.split("=")])},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert [line for line in run.stdout.splitlines() if line.startswith("SIG")] == [
        f"{name} {status}" for name, status in ENDED.items()
    ], run.stderr
    assert run.returncode == 0
    for name in ENDED:
        (saved,) = (tmp_path / "s" / name).glob("iter_*")
        done = len(read_metrics(tmp_path / "s" / name / "metrics.jsonl"))
        assert done == int(saved.name.removeprefix("iter_")) + 1 < 500
    assert not [path for path in Path("/proc").glob("[0-9]*/environ") if mark.encode() in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""


@pytest.mark.parametrize(
    ("numbers", "at_once"),
    [
        ((signal.SIGHUP, signal.SIGHUP), False),  # a closed terminal: of the shell, and of the kernel
        ((signal.SIGTERM, signal.SIGHUP), False),
        ((signal.SIGTERM, signal.SIGTERM), False),  # GNU timeout: to the process, and to its group
        ((signal.SIGHUP, None, signal.SIGHUP), False),
        ((signal.SIGTERM, None, signal.SIGTERM), True),
        ((signal.SIGHUP, None, signal.SIGTERM), True),
        ((signal.SIGHUP, None, signal.SIGINT), True),
    ],
)
def test_what_one_event_sends_twice_is_one_request(numbers, at_once):
    """None: time goes by."""
    with Requests(saves=True, trigger=None, console=Console(0)) as requests:
        try:
            for number in numbers:
                if number is None:
                    time.sleep(0.15)
                else:
                    signal.raise_signal(number)
        except KeyboardInterrupt:
            assert at_once
        else:
            assert not at_once
    assert requests.end


def test_a_worker_that_ends_after_a_signal_is_told_of_with_it():
    def lose_a_worker() -> None:
        with Requests(saves=True, trigger=None, console=Console(0)):
            signal.raise_signal(signal.SIGTERM)
            raise WorkerDied("The training rank 0 has ended.")

    with pytest.raises(WorkerDied) as caught:
        lose_a_worker()
    said = "SIGTERM had asked the run to end before: it may have been sent to that process, too."
    assert caught.value.__notes__ == [said]


def test_a_signal_is_answered_while_the_run_writes_to_the_same_stream(monkeypatch):
    class Raw(io.RawIOBase):
        """Is asked to end the run while it is written to for the first time."""

        said = b""

        def writable(self):
            return True

        def write(self, data):
            first, self.said = not self.said, self.said + bytes(data)
            if first:
                signal.raise_signal(signal.SIGTERM)
            return len(data)

    raw = Raw()
    stream = io.TextIOWrapper(io.BufferedWriter(raw), write_through=True)
    monkeypatch.setattr(sys, "stderr", stream)
    others = set(threading.enumerate())
    with Requests(saves=True, trigger=None, console=Console(0)) as requests:
        print("a line of the run", file=stream, flush=True)
        assert requests.end
    for thread in set(threading.enumerate()) - others:
        thread.join(5)
    stream.flush()
    assert b"SIGTERM: the run ends after this rollout" in raw.said


def test_a_file_asks_for_a_checkpoint(sft, tmp_path, capsys):
    trigger = tmp_path / "now"
    trigger.touch()
    save = ["--save", str(tmp_path / "s"), "--save-interval", "100", "--save-trigger", str(trigger)]
    assert main(["train", *sft, "--num-rollout", "3", *save]) == 0
    assert [path.name for path in sorted((tmp_path / "s").glob("iter_*"))] == ["iter_0000000", "iter_0000002"]
    assert not trigger.exists()
    trigger.touch()
    assert main(["train", *sft, "--run-dir", str(tmp_path / "r"), "--save-trigger", str(trigger)]) == 0
    assert trigger.exists(), "nothing was saved"
    assert "--save-trigger has no effect without --save." in capsys.readouterr().err


def test_what_cannot_be_removed_asks_once(tmp_path, capsys):
    (tmp_path / "folder" / "of mine").mkdir(parents=True)
    requests = Requests(saves=True, trigger=str(tmp_path / "folder"), console=Console(0))
    assert [requests.take_save() for _ in range(2)] == [True, False]
    assert "cannot be removed" in capsys.readouterr().err


def test_a_checkpoint_that_is_due_is_written_though_the_evaluation_fails_which_a_resumed_run_makes_up_for(
    sft, chat_rows, tmp_path, monkeypatch, capsys
):
    (tmp_path / "judge.py").write_text(
        "import os\n"
        "def log(rollout_id, args, data, extra_metrics=None):\n"
        f"    if rollout_id == 1 and not os.path.exists({str(tmp_path / 'repaired')!r}):\n"
        "        raise RuntimeError('the judge is away')\n"
        "    return False\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["train", *sft, "--num-rollout", "4", "--save", str(tmp_path / "s"), "--load", str(tmp_path / "s")]
    words += ["--save-interval", "2", "--eval-prompt-data", "held", str(chat_rows), "--eval-interval", "2"]
    words += ["--custom-eval-rollout-log-function-path", "judge.log"]
    assert main(words) != 0
    said = capsys.readouterr().err
    assert "the judge is away" in said
    assert (tmp_path / "s" / "iter_0000001").is_dir()
    (tmp_path / "repaired").touch()
    assert main(words) == 0
    lines = [m["rollout_id"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval/held/loss" in m]
    assert lines == [-1, 1, 3]


@pytest.mark.parametrize("ends", ["samples", "training"])
def test_a_checkpoint_that_is_being_written_is_finished_where_the_next_rollout_fails(
    ends, sft, tmp_path, monkeypatch, capsys
):
    (tmp_path / "fails.py").write_text(
        "from dataclasses import replace\n"
        "from slime_losses.sft import sft_loss\n"
        "calls = 0\n"
        "def loss(args, inputs):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    found = sft_loss(args, inputs)\n"
        "    return replace(found, loss=found.loss * (float('nan') if calls > 4 else 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows = tmp_path / "rows.jsonl"
    text = '{"messages": [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "two"}]}\n'
    rows.write_text(text * 4 + '{"messages": 5}\n')
    own = ["--prompt-data", str(rows)] if ends == "samples" else ["--loss-type", "custom_loss"]
    own += [] if ends == "samples" else ["--custom-loss-function-path", "fails.loss"]
    words = ["train", *sft, "--num-rollout", "3", "--save", str(tmp_path / "s"), "--save-interval", "1", "--async-save"]
    assert main([*words, *own]) != 0
    said = capsys.readouterr().err
    assert ("5" if ends == "samples" else "NaN") in said
    assert [path.name for path in (tmp_path / "s").glob("iter_*")] == ["iter_0000000"]
    assert f"newest checkpoint: {tmp_path / 's' / 'iter_0000000'}" in said


def test_the_summary_names_scores_losses_of_data_and_places(sft, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    text = '{"messages": [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "two"}]}\n'
    rows.write_text(text * 3 + '{"messages": 5}\n')
    words = ["train", *sft, "--prompt-data", str(rows), "--num-rollout", "2", "--malformed-row", "skip"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "2 of 2 rollouts are done; 0:0" in said
    assert "train/loss  first " in said
    assert "not trained as it stands: " in said
    assert "malformed" in said
    assert f"run directory: {tmp_path / 'run'}" in said
    assert f"report: slime report {tmp_path / 'run'}" in said
    assert "no weights are kept: neither --save nor --save-hf was given" in said


def test_scores_are_the_first_the_best_and_the_last():
    summary = Summary(9, 2)
    for number, (loss, reward) in enumerate([(3.0, 0.1), (1.0, 0.9), (2.0, 0.4)]):
        summary.note(
            {
                "train/loss": loss,
                "rollout/raw_reward": reward,
                "rollout/truncated": 2.0,
                "rollout/truncated_ratio": 1.0,
            },
            2 + number,
        )
    args = type("Args", (), {"save": None, "save_hf": "m", "debug_rollout_only": False})
    lines = summary.lines(args, Path("r"))  # type: ignore[arg-type]  # what it reads of them
    assert lines[0].startswith("5 of 9 rollouts are done, 2 of them earlier; ")
    assert "train/loss  first 3.0000  best 1.0000  last 2.0000" in lines
    assert "rollout/raw_reward  first 0.1000  best 0.9000  last 0.4000" in lines
    assert "not trained as it stands: rollout/truncated 6" in lines
    report = ["report: slime report r"]
    assert [line for line in summary.lines(args, Path("r"), reports=True) if line not in lines] == report  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "values", "text"),
    [
        ("loss", [2.0, 3.0], "1 evaluations without a better loss than 2.0000"),
        ("reward", [0.5, 0.25], "without a better reward than 0.5000"),
        ("eval/a/loss", [2.0, 2.0], "without a better eval/a/loss than 2.0000"),
    ],
)
def test_early_stopping_says_why(metric, values, text):
    early = EarlyStopping(1, metric)
    name = metric if "/" in metric else f"eval/a/{metric}"
    assert [early.update({name: value}, 0) for value in values] == [False, True]
    assert text in early.in_words()
