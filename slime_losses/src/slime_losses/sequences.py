"""Sums and means over each sample's trained tokens, for what looks at whole sequences: GSPO and sequence-level importance
weights. A micro-batch holds whole samples, so that nothing here depends on how the batch was cut."""

from __future__ import annotations

from torch import Tensor

from slime_core.contracts.loss import LossInputs


def sequence_sum(values: Tensor, inputs: LossInputs) -> Tensor:
    """Return for each of T tokens the sum of `values` over the trained tokens of its sample. Keeps gradients."""
    if inputs.responses is not None:
        samples = len(inputs.responses.samples)  # what lies on a device need not be read for it
    else:
        samples = int(inputs.sample_index.max()) + 1 if len(inputs.sample_index) else 0
    sums = values.new_zeros(samples).index_add(0, inputs.sample_index, values * inputs.loss_mask)
    return sums[inputs.sample_index]


def sequence_mean(values: Tensor, inputs: LossInputs) -> Tensor:
    """Return for each of T tokens the mean of `values` over the trained tokens of its sample; 0 for a sample without any."""
    counts = sequence_sum(values.new_ones(len(values)), inputs)
    return sequence_sum(values, inputs) / counts.clamp(min=1)
