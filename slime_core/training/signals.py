"""Turns samples into the flat tensors that an advantage estimator is given, and its answer into columns. Called by
`TrainWorker`. Pure; torch is imported when a function is called, in the training process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_core.sample import Group, Sample
from slime_core.token_arrays import flat, flat_arrays, rows_of, trained
from slime_core.token_columns import two_words
from slime_core.trajectories import trajectory_numbers

if TYPE_CHECKING:
    from torch import Tensor

Column = Sequence[Sequence[float]]
"""Per sample `response_length` floats, in a list or in a column that reads like one (`slime_core.token_columns`)."""


def advantage_inputs(
    groups: Sequence[Group],
    rewards: Sequence[float],
    final: bool,
    columns: Mapping[str, Column],
    raw: Sequence[float] | None = None,
) -> AdvantageInputs:
    """Make the inputs of an advantage estimator for a whole rollout.

    Args:
        groups: all groups of the rollout.
        rewards: one for each sample, group after group.
        final: whether the rewards are not to be normalised again.
        raw: what the rewards were at first; None: the same.
        columns: by name; "old_log_probs", "ref_log_probs" and "old_values" are handed over where they are there.
    """
    import torch

    samples = [sample for group in groups for sample in group]

    def given(name: str) -> Tensor | None:
        column = columns.get(name)
        return None if column is None else torch.from_numpy(flat(column))

    return _Inputs(
        trained=torch.from_numpy(flat_arrays(map(trained, samples), "bool")),
        rewards=torch.tensor(list(rewards), dtype=torch.float64),
        group_index=torch.tensor([g for g, group in enumerate(groups) for _ in group], dtype=torch.int64),
        lengths=torch.tensor([sample.response_length for sample in samples], dtype=torch.int64),
        trajectory_index=torch.tensor(trajectory_numbers(samples), dtype=torch.int64),
        rewards_are_final=final,
        raw_rewards=None if raw is None else torch.tensor(list(raw), dtype=torch.float64),
        log_probs=given("old_log_probs"),
        ref_log_probs=given("ref_log_probs"),
        values=given("old_values"),
    )


class _Inputs(AdvantageInputs):
    """The inputs of a whole rollout. `loss_mask` and `sample_index`, 8 bytes a token each, are made when an estimator reads them."""

    def __init__(self, **given: Any) -> None:
        vars(self).update(given)

    def __getattr__(self, name: str) -> Tensor:  # called for what has not been set
        import torch

        found: Tensor
        if name == "loss_mask":
            found = vars(self)["trained"].to(torch.float64)
        elif name == "sample_index":
            lengths = vars(self)["lengths"]
            found = torch.arange(len(lengths)).repeat_interleave(lengths)
        else:
            raise AttributeError(f"AdvantageInputs have no {name!r}")
        vars(self)[name] = found
        return found


def columns_of(outputs: AdvantageOutputs, samples: Sequence[Sample]) -> dict[str, Column]:
    """The columns "advantages" and, where the estimator gave any, "returns". Its outputs have been checked already,
    when it returned (`slime_core.contracts.advantage`)."""
    import torch

    lengths = [sample.response_length for sample in samples]
    made = {"advantages": outputs.advantages, "returns": outputs.returns}
    return {
        name: [two_words(row.array) for row in rows_of(values.detach().to("cpu", torch.float64).numpy(), lengths)]
        for name, values in made.items()
        if values is not None
    }
