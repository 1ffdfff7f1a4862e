"""`RolloutPipeline`: the stages that prompts go through until they are the samples of a rollout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from slime_core.contracts.data import malformed_rows
from slime_core.contracts.engine import TakesMetrics
from slime_core.plugins.calls import Caller, policies
from slime_core.rollout.rewards import Rewards
from slime_core.sample import Group, RolloutOutput
from slime_rollout_sglang.asked_metrics import asked_metrics
from slime_rollout_sglang.generators import generator_caller
from slime_rollout_sglang.groups import GroupInProgress, GroupRunner
from slime_rollout_sglang.metrics import rollout_metrics
from slime_rollout_sglang.parameters import prompt_limit, rollout_parameters
from slime_rollout_sglang.partial import put_back
from slime_rollout_sglang.prompts import PromptTokenizer
from slime_rollout_sglang.requests import Requests
from slime_rollout_sglang.sample_hooks import SampleHooks
from slime_rollout_sglang.sampling import Sampled

if TYPE_CHECKING:
    from slime_core.contracts.data import DataSource
    from slime_core.contracts.engine import InferenceEngine
    from slime_core.plugins import Plugins
    from slime_core.rollout.components import RolloutComponents
    from slime_rollout_sglang.arguments import RlRunArguments


class RolloutPipeline:
    """The stages of sampling with the components of a run, for one rollout or for many.

    Args:
        components: the generate function, reward and filters of the run.
        plugins: provides the rewards that rows name.
        name: the beginning of the name of every request.

    Attributes:
        prompts: gives groups their prompt tokens.
        requests: the requests to the engine.
        runner: generates and scores groups.
        hooks: see samples before they are scored.
        filter: the dynamic filter, if one is chosen.
    """

    def __init__(
        self,
        args: RlRunArguments,
        data_source: DataSource,
        components: RolloutComponents,
        plugins: Plugins,
        engine: InferenceEngine,
        name: str,
    ) -> None:
        def chosen(kind: str) -> Caller | None:
            selected = components.further.get(kind)
            return Caller(selected, policies(args.failure_policy)[kind]) if selected is not None else None

        self._args, self._data_source = args, data_source
        self._masks_earlier = args.partial_rollout and args.mask_offpolicy_in_partial_rollout
        self.prompts = PromptTokenizer(args, *prompt_limit(args))
        self.requests = Requests(args, engine, name)
        self.hooks = SampleHooks(args, components, evaluation=False)
        generator = generator_caller(args, components, plugins, args.reward_key)
        self._rewards = Rewards(args, plugins, components.further.get("reward"), args.reward_key)
        self.runner = GroupRunner(
            *(args, self.requests, generator, self._rewards, rollout_parameters(args)),
            seed=lambda sample: (args.rollout_seed, sample.index),
            mask_earlier=self._masks_earlier,
            hooks=self.hooks,
        )
        self.filter = chosen("dynamic_filter")
        self._filter_samples = chosen("sample_filter")
        self._process_all = chosen("all_samples_process")
        custom = generator if args.custom_generate_function_path else None
        callers = (custom, self.filter, self._filter_samples, self._process_all)
        self._callers = [*(caller for caller in callers if caller), *self.hooks.callers]
        self._malformed = malformed_rows(data_source)
        self._reported = Counter[str]()  # the counts that earlier rollouts were given

    def put_back(self, group: GroupInProgress, rollout_id: int) -> Group:
        """Return a group that was stopped in the form in which it goes back to the data source."""
        return put_back(group.given, group.results, rollout_id, self._args.partial_rollout, self._masks_earlier)

    def output(self, rollout_id: int, sampled: Sampled, returned: Sequence[Group] = ()) -> RolloutOutput:
        """Return what a rollout function returns, once the filters of whole rollouts have seen it.

        Args:
            sampled: how sampling ended.
            returned: for each group of `sampled.stopped`, what went back to the data source.
        """
        args, engine = self._args, self.requests.engine
        groups = [group.samples for group in sampled.kept]
        trained_version = None if args.debug_rollout_only else rollout_id  # rollout n trains version n
        metrics = {**rollout_metrics(args, sampled, returned, trained_version), **asked_metrics(args, groups)}
        if isinstance(engine, TakesMetrics):
            metrics |= engine.take_metrics()
        if self._filter_samples:
            self._filter_samples.call(args, groups, item=f"rollout {rollout_id}")
            metrics["removed_samples"] = float(sum(sample.remove_sample for group in groups for sample in group))
        if self._process_all:
            judged = sorted([*sampled.kept, *sampled.rejected], key=lambda group: group.number)
            self._process_all.call(
                args, [group.samples for group in judged], self._data_source, item=f"rollout {rollout_id}"
            )
        return RolloutOutput(groups, {**metrics, **self._new_counts()})

    def _new_counts(self) -> dict[str, float]:
        """Return how many prompts were left out and how many calls failed since the last rollout."""
        malformed = malformed_rows(self._data_source)
        self.prompts.counts["skipped_malformed"] += malformed - self._malformed
        self._malformed = malformed
        calls = [caller.metrics() for caller in self._callers] + [self._rewards.metrics()]
        total = Counter(
            {**self.prompts.counts, **self.runner.counts, **{name: n for found in calls for name, n in found.items()}}
        )
        new = {name: float(n - self._reported[name]) for name, n in total.items()}
        self._reported = total
        return {
            name: n
            for name, n in new.items()
            if n or (name not in self.prompts.counts and name not in self.runner.counts)
        }
