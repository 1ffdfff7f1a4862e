"""The rollout function `sglang`: prompts from the data source, responses from an engine, rewards.

It works with any `slime_core.contracts.InferenceEngine`; `--rollout-engine` chooses one.
"""

from __future__ import annotations

import asyncio
from typing import Any

from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_core.plugins.calls import Caller, policies
from slime_core.reward import Rewards
from slime_core.sample import RolloutOutput
from slime_rollout_sglang.evaluation import evaluate
from slime_rollout_sglang.groups import GroupRunner, generator_caller
from slime_rollout_sglang.metrics import rollout_metrics
from slime_rollout_sglang.parameters import prompt_limit, rollout_parameters
from slime_rollout_sglang.partial import put_back
from slime_rollout_sglang.prompts import Prompts
from slime_rollout_sglang.requests import Requests
from slime_rollout_sglang.sampling import DynamicSampling


def generate_rollout(
    args: Any, rollout_id: int, data_source: Any, evaluation: bool = False, *, plugins: Plugins, engine: Any = None
) -> RolloutOutput:
    """`--rollout-batch-size` groups of scored responses or, for evaluation, answers to `--eval-prompt-data`.

    With one engine and one order of requests, two runs of the same seed give the same samples: the seed of a response
    follows from `--rollout-seed`, the sample's index and how often it was continued. Which groups pass a dynamic filter
    is another matter; see `slime_rollout_sglang.sampling`.

    Args:
        plugins: provides generator, rewards, filters.
        engine: generates.

    Raises:
        ArgumentError: there is no engine, or options contradict each other.
        DataError: prompts cannot be used.
        SampleError: too many groups failed.
        PluginError: a component failed whose policy is to end the run. What the engine raises comes as it is.
    """
    if engine is None:
        raise ArgumentError(
            "The rollout 'sglang' generates text, which needs an inference engine: add --rollout-engine local (and leave "
            "out --debug-train-only)."
        )
    if (args.over_sampling_batch_size or args.rollout_batch_size) < args.rollout_batch_size:
        raise ArgumentError(
            f"--over-sampling-batch-size is {args.over_sampling_batch_size}; expected at least --rollout-batch-size "
            f"{args.rollout_batch_size}."
        )
    if evaluation:
        return asyncio.run(evaluate(args, rollout_id, plugins, engine))
    return asyncio.run(roll_out(args, rollout_id, data_source, plugins, engine))


async def roll_out(args: Any, rollout_id: int, data_source: Any, plugins: Plugins, engine: Any) -> RolloutOutput:
    """One rollout, in the event loop of the caller. However it ends, nothing of it is running any more."""

    def chosen(kind: str, path: str | None) -> Caller | None:
        return Caller(plugins.select(kind, path), policies(args.failure_policy)[kind]) if path else None

    malformed_before = _malformed_rows(data_source)
    prompts = Prompts(args, *prompt_limit(args))
    requests = Requests(engine, f"rollout-{rollout_id}")
    rewards, generator = Rewards(args, plugins, args.reward_key), generator_caller(args, plugins)
    masks_earlier = args.partial_rollout and args.mask_offpolicy_in_partial_rollout
    runner = GroupRunner(
        *(args, requests, generator, rewards, rollout_parameters(args), (args.rollout_seed,)),
        mask_earlier=masks_earlier,
    )
    filter_groups = chosen("dynamic_filter", args.dynamic_sampling_filter_path)
    sampled = await DynamicSampling(args, data_source, prompts, runner, requests, filter_groups).sample()

    returned = [
        put_back(flight.group, flight.results, rollout_id, args.partial_rollout, masks_earlier)
        for flight in sampled.stopped
    ]
    data_source.add_samples(returned)
    groups = [flight.samples for flight in sampled.kept]
    metrics = rollout_metrics(args, sampled, returned)

    filter_samples = chosen("sample_filter", args.rollout_sample_filter_path)
    if filter_samples:
        filter_samples.call(args, groups, item=f"rollout {rollout_id}")
        metrics["removed_samples"] = float(sum(sample.remove_sample for group in groups for sample in group))
    process_all = chosen("all_samples_process", args.rollout_all_samples_process_path)
    if process_all:
        judged = sorted([*sampled.kept, *sampled.rejected], key=lambda flight: flight.number)
        process_all.call(args, [flight.samples for flight in judged], data_source, item=f"rollout {rollout_id}")

    prompts.counts["skipped_malformed"] += _malformed_rows(data_source) - malformed_before
    metrics |= {name: float(count) for name, count in prompts.counts.items() if count}
    own = generator if args.custom_generate_function_path else None
    for caller in (own, filter_groups, filter_samples, process_all):
        metrics |= caller.metrics() if caller else {}
    return RolloutOutput(groups, {**metrics, **rewards.metrics()})


def _malformed_rows(data_source: Any) -> int:
    """What the data source itself left out so far; one of somebody's own may not count."""
    return getattr(data_source, "counts", {}).get("malformed_rows", 0)
