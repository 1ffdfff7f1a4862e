"""The components that training calls, chosen from the arguments. Called when a run is planned and, in a cluster, in the
process of every training rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.arguments.further import choose_further
from slime_core.contracts.advantage import AdvantageOutputs
from slime_core.contracts.loss import LossOutputs, what_reads
from slime_core.contracts.train_backend import TrainBackend
from slime_core.plugins import Plugins, Selected


@dataclass(frozen=True)
class TrainComponents:
    """What a training process calls.

    Attributes:
        train_backend, loss: always there.
        advantage: None under `--disable-compute-advantages-and-returns`.
        reward_post_process, importance_weight: None unless chosen.
        critic_loss: present when the loss or the estimator reads values.
        further: those of other kinds that backend, loss or estimator read the options of, by kind.
    """

    train_backend: Selected[TrainBackend]
    loss: Selected[LossOutputs]
    advantage: Selected[AdvantageOutputs] | None = None
    reward_post_process: Selected[tuple[list[float], list[float]]] | None = None
    importance_weight: Selected[Any] | None = None
    critic_loss: Selected[LossOutputs] | None = None
    further: Mapping[str, Selected[Any]] = field(default_factory=dict)


def choose_train_components(args: RunArguments, plugins: Plugins) -> TrainComponents:
    """Loss and backend, and what advantages need where they are computed. The backend is imported last.

    Raises:
        PluginError: a component is missing, or does not fit.
    """
    loss: Selected[LossOutputs] = _either(plugins, "loss", args, "custom_loss_function_path", "loss_type")
    chosen: dict[str, Any] = {}
    if not args.disable_compute_advantages_and_returns:
        chosen = _advantage_components(args, plugins, loss)
    weights = chosen.get("importance_weight")
    backend = plugins.select("train_backend", args.train_backend)
    readers = [component for component in (loss, chosen.get("advantage"), backend) if component is not None]
    return TrainComponents(
        train_backend=backend,
        loss=loss.bind(importance_weight=weights),
        critic_loss=critic.bind(importance_weight=weights) if (critic := chosen.pop("critic_loss", None)) else None,
        further=choose_further(args, plugins, readers),
        **chosen,
    )


def _advantage_components(args: RunArguments, plugins: Plugins, loss: Selected[LossOutputs]) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "advantage": _either(plugins, "advantage", args, "custom_advantage_function_path", "advantage_estimator")
    }
    if args.custom_reward_post_process_path:
        chosen["reward_post_process"] = plugins.select("reward_post_process", args.custom_reward_post_process_path)
    if args.use_tis or args.custom_tis_function_path:
        chosen["importance_weight"] = plugins.select("importance_weight", args.custom_tis_function_path or "tis")
    if "values" in what_reads(loss, args) | what_reads(chosen["advantage"], args):
        chosen["critic_loss"] = plugins.select("loss", args.critic_loss_type, "--critic-loss-type")
    return chosen


def _either(plugins: Plugins, kind: str, args: RunArguments, own: str, named: str) -> Selected[Any]:
    """The component that the option for somebody's own chooses or, where it is not set, the other one."""
    option = own if getattr(args, own) else named
    return plugins.select(kind, getattr(args, option), "--" + option.replace("_", "-"))
