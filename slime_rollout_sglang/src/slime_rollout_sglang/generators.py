"""The generate function of a run, ready to be called: under its failure policy, and each attempt on a copy of the sample."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from slime_core.contracts.kind import FailurePolicy
from slime_core.contracts.results import is_finite_number, shown
from slime_core.contracts.reward import check_reward_key
from slime_core.plugins.calls import Caller, policies
from slime_core.sample import misaligned

if TYPE_CHECKING:
    from slime_core.plugins import Plugins
    from slime_core.rollout.components import RolloutComponents
    from slime_core.sample import Sample
    from slime_rollout_sglang.arguments import RlRunArguments


def generator_caller(args: RlRunArguments, components: RolloutComponents, plugins: Plugins, key: str | None) -> Caller:
    """Return the generate function that `--custom-generate-function-path` chooses, or that of a single turn.

    The former is under the failure policy of its kind. The latter fails only when the engine does, so it is never retried.

    Args:
        key: which number of a reward that is a dict is used. Rewards that the function sets itself are held to it.
    """

    def check(result: Any, given: tuple[Any, ...]) -> str | None:
        rewards = [sample.reward for sample in (result if isinstance(result, list) else [result])]
        for sample in result if isinstance(result, list) else [result]:
            if problem := misaligned(sample):
                return f"a bad {sample.name}: {problem}"
        wrong = next((r for r in rewards if not (r is None or isinstance(r, dict) or is_finite_number(r))), None)
        return (
            f"the reward {shown(wrong)}; expected a finite number"
            if wrong is not None
            else check_reward_key(rewards, key)
        )

    chosen = components.further.get("generator")
    selected = chosen or plugins.select("generator", "single_turn")
    policy = policies(args.failure_policy)["generator"] if chosen else FailurePolicy()
    return Caller(replace(selected, target=_on_a_copy(selected.target), further_check=check), policy)


def _on_a_copy(target: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a generate function, plain or async, so that what it changes is not seen by another attempt."""

    def called(args: RlRunArguments, sample: Sample, sampling_params: dict[str, Any], **extras: Any) -> Any:
        return target(args, copy.deepcopy(sample), dict(sampling_params), **extras)

    async def awaited(args: RlRunArguments, sample: Sample, sampling_params: dict[str, Any], **extras: Any) -> Any:
        return await called(args, sample, sampling_params, **extras)

    return functools.wraps(target)(awaited if inspect.iscoroutinefunction(target) else called)
