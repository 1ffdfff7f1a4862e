"""Checks of precision recipes. They need torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from slime_core.contracts.precision import Hardware, PrecisionRecipe
from slime_core.errors import ArgumentError, DataError
from slime_core.testing.subject import Check, Subject

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = 4
LEFT_OUT = {"model.embed_tokens.weight": (96, 64), "model.norm.weight": (64,), "lm_head.weight": (96, 64)}
LEFT_OUT |= {f"model.layers.{layer}.mlp.gate.weight": (8, 64) for layer in range(LAYERS)}
"""What no recipe quantises: embedding, norm, head and routers."""
WEIGHTS = LEFT_OUT | {
    f"model.layers.{layer}.{name}.weight": shape
    for layer in range(LAYERS)
    for name, shape in {"self_attn.q_proj": (64, 64), "mlp.experts.0.down_proj": (64, 160)}.items()
}
MACHINES = (
    Hardware("CPU"),
    Hardware("NVIDIA A100", (8, 0), (12, 9)),
    Hardware("NVIDIA H200", (9, 0), (12, 9)),
    Hardware("NVIDIA B200", (10, 0), (13, 0)),
)


def quantises_layers_alone(subject: Subject[PrecisionRecipe]) -> None:
    """quantises matrices of layers, and no embedding, head, router or vector"""
    recipe = _made(subject)
    chosen = [name for name, shape in WEIGHTS.items() if recipe.quantises(name, shape)]
    wrong = [name for name in chosen if name in LEFT_OUT]
    subject.expect(not wrong, f"it quantises {', '.join(wrong)}; let quantises return False for them.")
    subject.expect(bool(chosen), f"it quantises none of {', '.join(WEIGHTS)}; then nothing is in low precision.")


def restores_what_it_stores(subject: Subject[PrecisionRecipe]) -> None:
    """restores a stored weight, as float32 and within a quarter of its size, and keeps zeros"""
    recipe, name = _with_name(subject)
    weight = _numbers(WEIGHTS[name])
    weight[:8] = 0
    weight[8] *= 2.0**-120
    stored = recipe.stored(name, weight)
    other = [key for key in stored if not key.startswith(name)]
    subject.expect(
        name in stored and not other, f"stored names {', '.join(stored)}; expected {name}, and {name}… for its scales."
    )
    restored = recipe.restored(name, stored)
    subject.expect(
        restored.shape == weight.shape and str(restored.dtype) == "torch.float32",
        f"it restores {restored.dtype} of shape {tuple(restored.shape)}; expected float32 of shape {tuple(weight.shape)}.",
    )
    error = ((restored - weight).norm() / weight.norm()).item()
    subject.expect(error < 0.25, f"the restored weight is {error:.3g} of its size off; expected less than 0.25.")
    subject.expect(
        not restored[:8].any(), "zeros are not restored as zeros; give a block without magnitude the scale 1."
    )


def refuses_to_store_what_is_not_finite(subject: Subject[PrecisionRecipe]) -> None:
    """refuses to store a weight with NaN or Inf"""
    recipe, name = _with_name(subject)
    for bad in (float("nan"), float("-inf")):
        weight = _numbers(WEIGHTS[name])
        weight[3, 5] = bad
        try:
            recipe.stored(name, weight)
        except DataError:
            continue
        subject.expect(
            False, f"it stores a weight with {bad}, which nobody will find again; raise a DataError that names it."
        )


def computes_near_high_precision(subject: Subject[PrecisionRecipe]) -> None:
    """computes products, and the gradients of both factors, near those of high precision but not equal to them"""
    recipe, name = _with_name(subject)
    given, weight = _numbers((3, 21, WEIGHTS[name][1])).requires_grad_(), _numbers(WEIGHTS[name]).requires_grad_()
    output = recipe.linear(name)(given, weight)
    expected = given @ weight.t()
    subject.expect(
        output.shape == expected.shape and output.dtype == given.dtype,
        f"its product is {output.dtype} of shape {tuple(output.shape)}; expected {given.dtype} of shape "
        f"{tuple(expected.shape)}.",
    )
    subject.expect(not output.equal(expected), "its product is that of high precision, exactly; nothing is quantised.")
    gradient = _numbers(tuple(expected.shape))
    wanted = _gradients(expected, gradient, given, weight)
    pairs = {"product": (output, expected)}
    pairs |= dict(zip(("gradient of the input", "gradient of the weight"), zip(_gradients(output, gradient, given, weight), wanted, strict=True), strict=True))  # fmt: skip
    for what, (found, right) in pairs.items():
        error = ((found - right).norm() / right.norm()).item()
        subject.expect(error < 0.25, f"its {what} is {error:.3g} of its size off; expected less than 0.25.")
    nothing = recipe.linear(name)(given.detach()[0, :0], weight)
    subject.expect(
        tuple(nothing.shape) == (0, WEIGHTS[name][0]),
        f"its product of an input without rows has the shape {tuple(nothing.shape)}; expected {(0, WEIGHTS[name][0])}, as experts "
        "without tokens need it.",
    )


def leaves_its_inputs_alone(subject: Subject[PrecisionRecipe]) -> None:
    """does not change weights and inputs"""
    recipe, name = _with_name(subject)
    given, weight = _numbers((21, WEIGHTS[name][1])), _numbers(WEIGHTS[name])
    before = given.clone(), weight.clone()
    recipe.stored(name, weight)
    recipe.linear(name)(given, weight)
    subject.expect(
        given.equal(before[0]) and weight.equal(before[1]),
        "it changed a weight or an input in place; make a new tensor instead.",
    )


def describes_its_checkpoints(subject: Subject[PrecisionRecipe]) -> None:
    """describes a checkpoint in JSON, with its method and the modules that are not quantised"""
    config = _made(subject).quantization_config(WEIGHTS)
    text = json.dumps(config)
    subject.expect("quant_method" in config, f"quantization_config has no quant_method: {text}; engines choose by it.")
    missing = [name for name, shape in LEFT_OUT.items() if len(shape) > 1 and name.removesuffix(".weight") not in text]
    subject.expect(
        not missing,
        f"quantization_config does not list {', '.join(missing)}; list every matrix that is left out, or an engine would read "
        "it as quantised.",
    )


def knows_hardware(subject: Subject[PrecisionRecipe]) -> None:
    """says in words which hardware cannot compute it, and what must be set for it"""
    recipe = _made(subject)
    for machine in MACHINES:
        why, variables = recipe.refusal(machine), recipe.environment(machine)
        subject.expect(
            isinstance(why, str) and (not why or " " in why),
            f'refusal says {why!r} of {machine.name}; expected a sentence, or "" if it can compute the recipe.',
        )
        subject.expect(
            all(isinstance(part, str) for pair in variables.items() for part in pair),
            f"environment gives {variables} for {machine.name}; expected texts: {{name: value}}.",
        )
        if why:
            try:
                recipe.hardware_linear(max(WEIGHTS), machine)
            except ArgumentError:
                continue
            subject.expect(
                False,
                f"refusal says that {machine.name} cannot compute it, but hardware_linear returns products for it; raise an "
                "ArgumentError there.",
            )
    rows = recipe.row_multiple()
    subject.expect(
        isinstance(rows, int) and rows >= 1, f"row_multiple gives {rows!r}; expected a whole number, 1 without padding."
    )
    fields = recipe.megatron_config()
    subject.expect(
        all(isinstance(name, str) and name.isidentifier() for name in fields),
        f"megatron_config gives {fields}; expected {{name of a field: value}}.",
    )


def _made(subject: Subject[PrecisionRecipe]) -> PrecisionRecipe:
    subject.need("torch")
    return subject.call(subject.args, LAYERS)


def _with_name(subject: Subject[PrecisionRecipe]) -> tuple[PrecisionRecipe, str]:
    """Return the recipe and the largest weight that it quantises."""
    recipe = _made(subject)
    sizes = {name: shape for name, shape in WEIGHTS.items() if recipe.quantises(name, shape)}
    subject.expect(bool(sizes), "it quantises nothing.")
    return recipe, max(sizes, key=lambda name: sizes[name][-1])


def _numbers(shape: tuple[int, ...]) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def _gradients(output: Tensor, gradient: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    import torch

    return torch.autograd.grad(output, leaves, gradient)


PRECISION_RECIPE: list[Check] = [
    quantises_layers_alone,
    restores_what_it_stores,
    refuses_to_store_what_is_not_finite,
    computes_near_high_precision,
    leaves_its_inputs_alone,
    describes_its_checkpoints,
    knows_hardware,
]
