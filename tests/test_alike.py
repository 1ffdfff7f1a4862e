"""Functions that every training rank calls with the whole rollout give the same in each, or the run ends. Two real ranks."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from slime_core.contracts.advantage import AdvantageOutputs
from slime_core.errors import PluginError
from slime_core.free_port import FreePort
from slime_core.plugins import Plugins
from slime_core.testing import groups
from slime_core.training.columns import ColumnMaker
from slime_core.training.postprocess import postprocessed


def by_the_reward(args: Any, inputs: Any) -> AdvantageOutputs:
    return AdvantageOutputs(inputs.rewards[inputs.sample_index])


def by_the_process(args: Any, inputs: Any) -> AdvantageOutputs:
    return AdvantageOutputs(by_the_reward(args, inputs).advantages + os.getpid())


def left_alone(args: Any, rollout_id: int, rollout_data: dict[str, list[Any]]) -> None:
    pass


def masks_by_the_process(args: Any, rollout_id: int, rollout_data: dict[str, list[Any]]) -> None:
    if os.environ["RANK"] == "1":
        rollout_data["loss_masks"][0][-1] = 0


def log_probs_by_the_process(args: Any, rollout_id: int, rollout_data: dict[str, list[Any]]) -> None:
    rollout_data["advantages"] = [row + row.numel() * os.getpid() for row in rollout_data["advantages"]]


def estimated(name: str) -> None:
    estimator = Plugins([]).select("advantage", f"test_alike.{name}")
    components: Any = SimpleNamespace(data_postprocess=None)
    maker = ColumnMaker(SimpleNamespace(reward_key=None), components, None, None, None, None)  # type: ignore[arg-type]
    maker._advantages(estimator, groups(2), {})


def hooked(name: str, own: float = 0.0) -> None:
    """Args:
    own: this rank's advantages, which the hook is given.
    """
    hook = Plugins([]).select("rollout_data_postprocess", f"test_alike.{name}")
    samples = [sample for group in groups(2) for sample in group]
    columns = {"advantages": [[own] * sample.response_length for sample in samples]}
    postprocessed(SimpleNamespace(use_rollout_logprobs=False), 0, samples, columns, hook, {})  # type: ignore[arg-type]


def told(action: Callable[..., None], *args: Any) -> str:
    try:
        action(*args)
    except PluginError as error:
        return str(error)
    return ""


def _child(rank: int, port: int, answers: Any) -> None:
    from slime_core.tensors.ranks import Ranks

    variables = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    ranks = Ranks.join(timeout_minutes=1)
    found = {name: told(estimated, name) for name in ("by_the_reward", "by_the_process")}
    found |= {name: told(hooked, name) for name in ("left_alone", "masks_by_the_process", "log_probs_by_the_process")}
    found["given others"] = told(hooked, "left_alone", float(rank))
    answers.put((rank, found))
    ranks.leave()


@pytest.fixture(scope="module")
def found() -> list[dict[str, str]]:
    """What was told in each of two ranks."""
    context, port = multiprocessing.get_context("spawn"), FreePort("127.0.0.1")
    answers = context.Queue()
    processes = [context.Process(target=_child, args=(rank, port.number, answers), daemon=True) for rank in range(2)]
    try:
        for process in processes:
            process.start()
        return [own for _, own in sorted((answers.get(timeout=120) for _ in processes), key=lambda pair: pair[0])]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("name", ["by_the_process", "masks_by_the_process", "log_probs_by_the_process"])
def test_what_differs_between_ranks_ends_all_of_them_and_names_the_function(
    found: list[dict[str, str]], name: str
) -> None:
    first, second = (own[name] for own in found)
    assert first == second
    assert f"test_alike.{name}" in first
    assert "gave training rank 1 other numbers than rank 0 for the same rollout" in first
    assert ("--custom-reward-post-process-path" in first) == (name == "by_the_process")


@pytest.mark.parametrize("name", ["by_the_reward", "left_alone", "given others"])
def test_a_function_that_does_the_same_in_each_rank_is_left_in_peace(found: list[dict[str, str]], name: str) -> None:
    assert [own[name] for own in found] == ["", ""]


def test_a_process_alone_compares_nothing() -> None:
    assert told(estimated, "by_the_process") == ""
