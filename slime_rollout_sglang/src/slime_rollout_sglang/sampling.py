"""Dynamic sampling: many groups are completed at once, until enough of them have passed the filter.

Prompts are taken `--over-sampling-batch-size` at a time, and again whenever the groups that may still pass are too few. Where
groups were lost to failures of generators or rewards, and no more are missing than those, just as many take their place.
Finished groups are judged one by one. The moment enough have passed, everything else is stopped.

With the order "finished", groups are judged as their last response is finished (however long their rewards take); groups
that are finished in the same step of the engine, in the order in which it reports them. Which groups are accepted then
depends on how fast the engine serves each request. With the order "prompt", groups are judged in the order in which they
were started, and what is accepted depends on nothing but the prompts, the seeds and the weights. Without a filter and
over-sampling every group is accepted, and the two orders are the same.

An engine that can wait (`slime_core.contracts.engine.Holds`) does so while a group is judged that may end the sampling, but
for the time in which it answers the group's reward. Where no reward asks it, both orders accept the same groups, and leave the
same half-generated ones, in every run.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slime_core.errors import SampleError, first_error_only
from slime_core.plugins.calls import Caller, Dropped
from slime_core.trajectories import trajectory_rewards
from slime_rollout_sglang.filters import Verdict, read_verdict
from slime_rollout_sglang.groups import GroupInProgress, GroupRunner
from slime_rollout_sglang.prompts import PromptTokenizer
from slime_rollout_sglang.requests import Requests

if TYPE_CHECKING:
    from slime_core.contracts.data import DataSource
    from slime_rollout_sglang.arguments import RlRunArguments

logger = logging.getLogger(__name__)


@dataclass
class Sampled:
    """How sampling ended. Every group that was started is in exactly one of the lists.

    Attributes:
        kept: `--rollout-batch-size` groups, in the order of their samples' index.
        rejected: groups that were finished and filtered out.
        lost: groups whose generate function or reward failed for good.
        stopped: groups that were not judged by the time there were enough, finished or not.
        reasons: how many groups the filter rejected for which reason; groups that were kept in the end for want of better
            ones are included.
        rounds: how many times `--over-sampling-batch-size` prompts were taken, begun ones counted whole.
        made_up: how many of the kept groups the filter had rejected.
    """

    kept: list[GroupInProgress] = field(default_factory=list)
    rejected: list[GroupInProgress] = field(default_factory=list)
    lost: list[GroupInProgress] = field(default_factory=list)
    stopped: list[GroupInProgress] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    made_up: int = 0

    @property
    def started(self) -> list[GroupInProgress]:
        """All groups, in the order in which they were started."""
        return sorted([*self.kept, *self.rejected, *self.lost, *self.stopped], key=lambda group: group.number)


class DynamicSampling:
    """Samples the groups of one rollout.

    Args:
        prompts: gives groups their prompt tokens.
        runner: completes groups.
        requests: the requests to the engine, which end when there are enough groups.
        filter: the dynamic filter, if one is chosen.
    """

    def __init__(
        self,
        args: RlRunArguments,
        data_source: DataSource,
        prompts: PromptTokenizer,
        runner: GroupRunner,
        requests: Requests,
        filter: Caller | None,
    ) -> None:
        self._args, self._data_source, self._prompts = args, data_source, prompts
        self._runner, self._requests, self._filter = runner, requests, filter
        self._tasks: dict[GroupInProgress, asyncio.Task[None]] = {}  # of groups that are not judged yet
        self._generated: set[GroupInProgress] = set()  # those among them whose responses are all there
        self._to_judge: asyncio.Queue[GroupInProgress] = asyncio.Queue()
        self._started = 0
        self._replaced = 0  # lost groups in whose place others were started
        self._sampled = Sampled()
        self._hold = requests.hold
        over_sampled = (args.over_sampling_batch_size or 0) > args.rollout_batch_size
        self._hold.matters = filter is not None or over_sampled

    async def sample(self) -> Sampled:
        """Complete and judge groups until there are enough, then stop the others.

        Raises:
            SampleError: so many groups were lost that the rollout cannot be filled.
            Exception: whatever ends the run. Nothing of the rollout is running any more then.
        """
        with first_error_only():
            async with asyncio.TaskGroup() as tasks:
                try:
                    await self._sample_until_full(tasks)
                    await self._requests.stop(self._tasks.values())
                finally:
                    self._hold.set(False)
        sampled = self._sampled
        for group in self._tasks:
            (sampled.lost if group.lost else sampled.stopped).append(group)
        sampled.kept.sort(key=lambda group: (group.given[0].index or 0, group.number))
        return sampled

    async def _sample_until_full(self, tasks: asyncio.TaskGroup) -> None:
        sampled, wanted = self._sampled, self._args.rollout_batch_size
        per_round = self._args.over_sampling_batch_size or wanted
        while len(sampled.kept) < wanted:
            missing = wanted - len(sampled.kept) - len(self._tasks)
            room = self._args.max_dynamic_sampling_rounds * per_round - self._started
            if missing > 0 and room > 0:
                only_lost = missing <= len(sampled.lost) - self._replaced
                self._replaced += missing if only_lost else 0
                self._start(tasks, min(missing if only_lost else per_round, room))
                sampled.rounds = -(-self._started // per_round)
            elif self._tasks:
                await self._judge_next()
            else:
                fill_with_rejected(self._args, sampled)

    def _start(self, tasks: asyncio.TaskGroup, count: int) -> None:
        for given in self._prompts.take(self._data_source, count):
            group = GroupInProgress(self._started, given)
            self._started += 1
            self._tasks[group] = tasks.create_task(self._complete(group))
            if self._args.dynamic_sampling_order == "prompt":
                self._to_judge.put_nowait(group)

    async def _complete(self, group: GroupInProgress) -> None:
        """Complete one group, and queue it for judgement as soon as its responses are there, or as it is lost."""
        is_queued = self._args.dynamic_sampling_order == "prompt"

        def generated() -> None:
            nonlocal is_queued
            if not is_queued:
                self._to_judge.put_nowait(group)
            is_queued = True
            self._generated.add(group)
            self._hold_while_deciding()

        await self._runner.run(group, generated)
        if group not in self._generated:
            generated()  # the group was lost before it was generated

    def _hold_while_deciding(self) -> None:
        """Hold the engine while a group is judged, or could be, whose acceptance may end the sampling."""
        if self._args.dynamic_sampling_order == "prompt":
            self._hold.set(next(iter(self._tasks), None) in self._generated)
        else:
            self._hold.set(bool(self._generated))

    async def _judge_next(self) -> None:
        sampled = self._sampled
        self._hold_while_deciding()
        group = await self._to_judge.get()
        await self._tasks[group]
        del self._tasks[group]
        self._generated.discard(group)
        if group.lost:
            sampled.lost.append(group)
            return
        verdict = passes(self._args, self._filter, group)
        scarce = len(sampled.kept) + len(self._tasks) < self._args.rollout_batch_size
        if verdict.keep or (verdict.keep_when_insufficient and scarce):
            sampled.kept.append(group)
            sampled.made_up += not verdict.keep
        else:
            sampled.rejected.append(group)
            sampled.reasons[verdict.reason] += 1


def passes(args: RlRunArguments, filter: Caller | None, group: GroupInProgress) -> Verdict:
    """Return whether a finished group is trained, and the reason why not. Without a filter every group is."""
    if filter is None:
        return Verdict(True)
    answer = filter.call(args, group.samples, item=f"prompt {group.given[0].group_index}")
    return Verdict(False, "filter_failed") if isinstance(answer, Dropped) else read_verdict(answer)


def fill_with_rejected(args: RlRunArguments, sampled: Sampled) -> None:
    """Fill a rollout up with groups that the filter rejected: those whose rewards differ most, then those started first.

    Raises:
        SampleError: there are too few of them.
    """
    started, missing = len(sampled.started), args.rollout_batch_size - len(sampled.kept)
    best = sorted(sampled.rejected, key=lambda group: (-_reward_spread(group, args.reward_key), group.number))[:missing]
    reasons = ", ".join(f"{count} {reason}" for reason, count in sampled.reasons.most_common()) or "none"
    tried = (
        f"{sampled.rounds} rounds of sampling (--max-dynamic-sampling-rounds), {started} prompts, gave "
        f"{len(sampled.kept)} of {args.rollout_batch_size} groups; filtered out: {reasons}; lost to failures of "
        f"generators and rewards: {len(sampled.lost)}."
    )
    if len(best) < missing:
        raise SampleError(f"{tried} That leaves too few to go on with. Repair what fails; the warnings above say what.")
    logger.warning(
        "%s The rollout is filled up with %d of those that were filtered out. Choose prompts that the model solves "
        "sometimes, raise --n-samples-per-prompt or --over-sampling-batch-size, or loosen the filter.",
        *(tried, missing),
    )
    for group in best:
        sampled.rejected.remove(group)
    sampled.kept += best
    sampled.made_up += missing


def _reward_spread(group: GroupInProgress, key: str | None) -> float:
    """Return the standard deviation of the rewards of a group's trajectories."""
    rewards = trajectory_rewards(group.samples, key)
    return statistics.pstdev(rewards) if len(rewards) > 1 else 0.0
