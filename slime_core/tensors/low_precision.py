"""Puts a precision recipe's products into a torch model: the linear layers that it quantises compute by it, and so do experts
(`slime_core.tensors.low_precision_experts`). Parameters, their names and the shape of the model stay as they are. Called by train
backends that compute with torch's own layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from slime_core.contracts.precision import Hardware, KeepsWeight, PrecisionRecipe, Remembers, RemembersTogether
from slime_core.errors import ArgumentError
from slime_core.tensors.experts import TOGETHER
from slime_core.tensors.low_precision_experts import expert_matrices, swap_experts
from slime_core.tensors.low_precision_products import Products, product_of

_PRODUCT = "precision"  # the attribute of a layer that holds its product


class LowPrecisionLinear(nn.Linear):
    """A linear layer whose products go through `precision`."""

    precision: Callable[[Tensor, Tensor], Tensor]

    def forward(self, input: Tensor) -> Tensor:
        """(…, K) → (…, N)."""
        output = self.precision(input, self.weight)
        return output if self.bias is None else output + self.bias


def swap_linears(model: nn.Module, recipe: PrecisionRecipe, hardware: Hardware | None = None) -> list[str]:
    """Have every linear layer and every expert of a model compute by a recipe, unless the recipe leaves it out, and return the
    names of these modules.

    Args:
        model: a transformers model, or one with the same names.
        hardware: whose arithmetic computes; None: the recipe is emulated.

    Raises:
        ArgumentError: a matrix that the recipe quantises is no weight of a linear layer or of an expert that is known, so that
            training would compute with other numbers than engine and exports; or the recipe quantises nothing; or the hardware cannot
            compute it.
    """
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    chosen = [n for n, m in linears.items() if recipe.quantises(f"{n}.weight", tuple(m.weight.shape))]
    stacks = {name: expert_matrices(name, module) for name, module in model.named_modules()}
    experts = [n for n, found in stacks.items() if any(recipe.quantises(*one) for own in found for one in own.items())]
    known = {f"{n}.weight" for n in linears} | {
        f"{n}.{stack}" for n, found in stacks.items() if found for stack in TOGETHER
    }
    others = [n for n, p in model.named_parameters() if n not in known and _missed(recipe, n, p)]
    if others:
        raise ArgumentError(
            f"{len(others)} weights cannot be computed in low precision here, as they are not those of a torch.nn.Linear, nor of "
            f"experts with a gate and without biases: {', '.join(others[:3])}{', …' if len(others) > 3 else ''}. Leave them out "
            "by --fp8-modules-to-not-convert; then engine and exports leave them out too."
        )
    if not chosen and not experts:
        raise ArgumentError(
            "The precision recipe leaves out every linear layer of the model. Check --fp8-modules-to-not-convert, or leave "
            "--fp8-format out."
        )
    for name in chosen:
        module = linears[name]
        module.__class__ = LowPrecisionLinear
        product = product_of(recipe, f"{name}.weight", hardware)
        if isinstance(product, nn.Module):
            product.to(module.weight.device).train(module.training)
        module.precision = product  # type: ignore[assignment]  # torch registers it if it is a module
    for name in experts:
        swap_experts(model.get_submodule(name), stacks[name], recipe, hardware)
    return chosen + experts


def remembering(model: nn.Module) -> list[Remembers]:
    """The products in a model whose scales come from earlier steps, in the order of its layers."""
    found: list[object] = []
    for module in model.modules():
        if isinstance(module, LowPrecisionLinear):
            found.append(module.precision)
        elif isinstance(module, Products):
            found.extend(module)
    return [product for product in found if isinstance(product, Remembers)]


@contextmanager
def weights_unchanged(model: nn.Module) -> Iterator[None]:
    """No weight of the model changes inside of this context: they are quantised once for all that is computed there."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, KeepsWeight):
                stack.enter_context(module.weight_unchanged())
        yield


def end_step(products: Sequence[Remembers], over_ranks: Callable[[Tensor], Tensor]) -> None:
    """An optimizer step was taken: find the scales of the next one for these products of a model."""
    kinds: dict[type[Remembers], list[Remembers]] = {}
    for product in products:
        kinds.setdefault(type(product), []).append(product)
    for kind, own in kinds.items():
        if issubclass(kind, RemembersTogether):
            kind.end_step_together(own, over_ranks)
        else:
            for product in own:
                product.end_step(over_ranks)


def is_precision_state(name: str) -> bool:
    """Whether a name in the state of a model is that of a product's memory. It belongs to a training state, and to no weights that
    others read."""
    return f".{_PRODUCT}." in name


@contextmanager
def nothing_remembered(model: nn.Module) -> Iterator[None]:
    """Let what is computed inside of this context, forwards and backwards, leave no trace in the scales of later steps."""
    before = [
        (m, m.training) for product in remembering(model) if isinstance(product, nn.Module) for m in product.modules()
    ]
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _missed(recipe: PrecisionRecipe, name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter outside of linear layers is, alone or as a stack of experts, a matrix that the recipe quantises."""
    single = name if name.endswith(".weight") else f"{name}.weight"
    return parameter.ndim in (2, 3) and recipe.quantises(single, tuple(parameter.shape[-2:]))
