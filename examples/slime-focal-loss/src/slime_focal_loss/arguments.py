"""The option of the focal loss, which its line in `plugin.py` names in `reads_options`."""

from __future__ import annotations

from slime_core.contracts.options import ArgumentGroup, option


class FocalArguments(ArgumentGroup):
    """Focal loss"""

    focal_gamma: float = option(
        2.0, "How strongly tokens that the model already predicts well are turned down; 0 is sft_loss.", ge=0
    )
