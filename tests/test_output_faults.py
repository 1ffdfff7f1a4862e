"""What a run says when it cannot write: which file, why, what to do. And whatever fails while it ends, the error that came first is
the one that is told."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from slime_core.arguments.groups.profiling import ProfilingArguments
from slime_core.cli import main
from slime_core.errors import OutputError
from slime_core.output import fault_of_disk, writing
from slime_core.run.best import take_over_best
from slime_core.run.early_stopping import EarlyStopping
from slime_core.run.end import take_all
from slime_core.run.tracking import JsonlTracker, read_metrics


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def closed_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that this process may not enter, also where it is root's, which may enter all others."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    libc, version = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    before = (ctypes.c_uint32 * 6)()
    assert libc.capget(version, before) == 0
    less = (ctypes.c_uint32 * 6)(before[0] & ~0b110, *before[1:])  # without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(version, less) == 0
    yield folder
    assert libc.capset(version, before) == 0
    folder.chmod(0o700)


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(512))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def _log_for_long(jsonl: JsonlTracker) -> None:
    for step in range(1, 200):
        jsonl.log({f"train/{'x' * 99}": 1.0}, step)


@pytest.fixture
def words(tiny_model: Path, chat_rows: Path, tmp_path: Path) -> list[str]:
    return [
        *("train", "--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--calculate-per-token-loss"),
        *("--disable-compute-advantages-and-returns", "--rollout-batch-size", "2", "--num-rollout", "2"),
    ]


def test_metrics_on_a_full_disk_keep_their_whole_lines_and_closing_says_nothing_more(full_disk: Path) -> None:
    path = full_disk / "metrics.jsonl"
    jsonl = JsonlTracker(path, resume_after=None)
    jsonl.log({"train/loss": 1.0}, 0)
    fill(full_disk)
    with pytest.raises(
        OutputError, match=f"The metrics could not be written to {path}: No space left.*Free some space"
    ):
        _log_for_long(jsonl)
    jsonl.close()
    (full_disk / "filler").unlink()
    again = JsonlTracker(path, resume_after=500)
    again.log({"train/loss": 2.0}, 501)
    again.close()
    assert read_metrics(path)[-1]["train/loss"] == 2.0


def test_a_run_on_a_full_disk_names_it_once_and_without_a_traceback(
    words: list[str], full_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--run-dir", str(full_disk), "--save-hf", str(full_disk / "hf")]) == 1
    told = capfd.readouterr().err
    assert f"slime train: The exported model could not be written to {full_disk / 'hf'}: " in told
    assert "No space left on device" in told
    assert "Free some space there." in told
    assert "There is no checkpoint to go on from; --save DIR --save-interval N writes some." in told
    assert "Traceback" not in told
    assert "could not be closed" not in told


def test_a_checkpoint_on_a_full_disk_says_so(
    words: list[str], full_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--run-dir", str(tmp_path / "run"), "--save", str(full_disk)]) == 1
    told = capfd.readouterr().err
    assert f"slime train: The checkpoint after rollout 1 could not be written to {full_disk}: " in told
    assert "Free some space there. Then start the same command again with --load" in told
    assert not list(full_disk.glob("*iter_*"))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (
            ["--save-debug-rollout-data", "DISK/{rollout_id}.arrow"],
            "The samples of rollout 0, for --save-debug-rollout-data, could",
        ),
        (
            ["--save-debug-rollout-data", "DISK/{rollout_id}.jsonl"],
            "The samples of rollout 0, for --save-debug-rollout-data, could",
        ),
        (
            ["--save-debug-train-data", "DISK/{rollout_id}.arrow"],
            "What rollout 0 is trained with, for --save-debug-train-data, could",
        ),
        (["--dump-details", "DISK"], "--dump-details DISK cannot be written into"),
        (["--save", "DISK"], "--save DISK cannot be written into"),
        (["--use-tensorboard", "--tensorboard-dir", "DISK"], "The event files, for --tensorboard-dir, could"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the package tensorboard
def test_whatever_an_option_has_written_on_a_full_disk_is_named_with_it(
    words: list[str], full_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], what: str
) -> None:
    fill(full_disk)
    given = [option.replace("DISK", str(full_disk)) for option in options]
    assert main([*words, "--num-rollout", "1", "--run-dir", str(tmp_path / "run"), *given]) == 1
    told = capfd.readouterr().err
    assert f"slime train: {what.replace('DISK', str(full_disk))}" in told
    assert str(full_disk) in told
    assert "No space left on device" in told
    assert "Traceback" not in told


def test_a_folder_of_details_that_cannot_take_the_tokenizer_is_named_with_its_option(
    words: list[str], full_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--run-dir", str(tmp_path / "run"), "--dump-details", str(full_disk)]) == 1
    told = capfd.readouterr().err
    assert f"What reads the rows, for --dump-details, could not be written to {full_disk}: No space left on dev" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "Free some space"),
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (OSError(errno.ESTALE, "Stale file handle"), "mount it again"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "Free some space"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device")]), "Free some space"),
        (caused(RuntimeError("Can't create directory"), OSError(errno.EROFS, "Read-only file system")), "read-only"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "Look at the disk"),
        (RuntimeError("[gloo] Connection closed by peer [10.0.0.2]:4711"), None),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), None),
        (RuntimeError("CUDA error: out of memory"), None),
    ],
)
def test_only_faults_of_the_disk_are_told_as_such(error: Exception, advice: str | None, tmp_path: Path) -> None:
    found = fault_of_disk(error, tmp_path / "not" / "there")
    if advice is None:
        assert found is None
        with pytest.raises(type(error)):
            with writing("The metrics", tmp_path):
                raise error
    else:
        assert found is not None
        assert advice in found


def test_whatever_fails_at_the_end_the_first_error_is_told(caplog: pytest.LogCaptureFixture) -> None:
    taken: list[str] = []

    def step(name: str, error: BaseException | None = None) -> None:
        taken.append(name)
        if error is not None:
            raise error

    steps = {
        "The workers": lambda: step("workers", OSError("the workers are stuck")),
        "The metrics": lambda: step("metrics", KeyboardInterrupt()),
        "The observers": lambda: step("observers"),
    }
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="stuck"):
        take_all(steps, None)
    assert taken == ["workers", "metrics", "observers"]
    assert "The metrics could not be closed: KeyboardInterrupt" in caplog.text
    caplog.clear()
    take_all(steps, ValueError("the loss is NaN"))  # which goes on being raised
    assert "The workers could not be closed: OSError: the workers are stuck" in caplog.text


FAILING = """
from slime_torch.backend import TorchBackend
from slime_core.data import GlobalDataSource

class Source(GlobalDataSource):
    def close(self): raise OSError("the source cannot be closed")

class Backend(TorchBackend):
    def train_step(self, batch): raise ValueError("the step went wrong")
    def close(self): raise OSError("the backend cannot be closed")
"""


def test_a_run_tells_its_own_error_also_where_nothing_can_be_closed(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ends_badly.py").write_text(FAILING)
    monkeypatch.syspath_prepend(str(tmp_path))
    chosen = ["--train-backend", "ends_badly.Backend", "--data-source-path", "ends_badly.Source"]
    assert main([*words, *chosen, "--run-dir", str(tmp_path / "run")]) == 1
    told = capfd.readouterr().err
    assert "slime train: ValueError: the step went wrong" in told


def test_a_profile_that_cannot_be_written_is_named_with_its_option(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from slime_core.training.profiling import Profiler

    (tmp_path / "file").write_text("mine")
    args = ProfilingArguments(
        use_pytorch_profiler=True, profile_step_start=0, profile_step_end=1, tensorboard_dir=str(tmp_path / "file")
    )
    profiler = Profiler(args, tmp_path)
    profiler.step(0)
    with pytest.raises(
        OutputError, match=f"The profile, for --tensorboard-dir, could not be written to {tmp_path}/file: "
    ):
        profiler.close()
    profiler.close()  # has nothing more to write


def test_a_best_checkpoint_that_cannot_be_copied_is_named_with_its_option(full_disk: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "iter_0000001"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_bytes(bytes(2**19))
    early = EarlyStopping(patience=1, metric="eval/loss")
    early.best_rollout = 1
    args = SimpleNamespace(early_stopping_patience=1, early_stopping_keep="best", save=str(full_disk))
    with pytest.raises(
        OutputError, match=r"The copy of the best checkpoint, .*, for --save could not be written.*: No space"
    ):
        take_over_best(args, early, tmp_path / "iter_0000002")


@pytest.mark.parametrize("below", ["", "/in"])
@pytest.mark.parametrize(
    "command",
    [
        *(
            ["check", option, "CLOSED"]
            for option in ("--hf-checkpoint", "--prompt-data", "--load", "--ref-load", "--save", "--run-dir")
        ),
        *([name, "CLOSED"] for name in ("samples", "report", "serve")),
        ["export", "CLOSED", "new"],
        ["eval", "CLOSED", "--eval-prompt-data", "a", "rows.jsonl"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_path_that_may_not_be_entered_is_one_sentence(
    words: list[str], closed_folder: Path, capfd: pytest.CaptureFixture[str], command: list[str], below: str
) -> None:
    name, *given = (word.replace("CLOSED", f"{closed_folder}{below}") for word in command)
    assert main([name, *(words[1:] if name == "check" else []), *given]) in (1, 2)
    told = capfd.readouterr().err
    assert f"{closed_folder}{below}" in told
    assert "Permission denied" in told
    assert "Traceback" not in told
    assert "File " not in told
    assert "raised in the command" not in told


def test_whatever_else_is_wrong_is_said_beside_a_path_that_may_not_be_entered(
    words: list[str], closed_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *words[1:], "--load", str(closed_folder), "--prompt-data", str(tmp_path / "none")]) != 0
    told = capfd.readouterr().err
    assert "2 things are wrong" in told
    assert f"{closed_folder}/manifest.json cannot be used: Permission denied. Let this user enter" in told


def test_a_name_that_is_too_long_is_one_sentence(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *words[1:], "--load", "a" * 300]) == 1
    assert "aaa/manifest.json cannot be used: File name too long. Give a shorter path." in capfd.readouterr().err
