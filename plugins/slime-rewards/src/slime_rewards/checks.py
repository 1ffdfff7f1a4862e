"""What rewards see of a run before it starts: their options, and the labels of the first row of every file.

Named by the plugin (`slime_core.contracts.checking`). A reward that costs nothing is tried on an empty response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.contracts.checking import Checking
from slime_core.contracts.reward import check_reward_key
from slime_core.errors import ArgumentError
from slime_core.sample import Sample, reward_of
from slime_rewards.arguments import RemoteRunArguments
from slime_rewards.labels import MissingLabelError


@contextmanager
def _one_row_may_lack_its_label(args: RunArguments, checking: Checking) -> Iterator[None]:
    """Where the column of the labels is named, and there, a row in which it is empty costs no more than that row's group."""
    try:
        yield
    except MissingLabelError as error:
        if args.label_key is None:
            raise
        checking.remark(
            f"{error} Where the failure policy of rewards is to drop, the group of such a row is dropped and counted."
        )


_TRIED = {
    **{name: f"slime_rewards.{name}" for name in ("exact_match", "final_answer", "f1", "gpqa")},
    **dict.fromkeys(("math", "boxed_math", "deepscaler", "math_verify"), "slime_rewards.math"),
}
"""Functions that compare texts, by their module. With an empty response none of them needs a process of its own."""


def _tries(name: str) -> Callable[[RunArguments, Checking], None]:
    """A check that calls a reward with an empty response to the first prompt of every file."""

    def check(args: RunArguments, checking: Checking) -> None:
        reward: Callable[..., Any] = getattr(import_module(_TRIED[name]), name)
        for sample in checking.samples:
            with checking.noting(), _one_row_may_lack_its_label(args, checking):
                asyncio.run(reward(args, replace(sample, response="")))

    return check


exact_match, final_answer, f1, gpqa, math, boxed_math, deepscaler, math_verify = map(_tries, _TRIED)


def dapo(args: RunArguments, checking: Checking) -> None:
    """The reward is several numbers, of which `--reward-key` names the one to train with, and `--eval-reward-key` may name one; labels
    are there."""
    from slime_rewards.dapo import dapo as reward

    for sample in checking.samples or [Sample(label="1")]:
        with checking.noting(), _one_row_may_lack_its_label(args, checking):
            scored = replace(sample, response="")
            scored.reward = asyncio.run(reward(args, scored))
            if "reward_key" not in checking.set_aside:
                reward_of(scored, args.reward_key)
            if wrong := check_reward_key(scored.reward, args.eval_reward_key):
                raise ArgumentError(f"The reward 'dapo' is {wrong}.")


def remote(args: RemoteRunArguments, checking: Checking) -> None:
    """There is a URL. The service is not asked."""
    from slime_rewards.remote import require_url

    with checking.noting():
        require_url(args.rm_url)
