"""A quantised `--hf-checkpoint`, looked at when a run is planned: that training in FP8 quantises what the engine has in FP8, and what a
person should know about where the trainer's weights come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.arguments import RunArguments
from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
from slime_core.contracts.precision import PrecisionRecipe
from slime_core.data.quantised_checkpoints import num_layers
from slime_core.errors import ArgumentError
from slime_core.run.components import Components
from slime_core.training.initial_weights import option_of, with_initial_weights

if TYPE_CHECKING:
    from torch import Tensor

_PROBE = (160, 192)  # of a weight that is quantised by way of trial; no block divides it


def check_served_precision(args: RunArguments, components: Components) -> list[str]:
    """One sentence for everything that a person should know of a quantised `--hf-checkpoint`; none where it is not quantised.

    Raises:
        ArgumentError: the precision recipe of training leaves out other weights than the checkpoint does, so that trainer and
            engine would compute with different numbers.
    """
    served = components.training.quantised.get(args.hf_checkpoint)
    notes = []
    trained = with_initial_weights(args)
    start = trained.ref_load or args.hf_checkpoint
    if start in components.training.quantised and not args.debug_rollout_only:
        notes.append(
            f"{option_of(trained)} {start} is quantised: the trainer starts from its numbers, restored to high precision. "
            "--ref-load (or --load) with the weights that it was made from starts from those."
        )
    if served is None:
        return notes
    if components.rollouts.engine is not None and not args.debug_rollout_only:
        notes.append(f"Weights go to the engine as --hf-checkpoint has them: {served}.")
    recipe = components.training.further.get("precision_recipe")
    if args.fp8_format and recipe is not None:
        made: PrecisionRecipe = recipe(args, _num_layers(Path(args.hf_checkpoint)))
        _require_same_modules(made, served)
        if not _stores_the_same(made, served):
            notes.append(
                f"--fp8-recipe {args.fp8_recipe} and --hf-checkpoint {served} round weights differently, so log-probs of trainer and "
                "engine differ by more than without FP8; --use-tis corrects for it."
            )
    return notes


def _require_same_modules(recipe: PrecisionRecipe, served: QuantisedCheckpoint) -> None:
    """Raise `ArgumentError` unless the recipe quantises the weights that the checkpoint has in low precision, and no others."""
    scales = {
        own
        for name, tensor in served.tensors.items()
        if served.format.quantises(name)
        for own in served.format.layout(name, tensor.shape)
        if own != name
    }
    weights = {name: tensor.shape for name, tensor in served.tensors.items() if name not in scales}
    own = {name for name, shape in weights.items() if recipe.quantises(name, shape)}
    theirs = {name for name in weights if served.format.quantises(name)}
    problems = []
    if only := sorted(own - theirs):
        problems.append(f"training computes {len(only)} in FP8 that it has in high precision: {_some(only)}")
    if only := sorted(theirs - own):
        problems.append(f"it has {len(only)} in FP8 that training computes in high precision: {_some(only)}")
    if problems:
        raise ArgumentError(
            f"--fp8-format and --hf-checkpoint {served.folder} quantise different modules, so that trainer and engine would compute "
            f"with different weights: {'; '.join(problems)}. Give training and the conversion (slime convert hf-to-fp8) the same "
            "--first-last-layers-bf16 and --fp8-modules-to-not-convert, or leave --fp8-format out."
        )


def _stores_the_same(recipe: PrecisionRecipe, served: QuantisedCheckpoint) -> bool:
    """Whether both make the same bytes of a weight."""
    import torch

    name = next(name for name in served.tensors if served.format.quantises(name))
    weight = torch.randn(_PROBE, generator=torch.Generator().manual_seed(0))
    own, theirs = recipe.stored(name, weight), served.format.stored(name, weight)

    def bytes_of(tensor: Tensor) -> Tensor:
        return tensor.contiguous().view(torch.uint8)

    return own.keys() == theirs.keys() and all(
        own[key].dtype == theirs[key].dtype and torch.equal(bytes_of(own[key]), bytes_of(theirs[key])) for key in own
    )


def _num_layers(folder: Path) -> int:
    """Layers of the language model, of config.json."""
    found = num_layers(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if found is not None:
        return found
    raise ArgumentError(f"{folder / 'config.json'} has no num_hidden_layers; expected the number of layers.")


def _some(names: list[str]) -> str:
    modules = [name.removesuffix(".weight") for name in names]
    return ", ".join(modules[:4]) + (", …" if len(modules) > 4 else "")
