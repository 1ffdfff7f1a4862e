"""What the micro-batches of a step, and of all ranks, come together as. Metrics that do not go together are told of, and no rank waits."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from slime_core.errors import PluginError
from slime_core.tensors.micro_batches import gather_outputs
from slime_core.tensors.ranks import Ranks

CPU = torch.device("cpu")
Step = list[list[str]]
"""For each micro-batch of a rank the names of its metrics."""

MANY = [f"m{n:02}" for n in range(70)]
GO_TOGETHER: list[list[Step]] = [
    [[["a"], ["a"]], [["a"], ["a"]]],
    [[["a", "b"]], [["b", "a"]]],
    [[[]], [[]]],
    *([[MANY[:n], MANY[:n]], [MANY[:n], MANY[:n]]] for n in (31, 32, 33, 70)),
]
DIFFER: list[tuple[list[Step], str]] = [
    ([[["a"], ["a", "b"]], [["a"], ["a"]]], "b"),
    ([[["a", "b"], ["a"]], [["a", "b"], ["a"]]], "b"),
    ([[["a"], ["a"]], [["a", "b", "c"], ["a", "b", "c"]]], "b, c"),
    ([[["a"]], [["b"]]], "a, b"),
    ([[MANY[:2]], [MANY[:40]]], ", ".join(MANY[2:40])),
]


def gathered(step: Step, ranks: Ranks) -> tuple[list[float], dict[str, float]] | str:
    outputs = [
        (torch.tensor(10.0 * ranks.rank + place), {name: torch.tensor(float(name[1:] or 1)) for name in names})
        for place, names in enumerate(step)
    ]
    try:
        return gather_outputs(outputs, ranks)
    except PluginError as error:
        return str(error)


def one_of_two(rank: int, meeting: str, answers: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, CPU)
    answers.put((rank, [gathered(case[rank], ranks) for case in (*GO_TOGETHER, *(case for case, _ in DIFFER))]))
    ranks.leave()


def test_two_ranks_whose_metrics_differ_both_say_so_and_others_sum_up(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=one_of_two, args=(rank, str(tmp_path / "meeting"), answers)) for rank in (0, 1)]
    for process in processes:
        process.start()
    (_, found), (_, of_other) = sorted(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert found == of_other
    good, bad = found[: len(GO_TOGETHER)], found[len(GO_TOGETHER) :]
    for (first, second), (losses, metrics) in zip(GO_TOGETHER, good, strict=True):
        assert losses == [loss for place in range(len(first)) for loss in (place, 10.0 + place)]
        assert metrics == {name: float(name[1:] or 1) * (len(first) + len(second)) for name in first[0]}
    for (_, names), said in zip(DIFFER, bad, strict=True):
        assert f"gave the metrics {names} for some micro-batches and not for others" in said


@pytest.mark.parametrize("step", [[["a"], ["a", "b"]], [["a", "b"], ["a"]], [["b"], []]])
def test_metrics_of_one_rank_that_some_micro_batches_lack_are_told_of(step: Step) -> None:
    assert "for some micro-batches and not for others" in gathered(step, Ranks(0, 1, CPU))


def test_metrics_keep_the_order_that_the_loss_gave_them() -> None:
    found = gathered([["c", "a", "b"]] * 2, Ranks(0, 1, CPU))
    assert list(found[1]) == ["c", "a", "b"]
