"""Completing one group: its samples are generated at the same time, and each is scored as soon as it can be.

Dynamic sampling, the rollout `fully_async` and evaluations run many groups at once, each through `GroupRunner.run`.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from slime_core.data.tokenizer import load_tokenizer
from slime_core.data.vision import processor_of
from slime_core.errors import ArgumentError, PluginError, SampleError, first_error
from slime_core.plugins.calls import DROPPED, Caller, Dropped
from slime_core.plugins.signatures import accepted_extras
from slime_core.rollout.rewards import Rewards, scores_groups
from slime_core.rollout.surroundings import Surroundings, surrounded_by
from slime_core.sample import Group, Sample, Status
from slime_core.token_arrays import kept, num_tokens
from slime_core.trajectories import as_one_trajectory, number_of, with_finished_segments
from slime_rollout_sglang.parameters import SamplingParameters, seed_of, text_parameters
from slime_rollout_sglang.partial import FINISHED, joined, mask_known, segments_of, times_continued, to_continue
from slime_rollout_sglang.requests import Requests, Session, Turns
from slime_rollout_sglang.sample_hooks import SampleHooks

if TYPE_CHECKING:
    from slime_rollout_sglang.arguments import RlRunArguments

logger = logging.getLogger(__name__)

GRACE_PERIOD = 5.0
"""Seconds that generate functions, rewards and aborts which have begun may still take when sampling is stopped."""

Result = TypeVar("Result")

_told_of_segments: set[str] = set()  # rewards of which `_tell_of_segments` has told


@dataclass(eq=False)
class GroupInProgress:
    """A group that is being completed, or has been.

    Attributes:
        number: how many groups were started before it.
        given: the group as the data source gave it, with prompt tokens; never changed.
        results: for each of its samples the segments of its trajectory; [] until its generate function has returned.
        generated_tokens: how many tokens the engine has generated for it in this rollout.
        is_new: whether a generate function was called for it in this rollout.
        lost: why it has no result ("generator", "reward", …), else None.
    """

    number: int
    given: Group
    results: list[list[Sample]] = field(init=False)
    generated_tokens: int = 0
    is_new: bool = False
    lost: str | None = None

    def __post_init__(self) -> None:
        self.results = [[] for _ in self.given]

    @property
    def samples(self) -> Group:
        """The results as one group."""
        return [sample for made in self.results for sample in made]


class GroupLost(Exception):
    """A sample failed for good, so its group has no result. The argument is the value of `GroupInProgress.lost`."""


class GroupRunner:
    """Generates and scores the samples of groups.

    Args:
        requests: the requests to the engine.
        generator: the generate function under its failure policy; see `slime_rollout_sglang.generators`.
        rewards: score the samples that are finished.
        parameters: how responses are sampled.
        seed: names the run and a sample of it. The seed of a sample follows from this and how often it was continued, so it does
            not depend on the order in which samples are finished.
        mask_earlier: whether tokens that were there before this rollout are left out of training.
        evaluation: whether evaluation sets are answered, as generate functions that ask for it are told.
        hooks: see, or change, finished samples before they are scored.

    Attributes:
        counts: of what was done to samples, as "cut_to_context".
    """

    def __init__(
        self,
        args: RlRunArguments,
        requests: Requests,
        generator: Caller,
        rewards: Rewards,
        parameters: SamplingParameters,
        seed: Callable[[Sample], tuple[object, ...]],
        mask_earlier: bool = False,
        evaluation: bool = False,
        hooks: SampleHooks | None = None,
    ) -> None:
        self._args, self._requests, self._generator, self._rewards = args, requests, generator, rewards
        self._parameters, self._seed, self._mask_earlier = parameters, seed, mask_earlier
        self._evaluation, self._hooks, self._hooks_turns = evaluation, hooks, Turns()
        self._wanted_extras = accepted_extras(generator.selected.target, ("engine", "evaluation"))
        self.counts = Counter[str]()

    def scores_whole_groups(self, sample: Sample) -> bool:
        """Whether the reward of a sample scores the whole group at once."""
        caller = self._rewards.caller(sample)
        return caller is not None and scores_groups(caller)

    async def run(self, group: GroupInProgress, generated: Callable[[], None] = lambda: None) -> None:
        """Generate and score the samples of a group. After `Requests.stop`, return with what there is by then.

        Args:
            generated: called once all samples have been generated, when rewards may still be missing.

        Raises:
            ExceptionGroup: of what the engine raised, or of the failure of a component whose policy is to end the run.
        """
        try:
            together = self.scores_whole_groups(group.given[0])
            waiting = set(range(len(group.given)))
            async with asyncio.TaskGroup() as tasks:
                for position in range(len(group.given)):
                    tasks.create_task(self._complete(group, position, waiting, generated, together))
            if together:
                await self._score(group.samples, group.samples, anew=self._args.group_rm and group.is_new)
        except* GroupLost as lost:
            group.lost = str(first_error(lost))

    async def _complete(
        self, group: GroupInProgress, position: int, waiting: set[int], generated: Callable[[], None], together: bool
    ) -> None:
        with ExitStack() as looked_at:  # until it is known whether all of the group are there
            made = await self._generated(group, position, looked_at)
            if made is None:
                return
            group.results[position] = made
            waiting.discard(position)
            if not waiting:
                generated()
        if not together:
            unscored = [one for one in made if one.reward is None]
            if len(made) > 1 and unscored:
                self._tell_of_segments(made)
            await self._score(unscored, made)

    async def _generated(self, group: GroupInProgress, position: int, looked_at: ExitStack) -> list[Sample] | None:
        """Generate one sample of a group, as far as it is not there yet. None: sampling was stopped before it could be.

        Args:
            looked_at: is left once the result is in the group.
        """
        given = group.given[position]
        earlier = segments_of(given)
        unfinished = to_continue(earlier) if earlier else copy.deepcopy(given)
        if unfinished is None:
            made = earlier
        else:
            group.is_new = True
            finished = [segment for segment in earlier if segment is not unfinished]
            generated_now = await self._unless_stopped(
                self._generate_and_hook(group, with_finished_segments(unfinished, finished), looked_at)
            )
            if generated_now is None:  # it holds the end of sampling up; what was there before is kept
                group.results[position] = earlier
                return None
            made = [with_finished_segments(one, []) for one in generated_now]
            made = joined(earlier, unfinished, made) if earlier else made
        if self._mask_earlier:
            for known in earlier:
                made = [mask_known(one, kept(known, "tokens")) for one in made]
        self._check_number(group, position, made)
        return made

    async def _generate_and_hook(self, group: GroupInProgress, sample: Sample, looked_at: ExitStack) -> list[Sample]:
        """Generate, and let the hooks see what is finished. What an abort has cut off they see once it is whole."""
        made = await self._generate(group, sample)
        if self._hooks is None:
            return made
        looked_at.enter_context(self._requests.hold.following_up())
        hooking = self._hooked(self._hooks, made)
        # Where nothing decides by their order, nobody waits for the hooks of others.
        return await (self._hooks_turns.take(hooking) if self._requests.hold.applies else hooking)

    async def _hooked(self, hooks: SampleHooks, made: list[Sample]) -> list[Sample]:
        hooked = []
        for one in made:
            left = await hooks.apply(one) if one.status in FINISHED else one
            if left is None:
                raise GroupLost("sample_hook")
            self._check(left)
            hooked.append(_untrained_if_empty(left))
        return hooked

    async def _generate(self, group: GroupInProgress, sample: Sample) -> list[Sample]:
        params = self._parameters.for_sample(sample, seed_of(*self._seed(sample), times_continued(sample)))
        if params["max_new_tokens"] < 1:
            return [_untrained_if_empty(sample.changed(status=Status.TRUNCATED))]
        if "engine" not in self._wanted_extras:
            params |= text_parameters(self._args)
            params["max_new_tokens"] = self._parameters.max_response_len  # what is there they take off it themselves
        session = self._session(sample)
        offered: dict[str, Any] = {"engine": session, "evaluation": self._evaluation}
        extras = {name: offered[name] for name in self._wanted_extras}
        result: Sample | list[Sample] | Dropped
        failed: Exception | None = None
        try:
            with self._surround(session, params["seed"]):
                result = await self._generator.call_async(self._args, sample, params, item=sample.name, **extras)
        except PluginError as error:
            result, failed = DROPPED, error
        finally:
            group.generated_tokens += session.generated
        if isinstance(result, Dropped):
            raise self._reason(session.failure, failed)
        made = result if isinstance(result, list) else [result]
        try:
            made = as_one_trajectory(sample, made)
        except SampleError as error:
            raise PluginError(
                f"The {self._generator.selected.label} returned segments that disagree. {error}"
            ) from None
        made = [self._within_context(one) for one in made]
        for one in made:
            self._check(one)
            session.note_turn(one)
        return [_untrained_if_empty(one) for one in made]

    def _check_number(self, group: GroupInProgress, position: int, made: list[Sample]) -> None:
        """Raise `PluginError` if what was made of one sample of a group has the number of another one's trajectory."""
        for other, segments in zip(group.given, group.results, strict=True):
            if segments and number_of(segments[0]) == number_of(made[0]) is not None:
                raise PluginError(
                    f"The {self._generator.selected.label} gave what it made of {other.name} and of "
                    f"{group.given[position].name} the same rollout_id {number_of(made[0])}; every sample that it is given is the "
                    "beginning of a trajectory of its own. Leave rollout_id as it is, or set sample.rollout_id = sample.index."
                )

    def _reason(self, engine_failed: Exception | None, generator_failed: Exception | None) -> Exception:
        """Return what to raise when there is no response.

        A failure of the engine is the fault of neither the generate function nor this prompt. That the engine refuses a
        request is, if the generate function is somebody's own.
        """
        if engine_failed is None or (
            isinstance(engine_failed, ArgumentError) and self._args.custom_generate_function_path
        ):
            return generator_failed or GroupLost("generator")
        return engine_failed

    def _decode(self, tokens: list[int], skip_special: bool) -> str:
        return str(load_tokenizer(self._args.hf_checkpoint).decode(tokens, skip_special_tokens=skip_special))

    def _within_context(self, made: Sample) -> Sample:
        """Cut a sample at the end of the context, if a generate function has gone on beyond it (with what a tool wrote)."""
        limit = self._parameters.max_context_len
        excess = num_tokens(made) - limit if limit is not None else 0
        if excess <= 0 or excess > made.response_length:
            return made
        if not self.counts["cut_to_context"]:
            logger.warning(
                "%s came back with %d tokens, more than the %d of --rollout-max-context-len or the model's context, and is cut "
                "there. Further ones are counted in the metric cut_to_context.",
                *(made.name, num_tokens(made), limit),
            )
        self.counts["cut_to_context"] += 1
        length = made.response_length - excess
        tokens = made.tokens[:limit]
        return made.changed(
            tokens=tokens,
            response_length=length,
            response=self._decode(tokens[len(tokens) - length :], self._args.rollout_skip_special_tokens),
            loss_mask=None if made.loss_mask is None else made.loss_mask[:length],
            rollout_log_probs=None if made.rollout_log_probs is None else made.rollout_log_probs[:length],
            weight_versions=made.weight_versions[:length],
            status=Status.TRUNCATED if made.status is Status.COMPLETED else made.status,
        )

    def _check(self, made: Sample) -> None:
        if made.status is Status.PENDING:
            raise PluginError(
                f"The {self._generator.selected.label} returned {made.name} with the status PENDING; expected COMPLETED, "
                "TRUNCATED, ABORTED or FAILED."
            )
        if made.status is Status.FAILED or (made.status is Status.ABORTED and not self._requests.stopped.is_set()):
            logger.warning("%s came back with the status %s; its group is dropped.", made.name, made.status.name)
            raise GroupLost(made.status.value)

    async def _score(self, samples: list[Sample], needed: list[Sample], anew: bool = False) -> None:
        """Score samples, if there are any without a reward and all that are `needed` for it are finished.

        Once sampling is stopped, rewards that have begun get `GRACE_PERIOD` seconds more, so that what goes back to the
        data source does not depend on the clock unless one hangs. The next rollout computes the others.

        Args:
            anew: score them whatever rewards a generate function has set, which the reward finds on them.
        """
        has_rewards = not anew and all(s.reward is not None for s in samples)
        if has_rewards or any(s.status not in FINISHED for s in needed):
            return
        with self._surround(self._session(samples[0], scores=True), seed_of(*self._seed(samples[0]), "reward")):
            scored = await self._unless_stopped(self._rewards.score(samples))
        if scored is False:
            raise GroupLost("reward")
        if scored is None and anew:
            for sample in samples:
                sample.reward = None

    def _tell_of_segments(self, made: list[Sample]) -> None:
        """Say once that a function is given one segment of a trajectory at a time, where slime gives it the list of them."""
        caller = self._rewards.caller(made[0])
        reward = caller.selected if caller is not None else None
        if reward is not None and reward.option == "--custom-rm-path" and reward.label not in _told_of_segments:
            _told_of_segments.add(reward.label)
            logger.warning(
                "The generate function returned %d samples for %s. The %s is called for each of them, where slime calls it once, with "
                "the list. If it needs them together, call its second parameter `samples`: it is then given all samples of a group, and "
                "those that were returned together have one rollout_id.",
                *(len(made), made[0].name, reward.label),
            )

    def _session(self, sample: Sample, scores: bool = False) -> Session:
        skip_special = self._args.rollout_skip_special_tokens
        processor = processor_of(self._args) if sample.images else None
        limit = self._parameters.max_context_len
        return Session(self._requests, sample, limit, self._decode, skip_special, processor, scores)

    def _surround(self, session: Session, seed: int) -> AbstractContextManager[None]:
        """Let what is called within reach the engine through this session; see `slime_core.rollout.surroundings`."""
        rewards, stopped = self._rewards, self._requests.stopped.is_set
        return surrounded_by(
            Surroundings(self._args, session, rewards, rewards.plugins, stopped, self._evaluation, seed, session.images)
        )

    async def _unless_stopped(self, work: Awaitable[Result]) -> Result | None:
        """Return the result of `work`, or None if sampling was stopped and the grace period has passed without one."""
        working = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._requests.stopped.wait())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await asyncio.wait({working}, timeout=GRACE_PERIOD)
            return working.result() if working.done() else None
        finally:
            for task in (working, stopped):
                task.cancel()
            await asyncio.gather(working, stopped, return_exceptions=True)


def _untrained_if_empty(sample: Sample) -> Sample:
    """Leave a finished sample without any response token out of training; its reward counts in its group all the same."""
    return sample.changed(remove_sample=True) if sample.status in FINISHED and not sample.response_length else sample
