"""Evaluation: every prompt of every evaluation set is answered and scored. Called by the rollout functions."""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from slime_core.arguments.groups.evaluation import args_of_set
from slime_core.data import EvaluationSet, evaluation_sets
from slime_core.errors import DataError, first_error_only
from slime_core.rollout.rewards import Rewards, choose_number, evaluation_key, reward_of_set
from slime_core.sample import Group, RolloutOutput, Sample
from slime_core.trajectories import in_trajectories, pass_rates, trajectory_rewards
from slime_rollout_sglang.asked_metrics import categories_of_sets
from slime_rollout_sglang.generators import generator_caller
from slime_rollout_sglang.groups import GroupInProgress, GroupRunner
from slime_rollout_sglang.metrics import response_metrics, reward_numbers
from slime_rollout_sglang.parameters import eval_parameters, prompt_limit
from slime_rollout_sglang.prompts import PromptTokenizer
from slime_rollout_sglang.requests import Requests
from slime_rollout_sglang.sample_hooks import SampleHooks

if TYPE_CHECKING:
    from slime_core.contracts.engine import InferenceEngine
    from slime_core.plugins import Plugins
    from slime_core.rollout.components import RolloutComponents
    from slime_rollout_sglang.arguments import RlRunArguments

logger = logging.getLogger(__name__)


async def evaluate(
    args: RlRunArguments, rollout_id: int, components: RolloutComponents, plugins: Plugins, engine: InferenceEngine
) -> RolloutOutput:
    """Return `--n-samples-per-eval-prompt` answers to every prompt of `--eval-prompt-data`.

    The seeds do not depend on the rollout, so two evaluations differ by the weights alone; that of an answer follows from its set, its
    row there and how many answers to it came before, so that other sets and further answers change none. An answer whose generate
    function or reward failed for good is left out and counted, and so is a prompt that is too long.

    Returns:
        No groups; all answers, with the name of their set as `dataset` and a number as `reward` (of a reward
        that is a dict the one of `--eval-reward-key`, while `metadata["rewards"]` has all of them); and for each set the
        metrics of `response_metrics`, `reward_numbers` and `pass_rates`.

    Raises:
        DataError: a row cannot be used and --malformed-row is "error", or no row of a set can be used.
    """
    key = evaluation_key(args)
    requests = Requests(args, engine, f"eval-{rollout_id}")
    hooks = SampleHooks(args, components, evaluation=True)
    hooks.rollout_id = rollout_id
    generations: list[Sample] = []
    numbers, group_numbers = itertools.count(), itertools.count()
    metrics: dict[str, float] = {}
    rewards_of_sets: dict[str, list[Any]] = {}
    calls = Counter[str]()
    for evaluation_set in evaluation_sets(args):
        name = evaluation_set.name
        own = args_of_set(args, name)
        chosen = components_of_set(args, own, components, plugins)
        rewards = Rewards(own, plugins, chosen.further.get("reward"), key)
        generator = generator_caller(own, chosen, plugins, key)
        prompts = PromptTokenizer(own, *prompt_limit(own, evaluation=True))
        groups = _groups(own, evaluation_set, prompts, numbers, group_numbers)
        runner = GroupRunner(
            *(own, requests, generator, rewards, eval_parameters(own)),
            seed=partial(_place, (args.rollout_seed, "eval", name), groups[0][0], own.n_samples_per_eval_prompt),
            evaluation=True,
            hooks=hooks,
        )
        answered = await _answer(runner, groups)
        answers = [sample for group in answered for sample in group]
        for sample in answers:
            choose_number(sample, key)
        found = {kind: float(count) for kind, count in (prompts.counts + runner.counts).items()}
        lost = sum(map(len, groups)) - sum(len(in_trajectories(group)) for group in answered)
        if lost > 0:
            found["answers_lost"] = float(lost)
        if answers:
            dicts = [sample.metadata.get("rewards") for sample in answers]
            found |= {**response_metrics(answers), **reward_numbers(answers, dicts), **_pass_rates(own, answered)}
            rewards_of_sets[name] = dicts
        else:
            logger.warning("The evaluation set %s has no answer at all; the warnings above say why.", name)
        metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
        generations += answers
        calls.update({**(generator.metrics() if own.custom_generate_function_path else {}), **rewards.metrics()})
    if args.log_reward_category:
        metrics |= categories_of_sets(rewards_of_sets, args.log_reward_category)
    for caller in hooks.callers:
        metrics |= caller.metrics()
    return RolloutOutput([], {**metrics, **calls}, generations)


def components_of_set(
    args: RlRunArguments, own: RlRunArguments, components: RolloutComponents, plugins: Plugins
) -> RolloutComponents:
    """Return the components that an evaluation set is answered and scored by.

    Args:
        args: of the run.
        own: of the set.

    Raises:
        PluginError: one that the set names is missing, or does not fit.
    """
    further = dict(components.further)
    if (reward := reward_of_set(args, own, further.get("reward"), plugins)) is not None:
        further["reward"] = reward
    if own.custom_generate_function_path != args.custom_generate_function_path and own.custom_generate_function_path:
        further["generator"] = plugins.select(
            "generator", own.custom_generate_function_path, "--custom-generate-function-path"
        )
    return replace(components, further=further)


def _pass_rates(args: RlRunArguments, groups: Sequence[Group]) -> dict[str, float]:
    """Return the pass rates of a set, of the prompts whose answers are all there: where rewards are 0 and 1, or if asked for."""
    rewards = [trajectory_rewards(group, None) for group in groups]
    complete = [of_group for of_group in rewards if len(of_group) == args.n_samples_per_eval_prompt]
    binary = all(reward in (0.0, 1.0) for of_group in complete for reward in of_group)
    return pass_rates(complete) if binary or args.log_passrate else {}


def _groups(
    args: RlRunArguments,
    evaluation_set: EvaluationSet,
    prompts: PromptTokenizer,
    numbers: Iterator[int],
    group_numbers: Iterator[int],
) -> list[Group]:
    """Return the samples to answer, one group for each prompt that can be used.

    Raises:
        DataError: a row cannot be used and --malformed-row is "error", or no row of the set can be used.
    """
    count = args.n_samples_per_eval_prompt
    groups: list[Group] = []
    for row in evaluation_set.samples(prompts.counts):
        group, number = [copy.deepcopy(row) for _ in range(count)], next(group_numbers)
        for sample in group:
            sample.index, sample.group_index = next(numbers), number
        if prompts.tokenize(group):
            groups.append(group)
    if not groups:
        left_out = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in prompts.counts.items())
        raise DataError(
            f"No prompt of the evaluation set {evaluation_set.name} ({evaluation_set.spec}) can be used: "
            f"{left_out or 'it is empty'}."
        )
    return groups


def _place(of_set: tuple[object, ...], first: Sample, count: int, sample: Sample) -> tuple[object, ...]:
    """What the seed of an answer follows from: its set, its row there, and which of the answers to it this is.

    Args:
        first: answer of the set.
        count: of the answers to each row.
    """
    return (*of_set, *divmod((sample.index or 0) - (first.index or 0), count))


async def _answer(runner: GroupRunner, groups: Sequence[Group]) -> list[Group]:
    """Return the answers that could be had to each prompt.

    An answer that fails takes no other with it, unless the reward scores all answers to a prompt together.
    """
    prompts: list[list[GroupInProgress]] = []
    for group in groups:
        together = runner.scores_whole_groups(group[0])
        prompts.append([GroupInProgress(0, part) for part in ([group] if together else [[s] for s in group])])
    with first_error_only():
        async with asyncio.TaskGroup() as tasks:
            for parts in prompts:
                for part in parts:
                    tasks.create_task(runner.run(part))
    return [[sample for part in parts if not part.lost for sample in part.samples] for parts in prompts]
