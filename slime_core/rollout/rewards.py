"""Scoring finished samples with the selected reward, whichever of the two contracts it keeps.

Called by rollout functions. `reward_caller` and `score` serve a run with one reward; `Rewards` also lets a row choose its
own.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.contracts.reward import BOXED, check_reward_key
from slime_core.errors import ArgumentError, SampleError
from slime_core.plugins import Plugins, Selected
from slime_core.plugins.calls import DROPPED, Caller, Dropped, policies
from slime_core.rollout.boxed import last_box
from slime_core.sample import Sample, reward_of


def reward_caller(args: RunArguments, selected: Selected[Any]) -> Caller:
    """Return the caller that applies the failure policy of rewards to a selected reward.

    One that was selected as `boxed_NAME` is the reward NAME, given what the last `\\boxed{…}` of a response holds in place
    of the response (nothing, if there is no box that is closed). With `--group-rm`, that of `--custom-rm-path` scores whole groups,
    whatever its parameters are called.
    """
    if selected.prefix == BOXED:
        selected = replace(selected, target=_given_boxes(selected.target))
    if selected.option == "--custom-rm-path" and args.group_rm:
        selected = replace(selected, target=_given_groups(selected.target))
    return Caller(selected, policies(args.failure_policy)["reward"])


def scores_groups(caller: Caller) -> bool:
    """Whether a reward scores all samples of a group at once: its second parameter is called `samples`, or `reward_caller` has made
    it do so."""
    return "samples" in inspect.signature(caller.selected.target).parameters


async def score(caller: Caller, args: RunArguments, samples: Sequence[Sample]) -> list[Any] | Dropped:
    """One reward for each sample, or `DROPPED` when one of them could not be had.

    A reward that `scores_groups` is given all of them at once, any other one sample at a time, all at the same time.
    """
    if scores_groups(caller):
        names = ", ".join(sample.name for sample in samples)
        scores: list[Any] | Dropped = await caller.call_async(args, list(samples), item=names)
        return scores
    rewards = await asyncio.gather(
        *(caller.call_async(args, sample, item=sample.name, work=_group(sample)) for sample in samples)
    )
    return DROPPED if any(reward is DROPPED for reward in rewards) else rewards


def _group(sample: Sample) -> str:
    """What is lost with a sample."""
    return sample.name if sample.group_index is None else f"group {sample.group_index}"


class Rewards:
    """The rewards of one rollout. A row may name its own in `metadata["rm_type"]`, which goes before `--rm-type` (but not
    before `--custom-rm-path`).

    Args:
        chosen: the run's reward, if one is chosen.
        key: which number of a reward that is a dict is used (`--reward-key`). A dict without a finite number under it counts as
            a failure of the reward.
    """

    def __init__(self, args: RunArguments, plugins: Plugins, chosen: Selected[Any] | None, key: str | None) -> None:
        self.plugins = plugins
        self._args, self._chosen, self._key = args, chosen, key
        self._callers: dict[str | None, Caller | None] = {}

    def caller(self, sample: Sample) -> Caller | None:
        """The reward of a sample, if one is chosen."""
        name = sample.metadata.get("rm_type")
        if name is not None and not isinstance(name, str):
            raise SampleError(f"The rm_type of {sample.name} is {name!r}; expected the name of a reward.")
        name = name.strip() if name else None
        if name not in self._callers:
            selected = self._chosen
            if name and not self._args.custom_rm_path:
                selected = self.plugins.select("reward", name, installed_only=True)
            caller = reward_caller(self._args, selected) if selected is not None else None
            if caller is not None:
                caller.selected = replace(caller.selected, further_check=self._check)
            self._callers[name] = caller
        return self._callers[name]

    async def score(self, samples: Sequence[Sample]) -> bool:
        """Set the reward of these samples. False when one of them could not be had.

        Raises:
            ArgumentError: no reward is chosen.
            SampleError: a reward is a dict, and there is no `key`.
        """
        by_caller: dict[int, tuple[Caller, list[Sample]]] = {}
        for sample in samples:
            caller = self.caller(sample)
            if caller is None:
                raise ArgumentError(
                    f"Nothing scores {sample.name}: choose a reward with --rm-type or --custom-rm-path, name one in the "
                    'row\'s metadata as "rm_type", or set the reward in your generate function.'
                )
            by_caller.setdefault(id(caller), (caller, []))[1].append(sample)
        for caller, chosen in by_caller.values():
            rewards = await score(caller, self._args, chosen)
            if isinstance(rewards, Dropped):
                return False
            for sample, reward in zip(chosen, rewards, strict=True):
                sample.reward = reward
                reward_of(sample, self._key)
        return True

    def _check(self, result: Any, args: tuple[Any, ...]) -> str | None:
        return check_reward_key(result, self._key)

    def metrics(self) -> dict[str, float]:
        """What the failure policy counted, over all rewards together."""
        total: dict[str, float] = {}
        for caller in self._callers.values():
            for name, value in caller.metrics().items() if caller else ():
                total[name] = total.get(name, 0.0) + value
        return total


def reward_of_set(
    args: RunArguments, own: RunArguments, chosen: Selected[Any] | None, plugins: Plugins
) -> Selected[Any] | None:
    """Return the reward of an evaluation set, where its rows name none.

    Args:
        args: of the run.
        own: of the set.
        chosen: the run's reward, if one is chosen.

    Raises:
        PluginError: one that the set names is missing, or does not fit.
    """
    if own.custom_rm_path != args.custom_rm_path and own.custom_rm_path:
        return plugins.select("reward", own.custom_rm_path, "--custom-rm-path")
    if own.rm_type != args.rm_type and own.rm_type and not own.custom_rm_path:
        return plugins.select("reward", own.rm_type, "--rm-type")
    return chosen


def evaluation_key(args: RunArguments) -> str | None:
    """Which number of a reward that is a dict evaluations report."""
    return args.reward_key if args.eval_reward_key is None else args.eval_reward_key


def choose_number(sample: Sample, key: str | None) -> None:
    """Replace a reward that is a dict by the number under `key`, and keep the dict in `metadata["rewards"]`."""
    if isinstance(sample.reward, dict):
        sample.metadata["rewards"] = dict(sample.reward)
    sample.reward = reward_of(sample, key)


def _given_groups(target: Callable[..., Any]) -> Callable[..., Any]:
    """The reward as one of whole groups, which its second parameter is called by."""

    async def awaited(args: Any, samples: list[Sample]) -> Any:
        return await target(args, samples)

    def called(args: Any, samples: list[Sample]) -> Any:
        return target(args, samples)

    return awaited if inspect.iscoroutinefunction(target) else called


def _given_boxes(target: Callable[..., Any]) -> Callable[..., Any]:
    """A reward with the same signature whose samples go through `_boxed`."""
    if inspect.iscoroutinefunction(target):

        @functools.wraps(target)
        async def awaited(args: Any, scored: Any, **extras: Any) -> Any:
            return await target(args, _boxed(scored), **extras)

        return awaited

    @functools.wraps(target)
    def called(args: Any, scored: Any, **extras: Any) -> Any:
        return target(args, _boxed(scored), **extras)

    return called


def _boxed(scored: Sample | list[Sample]) -> Any:
    if isinstance(scored, list):
        return [_boxed(sample) for sample in scored]
    box = last_box(scored.response)
    return scored.changed(response=(box.content if box else None) or "")
