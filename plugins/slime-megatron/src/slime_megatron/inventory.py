"""All weights of a whole model, by megatron-core's names and by those of the file, from what its family says alone: no model is
built, and megatron-core is not imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from slime_core.errors import CheckpointError
from slime_megatron.families.shared import LAYER
from slime_megatron.names import Names
from slime_megatron.spec import ModelSpec

VALUE_HEAD_FILE = "value_head.weight"
_DENSE = "mlp.linear_fc"
_SPARSE = ("mlp.router.", "mlp.experts.", "mlp.shared_experts.")


def is_sparse(spec: ModelSpec, layer: int) -> bool:
    """Whether a layer has experts in place of one MLP."""
    return bool(spec.config.get("num_moe_experts")) and bool(spec.config["moe_layer_freq"][layer])


def megatron_names(spec: ModelSpec) -> Iterator[str]:
    """The name of every weight, with the numbers of the whole model; the layers in their order."""
    names = [rule.megatron for rule in spec.rules if not rule.optional]
    yield from (name for name in names if "{layer}" not in name)
    for layer in range(spec.config["num_layers"]):
        sparse = is_sparse(spec, layer)
        for name in names:
            own = name.removeprefix(LAYER)
            if own == name or own.startswith(_DENSE if sparse else _SPARSE):
                continue
            for expert in range(spec.config["num_moe_experts"]) if "{expert}" in own else (0,):
                yield name.format(layer=layer, expert=expert)


def require_known(found: Iterable[str], spec: ModelSpec, where: str) -> None:
    """Refuse weights of a file that no rule knows: they would be lost, and the model computed without them.

    Names under which nothing is that a model computes with are let through: layers that an export copies
    (`ModelSpec.extra_file_prefixes`), rotary frequencies, a second copy of a tied embedding, the head of a critic.

    Args:
        found: the names in the file.
        where: the file, for messages.

    Raises:
        CheckpointError: names them.
    """
    names = Names(spec.rules)
    known = {name for own in megatron_names(spec) for name in names.of(own)[1]}
    unknown = sorted(name for name in found if name not in known and not _is_harmless(name, spec))
    if unknown:
        raise CheckpointError(
            f"{where} has {len(unknown)} weights that its family does not know, and that would be lost: {shown(unknown)}. The "
            "configuration may be of another model than the weights; if they belong together, the family needs rules for them."
        )


def _is_harmless(name: str, spec: ModelSpec) -> bool:
    tied = spec.model["share_embeddings_and_output_weights"] and name == "lm_head.weight"
    return tied or name == VALUE_HEAD_FILE or name.endswith(".rotary_emb.inv_freq") or is_extra(name, spec)


def is_extra(name: str, spec: ModelSpec) -> bool:
    """Whether a weight of the file is one that training does not use and an export copies."""
    return bool(spec.extra_file_prefixes) and name.startswith(spec.extra_file_prefixes)


def shown(names: list[str]) -> str:
    """The first names of a list, for messages."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
