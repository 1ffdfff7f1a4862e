"""The components that training calls, chosen from the arguments. Called when a run is planned and, in a cluster, in the
process of every training rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slime_core.arguments import RunArguments
from slime_core.arguments.further import choose_further
from slime_core.contracts.advantage import AdvantageOutputs
from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
from slime_core.contracts.loss import LossOutputs, what_reads
from slime_core.contracts.train_backend import KeepsWeights, ResetsOptimizer, TrainBackend
from slime_core.data.quantised_checkpoints import quantised_checkpoint
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins, Selected
from slime_core.plugins.signatures import accepted_extras

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TrainComponents:
    """What a training process calls.

    Attributes:
        train_backend, loss: what every run has.
        advantage: None under `--disable-compute-advantages-and-returns`.
        data_postprocess, importance_weight, pg_loss_reducer: None unless chosen.
        critic_loss: present when the loss or the estimator reads values.
        further: components of other kinds, by kind, whose options the backend, the loss or the estimator reads.
        quantised: the checkpoints of the run that are quantised, by the folder that an option names. Weights for an engine are
            in the format of `--hf-checkpoint`, if it is one of them; a backend loads their weights in high precision.
    """

    train_backend: Selected[TrainBackend]
    loss: Selected[LossOutputs]
    advantage: Selected[AdvantageOutputs] | None = None
    data_postprocess: Selected[None] | None = None
    importance_weight: Selected[tuple[Any, ...]] | None = None
    pg_loss_reducer: Selected[Callable[[Tensor], Tensor]] | None = None
    critic_loss: Selected[LossOutputs] | None = None
    further: Mapping[str, Selected[Any]] = field(default_factory=dict)
    quantised: Mapping[str, QuantisedCheckpoint] = field(default_factory=dict)


def choose_train_components(args: RunArguments, plugins: Plugins) -> TrainComponents:
    """Select loss and backend, and what advantages need where they are computed. The backend is imported last.

    Raises:
        PluginError: a component is missing, or does not fit.
        ArgumentError: FP8 is asked for, and the backend does not compute in it.
    """
    quantised = quantised_checkpoints(
        args, plugins
    )  # first: what is wrong here takes no import of anything heavy to find
    loss: Selected[LossOutputs] = _either(plugins, "loss", args, "custom_loss_function_path", "loss_type")
    advantage: Selected[AdvantageOutputs] | None = None
    weight: Selected[tuple[Tensor, dict[str, Tensor]]] | None = None
    critic: Selected[LossOutputs] | None = None
    if not args.disable_compute_advantages_and_returns:
        advantage = _either(plugins, "advantage", args, "custom_advantage_function_path", "advantage_estimator")
        if args.use_tis or args.get_mismatch_metrics or args.custom_tis_function_path:
            weight = plugins.select("importance_weight", args.custom_tis_function_path or "tis")
        if "values" in what_reads(loss, args) | what_reads(advantage, args):
            critic = plugins.select("loss", args.critic_loss_type, "--critic-loss-type")
    reducer = _reducer(args, plugins, loss)
    postprocess = args.rollout_data_postprocess_path
    backend: Selected[TrainBackend] = plugins.select("train_backend", args.train_backend)
    _require_abilities(args, backend)
    readers = [component for component in (loss, advantage, backend) if component is not None]
    further = choose_further(args, plugins, readers)
    if args.fp8_format and "precision_recipe" not in further:
        raise ArgumentError(
            f"--fp8-format {args.fp8_format}: the {backend.label} does not compute in FP8, as it does not declare to read "
            "--fp8-recipe. Leave --fp8-format out, or choose another --train-backend."
        )
    return TrainComponents(
        train_backend=backend,
        loss=loss.bind(importance_weight=weight, pg_loss_reducer=reducer),
        advantage=advantage,
        data_postprocess=plugins.select("rollout_data_postprocess", postprocess) if postprocess else None,
        importance_weight=weight,
        pg_loss_reducer=reducer,
        critic_loss=critic.bind(importance_weight=weight) if critic is not None else None,
        further=further,
        quantised=quantised,
    )


def _require_abilities(args: RunArguments, backend: Selected[TrainBackend]) -> None:
    """Refuse what the backend cannot do.

    Raises:
        ArgumentError: names the option and the method that the backend lacks.
    """
    wanted = {
        "reset_optimizer_states": (args.reset_optimizer_states, ResetsOptimizer),
        "ref_update_interval": (args.ref_update_interval, KeepsWeights),
        "keep_old_actor": (args.keep_old_actor, KeepsWeights),
        "update_weights_interval": (args.update_weights_interval > 1 and args.save, KeepsWeights),
    }
    for option, (given, ability) in wanted.items():
        if given and not issubclass(backend.target, ability):  # type: ignore[arg-type]  # is a class
            methods = " and ".join(name for name in vars(ability) if not name.startswith("_"))
            raise ArgumentError(
                f"--{option.replace('_', '-')}: the {backend.label} cannot do that (it has no method {methods}). Leave the option "
                "out, or choose another --train-backend."
            )
        if given and ability is KeepsWeights:
            _refuse_gathered_in_fp8(args, option)


def _refuse_gathered_in_fp8(args: RunArguments, option: str) -> None:
    """Refuse to copy weights that are stored in FP8."""
    if args.fp8_param_gather:
        raise ArgumentError(
            f"--{option.replace('_', '-')} keeps copies of the weights, which --fp8-param-gather stores in FP8. Leave one of the two out."
        )


def _reducer(
    args: RunArguments, plugins: Plugins, loss: Selected[LossOutputs]
) -> Selected[Callable[[Tensor], Tensor]] | None:
    """What reduces the policy loss, if it is not the mean.

    Raises:
        ArgumentError: the loss does not call it.
    """
    path = args.custom_pg_loss_reducer_function_path
    if not path:
        return None
    if not accepted_extras(loss.target, ("pg_loss_reducer",)):
        raise ArgumentError(
            f"--custom-pg-loss-reducer-function-path {path}: the {loss.label} does not call it, as it names no parameter "
            "pg_loss_reducer. Leave the option out, or choose --loss-type policy_loss, gspo or cispo."
        )
    return plugins.select("pg_loss_reducer", path)


def quantised_checkpoints(args: RunArguments, plugins: Plugins) -> dict[str, QuantisedCheckpoint]:
    """The quantised ones of the checkpoints that models are loaded from, and of the one that is served, by folder.

    Raises:
        ArgumentError: one is in a format that is not known here, or contradicts itself.
    """
    options = ("hf_checkpoint", "ref_load", "load", "critic_load")
    named = {f"--{option.replace('_', '-')}": getattr(args, option) for option in options}
    found = {folder: quantised_checkpoint(folder, plugins, flag) for flag, folder in named.items() if folder}
    return {folder: checkpoint for folder, checkpoint in found.items() if checkpoint is not None}


def _either(plugins: Plugins, kind: str, args: RunArguments, own: str, named: str) -> Selected[Any]:
    """Select the component that one of two options chooses.

    Args:
        own: the option for an import path, which wins where it is set.
        named: the option for a name.
    """
    option = own if getattr(args, own) else named
    return plugins.select(kind, getattr(args, option), "--" + option.replace("_", "-"))
