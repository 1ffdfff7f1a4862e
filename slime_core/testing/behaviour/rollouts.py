"""Checks of rollout functions and generators. They need transformers, as these load the run's tokenizer."""

from __future__ import annotations

import copy
import math
from contextlib import closing

from slime_core.arguments.further import choose_further
from slime_core.contracts.data import DataSource
from slime_core.contracts.rollout import Background
from slime_core.data import GlobalDataSource
from slime_core.plugins import Selected
from slime_core.rollout.components import RolloutComponents
from slime_core.sample import RolloutOutput, Sample, Status, check_rollout
from slime_core.testing.checkpoint import chat_tokenizer
from slime_core.testing.engine import EchoEngine
from slime_core.testing.inputs import CHAT_ROWS
from slime_core.testing.subject import Check, Subject
from slime_core.trajectories import in_trajectories

Generated = Sample | list[Sample]

SAMPLING = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "seed": 1}


def fills_rollouts(subject: Subject[RolloutOutput]) -> None:
    """returns full rollouts of good samples, each trajectory with a number of its own"""
    args, source = subject.args, GlobalDataSource(subject.args)
    numbers: list[int | None] = []
    for rollout_id in range(2):
        output = _roll_out(subject, rollout_id, source)
        expected = (args.rollout_batch_size, args.n_samples_per_prompt)
        sizes = [len(in_trajectories(group)) for group in output.groups]
        subject.expect(
            sum(sizes) == expected[0] * expected[1],
            f"it returned groups of {sizes} samples (segments of one rollout_id counted once); expected --rollout-batch-size × "
            f"--n-samples-per-prompt = {expected[0]} × {expected[1]} in all.",
        )
        check_rollout(output.groups, need_reward=True)
        for sample in output.samples:
            subject.expect(
                sample.response_length > 0, f"{sample.name} has no response token; train something or take another row."
            )
        numbers += [sample.index for sample in output.samples if sample.rollout_id is None]
        numbers += {sample.rollout_id for sample in output.samples if sample.rollout_id is not None}
    subject.expect(
        len(set(numbers)) == len(numbers),
        f"two samples have the same index ({numbers}); keep the numbers that the data source gave them, and set the rollout_id of "
        "segments of one trajectory.",
    )


def reports_numbers(subject: Subject[RolloutOutput]) -> None:
    """reports metrics that are finite numbers"""
    for name, value in _roll_out(subject, 0, GlobalDataSource(subject.args)).metrics.items():
        subject.expect(
            isinstance(value, (int, float)) and math.isfinite(value),
            f"its metric {name!r} is {value!r}; expected a finite number.",
        )


def evaluates(subject: Subject[RolloutOutput]) -> None:
    """returns named samples of every evaluation set, without touching the training data"""
    source = GlobalDataSource(subject.args)
    with subject.unchanged("the data source while evaluating", source.state_dict):
        output = _roll_out(subject, 0, source, evaluation=True)
    samples = [*output.samples, *output.generations]
    check_rollout([samples], need_reward=False)
    names = {sample.dataset for sample in samples}
    subject.expect(
        names == {"heldout"},
        f"with evaluation=True its samples come from the sets {names}; expected {{'heldout'}}: read --eval-prompt-data "
        "(slime_core.data.evaluation_sets) and keep their metadata, which names the set.",
    )


def _roll_out(
    subject: Subject[RolloutOutput], rollout_id: int, source: DataSource, evaluation: bool = False
) -> RolloutOutput:
    subject.need_checkpoint(weights=False)
    engine = EchoEngine(subject.args)
    with closing(engine), closing(Background()) as background:
        extras = {"plugins": subject.plugins, "engine": engine, "background": background}
        extras["components"] = _components(subject)
        return subject.call(subject.args, rollout_id, source, evaluation=evaluation, extras=extras)


def _components(subject: Subject[RolloutOutput]) -> RolloutComponents:
    """Return the components of a run that has chosen the subject, the core's data source and the kit's engine.

    Raises:
        PluginError: an option names a component that is not installed.
    """
    args, plugins = subject.resolved.args, subject.plugins
    further = choose_further(args, plugins, (subject.selected,))
    subject.helpers = list(further.values())
    return RolloutComponents(
        subject.selected,
        subject.selected,
        data_source=plugins.select("data_source", "global"),
        buffer_pop=plugins.select("buffer_pop", "pop_first"),
        further=further,
        engine=Selected("engine", "echo", EchoEngine, "the kit", "the kit"),
    )


def completes_samples(subject: Subject[Generated]) -> None:
    """completes a sample: tokens, response, log-probs that agree, and a status"""
    for sample in _pending(subject):
        prompt = list(sample.tokens)
        engine = EchoEngine(subject.args)
        with subject.takes("samples (a rendered question, the prompt's tokens in `tokens`)"):
            result = subject.call(subject.args, sample, dict(SAMPLING), extras={"engine": engine})
        for made in result if isinstance(result, list) else [result]:
            check_rollout([[made]], need_reward=False)
            subject.expect(
                made.status is not Status.PENDING,
                "it returned a sample that is still pending; set `status` to COMPLETED, TRUNCATED or ABORTED.",
            )
            subject.expect(
                made.response_length > 0 or made.status in (Status.ABORTED, Status.FAILED),
                "it returned a sample without response tokens; count them in `response_length`.",
            )
            subject.expect(
                made.tokens[: len(prompt)] == prompt or made.response_length == len(made.tokens) - len(prompt),
                f"its tokens begin with {made.tokens[:5]}, the prompt with {prompt[:5]}; `tokens` holds the prompt's "
                "and then the response's.",
            )


def leaves_sampling_alone(subject: Subject[Generated]) -> None:
    """does not change the sampling parameters"""
    params = dict(SAMPLING)
    with subject.unchanged("sampling_params, which all samples share", lambda: dict(params)):
        subject.call(subject.args, _pending(subject)[0], params, extras={"engine": EchoEngine(subject.args)})


def _pending(subject: Subject[Generated]) -> list[Sample]:
    """Return the samples to try: prompts with their tokens, and no response."""
    subject.need_checkpoint(weights=False)
    if subject.examples:
        given: list[Sample] = copy.deepcopy(subject.examples)
        return given
    made = []
    for index, row in enumerate(CHAT_ROWS[:2]):
        question = row["messages"][:1]
        rendered = str(chat_tokenizer().apply_chat_template(question, tokenize=False, add_generation_prompt=True))
        tokens = chat_tokenizer()(rendered, add_special_tokens=False)["input_ids"]
        sample = Sample(group_index=index, index=index, prompt=rendered, tokens=tokens, label=row["label"])
        sample.note(asked=question)
        made.append(sample)
    return made


ROLLOUT: list[Check] = [fills_rollouts, reports_numbers, evaluates]
GENERATOR: list[Check] = [completes_samples, leaves_sampling_alone]
