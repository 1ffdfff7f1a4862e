"""The rollout function `rl`: prompts from the data source, responses from an engine, rewards.

It works with any `slime_core.contracts.engine.InferenceEngine`; `--rollout-engine` chooses one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from slime_core.errors import ArgumentError
from slime_core.rollout.checks import needs_an_engine
from slime_core.sample import RolloutOutput
from slime_rollout_sglang.evaluation import evaluate
from slime_rollout_sglang.pipeline import RolloutPipeline
from slime_rollout_sglang.sampling import DynamicSampling

if TYPE_CHECKING:
    from slime_core.contracts.data import DataSource
    from slime_core.contracts.engine import InferenceEngine
    from slime_core.plugins import Plugins
    from slime_core.rollout.components import RolloutComponents
    from slime_rollout_sglang.arguments import RlRunArguments


def generate_rollout(
    args: RlRunArguments,
    rollout_id: int,
    data_source: DataSource,
    evaluation: bool = False,
    *,
    components: RolloutComponents,
    plugins: Plugins,
    engine: InferenceEngine | None = None,
) -> RolloutOutput:
    """Return `--rollout-batch-size` groups of scored responses or, for evaluation, answers to `--eval-prompt-data`.

    With one engine and one order of requests, two runs of the same seed give the same samples: the seed of a response
    follows from `--rollout-seed`, the sample's index and how often it was continued. Which groups pass a dynamic filter
    may depend on timing, as `slime_rollout_sglang.sampling` explains.

    Args:
        components: the generate function, reward and filters of the run.
        plugins: provides the rewards that rows name.
        engine: generates the responses.

    Raises:
        ArgumentError: there is no engine, or options contradict each other.
        DataError: prompts cannot be used.
        SampleError: too many groups failed.
        PluginError: a component failed whose policy is to end the run. What the engine raises comes as it is.
    """
    engine = require_engine(args, engine, "rl")
    if (args.over_sampling_batch_size or args.rollout_batch_size) < args.rollout_batch_size:
        raise ArgumentError(
            f"--over-sampling-batch-size is {args.over_sampling_batch_size}; expected at least --rollout-batch-size "
            f"{args.rollout_batch_size}."
        )
    if evaluation:
        return asyncio.run(evaluate(args, rollout_id, components, plugins, engine))
    return asyncio.run(roll_out(args, rollout_id, data_source, components, plugins, engine))


def require_engine(args: RlRunArguments, engine: InferenceEngine | None, name: str) -> InferenceEngine:
    """Return the engine.

    Args:
        name: the name of the rollout function that generates with it.

    Raises:
        ArgumentError: there is none.
    """
    if engine is None:
        raise ArgumentError(needs_an_engine(f"The rollout {name!r} generates text, which", args))
    return engine


async def roll_out(
    args: RlRunArguments,
    rollout_id: int,
    data_source: DataSource,
    components: RolloutComponents,
    plugins: Plugins,
    engine: InferenceEngine,
) -> RolloutOutput:
    """Make one rollout in the event loop of the caller. However it ends, nothing of it is running any more then."""
    pipeline = RolloutPipeline(args, data_source, components, plugins, engine, f"rollout-{rollout_id}")
    pipeline.hooks.rollout_id = rollout_id
    sampling = DynamicSampling(args, data_source, pipeline.prompts, pipeline.runner, pipeline.requests, pipeline.filter)
    sampled = await sampling.sample()
    returned = [pipeline.put_back(group, rollout_id) for group in sampled.stopped]
    data_source.add_samples(returned)
    return pipeline.output(rollout_id, sampled, returned)
