"""From samples to an estimator's inputs and back, and which number of a reward is trained on."""

from __future__ import annotations

import pytest
import torch

from slime_core.contracts.advantage import AdvantageOutputs
from slime_core.errors import SampleError
from slime_core.sample import Sample, reward_of
from slime_core.training.signals import advantage_inputs, columns_of


def sample(response: int, mask: list[int] | None = None, **fields) -> Sample:
    return Sample(tokens=[1] * (2 + response), response_length=response, loss_mask=mask, **fields)


GROUPS = [[sample(2), sample(3, [1, 0, 1])], [sample(0), sample(1, remove_sample=True)]]
SAMPLES = [s for group in GROUPS for s in group]


def test_the_signals_keep_the_order_of_groups_samples_and_tokens():
    columns = {
        "old_log_probs": [[-1.0, -2.0], [-3.0, -4.0, -5.0], [], [-6.0]],
        "old_values": [[0.5] * n for n in (2, 3, 0, 1)],
    }
    inputs = advantage_inputs(GROUPS, [1.0, 2.0, 3.0, 4.0], False, columns)
    assert inputs.group_index.tolist() == [0, 0, 1, 1]
    assert inputs.lengths.tolist() == [2, 3, 0, 1]
    assert inputs.sample_index.tolist() == [0, 0, 1, 1, 1, 3]
    assert inputs.loss_mask.tolist() == [1, 1, 1, 0, 1, 0]
    assert inputs.trained.tolist() == [True, True, True, False, True, False]
    assert (inputs.loss_mask.dtype, inputs.sample_index.dtype) == (torch.float64, torch.int64)
    assert inputs.rewards.dtype == torch.float64
    assert inputs.log_probs.tolist() == [-1, -2, -3, -4, -5, -6]
    assert inputs.values.tolist() == [0.5] * 6
    assert inputs.ref_log_probs is None


def test_what_takes_most_memory_is_made_when_an_estimator_reads_it():
    inputs = advantage_inputs(GROUPS, [1.0, 2.0, 3.0, 4.0], False, {})
    assert not {"loss_mask", "sample_index"} & set(vars(inputs))
    assert inputs.loss_mask is inputs.loss_mask
    with pytest.raises(AttributeError):
        inputs.advantages  # noqa: B018  # it is no input


def test_segments_of_a_trajectory_share_its_number():
    groups = [[sample(1, index=4, rollout_id=4), sample(1, index=4, rollout_id=4)], [sample(1, index=9)]]
    assert advantage_inputs(groups, [1.0, 2.0, 3.0], False, {}).trajectory_index.tolist() == [0, 0, 1]


def test_an_answer_comes_back_per_sample():
    found = columns_of(AdvantageOutputs(torch.arange(6.0), torch.ones(6)), SAMPLES)
    assert found == {"advantages": [[0, 1], [2, 3, 4], [], [5]], "returns": [[1, 1], [1, 1, 1], [], [1]]}


def test_the_reward_key_picks_the_number_to_train_on():
    assert reward_of(sample(1, reward={"acc": 1.0, "score": -1.0}), "score") == -1.0
    assert reward_of(sample(1, reward=2), None) == 2.0
    with pytest.raises(SampleError, match="name one of them with --reward-key"):
        reward_of(sample(1, reward={"acc": 1.0}), None)
    with pytest.raises(SampleError, match="expected a number"):
        reward_of(sample(1), None)
