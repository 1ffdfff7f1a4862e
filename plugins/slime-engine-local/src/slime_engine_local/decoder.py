"""A Llama-like decoder computed with a third of the operations that its Hugging Face module takes.

At a few rows an operation costs more than what it computes. So queries, keys and values come from one product, gate and
up projection from another, and positions are encoded in queries and keys together. `slime_engine_local.model` uses it
where it fits the module's layers and then computes the module's logits; all other models run as transformers wrote
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from slime_core.tensors.rms_norm import rms_norm
from slime_engine_local.attention import attend
from slime_engine_local.forward_pass import ForwardPass
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
        layers: the layers, whose weights are copied, and packed where that is possible.

    Raises:
        TypeError: some of the layers have a bias and others have none.
    """

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        weight = torch.cat([layer.weight for layer in layers])
        self._bias: Tensor | None = None
        if layers[0].bias is not None:
            self._bias = torch.cat([layer.bias for layer in layers]).detach()
        packed = weight.dtype == torch.float32 and weight.device.type == "cpu" and packing_works()
        self._weight: PackedLinear | Tensor = PackedLinear(weight, None) if packed else weight.detach()
        self._new: dict[int, Tensor] = {}

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
    """

    def __init__(self, module: Any, name: str, setting: tuple[float, int | None], parts: dict[str, FusedPart]) -> None:
        self.attention, (self.scale, self.window) = module.self_attn, setting
        mlp = module.mlp

        def fuse(owner: Any, path: str, names: list[str]) -> FusedLinear:
            layers = [getattr(owner, n) for n in names]
            fused = FusedLinear(layers)
            for number, (n, layer) in enumerate(zip(names, layers, strict=True)):
                for attribute in ("weight", "bias"):
                    if getattr(layer, attribute) is not None:
                        parts[f"{name}.{path}.{n}.{attribute}"] = fused.part(number, attribute)
            return fused

        self.norms = (module.input_layernorm, module.post_attention_layernorm)
        self.inputs = fuse(self.attention, "self_attn", ["q_proj", "k_proj", "v_proj"])
        self.output = fuse(self.attention, "self_attn", ["o_proj"])
        self.gate_up = fuse(mlp, "mlp", ["gate_proj", "up_proj"])
        self.down = fuse(mlp, "mlp", ["down_proj"])
        self.activation: Callable[[Tensor], Tensor] = mlp.act_fn
        self.size: int = self.attention.head_dim
        self.heads = [size // self.size for size in self.inputs.sizes]
        self.query_key_norms = [
            getattr(self.attention, n) for n in sorted(ATTENTION_NORMS, reverse=True) if hasattr(self.attention, n)
        ]

    def __call__(self, x: Tensor, cosine: Tensor, sine: Tensor, step: ForwardPass | StaticPass) -> Tensor:
        """Compute the layer: [T, hidden] to the same shape.

        Args:
            cosine, sine: [T, 1, head size], the encoding of the positions; the first half of `sine` has its sign
                changed.
        """
        rows, (queries, keys, values) = len(x), self.heads
        projected = self.inputs(_norm(self.norms[0], x)).view(rows, queries + keys + values, self.size)
        encoded = projected[:, : queries + keys]
        if self.query_key_norms:
            parts = torch.split(encoded, [queries, keys], 1)
            encoded = torch.cat([_norm(norm, part) for norm, part in zip(self.query_key_norms, parts, strict=True)], 1)
        encoded = (encoded * cosine).addcmul_(encoded.roll(self.size // 2, -1), sine)
        query, key = (part.transpose(0, 1)[None] for part in torch.split(encoded, [queries, keys], 1))
        value = projected[:, queries + keys :].transpose(0, 1)[None]
        seen, _ = attend(self.attention, query, key, value, None, self.scale, self.window, slime_pass=step)
        x = x + self.output(seen.reshape(rows, -1))
        gate, up = torch.split(self.gate_up(_norm(self.norms[1], x)), self.gate_up.sizes, -1)
        return x + self.down(self.activation(gate) * up)


class FusedDecoder:
    """A causal language model that consists of such layers.

    Args:
        module: the Hugging Face module, with weights. Its embedding, norms and head go on being used.
        settings: scale and window of each layer's attention.

    Attributes:
        parts: the weights and biases that were fused, by name, to which new values can be copied.
        body: the part of the module that reads embeddings.

    Raises:
        AttributeError, TypeError, ValueError: the module is of another kind.
    """

    def __init__(self, module: Any, settings: dict[int, tuple[float, int | None]]) -> None:
        self.parts: dict[str, FusedPart] = {}
        self._module = module
        path, body = language_part(module)
        self.body = body
        for layer in body.layers:
            _require_children(layer, LAYER_MODULES)
            _require_children(layer.self_attn, ATTENTION_MODULES, ATTENTION_NORMS)
            _require_children(layer.mlp, MLP_MODULES)
        self._layers = [
            FusedLayer(layer, f"{path}.layers.{n}", settings[n], self.parts) for n, layer in enumerate(body.layers)
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
        body = self.body
        x = body.embed_tokens(tokens)
        cosine, sine = (angle[0, :, None].clone() for angle in body.rotary_emb(x, positions))
        sine[..., : sine.shape[-1] // 2].neg_()
        x = x[0] if images is None else images.embedded(x[0])
        for number, layer in enumerate(self._layers):
            x = layer(x, cosine, sine, step)
            if images is not None:
                x = images.behind(number, x)
        logits: Tensor = self._module.lm_head(_norm(body.norm, x[ends]))
        return logits

    def packed(self) -> Iterator[PackedLinear]:
        """Return the packed weights of the fused layers."""
        for layer in self._layers:
            for fused in (layer.inputs, layer.output, layer.gate_up, layer.down):
                yield from fused.packed()

    def tensors(self) -> Iterator[Tensor]:
        """Return the weights and biases of fused layers that are not packed; all others belong to the module."""
        for layer in self._layers:
            for fused in (layer.inputs, layer.output, layer.gate_up, layer.down):
                yield from fused.tensors()


def _require_children(module: nn.Module, required: set[str], optional: frozenset[str] | set[str] = frozenset()) -> None:
    """Raise `ValueError` unless the module has all required children, and no others than the optional ones."""
    found = {name for name, _ in module.named_children()}
    if not required <= found <= required | optional:
        raise ValueError(f"{type(module).__name__} holds {', '.join(sorted(found))}.")


def _norm(module: Any, x: Tensor) -> Tensor:
    """Normalise the last dimension as the RMS norm `module` does."""
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return rms_norm(x, module.weight, module.variance_epsilon)
    if x.dtype == torch.float32 or x.is_cuda:
        return torch.nn.functional.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)
    normalised: Tensor = module(x)  # which computes in float32 in between
    return normalised
