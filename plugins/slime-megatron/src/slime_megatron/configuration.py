"""From a Hugging Face configuration and the options to what megatron-core must be told. Imports no megatron-core."""

from __future__ import annotations

from typing import Any

from slime_core.data.vision import FAMILIES as IMAGE_FAMILIES
from slime_core.errors import did_you_mean
from slime_megatron.arguments import MegatronArguments
from slime_megatron.families import FAMILIES
from slime_megatron.heads import fill_up_heads
from slime_megatron.model_flags import compare
from slime_megatron.spec import ConfigReader, Family, ModelSpec


def read_spec(config: Any, where: str, args: MegatronArguments, tensor: int) -> ModelSpec:
    """What the family of a configuration makes of it; every key of it is looked at.

    Args:
        config: of transformers.
        where: the checkpoint, for messages.
        tensor: tensor-parallel ranks.

    Raises:
        ArgumentError: there is no such family, it refuses the configuration, an option contradicts that, or the ranks do not
            divide its heads.
    """
    reader = ConfigReader(config.to_dict(), where)
    multiple = args.make_vocab_size_divisible_by * tensor
    spec = _family(reader, args)(reader, lambda size: -(-size // multiple) * multiple)
    reader.require_all_read()
    compare(args, spec, where, reader.model_type)
    fill_up_heads(spec, tensor)
    return spec


def _family(reader: ConfigReader, args: MegatronArguments) -> Family:
    if args.custom_model_provider_path:
        from slime_core.plugins.import_path import resolve

        own: Family = resolve(args.custom_model_provider_path)
        return own
    if reader.model_type in IMAGE_FAMILIES:
        reader.refuse(
            f"models of the type {reader.model_type!r} read images, and megatron-core computes the text alone here: they would train "
            "blind. Train them with --train-backend torch"
        )
    if reader.model_type not in FAMILIES:
        reader.refuse(
            f"models of the type {reader.model_type!r} are not mapped to megatron-core; mapped are {', '.join(FAMILIES)}."
            f"{did_you_mean(reader.model_type, FAMILIES)} --custom-model-provider-path names a family of your own"
        )
    return FAMILIES[reader.model_type]
