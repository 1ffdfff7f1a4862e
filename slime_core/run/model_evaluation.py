"""Evaluates models without training them: the workers of a run, their evaluation, and nothing else of a run. Called by `slime eval`.

What is measured is what an evaluation in training measures, by the same code (`slime_core.run.evaluation`): the trainer loads the
weights, computes losses and hands the weights to the engine. The checkpoints of one run are loaded one after the other by the same
workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from slime_core.arguments.derived import derived
from slime_core.errors import SlimeError
from slime_core.plugins.boundaries import at_home
from slime_core.rollout.worker import RolloutWorker
from slime_core.run.checkpoints import load_state, require_state
from slime_core.run.console import Console
from slime_core.run.evaluation import measure, metrics_of, write_answers
from slime_core.run.plan import Plan
from slime_core.run.scores import Score, loss_score, reward_scores, row_name
from slime_core.run.start import start_workers
from slime_core.run.weight_sync import WeightSync
from slime_core.run.workers import Workers
from slime_core.runtime.handles import wait
from slime_core.sample import Sample
from slime_core.training.worker import TrainWorker


@dataclass(frozen=True)
class Source:
    """Weights to evaluate.

    Attributes:
        label: what people call them.
        folder: a model, or a checkpoint of a run.
        is_checkpoint: it is the latter.
    """

    label: str
    folder: Path
    is_checkpoint: bool = False


@dataclass(frozen=True)
class Evaluated:
    """What was measured of one model.

    Attributes:
        metrics: as training logs them, `eval/SET/…`; empty after an error.
        scores: of `SET/loss` and `SET/reward`, how sure they are; a loss of which nothing is known has none.
        answers: how many were generated.
        error: why nothing was measured.
    """

    source: Source
    metrics: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    answers: int = 0
    error: str = ""


def evaluate(
    plan: Plan, sources: Sequence[Source], answers: Callable[[Source], Path] | None = None
) -> Iterator[Evaluated]:
    """Evaluate these models one after the other. What goes wrong with one is noted of it, and the others follow.

    Args:
        plan: of a run that trains nothing; closed at the end.
        answers: the file that the generated answers of a model are written into.
    """
    done = 0
    try:
        with _workers(plan) as (workers, sync):
            for version, source in enumerate(sources):
                try:
                    found = _evaluate(plan, workers, sync, version, source, answers)
                except SlimeError as error:
                    found = Evaluated(source, error=str(error))
                done += 1
                yield found
    except SlimeError as error:  # at the start
        yield from (Evaluated(source, error=str(error)) for source in sources[done:])


@contextmanager
def _workers(plan: Plan) -> Iterator[tuple[Workers, WeightSync]]:
    """The workers of a run with their models loaded, and what hands the weights over."""
    args, generates = plan.args, plan.components.rollouts.engine_use != "never"
    with ExitStack() as stack:
        stack.enter_context(at_home())
        stack.callback(plan.close)
        console = Console(total=0)
        stack.callback(console.close)
        workers = start_workers(plan, Path(derived(args.run_dir)), None, console)
        stack.callback(workers.close)
        takes_turns = args.offload and args.colocate and generates and workers.trainer is not None
        if takes_turns:
            wait(workers.rollouts.call(RolloutWorker.offload), "the engine to give back its memory")
        if workers.trainer is not None:
            wait(workers.trainer.call(TrainWorker.setup), "the model to load")
        yield workers, WeightSync(args, plan.plugins, workers.rollouts, workers.trainer, takes_turns)


def _evaluate(
    plan: Plan,
    workers: Workers,
    sync: WeightSync,
    version: int,
    source: Source,
    answers: Callable[[Source], Path] | None,
) -> Evaluated:
    trainer = workers.trainer
    if source.is_checkpoint and trainer is not None:
        require_state(load_state(source.folder))
        wait(trainer.call(TrainWorker.load, source.folder), "the checkpoint to load")
    generates = plan.components.rollouts.engine_use != "never"
    output, measured = measure(-1, version, workers.rollouts, trainer, sync, generates)
    scores = {f"{name}/reward": score for name, score in reward_scores(output.generations).items()}
    if output.groups and trainer is not None:
        rows = wait(trainer.call(TrainWorker.row_losses, output.groups), "the loss of each row")
        scores |= _loss_scores(plan, output.samples, measured, rows)
    if answers is not None:
        write_answers(answers(source), output.generations)
    return Evaluated(source, metrics_of(output, measured), scores, len(output.generations))


def _loss_scores(
    plan: Plan, samples: Sequence[Sample], measured: dict[str, float], rows: Sequence[tuple[float, int]]
) -> dict[str, Score]:
    by_set: dict[str, list[tuple[str, float, int]]] = {}
    for sample, (total, tokens) in zip(samples, rows, strict=True):
        by_set.setdefault(str(sample.dataset), []).append((row_name(sample), total, tokens))
    per_token = plan.args.calculate_per_token_loss
    found = {name: loss_score(measured[f"{name}/loss"], own, per_token) for name, own in by_set.items()}
    return {f"{name}/loss": score for name, score in found.items() if score is not None}
