"""Names of weights that checkpoints have and models in transformers do not: servers read the former alone, and die of others. Called
where weights are sent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.data.quantised_checkpoints import stored_tensors
from slime_core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def as_in_files(weights: Iterable[tuple[str, Tensor]], checkpoint: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights as they come, under the names that a checkpoint's files have, and the experts of a layer one by one where
    these have them so: of all together a server of Qwen3-MoE would take nothing, and say nothing."""
    from slime_core.tensors.experts import taken_apart

    if is_renamed(checkpoint):
        weights = ((name_in_files(name), tensor) for name, tensor in weights)
    try:
        known = stored_tensors(Path(checkpoint)).keys()
    except CheckpointError:  # it is in another format, which does not tell
        yield from weights
        return
    yield from taken_apart(weights, known)


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
