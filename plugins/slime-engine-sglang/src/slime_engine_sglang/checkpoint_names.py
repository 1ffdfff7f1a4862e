"""Names of weights that checkpoints have and models in transformers do not: servers read the former alone, and die of others. Called
where weights are sent."""

from __future__ import annotations

import json
from pathlib import Path


def is_renamed(checkpoint: str) -> bool:
    """Whether transformers gives the weights of a checkpoint other names when it loads it."""
    try:
        said = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("model_type") in ("qwen2_vl", "qwen2_5_vl")


def name_in_files(name: str) -> str:
    """The name that a weight of Qwen2-VL or Qwen2.5-VL has in the files of a checkpoint."""
    for own, stored in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if name.startswith(own):
            return stored + name.removeprefix(own)
    return name
