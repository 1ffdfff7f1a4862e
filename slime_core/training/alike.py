"""Whether a function of a person's own, which every training rank calls with the whole rollout, gave the same in each. Called
by `columns` and `postprocess`; torch is imported when a function is called, in the training process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from slime_core.errors import PluginError
from slime_core.plugins import Selected
from slime_core.token_arrays import array_of


def require_alike(
    component: Selected[Any], made: Iterable[Any], given: Callable[[], Iterable[Any]], instead: str = ""
) -> None:
    """Compare what a component made in this rank with what it made in the others. All ranks call this at the same time.

    Nothing is compared in a process alone, and where the train backend connects its ranks by other means than `torch.distributed`.

    Args:
        made: its numbers, in rows such as those of samples.
        given: those that it made them from. Ranks that were given others are not compared.
        instead: what to do if noise is wanted, as a sentence.

    Raises:
        PluginError: it made different numbers from the same. Every rank raises it.
    """
    import torch
    import torch.distributed as dist

    from slime_core.tensors.ranks import Ranks

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    what = f"what the {component.label} gives them"
    found = ranks.gather(_digest(made), what)
    if len(set(found)) == 1:
        return
    first: dict[str, int] = {}
    for rank, own in enumerate(ranks.gather(_digest(given()), what)):
        other = first.setdefault(own, rank)
        if found[other] != found[rank]:
            raise PluginError(
                f"The {component.label} gave training rank {rank} other numbers than rank {other} for the same rollout. Each of the "
                f"{ranks.size} ranks calls it with all samples and trains a part of them with what it gave, so it must give the same in "
                "each: without random numbers, or with those of a generator that it seeds anew in every call, and without what differs "
                f"between processes, such as the time, hash() of text or the order of a set. {instead}".rstrip()
            )


def _digest(rows: Iterable[Any]) -> str:
    """Of the numbers as they lie, since a rollout may have millions of them: 3 ns for each of 4 bytes."""
    import numpy as np

    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.ascontiguousarray(array_of(row)).data)
    return digest.hexdigest()
