"""What low precision makes of the two factors of a matrix product, for the three products of a linear layer.

With input x (T, K), weight w (N, K) and gradient g (T, N) of the output:

    output              y  = x wᵀ     summed over K: x and w along their columns
    gradient of input   dx = g w      summed over N: g along its columns, w along its rows
    gradient of weight  dw = gᵀ x     summed over T: g and x along their rows

Where blocks are one number high they run along the direction that is summed over, so a matrix has two versions, each made from
high precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from slime_fp8.delayed import AmaxAlgorithm, next_scale, quantise_with
from slime_fp8.quantise import Format, Quantised, Quantiser

Role = Literal["input", "weight", "gradient"]
ROLES: tuple[Role, ...] = ("input", "weight", "gradient")


@dataclass(frozen=True)
class Directions:
    """The quantisers of one matrix.

    Attributes:
        along_columns: for products that are summed over its columns.
        along_rows: for products that are summed over its rows.
    """

    along_columns: Quantiser
    along_rows: Quantiser


class Operands(nn.Module):
    """Quantises the matrices of one linear layer without memory of earlier ones."""

    def __init__(self, quantisers: Mapping[Role, Directions]) -> None:
        super().__init__()
        self.quantisers = dict(quantisers)

    def both(self, role: Role, matrix: Tensor) -> tuple[Quantised, Quantised]:
        """Quantise a matrix for products along its columns, and for those along its rows."""
        directions = self.quantisers[role]
        first = directions.along_columns.quantise(matrix)
        same = directions.along_columns == directions.along_rows
        return first, first if same else directions.along_rows.quantise(matrix)


class DelayedOperands(nn.Module):
    """Quantises the matrices of one linear layer with scales that come from earlier steps.

    Magnitudes are noted in training mode alone. Scales move at the end of a step: a layer that is called once for each micro-batch,
    and again where activations are computed anew in the backward pass, has the same scales in all of these calls. (Transformer
    Engine moves them with every forward pass, so there each micro-batch has other ones.)

    Buffers: `scale` (3,) and `history` (H, 3), in the order of `ROLES`; `history[0]` is of the step that is being taken.
    """

    scale: Tensor
    history: Tensor

    def __init__(
        self,
        formats: Mapping[Role, Format],
        history: int = 1,
        margin: int = 0,
        algorithm: AmaxAlgorithm = "most_recent",
    ) -> None:
        super().__init__()
        self.formats, self.margin, self.algorithm = dict(formats), margin, algorithm
        self.register_buffer("scale", torch.ones(len(ROLES)))
        self.register_buffer("history", torch.zeros(history, len(ROLES)))

    def both(self, role: Role, matrix: Tensor) -> tuple[Quantised, Quantised]:
        """Quantise a matrix, alike for both directions."""
        place, format = ROLES.index(role), self.formats[role]
        scale = self.scale[place].to(torch.float32).clone()
        made = quantise_with(matrix, scale, format)
        if self.training and matrix.numel():
            amax = matrix.detach().abs().amax().to(torch.float32)
            self.history[0, place] = torch.maximum(self.history[0, place], amax)
        return made, made

    def end_step(self, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Find the scales of the next step from the magnitudes of this one and of those before it.

        Args:
            over_ranks: takes a tensor to the largest of each of its numbers over all ranks.
        """
        end_step([self], over_ranks)


def end_step(layers: Sequence[DelayedOperands], over_ranks: Callable[[Tensor], Tensor]) -> None:
    """Find the scales of the next step for the operands of many layers, together where they are alike: a GPU then starts a few
    operations, and not a few dozen for each layer. Ranks have the same layers in the same order."""
    alike: dict[tuple[object, ...], list[DelayedOperands]] = {}
    for own in layers:
        key = (
            *own.formats.values(),
            own.margin,
            own.algorithm,
            len(own.history),
            own.history.dtype,
            own.history.device,
        )
        alike.setdefault(key, []).append(own)
    for group in alike.values():
        scale, history = torch.stack([own.scale for own in group]), torch.stack([own.history for own in group], 1)
        magnitudes = over_ranks(history[0].clone())
        for place, role in enumerate(ROLES):
            scale[:, place], history[..., place] = next_scale(
                scale[:, place].clone(),
                history[..., place],
                magnitudes[:, place],
                group[0].formats[role],
                group[0].margin,
                group[0].algorithm,
            )
        torch._foreach_copy_([own.scale for own in group], list(scale))
        torch._foreach_copy_([own.history for own in group], list(history.unbind(1)))
