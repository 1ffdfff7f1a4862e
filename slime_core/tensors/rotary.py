"""Rotary embeddings whose frequencies depend on how long the sequence is: longrope, and dynamic NTK.

Where several sequences are computed at once, transformers takes the longest for the length of all, and dynamic NTK even
remembers an earlier one. What a row is trained on must not depend on its neighbours, so a train backend computes each
sequence by its own length (`per_sequence`), and whoever cannot do that refuses the model (`length_dependent`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def length_dependent(config: Any) -> str | None:
    """Return the kind of rotary embedding of a transformers configuration if its frequencies depend on the length of what is
    read, such as "longrope"; else None."""
    text = config.get_text_config()
    given: Any = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kinds = [given, *given.values()]  # one for all layers, or one for each type of layers
    found = (kind.get("rope_type") for kind in kinds if isinstance(kind, Mapping))
    return next((kind for kind in found if isinstance(kind, str) and _depends(kind)), None)


def per_sequence(model: nn.Module) -> bool:
    """Have the modules of a model that look at the longest position compute each sequence of a packed row by itself, and
    return whether there are any.

    A sequence begins at the position 0, so that none may share its prompt with another.
    """
    for module in _length_dependent_modules(model):
        module.forward = partial(_each, module, module.forward)
    return looks_at_length(model)


def looks_at_length(model: nn.Module) -> bool:
    """Whether a position in this model is computed otherwise in a longer sequence."""
    return any(True for _ in _length_dependent_modules(model))


def _length_dependent_modules(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        kinds: Any = getattr(module, "rope_type", None)
        every = kinds.values() if isinstance(kinds, Mapping) else [kinds]
        if any(isinstance(kind, str) and _depends(kind) for kind in every):
            yield module


def _depends(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _each(
    module: nn.Module,
    forward: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    position_ids: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Compute (cos, sin) of a row of positions, (1, N), whose sequences each begin at 0.

    What a sequence leaves behind in the module, such as the longest length so far, is forgotten before the next.
    """
    if position_ids.shape[0] != 1:
        return forward(x, position_ids, *args, **kwargs)
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    pieces = position_ids.tensor_split([start for start in starts if start > 0], dim=1)
    found = []
    for piece in pieces:
        attributes, buffers = dict(vars(module)), dict(module._buffers)
        found.append(forward(x, piece, *args, **kwargs))
        vars(module).clear()
        vars(module).update(attributes)
        module._buffers.clear()
        module._buffers.update(buffers)
    cosines, sines = zip(*found, strict=True)
    return torch.cat(cosines, 1), torch.cat(sines, 1)
