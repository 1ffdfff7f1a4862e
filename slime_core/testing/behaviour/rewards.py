"""Checks of rewards, and of the filters that look at them."""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import Any

from slime_core.sample import Group, Sample
from slime_core.testing.inputs import group, groups
from slime_core.testing.subject import Check, Subject

Reward = float | dict[str, Any] | list[float]
Verdict = bool | tuple[bool, str]


def scores_every_sample(subject: Subject[Reward]) -> None:
    """returns one finite number, or a dict, for each sample"""
    with subject.takes("samples (a sum, answered rightly, wrongly, cut off and not at all; the label is '7')"):
        _score(subject, _unscored(subject))


def leaves_samples_alone(subject: Subject[Reward]) -> None:
    """does not change the samples"""
    samples = _unscored(subject)
    with subject.unchanged("a sample", partial(_plain, samples)):
        _score(subject, samples)


def _score(subject: Subject[Reward], samples: list[Sample]) -> None:
    """Call a reward, be it one for a sample or one for a group."""
    if "samples" in inspect.signature(subject.target).parameters:
        subject.call(subject.args, list(samples))
    else:
        for sample in samples:
            subject.call(subject.args, sample)


def _unscored(subject: Subject[Reward]) -> list[Sample]:
    """Return the samples to try, without their rewards."""
    samples: list[Sample] = copy.deepcopy(subject.examples) or group()
    for sample in samples:
        sample.reward = None
    return samples


def answers(subject: Subject[Verdict]) -> None:
    """answers True or False, or a pair of that and a reason"""
    for samples in _groups(subject):
        with subject.takes("groups of four samples, rewarded differently, 1 and 0"):
            result = subject.call(subject.args, samples)
        reason = result[1] if isinstance(result, tuple) else getattr(result, "reason", None)
        subject.expect(
            reason is None or isinstance(reason, str),
            f"its reason is {reason!r}; reasons are counted by name, so give a short text such as 'all_equal'.",
        )


def leaves_group_alone(subject: Subject[Verdict]) -> None:
    """does not change the group"""
    for samples in _groups(subject):
        with subject.unchanged("the group", partial(_plain, samples)):
            subject.call(subject.args, samples)


def sets_remove_sample_only(subject: Subject[None]) -> None:
    """returns nothing and sets nothing but `remove_sample`"""
    given = _groups(subject)
    with subject.unchanged("more than remove_sample", lambda: [[_without_flag(s) for s in g] for g in given]):
        with subject.takes("groups of four samples"):
            subject.call(subject.args, given)
    for sample in (s for g in given for s in g):
        subject.expect(
            isinstance(sample.remove_sample, bool),
            f"it set remove_sample to {sample.remove_sample!r}; expected True or False.",
        )


def _plain(samples: list[Sample]) -> list[dict[str, Any]]:
    return [sample.to_dict() for sample in samples]


def _without_flag(sample: Sample) -> dict[str, Any]:
    return {**sample.to_dict(), "remove_sample": None}


def _groups(subject: Subject[Any]) -> list[Group]:
    return copy.deepcopy(subject.examples) or groups(3)


REWARD: list[Check] = [scores_every_sample, leaves_samples_alone]
DYNAMIC_FILTER: list[Check] = [answers, leaves_group_alone]
SAMPLE_FILTER: list[Check] = [sets_remove_sample_only]
