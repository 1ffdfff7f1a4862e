"""The components that a rollout calls, chosen from the arguments. Called when a run is planned and, in a cluster, in the
rollout worker's process."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.arguments.further import choose_further
from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
from slime_core.contracts.data import DataSource
from slime_core.contracts.engine import InferenceEngine
from slime_core.contracts.rollout import EngineUse
from slime_core.data.quantised_checkpoints import quantised_checkpoint
from slime_core.plugins import Plugins, Selected
from slime_core.sample import Group, RolloutOutput, Sample


@dataclass(frozen=True)
class RolloutComponents:
    """What the rollout worker calls.

    Attributes:
        rollout, eval_rollout: the rollout functions.
        data_source, buffer_pop: where prompts come from, and how groups leave its buffer.
        sample_converter, reward_post_process: None unless chosen.
        sample_hooks: what sees every sample before it is scored, in this order.
        further: those of other kinds that the rollout functions read the options of, by kind: rewards, filters, loss masks.
        engine: None without one.
        quantised: `--hf-checkpoint`, if it is quantised and there is an engine that serves it.
    """

    rollout: Selected[RolloutOutput]
    eval_rollout: Selected[RolloutOutput]
    data_source: Selected[DataSource]
    buffer_pop: Selected[list[Group]]
    sample_converter: Selected[dict[str, list[Any]]] | None = None
    reward_post_process: Selected[tuple[list[float], list[float]]] | None = None
    sample_hooks: tuple[Selected[Sample | None], ...] = ()
    further: Mapping[str, Selected[Any]] = field(default_factory=dict)
    engine: Selected[InferenceEngine] | None = None
    quantised: QuantisedCheckpoint | None = None

    @property
    def engine_use(self) -> EngineUse:
        """When the rollout function generates with the engine, and so needs the newest weights: one that names the
        parameter `engine` always, unless `slime_core.contracts.rollout.uses_engine` says otherwise."""
        if self.engine is None:
            return "never"
        return declared_engine_use(self.rollout)

    @property
    def works_in_background(self) -> bool:
        """Whether the rollout function goes on generating between its calls; see `slime_core.contracts.rollout.Background`."""
        return "background" in _parameters(self.rollout)

    def open_data(self, args: RunArguments) -> DataSource:
        """Make the data source, which is at its beginning then."""
        return self.data_source.bind(buffer_pop=self.buffer_pop)(args)


def choose_rollout_components(args: RunArguments, plugins: Plugins) -> RolloutComponents:
    """Select what a rollout calls, but for the engine, whose import may take seconds; see `with_engine`.

    Raises:
        PluginError: a component is missing, or does not fit.
    """
    rollout = plugins.select("rollout", args.rollout_function_path)
    eval_rollout = plugins.select(
        "rollout", args.eval_function_path or args.rollout_function_path, "--eval-function-path"
    )
    data_source = plugins.select("data_source", args.data_source_path)
    converter = args.custom_convert_samples_to_train_data_path
    post_process = None if args.disable_compute_advantages_and_returns else args.custom_reward_post_process_path
    return RolloutComponents(
        rollout,
        eval_rollout,
        data_source,
        buffer_pop=plugins.select("buffer_pop", args.buffer_filter_path),
        sample_converter=plugins.select("sample_converter", converter) if converter else None,
        reward_post_process=plugins.select("reward_post_process", post_process) if post_process else None,
        sample_hooks=tuple(plugins.select("sample_hook", path) for path in args.rollout_sample_hook_path),
        further=choose_further(args, plugins, (rollout, eval_rollout, data_source)),
    )


def with_engine(components: RolloutComponents, args: RunArguments, plugins: Plugins) -> RolloutComponents:
    """Select the inference engine too, if the run starts one."""
    if not args.rollout_engine or args.debug_train_only:
        return components
    quantised = quantised_checkpoint(args.hf_checkpoint, plugins)
    engine = plugins.select("engine", args.rollout_engine).bind(quantised=quantised)
    return replace(components, engine=engine, quantised=quantised)


def declared_engine_use(rollout: Selected[Any]) -> EngineUse:
    """When a rollout function generates with an engine: what it declares, or else always if it names the parameter `engine`."""
    declared: EngineUse | None = getattr(rollout.target, "slime_engine_use", None)
    return declared or ("always" if "engine" in _parameters(rollout) else "never")


def _parameters(selected: Selected[Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(selected.target).parameters
