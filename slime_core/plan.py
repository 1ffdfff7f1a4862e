"""From arguments to the components of a run: chosen, imported and checked, with nothing heavy loaded yet.

`slime check` prints a plan and stops; `slime train` makes the same plan and starts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slime_core.arguments.resolve import Resolved, with_data_length, without_effect
from slime_core.cluster.layout import Layout, make_layout
from slime_core.contracts import DataSource
from slime_core.data import UNKNOWN_LENGTH
from slime_core.errors import ArgumentError, PluginError
from slime_core.loss import what_reads
from slime_core.plugins import Plugins, Selected
from slime_core.plugins.calls import policies
from slime_core.reward import reward_name


@dataclass(frozen=True)
class Plan:
    """A validated run.

    Attributes:
        resolved: all arguments, `num_rollout` included.
        components: the chosen components by role, such as "rollout", "eval rollout", "loss".
        trackers: the chosen trackers.
        data_source: opened, at its beginning.
        notes: what a person should know: options without effect, prompts that are left over.
        layout: what the run asks of a Ray cluster; None if it is one process.
    """

    resolved: Resolved
    plugins: Plugins
    components: dict[str, Selected]
    trackers: list[Selected]
    data_source: DataSource
    notes: list[str]
    layout: Layout | None

    @property
    def args(self) -> Any:
        return self.resolved.args

    def config(self) -> dict[str, Any]:
        """The run as plain data, for the run directory, trackers and checkpoints."""
        return {
            "arguments": self.args.model_dump(mode="json"),
            "provenance": self.resolved.provenance,
            "components": {
                **{role: f"{c.name} of {c.origin}" for role, c in self.components.items()},
                **{f"tracker {c.name}": f"{c.name} of {c.origin}" for c in self.trackers},
            },
            "plugins": self.plugins.fingerprint(),
        }


def make_plan(resolved: Resolved, plugins: Plugins) -> Plan:
    """Choose and check every component, open the data, derive the number of rollouts.

    Raises:
        SlimeError: something is missing, does not fit, or contradicts something else.
    """
    args = resolved.args
    policies(args.failure_policy)
    # What takes seconds to import comes last, so that no mistake elsewhere has to wait for it.
    components = _rollout_functions(args, plugins)
    used = {f"{c.kind}:{c.name}" for c in components.values()}
    for kind, option in _CHOSEN_IF_SET:
        declared = resolved.namespace.options.get(option)
        readers = {reader.partition("?")[0] for reader in declared.read_by.split()} if declared else set()
        name = getattr(args, option, None)
        if name and (used | {"core"}) & readers:
            components[kind.replace("_", " ")] = plugins.select(
                kind, reward_name(plugins, name) if kind == "reward" else name, _flag(option)
            )
    trackers = [plugins.select("tracker", name) for name in _tracker_names(resolved, plugins)]
    components |= train_components(args, plugins) | _engine(args, plugins)
    used |= {f"{c.kind}:{c.name}" for c in (*components.values(), *trackers)}

    layout, remarks = make_layout(args, components.get("engine"))
    data_source = open_data(args, components)
    if args.num_rollout is None and len(data_source) == UNKNOWN_LENGTH:
        raise ArgumentError(
            f"--num-epoch needs data that can be counted, which the data source {args.data_source_path!r} does not do. Give "
            "--num-rollout instead."
        )
    resolved = with_data_length(resolved, len(data_source))
    notes = without_effect(resolved, used) + remarks
    if args.offload and args.colocate:
        _require_offload(components)
    if args.balance_data and (layout is None or layout.ranks <= 1):
        notes.append("--balance-data has no effect with one training rank.")
    if args.async_save and not hasattr(components["train backend"].target, "saved"):
        backend = components["train backend"].name
        notes.append(
            f"--async-save has no effect: the train backend {backend!r} writes a checkpoint before it goes on."
        )
    if resolved.args.num_epoch and resolved.provenance["num_rollout"].startswith("derived"):
        left = resolved.args.num_epoch * len(data_source) - resolved.args.num_rollout * args.rollout_batch_size
        if left:
            notes.append(
                f"The last {left} prompts of the last epoch do not fill a rollout of {args.rollout_batch_size} and are not "
                "trained on."
            )
    elif resolved.args.num_epoch:
        notes.append("--num-epoch has no effect with --num-rollout.")
    return Plan(resolved, plugins, components, trackers, data_source, notes, layout)


def _require_offload(components: dict[str, Selected]) -> None:
    for role in ("train backend", "engine"):
        if role in components and not hasattr(components[role].target, "offload"):
            raise ArgumentError(
                f"--offload: the {components[role].label} cannot give back its memory (it has no methods offload and "
                "onload). Leave --offload out, or choose another."
            )


# Components that are chosen only if their option is set, by what reads it (which may not be there).
_CHOSEN_IF_SET = (
    ("loss_mask", "loss_mask_type"),
    ("reward", "rm_type"),
    ("reward", "custom_rm_path"),
    ("generator", "custom_generate_function_path"),
    ("dynamic_filter", "dynamic_sampling_filter_path"),
    ("sample_filter", "rollout_sample_filter_path"),
    ("all_samples_process", "rollout_all_samples_process_path"),
    ("rollout_log", "custom_rollout_log_function_path"),
    ("eval_rollout_log", "custom_eval_rollout_log_function_path"),
)


def rollout_components(args: Any, plugins: Plugins) -> dict[str, Selected]:
    """What the rollout worker calls."""
    return _rollout_functions(args, plugins) | _engine(args, plugins)


def _rollout_functions(args: Any, plugins: Plugins) -> dict[str, Selected]:
    chosen = {
        "rollout": plugins.select("rollout", args.rollout_function_path),
        "eval rollout": plugins.select("rollout", args.eval_function_path, "--eval-function-path"),
        "data source": plugins.select("data_source", args.data_source_path),
        "buffer pop": plugins.select("buffer_pop", args.buffer_filter_path),
    }
    if args.custom_convert_samples_to_train_data_path:
        chosen["sample converter"] = plugins.select("sample_converter", args.custom_convert_samples_to_train_data_path)
    return chosen


def _engine(args: Any, plugins: Plugins) -> dict[str, Selected]:
    wanted = args.rollout_engine and not args.debug_train_only
    return {"engine": plugins.select("engine", args.rollout_engine)} if wanted else {}


def train_components(args: Any, plugins: Plugins) -> dict[str, Selected]:
    """What training calls; more than loss and backend where advantages are computed."""
    chosen = {"loss": _either(plugins, "loss", args, "custom_loss_function_path", "loss_type")}
    if not args.disable_compute_advantages_and_returns:
        chosen |= _advantage_components(args, plugins, chosen["loss"])
    return chosen | {"train backend": plugins.select("train_backend", args.train_backend)}


def _advantage_components(args: Any, plugins: Plugins, loss: Selected) -> dict[str, Selected]:
    own, named = "custom_advantage_function_path", "advantage_estimator"
    chosen = {"advantage": _either(plugins, "advantage", args, own, named)}
    if args.custom_reward_post_process_path:
        chosen["reward post process"] = plugins.select("reward_post_process", args.custom_reward_post_process_path)
    if getattr(args, "use_tis", False) or args.custom_tis_function_path:
        chosen["importance weight"] = plugins.select("importance_weight", args.custom_tis_function_path or "tis")
    if "values" in what_reads(loss, args) | what_reads(chosen["advantage"], args):
        chosen["critic loss"] = plugins.select("loss", "value_loss")
    return chosen


def open_data(args: Any, components: dict[str, Selected]) -> DataSource:
    """The data source, at its beginning."""
    return components["data source"].bind(buffer_pop=components["buffer pop"])(args)


def _either(plugins: Plugins, kind: str, args: Any, own: str, named: str) -> Selected:
    """The component that the option for somebody's own chooses or, where it is not set, the other one."""
    option = own if getattr(args, own) else named
    return plugins.select(kind, getattr(args, option), _flag(option))


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _tracker_names(resolved: Resolved, plugins: Plugins) -> list[str]:
    """Trackers chosen by their own `--use-NAME` flag or by `--tracker NAME`, each once."""
    flags = [n for n in plugins.components("tracker") if getattr(resolved.args, f"use_{n}", False)]
    names = [*flags, *(n for n in resolved.args.tracker if n not in flags)]
    if twice := {n for n in names if names.count(n) > 1}:
        raise ArgumentError(f"--tracker names {', '.join(sorted(twice))} twice.")
    for option in resolved.set_by_user:
        if option.startswith("use_") and resolved.namespace.options[option].read_by.startswith("tracker:"):
            name = resolved.namespace.options[option].read_by.removeprefix("tracker:")
            if plugins.find("tracker", name) is None:
                raise PluginError(f"--{option.replace('_', '-')} needs the tracker {name!r}, which no plugin provides.")
    return names
