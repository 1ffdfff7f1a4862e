"""Which weights are quantised: one list for trainer, engine, exports and converters, in Hugging Face names. A list that differs
between two of them reads numbers that are no weights: an MoE router then chooses experts by chance, and nothing complains."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from slime_core.errors import ArgumentError

NEVER = (
    r"norm",
    r"embed",
    r"(^|\.)(wte|wpe)$",  # embeddings of GPT-2 and models of its shape
    r"(^|\.)lm_head$",
    r"(^|\.)shared_head\.head$",  # the head of a layer for multi-token prediction, of DeepSeek and GLM
    r"(^|\.)(score|v_head|value_head)$",  # heads of critics and reward models
    r"router",
    r"(^|\.)gate$",  # the router of Qwen, DeepSeek, GLM and Mixtral; gate_proj is a layer like others
    r"shared_expert_gate$",
    r"conv1d",
    r"(^|\.)in_proj_(a|b|ba)$",  # decay and strength of linear attention, a row for each head
    r"(^|\.)eh_proj$",  # joins hidden state and embedding in layers for multi-token prediction
    r"weights_proj$",  # weighs the heads of DeepSeek's indexer
    r"lora_",
    r"(^|\.)(visual|vision_tower|vision_model|multi_modal_projector)(\.|$)",
)
"""Regular expressions of modules that are not quantised under any recipe. They are few and small, or numbers that choose."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True)
class QuantisedModules:
    """Which modules of a model are quantised.

    Attributes:
        num_layers: of the model. Layers beyond it, which predict several tokens, count as last ones.
        first, last: so many layers at both ends are left out.
        further: regular expressions of modules that are left out besides `NEVER`.
    """

    num_layers: int
    first: int = 0
    last: int = 0
    further: Sequence[str] = ()
    _left_out: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises:
        ArgumentError: a regular expression is wrong, or no layer remains.
        """
        for pattern in self.further:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ArgumentError(
                    f"--fp8-modules-to-not-convert {pattern!r} is no regular expression: {error}. Expected one such as "
                    r"'o_proj$' or 'layers\.3\.'."
                ) from None
        if self.first + self.last and self.first + self.last >= self.num_layers:
            raise ArgumentError(
                f"--num-layers-at-start-in-bf16 {self.first} and --num-layers-at-end-in-bf16 {self.last} leave none of the "
                f"{self.num_layers} layers to FP8. Lower them, or leave --fp8-format out."
            )
        object.__setattr__(self, "_left_out", re.compile("|".join(f"(?:{p})" for p in (*NEVER, *self.further))))

    def holds(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether the weight `name` of this shape is quantised."""
        module = name.removesuffix(".weight")
        if module == name or len(shape) != 2 or self._left_out.search(module):
            return False
        layer = _LAYER.search(name)
        return layer is None or not self._at_an_end(int(layer[1]))

    def _at_an_end(self, layer: int) -> bool:
        return layer < self.first or (self.last > 0 and layer >= self.num_layers - self.last)

    def left_out(self, weights: Mapping[str, tuple[int, ...]]) -> list[str]:
        """The names of modules with a matrix that is not quantised, sorted.

        Args:
            weights: {name: shape} of all weights of the model.
        """
        return sorted(
            name.removesuffix(".weight")
            for name, shape in weights.items()
            if len(shape) > 1 and not self.holds(name, shape)
        )
