"""Llama's kind of decoder computed with a third of the operations that its Hugging Face module takes.

At a few rows an operation costs more than what it computes. Queries, keys and values come from one product, gate and up
from another, and positions are encoded in queries and keys together. `slime_engine_local.model` uses it where it fits the
module's layers and then gives the module's logits; everything else runs as transformers wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from slime_engine_local.attention import Pass, attend
from slime_engine_local.packed import PackedLinear, packing_works

LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
NORMS = {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class Joined:
    """Linear layers that read the same input, as one.

    Args:
        layers: their weights are copied, packed where that is possible.
    """

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        weights = [layer.weight for layer in layers]
        packed = weights[0].dtype == torch.float32 and weights[0].device.type == "cpu" and packing_works()
        self._bias: Tensor | None = None
        if layers[0].bias is not None:
            self._bias = torch.cat([layer.bias for layer in layers]).detach()
        self._packed = PackedLinear(torch.cat(weights), None) if packed else None
        self._weight = None if packed else torch.cat(weights).detach()
        self._new: dict[int, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is None:
            return linear(x, self._weight, self._bias)
        product = self._packed(x)
        return product if self._bias is None else product.add_(self._bias)

    def tensors(self) -> Iterator[Tensor]:
        """Its weight and bias, those that there are and are not packed."""
        return (tensor for tensor in (self._weight, self._bias) if tensor is not None)

    def part(self, number: int, attribute: str) -> Part:
        """Where new values of a layer's weight or bias go."""
        return Part(self, number, attribute)

    def take(self, number: int, attribute: str, new: Tensor) -> None:
        """New values of one layer. Weights that are packed are copied when the last of them has come."""
        end = sum(self.sizes[: number + 1])
        rows = slice(end - self.sizes[number], end)
        if attribute == "bias":
            self._bias[rows].copy_(new)
        elif self._packed is None:
            self._weight[rows].copy_(new)
        else:
            self._new[number] = new
            if len(self._new) == len(self.sizes):
                self._packed.copy_(torch.cat([self._new[n] for n in range(len(self.sizes))]))
                self._new = {}


class Part:
    """One layer of several that were joined, as something that new weights are copied to."""

    def __init__(self, joined: Joined, number: int, attribute: str) -> None:
        self._joined, self._number, self._attribute = joined, number, attribute

    def copy_(self, new: Tensor) -> None:
        self._joined.take(self._number, self._attribute, new)


class Layer:
    """One decoder layer.

    Args:
        module, name: the Hugging Face one, and its place in the model.
        setting: scale and window of its attention.
        parts: collects what was joined, by name.
    """

    def __init__(self, module: Any, name: str, setting: tuple[float, int | None], parts: dict[str, Part]) -> None:
        self.attention, (self.scale, self.window) = module.self_attn, setting
        mlp = module.mlp

        def join(owner: Any, path: str, names: list[str]) -> Joined:
            layers = [getattr(owner, n) for n in names]
            joined = Joined(layers)
            for number, (n, layer) in enumerate(zip(names, layers, strict=True)):
                for attribute in ("weight", "bias"):
                    if getattr(layer, attribute) is not None:
                        parts[f"{name}.{path}.{n}.{attribute}"] = joined.part(number, attribute)
            return joined

        self.norms = (module.input_layernorm, module.post_attention_layernorm)
        self.inputs = join(self.attention, "self_attn", ["q_proj", "k_proj", "v_proj"])
        self.output = join(self.attention, "self_attn", ["o_proj"])
        self.gate_up = join(mlp, "mlp", ["gate_proj", "up_proj"])
        self.down = join(mlp, "mlp", ["down_proj"])
        self.activation: Callable[[Tensor], Tensor] = mlp.act_fn
        self.size: int = self.attention.head_dim
        self.heads = [size // self.size for size in self.inputs.sizes]
        self.encoded_norms = [
            getattr(self.attention, n) for n in sorted(NORMS, reverse=True) if hasattr(self.attention, n)
        ]

    def __call__(self, x: Tensor, cosine: Tensor, sine: Tensor, step: Pass) -> Tensor:
        """[T, hidden] to the same. `cosine` and `sine` are [T, 1, size], the first half of `sine` negative."""
        rows, (queries, keys, values) = len(x), self.heads
        found = self.inputs(_norm(self.norms[0], x)).view(rows, queries + keys + values, self.size)
        encoded = found[:, : queries + keys]
        if self.encoded_norms:
            parts = encoded.split([queries, keys], 1)
            encoded = torch.cat([_norm(norm, part) for norm, part in zip(self.encoded_norms, parts, strict=True)], 1)
        encoded = (encoded * cosine).addcmul_(encoded.roll(self.size // 2, -1), sine)
        query, key = (part.transpose(0, 1)[None] for part in encoded.split([queries, keys], 1))
        value = found[:, queries + keys :].transpose(0, 1)[None]
        seen, _ = attend(self.attention, query, key, value, None, self.scale, self.window, slime_pass=step)
        x = x + self.output(seen.reshape(rows, -1))
        gate, up = self.gate_up(_norm(self.norms[1], x)).split(self.gate_up.sizes, -1)
        return x + self.down(self.activation(gate) * up)


class Decoder:
    """A causal language model of such layers.

    Args:
        module: the Hugging Face module, with weights. Its embedding, norms and head go on being used.
        settings: scale and window of each layer's attention.

    Attributes:
        parts: what new weights of the joined layers are copied to, by the weights' names.

    Raises:
        AttributeError, TypeError, ValueError: it is of another kind.
    """

    def __init__(self, module: Any, settings: dict[int, tuple[float, int | None]]) -> None:
        self.parts: dict[str, Part] = {}
        self._module, body = module, module.model
        for layer in body.layers:
            _expect(layer, LAYER)
            _expect(layer.self_attn, ATTENTION, NORMS)
            _expect(layer.mlp, MLP)
        self._layers = [
            Layer(layer, f"model.layers.{n}", settings[n], self.parts) for n, layer in enumerate(body.layers)
        ]

    def __call__(self, tokens: Tensor, places: Tensor, ends: Tensor, step: Pass) -> Tensor:
        """Logits [len(ends), vocabulary] after the rows `ends` of the packed row `tokens` [1, T] at `places`."""
        body = self._module.model
        x = body.embed_tokens(tokens)
        cosine, sine = (angle[0, :, None].clone() for angle in body.rotary_emb(x, places))
        sine[..., : sine.shape[-1] // 2].neg_()
        x = x[0]
        for layer in self._layers:
            x = layer(x, cosine, sine, step)
        return self._module.lm_head(_norm(body.norm, x[ends]))

    def tensors(self) -> Iterator[Tensor]:
        """The weights and biases of joined layers; all others are the module's own."""
        for layer in self._layers:
            for joined in (layer.inputs, layer.output, layer.gate_up, layer.down):
                yield from joined.tensors()


def _expect(module: nn.Module, children: set[str], optional: frozenset[str] | set[str] = frozenset()) -> None:
    found = {name for name, _ in module.named_children()}
    if not children <= found <= children | optional:
        raise ValueError(f"{type(module).__name__} holds {', '.join(sorted(found))}.")


def _norm(module: Any, x: Tensor) -> Tensor:
    if x.dtype == torch.float32:
        return rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)
    return module(x)  # computes in float32 in between
