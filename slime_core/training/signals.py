"""Between samples and flat tensors: what an advantage estimator is given, and what becomes of its answer. Called by
`TrainWorker`. Pure; torch is imported when a function is called, in the training process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_core.sample import Group, Sample

if TYPE_CHECKING:
    from torch import Tensor

Column = Sequence[Sequence[float]]
"""Per sample, `response_length` floats."""


def advantage_inputs(
    groups: Sequence[Group], rewards: Sequence[float], final: bool, columns: Mapping[str, Column]
) -> AdvantageInputs:
    """The signals of a rollout.

    Args:
        groups: all samples of it.
        rewards: of each sample, group after group.
        final: they are not to be normalised again.
        columns: by name, those of "old_log_probs", "ref_log_probs" and "old_values" that there are.
    """
    import torch

    samples = [sample for group in groups for sample in group]
    lengths = torch.tensor([sample.response_length for sample in samples], dtype=torch.int64)
    numbers = torch.arange(len(samples))

    def flat(name: str) -> Tensor | None:
        column = columns.get(name)
        return None if column is None else torch.tensor([x for row in column for x in row], dtype=torch.float64)

    return AdvantageInputs(
        rewards=torch.tensor(list(rewards), dtype=torch.float64),
        group_index=torch.tensor([g for g, group in enumerate(groups) for _ in group], dtype=torch.int64),
        lengths=lengths,
        loss_mask=torch.tensor([x for sample in samples for x in sample.trained_mask], dtype=torch.float64),
        sample_index=numbers.repeat_interleave(lengths),
        rewards_are_final=final,
        log_probs=flat("old_log_probs"),
        ref_log_probs=flat("ref_log_probs"),
        values=flat("old_values"),
    )


def columns_of(outputs: AdvantageOutputs, samples: Sequence[Sample]) -> dict[str, Column]:
    """The estimator's answer, checked when it returned (`slime_core.contracts.results`), as columns "advantages" and, where
    there are any, "returns"."""
    import torch

    lengths = [sample.response_length for sample in samples]
    made = {"advantages": outputs.advantages, "returns": outputs.returns}
    return {
        name: [row.tolist() for row in torch.split(values, lengths)]
        for name, values in made.items()
        if values is not None
    }
