"""The rollout function `sglang`: prompts from the data source, responses from an engine, rewards.

It works with any `slime_core.contracts.engine.InferenceEngine`; `--rollout-engine` chooses one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from slime_core.contracts.data import malformed_rows
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_core.plugins.calls import Caller, policies
from slime_core.rollout.components import RolloutComponents
from slime_core.rollout.rewards import Rewards
from slime_core.sample import Group, RolloutOutput
from slime_rollout_sglang.evaluation import evaluate
from slime_rollout_sglang.groups import Flight, GroupRunner, generator_caller
from slime_rollout_sglang.metrics import rollout_metrics
from slime_rollout_sglang.parameters import prompt_limit, rollout_parameters
from slime_rollout_sglang.partial import put_back
from slime_rollout_sglang.prompts import Prompts
from slime_rollout_sglang.requests import Requests
from slime_rollout_sglang.sampling import DynamicSampling, Sampled


def generate_rollout(
    args: Any,
    rollout_id: int,
    data_source: Any,
    evaluation: bool = False,
    *,
    components: RolloutComponents,
    plugins: Plugins,
    engine: Any = None,
) -> RolloutOutput:
    """`--rollout-batch-size` groups of scored responses or, for evaluation, answers to `--eval-prompt-data`.

    With one engine and one order of requests, two runs of the same seed give the same samples: the seed of a response
    follows from `--rollout-seed`, the sample's index and how often it was continued. Which groups pass a dynamic filter
    is another matter; see `slime_rollout_sglang.sampling`.

    Args:
        components: generator, rewards and filters of the run.
        plugins: provides the rewards that rows name.
        engine: generates.

    Raises:
        ArgumentError: there is no engine, or options contradict each other.
        DataError: prompts cannot be used.
        SampleError: too many groups failed.
        PluginError: a component failed whose policy is to end the run. What the engine raises comes as it is.
    """
    require_engine(engine, "rl")
    if (args.over_sampling_batch_size or args.rollout_batch_size) < args.rollout_batch_size:
        raise ArgumentError(
            f"--over-sampling-batch-size is {args.over_sampling_batch_size}; expected at least --rollout-batch-size "
            f"{args.rollout_batch_size}."
        )
    if evaluation:
        return asyncio.run(evaluate(args, rollout_id, components, plugins, engine))
    return asyncio.run(roll_out(args, rollout_id, data_source, components, plugins, engine))


def require_engine(engine: Any, name: str) -> None:
    """Raise `ArgumentError` if the rollout function of this name has no engine to generate with."""
    if engine is None:
        raise ArgumentError(
            f"The rollout {name!r} generates text, which needs an inference engine: add --rollout-engine local (and leave "
            "out --debug-train-only)."
        )


async def roll_out(
    args: Any, rollout_id: int, data_source: Any, components: RolloutComponents, plugins: Plugins, engine: Any
) -> RolloutOutput:
    """One rollout, in the event loop of the caller. However it ends, nothing of it is running any more."""
    line = Line(args, data_source, components, plugins, engine, f"rollout-{rollout_id}")
    sampled = await DynamicSampling(args, data_source, line.prompts, line.runner, line.requests, line.filter).sample()
    returned = [line.given_back(flight, rollout_id) for flight in sampled.stopped]
    data_source.add_samples(returned)
    return line.output(rollout_id, sampled, returned)


class Line:
    """What prompts go through until they are the samples of a rollout, for one rollout or many.

    Args:
        name: begins the name of every request.

    Attributes:
        prompts, requests, runner, filter: the stages of sampling; `filter` is the dynamic filter, if one is chosen.
    """

    def __init__(
        self,
        args: Any,
        data_source: Any,
        components: RolloutComponents,
        plugins: Plugins,
        engine: Any,
        name: str,
    ) -> None:
        def chosen(kind: str) -> Caller | None:
            selected = components.further.get(kind)
            return Caller(selected, policies(args.failure_policy)[kind]) if selected is not None else None

        self._args, self._data_source = args, data_source
        self._malformed, self._told = malformed_rows(data_source), Counter[str]()
        self._masks_earlier = args.partial_rollout and args.mask_offpolicy_in_partial_rollout
        self.prompts = Prompts(args, *prompt_limit(args))
        self.requests = Requests(engine, name)
        generator = generator_caller(args, components, plugins)
        self._rewards = Rewards(args, plugins, components.further.get("reward"), args.reward_key)
        self.runner = GroupRunner(
            *(args, self.requests, generator, self._rewards, rollout_parameters(args), (args.rollout_seed,)),
            mask_earlier=self._masks_earlier,
        )
        self.filter = chosen("dynamic_filter")
        self._filter_samples = chosen("sample_filter")
        self._process_all = chosen("all_samples_process")
        own = generator if args.custom_generate_function_path else None
        callers = (own, self.filter, self._filter_samples, self._process_all)
        self._callers = [caller for caller in callers if caller]

    def given_back(self, flight: Flight, rollout_id: int) -> Group:
        """A group that is not finished, as the data source gets it back."""
        return put_back(flight.group, flight.results, rollout_id, self._args.partial_rollout, self._masks_earlier)

    def output(self, rollout_id: int, sampled: Sampled, returned: Sequence[Group] = ()) -> RolloutOutput:
        """What a rollout function returns, once the filters of whole rollouts have seen it.

        Args:
            sampled, returned: see `rollout_metrics`.
        """
        args = self._args
        groups = [flight.samples for flight in sampled.kept]
        trained_version = None if args.debug_rollout_only else rollout_id  # rollout n trains version n
        metrics = rollout_metrics(args, sampled, returned, trained_version)
        metrics |= getattr(self.requests.engine, "take_metrics", dict)()  # what an engine knows of its own work
        if self._filter_samples:
            self._filter_samples.call(args, groups, item=f"rollout {rollout_id}")
            metrics["removed_samples"] = float(sum(sample.remove_sample for group in groups for sample in group))
        if self._process_all:
            judged = sorted([*sampled.kept, *sampled.rejected], key=lambda flight: flight.number)
            self._process_all.call(
                args, [flight.samples for flight in judged], self._data_source, item=f"rollout {rollout_id}"
            )
        return RolloutOutput(groups, {**metrics, **self._counts()})

    def _counts(self) -> dict[str, float]:
        """What was left out and what failed since the last rollout."""
        malformed = malformed_rows(self._data_source)
        self.prompts.counts["skipped_malformed"] += malformed - self._malformed
        self._malformed = malformed
        calls = [caller.metrics() for caller in self._callers] + [self._rewards.metrics()]
        total = Counter({**self.prompts.counts, **{name: n for found in calls for name, n in found.items()}})
        new = {name: float(n - self._told[name]) for name, n in total.items()}
        self._told = total
        return {name: n for name, n in new.items() if n or name not in self.prompts.counts}
