"""The rows that `slime check --parity` computes: the first ones of the run's own data."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.arguments.rollout_paths import path_of_rollout
from slime_core.contracts.data import next_groups
from slime_core.contracts.rollout import Background
from slime_core.data.prompts import read_prompt
from slime_core.data.tokenizer import load_tokenizer
from slime_core.data.vision import processor_of
from slime_core.errors import DataError
from slime_core.rollout.debug_data import read_debug_data
from slime_core.run.plan import Plan
from slime_core.sample import Sample
from slime_core.token_arrays import num_trained


def parity_rows(plan: Plan, count: int, tokens: int) -> list[Sample]:
    """The first samples of the run, as it makes them: by its rollout function or from `--load-debug-rollout-data`. Where
    an engine would have to answer prompts, the prompts themselves, of which every token but the first is compared.

    Args:
        count: how many.
        tokens: a longer sample is cut to so many, no two to the same length.

    Raises:
        SlimeError: as in the run, the data cannot be used.
    """
    samples = _samples(plan, count)
    found = []
    for number, sample in enumerate(samples[:count]):
        sample = _cut(sample, max(2, tokens - number))
        if not num_trained(sample):
            sample = replace(sample, response_length=len(sample.tokens) - 1, loss_mask=None, remove_sample=False)
        if len(sample.tokens) > 1:
            found.append(replace(sample, index=number, group_index=number))
    if not found:
        raise DataError("None of the first rows has two tokens, so nothing could be compared.")
    return found


def pairs_of(samples: list[Sample], count: int = 32) -> list[Sample]:
    """Samples of two neighbouring tokens each, the second of which is predicted from the first alone: attention to one
    token has nothing to choose, so queries, keys, their norms, and positions do not matter."""
    places = [(sample, place) for sample in samples for place in _pair_places(sample)]
    step = max(1, -(-len(places) // count))
    return [
        Sample(index=number, group_index=number, tokens=sample.tokens[place : place + 2], response_length=1)
        for number, (sample, place) in enumerate(places[::step])
    ]


def _pair_places(sample: Sample) -> list[int]:
    """The first places of pairs of neighbours; of a sample with images, pairs that are trained, since an image's tokens are none."""
    if not sample.images:
        return list(range(len(sample.tokens) - 1))
    first, trained = len(sample.tokens) - sample.response_length, sample.trained_mask
    return [first + place for place in range(len(trained) - 1) if trained[place] and trained[place + 1]]


def _samples(plan: Plan, count: int) -> list[Sample]:
    args, chosen = plan.args, plan.components.rollouts
    if args.load_debug_rollout_data:
        path = path_of_rollout(args.load_debug_rollout_data, 0)
        return read_debug_data(path, count).samples
    if not (_asks_engine(chosen.rollout.target) or chosen.works_in_background):
        few = args.model_copy(update={"rollout_batch_size": count})
        extras = {"plugins": plan.plugins, "components": chosen, "engine": None, "background": Background()}
        output = chosen.rollout.bind(**extras)(few, 0, plan.data_source, evaluation=False)
        return [group[0] for group in output.groups]
    groups = next_groups(plan.data_source, count, args.n_samples_per_prompt)
    return [_prompt(args, group[0]) for group in groups]


def _asks_engine(rollout: Any) -> bool:
    """Whether a rollout function makes its samples with an engine."""
    declared = getattr(rollout, "slime_engine_use", None)
    return bool(declared == "always" if declared else "engine" in inspect.signature(rollout).parameters)


def _prompt(args: RunArguments, sample: Sample) -> Sample:
    """The sample with its prompt's tokens, of which all but the first are its response."""
    tokens = list(sample.tokens)
    if not tokens:
        asked = args.apply_chat_template  # rollout functions of other people may render messages without
        render = asked or not isinstance(sample.prompt, str)
        processor = processor_of(args)
        tokens = read_prompt(sample, load_tokenizer(args.hf_checkpoint), args, render, processor).tokens
    return replace(sample, tokens=tokens, response_length=max(0, len(tokens) - 1), loss_mask=None)


def _cut(sample: Sample, tokens: int) -> Sample:
    lost = len(sample.tokens) - tokens
    if lost <= 0 or sample.images:  # never cut inside of an image
        return sample
    left = sample.response_length - lost
    if left <= 0:
        return replace(sample, tokens=sample.tokens[:tokens], response_length=0, loss_mask=None)
    mask = sample.loss_mask[:left] if sample.loss_mask is not None else None
    return replace(sample, tokens=sample.tokens[:tokens], response_length=left, loss_mask=mask)
