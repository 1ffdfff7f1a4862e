"""`async_rm` and `batched_async_rm` of `slime.rollout.rm_hub`: samples are scored as the rollout would score them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any

from slime_compat.grading import plugins
from slime_core.errors import PluginError
from slime_core.plugins.calls import Dropped
from slime_core.rollout.rewards import Rewards, score
from slime_core.rollout.surroundings import current
from slime_core.sample import Sample


async def async_rm(args: Any, sample: Sample, **kwargs: Any) -> Any:
    """Return the reward of a sample: of its own `custom_rm_path` or `--custom-rm-path`, or else of the `rm_type` in its
    metadata or `--rm-type`. Called under the run's failure policy for rewards.

    Args:
        args: the run's arguments, which the caller may have changed.
        kwargs: are passed on to the function of `custom_rm_path`.

    Raises:
        PluginError: the reward failed, or none is chosen.
    """
    own = getattr(sample, "custom_rm_path", None)
    if own or (kwargs and args.custom_rm_path):
        return await _called(own or args.custom_rm_path, args, sample, kwargs)
    (reward,) = await _scored(args, [sample])
    return reward


async def batched_async_rm(args: Any, samples: list[Sample], **kwargs: Any) -> list[Any]:
    """Return the rewards of samples. A function of `--custom-rm-path` is called once, with all of them, as in slime."""
    if args.custom_rm_path:
        rewards: list[Any] = await _called(args.custom_rm_path, args, samples, kwargs)
        return rewards
    return list(await asyncio.gather(*(async_rm(args, sample, **kwargs) for sample in samples)))


async def remote_rm(args: Any, sample: Sample, max_retries: int = 10) -> Any:
    """Return what the service at `--rm-url` answers, by the reward `remote_rm`; `--rm-patience` says how long it is waited for."""
    scored = plugins().select("reward", "remote_rm")(args, sample)
    return await scored if inspect.isawaitable(scored) else scored


async def _called(path: str, args: Any, scored: Any, kwargs: dict[str, Any]) -> Any:
    from slime_compat.functions import load_function

    result = load_function(path)(args, scored, **kwargs)
    return await result if inspect.isawaitable(result) else result


async def _scored(args: Any, samples: Sequence[Sample]) -> list[Any]:
    """Score samples by the rollout's own rewards or, where the caller has changed which one is chosen, by that."""
    surroundings = current()
    chosen = (args.custom_rm_path, args.rm_type)
    own = surroundings is not None and chosen == (surroundings.args.custom_rm_path, surroundings.args.rm_type)
    if surroundings is not None and own:
        rewards = surroundings.rewards
    else:
        name, option = (chosen[0], "--custom-rm-path") if chosen[0] else (chosen[1], "--rm-type")
        selected = plugins().select("reward", name, option) if name else None
        rewards = Rewards(args, plugins(), selected, None)
    found = []
    for sample in samples:
        caller = rewards.caller(sample)
        if caller is None:
            raise PluginError(
                f"Nothing scores {sample.name}: choose a reward with --rm-type or --custom-rm-path, or name one in the row's "
                'metadata as "rm_type".'
            )
        given = await score(caller, args, [sample])
        if isinstance(given, Dropped):
            raise PluginError(f"{sample.name} could not be scored; the warning above says why.")
        found += given
    return found
