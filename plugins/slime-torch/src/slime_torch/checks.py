"""What the torch backend sees of a run before it starts: the checkpoints, and the layers of adapters. Named by the plugin
(`slime_core.contracts.checking`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slime_core.contracts.checking import Checking
from slime_core.data.checkpoint_folders import require_hugging_face
from slime_core.data.vision import FAMILIES, is_vision_model
from slime_core.errors import ArgumentError
from slime_core.training.adapters import ALL_LINEAR, target_layers
from slime_core.training.checkpoint_check import check_checkpoints, stored_linear
from slime_core.training.frozen import NAME_LISTS, freezes, trained_names
from slime_core.training.model_facts import ModelFacts, configuration_of
from slime_core.training.schedule import check_schedule

if TYPE_CHECKING:
    from slime_torch.arguments import TorchRunArguments


def check(args: TorchRunArguments, checking: Checking) -> None:
    """Say what would end the run when the model is loaded."""
    check_schedule(args, checking)
    before = len(checking.found)
    config = check_checkpoints(checking, configuration_of)
    broken = any(finding.weight == "error" for finding in checking.found[before:])
    if args.ref_load:
        with checking.noting():
            require_hugging_face(args.ref_load, "--ref-load")
    if config is None:
        return
    with checking.noting():
        _require_causal_model(config, args.hf_checkpoint)
    freezing = freezes(args) and checking.set_aside.isdisjoint(NAME_LISTS)
    checkpointing = args.gradient_checkpointing and "gradient_checkpointing" not in checking.set_aside
    if (freezing or checkpointing) and not broken:
        from slime_torch.model import empty_model, require_gradient_checkpointing
        from slime_torch.vision import vision_names

        with checking.noting():
            weights = args.ref_load or args.hf_checkpoint
            model = empty_model(checking.card if checking.card and checking.is_elsewhere(weights) else weights)
            if checkpointing:
                with checking.noting():
                    require_gradient_checkpointing(model)
            if freezing:
                names = [name for name, _ in model.named_parameters()]
                trained_names(args, names, type(model).__name__, vision_names(model) if args.freeze_vision else ())
    if (
        args.lora_rank
        and not broken
        and ALL_LINEAR not in args.target_modules
        and "target_modules" not in checking.set_aside
    ):
        linear = stored_linear(args.ref_load or args.hf_checkpoint)
        if linear:
            with checking.noting():
                target_layers(linear, args.target_modules, f"a {config.model_type} model")


def _require_causal_model(config: Any, folder: str) -> None:
    if isinstance(config, ModelFacts):  # of a model that transformers has made
        return
    from transformers import AutoModelForCausalLM

    mapping: Any = AutoModelForCausalLM._model_mapping  # not public
    auto = getattr(config, "auto_map", None) or {}
    if is_vision_model(config):
        return
    if type(config) not in mapping and "AutoModelForCausalLM" not in auto:
        raise ArgumentError(
            f"--hf-checkpoint {folder} holds a {config.model_type} model, which transformers has as no causal language model. "
            f"Of those that read images, {', '.join(FAMILIES)} are trained."
        )
