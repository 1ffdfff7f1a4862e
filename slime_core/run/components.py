"""All components of a run, each selected once. Called when a run is planned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.arguments.namespace import Namespace
from slime_core.contracts.tracker import Tracker
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins, Selected
from slime_core.rollout.components import RolloutComponents, choose_rollout_components, with_engine
from slime_core.training.components import TrainComponents, choose_train_components


@dataclass(frozen=True)
class Components:
    """Everything that the arguments of a run choose.

    Attributes:
        rollouts, training: what the two workers call.
        trackers: the chosen ones, besides the console and `metrics.jsonl`.
        rollout_log, eval_rollout_log: somebody's own logging, None unless chosen.
    """

    rollouts: RolloutComponents
    training: TrainComponents
    trackers: Sequence[Selected[Tracker]] = ()
    rollout_log: Selected[bool | None] | None = None
    eval_rollout_log: Selected[bool | None] | None = None

    def roles(self) -> Iterator[tuple[str, Selected[Any]]]:
        """Yield (role in this run, such as "eval rollout", component) for every chosen component."""
        for part in (self.rollouts, self.training, self):
            for field in fields(part):
                value = getattr(part, field.name)
                if isinstance(value, Selected):
                    yield field.name.replace("_", " "), value
                elif field.name == "sample_hooks":
                    yield from (("sample hook", hook) for hook in value)
                elif field.name == "further":
                    yield from ((kind.replace("_", " "), component) for kind, component in value.items())
        yield from ((f"tracker {tracker.name}", tracker) for tracker in self.trackers)


def choose_components(args: RunArguments, namespace: Namespace, plugins: Plugins) -> Components:
    """Select every component. What takes seconds to import comes last, so that no mistake elsewhere has to wait for it.

    Raises:
        PluginError: a component is missing, cannot be imported, or does not keep its contract.
    """
    rollouts = choose_rollout_components(args, plugins)
    log, eval_log = args.custom_rollout_log_function_path, args.custom_eval_rollout_log_function_path
    trackers = [plugins.select("tracker", name) for name in _tracker_names(args, namespace, plugins)]
    return Components(
        trackers=trackers,
        rollout_log=plugins.select("rollout_log", log) if log else None,
        eval_rollout_log=plugins.select("eval_rollout_log", eval_log) if eval_log else None,
        training=choose_train_components(args, plugins),
        rollouts=with_engine(rollouts, args, plugins),
    )


def _tracker_names(args: RunArguments, namespace: Namespace, plugins: Plugins) -> list[str]:
    """Trackers chosen by their own `--use-NAME` flag or by `--tracker NAME`, each once."""
    installed = plugins.components("tracker")
    flags = [name for name in installed if getattr(args, f"use_{name}", False)]
    names = [*flags, *(name for name in args.tracker if name not in flags)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ArgumentError(f"--tracker names {', '.join(sorted(twice))} twice.")
    return names
