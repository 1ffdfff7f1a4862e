"""LoRA: adapters in place of all weights. A backend that can train them declares that it reads these options; the core itself
reads none of them."""

from __future__ import annotations

from slime_core.contracts.options import ArgumentGroup, option


class LoraArguments(ArgumentGroup):
    """LoRA adapters"""

    lora_rank: int = option(0, "Rank of LoRA adapters, which are then all that is trained. 0: train all weights.", ge=0)
    lora_alpha: float = option(16.0, "An adapter's output is scaled by --lora-alpha / --lora-rank.", gt=0)
    lora_dropout: float = option(0.0, "Share of an adapter's inputs that is dropped in training.", ge=0, lt=1)
    target_modules: list[str] = option(
        ["all-linear"], "Linear layers with an adapter, such as q_proj; all-linear: every one in the model's blocks."
    )
