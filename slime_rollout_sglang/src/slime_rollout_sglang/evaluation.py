"""Evaluation: every prompt of every set is answered and scored. Called by the rollout function."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from slime_core.arguments.groups.evaluation import eval_sets
from slime_core.data import open_rows, sample_from_row
from slime_core.errors import DataError
from slime_core.plugins import Plugins
from slime_core.rollout.components import RolloutComponents
from slime_core.rollout.rewards import Rewards
from slime_core.sample import Group, RolloutOutput, Sample, reward_of
from slime_rollout_sglang.groups import Flight, GroupRunner, first_error_only, generator_caller
from slime_rollout_sglang.metrics import response_metrics
from slime_rollout_sglang.parameters import eval_parameters, prompt_limit
from slime_rollout_sglang.prompts import Prompts
from slime_rollout_sglang.requests import Requests

logger = logging.getLogger(__name__)


async def evaluate(
    args: Any, rollout_id: int, components: RolloutComponents, plugins: Plugins, engine: Any
) -> RolloutOutput:
    """`--n-samples-per-eval-prompt` answers to every prompt of `--eval-prompt-data`.

    The seeds do not depend on the rollout, so two evaluations differ by the weights alone. An answer whose generator or
    reward failed for good is left out and counted, and so is a prompt that is too long.

    Returns:
        No groups; all answers, `metadata["dataset"]` naming their set and `reward` being a number (with several, the one
        of `--eval-reward-key`; all of them are then in `metadata["rewards"]`); and the metrics of `set_metrics` and
        `pass_at`, per set.
    """
    key = args.reward_key if args.eval_reward_key is None else args.eval_reward_key
    requests = Requests(engine, f"eval-{rollout_id}")
    rewards = Rewards(args, plugins, components.further.get("reward"), key)
    generator = generator_caller(args, components, plugins)
    generations: list[Sample] = []
    numbers = itertools.count()
    metrics: dict[str, float] = {}
    for name, spec in eval_sets(args):
        prompts = Prompts(args, *prompt_limit(args, evaluation=True))
        groups = _groups(args, name, spec, prompts, numbers)
        runner = GroupRunner(
            args, requests, generator, rewards, eval_parameters(args), (args.rollout_seed, "eval", name)
        )
        answered = await _answer(runner, groups)
        for group in answered:
            for sample in group:
                _number_only(sample, key)
        done = [sample for group in answered for sample in group]
        lost = sum(map(len, groups)) - len(done)
        metrics |= {f"{name}/{kind}": float(count) for kind, count in prompts.counts.items()}
        if lost > 0:
            metrics[f"{name}/answers_lost"] = float(lost)
        if done:
            metrics |= {f"{name}/{metric}": value for metric, value in set_metrics(done).items()}
            complete = [group for group in answered if len(group) == args.n_samples_per_eval_prompt]
            metrics |= {f"{name}/{metric}": value for metric, value in pass_at(complete).items()}
        else:
            logger.warning("The evaluation set %s has no answer at all; the warnings above say why.", name)
        generations += done
    if args.custom_generate_function_path:
        metrics |= generator.metrics()
    return RolloutOutput([], {**metrics, **rewards.metrics()}, generations)


def set_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Of the answers to one set; the mean reward is the run's to report."""
    return response_metrics(samples)


def pass_at(groups: Sequence[Group]) -> dict[str, float]:
    """ "pass@k" for k = 1, 2, 4, … up to the number of answers to a prompt; {} where a reward is neither 0 nor 1.

    The mean over the prompts of the unbiased estimator of Chen et al. (arXiv 2107.03374), `pass_at_k`.

    Args:
        groups: the answers to each prompt, equally many.
    """
    rewards = [[float(sample.reward) for sample in group] for group in groups]  # type: ignore[arg-type]
    if not rewards or not all(reward in (0.0, 1.0) for group in rewards for reward in group):
        return {}
    n = len(rewards[0])
    return {
        f"pass@{k}": statistics.fmean(pass_at_k(n, int(sum(group)), k) for group in rewards)
        for k in (2**i for i in range(n.bit_length()))
    }


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The probability that at least one of k answers, drawn from n without replacement, is one of the `correct` ones:
    1 - C(n - correct, k) / C(n, k)."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def _groups(args: Any, name: str, spec: str, prompts: Prompts, numbers: Iterator[int]) -> list[Group]:
    """The samples to answer, of each prompt that can be used.

    Raises:
        DataError: a row cannot be used and --malformed-row is "error", or none of the set can.
    """
    columns = SimpleNamespace(
        input_key=args.eval_input_key or args.input_key,
        label_key=args.eval_label_key or args.label_key,
        tool_key=args.eval_tool_key or args.tool_key,
        metadata_key=args.metadata_key,
    )
    rows = open_rows([spec])
    count = args.n_samples_per_eval_prompt
    groups: list[Group] = []
    for number in range(len(rows)):
        group: Group = []
        try:
            for _ in range(count):
                sample = sample_from_row(columns, rows[number], rows.where(number))
                sample.metadata["dataset"] = name
                sample.index = next(numbers)
                sample.group_index = sample.index // count
                group.append(sample)
        except DataError:
            if args.malformed_row == "error":
                raise
            prompts.counts["skipped_malformed"] += 1
            continue
        if prompts.fill(group):
            groups.append(group)
    if not groups:
        left_out = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in prompts.counts.items())
        raise DataError(f"No prompt of the evaluation set {name} ({spec}) can be used: {left_out or 'it is empty'}.")
    return groups


async def _answer(runner: GroupRunner, groups: Sequence[Group]) -> list[Group]:
    """The answers that there are to each prompt. One that fails takes no other with it, unless the reward needs all."""
    flights: list[list[Flight]] = []
    for group in groups:
        together = runner.scores_whole_groups(group[0])
        flights.append([Flight(0, part) for part in ([group] if together else [[sample] for sample in group])])
    with first_error_only():
        async with asyncio.TaskGroup() as tasks:
            for parts in flights:
                for flight in parts:
                    tasks.create_task(runner.run(flight))
    return [[s for flight in parts if not flight.lost for s in flight.samples] for parts in flights]


def _number_only(sample: Sample, key: str | None) -> None:
    if isinstance(sample.reward, dict):
        sample.metadata["rewards"] = dict(sample.reward)
    sample.reward = reward_of(sample, key)
