"""Where a weight is in a torch_dist folder. Its name there depends on who wrote it:

* All layers of a model in which they are alike are one tensor, with the layers as first dimension; else each layer has its
  number in the name. The same holds for the experts of a layer.
* With Transformer Engine a norm belongs to the linear layer behind it; slime's layers of GLM-4 call the norms behind attention
  and MLP `post_…_layernorm`.

`places` gives all that a weight may have, for reading; `megatron_place` the one that Megatron itself gives it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.(.+)")

_FUSED = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "self_attention.q_layernorm.weight": "self_attention.linear_q_up_proj.layer_norm_weight",
    "self_attention.kv_layernorm.weight": "self_attention.linear_kv_up_proj.layer_norm_weight",
    "self_attn_bda.norm.weight": "post_self_attn_layernorm.weight",
    "mlp_bda.norm.weight": "post_mlp_layernorm.weight",
}
"""Names here, and what else they may be called in a layer."""

_NOT_OF_THE_MODEL = (
    "optimizer.",
    "chained_",
    "precision.",
    "rng_state",
    "rerun_state",
    "opt_param_scheduler",
    "args",
    "iteration",
)


@dataclass(frozen=True)
class Place:
    """A weight in a folder.

    Attributes:
        keys: the names of the tensors; of several, which are one above the other, two.
        index: the numbers of its layer and expert, as far as they are dimensions of the tensors.
    """

    keys: tuple[str, ...]
    index: tuple[int, ...] = ()


def places(name: str) -> Iterator[Place]:
    """Every place that a weight may have, the likeliest first.

    Args:
        name: megatron-core's, with the numbers of the whole model.
    """
    if not (layered := _LAYER.fullmatch(name)):
        yield Place((name,))
        return
    layer, own = int(layered[1]), layered[2]
    for inside in _inside(own):
        for prefix, index in ((f"decoder.layers.{layer}.", ()), ("decoder.layers.", (layer,))):
            yield Place(tuple(prefix + key for key in inside.keys), (*index, *inside.index))


def _inside(own: str) -> Iterator[Place]:
    """The places of a weight in its layer."""
    if expert := _EXPERT.fullmatch(own):
        number, part = int(expert[1]), expert[2]
        together = "mlp.experts.experts."
        yield Place((together + part,), (number,))
        for single in (f"{together}{number}.{part}", f"{together}{part}{number}"):
            yield Place((single,))
            yield Place((f"{single}_w", f"{single}_v"))  # the gate and the up projection
        return
    yield Place((own,))
    if own in _FUSED:
        yield Place((_FUSED[own],))
    if own.endswith("linear_fc1.weight"):
        yield Place((f"{own}_w", f"{own}_v"))


def megatron_place(name: str, *, numbered: bool, sparse: bool, latent: bool) -> Place:
    """The place that Megatron with Transformer Engine gives a weight.

    Args:
        numbered: layers have numbers in their names, since they are not alike.
        sparse: its layer has experts.
        latent: attention is latent.
    """
    if not (layered := _LAYER.fullmatch(name)):
        return Place((name,))
    own, index = layered[2], () if numbered else (int(layered[1]),)
    prefix = f"decoder.layers.{layered[1]}." if numbered else "decoder.layers."
    if expert := _EXPERT.fullmatch(own):
        return Place((f"{prefix}mlp.experts.experts.{expert[2]}",), (*index, int(expert[1])))
    stays = {
        "input_layernorm.weight": latent,
        "pre_mlp_layernorm.weight": sparse,
        "self_attention.q_layernorm.weight": not latent,
    }
    return Place((prefix + (own if stays.get(own) else _FUSED.get(own, own)),), index)


def is_of_the_model(key: str) -> bool:
    """Whether a tensor of a folder is a weight: not of the optimizer, nor what a program keeps beside it."""
    return not key.startswith(_NOT_OF_THE_MODEL) and "_extra_state" not in key
