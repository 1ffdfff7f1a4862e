"""`--use-pytorch-profiler`: a trace of the rollouts asked for, and of no others."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from slime_core.arguments.groups.profiling import ProfilingArguments
from slime_core.training.profiling import Profiler

torch = pytest.importorskip("torch")

WORK = {  # one unmistakable operator per rollout
    0: lambda x: torch.sinh(x),
    1: lambda x: torch.erfinv(x),
    2: lambda x: torch.cosh(x),
    3: lambda x: torch.lgamma(x),
}


def profiled(run_dir: Path, start: int = 1, end: int = 3, rollouts: range = range(4), **more: Any) -> Profiler:
    args = ProfilingArguments(use_pytorch_profiler=True, profile_step_start=start, profile_step_end=end, **more)
    profiler = Profiler(args, run_dir)
    for rollout_id in rollouts:
        profiler.step(rollout_id)
        WORK[rollout_id](torch.full((4,), 0.5))
    profiler.close()
    return profiler


def operators(folder: Path) -> set[str]:
    (trace,) = folder.glob("*.pt.trace.json")
    return {event["name"] for event in json.loads(trace.read_text())["traceEvents"] if "name" in event}


def test_the_trace_holds_the_rollouts_from_start_up_to_end_and_no_others(tmp_path: Path) -> None:
    profiled(tmp_path)
    found = operators(tmp_path / "profile")
    assert {"aten::erfinv", "aten::cosh", "rollout 1", "rollout 2"} <= found
    assert not {"aten::sinh", "aten::lgamma", "rollout 0", "rollout 3"} & found


def test_a_run_that_ends_or_resumes_inside_the_range_still_writes_its_trace(tmp_path: Path) -> None:
    profiled(tmp_path, start=1, end=4, rollouts=range(2, 4), tensorboard_dir=str(tmp_path / "elsewhere"))
    assert {"aten::cosh", "aten::lgamma"} <= operators(tmp_path / "elsewhere")
    assert not (tmp_path / "profile").exists()


def test_without_the_option_nothing_is_written(tmp_path: Path) -> None:
    profiler = Profiler(ProfilingArguments(profile_step_start=0), tmp_path)
    profiler.step(0)
    profiler.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_too_short_to_be_profiled_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    profiled(tmp_path, start=10, end=12)
    assert "did not train on rollouts 10 to 11" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_memory_history_without_cuda_is_reported_not_ignored_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        profiled(tmp_path, record_memory_history=True)
    assert "--record-memory-history has no effect: it needs a CUDA device" in caplog.text
    assert "aten::erfinv" in operators(tmp_path / "profile")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_memory_history_writes_a_snapshot(tmp_path: Path) -> None:
    profiler = Profiler(
        ProfilingArguments(
            use_pytorch_profiler=True, profile_step_start=0, profile_step_end=1, record_memory_history=True
        ),
        tmp_path,
    )
    profiler.step(0)
    kept = torch.ones(1024, device="cuda")
    profiler.step(1)
    assert (tmp_path / "profile" / "memory_snapshot.pickle").stat().st_size > 0
    assert kept.sum().item() == 1024


def test_an_empty_range_is_refused_with_both_options_named() -> None:
    with pytest.raises(ValidationError, match=r"--profile-step-end is 3.*greater than --profile-step-start 3"):
        ProfilingArguments(use_pytorch_profiler=True, profile_step_start=3, profile_step_end=3)
    assert ProfilingArguments(profile_step_start=30).profile_step_end == 12  # not profiling: nothing to refuse
