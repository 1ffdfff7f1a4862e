"""What this distribution gives to slime. Imports nothing heavy."""

from __future__ import annotations

from slime_core import Lazy, hookimpl


@hookimpl
def slime_losses() -> dict[str, Lazy]:
    return {"sft_loss": Lazy("slime_losses.sft:sft_loss", "negative log-likelihood of the trained tokens")}
