"""`generate`, `generate_and_rm` and `generate_and_rm_group` of `slime.rollout.sglang_rollout`, for functions that do something
around them. Each belongs to the sample whose generate function calls it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

from slime_compat.functions import load_function
from slime_compat.requests import engine_params
from slime_compat.scoring import async_rm, batched_async_rm
from slime_core.data.prompts import read_prompt
from slime_core.data.tokenizer import load_tokenizer
from slime_core.data.vision import processor_of
from slime_core.errors import ArgumentError
from slime_core.rollout.surroundings import current
from slime_core.sample import Sample, Status

logger = logging.getLogger(__name__)

_told: set[str] = set()  # the names of models that were asked for
_FINISHED = (Status.COMPLETED, Status.TRUNCATED)


async def generate(args: Any, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """Complete a sample with one response to its prompt, by the run's generator `single_turn`.

    Args:
        sampling_params: as in slime, `max_new_tokens` bounds the whole response: what there is of it is taken off.

    Raises:
        ArgumentError: nobody generates: this was called outside of generate functions and rewards.
        DataError: the sample has no tokens, and its prompt cannot be read.
    """
    surroundings = current()
    if surroundings is None:
        raise ArgumentError(
            "slime.rollout.sglang_rollout.generate asks the run's engine, which generate functions and rewards can do while "
            "they are called; not filters, other hooks or threads of your own."
        )
    params = {"seed": surroundings.seed, **engine_params(sampling_params)}
    if not sample.tokens:
        run = surroundings.args
        processor = processor_of(run) if sample.images else None
        sample.tokens = read_prompt(sample, load_tokenizer(run.hf_checkpoint), run, False, processor).tokens
    params["max_new_tokens"] -= sample.response_length
    if params["max_new_tokens"] < 1:
        return sample.changed(status=Status.TRUNCATED)
    single_turn = surroundings.plugins.select("generator", "single_turn")
    completed: Sample = await surroundings.in_loop(single_turn(args, sample, params, engine=surroundings.engine))
    return completed


async def generate_and_rm(
    args: Any, sample: Sample | list[Sample], sampling_params: dict[str, Any], evaluation: bool = False
) -> Sample | list[Sample]:
    """Complete and score a sample, by the generate function of its own `generate_function_path` or of
    `--custom-generate-function-path`, or else by `generate`. A sample that is finished is returned as it is."""
    if isinstance(sample, Sample) and sample.status in _FINISHED:
        return sample
    surroundings = current()
    if isinstance(sample, Sample) and surroundings is not None and surroundings.stopped():
        return sample.changed(status=Status.ABORTED)
    path = getattr(sample, "generate_function_path", None) or args.custom_generate_function_path
    function: Any = load_function(path) if path else generate
    extras = {"evaluation": evaluation} if "evaluation" in inspect.signature(function).parameters else {}
    made: Sample | list[Sample] = await function(args, sample, sampling_params, **extras)
    if getattr(args, "group_rm", False):
        return made
    samples = made if isinstance(made, list) else [made]
    if any(one.status is Status.ABORTED for one in samples):
        return made
    missing = [one for one in samples if one.reward is None]
    if isinstance(made, Sample):
        for one in missing:
            one.reward = await async_rm(args, one)
    elif missing:
        for one, reward in zip(missing, await batched_async_rm(args, missing), strict=True):
            one.reward = reward
    return made


async def generate_and_rm_group(
    args: Any, group: list[Sample], sampling_params: dict[str, Any], evaluation: bool = False
) -> list[Any]:
    """Complete and score the samples of a group at the same time."""
    made = await asyncio.gather(
        *(generate_and_rm(args, sample, dict(sampling_params), evaluation=evaluation) for sample in group)
    )
    return list(made)


def get_model_url(args: Any, model_name: str, endpoint: str = "/generate") -> str:
    """Return the URL of a model: the run's own, as slime does for a name that it does not know. Other models have no server
    here."""
    if model_name not in _told:
        _told.add(model_name)
        logger.warning("get_model_url(%r): there is one model here, that of the run, which answers.", model_name)
    return f"http://{args.sglang_router_ip}:{args.sglang_router_port}{endpoint}"
