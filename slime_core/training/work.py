"""How much work a sample is for a model, so that `--balance-data` can give every rank as much. Called by `Packing`.

An estimate from the dimensions of a decoder with attention over the whole context and gated MLPs: the products of a forward pass. Those
of a backward pass are twice as many of each kind, so that shares stay what they are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from slime_core.contracts.memory import ModelShape
from slime_core.training.checkpoint_check import read_configuration
from slime_core.training.memory import Dimensions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """Multiplications of a forward pass. By default 1 for each token, so that tokens are counted.

    Attributes:
        token: of a token in all layers, but for what grows with the context.
        trained: of a trained token in the head.
        pair: of a token and one that it attends to, itself included, in all layers.
    """

    token: int = 1
    trained: int = 0
    pair: int = 0

    @classmethod
    def of(cls, d: Dimensions) -> Work:
        """The work that a model is."""
        attended = d.values if d.latent else d.queries
        projected = d.latent * (d.hidden + d.queries) if d.latent else d.hidden * (d.queries + d.keys + d.values)
        attention = projected + attended * d.hidden
        mlp = 3 * d.hidden * (d.dense * d.mlp + (d.layers - d.dense) * d.experts)
        return cls(
            token=d.layers * attention + mlp,
            trained=d.hidden * d.vocabulary,
            pair=d.layers * (d.queries + attended),
        )

    def of_samples(self, prompt: int, responses: Sequence[int], trained: int) -> int:
        """The work of samples whose common prompt is computed once.

        Args:
            prompt: its tokens.
            responses: the tokens of each response; every one attends to the prompt and to itself.
            trained: the trained tokens of all together.
        """
        tokens = prompt + sum(responses)
        pairs = _pairs(prompt) + sum(prompt * response + _pairs(response) for response in responses)
        return self.token * tokens + self.trained * trained + self.pair * pairs


TOKENS = Work()
"""Tokens are counted, whatever the model."""


def work_of(folder: str) -> Work:
    """The work that the model of a Hugging Face checkpoint is; where its configuration does not tell, `TOKENS`, and a warning."""
    language = read_configuration(folder, "--hf-checkpoint").get_text_config()
    try:
        return Work.of(Dimensions.of(ModelShape({}, language.to_dict())))
    except (KeyError, TypeError) as error:
        logger.warning(
            "--balance-data counts tokens, not work: the configuration of %s does not say what a token is (%s).",
            *(folder, f"{type(error).__name__}: {error}"),
        )
        return TOKENS


def _pairs(tokens: int) -> int:
    return tokens * (tokens + 1) // 2
