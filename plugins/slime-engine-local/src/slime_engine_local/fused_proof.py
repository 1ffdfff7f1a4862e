"""Whether a `FusedDecoder` computes what its Hugging Face module does. Called by `slime_engine_local.model`.

In float32 the logits are compared. In half precision every layer rounds, at other places than the module does, and the distances of
some dozens of layers add up to more than a wrong layer would be told by. So layers are compared one by one, each on what the module
hands to its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slime_engine_local.decoder import FusedDecoder
from slime_engine_local.forward_pass import ForwardPass

ROUNDING = 0.02
"""How far a layer may be off, as a share of the spread of what it adds."""


def agree(logits: Tensor, expected: Tensor, rounding: float = ROUNDING) -> bool:
    """Return whether logits differ by no more than rounding, which grows with the largest of them; in half precision by a share of
    their spread on average, since every layer rounds its result."""
    if expected.dtype in (torch.float32, torch.float64):
        tolerance = 1e-9 if expected.dtype == torch.float64 else 1e-3
        return torch.allclose(logits, expected, rtol=0, atol=tolerance * expected.abs().max().item())
    difference = (logits.float() - expected.float()).abs().mean()
    return bool(difference <= rounding * expected.float().std())


class SeenLayers:
    """What the layers of a module read and made in one pass.

    Args:
        body: the part of the module that has the layers.
        run: makes the pass, and returns logits.

    Attributes:
        layers: [T, hidden] before and behind each layer.
        last: what the last norm read.
        logits: what `run` returned.
    """

    def __init__(self, body: Any, run: Callable[[], Tensor]) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.last: Tensor | None = None
        handles = [layer.register_forward_hook(self._layer, with_kwargs=True) for layer in body.layers]
        handles.append(body.norm.register_forward_pre_hook(self._norm))
        try:
            self.logits = run()
        finally:
            for handle in handles:
                handle.remove()

    def _layer(self, _: Any, given: tuple[Any, ...], named: dict[str, Any], made: Any) -> None:
        before = given[0] if given else named["hidden_states"]
        behind = made[0] if isinstance(made, tuple) else made
        self.layers.append((before[0].clone(), behind[0].clone()))

    def _norm(self, _: Any, given: tuple[Any, ...]) -> None:
        self.last = given[0][0].clone()


def layers_agree(
    decoder: FusedDecoder, seen: SeenLayers, embedded: Tensor | None, positions: Tensor, step: ForwardPass
) -> bool:
    """Compare a decoder with its module layer by layer.

    Args:
        embedded: [T, hidden], what the decoder makes of the tokens; None where images are among them.
        positions, step: as those of the module's pass.
    """
    if seen.last is None or not seen.layers or (embedded is not None and not agree(embedded, seen.layers[0][0])):
        return False
    cosine, sine = decoder.angles(decoder.residual(seen.last[None]), positions)
    for number, (before, behind) in enumerate(seen.layers):
        found = decoder.layer(number, before, cosine, sine, step).float()
        change = behind.float() - before.float()
        # The module rounds the sum, whose numbers may be much larger than what is added.
        allowed = ROUNDING * change.std() + torch.finfo(before.dtype).eps * behind.float().abs().mean()
        if not (found - behind.float()).abs().mean() <= allowed:
            return False
    return agree(decoder.logits(decoder.residual(seen.last[-1:]), None), seen.logits[-1:])
