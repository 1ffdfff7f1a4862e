"""What hooks do to the samples they are given, to the event loop, and to the process of the run, is found and named."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slime_core.cli import main
from slime_core.contracts.kind import FailurePolicy
from slime_core.errors import SampleError
from slime_core.plugins import Plugins
from slime_core.plugins.boundaries import children
from slime_core.plugins.calls import DROPPED, Caller
from slime_core.plugins.watchdog import Watchdog
from slime_core.run.tracking import JsonlTracker
from slime_core.sample import Sample, Status


def selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, body: str) -> Any:
    module = f"manners_{abs(hash(body))}"
    (tmp_path / f"{module}.py").write_text(f"import asyncio, os, sys, time\n{body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    return Plugins([]).select(kind, f"{module}.it", "--custom-rm-path")


def finished() -> Sample:
    return Sample(
        index=3,
        group_index=1,
        prompt="p",
        tokens=[5, 6, 7, 8, 9],
        response="r",
        response_length=3,
        rollout_log_probs=[-0.1, -0.2, -0.3],
        weight_versions=[1, 1, 1],
        status=Status.COMPLETED,
    )


# --------------------------------------------------------------------------------------------------------------- samples

NOT_ALLOWED = {
    "a token goes": ("s.tokens = s.tokens[:-1]", "It changed the tokens of sample 3"),
    "a token comes": ("s.tokens.append(1)", "It changed the tokens of sample 3"),
    "another prompt": ("s.tokens[0] = 99", "It changed the tokens of sample 3"),
    "the response alone is shorter": ("s.response_length = 2", "It changed the tokens of sample 3"),
    "cut, but for the log-probs": (
        "s.tokens = s.tokens[:-1]; s.response_length = 2; s.weight_versions = [1, 1]",
        "rollout_log_probs has 3 entries, but response_length is 2",
    ),
    "a mask that is too short": ("s.loss_mask = [1]", "loss_mask has 1 entries, but response_length is 3"),
    "a mask of words": ("s.loss_mask = ['a', 'b', 'c']", "expected 0 or 1"),
    "a status that is none": ("s.status = 'done'", "expected one of Sample.Status"),
    "a number as the status": ("s.status = 1", "expected one of Sample.Status"),
    "another index": ("s.index = 99", "belong to the run"),
    "another group": ("s.group_index = 99", "belong to the run"),
    "a set among the metadata": ("s.metadata['seen'] = {1, 2}", "metadata"),
    "a function among the metadata": ("s.metadata['seen'] = len", "metadata"),
    "an object as an attribute": ("s.judge = object()", "judge"),
}
ALLOWED = {
    "metadata": "s.metadata['seen'] = (1, 2.5)",
    "left out of training": "s.remove_sample = True",
    "another mask": "s.loss_mask = [0, True, 1]",
    "cut, with all that belongs to it": (
        "s.tokens = s.tokens[:-1]; s.response_length = 2; s.weight_versions = [1, 1]; s.rollout_log_probs = [-0.1, -0.2]"
    ),
    "a status in words": "s.status = 'truncated'",
}


@pytest.mark.parametrize("what", NOT_ALLOWED)
@pytest.mark.parametrize("kind", ["reward", "async reward", "dynamic_filter", "sample_filter"])
def test_what_a_reward_or_filter_may_not_do_to_a_sample_is_found_where_it_returns(
    tmp_path, monkeypatch, kind, what
) -> None:
    change, message = NOT_ALLOWED[what]
    body = {
        "reward": f"def it(args, sample):\n    s = sample; {change}; return 1.0",
        "async reward": f"async def it(args, sample):\n    s = sample; {change}; return 1.0",
        "dynamic_filter": f"def it(args, samples, **kw):\n    s = samples[0]; {change}; return True",
        "sample_filter": f"def it(args, groups):\n    s = groups[0][0]; {change}",
    }[kind]
    hook = selected(tmp_path, monkeypatch, kind.removeprefix("async "), body)
    sample = finished()
    given = {"dynamic_filter": [sample], "sample_filter": [[sample]]}.get(kind, sample)

    async def call() -> Any:
        return await hook(None, given)

    with pytest.raises(SampleError) as caught:
        asyncio.run(call()) if kind == "async reward" else hook(None, given)
    assert message in str(caught.value)
    assert "sample 3" in str(caught.value)
    assert hook.name in caught.value.__notes__[0]


@pytest.mark.parametrize("change", ["groups.pop()", "groups[0].pop()", "groups[:] = groups[:1]", "groups[0] *= 2"])
def test_a_sample_filter_that_takes_samples_out_is_named(tmp_path, monkeypatch, change) -> None:
    hook = selected(tmp_path, monkeypatch, "sample_filter", f"def it(args, groups):\n    {change}")
    with pytest.raises(
        SampleError, match=r"It was given 4 samples and left \d\. .* set remove_sample = True"
    ) as caught:
        hook(None, [[finished(), finished()], [finished(), finished()]])
    assert hook.name in caught.value.__notes__[0]


@pytest.mark.parametrize("what", ALLOWED)
def test_what_a_reward_may_do_it_may(tmp_path, monkeypatch, what) -> None:
    hook = selected(
        tmp_path, monkeypatch, "reward", f"def it(args, sample):\n    s = sample; {ALLOWED[what]}; return 1.0"
    )
    sample = finished()
    assert hook(None, sample) == 1.0
    assert isinstance(sample.status, Status)
    assert Sample.from_dict(json.loads(json.dumps(sample.to_dict()))) == sample


@dataclass
class OwnSample(Sample):
    """A sample with a field of its own."""

    turns: int = 0


def test_a_sample_of_another_class_is_stored_plainly_so_that_its_checkpoint_loads() -> None:
    made = OwnSample(index=1, tokens=[1, 2], response_length=1, turns=7)
    loaded = Sample.from_dict(json.loads(json.dumps(made.to_dict())))
    assert type(loaded) is Sample
    assert (loaded.index, loaded.tokens, loaded.turns) == (1, [1, 2], 7)  # type: ignore[attr-defined]  # as an attribute


# ------------------------------------------------------------------------------------------------------------ event loop


def patient(hook: Any, timeout: float | None) -> Caller:
    return Caller(hook, FailurePolicy(timeout=timeout, retries=0, on_failure="drop"))


NEVER_END = {
    "swallows cancellation": (
        "async def it(args, sample):\n    while True:\n        try:\n            await asyncio.sleep(60)\n"
        "        except asyncio.CancelledError:\n            pass",
        "It does not end when it is cancelled, and is left behind",
    ),
    "never returns": (
        "async def it(args, sample):\n    await asyncio.Event().wait()",
        "It did not answer within 0.2 s",
    ),
    "answers too late": (
        "async def it(args, sample):\n    try:\n        await asyncio.sleep(60)\n"
        "    except asyncio.CancelledError:\n        return 1.0",
        "It did not answer within 0.2 s",
    ),
    "blocks the loop": (
        "async def it(args, sample):\n    time.sleep(60)",
        "It blocked the event loop for",
    ),
    "is busy in the loop": (
        "async def it(args, sample):\n    while True:\n        pass",
        "It blocked the event loop for",
    ),
}


def test_the_watchdog_asks_an_event_loop_once_however_many_calls_it_has(monkeypatch) -> None:
    watchdog, asked = Watchdog(), []
    monkeypatch.setattr("slime_core.plugins.watchdog.LOOK_EVERY", 0.02)

    async def many() -> None:
        loop = asyncio.get_running_loop()
        soon = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *given: asked.append(soon(*given)), raising=False)
        tasks = [asyncio.ensure_future(asyncio.sleep(0.3)) for _ in range(500)]
        ends = [watchdog.watch(task, lambda: 0.0, 1.0) for task in tasks]
        await asyncio.gather(*tasks)
        for end in ends:
            end()

    asyncio.run(many())
    assert 2 <= len(asked) < 50  # 15 looks at 500 calls


@pytest.mark.parametrize("how", NEVER_END)
@pytest.mark.parametrize("thread", ["main", "another"])
def test_a_coroutine_that_never_ends_is_abandoned_and_named(tmp_path, monkeypatch, caplog, how, thread) -> None:
    body, message = NEVER_END[how]
    body = body if thread == "main" else body.replace("time.sleep(60)", "[time.sleep(0.1) for _ in range(600)]")
    caller = patient(selected(tmp_path, monkeypatch, "reward", body), 0.2)
    answers: list[Any] = []

    async def call() -> Any:
        beat = asyncio.ensure_future(asyncio.sleep(0.1, "the loop goes on"))
        answer = await caller.call_async(None, finished(), item="sample 3")
        return answer, await beat

    def work() -> None:
        answers.append(asyncio.run(call()))

    started = time.monotonic()
    if thread == "main":
        work()
    else:
        runner = threading.Thread(target=work)
        runner.start()
        runner.join(30)
        assert not runner.is_alive()
    assert answers == [(DROPPED, "the loop goes on")]
    assert time.monotonic() - started < 15
    assert message in caplog.text
    assert "for sample 3 failed and is dropped" in caplog.text


def test_a_call_that_swallows_its_cancellation_does_not_hold_up_who_cancels_it(tmp_path, monkeypatch) -> None:
    caller = patient(selected(tmp_path, monkeypatch, "reward", NEVER_END["swallows cancellation"][0]), None)

    async def call() -> None:
        task = asyncio.ensure_future(caller.call_async(None, finished()))
        await asyncio.sleep(0.05)
        task.cancel()
        await task

    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(call())
    assert time.monotonic() - started < 10


# --------------------------------------------------------------------------------------------------------------- process


def run_with_loss(sft: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> list[str]:
    module = f"process_{abs(hash(body))}"
    (tmp_path / f"{module}.py").write_text(
        f"import os, subprocess, sys\nfrom slime_losses.sft import sft_loss\ndef loss(args, inputs):\n    {body}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return ["train", *sft, "--loss-type", "custom_loss", "--custom-loss-function-path", f"{module}.loss"]


def test_os_exit_in_a_hook_is_an_error_of_the_hook(sft, tmp_path, monkeypatch, capsys) -> None:
    words = run_with_loss(sft, tmp_path, monkeypatch, "os._exit(0)")
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "It raised SystemExit(0), which would end the run in silence" in said
    assert os._exit.__module__ in ("posix", "nt"), "and outside of runs it is Python's own"


def test_a_forked_child_that_comes_back_does_not_run_on(sft, tmp_path, monkeypatch) -> None:
    """In a process of its own, as forking the tests' would fork all of them."""
    words = run_with_loss(sft, tmp_path, monkeypatch, "os.fork(); return sft_loss(args, inputs)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "slime_core", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the child" in done.stderr
    assert "came back from the call; it ends here" in done.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_processes_that_hooks_leave_behind_are_named_at_the_end(sft, tmp_path, monkeypatch, caplog) -> None:
    body = (
        "left.append(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])); "
        "return sft_loss(args, inputs)"
    )
    left: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr("builtins.left", left, raising=False)  # where the hook finds it
    try:
        assert main(run_with_loss(sft, tmp_path, monkeypatch, body)) == 0
        said = caplog.text
        assert left
        for child in left:
            assert f"process {child.pid}, which a component of the run has started, is still there" in said
        assert "time.sleep(600)" in said
    finally:
        for child in left:
            child.kill()
            child.wait()


def test_a_process_whose_thread_ends_meanwhile_is_still_found() -> None:
    """The kernel gives it to another thread then. In several tries, as that happens between two of its steps."""
    for _ in range(6):
        left: list[subprocess.Popen[bytes]] = []
        together = threading.Barrier(17)

        def start() -> None:
            left.append(subprocess.Popen(["sleep", "60"]))  # noqa: B023
            together.wait()  # noqa: B023

        threads = [threading.Thread(target=start) for _ in range(16)]
        for thread in threads:
            thread.start()
        together.wait()
        try:
            assert [len({child.pid for child in left} - set(children())) for _ in range(8)] == [0] * 8
        finally:
            for thread in threads:
                thread.join()
            for child in left:
                child.kill()
                child.wait()


# --------------------------------------------------------------------------------------------------------------- metrics


def test_metrics_that_are_no_numbers_stay_valid_json(tmp_path) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl", resume_after=None)
    tracker.log({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5}, 0)
    tracker.close()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    read: Callable[[str], Any] = lambda text: json.loads(text, parse_constant=refuse)  # noqa: E731
    line = read((tmp_path / "metrics.jsonl").read_text())
    assert (line["a"], line["b"], line["c"], line["d"]) == (None, None, None, 1.5)
