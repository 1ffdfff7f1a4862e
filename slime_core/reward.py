"""Scoring finished samples with the selected reward, whichever of the two contracts it keeps."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any

from slime_core.plugins import Plugins
from slime_core.plugins.calls import DROPPED, Caller, Dropped, policies
from slime_core.sample import Sample


def reward_caller(args: Any, plugins: Plugins) -> Caller | None:
    """The reward that `--rm-type` or `--custom-rm-path` chooses, under its failure policy; None without one."""
    name = args.custom_rm_path or args.rm_type
    return Caller(plugins.select("reward", name), policies(args.failure_policy)["reward"]) if name else None


async def score(caller: Caller, args: Any, samples: Sequence[Sample]) -> list[Any] | Dropped:
    """One reward for each sample, or `DROPPED` when one of them could not be had.

    A reward whose second parameter is called `samples` scores the group at once, any other one sample at a time, all
    at the same time.
    """
    if "samples" in inspect.signature(caller.selected.target).parameters:
        names = ", ".join(sample.name for sample in samples)
        return await caller.call_async(args, list(samples), item=names)
    rewards = await asyncio.gather(*(caller.call_async(args, sample, item=sample.name) for sample in samples))
    return DROPPED if any(reward is DROPPED for reward in rewards) else rewards
