"""Checks of what comes after a rollout: what looks at it, changes its rewards, logs it, makes training data of it."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from slime_core.data import GlobalDataSource
from slime_core.plugins.signatures import accepted_extras
from slime_core.sample import Group, Sample, Status, check_rollout
from slime_core.testing.inputs import groups
from slime_core.testing.subject import Check, Subject
from slime_core.training.postprocess import postprocessed

METRICS = {"tokens": 17.0, "perf/generate_time": 0.5}


def leaves_trained_samples(subject: Subject[None]) -> None:
    """leaves the groups of the rollout as they are"""
    source, given = GlobalDataSource(subject.args), _groups(subject)
    with subject.unchanged("the groups", lambda: [[sample.to_dict() for sample in group] for group in given]):
        with subject.takes("groups of four samples"):
            subject.call(subject.args, given, source)


def leaves_a_working_source(subject: Subject[None]) -> None:
    """leaves a data source that still hands out groups"""
    source = GlobalDataSource(subject.args)
    subject.call(subject.args, source.get_samples(2), source)
    taken = source.get_samples(2)
    subject.expect(
        len(taken) == 2 and all(isinstance(sample, Sample) for group in taken for sample in group),
        f"after it the data source hands out {taken!r:.80}; give groups back with data_source.add_samples(groups).",
    )


def leaves_good_samples(subject: Subject[Sample | None]) -> None:
    """leaves samples that can be scored and trained"""
    for sample in _rollouts(subject)[0]:
        sample.reward = None
        offered: dict[str, Any] = {"rollout_id": 0, "evaluation": False}
        with subject.takes("finished samples without a reward"):
            made = subject.call(
                subject.args,
                sample,
                **{n: offered[n] for n in accepted_extras(subject.target, tuple(offered), whole=True)},
            )
        check_rollout([[sample if made is None else made]], need_reward=False)


def leaves_good_train_data(subject: Subject[None]) -> None:
    """leaves data that can be trained"""
    subject.need("torch")
    for samples in _rollouts(subject):
        rows = [[0.5 - 0.1 * place for place in range(sample.response_length)] for sample in samples]
        columns = dict.fromkeys(("old_log_probs", "ref_log_probs", "rollout_log_probs", "advantages"), rows)
        with subject.takes("samples of groups of four"):
            rewards = [float(place % 2) for place, _ in enumerate(samples)]
            given = {"rewards": rewards, "raw_reward": rewards}
            postprocessed(subject.args, 0, samples, columns, subject.selected, given)


def makes_rewards(subject: Subject[tuple[list[float], list[float]]]) -> None:
    """returns raw rewards and rewards to train with, finite ones also for groups with equal rewards"""
    for samples in _rollouts(subject):
        with subject.takes("samples of groups of four, rewarded 1 and 0, also all of them alike"):
            subject.call(subject.args, samples)


def leaves_samples_alone(subject: Subject[Any]) -> None:
    """does not change the samples"""
    for samples in _rollouts(subject):
        with subject.unchanged("a sample", partial(_plain, samples)):
            subject.call(subject.args, samples)


def logs_rollouts(subject: Subject[bool | None]) -> None:
    """logs rollouts, one after the other, and says whether slime shall log too"""
    for rollout_id in range(2):
        for samples in _rollouts(subject):
            with subject.takes("samples of groups of four"):
                subject.call(rollout_id, subject.args, samples, dict(METRICS), 1.5)


def leaves_rollouts_alone(subject: Subject[bool | None]) -> None:
    """does not change the samples"""
    for samples in _rollouts(subject):
        with subject.unchanged("a sample", partial(_plain, samples)):
            subject.call(0, subject.args, samples, dict(METRICS), 1.5)


def logs_evaluations(subject: Subject[bool | None]) -> None:
    """logs evaluations, the one before the first rollout too, and says whether slime shall log too"""
    for rollout_id in (-1, 0):
        with subject.takes("an evaluation set of four samples"):
            subject.call(rollout_id, subject.args, _evaluation(subject), dict(METRICS))


def leaves_evaluations_alone(subject: Subject[bool | None]) -> None:
    """does not change the samples"""
    data = _evaluation(subject)

    def plain() -> object:
        return copy.deepcopy({name: {**one, "samples": _plain(one["samples"])} for name, one in data.items()})

    with subject.unchanged("a sample", plain):
        subject.call(0, subject.args, data, dict(METRICS))


def converts_samples(subject: Subject[dict[str, list[Any]]]) -> None:
    """makes training data with one entry for each sample, whose lengths agree"""
    for samples in _rollouts(subject):
        with subject.takes("samples of groups of four"):
            made = subject.call(subject.args, samples)
        names = {"tokens": "tokens", "response_lengths": "response_length", "rewards": "reward"}
        names |= {"loss_masks": "loss_mask", "rollout_log_probs": "rollout_log_probs"}
        for index, sample in enumerate(copy.deepcopy(samples)):
            for key, name in names.items():
                if key in made:
                    setattr(sample, name, made[key][index])
            check_rollout([[sample]], need_reward=True)


def _groups(subject: Subject[Any]) -> list[Group]:
    return copy.deepcopy(subject.examples) or groups(3)


def _rollouts(subject: Subject[Any]) -> list[list[Sample]]:
    """Return the samples of a whole rollout, and those of each of its groups alone."""
    given = _groups(subject)
    return [[sample for group in given for sample in group], *given]


def _evaluation(subject: Subject[Any]) -> dict[str, dict[str, Any]]:
    samples = _rollouts(subject)[1]
    truncated = [sample.status is Status.TRUNCATED for sample in samples]
    rewards = [sample.reward for sample in samples]
    return {"heldout": {"rewards": rewards, "truncated": truncated, "samples": samples}}


def _plain(samples: list[Sample]) -> list[dict[str, Any]]:
    return [sample.to_dict() for sample in samples]


SAMPLE_HOOK: list[Check] = [leaves_good_samples]
ROLLOUT_DATA_POSTPROCESS: list[Check] = [leaves_good_train_data]
ALL_SAMPLES_PROCESS: list[Check] = [leaves_trained_samples, leaves_a_working_source]
REWARD_POST_PROCESS: list[Check] = [makes_rewards, leaves_samples_alone]
ROLLOUT_LOG: list[Check] = [logs_rollouts, leaves_rollouts_alone]
EVAL_ROLLOUT_LOG: list[Check] = [logs_evaluations, leaves_evaluations_alone]
SAMPLE_CONVERTER: list[Check] = [converts_samples, leaves_samples_alone]
