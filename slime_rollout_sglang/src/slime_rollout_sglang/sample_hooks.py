"""The functions of `--rollout-sample-hook-path`: each sees, or changes, every finished sample before it is scored. Called by
`slime_rollout_sglang.groups`."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from slime_core.plugins.calls import Caller, Dropped, policies
from slime_core.plugins.signatures import accepted_extras
from slime_core.sample import misaligned
from slime_core.trajectories import as_one_trajectory

if TYPE_CHECKING:
    from slime_core.rollout.components import RolloutComponents
    from slime_core.sample import Sample
    from slime_rollout_sglang.arguments import RlRunArguments


class SampleHooks:
    """The hooks of a run, under their failure policy.

    Attributes:
        rollout_id: the rollout, or the one after which an evaluation is made, that hooks are told which ask for it; None: not
            known.
    """

    def __init__(self, args: RlRunArguments, components: RolloutComponents, evaluation: bool) -> None:
        policy = policies(args.failure_policy)["sample_hook"]
        self.rollout_id: int | None = None
        self.callers = [
            Caller(replace(h, target=_on_a_copy(h.target), further_check=_check), policy)
            for h in components.sample_hooks
        ]
        self._args, self._evaluation = args, evaluation

    async def apply(self, sample: Sample) -> Sample | None:
        """Return what the hooks leave of a sample, one after the other; None if one of them failed and is to be dropped."""
        for caller in self.callers:
            offered: dict[str, Any] = {"rollout_id": self.rollout_id, "evaluation": self._evaluation}
            extras = {
                name: offered[name] for name in accepted_extras(caller.selected.target, tuple(offered), whole=True)
            }
            made: Sample | Dropped = await caller.call_async(self._args, sample, item=sample.name, **extras)
            if isinstance(made, Dropped):
                return None
            (sample,) = as_one_trajectory(sample, [made])
        return sample


def _check(result: Sample, given: tuple[Any, ...]) -> str | None:
    problem = misaligned(result)
    return f"a bad {result.name}: {problem}" if problem else None


def _on_a_copy(target: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a hook, plain or async, so that another attempt begins with the sample as it was; it returns the copy that was changed
    in place, where the hook returns none."""

    async def finished(own: Sample, making: Awaitable[Any]) -> Any:
        made = await making
        return own if made is None else made

    @functools.wraps(target)
    def called(args: RlRunArguments, sample: Sample, **extras: Any) -> Any:
        own = copy.deepcopy(sample)
        made = target(args, own, **extras)
        if inspect.isawaitable(made):
            return finished(own, made)
        return own if made is None else made

    return called
