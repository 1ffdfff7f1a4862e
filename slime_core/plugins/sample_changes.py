"""What a component did to samples that it was given, found when its call is over: rewards and filters may write into a sample, but
what is trained must still be what was generated. Used by `slime_core.plugins.selection`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from slime_core.errors import SampleError
from slime_core.sample import RolloutOutput, Sample, misaligned
from slime_core.token_arrays import kept

KINDS = ("reward", "dynamic_filter", "sample_filter", "all_samples_process")
"""Kinds of components that judge finished samples, and do not make any."""


def samples_in(value: Any) -> Iterator[Sample]:
    """Yield the samples of what components take and return: samples, groups, lists of groups, rollouts."""
    if isinstance(value, Sample):
        yield value
    elif isinstance(value, RolloutOutput):
        yield from (*value.samples, *value.generations)
    elif isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple, Sample)):
        for inner in value:
            yield from samples_in(inner)


@dataclass(frozen=True)
class Before:
    """A sample as it was given: its prompt and its numbers in the run."""

    sample: Sample
    name: str
    prompt_tokens: Sequence[int]
    numbers: tuple[Any, ...]


def before(kind: str, args: Iterable[Any]) -> list[Before]:
    """Note what a component of a kind is given that is in `KINDS`."""
    if kind not in KINDS:
        return []
    return [
        Before(sample, sample.name, _prompt(sample), _numbers(sample)) for value in args for sample in samples_in(value)
    ]


def check(given: Sequence[Before], kind: str, args: Iterable[Any]) -> None:
    """Raise for the first sample that cannot be trained any more as it was generated, and where a sample filter has taken any out.

    A response may be cut or its mask changed, as long as masks, log-probs and weight versions are as long as it.

    Args:
        given: what `before` has noted of `args`.

    Raises:
        SampleError: says what was changed.
    """
    for was in given:
        sample = was.sample
        prompt = _prompt(sample)
        if prompt != was.prompt_tokens:
            raise SampleError(
                f"It changed the tokens of {was.name}: {len(was.prompt_tokens)} tokens stood before the response, and now "
                f"{len(prompt)} that are not the same do, so that masks and log-probs belong to other tokens. Change tokens, "
                "response_length, loss_mask and rollout_log_probs together, and leave the prompt as it is."
            )
        if _numbers(sample) != was.numbers:
            raise SampleError(f"It changed index, group_index or rollout_id of {was.name}; these belong to the run.")
        if problem := misaligned(sample):
            raise SampleError(f"It left {was.name} in a state that cannot be trained: {problem}")
    if kind == "sample_filter" and (left := sum(1 for value in args for _ in samples_in(value))) != len(given):
        raise SampleError(
            f"It was given {len(given)} samples and left {left}. A group keeps its samples, and a rollout its groups: set "
            "remove_sample = True on those that shall not be trained."
        )


def _prompt(sample: Sample) -> Sequence[int]:
    tokens: Sequence[int] = kept(sample, "tokens")
    return tokens[: len(tokens) - sample.response_length]


def _numbers(sample: Sample) -> tuple[Any, ...]:
    return sample.index, sample.group_index, sample.rollout_id
