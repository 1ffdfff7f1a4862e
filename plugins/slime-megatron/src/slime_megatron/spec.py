"""`ModelSpec`: what a family makes of a Hugging Face configuration. `ConfigReader`: reads a configuration so that no key of it
is overlooked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from slime_core.errors import ArgumentError
from slime_megatron.names import Rule

Norm = Literal["rms", "zero_centred_rms"]


@dataclass
class ModelSpec:
    """Everything that megatron-core must be told to build the model of a configuration, exactly.

    Attributes:
        config: fields of megatron-core's `TransformerConfig`, or of `MLATransformerConfig` if `latent`.
        model: arguments of its `GPTModel`.
        rules: names and layouts of all weights.
        latent: multi-head latent attention.
        norm: of layers and heads.
        post_norms: attention and MLP are followed by a norm each, before the residual is added.
        attributes: set on the configuration; megatron-core reads some settings from attributes that are no fields.
        embedding_scale: embeddings are multiplied by it.
        attention_soft_cap, final_soft_cap: limits of scores and logits.
        windows: per layer, how far it looks back; None: all layers look at everything.
        extra_file_prefixes: weights of the file that training does not use and an export copies from the source.
        remarks: what a person should know about this model here.
        zero_heads: how many heads of zeros fill up each layer's for the tensor-parallel ranks.
    """

    config: dict[str, Any]
    model: dict[str, Any]
    rules: list[Rule]
    latent: bool = False
    norm: Norm = "rms"
    post_norms: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)
    embedding_scale: float | None = None
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    windows: Sequence[int | None] | None = None
    extra_file_prefixes: tuple[str, ...] = ()
    remarks: list[str] = field(default_factory=list)
    zero_heads: int = 0


class Family(Protocol):
    """A family of models: a function from a configuration to its `ModelSpec`.

    Raises:
        ArgumentError: the configuration has something that megatron-core cannot express exactly.
    """

    def __call__(self, config: ConfigReader, padded_vocabulary: Callable[[int], int], /) -> ModelSpec: ...


_OF_EVERY_CONFIG = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "cls_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "mask_token_id",
        "max_window_layers",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)
"""Keys that say nothing about what the model computes."""


class ConfigReader:
    """A configuration as a dict, of which every key must be read, ignored by name, or refused.

    Args:
        values: `PretrainedConfig.to_dict()`.
        where: the checkpoint, for messages.
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values, self._where = values, where
        self._read = set(_OF_EVERY_CONFIG)

    @property
    def model_type(self) -> str:
        return str(self._values.get("model_type"))

    def __getitem__(self, key: str) -> Any:
        """The value of a key that must be there."""
        self._read.add(key)
        if self._values.get(key) is None:
            raise ArgumentError(
                f"{self._where}: its configuration has no {key!r}, which a {self.model_type} model needs."
            )
        return self._values[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default where it is missing or null."""
        self._read.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def ignore(self, *keys: str) -> None:
        """These keys do not change what the model computes here."""
        self._read.update(keys)

    def require(self, key: str, *allowed: Any, why: str) -> None:
        """Refuse every value of a key but these (and none at all)."""
        value = self.get(key)
        if value is not None and value not in allowed:
            self.refuse(f"{key} is {value!r}; {why}")

    def refuse(self, why: str) -> None:
        """Raise `ArgumentError`: this model cannot be expressed exactly."""
        raise ArgumentError(
            f"{self._where} cannot be trained with --train-backend megatron: {why}. Use --train-backend torch, which runs "
            "the model of transformers itself."
        )

    def require_all_read(self) -> None:
        """Refuse the configuration if it has a key that nobody has looked at: it may change the model."""
        given = {key for key, value in self._values.items() if value is not None and not key.startswith("_")}
        if unread := sorted(given - self._read):
            shown = ", ".join(f"{key}={self._values[key]!r}" for key in unread)
            self.refuse(f"its configuration has keys that the family {self.model_type} does not know: {shown}")
