"""A packed row that was made in host memory, on the device that computes it. Called by train backends for every micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from slime_core.tensors.packed_rows import Branches, PackedRow, Segments
from slime_core.tensors.sequences import Sequences
from slime_core.tensors.transfer import sent


def sent_row(row: PackedRow, device: torch.device) -> PackedRow:
    """Return a packed row that was made in host memory with all of its tensors on `device`, as `sent` does."""
    if device.type == "cpu":
        return row

    def each(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: sent(tensor, device) for name, tensor in tensors.items()}

    return replace(
        row,
        input_ids=sent(row.input_ids, device),
        position_ids=sent(row.position_ids, device),
        segments=_sent_segments(row.segments, device),
        predictors=sent(row.predictors, device),
        targets=sent(row.targets, device),
        sample_index=sent(row.sample_index, device),
        columns=each(row.columns),
        images=each(row.images),
    )


def _sent_segments(segments: Segments, device: torch.device) -> Segments:
    def inner(branches: Branches | None) -> Branches | None:
        if branches is None:
            return None
        return replace(branches, owner=sent(branches.owner, device), position=sent(branches.position, device))

    return replace(
        segments,
        bounds=sent(segments.bounds, device),
        branches=tuple(inner(branches) for branches in segments.branches),
        blocks=tuple(None if block is None else sent(block, device) for block in segments.blocks),
        sequences=Sequences.of(segments, device),
    )
