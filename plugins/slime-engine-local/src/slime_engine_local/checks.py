"""What the embedded engine sees of a run before it starts: whether it can serve the model at all. Named by the plugin
(`slime_core.contracts.checking`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.contracts.checking import Checking
from slime_core.training.model_facts import configuration_of
from slime_engine_local.model import refusal

if TYPE_CHECKING:
    from slime_engine_local.arguments import LocalRunArguments


def check(args: LocalRunArguments, checking: Checking) -> None:
    """Say why the engine does not serve the model, if it does not. That it cannot be read is the train backend's to say."""
    if not Path(args.hf_checkpoint).is_dir():
        return
    try:
        config = configuration_of(args.hf_checkpoint, "--hf-checkpoint")
    except Exception:  # transformers raises whatever its parsers raise
        return
    if reason := refusal(config):
        checking.error(f"The engine 'local' cannot serve {args.hf_checkpoint}: {reason}.")
