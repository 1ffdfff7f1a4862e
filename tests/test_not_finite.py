"""A loss or gradient that is not finite names the samples that made it so."""

from __future__ import annotations

import math

import pytest

from slime_core.contracts.train_backend import TrainBatch
from slime_core.errors import TrainingError
from slime_core.sample import Sample
from slime_core.tensors.not_finite import require_finite_gradient, require_finite_losses
from slime_core.training.batches import make_train_batch


def batch(samples: int = 4, size: int = 2) -> TrainBatch:
    made = [Sample(index=n, tokens=[1, 2], response_length=1) for n in range(samples)]
    return make_train_batch(made, micro_batch_size=size)


def test_finite_numbers_pass_and_nothing_is_computed_again() -> None:
    require_finite_losses(batch(), [0.5, -1.0], 3)
    require_finite_losses(make_train_batch(batch().samples, skipped=range(4)), [0.0], 3)
    require_finite_gradient(batch(), 1e30, 3, lambda number: pytest.fail("the gradient is finite"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_loss_names_the_step_and_the_samples_of_its_micro_batch(bad: float) -> None:
    says = "The loss is NaN or Inf in optimizer step 3, in the micro-batch of sample 2, sample 3. The weights"
    with pytest.raises(TrainingError, match=says):
        require_finite_losses(batch(), [0.5, bad], 3)


def test_a_bad_gradient_names_the_micro_batches_that_have_one_alone() -> None:
    with pytest.raises(TrainingError, match=r"The gradient is NaN or Inf in .* of sample 0, sample 1\. The weights"):
        require_finite_gradient(batch(), math.nan, 3, lambda number: [math.inf, 2.0][number])


def test_a_gradient_that_is_bad_only_as_a_whole_names_all_up_to_sixteen() -> None:
    with pytest.raises(TrainingError, match=r"of sample 0, .* sample 15 and 4 more\. The weights"):
        require_finite_gradient(batch(20), math.inf, 3, lambda number: 1.0)
