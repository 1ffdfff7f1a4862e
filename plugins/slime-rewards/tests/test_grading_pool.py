"""Grading processes: limits hold, what ends is replaced, nothing is left behind."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slime_core.errors import PluginError
from slime_core.plugins.clock import within
from slime_rewards.pool import GradingPool


@contextmanager
def pool(target: str, workers: int = 1, seconds: float = 20.0) -> Iterator[GradingPool]:
    made = GradingPool(target, workers, seconds)
    try:
        yield made
    finally:
        made.close()
        assert not made._processes


def grade(pool: GradingPool, *arguments: Any) -> Any:
    return asyncio.run(pool.grade(*arguments, item="sample 3"))


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.02)


def test_a_computation_that_never_ends_is_ended_and_its_process_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with pool("builtins:pow", seconds=0.3) as powers, caplog.at_level(logging.WARNING):
        assert grade(powers, 2, 3) == 8
        started = time.monotonic()
        assert grade(powers, 9, 9**9) is None  # a power with 370 million digits, in one C call
        assert time.monotonic() - started < 15
        assert grade(powers, 2, 4) == 16
        assert (powers.graded, powers.ungradable) == (3, 1)
    assert "sample 3: its answer counts as wrong, because grading it took more than 0.3 s (1 of 2" in caplog.text


def test_a_call_that_only_waits_ends_too() -> None:
    with pool("time:sleep", seconds=0.02) as sleeps:
        assert grade(sleeps, 1000) is None
        assert sleeps.ungradable == 1


def test_an_answer_that_needs_too_much_memory_costs_nothing_but_itself() -> None:
    with pool("operator:mul") as products:
        assert grade(products, "x", 1 << 40) is None
        assert grade(products, "x", 3) == "xxx"


def test_an_error_while_grading_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pool("operator:truediv") as quotients, caplog.at_level(logging.WARNING):
        assert grade(quotients, 1, 0) is None
        assert grade(quotients, 1, 2) == 0.5
    assert "ZeroDivisionError" in caplog.text


def test_a_worker_killed_while_idle_is_replaced_unnoticed() -> None:
    with pool("os:getpid") as pids:
        first = grade(pids)
        os.kill(first, signal.SIGKILL)
        wait_until_gone(first)
        second = grade(pids)
        assert second != first
        assert grade(pids) == second, "a healthy worker stays"


def test_a_worker_that_ends_at_work_is_an_error_and_is_replaced() -> None:
    with pool("os:_exit") as exits:
        for status in (3, 4):
            with pytest.raises(PluginError, match=f"ended with status {status} while it was at work"):
                grade(exits, status)
        assert exits.ungradable == 0


def test_what_a_library_prints_is_no_answer() -> None:
    with pool("builtins:print") as prints:
        assert grade(prints, '{"result": 1}') is None
        assert prints.ungradable == 0


def test_a_function_that_cannot_be_imported_is_a_clear_error() -> None:
    with pool("no_such_module:f") as missing, pytest.raises(PluginError, match=r"cannot start.*no_such_module"):
        grade(missing)


def test_nothing_starts_before_the_first_answer_and_no_more_than_asked_for() -> None:
    async def many(pids: GradingPool) -> set[int]:
        return set(await asyncio.gather(*(pids.grade(item="") for _ in range(40))))

    with pool("os:getpid", workers=2) as pids:
        assert not pids._processes
        assert not pids._threads
        assert len(asyncio.run(many(pids)) | asyncio.run(many(pids))) <= 2


def test_closing_ends_busy_workers_and_refuses_what_waits() -> None:
    slow = GradingPool("time:sleep", 1, 500.0)
    errors: list[BaseException] = []

    async def two() -> None:
        errors.extend(
            await asyncio.gather(slow.grade(500, item=""), slow.grade(500, item=""), return_exceptions=True)  # type: ignore[arg-type]
        )

    caller = threading.Thread(target=lambda: asyncio.run(two()))
    caller.start()
    try:
        end = time.monotonic() + 20
        while not slow._processes and time.monotonic() < end:
            time.sleep(0.02)
        (process,) = slow._processes
    finally:
        slow.close()
        caller.join(20)
    assert not is_alive(process.pid)
    assert [type(error) for error in errors] == [PluginError, PluginError]
    with pytest.raises(PluginError, match="closed"):
        asyncio.run(slow.grade(0, item=""))


def test_a_signal_to_the_group_of_the_run_is_not_for_its_workers() -> None:
    with pool("os:getpgrp") as groups:
        assert grade(groups) != os.getpgrp()


SCRIPT = """
import asyncio, os, sys
from slime_rewards.pool import shared_pool
print(asyncio.run(shared_pool("os:getpid", 1, 20.0).grade(item="")), flush=True)
{then}
"""


@pytest.mark.parametrize("then", ["", "raise SystemExit(3)", "1 / 0", "sys.stdin.read()"])
def test_no_worker_outlives_its_program(then: str) -> None:
    """Not even one that is killed (the last case), and without a guard of the main module."""
    program = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(then=then)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert program.stdout is not None
        worker = int(program.stdout.readline())
        if then.startswith("sys"):
            assert is_alive(worker)
    finally:
        if then.startswith("sys"):
            program.kill()
        program.communicate(timeout=30)
    wait_until_gone(worker)


def test_a_forked_child_gets_workers_of_its_own_and_leaves_its_parents_alone() -> None:
    fork = """
child = os.fork()
print(asyncio.run(shared_pool("os:getpid", 1, 20.0).grade(item="")), flush=True)
if child:
    os.waitpid(child, 0)
    print(asyncio.run(shared_pool("os:getpid", 1, 20.0).grade(item="")), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT.format(then=fork)], capture_output=True, text=True, timeout=60
    )
    first, *others, last = done.stdout.split()
    assert first == last, done.stderr
    assert len(others) == len({*others}) == 2, done.stdout
    for worker in {first, *others}:
        wait_until_gone(int(worker))


def test_runaway_answers_take_no_longer_than_stated_and_no_healthy_one_down() -> None:
    """24 that never end and 4 that do, and a time limit of the reward that is far shorter than the queue."""
    runaway, healthy, seconds, start, workers = 24, 4, 0.3, 1.0, 2

    async def graded(powers: GradingPool) -> list[Any]:
        calls = [(9, 9**9)] * runaway + [(2, exponent) for exponent in range(healthy)]
        limit = 10 * seconds + 2
        return await asyncio.gather(*(within(limit, lambda c=c: powers.grade(*c, item=str(c))) for c in calls))

    before = processor_time_of_children()
    with pool("builtins:pow", workers, seconds) as powers:
        assert asyncio.run(graded(powers)) == [None] * runaway + [1, 2, 4, 8]
        assert powers.ungradable == runaway
    spent = processor_time_of_children() - before
    assert spent < (runaway + workers) * (seconds + start), "what is stated is processor time, which `workers` share"


def processor_time_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
