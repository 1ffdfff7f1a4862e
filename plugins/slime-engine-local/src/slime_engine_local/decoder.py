"""A Llama-like decoder computed with a third of the operations that its Hugging Face module takes.

At a few rows an operation costs more than what it computes. So queries, keys and values come from one product, gate and
up projection from another, and positions are encoded in queries and keys together. What a layer has in place of a gated
MLP, such as experts, is computed as transformers wrote it. `slime_engine_local.model` uses it
where it fits the module's layers and then computes the module's logits; all other models run as transformers wrote
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from slime_engine_local.attention import attend
from slime_engine_local.forward_pass import ForwardPass
from slime_engine_local.layer_operations import HeadShape, LayerOperations
from slime_engine_local.packed import PackedLinear, packing_works
from slime_engine_local.pages import StaticPass
from slime_engine_local.vision import RowImages, language_part

LAYER_MODULES = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION_MODULES = {"q_proj", "k_proj", "v_proj", "o_proj"}
ATTENTION_NORMS = {"q_norm", "k_norm"}
MLP_MODULES = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class FusedLinear:
    """Linear layers that read the same input, computed as one.

    Args:
        layers: the layers. Their weights are packed where that is possible, and else become parts of the one that is used here, so that
            nothing is there twice.

    Raises:
        TypeError: some of the layers have a bias and others have none.
    """

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        weight = torch.cat([layer.weight for layer in layers]).detach()
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers]).detach()
        packed = weight.dtype == torch.float32 and weight.device.type == "cpu" and packing_works()
        self._weight: PackedLinear | Tensor = PackedLinear(weight, None) if packed else weight
        self._bias = bias
        self._new: dict[int, Tensor] = {}
        for attribute, joined in (("weight", self._weight), ("bias", bias)):
            if isinstance(joined, Tensor):
                for layer, rows in zip(layers, torch.split(joined, self.sizes), strict=True):
                    setattr(layer, attribute, nn.Parameter(rows, requires_grad=False))

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [..., in] with all weights, and return [..., sum of sizes]."""
        if isinstance(self._weight, Tensor):
            return linear(x, self._weight, self._bias)
        product: Tensor = self._weight(x)
        return product if self._bias is None else product.add_(self._bias)

    def tensors(self) -> Iterator[Tensor]:
        """Return the weight, unless it is packed, and the bias, if there is one."""
        return (tensor for tensor in (self._weight, self._bias) if isinstance(tensor, Tensor))

    def packed(self) -> Iterator[PackedLinear]:
        """Return the weight if it is packed."""
        if isinstance(self._weight, PackedLinear):
            yield self._weight

    def part(self, number: int, attribute: str) -> FusedPart:
        """Return the weight or bias of one of the layers, as something that new values can be copied to."""
        return FusedPart(self, number, attribute)

    def replace(self, number: int, attribute: str, new: Tensor) -> None:
        """Replace the weight or bias of one layer. A packed weight changes when the last of the layers has a new
        one."""
        end = sum(self.sizes[: number + 1])
        rows = slice(end - self.sizes[number], end)
        if attribute == "bias":
            assert self._bias is not None
            self._bias[rows].copy_(new)
        elif isinstance(self._weight, Tensor):
            self._weight[rows].copy_(new)
        else:
            self._new[number] = new
            if len(self._new) == len(self.sizes):
                self._weight.copy_(torch.cat([self._new[n] for n in range(len(self.sizes))]))
                self._new = {}


class FusedPart:
    """The weight or bias of one of several fused layers, as something that new values can be copied to."""

    def __init__(self, fused: FusedLinear, number: int, attribute: str) -> None:
        self._fused, self._number, self._attribute = fused, number, attribute

    def copy_(self, new: Tensor) -> None:
        """Replace the values."""
        self._fused.replace(self._number, self._attribute, new)


class FusedLayer:
    """One decoder layer.

    Args:
        module: the Hugging Face layer.
        name: its name in the model.
        setting: scale and window of its attention.
        parts: collects the weights and biases that were fused, by name.
        operations: compute what lies between the products.
    """

    def __init__(
        self,
        module: Any,
        name: str,
        setting: tuple[float, int | None],
        parts: dict[str, FusedPart],
        operations: LayerOperations,
    ) -> None:
        self.attention, (self.scale, self.window) = module.self_attn, setting
        self.operations = operations
        self.fused_modules: list[nn.Linear] = []

        def fuse(owner: Any, path: str, names: list[str]) -> FusedLinear:
            layers = [getattr(owner, n) for n in names]
            fused = FusedLinear(layers)
            self.fused_modules += layers
            for number, (n, layer) in enumerate(zip(names, layers, strict=True)):
                for attribute in ("weight", "bias"):
                    if getattr(layer, attribute) is not None:
                        parts[f"{name}.{path}.{n}.{attribute}"] = fused.part(number, attribute)
            return fused

        self.norms = (module.input_layernorm, module.post_attention_layernorm)
        self.inputs = fuse(self.attention, "self_attn", ["q_proj", "k_proj", "v_proj"])
        self.output = fuse(self.attention, "self_attn", ["o_proj"])
        mlp = module.mlp
        self.gated = {name for name, _ in mlp.named_children()} == MLP_MODULES
        self.mlp: Callable[[Tensor], Any] = mlp
        if self.gated:
            self.gate_up = fuse(mlp, "mlp", ["gate_proj", "up_proj"])
            self.down = fuse(mlp, "mlp", ["down_proj"])
            self.activation: Callable[[Tensor], Tensor] = mlp.act_fn
        size: int = self.attention.head_dim
        queries, keys, _ = (width // size for width in self.inputs.sizes)
        norms = [getattr(self.attention, n) for n in ("q_norm", "k_norm") if hasattr(self.attention, n)]
        self.heads = HeadShape(queries, keys, size, tuple(norms))

    def __call__(
        self, x: Tensor, added: Tensor | None, cosine: Tensor, sine: Tensor, step: ForwardPass | StaticPass
    ) -> tuple[Tensor, Tensor]:
        """Compute the layer for the sum of `x` and `added`, [T, hidden]; its result is the sum of those that are returned.

        Args:
            cosine, sine: [T, head size], the encoding of the positions; the first half of `sine` has its sign changed.
        """
        do, heads = self.operations, self.heads
        x, normed = do.add_norm(x, added, self.norms[0])
        projected = self.inputs(normed)
        if isinstance(step, StaticPass):
            places = step.places(self.attention.layer_idx, heads.keys, heads.size, projected)
            query, _, _ = do.encode(projected, heads, cosine, sine, places)
            seen = step.attend_to(places, query, self.scale, self.window)
        else:
            query, key, value = (x.transpose(0, 1)[None] for x in do.encode(projected, heads, cosine, sine, None))
            seen, _ = attend(self.attention, query, key, value, None, self.scale, self.window, slime_pass=step)
        x, normed = do.add_norm(x, self.output(seen.reshape(len(x), -1)), self.norms[1])
        made = (self._gated if self.gated else self.mlp)(normed[None])
        return x, (made[0] if isinstance(made, tuple) else made)[0]

    def _gated(self, x: Tensor) -> Tensor:
        return self.down(self.operations.gated(self.gate_up(x[0]), self.activation))[None]

    def linears(self) -> Iterator[FusedLinear]:
        """All products that were fused."""
        yield from (self.inputs, self.output, *((self.gate_up, self.down) if self.gated else ()))


class FusedDecoder:
    """A causal language model that consists of such layers.

    Args:
        module: the Hugging Face module, with weights. Its embedding, norms and head go on being used.
        settings: scale and window of each layer's attention.
        operations: compute what lies between the products.

    Attributes:
        parts: the weights and biases that were fused, by name, to which new values can be copied.
        body: the part of the module that reads embeddings.

    Raises:
        AttributeError, TypeError, ValueError: the module is of another kind.
    """

    def __init__(self, module: Any, settings: dict[int, tuple[float, int | None]], operations: LayerOperations) -> None:
        self.parts: dict[str, FusedPart] = {}
        self._module, self._operations = module, operations
        path, body = language_part(module)
        self.body = body
        for layer in body.layers:
            _require_children(layer, LAYER_MODULES)
            _require_children(layer.self_attn, ATTENTION_MODULES, ATTENTION_NORMS)
        self._layers = [
            FusedLayer(layer, f"{path}.layers.{n}", settings[n], self.parts, operations)
            for n, layer in enumerate(body.layers)
        ]

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        ends: Tensor | slice,
        step: ForwardPass | StaticPass,
        images: RowImages | None = None,
    ) -> Tensor:
        """Compute logits [len(ends), vocabulary] at the indices `ends` of the packed row `tokens` [1, T].

        Args:
            positions: [1, T], the position of each token in its sequence, or [3, 1, T].
            images: those of the row.
        """
        embedded = self.body.embed_tokens(tokens)
        cosine, sine = self.angles(self.residual(embedded), positions)
        x = self.residual(embedded[0] if images is None else images.embedded(embedded[0]))
        added: Tensor | None = None
        for number, layer in enumerate(self._layers):
            x, added = layer(x, added, cosine, sine, step)
            if images is not None:
                x, added = images.behind(number, x + added), None
        return self.logits(x[ends], None if added is None else added[ends])

    def angles(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The encoding of positions in the dtype of `x` (1, T, hidden), as layers take it."""
        cosine, sine = (angle[0].clone() for angle in self.body.rotary_emb(x, positions))
        sine[..., : sine.shape[-1] // 2].neg_()
        return cosine, sine

    def logits(self, x: Tensor, added: Tensor | None) -> Tensor:
        """What the head makes of the sum of both, [n, hidden]."""
        _, normed = self._operations.add_norm(x, added, self.body.norm)
        logits: Tensor = self._module.lm_head(normed)
        return logits

    def layer(self, number: int, x: Tensor, cosine: Tensor, sine: Tensor, step: ForwardPass) -> Tensor:
        """What one layer makes of `x` [T, hidden], for who compares it."""
        before, added = self._layers[number](self.residual(x), None, cosine, sine, step)
        return before + added

    def residual(self, embedded: Tensor) -> Tensor:
        """What the layers add to, from embeddings."""
        return self._operations.residual(embedded)

    def compute_by(self, operations: LayerOperations) -> None:
        """Compute what lies between the products in another way."""
        self._operations = operations
        for layer in self._layers:
            layer.operations = operations

    def free_modules(self) -> None:
        """Take the weights from the modules whose products were fused."""
        for layer in self._layers:
            for module in layer.fused_modules:
                for name in ("weight", "bias"):
                    setattr(module, name, None)

    def packed(self) -> Iterator[PackedLinear]:
        """Return the packed weights of the fused layers."""
        for layer in self._layers:
            for fused in layer.linears():
                yield from fused.packed()

    def tensors(self) -> Iterator[Tensor]:
        """Return the weights and biases of fused layers that are not packed; all others belong to the module."""
        for layer in self._layers:
            for fused in layer.linears():
                yield from fused.tensors()


def _require_children(module: nn.Module, required: set[str], optional: frozenset[str] | set[str] = frozenset()) -> None:
    """Raise `ValueError` unless the module has all required children, and no others than the optional ones."""
    found = {name for name, _ in module.named_children()}
    if not required <= found <= required | optional:
        raise ValueError(f"{type(module).__name__} holds {', '.join(sorted(found))}.")
